//! A TUN that an earlier process made and whose queues it left open.

use std::ffi::CStr;
use std::fs::File;
use std::mem::zeroed;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::Arc;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::proto::constants::MAX_LANES;

use super::super::inheritance::Unfit;
use super::prepared::IFF_PERSIST;
use super::{DEVICE_NODE, DeviceMode, Offload, Tun, TunQueue, offload, steer};

impl Tun {
    /// Goes on with these queues, in their order, if they are all of a device that would be made like this. More of them than
    /// `wanted` are no reason to make it anew: fewer workers serve them as well.
    pub(in crate::dataplane) fn adopt(
        name: &str,
        mode: DeviceMode,
        wanted: u8,
        queues: Vec<OwnedFd>,
    ) -> Result<Self, Unfit> {
        let (mut has_header, mut is_prepared) = (false, false);
        for queue in &queues {
            let interface = Interface::of(queue.as_fd())?;
            if interface.name != name {
                return Err(Unfit::OtherInterface(interface.name));
            }
            has_header = interface.has_header;
            is_prepared = interface.is_persistent;
        }
        let fits = match mode {
            DeviceMode::Offload => has_header,
            DeviceMode::Plain => !has_header,
            DeviceMode::Auto => true,
        };
        let wanted = if has_header { usize::from(wanted) } else { 1 };
        // One that was made beforehand has as many as it can.
        let is_enough = queues.len() >= wanted || is_prepared && queues.len() == 1;
        if !fits || !is_enough || queues.len() > usize::from(MAX_LANES) {
            return Err(Unfit::OtherDevice);
        }
        let index = if_nametoindex(name).map_err(|_| Unfit::TunGone)?;
        let offload =
            if has_header { offload::set(queues[0].as_fd()).map_err(|_| Unfit::OtherDevice)? } else { Offload::None };
        if let Err(error) = steer(queues[0].as_fd(), queues.len()) {
            tracing::debug!(%error, "flows are kept on their queues by the program of the daemon before");
        }
        let own = |descriptor| TunQueue::new(descriptor, offload).map(Arc::new).map_err(|_| Unfit::NotTun);
        Ok(Self { queues: queues.into_iter().map(own).collect::<Result<_, _>>()?, index, is_prepared })
    }
}

/// What the kernel says of the device behind a queue.
struct Interface {
    name: String,
    /// A virtio header stands before each packet.
    has_header: bool,
    /// It was made beforehand, and stays when nobody has it open.
    is_persistent: bool,
}

impl Interface {
    fn of(queue: BorrowedFd<'_>) -> Result<Self, Unfit> {
        if !is_device_node(queue) {
            return Err(Unfit::NotTun);
        }
        // SAFETY: all zeros is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { zeroed() };
        // SAFETY: the request writes one `ifreq`, which outlives the call.
        let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        // Of a device that was deleted the queue is left, belonging to nothing.
        Errno::result(result).map_err(|_| Unfit::TunGone)?;
        let name = request.ifr_name.map(|byte| byte as u8);
        let name = CStr::from_bytes_until_nul(&name).map_err(|_| Unfit::NotTun)?.to_string_lossy().into_owned();
        // SAFETY: the request filled in the flags.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & libc::IFF_TUN == 0 {
            return Err(Unfit::NotTun);
        }
        let has = |flag| flags & flag != 0;
        Ok(Self { name, has_header: has(libc::IFF_VNET_HDR), is_persistent: has(IFF_PERSIST) })
    }
}

/// Whether `queue` is an open [`DEVICE_NODE`]: only such a file understands a TUN's requests.
fn is_device_node(queue: BorrowedFd<'_>) -> bool {
    let own = queue.try_clone_to_owned().and_then(|queue| File::from(queue).metadata());
    let (Ok(own), Ok(node)) = (own, std::fs::metadata(DEVICE_NODE)) else { return false };
    own.file_type().is_char_device() && own.rdev() == node.rdev()
}

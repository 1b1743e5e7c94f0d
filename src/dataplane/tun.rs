//! The TUN device: created through `tun-rs` with offload, or through `tun-tap` as a plain device, and then the same to
//! its readers and writers but for the virtio header in front of each packet.
//!
//! It configures nothing (addresses, MTU, link state are control's). The device lives as long as a queue is open.
#![expect(unsafe_code, reason = "one crate gives its descriptor away as a bare number only, and none loads programs")]

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::if_nametoindex;

use crate::packet::ip::IpPacket;
use crate::packet::tunnel::Tunnelled;

use self::prepared::Prepared;
use super::tunnel_ports::TunnelPorts;
use super::virtio::{TUNNEL_HEADER_LEN, UnknownSegmentation, VIRTIO_HEADER_LEN, VirtioHeader};

mod adopt;
mod offload;
mod prepared;
mod steering;

/// Where the kernel hands out TUN devices.
const DEVICE_NODE: &str = "/dev/net/tun";

/// Names longer than this the kernel cuts (`IFNAMSIZ` less the closing zero).
const MAX_NAME_LEN: usize = 15;

/// Room for the largest read: a virtio header and a superpacket of 64 KiB.
pub(super) const TUN_BUFFER_LEN: usize = TUNNEL_HEADER_LEN + 65_536;

/// Which kind of TUN to create.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceMode {
    /// With offload where the kernel gives it, else plain.
    #[default]
    Auto,
    /// With offload or not at all.
    Offload,
    /// One packet per read and write, all checksums computed: for kernels that refuse offload, and for debugging.
    Plain,
}

/// What a TUN takes and gives beyond single, complete packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offload {
    /// Nothing; there is no virtio header.
    None,
    /// Partial checksums and TCP superpackets.
    Tcp,
    /// UDP superpackets too (Linux 6.2).
    TcpAndUdp,
    /// Both in UDP tunnels too (Linux 6.17).
    Tunnels {
        /// What the kernel wants added to where a tunnel's UDP header starts, in what is written.
        shift: u16,
    },
}

impl Offload {
    /// Length in bytes of the virtio header.
    pub(super) fn header_len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Tcp | Self::TcpAndUdp => VIRTIO_HEADER_LEN,
            Self::Tunnels { .. } => TUNNEL_HEADER_LEN,
        }
    }
}

/// Why there is no TUN.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel module or the device node is missing.
    #[error("there is no {DEVICE_NODE}: load the kernel module with `modprobe tun`, or give the container that device")]
    NoTunDevice,
    /// Creating network interfaces is not allowed.
    #[error("no permission to create a network interface: run as root or with CAP_NET_ADMIN")]
    NoPermission,
    /// An interface of that name is there already.
    #[error("the interface {0} exists already: stop what made it, or choose another interface name")]
    NameTaken(String),
    /// The kernel does not accept the name.
    #[error("{0:?} can't be an interface's name: it takes 1 to {MAX_NAME_LEN} characters, without spaces or slashes")]
    InvalidName(String),
    /// Offload was demanded and the kernel refuses it.
    #[error("the kernel refuses a TUN with offload ({0}); the device mode \"plain\" does without")]
    NoOffload(io::Error),
    /// Anything else.
    #[error("could not create the interface {name}: {source}")]
    Io {
        /// The interface.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// An open TUN device.
#[derive(Debug)]
pub(super) struct Tun {
    /// One per lane.
    pub(super) queues: Vec<Arc<TunQueue>>,
    /// The interface's index.
    pub(super) index: u32,
    /// Set for a device that was made for this daemon and stays when it ends.
    pub(super) is_prepared: bool,
}

impl Tun {
    /// Creates the device, link down, with up to `queues` queues: a plain device has one. Or opens the one that was made
    /// beforehand for this user, which has several queues if it was made with them.
    pub(super) fn create(name: &str, mode: DeviceMode, queues: u8) -> Result<Self, TunError> {
        let prepared = check_name(name)?;
        let multi_queue = prepared.map_or(queues > 1, |prepared| prepared.multi_queue);
        let queues = if multi_queue { queues } else { 1 };
        let queues = match mode {
            DeviceMode::Offload => create_offload(name, queues, multi_queue)?,
            DeviceMode::Plain => vec![create_plain(name)?],
            DeviceMode::Auto => match create_offload(name, queues, multi_queue) {
                Err(TunError::NoOffload(reason)) => {
                    tracing::warn!(%reason, "the kernel gives no TUN offload, using a plain device: expect less speed");
                    vec![create_plain(name)?]
                }
                other => other?,
            },
        };
        let index = if_nametoindex(name).map_err(|errno| TunError::Io { name: name.into(), source: errno.into() })?;
        Ok(Self { queues: queues.into_iter().map(Arc::new).collect(), index, is_prepared: prepared.is_some() })
    }

    /// Has the device be as it would be for a daemon that knows no tunnels, for whoever reads it next. Nothing is read or
    /// written before [`take_back`](Self::take_back).
    pub(super) fn leave(&self) {
        self.change_offload(
            "a daemon that knows less of TUN devices can't go on with this one",
            offload::set_without_tunnels,
        );
    }

    /// The end of [`leave`](Self::leave).
    pub(super) fn take_back(&self) {
        self.change_offload("the TUN can't be used as before", |queue| offload::set(queue).map(drop));
    }

    fn change_offload(&self, failure: &str, change: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) {
        let queue = self.queues.first().filter(|queue| matches!(queue.offload(), Offload::Tunnels { .. }));
        if let Some(Err(error)) = queue.map(|queue| change(queue.as_fd())) {
            tracing::warn!(%error, "{failure}");
        }
    }

    /// Only the queues, for another process: they keep the device open.
    pub(super) fn into_queues(self) -> io::Result<Vec<OwnedFd>> {
        self.queues.iter().map(|queue| queue.as_fd().try_clone_to_owned()).collect()
    }
}

/// Both crates would join an existing multi-queue or persistent device of that name and share its packets; and one of
/// them would make a missing device node. So look first. Returns what there is for this daemon to open.
fn check_name(name: &str) -> Result<Option<Prepared>, TunError> {
    // A name with `%` is a template to the kernel.
    let valid = (1..=MAX_NAME_LEN).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'%' | b':'));
    if !valid {
        return Err(TunError::InvalidName(name.into()));
    }
    let prepared = if if_nametoindex(name).is_ok() { Some(Prepared::find(name)?) } else { None };
    let opened = File::options().read(true).write(true).open(DEVICE_NODE);
    opened.map(|_| prepared).map_err(|source| classify(name, source))
}

fn create_offload(name: &str, queues: u8, multi_queue: bool) -> Result<Vec<TunQueue>, TunError> {
    let first = tun_rs::DeviceBuilder::new()
        .name(name)
        .offload(true)
        .multi_queue(multi_queue)
        .packet_information(false)
        .inherit_enable_state()
        .build_sync()
        .map_err(|source| match classify(name, source) {
            TunError::Io { source, .. } => TunError::NoOffload(source),
            other => other,
        })?;
    let mut devices = vec![first];
    for _ in 1..queues {
        let next = devices[0].try_clone().map_err(|source| classify(name, source))?;
        devices.push(next);
    }
    if let Err(error) = steer(devices[0].as_fd(), devices.len()) {
        // Not wrong, only less steady.
        tracing::info!(%error, "the kernel takes no program that keeps flows on their queues: a new flow may be reordered");
    }
    let offload = offload::set(devices[0].as_fd()).map_err(|source| classify(name, source))?;
    let own = |device: tun_rs::SyncDevice| {
        let owned = device.as_fd().try_clone_to_owned().map_err(|source| classify(name, source))?;
        TunQueue::new(owned, offload).map_err(|source| classify(name, source))
    };
    devices.into_iter().map(own).collect()
}

/// Has all `queues` of a device, of which `queue` is one, share its flows.
fn steer(queue: BorrowedFd<'_>, queues: usize) -> io::Result<()> {
    if queues > 1 { steering::steer_by_flow(queue) } else { Ok(()) }
}

fn create_plain(name: &str) -> Result<TunQueue, TunError> {
    let device =
        tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun).map_err(|source| classify(name, source))?;
    // SAFETY: `into_raw_fd` gives up the descriptor, which is open, so this is its only owner.
    let owned = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    offload::clear(owned.as_fd()).map_err(|source| classify(name, source))?;
    TunQueue::new(owned, Offload::None).map_err(|source| classify(name, source))
}

fn classify(name: &str, source: io::Error) -> TunError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TunError::NoTunDevice,
        Some(Errno::EPERM | Errno::EACCES) => TunError::NoPermission,
        Some(Errno::EBUSY | Errno::EEXIST) => TunError::NameTaken(name.into()),
        _ => TunError::Io { name: name.into(), source },
    }
}

/// One queue of a TUN: non-blocking, read by one worker, written by several threads.
#[derive(Debug)]
pub(super) struct TunQueue {
    descriptor: OwnedFd,
    offload: Offload,
    tunnels: Arc<TunnelPorts>,
}

/// What a read gave: what the kernel says about the packet, and where the packet lies in the buffer.
#[derive(Debug)]
pub(super) struct TunRead<'b> {
    /// `PLAIN` from a plain device.
    pub(super) header: Result<VirtioHeader, UnknownSegmentation>,
    /// The packet or superpacket.
    pub(super) bytes: &'b mut [u8],
}

impl TunQueue {
    fn new(descriptor: OwnedFd, offload: Offload) -> io::Result<Self> {
        fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok(Self { descriptor, offload, tunnels: Arc::default() })
    }

    /// A queue whose other end is `UnixDatagram` instead of the kernel: datagrams stand for packets.
    #[cfg(feature = "testing")]
    pub(super) fn of_socket(socket: std::os::unix::net::UnixDatagram, offload: Offload) -> Self {
        Self::new(socket.into(), offload).expect("a socket that is open can be made non-blocking")
    }

    /// What it takes and gives.
    pub(super) fn offload(&self) -> Offload {
        self.offload
    }

    /// Tunnels that end here.
    pub(super) fn tunnels(&self) -> &Arc<TunnelPorts> {
        &self.tunnels
    }

    /// The packet in `packet`, if it is one of a tunnel of which superpackets may be written.
    pub(super) fn find_tunnelled(&self, packet: &IpPacket<'_>) -> Option<Tunnelled> {
        let takes_tunnels = matches!(self.offload, Offload::Tunnels { .. });
        if takes_tunnels { self.tunnels.find(packet) } else { None }
    }

    /// Reads one packet or superpacket. `Ok(None)` when none is waiting; `Err` only when the device is gone.
    pub(super) fn read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<TunRead<'b>>> {
        let length = loop {
            match rustix::io::read(&self.descriptor, &mut *buffer) {
                Ok(length) => break length,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    let error = io::Error::from(errno);
                    return if is_device_gone(&error) { Err(error) } else { Ok(None) };
                }
            }
        };
        Ok(TunRead::new(self.offload, &mut buffer[..length]))
    }

    /// Writes one packet or superpacket in parts, the virtio header first if there is offload. Every error but that of
    /// [`is_device_gone`] means that this packet was refused: EIO while the link is down, EINVAL for a bad header.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        loop {
            match rustix::io::writev(&self.descriptor, parts) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl<'b> TunRead<'b> {
    /// `None` if there is less than a header.
    pub(super) fn new(offload: Offload, bytes: &'b mut [u8]) -> Option<Self> {
        let (header, bytes) = bytes.split_at_mut_checked(offload.header_len())?;
        let header = match (header.first_chunk(), header.first_chunk()) {
            (Some(with_tunnel), _) => VirtioHeader::decode_with_tunnel(with_tunnel),
            (_, Some(without)) => VirtioHeader::decode(without),
            (None, None) => Ok(VirtioHeader::PLAIN),
        };
        Some(Self { header, bytes })
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Whether `error` says that somebody deleted the device, or its network namespace.
pub(super) fn is_device_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EBADFD | Errno::ENODEV | Errno::EBADF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_the_kernel_would_change_is_refused() {
        for name in ["", "sixteen-letters0", "a b", "a/b", "tun%d", "a:b", ".", "..", "caf\u{e9}"] {
            assert!(matches!(Tun::create(name, DeviceMode::Auto, 1), Err(TunError::InvalidName(_))), "{name:?}");
        }
    }

    #[test]
    fn an_existing_interface_is_not_joined() {
        for mode in [DeviceMode::Auto, DeviceMode::Offload, DeviceMode::Plain] {
            assert!(matches!(Tun::create("lo", mode, 1), Err(TunError::NameTaken(name)) if name == "lo"));
        }
    }

    #[test]
    fn errors_of_the_kernel_are_told_apart() {
        let of = |errno: Errno| classify("underpass0", io::Error::from(errno));
        assert!(matches!(of(Errno::ENOENT), TunError::NoTunDevice));
        assert!(matches!(of(Errno::EPERM), TunError::NoPermission));
        assert!(matches!(of(Errno::EBUSY), TunError::NameTaken(_)));
        assert!(matches!(of(Errno::EINVAL), TunError::Io { .. }));
        assert!(is_device_gone(&Errno::EBADFD.into()));
        assert!(!is_device_gone(&Errno::EIO.into()));
    }
}

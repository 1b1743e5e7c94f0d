//! Raw frames in and out of one interface.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt, socket,
};

use crate::frame::Mac;
use crate::host::Host;

/// A packet socket: sees every frame that comes in by one interface, and can send any if that is an Ethernet interface. A TUN's
/// frames are IP packets.
pub struct PacketSocket {
    socket: OwnedFd,
    index: usize,
    /// An interface without a hardware address has none.
    address: Option<LinkAddr>,
}

/// From `linux/if_packet.h`: the frame is one that this machine sends.
const PACKET_OUTGOING: u8 = 4;

impl PacketSocket {
    /// Opens an interface of a host.
    #[track_caller]
    pub fn open(host: &Host, interface: &str) -> PacketSocket {
        host.run(|| Self::open_here(interface)).unwrap_or_else(|e| panic!("{interface} on {}: {e}", host.name()))
    }

    fn open_here(interface: &str) -> nix::Result<PacketSocket> {
        let index = if_nametoindex(interface)?;
        let address = link_address(interface)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        // A relay that loses frames by itself would blur what its mischief does.
        setsockopt(&socket, RcvBufForce, &(32 << 20))?;
        if let Some(address) = &address {
            bind(socket.as_raw_fd(), address)?;
        }
        Ok(PacketSocket { socket, index: index as usize, address })
    }

    /// The hardware address of the interface.
    pub fn mac(&self) -> Mac {
        let address = self.address.as_ref().and_then(LinkAddr::addr);
        address.expect("an Ethernet interface has a hardware address")
    }

    /// The next frame that came in, if one is waiting.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_536 + 64];
        loop {
            let (length, from) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                // The interface went down, or was not up yet: nothing to read until it is.
                Err(Errno::EAGAIN | Errno::ENETDOWN | Errno::EINTR) => return None,
                Err(error) => panic!("a packet socket: {error}"),
            };
            // The socket hears every interface while it is not bound.
            if from.is_some_and(|from| from.pkttype() != PACKET_OUTGOING && from.ifindex() == self.index) {
                buffer.truncate(length);
                return Some(buffer);
            }
        }
    }

    /// Sends a frame. One that the interface does not take is lost, as on a wire.
    pub fn send(&self, frame: &[u8]) {
        let _ = send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
    }

    /// Waits until one of these has a frame to read, or the time is over.
    pub fn wait(sockets: &[&PacketSocket], timeout: Duration) {
        let mut polled: Vec<PollFd> =
            sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        // Rounded up, so that a wait of half a millisecond is not a busy loop.
        let timeout = PollTimeout::try_from(timeout + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => (),
            Err(error) => panic!("poll: {error}"),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn link_address(interface: &str) -> nix::Result<Option<LinkAddr>> {
    let mut all = getifaddrs()?.filter(|entry| entry.interface_name == interface);
    Ok(all.find_map(|entry| entry.address?.as_link_addr().copied()))
}

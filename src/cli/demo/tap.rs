//! A packet socket on one interface: sees every frame that passes it and can send any frame out of it.
//!
//! Opened inside a namespace, it stays there. Reading in a loop is the business of `sniffer` and `relay`.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt, socket,
    sockopt,
};

/// Longest frame a virtual cable hands over: a 64 KiB packet and its Ethernet header.
pub(super) const MAX_FRAME: usize = 65_536 + 14;

/// `PACKET_OUTGOING` of packet(7): the frame leaves through this interface.
const OUTGOING: u8 = 4;

/// Which way a frame passes an interface of the untrusted network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// It came in from the machine at the cable's other end.
    In,
    /// It goes out to that machine.
    Out,
}

/// A packet socket.
#[derive(Debug)]
pub(super) struct Tap {
    socket: OwnedFd,
    index: usize,
}

impl Tap {
    /// Listens on `interface` of the namespace this thread is in.
    pub(super) fn open(interface: &str) -> Result<Self> {
        // libc's list of interfaces hands out ready-made packet addresses: nix has no other way to build one.
        let address = getifaddrs()?
            .filter(|entry| entry.interface_name == interface)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .with_context(|| format!("there is no interface {interface}"))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
        bind(socket.as_raw_fd(), &address)?;
        Ok(Self { socket, index: address.ifindex() })
    }

    /// The next frame, or `None` when there is none just now.
    pub(super) fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<(Direction, &'b [u8])>> {
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), buffer) {
                // Between its creation and its binding the socket heard every interface.
                Ok((_, Some(address))) if address.ifindex() != self.index => {}
                Ok((length, address)) => {
                    let outgoing = address.is_some_and(|address| address.pkttype() == OUTGOING);
                    let direction = if outgoing { Direction::Out } else { Direction::In };
                    return Ok(Some((direction, &buffer[..length])));
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a frame out of the interface.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

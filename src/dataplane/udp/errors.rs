//! Errors that the network sends about datagrams (ICMP), as the kernel queues them at the socket.
//!
//! They are never on the way of a datagram: the queue is read when `poll` tells of it. Anyone on the network can forge them.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::Socket;

use super::super::network_errors::NetworkErrorKind;
use super::UdpSocket;

/// One error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dataplane) struct IcmpError {
    /// Where the datagram went.
    pub(in crate::dataplane) endpoint: SocketAddr,
    /// What is wrong.
    pub(in crate::dataplane) kind: NetworkErrorKind,
    /// The machine that says so.
    pub(in crate::dataplane) from: IpAddr,
}

/// Has the kernel queue them.
pub(super) fn receive_errors(socket: &Socket, is_v4: bool) -> Result<(), Errno> {
    match is_v4 {
        true => setsockopt(socket, sockopt::Ipv4RecvErr, &true),
        false => setsockopt(socket, sockopt::Ipv6RecvErr, &true),
    }
}

/// Whether a send or receive may have failed with an error that is about an earlier datagram.
pub(super) fn may_be_about_earlier(errno: Errno) -> bool {
    // What `icmp_err_convert` and `icmpv6_err_convert` of the kernel make of ICMP.
    matches!(
        errno,
        Errno::ECONNREFUSED
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::ENOPROTOOPT
            | Errno::EOPNOTSUPP
            | Errno::EACCES
            | Errno::EPROTO
            | Errno::EMSGSIZE
    )
}

impl UdpSocket {
    /// Takes errors from the queue, not more than [`MAX_ERRORS`]; `poll` tells of the rest again.
    pub(in crate::dataplane) fn take_errors(&self, mut told: impl FnMut(IcmpError)) {
        for _ in 0..MAX_ERRORS {
            match self.take_error() {
                Ok(Some(error)) => told(error),
                // Of another origin, such as this machine's own MTU.
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    fn take_error(&self) -> Result<Option<IcmpError>, Errno> {
        // Nothing of the datagram is of use.
        let mut parts: [IoSliceMut<'_>; 0] = [];
        let mut space = cmsg_space!(libc::in6_pktinfo, libc::c_int, libc::sock_extended_err, libc::sockaddr_in6);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let Some(endpoint) = message.address.as_ref().and_then(socket_address) else { return Ok(None) };
        let found = message.cmsgs()?.find_map(|told| match told {
            ControlMessageOwned::Ipv4RecvErr(error, Some(from)) if error.ee_origin == libc::SO_EE_ORIGIN_ICMP => {
                let from = IpAddr::from(from.sin_addr.s_addr.to_ne_bytes());
                Some((NetworkErrorKind::of_v4(error.ee_type, error.ee_code), from))
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(from)) if error.ee_origin == libc::SO_EE_ORIGIN_ICMP6 => {
                let from = IpAddr::V6(Ipv6Addr::from(from.sin6_addr.s6_addr));
                Some((NetworkErrorKind::of_v6(error.ee_type, error.ee_code), from))
            }
            _ => None,
        });
        Ok(found.map(|(kind, from)| IcmpError { endpoint, kind, from }))
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::new(address.ip().into(), address.port()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::new(address.ip().into(), address.port())))
}

/// Forged ones may come as fast as the network brings them: data has its turn in between.
const MAX_ERRORS: usize = 16;

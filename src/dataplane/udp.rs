//! UDP sockets with what a tunnel needs of Linux: many datagrams per call in both directions (UDP_SEGMENT, UDP_GRO),
//! answers from the address that was contacted (IP_PKTINFO), the traffic class (IP_TOS), large buffers, a mark for policy
//! routing.
//!
//! It knows nothing of what the datagrams mean. No error of a send or a receive is fatal here.
#![expect(unsafe_code, reason = "sendmsg and recvmsg with control messages, measured faster than the crates over them")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::privileges::{Privileges, SocketGrant, or_granted};
use crate::packet::traffic_class::{Ecn, TrafficClass};
use crate::proto::endpoint::Endpoint;

use self::control::{ControlBuffer, ReceiveInfo, SendControl};
use self::errors::{may_be_about_earlier, receive_errors};

mod adopt;
mod control;
mod errors;
mod steering;

pub(super) use self::errors::IcmpError;

/// Room for the largest receive: UDP_GRO gathers up to 64 KiB.
pub(super) const RECEIVE_BUFFER_LEN: usize = 65_536;

/// Room in the kernel for a burst, in bytes: with less, eight flows overran it (measured, `docs/performance.md`).
pub const MAX_SOCKET_BUFFER_LEN: usize = 8 << 20;
/// The same where only handshakes come: some hundred of them, and of a flood no more than that.
const HANDSHAKE_BUFFER_LEN: usize = 1 << 20;
/// How long a worker waits for room in a full send buffer before it drops what it has.
const SEND_WAIT: Duration = Duration::from_millis(10);

/// How often a datagram is sent again that met an error of an earlier one: forged errors may come close together.
const SEND_RETRIES: u32 = 2;

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket has the port.
    #[error("UDP port {} of {} is taken by another program: stop it, or listen on another port", .0.port(), .0.ip())]
    PortTaken(SocketAddr),
    /// The host does not have the address.
    #[error("this host does not have the address that it is to listen on, {0}")]
    AddressNotAvailable(SocketAddr),
    /// The host has no IPv6, or no IPv4.
    #[error("this host has no {family}: it can't listen on {0}", family = if .0.is_ipv4() { "IPv4" } else { "IPv6" })]
    NoSuchFamily(SocketAddr),
    /// A port below 1024, or a firewall mark, without the capability.
    #[error("no permission to {what} for {address}: run as root or with {capability}")]
    NoPermission {
        /// The address to listen on.
        address: SocketAddr,
        /// What was refused.
        what: &'static str,
        /// What would allow it.
        capability: &'static str,
    },
    /// Anything else.
    #[error("can't listen on {address}: {source}")]
    Io {
        /// The address to listen on.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl BindError {
    /// Whether the host lacks the address's whole family: it has no such sockets, or no such addresses.
    pub(super) fn is_family_missing(&self) -> bool {
        match self {
            Self::NoSuchFamily(_) => true,
            Self::AddressNotAvailable(address) => address.ip().is_unspecified() || address.ip().is_loopback(),
            _ => false,
        }
    }
}

/// How to open a socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct BindOptions<'p> {
    /// Several sockets share the address: one per worker.
    pub(super) shared: bool,
    /// It is the one for all that is no transport data.
    pub(super) handshakes: bool,
    /// SO_MARK of every datagram sent.
    pub(super) fwmark: Option<u32>,
    /// The process that has the capabilities which this one lacks.
    pub(super) privileges: Option<&'p dyn Privileges>,
}

/// A bound, non-blocking UDP socket of one family.
#[derive(Debug)]
pub(super) struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
}

/// What one receive gave: datagrams of one sender and one traffic class, laid end to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Where they came from.
    pub(super) endpoint: Endpoint,
    /// What the ECN field of their IP headers says.
    pub(super) ecn: Ecn,
    /// Bytes in the buffer; 0 for an empty datagram, or one that is longer than the buffer.
    pub(super) length: usize,
    /// Length of each datagram but the last, which may be shorter; at least 1.
    pub(super) stride: usize,
}

impl UdpSocket {
    /// Binds to `address`; port 0 lets the kernel choose.
    pub(super) fn bind(address: SocketAddr, options: BindOptions<'_>) -> Result<Self, BindError> {
        let open = || {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            if options.shared {
                socket.set_reuse_port(true)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(|source| classify(address, source))?;
        if let Some(mark) = options.fwmark {
            set_mark(&socket, mark, options.privileges).map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    BindError::NoPermission { address, what: "set a firewall mark", capability: "CAP_NET_ADMIN" }
                }
                _ => BindError::Io { address, source },
            })?;
        }
        let bind = || {
            let bound = socket.bind(&address.into());
            or_granted(bound, options.privileges, socket.as_fd(), SocketGrant::Bind(address))?;
            configure(&socket, address.is_ipv4(), options)?;
            socket.local_addr()?.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        let local = bind().map_err(|source| classify(address, source))?;
        Ok(Self { socket, local })
    }

    /// Another descriptor of the same socket.
    pub(super) fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, local: self.local })
    }

    /// The address it is bound to, with the port that the kernel chose if it did.
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Has all datagrams that leave marked from here on, or none.
    pub(super) fn set_mark(&self, mark: Option<u32>, privileges: Option<&dyn Privileges>) -> io::Result<()> {
        set_mark(&self.socket, mark.unwrap_or_default(), privileges)
    }

    /// Whether datagrams to `endpoint` can leave from here: how well, 0 for not at all.
    pub(super) fn fitness(&self, endpoint: &Endpoint) -> u8 {
        match (self.local.is_ipv4() == endpoint.remote.is_ipv4(), endpoint.local) {
            (false, _) => 0,
            (true, Some(local)) if local == self.local.ip() => 3,
            (true, _) if self.local.ip().is_unspecified() => 2,
            (true, _) => 1,
        }
    }

    /// Receives what is waiting, up to [`RECEIVE_BUFFER_LEN`] bytes. `Ok(None)` when nothing is; errors that an earlier
    /// send left on the socket, such as ECONNREFUSED, are passed over.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        loop {
            match self.receive_once(buffer) {
                Ok(received) => return Ok(Some(received)),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(None),
                    Some(Errno::EINTR) => {}
                    Some(errno) if may_be_about_earlier(errno) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn receive_once(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control = ControlBuffer::new();
        let mut parts = [IoSliceMut::new(buffer)];
        // SAFETY: all zeros is a valid `msghdr`: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = parts.as_mut_ptr().cast();
        message.msg_iovlen = parts.len() as _;
        message.msg_control = control.as_mut_ptr();
        message.msg_controllen = ControlBuffer::LEN as _;
        // SAFETY: `recvmsg` writes an address of at most the storage's length into the storage, sets the length it
        // wrote, and writes no more than the stated lengths into the buffer and the control buffer, which all
        // outlive the call. `IoSliceMut` has the layout of `iovec`.
        let received = unsafe {
            SockAddr::try_init(|storage, length| {
                message.msg_name = storage.cast();
                message.msg_namelen = *length;
                let received = libc::recvmsg(self.socket.as_raw_fd(), &mut message, 0);
                *length = message.msg_namelen;
                usize::try_from(received).map_err(|_| io::Error::last_os_error())
            })
        };
        let (length, sender) = received?;
        let remote = sender.as_socket().ok_or_else(|| io::Error::from(Errno::EPROTO))?;
        // One datagram longer than the buffer is no datagram of ours: nothing of it is of use.
        let length = if message.msg_flags & libc::MSG_TRUNC == 0 { length } else { 0 };
        let info = ReceiveInfo::read(&mut control, message.msg_controllen as _);
        // Only a link-local address needs the interface; elsewhere it would make a rerouted peer look like a new one.
        let link_local = matches!(remote, SocketAddr::V6(remote) if remote.ip().is_unicast_link_local());
        let endpoint = Endpoint {
            remote: without_flow(remote),
            local: info.local,
            interface: if link_local { info.interface } else { 0 },
        };
        let (ecn, stride) = (info.traffic_class.ecn(), info.stride.unwrap_or(length.max(1)));
        Ok(Received { endpoint, ecn, length, stride })
    }

    /// Sends `bytes` as datagrams of `segment_size`, the last maybe shorter. If the send buffer is full, waits once for
    /// room, but not for long.
    pub(super) fn send(
        &self,
        endpoint: &Endpoint,
        traffic_class: TrafficClass,
        bytes: &[u8],
        segment_size: usize,
    ) -> Result<(), Errno> {
        match self.send_at_once(endpoint, traffic_class, bytes, segment_size) {
            Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                self.wait_for_room();
                self.send_at_once(endpoint, traffic_class, bytes, segment_size)
            }
            result => result,
        }
    }

    /// Sends one datagram that may be fragmented. For one thread per socket. What others send from it in this moment may be
    /// fragmented too, which costs only time.
    pub(super) fn send_fragmentable(
        &self,
        endpoint: &Endpoint,
        traffic_class: TrafficClass,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let is_v4 = self.local.is_ipv4();
        set_fragmentation(&self.socket, is_v4, Fragmentation::Allowed)?;
        let sent = self.send(endpoint, traffic_class, bytes, bytes.len());
        set_fragmentation(&self.socket, is_v4, Fragmentation::Never)?;
        sent
    }

    fn send_at_once(
        &self,
        endpoint: &Endpoint,
        traffic_class: TrafficClass,
        bytes: &[u8],
        segment_size: usize,
    ) -> Result<(), Errno> {
        let source = endpoint.local.filter(|local| local.is_ipv4() == endpoint.remote.is_ipv4());
        match self.send_from(endpoint, source, traffic_class, bytes, segment_size) {
            // The address that the peer contacted has gone from this host: let the kernel choose another. The peer
            // learns it from this datagram, and then contacts it, which ends these attempts.
            Err(Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::ENETUNREACH) if source.is_some() => {
                self.send_from(endpoint, None, traffic_class, bytes, segment_size)
            }
            result => result,
        }
    }

    fn send_from(
        &self,
        endpoint: &Endpoint,
        source: Option<IpAddr>,
        traffic_class: TrafficClass,
        bytes: &[u8],
        segment_size: usize,
    ) -> Result<(), Errno> {
        let segment_size = match u16::try_from(segment_size) {
            _ if segment_size >= bytes.len() => None,
            Ok(segment_size) => Some(segment_size),
            Err(_) => return Err(Errno::EMSGSIZE),
        };
        let remote = SockAddr::from(endpoint.remote);
        let parts = [IoSlice::new(bytes)];
        let mut control = SendControl::new(segment_size, source, endpoint.interface);
        if traffic_class != TrafficClass::default() {
            control.set_traffic_class(self.local.is_ipv4(), traffic_class);
        }
        // SAFETY: all zeros is a valid `msghdr`: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_name = remote.as_ptr().cast_mut().cast();
        message.msg_namelen = remote.len();
        message.msg_iov = parts.as_ptr().cast_mut().cast();
        message.msg_iovlen = parts.len() as _;
        let (control, control_len) = control.as_parts();
        message.msg_control = control;
        message.msg_controllen = control_len as _;
        let mut retries = SEND_RETRIES;
        loop {
            // SAFETY: every pointer in `message` is to a local that outlives the call, with its length beside it, and
            // the kernel only reads them. `IoSlice` has the layout of `iovec`.
            match unsafe { libc::sendmsg(self.socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) } {
                -1 if Errno::last() == Errno::EINTR => {}
                // The kernel tells what the network said of another datagram, and has sent nothing.
                -1 if retries > 0 && may_be_about_earlier(Errno::last()) => retries -= 1,
                -1 => return Err(Errno::last()),
                _ => return Ok(()),
            }
        }
    }

    /// Waits a little for room in the send buffer.
    fn wait_for_room(&self) {
        let mut descriptors = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(SEND_WAIT).expect("10 ms fit");
        // Whatever comes of it, the next send tells.
        let _ = poll(&mut descriptors, timeout);
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn set_mark(socket: &Socket, mark: u32, privileges: Option<&dyn Privileges>) -> io::Result<()> {
    or_granted(socket.set_mark(mark), privileges, socket.as_fd(), SocketGrant::Mark(mark))
}

fn configure(socket: &Socket, is_v4: bool, options: BindOptions<'_>) -> io::Result<()> {
    if is_v4 {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
        set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    set_fragmentation(socket, is_v4, Fragmentation::Never)?;
    receive_errors(socket, is_v4)?;
    // Privileged first: net.core.{r,w}mem_max is commonly 208 KiB, and is not ours to change. What a predecessor with more
    // privilege has set stays.
    let receive_buffer_len = if options.handshakes { HANDSHAKE_BUFFER_LEN } else { MAX_SOCKET_BUFFER_LEN };
    let forced = setsockopt(socket, sockopt::RcvBufForce, &receive_buffer_len).map_err(io::Error::from);
    let grant = SocketGrant::ReceiveBuffer(receive_buffer_len);
    if or_granted(forced, options.privileges, socket.as_fd(), grant).is_err()
        && socket.recv_buffer_size()? < receive_buffer_len
    {
        socket.set_recv_buffer_size(receive_buffer_len)?;
    }
    let forced = setsockopt(socket, sockopt::SndBufForce, &MAX_SOCKET_BUFFER_LEN).map_err(io::Error::from);
    let grant = SocketGrant::SendBuffer(MAX_SOCKET_BUFFER_LEN);
    if or_granted(forced, options.privileges, socket.as_fd(), grant).is_err()
        && socket.send_buffer_size()? < MAX_SOCKET_BUFFER_LEN
    {
        socket.set_send_buffer_size(MAX_SOCKET_BUFFER_LEN)?;
    }
    if let Err(errno) = setsockopt(socket, sockopt::UdpGroSegment, &true) {
        tracing::debug!(%errno, "the kernel gives no UDP_GRO: one datagram per receive");
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fragmentation {
    /// With "don't fragment", up to the MTU of the interface, whatever the kernel has heard of the path by ICMP: the core
    /// finds out what a path carries.
    Never,
    /// By IPv4 routers, and by the kernel to what it has heard.
    Allowed,
}

fn set_fragmentation(socket: &Socket, is_v4: bool, fragmentation: Fragmentation) -> Result<(), Errno> {
    let (level, option, value) = match (is_v4, fragmentation) {
        (true, Fragmentation::Never) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (true, Fragmentation::Allowed) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (false, Fragmentation::Never) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        (false, Fragmentation::Allowed) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
    };
    set_option(socket, level, option, value)
}

/// An option whose value is a number.
fn set_option(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the option's value is a `c_int`, read during the call only.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

fn classify(address: SocketAddr, source: io::Error) -> BindError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => BindError::PortTaken(address),
        Some(Errno::EADDRNOTAVAIL) => BindError::AddressNotAvailable(address),
        Some(Errno::EAFNOSUPPORT) => BindError::NoSuchFamily(address),
        Some(Errno::EACCES | Errno::EPERM) => {
            BindError::NoPermission { address, what: "bind", capability: "CAP_NET_BIND_SERVICE" }
        }
        _ => BindError::Io { address, source },
    }
}

/// A flow label is no part of who sent it.
fn without_flow(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V6(remote) => SocketAddrV6::new(*remote.ip(), remote.port(), 0, remote.scope_id()).into(),
        remote => remote,
    }
}

#[cfg(test)]
pub(super) mod tests;

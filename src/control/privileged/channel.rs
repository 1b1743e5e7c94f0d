//! Messages between the daemon and the privileged process, with descriptors beside them: a pair of sequenced-packet sockets,
//! which nobody else can connect to (unix(7)).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A message as it came, with its descriptors.
#[derive(Debug)]
pub(super) struct Received<T> {
    pub(super) content: T,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Two ends. Neither outlives an exec but on purpose.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Has whoever reads or writes wait no longer than this.
pub(super) fn set_patience(socket: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    set_socket_timeout(socket, Timeout::Recv, Some(patience))?;
    Ok(set_socket_timeout(socket, Timeout::Send, Some(patience))?)
}

/// The socket with the runtime's events. It is only waited for: bytes of a stream are never read from it.
pub(super) fn with_events(socket: BorrowedFd<'_>) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket.try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// Receives one message once there is one.
pub(super) async fn receive_next<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Received<T>> {
    socket.async_io(Interest::READABLE, || receive(socket.as_fd())).await
}

/// Sends one message once there is room.
pub(super) async fn send_next<T: Serialize>(
    socket: &UnixStream,
    content: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    socket.async_io(Interest::WRITABLE, || send(socket.as_fd(), content, descriptors)).await
}

/// Sends one message.
pub(super) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    content: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(content)?;
    if bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(ErrorKind::InvalidData, "longer than a message may be"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message. `UnexpectedEof` once the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Received<T>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(ErrorKind::InvalidData, "longer than a message may be"));
    }
    Ok(Received { content: serde_json::from_slice(&bytes[..received.bytes])?, descriptors })
}

/// In bytes: far more than any message of ours has.
const MAX_MESSAGE: usize = 64 << 10;
/// As many queues as a device may have; the kernel takes 253.
const MAX_DESCRIPTORS: usize = 64;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (one, other) = pair().unwrap();
        let file = File::open("/proc/self/comm").unwrap();
        send(one.as_fd(), &"here it is", &[file.as_fd(), file.as_fd()]).unwrap();
        send(one.as_fd(), &"and another", &[]).unwrap();
        let Received { content, descriptors } = receive::<String>(other.as_fd()).unwrap();
        assert_eq!((content.as_str(), descriptors.len()), ("here it is", 2));
        let mut text = String::new();
        File::from(descriptors.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        assert_eq!(receive::<String>(other.as_fd()).unwrap().content, "and another");
        drop(one);
        assert_eq!(receive::<String>(other.as_fd()).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_too_long_or_no_message_is_an_error() {
        let (one, other) = pair().unwrap();
        assert_eq!(send(one.as_fd(), &"x".repeat(MAX_MESSAGE), &[]).unwrap_err().kind(), ErrorKind::InvalidData);
        send(one.as_fd(), &7, &[]).unwrap();
        assert!(receive::<String>(other.as_fd()).is_err());
    }

    #[test]
    fn whoever_waits_has_an_end_to_their_patience() {
        let (one, _other) = pair().unwrap();
        set_patience(one.as_fd(), Duration::from_millis(10)).unwrap();
        assert_eq!(receive::<String>(one.as_fd()).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

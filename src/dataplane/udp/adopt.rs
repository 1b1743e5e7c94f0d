//! A UDP socket that an earlier process bound and left open.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use socket2::{Protocol, Socket, Type};

use super::super::inheritance::Unfit;
use super::{BindOptions, UdpSocket, configure, set_mark};

impl UdpSocket {
    /// Goes on with a socket, if it is one that [`bind`](Self::bind) would have made with these options; what can still be
    /// set is set anew.
    pub(in crate::dataplane) fn adopt(descriptor: OwnedFd, options: BindOptions<'_>) -> Result<Self, Unfit> {
        let socket = Socket::from(descriptor);
        let is_udp =
            || -> io::Result<bool> { Ok(socket.r#type()? == Type::DGRAM && socket.protocol()? == Some(Protocol::UDP)) };
        if !is_udp().unwrap_or(false) {
            return Err(Unfit::NotUdp);
        }
        let local = socket.local_addr().ok().and_then(|local| local.as_socket()).ok_or(Unfit::NotUdp)?;
        let set_up = || -> io::Result<bool> {
            let fits = socket.reuse_port()? == options.shared && (local.is_ipv4() || socket.only_v6()?);
            let mark = options.fwmark.unwrap_or(0);
            if socket.mark()? != mark {
                set_mark(&socket, mark, options.privileges)?;
            }
            socket.set_nonblocking(true)?;
            configure(&socket, local.is_ipv4(), options)?;
            Ok(fits)
        };
        if set_up().unwrap_or(false) { Ok(Self { socket, local }) } else { Err(Unfit::OtherOptions) }
    }

    /// Drops what has come for the process before: it is sealed for sessions that are no more, and fills the buffer that the
    /// first answers need.
    pub(in crate::dataplane) fn discard_queued(&self) {
        let mut start = [MaybeUninit::uninit()];
        for _ in 0..MAX_QUEUED {
            if let Err(error) = self.socket.recv(&mut start)
                && error.kind() == io::ErrorKind::WouldBlock
            {
                return;
            }
        }
    }
}

/// More than the largest buffer holds; a flood does not hold up the start.
const MAX_QUEUED: usize = 100_000;

//! The kernel's notifications of changes: anybody's of nftables, and of this machine's addresses.

use std::future::poll_fn;
use std::io;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, TokioSocket};
use nix::errno::Errno;
use nix::libc;

/// A subscription, which needs no privilege.
pub(super) struct Notifications {
    socket: TokioSocket,
}

impl Notifications {
    /// Of changes of nftables.
    pub(super) fn of_tables() -> io::Result<Self> {
        Self::subscribe(NETLINK_NETFILTER, &[libc::NFNLGRP_NFTABLES as u32])
    }

    /// Of addresses that come and go.
    pub(super) fn of_addresses() -> io::Result<Self> {
        Self::subscribe(NETLINK_ROUTE, &[libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR])
    }

    fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind_auto()?;
        groups.iter().try_for_each(|group| socket.socket_mut().add_membership(*group))?;
        Ok(Self { socket })
    }

    /// Waits until something has changed.
    pub(super) async fn any(&self) -> io::Result<()> {
        self.next().await.map(drop)
    }

    /// Waits until something has changed in a table.
    pub(super) async fn of(&self, table: &str) -> io::Result<()> {
        loop {
            let news = self.next().await?;
            // What was lost may have been of it.
            if news.is_empty() || names(&news, ATTRIBUTE_TABLE, |kind| kind != NEW_GENERATION).any(|name| name == table)
            {
                return Ok(());
            }
        }
    }

    /// Forgets what has been told until here, but for the program that has made the first of these changes.
    pub(super) fn drain(&self) -> Option<String> {
        let mut program = None;
        let mut buffer = Vec::with_capacity(READ);
        for _ in 0..MAX_DRAINED {
            if !is_read(self.socket.socket_ref().recv(&mut buffer, libc::MSG_DONTWAIT)) {
                break;
            }
            let first = || names(&buffer, ATTRIBUTE_PROGRAM, |kind| kind == NEW_GENERATION).next();
            program = program.or_else(first);
            buffer.clear();
        }
        program
    }

    /// Empty if the kernel had more to tell than there was room for.
    async fn next(&self) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(READ);
        match poll_fn(|context| self.socket.poll_recv(context, &mut buffer)).await {
            Err(error) if !is_overrun(&error) => Err(error),
            _ => Ok(buffer),
        }
    }
}

fn is_read(received: io::Result<usize>) -> bool {
    match received {
        Ok(_) => true,
        Err(error) => is_overrun(&error),
    }
}

fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}

/// The texts of an attribute in messages of these kinds. Without a look at the rest, which may be anybody's.
fn names(mut bytes: &[u8], attribute: u16, is_asked: impl Fn(u8) -> bool) -> impl Iterator<Item = String> {
    let mut names = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        let [kind, _subsystem] = message.message_type().to_le_bytes();
        let attributes = message.payload().get(NFGENMSG_LEN..).unwrap_or_default();
        let found = NlasIterator::new(attributes).flatten().find(|found| found.kind() == attribute);
        if let Some(found) = found.filter(|_| is_asked(kind)) {
            names.push(String::from_utf8_lossy(found.value()).trim_end_matches('\0').to_owned());
        }
        bytes = bytes.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    names.into_iter()
}

/// `NFT_MSG_NEWGEN`: ends each transaction.
const NEW_GENERATION: u8 = 15;
/// `NFTA_GEN_PROC_NAME`.
const ATTRIBUTE_PROGRAM: u16 = 3;
/// The first of tables, chains, rules, sets and their elements alike.
const ATTRIBUTE_TABLE: u16 = 1;
const NFGENMSG_LEN: usize = 4;
/// Somebody may change rules without a pause.
const MAX_DRAINED: usize = 1000;
/// More than the kernel puts into one message.
const READ: usize = 1 << 16;

//! Notifications of changes to links, addresses, routes and rules.
//!
//! Only that something has changed is told, not what: notifications can be lost when too many come at once, so whoever hears
//! one has to look anyway. Listening needs no privilege.

use std::fmt;
use std::io;

use futures_util::FutureExt as _;
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::NetlinkError;

/// A socket that hears of changes in the network namespace of the thread that opened it.
pub struct RouteMonitor {
    socket: TokioSocket,
}

impl fmt::Debug for RouteMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteMonitor").finish_non_exhaustive()
    }
}

impl RouteMonitor {
    /// Must be called inside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups)).map_err(NetlinkError::Open)?;
        Ok(Self { socket })
    }

    /// Comes when something changes.
    pub async fn changed(&self) -> io::Result<()> {
        let mut message = Vec::with_capacity(MESSAGE_LEN);
        match self.socket.recv(&mut message).await {
            // More has changed than fits, which is news as well.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
            received => received,
        }
    }

    /// Forgets what has changed so far.
    pub fn clear(&self) {
        // Who makes changes faster than they can be read is heard of again.
        for _ in 0..MAX_CLEARED {
            if !matches!(self.changed().now_or_never(), Some(Ok(()))) {
                return;
            }
        }
    }
}

/// Groups whose changes decide where a packet goes.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];
/// The rest of a longer one is not read.
const MESSAGE_LEN: usize = 512;
const MAX_CLEARED: usize = 4096;

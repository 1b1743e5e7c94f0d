//! Whether this machine was stopped, and may go on somewhere else, too: it was suspended, or is a virtual machine that was
//! copied.
//!
//! The kernel tells of a copy where the hypervisor does (`vmgenid`, Linux 6.8 and newer, KVM, Hyper-V, VMware and others) by an
//! event of the kind that device managers get, which needs no privilege to hear. What follows is the slow path's.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket};

use crate::proto::event::Interruption;

use super::clock;

/// A shorter time is none: two clocks are not read at once.
const SHORTEST_SUSPENSION: Duration = Duration::from_secs(1);
/// The group of the kernel's own events. Device managers send to another.
const KERNEL_GROUP: u32 = 1;
/// More than the kernel writes into one event (`UEVENT_BUFFER_SIZE`, with its header).
const EVENT_LEN: usize = 4096;

/// The machine as it was seen last.
#[derive(Debug)]
pub(super) struct Machine {
    /// Time that it had been suspended, since its start.
    suspended: Option<Duration>,
    /// Events of the kernel; none where it gives no socket for them.
    events: Option<OwnedFd>,
}

impl Machine {
    /// Observes it from here on.
    pub(super) fn observe() -> Self {
        let events = kernel_events().inspect_err(|error| {
            tracing::debug!(%error, "the kernel does not tell whether this virtual machine is copied");
        });
        Self { suspended: clock::time_suspended(), events: events.ok() }
    }

    /// Readable when [`interruption`](Self::interruption) may have something to tell at once.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(|events| events.as_fd())
    }

    /// The interruption since this was last asked.
    pub(super) fn interruption(&mut self) -> Option<Interruption> {
        // Both are looked at: what is left unread would come again.
        let suspension = self.suspension(clock::time_suspended());
        if self.was_copied() { Some(Interruption::Copied) } else { suspension }
    }

    fn suspension(&mut self, suspended: Option<Duration>) -> Option<Interruption> {
        let suspended = suspended?;
        let time = suspended.saturating_sub(self.suspended.replace(suspended)?);
        (time >= SHORTEST_SUSPENSION).then_some(Interruption::Suspended(time))
    }

    /// Reads all events that wait.
    fn was_copied(&self) -> bool {
        let Some(events) = &self.events else { return false };
        let (mut buffer, mut was_copied) = ([0; EVENT_LEN], false);
        loop {
            match recvfrom::<NetlinkAddr>(events.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => was_copied |= tells_of_a_copy(from.map(|from| from.pid()), &buffer[..length]),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => tracing::warn!("the kernel had more to tell than was read in time"),
                Err(_) => return was_copied,
            }
        }
    }
}

/// Whether the kernel (`sender` 0) says that this virtual machine goes on as a copy: `change@/devices/…`, and then variables,
/// each with a zero behind it.
fn tells_of_a_copy(sender: Option<u32>, event: &[u8]) -> bool {
    let mut parts = event.split(|byte| *byte == 0);
    sender == Some(0)
        && parts.next().is_some_and(|header| header.starts_with(b"change@"))
        && parts.any(|variable| variable == b"NEW_VMGENID=1")
}

fn kernel_events() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout};
    use nix::sys::socket::{MsgFlags, sendto};

    use super::*;

    /// The message of Linux 6.18 about such a device when it was asked for one, with the variable of
    /// `drivers/virt/vmgenid.c` in the place of those that tell that it was asked.
    const COPIED: &[u8] =
        b"change@/devices/platform/VMGENCTR:00\0ACTION=change\0DEVPATH=/devices/platform/VMGENCTR:00\0\
        SUBSYSTEM=platform\0NEW_VMGENID=1\0DRIVER=vmgenid\0MODALIAS=acpi:VMGENCTR:VM_GEN_COUNTER:\0SEQNUM=838\0";

    #[test]
    fn only_the_kernel_tells_of_a_copy_and_only_by_that_event() {
        assert!(tells_of_a_copy(Some(0), COPIED));
        assert!(!tells_of_a_copy(Some(1234), COPIED), "a program");
        assert!(!tells_of_a_copy(None, COPIED));
        // What root makes the kernel say by writing to /sys/…/uevent.
        let synthetic = b"change@/devices/platform/VMGENCTR:00\0ACTION=change\0SYNTH_UUID=0\0SYNTH_ARG_NEW_VMGENID=1\0";
        assert!(!tells_of_a_copy(Some(0), synthetic));
        for length in 0..COPIED.len() - 85 {
            assert!(!tells_of_a_copy(Some(0), &COPIED[..length]), "{length}");
        }
        assert!(!tells_of_a_copy(Some(0), &[]));
    }

    #[test]
    fn a_jump_of_the_clock_that_goes_on_in_suspend_is_told_once() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let mut machine = Machine { suspended: seconds(100), events: None };
        let told: Vec<_> =
            [seconds(100), Some(Duration::from_millis(100_900)), seconds(160), None, seconds(160), seconds(161)]
                .into_iter()
                .map(|suspended| machine.suspension(suspended))
                .collect();
        let suspended = |millis| Some(Interruption::Suspended(Duration::from_millis(millis)));
        assert_eq!(told, [None, None, suspended(59_100), None, None, suspended(1000)]);
    }

    #[test]
    fn what_a_program_sends_in_the_kernels_name_is_read_and_not_believed() {
        let mut machine = Machine::observe();
        assert!(machine.events.is_some(), "anyone may listen");
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let forger = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol).unwrap();
        let group = NetlinkAddr::new(0, KERNEL_GROUP);
        match sendto(forger.as_raw_fd(), COPIED, &group, MsgFlags::empty()) {
            Ok(_) => {
                let mut poll = [PollFd::new(machine.descriptor().unwrap(), PollFlags::POLLIN)];
                assert_eq!(nix::poll::poll(&mut poll, PollTimeout::from(10_000_u16)), Ok(1), "root may send it");
            }
            Err(errno) => assert_eq!(errno, Errno::EPERM, "others may not"),
        }
        assert_eq!(machine.interruption(), None);
    }
}

//! An attacker who sends packets without a pause, from whatever address he says, as many as one core can send.

use std::io::IoSlice;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, connect, sendmmsg, socket,
};
use nix::unistd::Pid;

use crate::background::{Background, End};
use crate::host::Host;

/// Whole IPv4 packets, which are sent one after the other.
pub type Volley = Arc<[Vec<u8>]>;

/// Packets on their way to one address until this is stopped or dropped.
pub struct Flood {
    sent: Arc<AtomicU64>,
    sender: Background,
}

impl Flood {
    /// Sends one volley after the other from a machine, which routes them to `victim`'s address. The sender stays on the last
    /// of the cores that it may use.
    #[track_caller]
    pub fn start(
        attacker: &Host,
        victim: SocketAddrV4,
        volleys: impl IntoIterator<Item = Volley> + Send + 'static,
    ) -> Flood {
        let socket = attacker.run(|| raw_socket(victim)).unwrap_or_else(|e| panic!("a raw socket to {victim}: {e}"));
        let sent = Arc::<AtomicU64>::default();
        let theirs = sent.clone();
        let sender = Background::new(|end| {
            attacker.spawn(move || {
                stay_on_one_core();
                send_all(&socket, volleys, &end, &theirs);
            })
        });
        Flood { sent, sender }
    }

    /// Ends it. Returns how many packets were sent.
    pub fn stop(self) -> u64 {
        drop(self.sender);
        self.sent.load(Ordering::Relaxed)
    }
}

/// One that sends packets as they are, headers and all.
fn raw_socket(victim: SocketAddrV4) -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(victim))?;
    Ok(socket)
}

fn stay_on_one_core() {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).expect("a thread may ask for its own cores");
    let last = (0..CpuSet::count()).rfind(|cpu| allowed.is_set(*cpu) == Ok(true)).expect("it runs on one");
    let mut one = CpuSet::new();
    one.set(last).expect("a core that exists");
    sched_setaffinity(this_thread, &one).expect("a thread may stay where it may be");
}

fn send_all(socket: &OwnedFd, volleys: impl IntoIterator<Item = Volley>, end: &End, sent: &AtomicU64) {
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(AT_ONCE, None);
    for volley in volleys {
        for packets in volley.chunks(AT_ONCE) {
            if end.has_come() {
                return;
            }
            let slices: Vec<[IoSlice; 1]> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
            let addresses = vec![None; packets.len()];
            match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &addresses, [], MsgFlags::empty()) {
                Ok(these) => _ = sent.fetch_add(these.count() as u64, Ordering::Relaxed),
                // A queue on the way is full.
                Err(Errno::ENOBUFS | Errno::EINTR) => (),
                Err(error) => panic!("a raw socket: {error}"),
            }
        }
    }
}

/// Packets of one system call.
const AT_ONCE: usize = 64;

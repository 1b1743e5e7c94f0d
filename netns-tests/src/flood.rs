//! An attacker who sends packets without a pause, from whatever address he says, as many as one core can send.

use std::io::IoSlice;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, connect, sendmmsg, socket,
};
use nix::unistd::Pid;

use crate::host::Host;

/// Whole IPv4 packets, which are sent one after the other.
pub type Volley = Arc<[Vec<u8>]>;

/// Packets on their way to one address until this is stopped or dropped.
pub struct Flood {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    sent: AtomicU64,
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
        let counts = Arc::new(Counts::default());
        let theirs = counts.clone();
        let thread = attacker.spawn(move || {
            stay_on_one_core();
            send_all(&socket, volleys, &theirs);
        });
        Flood { counts, thread: Some(thread) }
    }

    /// Packets that were sent so far.
    pub fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// Ends it. Returns how many packets were sent.
    pub fn stop(self) -> u64 {
        let counts = self.counts.clone();
        drop(self);
        counts.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        // A panic of the sender has been printed already, and this may itself run in a panic.
        let _ = self.thread.take().map(JoinHandle::join);
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

fn send_all(socket: &OwnedFd, volleys: impl IntoIterator<Item = Volley>, counts: &Counts) {
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(AT_ONCE, None);
    for volley in volleys {
        for packets in volley.chunks(AT_ONCE) {
            if counts.stop.load(Ordering::Relaxed) {
                return;
            }
            let slices: Vec<[IoSlice; 1]> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
            let addresses = vec![None; packets.len()];
            match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &addresses, [], MsgFlags::empty()) {
                Ok(sent) => _ = counts.sent.fetch_add(sent.count() as u64, Ordering::Relaxed),
                // A queue on the way is full.
                Err(Errno::ENOBUFS | Errno::EINTR) => (),
                Err(error) => panic!("a raw socket: {error}"),
            }
        }
    }
}

/// Packets of one system call.
const AT_ONCE: usize = 64;

//! Orders to workers, between two turns: to go on, to wait, to end, which lanes are theirs, which sockets those use; and that
//! they are to show that they live.
//!
//! ```text
//!   worker k has the lanes l with l mod workers = k            workers 2 ─▶ 1:  worker 1 ── lane 1 ─▶ worker 0
//! ```
//!
//! A lane is given from worker to worker as a value: two never have the same, and what its queue and its sockets get meanwhile
//! waits in the kernel, in its order. How many workers there are is decided elsewhere ([`WorkerPolicy`](super::worker_policy)).

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::lane::Lane;
use super::processors::Load;
use super::pulse::Beat;
use super::sockets::Sockets;
use super::wake::Wake;

/// What a worker is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// Carry packets.
    #[default]
    Run,
    /// Carry none, until there is another order.
    Pause,
    /// End.
    Stop,
}

/// Orders to all workers. There are as many as lanes; those without a lane sleep.
#[derive(Debug)]
pub(super) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
    /// By worker.
    channels: Box<[Channel]>,
}

/// The ways to one worker, and from it.
#[derive(Debug)]
struct Channel {
    /// Readable while there is an [order](Orders::next_order).
    wake: Wake,
    beat: Beat,
    load: Arc<Load>,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// Workers that have lanes.
    workers: usize,
    /// Workers that wait by order.
    paused: usize,
    /// Lanes on their way, by the worker that is to take them.
    given: Box<[Vec<Lane>]>,
    /// Sockets that a lane is to use from here on, by lane, until its worker has them.
    sockets: Box<[Option<Sockets>]>,
}

impl Orders {
    /// To so many workers, of which the first `workers` get lanes.
    pub(super) fn new(lanes: usize, workers: usize) -> io::Result<Self> {
        let channel = |_| Ok(Channel { wake: Wake::new()?, beat: Beat::default(), load: Arc::default() });
        let state = State {
            order: Order::Run,
            workers,
            paused: 0,
            given: (0..lanes).map(|_| Vec::new()).collect(),
            sockets: (0..lanes).map(|_| None).collect(),
        };
        let channels = (0..lanes).map(channel).collect::<io::Result<_>>()?;
        Ok(Self { state: Mutex::new(state), changed: Condvar::new(), channels })
    }

    /// Lanes, and workers that could have one.
    pub(super) fn lanes(&self) -> usize {
        self.channels.len()
    }

    /// Gives a lane to the worker whose it is.
    pub(super) fn give(&self, lane: Lane) {
        self.pass_on(&mut self.state(), lane);
    }

    /// Has the first `workers` of them serve all lanes.
    pub(super) fn spread(&self, workers: usize) {
        self.state().workers = workers.clamp(1, self.lanes());
        self.wake_all();
    }

    /// Has all workers end.
    pub(super) fn stop(&self) {
        self.order(Order::Stop);
    }

    /// Drops the lanes that no worker has taken.
    pub(super) fn discard(&self) {
        self.state().given.iter_mut().for_each(Vec::clear);
    }

    /// Has all workers wait.
    pub(super) fn pause(&self) {
        self.order(Order::Pause);
    }

    /// Has all workers go on.
    pub(super) fn resume(&self) {
        self.order(Order::Run);
    }

    /// Has each lane use its own of `sockets` in the place of those that it has.
    pub(super) fn use_sockets(&self, sockets: &[Sockets]) {
        self.state().sockets.iter_mut().zip(sockets).for_each(|(next, sockets)| *next = Some(sockets.clone()));
        self.wake_all();
    }

    /// Returns whether all workers wait, which takes each one turn. Then nobody reads a lane that is on its way, either.
    pub(super) fn wait_until_paused(&self) -> bool {
        let is_missing = |state: &mut State| state.paused < self.channels.len();
        let waiting = self.changed.wait_timeout_while(self.state(), TURN, is_missing);
        waiting.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// Has all workers show that they live.
    pub(super) fn ask_for_life(&self) {
        self.channels.iter().for_each(|channel| channel.beat.ask());
        self.wake_all();
    }

    /// Whether all have since they were asked.
    pub(super) fn have_shown_life(&self) -> bool {
        self.channels.iter().all(|channel| channel.beat.is_answered())
    }

    /// The share of the processors that each worker's thread has had.
    pub(super) fn loads(&self) -> impl Iterator<Item = &Load> {
        self.channels.iter().map(|channel| &*channel.load)
    }

    /// The worker's part: where it tells its load.
    pub(super) fn load(&self, worker: usize) -> Arc<Load> {
        self.channels[worker].load.clone()
    }

    /// The worker's part: readable while there is an order.
    pub(super) fn descriptor(&self, worker: usize) -> BorrowedFd<'_> {
        self.channels[worker].wake.as_fd()
    }

    /// The worker's part, when its descriptor is readable: shows life, waits while it is to wait, gives away those of its
    /// `lanes` that are another's, takes those that are its own, and returns what to do.
    pub(super) fn next_order(&self, worker: usize, lanes: &mut Vec<Lane>) -> Order {
        let Channel { wake, beat, .. } = &self.channels[worker];
        wake.hear();
        beat.answer();
        let mut state = self.wait_while_paused();
        lanes.append(&mut state.given[worker]);
        let workers = state.workers;
        for lane in lanes.extract_if(.., |lane| owner(lane, workers) != worker) {
            self.pass_on(&mut state, lane);
        }
        for lane in lanes {
            if let Some(sockets) = state.sockets[usize::from(lane.number())].take() {
                lane.use_sockets(sockets);
            }
        }
        state.order
    }

    fn wait_while_paused(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.paused += 1;
        self.changed.notify_all();
        let is_to_wait = |state: &mut State| state.order == Order::Pause;
        state = self.changed.wait_while(state, is_to_wait).unwrap_or_else(PoisonError::into_inner);
        state.paused -= 1;
        state
    }

    fn pass_on(&self, state: &mut State, lane: Lane) {
        let owner = owner(&lane, state.workers);
        state.given[owner].push(lane);
        self.channels[owner].wake.ring();
    }

    fn order(&self, order: Order) {
        self.state().order = order;
        self.changed.notify_all();
        self.wake_all();
    }

    fn wake_all(&self) {
        self.channels.iter().for_each(|channel| channel.wake.ring());
    }

    /// A worker that panics between two turns leaves nothing half done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker whose a lane is, of so many.
fn owner(lane: &Lane, workers: usize) -> usize {
    usize::from(lane.number()) % workers
}

/// Far more than a worker's turn takes: 10 ms for each of its lanes if a send buffer is full.
const TURN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use arc_swap::ArcSwap;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::super::clock;
    use super::super::lane::LaneParts;
    use super::super::samples::device;
    use super::super::slow_path::queues;
    use super::super::tun::{Offload, TunQueue};
    use super::super::udp::{BindOptions, UdpSocket};
    use super::*;

    fn socket() -> UdpSocket {
        let options = BindOptions { shared: false, handshakes: false, fwmark: None, privileges: None };
        UdpSocket::bind("127.0.0.1:0".parse().unwrap(), options).unwrap()
    }

    /// A lane that nothing comes to.
    fn lane(number: u8) -> Lane {
        let (slow_path, ..) = queues().unwrap();
        let sockets = Sockets::shared([socket()]);
        Lane::new(LaneParts {
            lane: number,
            mtu: 1420,
            tun: Arc::new(TunQueue::of_socket(UnixDatagram::pair().unwrap().0, Offload::Tcp)),
            ports: sockets.ports(),
            sockets,
            router: Arc::new(ArcSwap::from(device(clock::now(), 1).router())),
            slow_path,
            counters: Arc::default(),
            network_errors: Arc::default(),
        })
    }

    /// Workers that carry nothing: each says which lanes it has after each order. Ends them when it is dropped.
    struct Workers {
        orders: Arc<Orders>,
        seen: Arc<Mutex<Vec<Vec<u8>>>>,
        /// Lanes that workers have at the moment.
        owned: Arc<AtomicUsize>,
        threads: Vec<thread::JoinHandle<()>>,
    }

    impl Workers {
        fn start(lanes: u8, workers: usize) -> Self {
            let orders = Arc::new(Orders::new(lanes.into(), workers).unwrap());
            (0..lanes).for_each(|number| orders.give(lane(number)));
            let seen = Arc::new(Mutex::new(vec![Vec::new(); lanes.into()]));
            let mut this = Self { orders, seen, owned: Arc::default(), threads: Vec::new() };
            this.threads = (0..lanes.into()).map(|worker| this.worker(worker)).collect();
            this
        }

        fn worker(&self, worker: usize) -> thread::JoinHandle<()> {
            let (orders, seen, owned) = (self.orders.clone(), self.seen.clone(), self.owned.clone());
            thread::spawn(move || {
                let mut lanes = Vec::new();
                loop {
                    owned.fetch_sub(lanes.len(), Ordering::SeqCst);
                    let order = orders.next_order(worker, &mut lanes);
                    owned.fetch_add(lanes.len(), Ordering::SeqCst);
                    seen.lock().unwrap()[worker] = lanes.iter().map(Lane::number).collect();
                    if order == Order::Stop {
                        return;
                    }
                    poll(&mut [PollFd::new(orders.descriptor(worker), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
                }
            })
        }

        /// Waits until each worker has exactly these lanes.
        fn wait_for(&self, expected: &[&[u8]]) {
            let is_reached = || {
                let mut seen = self.seen.lock().unwrap().clone();
                seen.iter_mut().for_each(|lanes| lanes.sort_unstable());
                seen == expected
            };
            while !is_reached() {
                thread::yield_now();
            }
        }
    }

    impl Drop for Workers {
        fn drop(&mut self) {
            self.orders.stop();
            self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        }
    }

    #[test]
    fn workers_wait_go_on_show_life_and_end_by_order() {
        let workers = Workers::start(2, 1);
        let orders = &workers.orders;
        for _ in 0..100 {
            orders.pause();
            assert!(orders.wait_until_paused());
            orders.resume();
        }
        orders.ask_for_life();
        while !orders.have_shown_life() {
            thread::yield_now();
        }
        orders.pause();
        assert!(orders.wait_until_paused());
        orders.ask_for_life();
        assert!(!orders.have_shown_life(), "they wait");
    }

    #[test]
    fn lanes_go_to_the_workers_that_there_are() {
        let workers = Workers::start(4, 1);
        workers.wait_for(&[&[0, 1, 2, 3], &[], &[], &[]]);
        for (number, expected) in [
            (2, [&[0, 2][..], &[1, 3], &[], &[]]),
            (4, [&[0], &[1], &[2], &[3]]),
            (3, [&[0, 3], &[1], &[2], &[]]),
            (0, [&[0, 1, 2, 3], &[], &[], &[]]),
            (9, [&[0], &[1], &[2], &[3]]),
        ] {
            workers.orders.spread(number);
            workers.wait_for(&expected);
        }
    }

    #[test]
    fn no_lane_is_lost_or_doubled_by_any_haste_and_none_is_served_during_a_pause() {
        let workers = Workers::start(3, 1);
        for round in 0..300 {
            workers.orders.spread(1 + round % 3);
            if round % 10 == 9 {
                workers.orders.pause();
                assert!(workers.orders.wait_until_paused());
                assert_eq!(workers.owned.load(Ordering::SeqCst), 0, "a worker goes on during a pause");
                workers.orders.spread(1 + round % 2);
                workers.orders.resume();
            }
        }
        workers.orders.spread(2);
        workers.wait_for(&[&[0, 2], &[1], &[]]);
    }

    #[test]
    fn a_lane_that_moves_gets_the_sockets_that_it_is_to_use() {
        let orders = Orders::new(2, 2).unwrap();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        (0..2).for_each(|number| orders.give(lane(number)));
        orders.next_order(1, &mut second);
        orders.spread(1);
        orders.next_order(1, &mut second);
        // Lane 1 is on its way.
        let sockets = [socket(), socket()].map(|socket| Sockets::shared([socket]));
        orders.use_sockets(&sockets);
        orders.next_order(0, &mut first);
        let ports = |lane: &Lane| lane.parts().sockets.ports();
        first.sort_by_key(Lane::number);
        assert!(second.is_empty());
        assert_eq!(first.iter().map(ports).collect::<Vec<_>>(), sockets.map(|sockets| sockets.ports()));
    }
}

//! One thread of the fast path. It owns the lanes that are its share at the moment, waits for all of them at once, and gives each
//! its turn.
//!
//! Packets are [`Lane`]'s matter; which lanes are whose, [`Orders`] say between two turns.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags};

use super::busy_poll::BusyPoll;
use super::clock;
use super::failure::Failure;
use super::lane::{Lane, LaneParts, is_ready};
use super::orders::{Order, Orders};
use super::processors::{LoadMeter, pin};

/// A fast-path thread's state.
#[derive(Debug)]
pub(super) struct Worker {
    /// The worker's number.
    pub(super) number: usize,
    /// Set if the thread stays on one CPU.
    pub(super) is_pinned: bool,
    /// Set if the thread may stay awake for the next packet.
    pub(super) may_busy_poll: bool,
    pub(super) orders: Arc<Orders>,
}

impl Worker {
    /// Carries packets until it is told to stop, or the TUN is gone.
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.is_pinned {
            pin(self.number);
        }
        let load = || self.orders.load(self.number);
        let mut meter = LoadMeter::of_this_thread(clock::now(), load());
        let mut pauses = BusyPoll::new(clock::now(), self.may_busy_poll, load());
        let mut lanes = Vec::new();
        while self.orders.next_order(self.number, &mut lanes) != Order::Stop {
            self.carry(&mut lanes, &mut meter, &mut pauses)?;
        }
        Ok(())
    }

    /// Carries packets of these lanes until there is an order.
    fn carry(&self, lanes: &mut [Lane], meter: &mut LoadMeter, pauses: &mut BusyPoll) -> Result<(), Failure> {
        // What is polled is borrowed for all turns, while the lanes change in each.
        let parts: Vec<LaneParts> = lanes.iter().map(Lane::parts).collect();
        let polled: Vec<Vec<_>> = parts.iter().map(|parts| parts.descriptors().collect()).collect();
        let order = [self.orders.descriptor(self.number)];
        let all = order.iter().chain(polled.iter().flatten());
        let mut descriptors: Vec<_> =
            all.map(|descriptor| PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)).collect();
        loop {
            let mut now = pauses.wait(&mut descriptors).map_err(|errno| Failure::Poll(errno.into()))?;
            let [order, of_lanes @ ..] = &descriptors[..] else { unreachable!("made above") };
            if is_ready(order) {
                return Ok(());
            }
            let mut rest = of_lanes;
            meter.on_turn(now);
            for (lane, polled) in lanes.iter_mut().zip(&polled) {
                let (own, of_others) = rest.split_at(polled.len());
                lane.take_turn(now, own)?;
                rest = of_others;
                if !rest.is_empty() {
                    now = clock::now();
                }
            }
        }
    }
}

//! From opened datagrams to the TUN: admits their packets and joins those that were cut from one superpacket.

use std::fmt;
use std::net::IpAddr;

use crate::packet::frame::{FLAG_CHECKSUM_PARTIAL, FLAG_CONTINUES, PacketFrame};
use crate::packet::ip::IpPacket;
use crate::proto::error::DropReason;
use crate::proto::peer_table::PeerId;
use crate::proto::router::{Notice, Opened, Router};

use super::counters::Counters;
use super::failure::Failure;
use super::train::Train;
use super::tun::{TunQueue, is_device_gone};

/// The datagrams of one receive, on their way to the TUN.
pub(super) struct Inbound<'a, 'b> {
    router: &'a Router,
    tun: &'a TunQueue,
    counters: &'a Counters,
    train: Train<'b>,
    /// A train is to tell its flow that there is congestion.
    signals_congestion: bool,
    /// Who sealed the datagram before, if its last packet frame is the train's last packet.
    last: Option<Position>,
    /// The peer and the source of the packet that was admitted last.
    admitted: Option<(PeerId, IpAddr)>,
    /// Answers packets that are refused, where that is wanted.
    on_refused: Option<&'a mut OnRefused<'a>>,
}

/// Hears of packets that a peer may not send.
type OnRefused<'a> = dyn FnMut(PeerId, &IpPacket<'_>) + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    peer: PeerId,
    lane: u8,
    counter: u64,
}

impl<'a, 'b> Inbound<'a, 'b> {
    pub(super) fn new(router: &'a Router, tun: &'a TunQueue, counters: &'a Counters) -> Self {
        Self {
            router,
            tun,
            counters,
            train: Train::new(tun.offload()),
            signals_congestion: false,
            last: None,
            admitted: None,
            on_refused: None,
        }
    }

    /// Has packets answered that a peer may not send, if it is to be told.
    pub(super) fn answer_refused_by(&mut self, on_refused: &'a mut OnRefused<'a>) {
        self.on_refused = Some(on_refused);
    }

    /// Has one bulk flow told, if there is one, that the queue of what was received stands.
    pub(super) fn signal_congestion(&mut self) {
        self.signals_congestion = true;
    }

    /// Takes the packets of one datagram; control frames become notices.
    pub(super) fn take(&mut self, opened: &Opened<'b, '_>, notices: &mut Vec<Notice>) -> Result<(), Failure> {
        let position = Position { peer: opened.peer, lane: opened.lane, counter: opened.counter };
        let before = position.counter.checked_sub(1).map(|counter| Position { counter, ..position });
        let mut follows = before.is_some() && self.last == before;
        self.last = None;
        for frame in opened.packets(notices) {
            follows = match frame {
                Ok(frame) => self.take_packet(opened, frame, follows)?,
                Err(reason) => {
                    self.counters.count(reason);
                    false
                }
            };
            self.last = follows.then_some(position);
        }
        Ok(())
    }

    /// `follows`: the packet frame before this one, as its sender counts, is the train's last packet. Returns the same
    /// for the next.
    fn take_packet(&mut self, opened: &Opened<'b, '_>, frame: PacketFrame<'b>, follows: bool) -> Result<bool, Failure> {
        // Most packets of a bulk transfer end here: the train compares addresses, ports and flags with a packet of this peer
        // that was admitted, so there is nothing to look up or to judge.
        if follows && frame.flags == CONTINUES_TRAIN {
            if std::mem::take(&mut self.signals_congestion) && !self.train.mark_congestion() {
                self.counters.count(DropReason::StandingQueue);
                return Ok(false);
            }
            if self.append(frame) {
                return Ok(true);
            }
        }
        let packet = match self.router.admit(opened, frame, &mut self.admitted) {
            Ok(packet) => packet,
            Err(reason) => {
                self.counters.count(reason);
                if reason == DropReason::NotExposed && self.router.tells_of_refusal(opened.peer) {
                    self.answer_refused(opened.peer, frame);
                }
                return Ok(false);
            }
        };
        let checksum_partial = frame.flags & FLAG_CHECKSUM_PARTIAL != 0;
        // An application that sends small datagrams one by one; what joins them is what a network card's GRO would.
        let is_joined = frame.flags == FLAG_CHECKSUM_PARTIAL && packet.is_atomic() && self.train.append(&packet);
        if is_joined || self.train.append_tunnelled(&packet, checksum_partial) {
            return Ok(true);
        }
        self.deliver()?;
        match self.tun.find_tunnelled(&packet) {
            Some(tunnelled) => self.train.start_tunnelled(packet, tunnelled, checksum_partial),
            None => self.train.start(packet, checksum_partial),
        }
        Ok(true)
    }

    fn answer_refused(&mut self, peer: PeerId, frame: PacketFrame<'b>) {
        if let (Some(on_refused), Ok(packet)) = (&mut self.on_refused, IpPacket::parse(frame.bytes)) {
            on_refused(peer, &packet);
        }
    }

    fn append(&mut self, frame: PacketFrame<'b>) -> bool {
        IpPacket::parse(frame.bytes).is_ok_and(|packet| self.train.append(&packet))
    }

    /// Writes what is waiting. Called after the last datagram of a receive, whose buffer the packets lie in.
    pub(super) fn deliver(&mut self) -> Result<(), Failure> {
        let packets = self.train.packets() as u64;
        match self.train.deliver(|parts| self.tun.write(parts)) {
            Ok(()) => Ok(()),
            Err(error) if is_device_gone(&error) => Err(Failure::TunGone(error)),
            Err(_) => {
                self.counters.add(DropReason::TunWriteFailed, packets);
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Inbound<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound").field("train", &self.train).finish_non_exhaustive()
    }
}

const CONTINUES_TRAIN: u8 = FLAG_CHECKSUM_PARTIAL | FLAG_CONTINUES;

#[cfg(test)]
mod tests;

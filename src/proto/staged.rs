//! Packets that wait for a session: bounded, the oldest gives way.

use std::collections::VecDeque;

use super::constants::{MAX_STAGED_BYTES, MAX_STAGED_PACKETS};

/// One IP packet on its way to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedPacket {
    /// One whole IP packet, no longer than the interface's MTU.
    pub bytes: Vec<u8>,
    /// Its TCP or UDP checksum field holds no checksum.
    pub checksum_partial: bool,
}

/// The waiting packets of one peer.
#[derive(Debug, Default)]
pub struct StagedQueue {
    packets: VecDeque<StagedPacket>,
    bytes: usize,
}

impl StagedQueue {
    /// Adds a packet; returns how many older ones were dropped for it.
    pub fn push(&mut self, packet: StagedPacket) -> u64 {
        self.bytes += packet.bytes.len();
        self.packets.push_back(packet);
        let mut dropped = 0;
        while self.packets.len() > MAX_STAGED_PACKETS || self.bytes > MAX_STAGED_BYTES {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    /// Takes the oldest packet.
    pub fn pop(&mut self) -> Option<StagedPacket> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.bytes.len();
        Some(packet)
    }

    /// Drops all; returns how many there were.
    pub fn clear(&mut self) -> u64 {
        self.bytes = 0;
        let dropped = self.packets.len() as u64;
        self.packets = VecDeque::new();
        dropped
    }

    /// How many wait.
    pub fn packets(&self) -> usize {
        self.packets.len()
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(length: usize) -> StagedPacket {
        StagedPacket { bytes: vec![7; length], checksum_partial: false }
    }

    #[test]
    fn the_oldest_gives_way_by_number_and_by_bytes() {
        let mut staged = StagedQueue::default();
        for length in 1..=MAX_STAGED_PACKETS {
            assert_eq!(staged.push(packet(length)), 0);
        }
        assert_eq!(staged.push(packet(1)), 1);
        assert_eq!(staged.pop().unwrap().bytes.len(), 2);
        assert!(staged.push(packet(MAX_STAGED_BYTES)) > 100, "the big one stays, all others go");
        assert_eq!(staged.pop().unwrap().bytes.len(), MAX_STAGED_BYTES);
        assert!(staged.is_empty());
    }

    #[test]
    fn what_waits_is_counted() {
        let mut staged = StagedQueue::default();
        let counts = |staged: &StagedQueue| (staged.packets(), staged.bytes(), staged.is_empty());
        assert_eq!(counts(&staged), (0, 0, true));
        staged.push(packet(5));
        staged.push(packet(7));
        assert_eq!(counts(&staged), (2, 12, false));
        staged.pop();
        assert_eq!(counts(&staged), (1, 7, false));
        assert_eq!((staged.clear(), counts(&staged)), (1, (0, 0, true)));
    }

    #[test]
    fn a_packet_beyond_the_whole_bound_is_dropped_itself() {
        let mut staged = StagedQueue::default();
        assert_eq!(staged.push(packet(MAX_STAGED_BYTES + 1)), 1);
        assert!(staged.is_empty());
    }
}

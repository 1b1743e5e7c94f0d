//! The stranger who listens: records every frame on the proxy's port of the untrusted network.
//!
//! What the frames mean is asked of the recording afterwards; how it is shown is the business of `panes`.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::frame::{self, Layout, Transport};
use super::network::{Network, PROXY_PORT};
use super::tap::{Direction, MAX_FRAME, Tap};

/// How long a stopped sniffer still waits for frames: longer than a frame takes over a virtual cable.
const LINGER_MILLISECONDS: u16 = 20;

/// One frame as it passed.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// `In` from the proxy, `Out` to the proxy.
    pub(super) direction: Direction,
    /// From the Ethernet header on.
    pub(super) bytes: Vec<u8>,
}

/// What was heard.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// In the order of passing.
    pub(super) frames: Vec<Frame>,
}

/// The frames of a recording by what they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// UDP datagrams to or from the tunnel's port.
    pub(super) tunnel: usize,
    /// Address look-ups (ARP).
    pub(super) lookups: usize,
    /// All others.
    pub(super) others: usize,
    /// What the first of the others is.
    pub(super) first_other: Option<String>,
}

/// A running sniffer.
#[derive(Debug)]
pub(super) struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Recording>>,
}

impl Sniffer {
    /// Begins to listen: every frame after the return of this is heard.
    pub(super) fn start(network: &Network) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let tap = network.untrusted.run(|| Tap::open(PROXY_PORT))?;
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || record(&tap, &stopped));
        Ok(Self { stop, thread })
    }

    /// Ends listening.
    pub(super) fn stop(self) -> Result<Recording> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a panic in the demo ends the process in its hook")
    }
}

impl Recording {
    /// TCP and UDP payloads with their addresses.
    pub(super) fn payloads(&self) -> impl Iterator<Item = (Layout, &[u8])> {
        self.frames.iter().filter_map(|frame| {
            let layout = frame::parse(&frame.bytes)?;
            let payload = &frame.bytes[layout.payload.clone()];
            Some((layout, payload))
        })
    }

    /// How often `needle` stands in the frames.
    pub(super) fn occurrences(&self, needle: &[u8]) -> usize {
        self.frames
            .iter()
            .map(|frame| frame.bytes.windows(needle.len()).filter(|window| *window == needle).count())
            .sum()
    }

    /// Sorts the frames; `port` is the tunnel's.
    pub(super) fn census(&self, port: u16) -> Census {
        let mut census = Census::default();
        for frame in &self.frames {
            if frame::is_address_lookup(&frame.bytes) {
                census.lookups += 1;
            } else if is_tunnel(&frame.bytes, port) {
                census.tunnel += 1;
            } else {
                census.others += 1;
                census.first_other.get_or_insert_with(|| frame::describe(&frame.bytes));
            }
        }
        census
    }

    /// The frames that carry datagrams of the tunnel.
    pub(super) fn tunnel_frames(&self, port: u16) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(move |frame| is_tunnel(&frame.bytes, port))
    }
}

/// Does the frame carry a UDP datagram of the tunnel?
pub(super) fn is_tunnel(bytes: &[u8], port: u16) -> bool {
    frame::parse(bytes).is_some_and(|layout| {
        layout.transport == Transport::Udp && [layout.source.port(), layout.destination.port()].contains(&port)
    })
}

fn record(tap: &Tap, stop: &AtomicBool) -> Result<Recording> {
    let mut recording = Recording::default();
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let mut events = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut events, PollTimeout::from(LINGER_MILLISECONDS))?;
        if ready == 0 && stopping {
            return Ok(recording);
        }
        while let Some((direction, bytes)) = tap.receive(&mut buffer)? {
            recording.frames.push(Frame { direction, bytes: bytes.to_vec() });
        }
        ensure!(recording.frames.len() < 1_000_000, "the network does not fall silent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_word_as_often_as_it_stands_there() {
        let frame = |bytes: &[u8]| Frame { direction: Direction::In, bytes: bytes.to_vec() };
        let recording = Recording { frames: vec![frame(b"card card"), frame(b"cart"), frame(b"a card")] };
        assert_eq!(recording.occurrences(b"card"), 3);
    }
}

//! The man in the middle: the proxy's cable in one hand, the rest of the network in the other.
//!
//! Carries frames between the two in user space and lets a `Meddler` look at, change or drop each one. He fixes
//! checksums, so a change is not noticed by the machines' own means. He knows no key.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::frame::{self, Layout};
use super::network::{LAN, Network, PROXY_PORT};
use super::sniffer::Frame;
use super::tap::{Direction, MAX_FRAME, Tap};

/// Connections that end just now say their last words within a millisecond.
const QUIET_MILLISECONDS: u16 = 40;

/// What the man in the middle does to a TCP segment or UDP datagram before he passes it on.
pub(super) trait Meddler: Send + 'static {
    /// May change `payload` in place.
    fn meddle(&mut self, layout: &Layout, payload: &mut [u8]);
}

/// A running relay in place of the proxy's cable.
#[derive(Debug)]
pub(super) struct Relay<M> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<M>>,
}

impl<M: Meddler> Relay<M> {
    /// Comes between the proxy and the rest.
    pub(super) fn start(network: &Network, meddler: M) -> Result<Self> {
        let (proxy, lan) = network.untrusted.run(open_both)?;
        network.unplug_proxy()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || carry(&proxy, &lan, meddler, &stopped));
        Ok(Self { stop, thread })
    }

    /// Waits for silence, goes away and puts the cable back; returns what he has to tell.
    pub(super) fn stop(self, network: &Network) -> Result<M> {
        self.stop.store(true, Ordering::Relaxed);
        let meddler = self.thread.join().expect("a panic in the demo ends the process in its hook")?;
        network.plug_proxy()?;
        Ok(meddler)
    }
}

/// Sends recorded frames once more, each the way it went, without carrying anything.
pub(super) fn replay<'f>(network: &Network, frames: impl Iterator<Item = &'f Frame>) -> Result<usize> {
    let (proxy, lan) = network.untrusted.run(open_both)?;
    let mut replayed = 0;
    for frame in frames {
        let mut bytes = frame.bytes.clone();
        if let Some(layout) = frame::parse(&bytes) {
            frame::refresh_checksum(&mut bytes, &layout);
        }
        match frame.direction {
            Direction::In => send(&lan, &bytes)?,
            Direction::Out => send(&proxy, &bytes)?,
        }
        replayed += 1;
    }
    Ok(replayed)
}

fn open_both() -> Result<(Tap, Tap)> {
    Ok((Tap::open(PROXY_PORT)?, Tap::open(LAN)?))
}

fn carry<M: Meddler>(proxy: &Tap, lan: &Tap, mut meddler: M, stop: &AtomicBool) -> Result<M> {
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let mut events = [PollFd::new(proxy.as_fd(), PollFlags::POLLIN), PollFd::new(lan.as_fd(), PollFlags::POLLIN)];
        if poll(&mut events, PollTimeout::from(QUIET_MILLISECONDS))? == 0 && stopping {
            return Ok(meddler);
        }
        pass_on(proxy, lan, &mut meddler, &mut buffer)?;
        pass_on(lan, proxy, &mut meddler, &mut buffer)?;
    }
}

fn pass_on<M: Meddler>(from: &Tap, to: &Tap, meddler: &mut M, buffer: &mut [u8]) -> Result<()> {
    while let Some((direction, bytes)) = from.receive(buffer)? {
        // What goes out of an interface is what the other tap or the machine itself sent.
        if direction == Direction::Out {
            continue;
        }
        let mut bytes = bytes.to_vec();
        if let Some(layout) = frame::parse(&bytes) {
            meddler.meddle(&layout, &mut bytes[layout.payload.clone()]);
            frame::refresh_checksum(&mut bytes, &layout);
        }
        send(to, &bytes)?;
    }
    Ok(())
}

/// Sends with patience: a full queue empties within microseconds.
fn send(tap: &Tap, bytes: &[u8]) -> Result<()> {
    loop {
        match tap.send(bytes) {
            Err(error) if [Errno::EAGAIN as i32, Errno::ENOBUFS as i32].map(Some).contains(&error.raw_os_error()) => {
                std::thread::yield_now();
            }
            other => return Ok(other?),
        }
    }
}

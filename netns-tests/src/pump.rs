//! TCP connections that carry known bytes both ways without a pause, so that it shows what happens to them when something
//! between their ends is replaced: every byte is checked, and the longest silence measured.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::host::Host;
use crate::random::Random;
use crate::wait;

/// Connections under load.
pub struct Pump {
    load: Arc<Load>,
    threads: Vec<JoinHandle<Flow>>,
}

/// What all connections carried, both ways.
#[derive(Debug, Clone, Copy)]
pub struct Pumped {
    /// Bytes that arrived, every one of them the right one.
    pub bytes: u64,
    /// The longest time in which nothing arrived in one direction of one connection.
    pub longest_stall: Duration,
}

/// One direction of one connection.
struct Flow {
    name: String,
    sent: u64,
    outcome: io::Result<Pumped>,
}

struct Load {
    /// What is sent, again and again. Its length is no multiple of anything that a network cuts into pieces.
    pattern: Vec<u8>,
    ends: AtomicBool,
    /// Bytes that have arrived, by flow.
    arrived: Vec<AtomicU64>,
}

/// A prime number.
const PATTERN_LEN: usize = 65_521;
const CHUNK: usize = 16 << 10;
/// What a flow has moved when it is said to go on.
const PROGRESS: u64 = 256 << 10;
/// A flow that stands for so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

impl Pump {
    /// Connects a client's host to `address` of a server's, so many times.
    #[track_caller]
    pub fn start(client: &Host, server: &Host, address: SocketAddr, connections: usize) -> Pump {
        let pattern = Random::new(1).bytes(PATTERN_LEN);
        let arrived = (0..2 * connections).map(|_| AtomicU64::new(0)).collect();
        let load = Arc::new(Load { pattern, ends: AtomicBool::new(false), arrived });
        let listener = server.run(|| TcpListener::bind(address)).unwrap_or_else(|e| panic!("{address}: {e}"));
        let mut threads = vec![];
        for number in 0..connections {
            let there = client.run(|| TcpStream::connect(address)).unwrap_or_else(|e| panic!("{address}: {e}"));
            let (back, _) = listener.accept().unwrap_or_else(|e| panic!("{address}: {e}"));
            for (direction, from, to) in [(0, &there, &back), (1, &back, &there)] {
                let [from, to] = [from, to].map(|stream| stream.try_clone().expect("sockets can be shared"));
                let (load, index) = (load.clone(), 2 * number + direction);
                let name = format!("connection {number}, {}", ["to the server", "to the client"][direction]);
                threads.push(thread::spawn(move || load.carry(name, index, from, to)));
            }
        }
        Pump { load, threads }
    }

    /// Waits until every connection has gone on in both directions.
    #[track_caller]
    pub fn wait_for_progress(&self) {
        let arrived = || self.load.arrived.iter().map(|bytes| bytes.load(Ordering::Relaxed));
        let before: Vec<u64> = arrived().collect();
        wait::until_within(PATIENCE, "all connections go on", || {
            arrived().zip(&before).all(|(now, before)| now >= before + PROGRESS)
        });
    }

    /// Ends all connections in order. Fails if one was broken, or lost or changed a byte.
    #[track_caller]
    pub fn stop(self) -> Pumped {
        self.load.ends.store(true, Ordering::Relaxed);
        let mut all = Pumped { bytes: 0, longest_stall: Duration::ZERO };
        for thread in self.threads {
            let Flow { name, sent, outcome } = thread.join().expect("a flow's errors are its result");
            let pumped = outcome.unwrap_or_else(|e| panic!("{name}, of {sent} bytes: {e}"));
            assert_eq!(pumped.bytes, sent, "{name}");
            all.bytes += pumped.bytes;
            all.longest_stall = all.longest_stall.max(pumped.longest_stall);
        }
        all
    }
}

impl Load {
    fn carry(&self, name: String, index: usize, from: TcpStream, to: TcpStream) -> Flow {
        thread::scope(|scope| {
            let sender = scope.spawn(|| self.send(from));
            let outcome = self.receive(index, to);
            let (sent, failure) = sender.join().expect("a sender's errors are its result");
            Flow { name, sent, outcome: outcome.and_then(|pumped| failure.map_or(Ok(pumped), Err)) }
        })
    }

    fn send(&self, mut stream: TcpStream) -> (u64, Option<io::Error>) {
        let mut sent = 0;
        let outcome = stream.set_write_timeout(Some(PATIENCE)).and_then(|()| {
            while !self.ends.load(Ordering::Relaxed) {
                let start = position(sent);
                let chunk = &self.pattern[start..self.pattern.len().min(start + CHUNK)];
                stream.write_all(chunk)?;
                sent += chunk.len() as u64;
            }
            stream.shutdown(Shutdown::Write)
        });
        (sent, outcome.err())
    }

    fn receive(&self, index: usize, mut stream: TcpStream) -> io::Result<Pumped> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = vec![0; CHUNK];
        let mut pumped = Pumped { bytes: 0, longest_stall: Duration::ZERO };
        let mut last = None;
        loop {
            let length = stream.read(&mut buffer)?;
            let now = wait::now();
            if let Some(last) = last.replace(now) {
                pumped.longest_stall = pumped.longest_stall.max(now - last);
            }
            if length == 0 {
                return Ok(pumped);
            }
            self.check(pumped.bytes, &buffer[..length])?;
            pumped.bytes += length as u64;
            self.arrived[index].store(pumped.bytes, Ordering::Relaxed);
        }
    }

    /// Whether these are the bytes that were sent at `position`.
    fn check(&self, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let expected = &self.pattern[position(at)..];
            let length = bytes.len().min(expected.len());
            if bytes[..length] != expected[..length] {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("wrong bytes from {at} on")));
            }
            at += length as u64;
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

/// Of a flow's byte in the pattern.
fn position(byte: u64) -> usize {
    (byte % PATTERN_LEN as u64) as usize
}

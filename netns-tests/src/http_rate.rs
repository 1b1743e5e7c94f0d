//! Requests at a fixed rate, whether the ones before are answered or not: what a load balancer's users do, and what shows
//! how long each of them waits. A client that waits for its answer before it asks again would leave out the worst times
//! (coordinated omission), so each request's time counts from when it was due.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::host::Host;
use crate::round_trip::RoundTrips;
use crate::wait;

/// A series of requests for one file.
#[derive(Clone, Copy, Debug)]
pub struct Rate<'a> {
    /// The file that each request asks for.
    pub path: &'a str,
    /// Requests that are due each second.
    pub per_second: u32,
    /// Connections that are kept; a request waits while all of them wait for an answer.
    pub connections: usize,
}

/// Time after the last request in which answers still count.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks a server for a while. A request is lost that has no answer after two more seconds, or another one than 200.
#[track_caller]
pub fn ask(host: &Host, server: SocketAddr, rate: Rate, during: Duration) -> RoundTrips {
    Clients::connect(host, server, rate)
        .and_then(|clients| host.run(|| clients.ask(rate, during)))
        .unwrap_or_else(|error| panic!("requests from {} to {server}: {error:#}", host.name()))
}

struct Clients {
    request: Vec<u8>,
    connections: Vec<Connection>,
}

struct Connection {
    stream: TcpStream,
    /// When the request that it waits for was due.
    due: Option<Instant>,
    answer: Vec<u8>,
}

impl Clients {
    fn connect(host: &Host, server: SocketAddr, rate: Rate) -> anyhow::Result<Clients> {
        let head = format!("GET {} HTTP/1.1\r\nHost: {server}\r\nAccept-Encoding: gzip\r\n\r\n", rate.path);
        let connections: io::Result<Vec<_>> =
            host.run(|| (0..rate.connections).map(|_| Connection::open(server)).collect());
        Ok(Clients { request: head.into_bytes(), connections: connections? })
    }

    fn ask(mut self, rate: Rate, during: Duration) -> anyhow::Result<RoundTrips> {
        // Else the kernel wakes this thread up to 50 µs late.
        nix::sys::prctl::set_timerslack(1)?;
        let start = wait::now();
        let count = (during.as_secs_f64() * f64::from(rate.per_second)) as u32;
        let due = |number: u32| start + Duration::from_secs(1) * number / rate.per_second;
        let (mut next, mut waiting, mut trips) = (0, VecDeque::new(), RoundTrips::default());
        let mut free: Vec<usize> = (0..self.connections.len()).collect();
        let end = due(count) + PATIENCE;
        while trips.times.len() + trips.lost < count as usize && wait::now() < end {
            while next < count && due(next) <= wait::now() {
                waiting.push_back(due(next));
                next += 1;
            }
            while let Some(number) = free.pop_if(|_| !waiting.is_empty()) {
                self.connections[number].send(&self.request, waiting.pop_front().expect("one is waiting"))?;
            }
            let until = if next < count { due(next).min(end) } else { end };
            for number in self.answered(until)? {
                match self.connections[number].receive()? {
                    Some(Answer::Good(time)) => trips.times.push(time),
                    Some(Answer::Bad) => trips.lost += 1,
                    None => continue,
                }
                free.push(number);
            }
        }
        trips.lost = count as usize - trips.times.len();
        Ok(trips)
    }

    /// Connections with something to read, at `until` at the latest.
    fn answered(&self, until: Instant) -> anyhow::Result<Vec<usize>> {
        let (numbers, mut descriptors): (Vec<_>, Vec<_>) = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, connection)| connection.due.is_some())
            .map(|(number, connection)| (number, PollFd::new(connection.stream.as_fd(), PollFlags::POLLIN)))
            .unzip();
        let rest = until.saturating_duration_since(wait::now());
        ppoll(&mut descriptors, Some(TimeSpec::from(rest)), None)?;
        let is_ready = |descriptor: &PollFd| descriptor.any().unwrap_or_default();
        Ok(numbers.into_iter().zip(&descriptors).filter(|(_, d)| is_ready(d)).map(|(number, _)| number).collect())
    }
}

enum Answer {
    Good(Duration),
    Bad,
}

impl Connection {
    fn open(server: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, due: None, answer: vec![] })
    }

    fn send(&mut self, request: &[u8], due: Instant) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        self.answer.clear();
        self.due = Some(due);
        self.stream.write_all(request)
    }

    /// The answer, if it is whole.
    fn receive(&mut self) -> anyhow::Result<Option<Answer>> {
        let mut buffer = [0; 1 << 14];
        match self.stream.read(&mut buffer) {
            Ok(0) => anyhow::bail!("the server closed a connection that it should keep"),
            Ok(read) => self.answer.extend(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        if !is_whole(&self.answer) {
            return Ok(None);
        }
        let time = self.due.take().map(|due| due.elapsed()).unwrap_or_default();
        let is_good = self.answer.starts_with(b"HTTP/1.1 200 ");
        Ok(Some(if is_good { Answer::Good(time) } else { Answer::Bad }))
    }
}

/// Whether an answer has come to its end.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head_len) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|start| start + 4) else {
        return false;
    };
    let head = String::from_utf8_lossy(&answer[..head_len]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match length {
        Some(length) => answer.len() >= head_len + length,
        None => answer.ends_with(b"\r\n0\r\n\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let with_length = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let in_chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for answer in [&with_length[..], in_chunks] {
            assert!(is_whole(answer));
            (0..answer.len()).for_each(|length| assert!(!is_whole(&answer[..length]), "{length} bytes"));
        }
    }
}

//! HAProxy's agent checks: one line with a backend's name, one line with the whole state of its link.
//!
//! Owns both lines' words (HAProxy's configuration manual, `agent-check` and `agent-send`). Only an agent can undo what an
//! agent said, so each answer says everything: health, administrative state and weight.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::control::api::{LinkState, PeerReport, StatusReport};
use crate::control::board::Board;

/// How many checks may be under way. Each takes a millisecond, unless its client is stuck.
pub(super) const MAX_CLIENTS: usize = 256;

/// Answers agent checks.
#[derive(Debug)]
pub struct AgentCheck {
    board: Board,
    degraded_weight: u8,
    /// Requests that no backend was found for, as far as they were logged.
    complained: Mutex<BTreeSet<String>>,
}

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    /// The name of a backend.
    Name(String),
    /// Nothing: HAProxy has no `agent-send`.
    Nothing,
    /// More than a name.
    TooLong,
}

impl AgentCheck {
    /// Answers from `board`, with a weight in percent for degraded links.
    pub fn new(board: Board, degraded_weight: u8) -> Self {
        Self { board, degraded_weight, complained: Mutex::default() }
    }

    /// Serves one client to its end, which is bounded in time.
    pub async fn serve(&self, mut stream: TcpStream) {
        match timeout(CLIENT_TIMEOUT, self.converse(&mut stream)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "agent check: lost a client"),
            Err(_) => tracing::debug!("agent check: a client took too long"),
        }
    }

    async fn converse(&self, stream: &mut TcpStream) -> io::Result<()> {
        let request = self.read_request(stream).await?;
        let line = match self.board.report().await {
            Some(report) => self.answer(&report, &request),
            None => NO_STATUS.to_owned(),
        };
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        stream.shutdown().await
    }

    /// Up to a newline or the end of what the client sends. Without `agent-send` it sends nothing and waits, which is seen
    /// only by waiting as well.
    async fn read_request(&self, stream: &mut TcpStream) -> io::Result<Request> {
        if timeout(SILENCE, stream.readable()).await.is_err() && self.has_one_backend().await {
            return Ok(Request::Nothing);
        }
        let mut line = Vec::with_capacity(MAX_REQUEST_LEN);
        let read = timeout(REQUEST_TIMEOUT, async {
            while line.len() < MAX_REQUEST_LEN && !line.contains(&b'\n') {
                if stream.read_buf(&mut line).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        });
        match read.await {
            Ok(read) => read?,
            Err(_) if line.is_empty() => return Ok(Request::Nothing),
            Err(_) => self.complain(&printable(&line), "the request does not end: write agent-send \"NAME\\n\""),
        }
        Ok(Request::parse(&line))
    }

    async fn has_one_backend(&self) -> bool {
        self.board.report().await.is_some_and(|report| report.peers.len() == 1)
    }

    fn answer(&self, report: &StatusReport, request: &Request) -> String {
        let name = match request {
            Request::Name(name) => name,
            Request::Nothing => match report.peers.as_slice() {
                [only] => return state_line(only, self.degraded_weight),
                _ => {
                    self.complain("", "no backend is named, and there are several: write agent-send \"NAME\\n\"");
                    return NO_NAME.to_owned();
                }
            },
            Request::TooLong => {
                self.complain("", "the request is too long for a name");
                return NO_NAME.to_owned();
            }
        };
        match report.peers.iter().find(|peer| peer.name == *name) {
            Some(peer) => state_line(peer, self.degraded_weight),
            None => {
                self.complain(name, "there is no backend of this name: see agent-send in HAProxy's configuration");
                format!("fail #unknown backend {name:?}")
            }
        }
    }

    /// In the log, once for each request.
    fn complain(&self, request: &str, what: &str) {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.len() < MAX_COMPLAINTS && complained.insert(request.to_owned()) {
            tracing::warn!(request, "agent check: {what}");
        }
    }
}

impl Request {
    fn parse(line: &[u8]) -> Self {
        let end = line.iter().position(|byte| *byte == b'\n');
        if end.is_none() && line.len() >= MAX_REQUEST_LEN {
            return Self::TooLong;
        }
        match printable(&line[..end.unwrap_or(line.len())]) {
            name if name.is_empty() => Self::Nothing,
            name => Self::Name(name),
        }
    }
}

/// As it may stand in a log and in HAProxy's statistics.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim().chars().map(|char| if char.is_ascii_graphic() { char } else { '?' }).collect()
}

/// The whole state, in HAProxy's words. `ready` and `drain` are given with every `up`, so that a drain is undone by the first
/// answer after it; with `down` they are left as they are, since nothing is sent there anyway. No weight beside `drain`:
/// HAProxy logs each one ("remains in forced drain mode"), and `ready` brings its own.
fn state_line(peer: &PeerReport, degraded_weight: u8) -> String {
    match peer.state {
        LinkState::Up | LinkState::Idle | LinkState::Unknown => "up ready 100%".to_owned(),
        LinkState::Degraded => format!("up ready {degraded_weight}%"),
        LinkState::Draining => "up drain".to_owned(),
        LinkState::Down => format!("down #{}", peer.reason.as_deref().unwrap_or("down")),
    }
}

/// Words that HAProxy does not know: it shows them in its statistics and changes nothing.
const NO_NAME: &str = "name-a-backend-by-agent-send";
const NO_STATUS: &str = "underpass-does-not-answer";

/// A name has 63 bytes at most.
const MAX_REQUEST_LEN: usize = 256;
/// In which a request arrives that was sent with the connection's beginning, where there is no need to wait for one.
const SILENCE: Duration = Duration::from_millis(20);
/// For a request to be complete.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// For everything.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(8);
/// Requests that are remembered as logged: bounds what clients can make the daemon remember.
const MAX_COMPLAINTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::tests::status;

    fn line(state: LinkState, reason: Option<&str>) -> String {
        let peer = PeerReport { state, reason: reason.map(str::to_owned), ..status().peers[0].clone() };
        state_line(&peer, 40)
    }

    #[test]
    fn every_state_has_its_words() {
        assert_eq!(line(LinkState::Up, None), "up ready 100%");
        assert_eq!(line(LinkState::Idle, Some("no-traffic")), "up ready 100%");
        assert_eq!(line(LinkState::Degraded, Some("loss")), "up ready 40%");
        assert_eq!(line(LinkState::Draining, Some("drained")), "up drain");
        assert_eq!(line(LinkState::Down, Some("unanswered")), "down #unanswered");
    }

    #[test]
    fn a_request_is_a_line_or_all_that_came() {
        let name = |text: &str| Request::Name(text.to_owned());
        assert_eq!(Request::parse(b"app1\n"), name("app1"));
        assert_eq!(Request::parse(b" app1 \r\nrest"), name("app1"));
        assert_eq!(Request::parse(b"app1"), name("app1"));
        assert_eq!(Request::parse(b"a\x1bb\xffc\n"), name("a?b?c"));
        assert_eq!(Request::parse(b""), Request::Nothing);
        assert_eq!(Request::parse(b"\n"), Request::Nothing);
        assert_eq!(Request::parse(&[b'a'; MAX_REQUEST_LEN]), Request::TooLong);
    }
}

//! HTTP for load balancers without agent checks and for monitors: `/check/NAME`, `/livez`, `/readyz`, `/metrics`.
//!
//! Owns the paths, status codes and bodies; `docs/load-balancers.md` describes them. The protocol is hyper's.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::control::api::{LinkState, PeerReport, StatusReport};
use crate::control::board::Board;
use crate::control::metrics::{self, RoundTrips};

/// How many connections are kept. Envoy keeps one for each backend.
pub(super) const MAX_CLIENTS: usize = 512;

/// Answers HTTP requests.
#[derive(Debug)]
pub struct Http {
    board: Board,
    round_trips: RoundTrips,
}

type Answer = Response<Full<Bytes>>;

impl Http {
    /// Answers from `board`; the round trips are only for the metrics.
    pub fn new(board: Board, round_trips: RoundTrips) -> Self {
        Self { board, round_trips }
    }

    /// Serves one connection to its end, which is bounded in time.
    pub async fn serve(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(move |request| {
            let http = Arc::clone(&self);
            async move { Ok::<_, Infallible>(http.answer(&request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(MAX_HEAD_LEN)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let outcome = match timeout(MAX_AGE, connection.as_mut()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                connection.as_mut().graceful_shutdown();
                timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "health checks: lost a client");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let path = request.uri().path();
        if !is_known(path) {
            return text(StatusCode::NOT_FOUND, PATHS);
        }
        match self.board.report().await {
            Some(report) => self.answer_from(&report, request),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "the data plane does not answer\n"),
        }
    }

    fn answer_from(&self, report: &Arc<StatusReport>, request: &Request<Incoming>) -> Answer {
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => ready(report),
            "/metrics" => {
                body(StatusCode::OK, metrics::CONTENT_TYPE, metrics::encode(Arc::clone(report), &self.round_trips))
            }
            path => check(report, path.strip_prefix(CHECK_NAME).unwrap_or_else(|| host(request))),
        }
    }
}

fn is_known(path: &str) -> bool {
    matches!(path, CHECK | "/livez" | "/readyz" | "/metrics") || path.starts_with(CHECK_NAME)
}

/// The name in the `Host` header, without a port. Envoy sets it for each endpoint, but the path only for a whole cluster.
fn host(request: &Request<Incoming>) -> &str {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    host.split_once(':').map_or(host, |(name, _)| name)
}

/// The part of `underpass status --json` that a check is about, under the same names.
#[derive(Serialize)]
struct Check<'a> {
    name: &'a str,
    state: LinkState,
    reason: Option<&'a str>,
    route: Option<&'a str>,
    state_since: f64,
    rtt_microseconds: Option<u64>,
    loss: f64,
}

fn check(report: &StatusReport, name: &str) -> Answer {
    let Some(peer) = report.peers.iter().find(|peer| peer.name == name) else {
        return text(StatusCode::NOT_FOUND, "there is no link of this name: `underpass status` lists them\n");
    };
    let check = Check {
        name: &peer.name,
        state: peer.state,
        reason: peer.reason.as_deref(),
        route: peer.route.as_deref(),
        state_since: peer.state_since,
        rtt_microseconds: peer.rtt_microseconds,
        loss: peer.loss,
    };
    let status = if takes_connections(peer) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let json = serde_json::to_string(&check).expect("strings and numbers are JSON");
    body(status, "application/json", json + "\n")
}

/// Ready is who can serve: one link is enough.
fn ready(report: &StatusReport) -> Answer {
    let open = report.peers.iter().filter(|peer| takes_connections(peer)).count();
    let status = if open > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, format!("{open} of {} links take connections\n", report.peers.len()))
}

/// Whether new connections should go there. A drained link is to get none, and a check has no other word for that than a
/// failure. An idle one comes up with the first packet.
fn takes_connections(peer: &PeerReport) -> bool {
    match peer.state {
        LinkState::Up | LinkState::Degraded | LinkState::Idle | LinkState::Unknown => true,
        LinkState::Draining | LinkState::Down => false,
    }
}

fn text(status: StatusCode, words: impl Into<Bytes>) -> Answer {
    body(status, "text/plain; charset=utf-8", words)
}

fn body(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(bytes.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

const CHECK: &str = "/check";
const CHECK_NAME: &str = "/check/";
const PATHS: &str = "what there is: /check/NAME, /livez, /readyz, /metrics\n";

/// For the head of a request, and between two: longer than monitors usually pause.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// hyper's least. Requests are one line and some headers.
const MAX_HEAD_LEN: usize = 8192;
/// Then the connection ends with its next answer.
const MAX_AGE: Duration = Duration::from_secs(600);
/// For an answer that is under way.
const LAST_WORDS: Duration = Duration::from_secs(10);

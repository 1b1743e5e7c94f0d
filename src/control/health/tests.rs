//! Real connections on the loopback, to a board that always says the same.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::control::api::tests::status;
use crate::control::api::{LinkState, PeerReport, StatusReport};
use crate::control::report::PeerNames;
use crate::control::report::tests::identity;

const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Where a server for tests listens.
struct Served {
    agent: SocketAddr,
    http: SocketAddr,
}

/// Serves `report`, or nothing.
async fn serve(report: Option<StatusReport>) -> Served {
    let health = Health { agent_check: vec![NOWHERE], http: vec![NOWHERE], degraded_weight: 25 };
    let listeners = HealthListeners::bind(&health, None).unwrap();
    let address = |listeners: &[TcpListener]| listeners[0].local_addr().unwrap();
    let served = Served { agent: address(&listeners.agent_check), http: address(&listeners.http) };
    let board = Board::start(move || std::future::ready(report.clone()));
    let (_, identity) = tokio::sync::watch::channel(Arc::new(identity(PeerNames::default())));
    tokio::spawn(listeners.serve(board, RoundTrips::new(identity)));
    served
}

/// A link in each state, named as the state.
fn every_state() -> StatusReport {
    let states = [LinkState::Up, LinkState::Degraded, LinkState::Draining, LinkState::Down, LinkState::Idle];
    let peer = |state: LinkState| PeerReport {
        name: state.as_str().to_owned(),
        state,
        reason: (state == LinkState::Down).then(|| "unanswered".to_owned()),
        ..status().peers[0].clone()
    };
    StatusReport { peers: states.map(peer).to_vec(), ..status() }
}

fn only_app1() -> StatusReport {
    StatusReport { peers: vec![status().peers[0].clone()], ..status() }
}

/// All that comes back for `request`.
async fn talk(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Status code, head and body of one request over a connection of its own.
async fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: underpass\r\nConnection: close\r\n\r\n");
    let answer = talk(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

async fn code(address: SocketAddr, path: &str) -> u16 {
    request(address, "GET", path).await.0
}

#[tokio::test]
async fn an_agent_is_told_the_whole_state_of_the_backend_that_it_names() {
    let served = serve(Some(every_state())).await;
    for (name, line) in [
        ("up", "up ready 100%\n"),
        ("degraded", "up ready 25%\n"),
        ("draining", "up drain\n"),
        ("down", "down #unanswered\n"),
        ("idle", "up ready 100%\n"),
        ("other", "fail #unknown backend \"other\"\n"),
    ] {
        assert_eq!(talk(served.agent, format!("{name}\n").as_bytes()).await, line);
    }
}

#[tokio::test]
async fn an_agent_without_a_name_is_told_of_the_only_backend() {
    let served = serve(Some(only_app1())).await;
    assert_eq!(talk(served.agent, b"").await, "up ready 100%\n");
    assert_eq!(talk(served.agent, b"\n").await, "up ready 100%\n");
    assert_eq!(talk(served.agent, b"app2\n").await, "fail #unknown backend \"app2\"\n");
}

#[tokio::test]
async fn an_agent_without_a_name_changes_nothing_where_there_are_several_backends() {
    let served = serve(Some(every_state())).await;
    assert_eq!(talk(served.agent, b"\n").await, "name-a-backend-by-agent-send\n");
    assert_eq!(talk(served.agent, &[b'a'; 300]).await.lines().next(), Some("name-a-backend-by-agent-send"));
}

#[tokio::test]
async fn who_is_not_answered_by_the_data_plane_is_not_told_a_state() {
    let served = serve(None).await;
    assert_eq!(talk(served.agent, b"up\n").await, "underpass-does-not-answer\n");
    for path in ["/check/up", "/livez", "/readyz", "/metrics"] {
        assert_eq!(code(served.http, path).await, 503, "{path}");
    }
}

#[tokio::test]
async fn agents_that_are_stuck_do_not_keep_others_waiting() {
    let served = serve(Some(every_state())).await;
    let mut stuck = Vec::new();
    for _ in 0..=agent::MAX_CLIENTS {
        let mut stream = TcpStream::connect(served.agent).await.unwrap();
        stream.write_all(b"u").await.unwrap();
        stuck.push(stream);
    }
    assert_eq!(talk(served.agent, b"up\n").await, "up ready 100%\n");
}

#[tokio::test]
async fn an_http_check_fails_where_no_connection_should_go() {
    let served = serve(Some(every_state())).await;
    for (name, status) in [("up", 200), ("degraded", 200), ("idle", 200), ("draining", 503), ("down", 503)] {
        assert_eq!(code(served.http, &format!("/check/{name}")).await, status, "{name}");
    }
    for path in ["/check/other", "/check/", "/check", "/", "/metrics/", "//check/up"] {
        assert_eq!(code(served.http, path).await, 404, "{path}");
    }
}

#[tokio::test]
async fn a_check_without_a_name_is_about_the_host_that_it_names() {
    let served = serve(Some(every_state())).await;
    for (host, status) in [("up", "200"), ("down", "503"), ("up:51902", "200"), ("other", "404")] {
        let request = format!("GET /check HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert!(talk(served.http, request.as_bytes()).await.starts_with(&format!("HTTP/1.1 {status}")), "{host}");
    }
}

#[tokio::test]
async fn the_body_of_a_check_is_a_part_of_the_status() {
    let served = serve(Some(every_state())).await;
    let (_, head, body) = request(served.http, "GET", "/check/down").await;
    assert!(head.contains("content-type: application/json") && head.contains("cache-control: no-store"), "{head}");
    let whole = serde_json::to_value(&every_state().peers[3]).unwrap();
    let part: Value = serde_json::from_str(&body).unwrap();
    let fields = part.as_object().unwrap();
    assert_eq!(fields["state"], json!("down"));
    assert_eq!(fields["reason"], json!("unanswered"));
    assert!(fields.iter().all(|(name, value)| whole[name] == *value), "{body}");
}

#[tokio::test]
async fn ready_is_a_daemon_with_a_link_that_takes_connections() {
    let served = serve(Some(every_state())).await;
    assert_eq!(request(served.http, "GET", "/readyz").await.2, "3 of 5 links take connections\n");
    let mut down = only_app1();
    down.peers[0].state = LinkState::Down;
    let served = serve(Some(down)).await;
    assert_eq!((code(served.http, "/readyz").await, code(served.http, "/livez").await), (503, 200));
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let served = serve(Some(every_state())).await;
    let (status, head, body) = request(served.http, "HEAD", "/check/up").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: "), "{head}");
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (status, head, _) = request(served.http, method, "/check/up").await;
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("allow: get, head"), "{head}");
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let served = serve(Some(every_state())).await;
    let one = "GET /livez HTTP/1.1\r\nHost: underpass\r\n\r\n";
    let last = "GET /livez HTTP/1.1\r\nHost: underpass\r\nConnection: close\r\n\r\n";
    let answers = talk(served.http, format!("{one}{one}{last}").as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let served = serve(Some(every_state())).await;
    assert!(talk(served.http, b"up\n\n\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000));
    let mut stream = TcpStream::connect(served.http).await.unwrap();
    // It may be refused before all of it was sent.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn the_client_that_has_been_there_longest_gives_way() {
    let ended = Arc::new(AtomicUsize::new(0));
    struct Ends(Arc<AtomicUsize>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut clients = Clients::new(2);
    for _ in 0..5 {
        let ends = Ends(ended.clone());
        clients.admit(async move {
            let _ends = ends;
            pending::<()>().await;
        });
        tokio::task::yield_now().await;
    }
    assert_eq!(ended.load(Ordering::Relaxed), 3);
    drop(clients);
    tokio::task::yield_now().await;
    assert_eq!(ended.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_its_key() {
    let taken = TcpListener::bind(NOWHERE).await.unwrap();
    let health = Health { agent_check: vec![], http: vec![taken.local_addr().unwrap()], degraded_weight: 100 };
    let error = HealthListeners::bind(&health, None).unwrap_err();
    assert!(matches!(error, HealthError::Taken { key: "http", .. }), "{error}");
    assert!(error.to_string().starts_with("health.http: TCP port "), "{error}");
    let health = Health { agent_check: vec!["192.0.2.1:1".parse().unwrap()], http: vec![], degraded_weight: 100 };
    let error = HealthListeners::bind(&health, None).unwrap_err();
    assert!(matches!(error, HealthError::NoSuchAddress { key: "agent_check", .. }), "{error}");
}

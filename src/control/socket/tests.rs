use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::control::api::tests::status;
use crate::control::client::{self, ClientError};

/// A daemon's socket in a directory of its own, answering with a fixed status.
struct Server {
    directory: TempDir,
    path: PathBuf,
}

impl Server {
    /// Serves on this runtime until it ends.
    fn start() -> Self {
        Self::start_with_timeout(CLIENT_TIMEOUT)
    }

    fn start_with_timeout(client_timeout: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("underpass0.sock");
        let mut socket = ControlSocket::bind(&path).unwrap();
        socket.client_timeout = client_timeout;
        tokio::spawn(async move {
            match socket.serve(|_: Command| async { Response::Status(Box::new(status())) }).await {}
        });
        Self { directory, path }
    }

    async fn connect(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(&self.path).await.unwrap())
    }
}

async fn ask(client: &mut BufReader<UnixStream>, request: &[u8]) -> Response {
    client.write_all(request).await.unwrap();
    answer(client).await.expect("an answer")
}

async fn answer(client: &mut BufReader<UnixStream>) -> Option<Response> {
    let mut line = Vec::new();
    timeout(Duration::from_secs(30), client.read_until(b'\n', &mut line)).await.unwrap().unwrap();
    (!line.is_empty()).then(|| Response::decode(&line).unwrap())
}

fn code(response: Response) -> ErrorCode {
    match response {
        Response::Error(report) => report.error.code,
        _ => panic!("an error was expected"),
    }
}

#[tokio::test]
async fn one_connection_asks_several_times() {
    let mut client = Server::start().connect().await;
    for _ in 0..3 {
        assert!(matches!(ask(&mut client, &Command::Status.encode()).await, Response::Status(_)));
    }
}

#[tokio::test]
async fn the_blocking_client_gets_the_whole_status() {
    let server = Server::start();
    let path = server.path.clone();
    let answer = tokio::task::spawn_blocking(move || client::status(&path)).await.unwrap().unwrap();
    assert_eq!(answer, status());
    drop(server.directory);
}

#[tokio::test]
async fn a_malformed_request_gets_an_error_and_the_connection_lives_on() {
    let mut client = Server::start().connect().await;
    assert_eq!(code(ask(&mut client, b"GET / HTTP/1.1\r\n").await), ErrorCode::MalformedRequest);
    assert_eq!(code(ask(&mut client, b"\xff\xfe\n").await), ErrorCode::MalformedRequest);
    assert!(matches!(ask(&mut client, &Command::Status.encode()).await, Response::Status(_)));
}

#[tokio::test]
async fn a_line_without_end_is_cut_off() {
    let mut client = Server::start().connect().await;
    assert_eq!(code(ask(&mut client, &[b'x'; MAX_REQUEST_LEN]).await), ErrorCode::RequestTooLong);
    assert_eq!(answer(&mut client).await, None);
}

#[tokio::test]
async fn the_longest_request_is_answered() {
    let mut client = Server::start().connect().await;
    let mut request = Command::Status.encode();
    request.pop();
    request.resize(MAX_REQUEST_LEN - 1, b' ');
    request.push(b'\n');
    assert!(matches!(ask(&mut client, &request).await, Response::Status(_)));
}

#[tokio::test]
async fn a_client_that_waits_harms_no_other_and_too_many_are_turned_away() {
    let server = Server::start();
    let mut waiting = Vec::new();
    for _ in 0..MAX_CLIENTS - 1 {
        let mut client = server.connect().await;
        client.write_all(b"{\"version\":1,").await.unwrap();
        waiting.push(client);
    }
    let mut last = server.connect().await;
    assert!(matches!(ask(&mut last, &Command::Status.encode()).await, Response::Status(_)));
    assert_eq!(answer(&mut server.connect().await).await.map(code), Some(ErrorCode::Busy));
    let path = server.path.clone();
    let refused = tokio::task::spawn_blocking(move || client::status(&path)).await.unwrap();
    assert!(matches!(refused, Err(ClientError::Refused { code: ErrorCode::Busy, .. })));
    drop(waiting);
    assert!(matches!(ask(&mut last, &Command::Status.encode()).await, Response::Status(_)));
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_is_disconnected() {
    let mut client = Server::start_with_timeout(Duration::from_millis(50)).connect().await;
    client.write_all(b"{").await.unwrap();
    assert_eq!(answer(&mut client).await, None);
}

#[tokio::test]
async fn only_the_owner_and_the_group_may_connect() {
    let server = Server::start();
    assert_eq!(fs::metadata(&server.path).unwrap().permissions().mode() & 0o777, 0o660);
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_leaves_the_first_alone() {
    let server = Server::start();
    assert!(matches!(ControlSocket::bind(&server.path), Err(SocketError::AlreadyRunning { .. })));
    assert!(matches!(ask(&mut server.connect().await, &Command::Status.encode()).await, Response::Status(_)));
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = ControlSocket::bind(&path).unwrap();
    assert!(BlockingStream::connect(&path).is_ok());
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(ControlSocket::bind(&path), Err(SocketError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn another_daemons_socket_survives_our_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let first = ControlSocket::bind(&path).unwrap();
    // Renamed into place, so that the new file cannot get the old one's inode.
    let theirs = directory.path().join("b.sock");
    let _second = ControlSocket::bind(&theirs).unwrap();
    fs::rename(&theirs, &path).unwrap();
    drop(first);
    assert!(path.exists());
}

#[tokio::test]
async fn a_missing_directory_of_the_operators_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing/a.sock");
    let error = ControlSocket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::Refused { .. }));
    assert!(error.to_string().contains("missing/a.sock"), "{error}");
}

#[tokio::test]
async fn a_successor_goes_on_with_the_socket_under_another_name_if_that_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (old, new, taken) = (path("old.sock"), path("new.sock"), path("taken"));
    std::fs::write(&taken, "").unwrap();
    let bound = ControlSocket::bind(&old).unwrap();
    let left = || bound.as_fd().try_clone_to_owned().unwrap();
    let kept = ControlSocket::adopt(left(), Some(old.clone()), &taken).unwrap();
    assert_eq!(kept.path(), old);
    let renamed = ControlSocket::adopt(left(), Some(old.clone()), &new).unwrap();
    assert!(!old.exists());
    UnixStream::connect(&new).await.unwrap();
    drop(renamed);
    assert!(!new.exists() && taken.exists());
}

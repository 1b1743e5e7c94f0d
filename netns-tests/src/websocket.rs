//! An unchanged app that speaks WebSocket, and a client for it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tungstenite::{Message, WebSocket, accept, client};

use crate::host::Host;

/// A client's connection.
pub struct Client {
    socket: WebSocket<TcpStream>,
}

/// Starts a server that sends every message back and, for a text message, says who it is in a second one. It ends with the
/// test run.
#[track_caller]
pub fn start_echo_server(host: &Host, listen: SocketAddr, name: &str) {
    let listener = host.run(|| TcpListener::bind(listen)).unwrap_or_else(|e| panic!("{listen}: {e}"));
    let name = name.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            // A client, or a health check, that goes away is the end of its connection only.
            thread::spawn(move || serve(stream, &name).ok());
        }
    });
}

fn serve(stream: TcpStream, name: &str) -> anyhow::Result<()> {
    let mut socket = accept(stream).ok().context("no WebSocket handshake")?;
    loop {
        let message = socket.read()?;
        if matches!(message, Message::Text(_) | Message::Binary(_)) {
            let from = message.is_text().then(|| Message::text(format!("from {name}")));
            socket.send(message)?;
            from.map(|from| socket.send(from)).transpose()?;
        }
    }
}

impl Client {
    /// Connects from a host, with the upgrade from HTTP (status 101).
    pub fn connect(host: &Host, server: SocketAddr, path: &str) -> anyhow::Result<Client> {
        let stream = host.run(|| TcpStream::connect_timeout(&server, Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let (socket, response) = client(format!("ws://{server}{path}"), stream).context("no WebSocket handshake")?;
        anyhow::ensure!(response.status() == 101, "switched protocols with {}", response.status());
        Ok(Client { socket })
    }

    /// Sends a text and returns the next two messages.
    pub fn ask(&mut self, text: &str) -> anyhow::Result<[String; 2]> {
        self.socket.send(Message::text(text))?;
        Ok([self.socket.read()?.into_text()?.to_string(), self.socket.read()?.into_text()?.to_string()])
    }

    /// Sends bytes and returns the next message.
    pub fn echo(&mut self, bytes: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        self.socket.send(Message::binary(bytes))?;
        Ok(self.socket.read()?.into_data().to_vec())
    }
}

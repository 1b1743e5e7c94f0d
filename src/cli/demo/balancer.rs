//! The stand-in for a load balancer: a round-robin reverse proxy. For the demo only, it is no product.
//!
//! Where TLS would end. Like a real one it keeps its connections to the apps, and like a real one it is told the apps'
//! addresses in its configuration: that list is all that differs between the demo's two halves.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use super::http::{Connection, Message, Server};
use super::namespace::Namespace;

/// A running load balancer.
#[derive(Debug)]
pub(super) struct Balancer {
    address: SocketAddr,
    _server: Server,
}

impl Balancer {
    /// Starts it in `namespace` on a port of the loopback interface, in front of `apps`.
    pub(super) fn start(namespace: &Namespace, port: u16, apps: [SocketAddr; 2]) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let turn = Arc::new(AtomicUsize::new(0));
        let server = Server::start(namespace, address, move || {
            let turn = Arc::clone(&turn);
            let mut backends = apps.map(Backend::connect);
            move |request| forward(&mut backends, turn.fetch_add(1, Ordering::Relaxed), &request)
        })?;
        Ok(Self { address, _server: server })
    }

    /// Where customers connect.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An app as seen from one customer's connection.
#[derive(Debug)]
struct Backend {
    address: SocketAddr,
    /// Kept from one request to the next; `None` after an error.
    connection: Option<Connection>,
}

impl Backend {
    /// Connects beforehand. If that fails now, the first request may find the app listening.
    fn connect(address: SocketAddr) -> Self {
        Self { address, connection: Connection::open(address).ok() }
    }

    /// A connection that failed is not kept, and its request is not sent again: it might be a second payment.
    fn exchange(&mut self, request: &Message) -> io::Result<Message> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.address)?,
        };
        let response = connection.exchange(request)?;
        self.connection = Some(connection);
        Ok(response)
    }
}

fn forward(backends: &mut [Backend], turn: usize, request: &Message) -> Message {
    let backend = &mut backends[turn % backends.len()];
    backend.exchange(request).unwrap_or_else(|error| {
        let body = format!("{}: {error}\n", backend.address);
        let head = format!("HTTP/1.1 502 Bad Gateway\r\nContent-Length: {}\r\n\r\n", body.len());
        Message { head, body: body.into_bytes() }
    })
}

//! Answers load balancers and monitors: HAProxy's agent checks, HTTP checks, metrics.
//!
//! Owns the listening sockets and how many may be connected. What is answered is in [`agent`] and [`http`], and comes from
//! the [`Board`], as the answer to `underpass status` does.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::board::Board;
use super::metrics::RoundTrips;
use crate::config::Health;
use crate::dataplane::{Privileges, SocketGrant, or_granted};
use agent::AgentCheck;
use clients::Clients;
use http::Http;

pub mod agent;
mod clients;
pub mod http;

/// Bound sockets that nobody is served on yet.
#[derive(Debug)]
pub struct HealthListeners {
    agent_check: Vec<TcpListener>,
    http: Vec<TcpListener>,
    degraded_weight: u8,
}

/// Why an address of `[health]` could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// Another program has it.
    #[error(
        "health.{key}: TCP port {port} of {ip} is taken (`ss -ltnp 'sport = :{port}'` shows by whom): end that program, \
         choose another port, or write {key} = \"off\"",
        port = address.port(),
        ip = address.ip()
    )]
    Taken {
        /// The key in the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// No interface has it.
    #[error("health.{key}: this machine has no address {ip}: `ip address` lists those it has", ip = address.ip())]
    NoSuchAddress {
        /// The key in the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// A port below 1024, usually.
    #[error(
        "health.{key}: no permission to listen on {address}: choose a port above 1023, or grant CAP_NET_BIND_SERVICE"
    )]
    NoPermission {
        /// The key in the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The system refused for a reason that has no variant of its own.
    #[error("health.{key}: could not listen on {address}")]
    Refused {
        /// The key in the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

impl HealthListeners {
    /// Binds every address; `privileges` binds the ports below 1024. Must be called inside a tokio runtime.
    pub fn bind(health: &Health, privileges: Option<&dyn Privileges>) -> Result<Self, HealthError> {
        Ok(Self {
            agent_check: bind_all("agent_check", &health.agent_check, privileges)?,
            http: bind_all("http", &health.http, privileges)?,
            degraded_weight: health.degraded_weight,
        })
    }

    /// Answers until dropped.
    pub async fn serve(self, board: Board, round_trips: RoundTrips) -> Infallible {
        let mut serving = JoinSet::new();
        let agent = Arc::new(AgentCheck::new(board.clone(), self.degraded_weight));
        for listener in self.agent_check {
            let agent = Arc::clone(&agent);
            serving.spawn(accept(listener, agent::MAX_CLIENTS, move |stream| {
                let agent = Arc::clone(&agent);
                async move { agent.serve(stream).await }
            }));
        }
        let http = Arc::new(Http::new(board, round_trips));
        for listener in self.http {
            let http = Arc::clone(&http);
            serving.spawn(accept(listener, http::MAX_CLIENTS, move |stream| {
                let http = Arc::clone(&http);
                async move { http.serve(stream).await }
            }));
        }
        while serving.join_next().await.is_some() {}
        pending().await
    }
}

fn bind_all(
    key: &'static str,
    addresses: &[SocketAddr],
    privileges: Option<&dyn Privileges>,
) -> Result<Vec<TcpListener>, HealthError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let listener = bind(address, privileges).map_err(|source| HealthError::new(key, address, source))?;
        if !address.ip().is_loopback() {
            tracing::warn!(
                key,
                %address,
                "not a loopback address: whoever reaches it is told the names and states of all links"
            );
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

fn bind(address: SocketAddr, privileges: Option<&dyn Privileges>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    or_granted(socket.bind(&address.into()), privileges, socket.as_fd(), SocketGrant::Bind(address))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

impl HealthError {
    fn new(key: &'static str, address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::Taken { key, address },
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress { key, address },
            io::ErrorKind::PermissionDenied => Self::NoPermission { key, address },
            _ => Self::Refused { key, address, source },
        }
    }
}

/// Serves each client in a task of its own, `max_clients` at most.
async fn accept<F>(listener: TcpListener, max_clients: usize, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut clients = Clients::new(max_clients);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => clients.admit(serve(stream)),
            Err(error) => {
                // Out of file descriptors, usually: accepting again at once would spin.
                tracing::warn!(%error, "health checks: could not accept a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Clients that wait to be accepted, as in the standard library.
const BACKLOG: i32 = 128;
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;

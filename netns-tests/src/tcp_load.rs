//! Bulk transfers over many short TCP connections.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::host::Host;
use crate::wait;

/// What arrived.
#[derive(Clone, Copy, Debug)]
pub struct Transfers {
    /// In all.
    pub bytes: usize,
    /// Per second.
    pub bytes_per_second: f64,
}

/// Starts a server on a port of all of a machine's addresses which takes in what comes over one connection after the other,
/// and answers each with one byte when its other end has sent everything.
#[track_caller]
pub fn sink(host: &Host, port: u16) {
    let listener = host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    let listener = listener.unwrap_or_else(|e| panic!("port {port} of {}: {e}", host.name()));
    host.spawn(move || {
        let mut buffer = vec![0; 1 << 18];
        // A connection that breaks is its other end's to report.
        for stream in listener.incoming() {
            let _ = stream.and_then(|stream| take_in(stream, &mut buffer));
        }
    });
}

fn take_in(mut stream: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    while stream.read(buffer)? > 0 {}
    stream.write_all(&[0])
}

/// Sends `bytes` to each server in turn, over a new connection each, for a while.
#[track_caller]
pub fn send_in_turn(host: &Host, servers: &[SocketAddr], bytes: usize, during: Duration) -> Transfers {
    let sent = host.run(|| -> io::Result<Transfers> {
        let (start, data, mut sent) = (wait::now(), vec![0x5a; bytes], 0);
        for server in servers.iter().cycle() {
            if start.elapsed() >= during {
                break;
            }
            let mut stream = TcpStream::connect_timeout(server, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(&data)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_exact(&mut [0])?;
            sent += bytes;
        }
        Ok(Transfers { bytes: sent, bytes_per_second: sent as f64 / start.elapsed().as_secs_f64() })
    });
    sent.unwrap_or_else(|e| panic!("transfers from {}: {e}", host.name()))
}

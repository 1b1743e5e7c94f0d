//! How fast the link is: one TCP stream in bulk, and small requests through the load balancer.
//!
//! The daemons, the apps, the load balancer and the customers share this machine's cores, so these are floors, good for
//! comparing plain with tunnelled on the same machine in the same minute.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::http::Connection;
use super::namespace::Namespace;
use super::network::Network;
use super::shop;
use crate::dataplane::clock;

pub(super) const BULK_PORT: u16 = 9000;
const CHUNK: usize = 256 << 10;
/// TCP needs a moment to open its window.
const WARM_UP: Duration = Duration::from_millis(200);
const MEASURE: Duration = Duration::from_millis(1000);
/// As many connections as a load balancer keeps to two small backends.
const CUSTOMERS: usize = 16;

/// Bits per second of one TCP stream from app1, reached at `address`, to the proxy.
pub(super) fn bulk(network: &Network, address: std::net::Ipv4Addr) -> Result<f64> {
    let listener =
        network.apps[0].run(|| TcpListener::bind((address, BULK_PORT)).context("listening for the bulk test"))?;
    let sender = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let chunk = vec![0; CHUNK];
        // The receiver ends the test by closing the connection.
        while stream.write_all(&chunk).is_ok() {}
        Ok::<_, std::io::Error>(())
    });
    let rate = network.proxy.run(|| receive(SocketAddr::from((address, BULK_PORT))))?;
    sender.join().expect("a panic in the demo ends the process in its hook")?;
    Ok(rate)
}

fn receive(from: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect_timeout(&from, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = vec![0; CHUNK];
    count_for(WARM_UP, || Ok(stream.read(&mut buffer)?))?;
    let (bytes, seconds) = count_for(MEASURE, || Ok(stream.read(&mut buffer)?))?;
    Ok(bytes * 8.0 / seconds)
}

/// Requests per second through the load balancer over kept connections.
pub(super) fn requests(namespace: &Namespace, balancer: SocketAddr) -> Result<f64> {
    std::thread::scope(|scope| {
        let customers: Vec<_> =
            (0..CUSTOMERS).map(|_| scope.spawn(|| namespace.run(|| request_for(balancer)))).collect();
        let mut rate = 0.0;
        for customer in customers {
            rate += customer.join().expect("a panic in the demo ends the process in its hook")?;
        }
        Ok(rate)
    })
}

fn request_for(balancer: SocketAddr) -> Result<f64> {
    let mut connection = Connection::open(balancer)?;
    let request = shop::page_request();
    let (count, seconds) = count_for(MEASURE, || {
        let response = connection.exchange(&request)?;
        anyhow::ensure!(response.head.starts_with("HTTP/1.1 200 "), "the load balancer answered {:?}", response.head);
        Ok(1)
    })?;
    Ok(count / seconds)
}

/// Adds up what `work` returns for as long as `time`; the sum and the seconds it took.
fn count_for(time: Duration, mut work: impl FnMut() -> Result<usize>) -> Result<(f64, f64)> {
    let start = clock::now();
    let mut sum = 0;
    while clock::now() - start < time {
        sum += work()?;
    }
    Ok((sum as f64, (clock::now() - start).as_secs_f64()))
}

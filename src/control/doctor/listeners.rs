//! Ports that a peer may reach and where nothing listens.
//!
//! Reads the kernel's table of TCP sockets; connects to nothing.

use std::net::{IpAddr, SocketAddr};

use procfs::net::TcpState;

/// More ports than this are a range that is not meant to be full.
const MOST_PORTS: usize = 16;

/// TCP ports of this machine that `exposed` names one by one, such as `tcp/8080`.
pub(super) fn named_ports(exposed: &[String]) -> Vec<u16> {
    // With a network in front of it, a port is another machine's.
    let ports: Vec<u16> = exposed.iter().filter_map(|service| service.strip_prefix("tcp/")?.parse().ok()).collect();
    if ports.len() > MOST_PORTS { Vec::new() } else { ports }
}

/// Ports of `ports` at which nothing takes connections to any of `addresses`. None where the kernel does not say.
pub(super) fn unserved(ports: &[u16], addresses: &[IpAddr]) -> Option<Vec<u16>> {
    let v4 = procfs::net::tcp().ok()?;
    let v6 = procfs::net::tcp6().unwrap_or_default();
    let listening: Vec<SocketAddr> = v4
        .into_iter()
        .chain(v6)
        .filter(|socket| socket.state == TcpState::Listen)
        .map(|socket| socket.local_address)
        .collect();
    Some(ports.iter().copied().filter(|port| !is_served(*port, addresses, &listening)).collect())
}

fn is_served(port: u16, addresses: &[IpAddr], listening: &[SocketAddr]) -> bool {
    let reaches = |socket: &&SocketAddr| socket.ip().is_unspecified() || addresses.contains(&socket.ip());
    listening.iter().filter(|socket| socket.port() == port).any(|socket| reaches(&socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn ports_are_those_named_one_by_one() {
        assert_eq!(named_ports(&texts(&["tcp/8080", "udp/53", "tcp", "icmp-echo", "tcp/1-9", "any"])), [8080]);
        assert_eq!(named_ports(&texts(&["tcp/10.30.0.0/24:443"])), [0; 0], "another machine's");
        let many: Vec<String> = (1..=17).map(|port| format!("tcp/{port}")).collect();
        assert_eq!(named_ports(&many), [0; 0]);
    }

    #[test]
    fn a_port_is_served_at_one_of_the_addresses_or_at_all() {
        let (addresses, at) = (["10.77.0.11".parse().unwrap()], |text: &str| text.parse::<SocketAddr>().unwrap());
        assert!(is_served(80, &addresses, &[at("10.77.0.11:80")]));
        assert!(is_served(80, &addresses, &[at("[::]:80")]));
        assert!(!is_served(80, &addresses, &[at("127.0.0.1:80"), at("0.0.0.0:81")]));
    }

    #[test]
    fn a_listening_socket_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(unserved(&[address.port()], &[address.ip()]), Some(vec![]));
        assert_eq!(unserved(&[address.port()], &["192.0.2.1".parse().unwrap()]), Some(vec![address.port()]));
    }
}

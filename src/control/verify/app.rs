//! The app's ports: reached through the tunnel, and not around it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::way::{Way, Ways};
use super::{Check, Finding, Outcome, Port};
use crate::config::Peer;

/// Tries each port at the peer's addresses inside the tunnel and at those that it has outside.
pub(super) async fn check(
    peer: &Peer,
    ports: &[&Port],
    outside: &[IpAddr],
    ways: &Ways,
    patience: Duration,
) -> Vec<Finding> {
    if ports.is_empty() {
        let what = "no port was tried: name the app's with --port";
        return vec![Finding::new(Check::Port, Outcome::Skipped, what)];
    }
    let mut findings = Vec::new();
    for port in ports {
        let tried = targets(peer, port).into_iter().map(|address| attempt(address, ways, patience));
        findings.extend(judge(peer, port, &join_all(tried).await));
        findings.extend(join_all(outside.iter().map(|ip| around(peer, *ip, port.number, ways, patience))).await);
    }
    findings
}

/// An attempt to connect through the tunnel, and its outcome.
type Attempt = (SocketAddr, Result<(), (io::ErrorKind, String)>);

/// An attempt to connect. An answer around the tunnel is no answer.
async fn attempt(address: SocketAddr, ways: &Ways, patience: Duration) -> Attempt {
    let outcome = match ways.to(address.ip(), None).await {
        Way::Elsewhere(interface) => Err(io::Error::other(format!("it leads to {interface}"))),
        _ => connect(address, patience).await,
    };
    (address, outcome.map_err(|error| (error.kind(), error.to_string())))
}

/// Addresses at which the app may listen: the one that is named, else the peer's own and single addresses that it has
/// kept.
fn targets(peer: &Peer, port: &Port) -> Vec<SocketAddr> {
    let hosts = peer.allowed_ips.iter().filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
    let addresses = port.address.map_or_else(|| hosts.map(|prefix| prefix.addr()).collect(), |named| vec![named]);
    addresses.into_iter().map(|address| SocketAddr::new(address, port.number)).collect()
}

/// An app listens at one of several addresses, and a gateway itself at none.
fn judge(peer: &Peer, port: &Port, attempts: &[Attempt]) -> Vec<Finding> {
    let answers = |at: SocketAddr| {
        attempts.iter().find(|(other, outcome)| outcome.is_ok() && other.is_ipv4() == at.is_ipv4()).map(|found| found.0)
    };
    let is_gateway = peer.allowed_ips.iter().any(|prefix| prefix.prefix_len() < prefix.max_prefix_len());
    let is_named = port.peer.is_some() || port.address.is_some();
    attempts
        .iter()
        .map(|(address, outcome)| match (outcome, answers(*address)) {
            (Ok(()), _) => Finding::ok(Check::Port, format!("{address} answers through the tunnel")),
            (Err(_), Some(other)) => {
                Finding::new(Check::Port, Outcome::Skipped, format!("{address} does not answer; the app is at {other}"))
            }
            (Err(_), None) if is_gateway && !is_named => {
                let what =
                    format!("{address} does not answer; of a gateway name the app: --port ADDRESS:{}", port.number);
                Finding::new(Check::Port, Outcome::Skipped, what)
            }
            (Err((kind, error)), None) => failed(*address, *kind, error),
        })
        .collect()
}

fn failed(address: SocketAddr, kind: io::ErrorKind, error: &str) -> Finding {
    if kind == io::ErrorKind::ConnectionRefused {
        return Finding::failed(
            Check::Port,
            format!("{address} refuses connections"),
            "start the app there, or have it listen on that address and port",
        );
    }
    Finding::failed(
        Check::Port,
        format!("{address} is not reached through the tunnel: {error}"),
        "the link has to be up, and the backend's `expose` has to name the port; then look at its firewall",
    )
}

/// Whoever reads the network between reads what is sent there.
async fn around(peer: &Peer, ip: IpAddr, port: u16, ways: &Ways, patience: Duration) -> Finding {
    let address = SocketAddr::new(ip, port);
    if ways.to(ip, None).await == Way::Tunnel {
        let what = format!("{ip} leads into the tunnel from here: try {address} from another machine of its network");
        return Finding::new(Check::Plaintext, Outcome::Skipped, what);
    }
    match connect(address, patience).await {
        Ok(()) => Finding::failed(
            Check::Plaintext,
            format!("{address} answers in the clear, around the tunnel"),
            format!(
                "have the app listen on {} only, or close port {port} to the network in that machine's firewall",
                peer.addresses.first().map_or_else(String::new, ToString::to_string),
            ),
        ),
        Err(error) => Finding::ok(Check::Plaintext, format!("{address} does not answer around the tunnel: {error}")),
    }
}

/// Closed again at once: an app sees a connection without a request.
async fn connect(address: SocketAddr, patience: Duration) -> io::Result<()> {
    match timeout(patience, TcpStream::connect(address)).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", patience.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::verify::tests::peer;

    const REFUSED: Result<(), io::ErrorKind> = Err(io::ErrorKind::ConnectionRefused);

    fn outcomes(more: &str, port: &Port, attempts: &[(&str, Result<(), io::ErrorKind>)]) -> Vec<Outcome> {
        let attempts: Vec<Attempt> = attempts
            .iter()
            .map(|(at, outcome)| (at.parse().unwrap(), outcome.map_err(|kind| (kind, kind.to_string()))))
            .collect();
        judge(&peer(more), port, &attempts).into_iter().map(|finding| finding.outcome).collect()
    }

    fn port(peer: Option<&str>, address: Option<&str>) -> Port {
        let address = address.map(|address| address.parse().unwrap());
        Port { peer: peer.map(str::to_owned), address, number: 8080 }
    }

    #[test]
    fn an_app_at_an_address_that_the_peer_had_before_is_found_there() {
        let existing = "allowed_ips = [\"192.0.2.10/32\"]";
        let tried: Vec<String> = targets(&peer(existing), &port(None, None)).iter().map(ToString::to_string).collect();
        assert_eq!(tried, ["10.77.0.11:8080", "192.0.2.10:8080"]);
        let attempts = [("10.77.0.11:8080", REFUSED), ("192.0.2.10:8080", Ok(()))];
        assert_eq!(outcomes(existing, &port(None, None), &attempts), [Outcome::Skipped, Outcome::Ok]);
    }

    #[test]
    fn a_gateway_need_not_be_an_app() {
        let gateway = "allowed_ips = [\"10.30.0.0/24\"]";
        let attempts = [("10.77.0.11:8080", REFUSED)];
        assert_eq!(outcomes(gateway, &port(None, None), &attempts), [Outcome::Skipped]);
        assert_eq!(outcomes(gateway, &port(Some("app1"), None), &attempts), [Outcome::Failed]);
        assert_eq!(outcomes("", &port(None, None), &attempts), [Outcome::Failed]);
        let named = port(None, Some("10.30.0.5"));
        assert_eq!(targets(&peer(gateway), &named), ["10.30.0.5:8080".parse().unwrap()]);
        assert_eq!(outcomes(gateway, &named, &[("10.30.0.5:8080", REFUSED)]), [Outcome::Failed]);
    }

    #[test]
    fn an_app_that_listens_on_one_ip_version_only_is_not_reached_by_the_other() {
        let attempts = [("10.77.0.11:8080", Ok(())), ("[fd77::11]:8080", REFUSED)];
        assert_eq!(outcomes("", &port(None, None), &attempts), [Outcome::Ok, Outcome::Failed]);
    }

    #[tokio::test]
    async fn a_connection_is_made_refused_or_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Duration::from_secs(5);
        connect(address, patience).await.unwrap();
        drop(listener);
        assert_eq!(connect(address, patience).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let given_up = connect(address, Duration::ZERO).await;
        assert!(given_up.is_err());
    }
}

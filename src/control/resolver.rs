//! Endpoints that the configuration gives as DNS names: looks them up in the background until an answer comes, and again
//! when a peer is silent.
//!
//! Nobody waits for it: the daemon starts without DNS. It chooses addresses, it sends nothing to them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::keys::PublicKey;

/// A peer whose endpoint is a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPeer {
    /// Its name in the configuration, for the log.
    pub name: String,
    /// Who it is.
    pub public_key: PublicKey,
    /// The DNS name.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

/// The IP versions that a socket is bound for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Keeps the endpoints of named peers up to date until dropped.
#[derive(Debug)]
pub struct Resolver {
    silent: HashMap<PublicKey, Arc<Notify>>,
    _tasks: JoinSet<()>,
}

impl Families {
    /// Those of the bound addresses.
    pub fn of(bound: &[SocketAddr]) -> Self {
        Self { v4: bound.iter().any(SocketAddr::is_ipv4), v6: bound.iter().any(SocketAddr::is_ipv6) }
    }

    /// Set if a socket can send to `address`.
    pub fn contain(self, address: &SocketAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.v4, self.v6) {
            (true, false) => "IPv4",
            (false, true) => "IPv6",
            _ => "IPv4 and IPv6",
        })
    }
}

impl Resolver {
    /// Looks up every name by the system's resolver and hands each result to `update`. Must be called inside a tokio
    /// runtime, whose limit of blocking threads is the limit of simultaneous look-ups.
    pub fn start<U>(peers: Vec<NamedPeer>, families: Families, update: U) -> Self
    where
        U: Fn(PublicKey, SocketAddr) + Clone + Send + 'static,
    {
        Self::start_with(peers, families, PACE, look_up, update)
    }

    fn start_with<L, F, U>(peers: Vec<NamedPeer>, families: Families, pace: Pace, lookup: L, update: U) -> Self
    where
        L: Fn(String, u16) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send,
        U: Fn(PublicKey, SocketAddr) + Clone + Send + 'static,
    {
        let mut silent = HashMap::new();
        let mut tasks = JoinSet::new();
        for peer in peers {
            let notify = Arc::new(Notify::new());
            silent.insert(peer.public_key, Arc::clone(&notify));
            let (lookup, update) = (lookup.clone(), update.clone());
            tasks.spawn(async move { follow(&peer, families, pace, &notify, lookup, update).await });
        }
        Self { silent, _tasks: tasks }
    }

    /// Set if no peer is named, so that nobody need watch for silence.
    pub fn is_empty(&self) -> bool {
        self.silent.is_empty()
    }

    /// The peer does not answer: its name may have moved. Without effect on peers that are not named, and at most one
    /// look-up per half minute.
    pub fn refresh(&self, peer: &PublicKey) {
        if let Some(notify) = self.silent.get(peer) {
            notify.notify_one();
        }
    }
}

/// The pauses between look-ups of one name.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// After the first failure; doubled with each further one.
    first_retry: Duration,
    last_retry: Duration,
    /// Between two successful look-ups.
    interval: Duration,
}

const PACE: Pace = Pace {
    first_retry: Duration::from_secs(1),
    last_retry: Duration::from_secs(60),
    interval: Duration::from_secs(30),
};

/// Takes the addresses of a name in turn, since the one before did not answer.
async fn follow<L, F, U>(peer: &NamedPeer, families: Families, pace: Pace, silent: &Notify, lookup: L, update: U)
where
    L: Fn(String, u16) -> F,
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
    U: Fn(PublicKey, SocketAddr),
{
    let (mut tried, mut last) = (Vec::new(), None);
    loop {
        let addresses = resolve(peer, families, pace, &lookup).await;
        let endpoint = next_address(&addresses, &mut tried);
        if last.replace(endpoint) == Some(endpoint) {
            tracing::debug!(peer = peer.name, host = peer.host, %endpoint, "endpoint resolved as before");
        } else {
            tracing::info!(peer = peer.name, host = peer.host, %endpoint, "endpoint resolved");
        }
        update(peer.public_key, endpoint);
        sleep(pace.interval).await;
        silent.notified().await;
    }
}

/// The first that was not tried yet; once all were, the one tried longest ago. The resolver may give them in another order
/// each time.
fn next_address(addresses: &[SocketAddr], tried: &mut Vec<SocketAddr>) -> SocketAddr {
    tried.retain(|address| addresses.contains(address));
    let untried = addresses.iter().copied().find(|address| !tried.contains(address));
    let next = untried.unwrap_or_else(|| tried.remove(0));
    tried.push(next);
    next
}

/// Tries until there is a usable address; the result is not empty.
async fn resolve<L, F>(peer: &NamedPeer, families: Families, pace: Pace, lookup: &L) -> Vec<SocketAddr>
where
    L: Fn(String, u16) -> F,
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let mut pause = pace.first_retry;
    loop {
        match lookup(peer.host.clone(), peer.port).await.and_then(|found| usable(found, families)) {
            Ok(addresses) => return addresses,
            // Once per spell of failures above DEBUG: a long outage should not fill the log.
            Err(error) if pause == pace.first_retry => {
                tracing::warn!(peer = peer.name, host = peer.host, %error, "endpoint could not be resolved, trying again");
            }
            Err(error) => tracing::debug!(peer = peer.name, host = peer.host, %error, "endpoint could not be resolved"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(pace.last_retry);
    }
}

/// Those of a family that we have a socket for, in the resolver's order, which puts unreachable ones last (RFC 6724 §6).
fn usable(found: Vec<SocketAddr>, families: Families) -> io::Result<Vec<SocketAddr>> {
    let total = found.len();
    let usable: Vec<SocketAddr> = found.into_iter().filter(|address| families.contain(address)).collect();
    if !usable.is_empty() {
        return Ok(usable);
    }
    Err(io::Error::other(match total {
        0 => "the name has no address".to_owned(),
        _ => format!("the name has no address of a family in interface.listen, which has {families} only"),
    }))
}

async fn look_up(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::time::timeout;

    use super::*;

    const BOTH: Families = Families { v4: true, v6: true };
    const FAST: Pace = Pace {
        first_retry: Duration::from_millis(1),
        last_retry: Duration::from_millis(4),
        interval: Duration::from_millis(1),
    };

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn app1() -> NamedPeer {
        let public_key = PublicKey::from_bytes([9; 32]).unwrap();
        NamedPeer { name: "app1".into(), public_key, host: "app1.example".into(), port: 51900 }
    }

    /// Follows app1 with the given answers in turn, the last one for ever. Gives what it was updated to.
    fn follow_app1(
        families: Families,
        answers: Vec<io::Result<Vec<SocketAddr>>>,
    ) -> (Resolver, UnboundedReceiver<SocketAddr>) {
        let answers = Arc::new(Mutex::new(answers));
        let lookup = move |_, _| {
            let mut answers = answers.lock().unwrap();
            let answer = match &answers[0] {
                Ok(addresses) => Ok(addresses.clone()),
                Err(error) => Err(error.kind().into()),
            };
            if answers.len() > 1 {
                drop(answers.remove(0));
            }
            std::future::ready(answer)
        };
        let (updates, updated) = unbounded_channel();
        let update = move |_, endpoint| updates.send(endpoint).expect("the test is listening");
        (Resolver::start_with(vec![app1()], families, FAST, lookup, update), updated)
    }

    async fn next(updated: &mut UnboundedReceiver<SocketAddr>) -> SocketAddr {
        timeout(Duration::from_secs(30), updated.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn tries_until_dns_answers() {
        let failure = || Err(io::ErrorKind::HostUnreachable.into());
        let found = address("192.0.2.1:51900");
        let (_resolver, mut updated) = follow_app1(BOTH, vec![failure(), failure(), Ok(vec![]), Ok(vec![found])]);
        assert_eq!(next(&mut updated).await, found);
    }

    #[tokio::test]
    async fn takes_a_family_that_has_a_socket() {
        let (v4, v6) = (address("192.0.2.1:51900"), address("[2001:db8::1]:51900"));
        let families = Families::of(&[address("0.0.0.0:51900")]);
        let (_resolver, mut updated) = follow_app1(families, vec![Ok(vec![v6, v4])]);
        assert_eq!(next(&mut updated).await, v4);
        let (_resolver, mut updated) = follow_app1(BOTH, vec![Ok(vec![v6, v4])]);
        assert_eq!(next(&mut updated).await, v6);
    }

    #[tokio::test]
    async fn looks_again_when_the_peer_is_silent_and_takes_the_next_address() {
        let (first, second) = (address("192.0.2.1:51900"), address("192.0.2.2:51900"));
        let (resolver, mut updated) = follow_app1(BOTH, vec![Ok(vec![first, second])]);
        assert_eq!(next(&mut updated).await, first);
        let unasked = timeout(FAST.interval * 20, updated.recv()).await;
        assert!(unasked.is_err(), "nobody said that it is silent");
        resolver.refresh(&app1().public_key);
        assert_eq!(next(&mut updated).await, second);
        resolver.refresh(&app1().public_key);
        assert_eq!(next(&mut updated).await, first);
    }

    #[test]
    fn takes_all_addresses_in_turn_whatever_their_order() {
        let [a, b, c] = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(address);
        let mut tried = Vec::new();
        let orders = [[a, b, c], [a, b, c], [b, c, a], [c, a, b], [c, b, a]];
        let taken: Vec<_> = orders.iter().map(|order| next_address(order, &mut tried)).collect();
        assert_eq!(taken, [a, b, c, a, b]);
        assert_eq!(next_address(&[a], &mut tried), a, "the others are gone");
        assert_eq!(tried, [a]);
    }

    #[tokio::test]
    async fn ends_when_dropped() {
        let (resolver, mut updated) = follow_app1(BOTH, vec![Err(io::ErrorKind::HostUnreachable.into())]);
        drop(resolver);
        assert_eq!(timeout(Duration::from_secs(30), updated.recv()).await.unwrap(), None);
    }

    #[test]
    fn says_which_family_is_missing() {
        let error = usable(vec![address("[2001:db8::1]:1")], Families { v4: true, v6: false }).unwrap_err();
        assert!(error.to_string().contains("IPv4 only"), "{error}");
    }
}

//! Endpoints that the configuration gives as DNS names: looks them up in the background until an answer comes, again when
//! the answer's time to live is over, and while a peer's link is down.
//!
//! Nobody waits for it: the daemon starts without DNS. It says which addresses there are, it sends nothing to them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::Endpoint;
use crate::keys::PublicKey;

/// A peer with an endpoint that is a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPeer {
    /// Its name in the configuration, for the log.
    pub name: String,
    /// Who it is.
    pub public_key: PublicKey,
    /// All its endpoints, in the order of preference: names and addresses.
    pub endpoints: Vec<Endpoint>,
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
pub struct Resolver {
    followed: HashMap<PublicKey, Followed>,
    follow: Box<Follow>,
}

/// Begins to follow a peer's names. What it is told is whether the peer's link is down; it tells what it has found.
type Follow = dyn Fn(NamedPeer, watch::Receiver<bool>, watch::Sender<Vec<SocketAddr>>) -> JoinHandle<()> + Send + Sync;

/// A peer whose names are being followed, until dropped.
struct Followed {
    peer: NamedPeer,
    is_down: watch::Sender<bool>,
    /// Its addresses, as they were told last.
    told: watch::Receiver<Vec<SocketAddr>>,
    task: JoinHandle<()>,
}

/// What a look-up found, and for how long that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    addresses: Vec<IpAddr>,
    valid_for: Duration,
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
    /// Looks up every name by the servers of `/etc/resolv.conf` and by `/etc/hosts`, and hands each result to `update`: a
    /// peer's addresses in the order of preference. Must be called inside a tokio runtime.
    pub fn start<U>(peers: Vec<NamedPeer>, families: Families, update: U) -> Self
    where
        U: Fn(PublicKey, Vec<SocketAddr>) + Clone + Send + Sync + 'static,
    {
        Self::start_with(peers, families, PACE, look_up, update)
    }

    fn start_with<L, F, U>(peers: Vec<NamedPeer>, families: Families, pace: Pace, lookup: L, update: U) -> Self
    where
        L: Fn(String) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = io::Result<Found>> + Send,
        U: Fn(PublicKey, Vec<SocketAddr>) + Clone + Send + Sync + 'static,
    {
        let follow = move |peer: NamedPeer, is_down: watch::Receiver<bool>, told: watch::Sender<Vec<SocketAddr>>| {
            let (lookup, update) = (lookup.clone(), update.clone());
            let update = move |peer, addresses: Vec<SocketAddr>| {
                told.send_replace(addresses.clone());
                update(peer, addresses);
            };
            tokio::spawn(async move { follow(&peer, families, pace, is_down, lookup, update).await })
        };
        let mut resolver = Self { followed: HashMap::new(), follow: Box::new(follow) };
        resolver.set_peers(peers);
        resolver
    }

    /// Follows these peers from here on. Those that were followed go on as they are.
    pub fn set_peers(&mut self, peers: Vec<NamedPeer>) {
        let mut before = std::mem::take(&mut self.followed);
        for peer in peers {
            let key = peer.public_key;
            let followed = match before.remove(&key) {
                Some(followed) if followed.peer == peer => followed,
                other => self.start_following(peer, other.is_some_and(|followed| *followed.is_down.borrow())),
            };
            self.followed.insert(key, followed);
        }
    }

    fn start_following(&self, peer: NamedPeer, is_down: bool) -> Followed {
        let (is_down, link) = watch::channel(is_down);
        let (found, told) = watch::channel(Vec::new());
        let task = (self.follow)(peer.clone(), link, found);
        Followed { peer, is_down, told, task }
    }

    /// The addresses that were told last of a peer that is followed as it stands here.
    pub fn addresses_of(&self, peer: &NamedPeer) -> Option<Vec<SocketAddr>> {
        let followed = self.followed.get(&peer.public_key).filter(|followed| followed.peer == *peer)?;
        Some(followed.told.borrow().clone())
    }

    /// Tells whether a peer's link is down: its names may lead elsewhere by now. Without effect on peers that are not named.
    pub fn set_down(&self, peer: &PublicKey, is_down: bool) {
        if let Some(followed) = self.followed.get(peer) {
            followed.is_down.send_if_modified(|before| std::mem::replace(before, is_down) != is_down);
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("peers", &self.followed.len()).finish_non_exhaustive()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The pauses between look-ups of one peer's names.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// After the first failure; doubled with each further one.
    first_retry: Duration,
    last_retry: Duration,
    /// Between two look-ups while the link is down, and at least so long while it is not.
    interval: Duration,
    /// At most so long, whatever the time to live.
    longest: Duration,
}

/// The most addresses of one answer that are used: more than any peer has, and few enough to be tried in turn within a second.
const MAX_ADDRESSES: usize = 8;

const PACE: Pace = Pace {
    first_retry: Duration::from_secs(1),
    last_retry: Duration::from_secs(60),
    interval: Duration::from_secs(30),
    longest: Duration::from_secs(3_600),
};

async fn follow<L, F, U>(
    peer: &NamedPeer,
    families: Families,
    pace: Pace,
    mut is_down: watch::Receiver<bool>,
    lookup: L,
    update: U,
) where
    L: Fn(String) -> F,
    F: Future<Output = io::Result<Found>>,
    U: Fn(PublicKey, Vec<SocketAddr>),
{
    let mut known: HashMap<&str, Vec<IpAddr>> = HashMap::new();
    let mut told = Vec::new();
    let mut retry = pace.first_retry;
    loop {
        let (mut valid_for, mut failure) = (pace.longest, None);
        for host in peer.endpoints.iter().filter_map(name) {
            match lookup(host.to_owned()).await {
                Ok(found) => {
                    valid_for = valid_for.min(found.valid_for);
                    let before = known.remove(host).unwrap_or_default();
                    known.insert(host, chosen(&before, found.addresses, families));
                }
                Err(error) => failure = Some((host, error)),
            }
        }
        let endpoints = addresses(&peer.endpoints, &known, families);
        if endpoints.is_empty() && failure.is_none() {
            let message = format!("no address is of a family in interface.listen, which has {families} only");
            failure = peer.endpoints.iter().find_map(name).map(|host| (host, io::Error::other(message)));
        }
        if endpoints != told {
            let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
            tracing::info!(peer = peer.name, endpoints = shown.join(" "), "endpoints resolved");
            update(peer.public_key, endpoints.clone());
            told = endpoints;
        }
        if let Some((host, error)) = failure {
            // Once per spell of failures above DEBUG: a long outage should not fill the log.
            if retry == pace.first_retry {
                tracing::warn!(peer = peer.name, host, %error, "endpoint could not be resolved, trying again");
            } else {
                tracing::debug!(peer = peer.name, host, %error, "endpoint could not be resolved");
            }
            sleep(retry).await;
            retry = (retry * 2).min(pace.last_retry);
            continue;
        }
        retry = pace.first_retry;
        sleep(pace.interval).await;
        let rest = valid_for.saturating_sub(pace.interval);
        // Whoever tells ends this task before it ends itself.
        let _ = timeout(rest, is_down.wait_for(|is_down| *is_down)).await;
    }
}

fn name(endpoint: &Endpoint) -> Option<&str> {
    match endpoint {
        Endpoint::Name { host, .. } => Some(host),
        Endpoint::Address(_) => None,
    }
}

/// The addresses of an answer that are used: at most [`MAX_ADDRESSES`], of families that have a socket. Known ones come first
/// and keep their places, so that a server that deals out its addresses in turn moves no link; a family has at least half
/// of the places if it has as many addresses, whichever was first in the answer.
fn chosen(before: &[IpAddr], found: Vec<IpAddr>, families: Families) -> Vec<IpAddr> {
    let kept = before.iter().copied().filter(|address| found.contains(address));
    let added = found.iter().copied().filter(|address| !before.contains(address));
    let mut chosen: Vec<IpAddr> = Vec::new();
    let mut left = share_places(&found, families);
    for address in kept.chain(added) {
        let left = if address.is_ipv4() { &mut left.0 } else { &mut left.1 };
        if *left > 0 && !chosen.contains(&address) {
            *left -= 1;
            chosen.push(address);
        }
    }
    chosen
}

/// Numbers of IPv4 and of IPv6 addresses that are used.
fn share_places(found: &[IpAddr], families: Families) -> (usize, usize) {
    let v4 = if families.v4 { found.iter().filter(|address| address.is_ipv4()).count() } else { 0 };
    let v6 = if families.v6 { found.iter().filter(|address| address.is_ipv6()).count() } else { 0 };
    let share = |other: usize| MAX_ADDRESSES - other.min(MAX_ADDRESSES / 2);
    (v4.min(share(v6)), v6.min(share(v4)))
}

/// All addresses of a family that we have a socket for, in the order of the endpoints.
fn addresses(endpoints: &[Endpoint], known: &HashMap<&str, Vec<IpAddr>>, families: Families) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for endpoint in endpoints {
        let of_endpoint: Vec<SocketAddr> = match endpoint {
            Endpoint::Address(address) => vec![*address],
            Endpoint::Name { host, port } => {
                let found = known.get(host.as_str()).map(Vec::as_slice).unwrap_or_default();
                found.iter().map(|address| SocketAddr::new(*address, *port)).collect()
            }
        };
        for address in of_endpoint {
            if families.contain(&address) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

/// The addresses that a name has now, by the same servers and files.
pub async fn addresses_of_name(host: &str) -> io::Result<Vec<IpAddr>> {
    Ok(look_up(host.to_owned()).await?.addresses)
}

/// The configuration of the system's resolver is read anew each time: it changes with the network.
async fn look_up(host: String) -> io::Result<Found> {
    let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    let resolver = builder.build().map_err(io::Error::other)?;
    let found = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
    let valid_for = found.valid_until().saturating_duration_since(crate::dataplane::clock::now());
    Ok(Found { addresses: found.iter().collect(), valid_for })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    const BOTH: Families = Families { v4: true, v6: true };
    const FAST: Pace = Pace {
        first_retry: Duration::from_millis(1),
        last_retry: Duration::from_millis(4),
        interval: Duration::from_millis(1),
        longest: Duration::from_secs(3_600),
    };
    const LONG: Duration = Duration::from_secs(3_600);
    const SHORT: Duration = Duration::from_millis(2);

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn app1(endpoints: &[&str]) -> NamedPeer {
        let endpoint = |text: &&str| match text.parse() {
            Ok(address) => Endpoint::Address(address),
            Err(_) => Endpoint::Name { host: (*text).to_owned(), port: 51900 },
        };
        let public_key = PublicKey::from_bytes([9; 32]).unwrap();
        NamedPeer { name: "app1".into(), public_key, endpoints: endpoints.iter().map(endpoint).collect() }
    }

    fn found(addresses: &[&str], valid_for: Duration) -> io::Result<Found> {
        Ok(Found { addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(), valid_for })
    }

    fn failure() -> io::Result<Found> {
        Err(io::ErrorKind::HostUnreachable.into())
    }

    /// Follows app1 with the given answers in turn, the last one for ever. Gives what it was updated to.
    fn follow_app1(
        peer: NamedPeer,
        families: Families,
        answers: Vec<io::Result<Found>>,
    ) -> (Resolver, UnboundedReceiver<Vec<SocketAddr>>) {
        let answers = Arc::new(Mutex::new(answers));
        let lookup = move |_| {
            let mut answers = answers.lock().unwrap();
            let answer = match &answers[0] {
                Ok(found) => Ok(found.clone()),
                Err(error) => Err(error.kind().into()),
            };
            if answers.len() > 1 {
                drop(answers.remove(0));
            }
            std::future::ready(answer)
        };
        let (updates, updated) = unbounded_channel();
        let update = move |_, endpoints| updates.send(endpoints).expect("the test is listening");
        (Resolver::start_with(vec![peer], families, FAST, lookup, update), updated)
    }

    async fn next(updated: &mut UnboundedReceiver<Vec<SocketAddr>>) -> Vec<SocketAddr> {
        timeout(Duration::from_secs(30), updated.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn tries_until_dns_answers() {
        let answers = vec![failure(), failure(), found(&[], LONG), found(&["192.0.2.1"], LONG)];
        let (_resolver, mut updated) = follow_app1(app1(&["app1.example"]), BOTH, answers);
        assert_eq!(next(&mut updated).await, [at("192.0.2.1:51900")]);
    }

    #[tokio::test]
    async fn addresses_need_no_dns_and_keep_their_place() {
        let peer = app1(&["198.51.100.1:7000", "app1.example", "198.51.100.2:7000"]);
        let answers = vec![failure(), found(&["2001:db8::1", "192.0.2.1"], LONG)];
        let (_resolver, mut updated) = follow_app1(peer, BOTH, answers);
        let (first, last) = (at("198.51.100.1:7000"), at("198.51.100.2:7000"));
        assert_eq!(next(&mut updated).await, [first, last]);
        let all = [first, at("[2001:db8::1]:51900"), at("192.0.2.1:51900"), last];
        assert_eq!(next(&mut updated).await, all);
    }

    #[tokio::test]
    async fn takes_a_family_that_has_a_socket() {
        let families = Families::of(&[at("0.0.0.0:51900")]);
        let answers = vec![found(&["2001:db8::1", "192.0.2.1"], LONG)];
        let (_resolver, mut updated) = follow_app1(app1(&["app1.example"]), families, answers);
        assert_eq!(next(&mut updated).await, [at("192.0.2.1:51900")]);
    }

    #[tokio::test]
    async fn an_answer_of_4000_addresses_gives_eight_of_both_families_and_the_same_when_it_is_shuffled() {
        let address = |number: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number]);
        let v4 = |number: u16| IpAddr::from([198, 18, (number >> 8) as u8, number as u8]);
        let many: Vec<IpAddr> = (0..2000).map(address).chain((0..2000).map(v4)).collect();
        let (mut shuffled, last) = (many.clone(), "203.0.113.1".parse().unwrap());
        shuffled.reverse();
        shuffled.insert(0, last);
        let answer = |addresses: Vec<IpAddr>, valid_for| Ok(Found { addresses, valid_for });
        let answers = vec![answer(many, SHORT), answer(shuffled, SHORT), found(&["203.0.113.1"], LONG)];
        let (_resolver, mut updated) = follow_app1(app1(&["app1.example"]), BOTH, answers);
        let used = next(&mut updated).await;
        let expected: Vec<IpAddr> = (0..4).map(address).chain((0..4).map(v4)).collect();
        assert_eq!(used.iter().map(SocketAddr::ip).collect::<Vec<_>>(), expected);
        assert_eq!(next(&mut updated).await, [at("203.0.113.1:51900")], "the shuffled answer changed nothing");
    }

    #[test]
    fn a_family_leaves_the_places_that_it_does_not_need_to_the_other() {
        let v4 = |number: u8| IpAddr::from([192, 0, 2, number]);
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let found: Vec<IpAddr> = (0..20).map(v4).chain([v6]).collect();
        let expected: Vec<IpAddr> = (0..7).map(v4).chain([v6]).collect();
        assert_eq!(chosen(&[], found.clone(), BOTH), expected);
        let only_v4 = Families { v4: true, v6: false };
        assert_eq!(chosen(&[], found, only_v4), (0..8).map(v4).collect::<Vec<_>>());
        assert!(chosen(&[], vec![v6], only_v4).is_empty());
    }

    #[tokio::test]
    async fn looks_again_when_the_time_to_live_is_over() {
        let answers = vec![found(&["192.0.2.1"], SHORT), found(&["192.0.2.2"], LONG)];
        let (_resolver, mut updated) = follow_app1(app1(&["app1.example"]), BOTH, answers);
        assert_eq!(next(&mut updated).await, [at("192.0.2.1:51900")]);
        assert_eq!(next(&mut updated).await, [at("192.0.2.2:51900")]);
    }

    #[tokio::test]
    async fn looks_again_while_the_link_is_down() {
        let answers = vec![found(&["192.0.2.1"], LONG), found(&["192.0.2.2"], LONG)];
        let peer = app1(&["app1.example"]);
        let (resolver, mut updated) = follow_app1(peer.clone(), BOTH, answers);
        assert_eq!(next(&mut updated).await, [at("192.0.2.1:51900")]);
        let unasked = timeout(FAST.interval * 20, updated.recv()).await;
        assert!(unasked.is_err(), "nobody said that it is down");
        resolver.set_down(&peer.public_key, true);
        assert_eq!(next(&mut updated).await, [at("192.0.2.2:51900")]);
    }

    #[tokio::test]
    async fn a_peer_that_stays_as_it_was_is_not_told_again_and_a_changed_one_is() {
        let peer = app1(&["app1.example"]);
        let (mut resolver, mut updated) = follow_app1(peer.clone(), BOTH, vec![found(&["192.0.2.1"], LONG)]);
        next(&mut updated).await;
        resolver.set_down(&peer.public_key, true);
        resolver.set_peers(vec![peer.clone()]);
        assert!(timeout(FAST.interval * 20, updated.recv()).await.is_err());
        assert_eq!(resolver.addresses_of(&peer), Some(vec![at("192.0.2.1:51900")]));
        let changed = app1(&["app1.example", "198.51.100.1:7000"]);
        assert_eq!(resolver.addresses_of(&changed), None);
        resolver.set_peers(vec![changed]);
        assert_eq!(next(&mut updated).await, [at("192.0.2.1:51900"), at("198.51.100.1:7000")]);
        assert!(*resolver.followed[&peer.public_key].is_down.borrow(), "its link is as it was");
        resolver.set_peers(Vec::new());
        assert!(resolver.followed.is_empty());
    }

    #[tokio::test]
    async fn names_that_need_no_server_are_found() {
        let found = look_up("localhost".to_owned()).await.unwrap();
        assert!(found.addresses.iter().any(IpAddr::is_loopback), "{found:?}");
    }

    #[test]
    fn known_addresses_keep_their_places_whatever_the_order_of_the_answer() {
        let [a, b, c] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(chosen(&[a, b], vec![c, b, a], BOTH), [a, b, c]);
        assert_eq!(chosen(&[a, b], vec![c, b], BOTH), [b, c]);
    }

    #[tokio::test]
    async fn ends_when_dropped() {
        let (resolver, mut updated) = follow_app1(app1(&["app1.example"]), BOTH, vec![failure()]);
        drop(resolver);
        assert_eq!(timeout(Duration::from_secs(30), updated.recv()).await.unwrap(), None);
    }
}

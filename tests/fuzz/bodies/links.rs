//! Us, with sessions to two peers. One of them owns a prefix, the other an address in it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use underpass::dataplane::testing::{config, device, handshake};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Exposure, Policy, Service};
use underpass::proto::router::Router;

/// Both ends of two links.
pub(crate) struct Links {
    pub now: Instant,
    pub us: Arc<Router>,
    /// They would take packets from any source of ours.
    pub peers: [Arc<Router>; 2],
}

/// We have a number like a peer's.
pub(crate) const US: usize = 9;
/// Our tunnel addresses.
pub(crate) const OWN: [&str; 2] = ["10.77.0.2", "fd00::2"];
const OWNED: [&[&str]; 2] = [&["10.77.0.0/24", "fd00::/120"], &["10.77.0.3/32", "fd00::3/128"]];

/// Which peer an inner address belongs to, the slow way.
pub(crate) fn owner(address: IpAddr) -> Option<usize> {
    // We have the address that ends in 2.
    let is_own = OWN.iter().any(|own| own.parse() == Ok(address));
    routed_to(address).filter(|_| !is_own)
}

/// Which peer a packet to an inner address goes to, the slow way: one to our own would, if the kernel gave us any.
pub(crate) fn routed_to(address: IpAddr) -> Option<usize> {
    let last = match address {
        IpAddr::V4(address) => address.octets().strip_prefix(&[10, 77, 0]).map(|last| last[0]),
        IpAddr::V6(address) => {
            address.octets().strip_prefix(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).map(|last| last[0])
        }
    };
    last.map(|last| usize::from(last == 3))
}

/// Where a peer is, or [`US`].
pub(crate) fn endpoint(peer: usize) -> Endpoint {
    Endpoint { local: Some([127, 0, 0, 1].into()), ..Endpoint::new(address(peer)) }
}

fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number as u8 + 1], 51900))
}

impl Links {
    /// The peers may send whatever they like from their addresses.
    pub(crate) fn new() -> Self {
        Self::with_policy(Policy::exposing(Exposure::everything()))
    }

    /// The peers reach a service of ours.
    pub(crate) fn exposing(service: Service) -> Self {
        Self::with_policy(Policy::exposing([service]))
    }

    fn with_policy(policy: Policy) -> Self {
        let policy = Arc::new(policy.with_own_addresses(OWN.map(|address| address.parse().expect("an address"))));
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
        let mut now = Instant::now();
        let mut us = device(now, US as u8);
        let peers = [0, 1].map(|number| {
            // Slower than the limit on handshakes.
            now += Duration::from_secs(1);
            let mut peer = device(now, number as u8);
            let known =
                PeerConfig { policy: policy.clone(), ..config(number as u8, Some(address(number)), OWNED[number]) };
            us.upsert_peer(now, known).expect("another's key");
            let everything = &["0.0.0.0/0", "::/0"];
            peer.upsert_peer(now, config(US as u8, Some(address(US)), everything)).expect("another's key");
            handshake(now, &mut peer, address(US), &mut us, address(number));
            peer.router()
        });
        Self { now, us: us.router(), peers }
    }
}

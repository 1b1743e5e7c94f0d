//! Configuration → the core's and the data plane's words, which know neither names nor roles.

use std::net::SocketAddr;
use std::num::NonZero;
use std::thread;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{Config, DeviceMode, Endpoint, Mtu, Peer, Refuse, Role, SuiteChoice, Workers};
use crate::dataplane::{self, DataplaneConfig, WorkerCount};
use crate::proto;
use crate::proto::constants::MTU_MOST;
use crate::proto::device::DeviceConfig;
use crate::proto::interface_mtu::MtuRange;
use crate::proto::noise::Suite;
use crate::proto::peer::PeerConfig;
use crate::proto::policy::Policy;

use super::netlink::{InterfaceSettings, MAIN_TABLE, Route, RoutePlan, closed_routes, without};
use super::nftables::GuardSubject;
use super::resolver::NamedPeer;
use super::routes::{Plan, WatchedPeer};

/// What the data plane starts with. Endpoints that are names are not known yet.
pub fn dataplane_config(config: &Config) -> DataplaneConfig {
    let interface = &config.interface;
    let lanes = lanes(interface.workers, thread::available_parallelism().map_or(1, NonZero::get));
    DataplaneConfig {
        interface_name: interface.name.clone(),
        mtu: mtu_range(interface.mtu),
        mode: device_mode(interface.device),
        listen: interface.listen.clone(),
        ipv6_optional: interface.listen_is_default,
        fwmark: interface.fwmark,
        lanes,
        workers: worker_count(interface.workers),
        pin_workers: interface.pin_workers,
        // A limited time is for packets.
        busy_poll: interface.busy_poll && !dataplane::is_processor_time_limited(),
        device: DeviceConfig {
            private_key: interface.private_key.clone(),
            previous_private_key: interface.previous_private_key.clone(),
            suite: proposed_suite(interface.suite, &interface.suites),
            send_lanes: lanes,
            lane_paths: true,
            mtu: None,
        },
        peers: peer_configs(config),
        privileges: None,
    }
}

/// How long the interface's packets may be.
pub fn mtu_range(mtu: Mtu) -> MtuRange {
    match mtu {
        Mtu::Auto => MtuRange { most: MTU_MOST, ..MtuRange::fixed(mtu.first()) },
        Mtu::Bytes(bytes) => MtuRange::fixed(bytes),
    }
}

/// The peers, in the configuration's order. Those whose endpoint is a name have none yet.
pub fn peer_configs(config: &Config) -> Vec<PeerConfig> {
    config.peers.iter().map(|peer| peer_config(config, peer)).collect()
}

/// What the kernel is to know of the interface with this index.
pub fn interface_settings(config: &Config, index: u32, offload: bool) -> InterfaceSettings {
    let interface = &config.interface;
    let routes = route_plan(config).routes;
    let (closed, open) = match interface.fail_closed {
        true => (
            closed_routes(&interface.addresses, &routes),
            interface.open.iter().copied().chain(outside(config)).collect(),
        ),
        false => (Vec::new(), vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]),
    };
    InterfaceSettings {
        index,
        name: interface.name.clone(),
        addresses: interface.addresses.clone(),
        mtu: interface.mtu.first(),
        offload,
        is_kept: false,
        is_prepared: false,
        routes,
        closed,
        open,
    }
}

/// Networks in which peers are reached: what an earlier configuration led into the tunnel of them would stand in the
/// way of the datagrams. Those with a mark have a way of their own.
fn outside(config: &Config) -> impl Iterator<Item = IpNet> {
    let is_plain = config.interface.fwmark.is_none();
    let endpoints = config.peers.iter().flat_map(addresses).filter(move |_| is_plain);
    endpoints.map(|endpoint| IpNet::from(endpoint.ip()))
}

/// The plan of the routes from here on, where `refused` is what earlier configurations have had refused.
pub fn route_watch_plan(config: &Config, settings: InterfaceSettings, refused: Vec<Route>) -> Plan {
    let peers = config.peers.iter().map(watched_peer).collect();
    Plan { settings, refused, open: config.interface.open.clone(), fwmark: config.interface.fwmark, peers }
}

fn watched_peer(peer: &Peer) -> WatchedPeer {
    let is_further =
        |prefix: &&IpNet| prefix.prefix_len() > 0 && !peer.addresses.iter().any(|own| IpNet::from(*own) == **prefix);
    WatchedPeer {
        public_key: peer.public_key,
        name: peer.name.clone(),
        addresses: peer.addresses.clone(),
        prefixes: peer.allowed_ips.iter().filter(is_further).copied().collect(),
        endpoints: addresses(peer).map(|endpoint| endpoint.ip()).collect(),
    }
}

/// The subject of the table that refuses packets on other interfaces. `None` if nothing is to be refused.
pub fn guard_subject(config: &Config) -> Option<GuardSubject> {
    let interface = &config.interface;
    let routes = route_plan(config).routes.into_iter().filter(|route| route.table == MAIN_TABLE);
    let mut ports: Vec<u16> = interface.listen.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    interface.fail_closed.then(|| GuardSubject {
        interface: interface.name.clone(),
        addresses: interface.addresses.clone(),
        routed: routes.flat_map(|route| without(route.destination, &interface.open)).collect(),
        endpoints: config.peers.iter().flat_map(addresses).map(|endpoint| endpoint.ip()).collect(),
        ports,
        fwmark: interface.fwmark,
    })
}

/// The routes to what lies behind the peers.
pub fn route_plan(config: &Config) -> RoutePlan {
    let interface = &config.interface;
    let allowed_ips = config.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied());
    RoutePlan::new(&interface.addresses, allowed_ips, interface.fwmark)
}

/// The peers whose endpoint must be looked up.
pub fn named_peers(config: &Config) -> Vec<NamedPeer> {
    config.peers.iter().filter_map(named_peer).collect()
}

fn named_peer(peer: &Peer) -> Option<NamedPeer> {
    let is_name = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Name { .. });
    let named =
        || NamedPeer { name: peer.name.clone(), public_key: peer.public_key, endpoints: peer.endpoints.clone() };
    peer.endpoints.iter().any(is_name).then(named)
}

/// The load balancer wants to know how its links are, and who asks for checks.
fn is_watched(config: &Config) -> bool {
    config.role == Role::Proxy || config.health.is_on()
}

fn peer_config(config: &Config, peer: &Peer) -> PeerConfig {
    PeerConfig {
        public_key: peer.public_key,
        next_public_key: peer.next_public_key,
        preshared_key: peer.preshared_key.clone(),
        endpoints: addresses(peer).map(proto::endpoint::Endpoint::new).collect(),
        watched: is_watched(config),
        // A peer without an endpoint here may have none to find us by either.
        connects: !peer.endpoints.is_empty(),
        allowed_ips: peer.allowed_ips.clone(),
        persistent_keepalive: peer.persistent_keepalive,
        suite: Some(proposed_suite(peer.suite, &config.interface.suites)),
        dscp: config.interface.dscp,
        policy: policy(config, peer).into(),
    }
}

fn policy(config: &Config, peer: &Peer) -> Policy {
    let own = config.interface.addresses.iter().map(IpNet::addr);
    let policy = Policy::exposing(peer.expose.iter().copied()).with_own_addresses(own);
    match config.interface.refuse {
        Refuse::Drop => policy,
        Refuse::Reset => policy.telling_of_refusal(),
    }
}

/// A peer's endpoints that are no names.
pub fn addresses(peer: &Peer) -> impl Iterator<Item = SocketAddr> {
    peer.endpoints.iter().filter_map(|endpoint| match endpoint {
        Endpoint::Address(address) => Some(*address),
        Endpoint::Name { .. } => None,
    })
}

/// Lanes where the process may use so many `cpus`. Below four a second worker takes from the applications what it adds
/// (measured, `docs/performance.md`), and a lane more costs a port and a path. With more, half of the CPUs are left to the
/// applications, and whoever needs more than four workers has measured.
fn lanes(workers: Workers, cpus: usize) -> u8 {
    match workers {
        Workers::Number(number) => number.get(),
        Workers::Auto => u8::try_from((cpus / 2).clamp(1, 4)).expect("four at most"),
    }
}

/// How many workers there are to be.
pub fn worker_count(workers: Workers) -> WorkerCount {
    match workers {
        Workers::Number(number) => WorkerCount::Number(number.get()),
        Workers::Auto => WorkerCount::Auto,
    }
}

fn device_mode(mode: DeviceMode) -> dataplane::DeviceMode {
    match mode {
        DeviceMode::Auto => dataplane::DeviceMode::Auto,
        DeviceMode::Offload => dataplane::DeviceMode::Offload,
        DeviceMode::Plain => dataplane::DeviceMode::Plain,
    }
}

/// The suite that this side proposes to its peers, one of those that it accepts itself.
pub fn proposed_suite(choice: SuiteChoice, accepted: &[Suite]) -> Suite {
    let fastest = if cpu_has_aes() { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
    let is_possible = |suite: &Suite| choice.admits(*suite) && accepted.contains(suite);
    let candidates = std::iter::once(fastest).chain(Suite::ALL);
    candidates.into_iter().find(is_possible).unwrap_or(fastest)
}

/// AES rounds and the carry-less multiplication that GCM needs; without either, ChaCha20-Poly1305 is the faster one.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn cpu_has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_cpus_and_at_most_four_may_get_a_worker_of_their_own() {
        let of_cpus = [1, 2, 3, 4, 5, 6, 7, 8, 64].map(|cpus| lanes(Workers::Auto, cpus));
        assert_eq!(of_cpus, [1, 1, 1, 2, 2, 3, 3, 4, 4]);
        assert_eq!(lanes(Workers::Number(NonZero::new(7).unwrap()), 1), 7);
    }
}

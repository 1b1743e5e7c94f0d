//! The core's state in the operator's words: keys become names, counters and instants become JSON's numbers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::api::{
    EndpointSource, GuardReport, InterfaceReport, LinkState, NetworkErrorReport, PeerReport, PrivilegedReport,
    RefusedReport, RoutesReport, SCHEMA_VERSION, SandboxReport, StatusReport, WorkersReport,
};
use super::mtu::MtuState;
use super::privileged::Started;
use super::routes::Found;
use super::sandbox::Sandbox;
use crate::config::{Config, Role};
use crate::dataplane::{DataplaneStatus, NetworkError, NetworkErrors, WorkersStatus, clock};
use crate::keys::PublicKey;
use crate::proto::stats::{self, PeerStatus, RefusedInitiation};

/// What the core knows nothing of. It changes by a reload only.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The TUN device.
    pub interface: String,
    /// The side of the link.
    pub role: Role,
    /// Tunnel addresses.
    pub addresses: Vec<IpNet>,
    /// Bound UDP addresses.
    pub listen: Vec<SocketAddr>,
    /// Set if the kernel hands over superpackets.
    pub offload: bool,
    /// Also of superpackets in UDP tunnels.
    pub tunnel_offload: bool,
    /// The configuration file.
    pub file: PathBuf,
    /// When the daemon started.
    pub started_at: Instant,
    /// When the file of the private key was written, in seconds since 1970.
    pub private_key_written: Option<u64>,
    /// What the daemon has given up.
    pub sandbox: Sandbox,
    /// The privileged process, if there is one.
    pub privileged: Option<Started>,
    /// In the configuration's order.
    pub peers: PeerNames,
    /// Errors that the network reports about endpoints.
    pub network_errors: Arc<NetworkErrors>,
}

/// How people call the peers.
#[derive(Debug, Clone, Default)]
pub struct PeerNames {
    ordered: Vec<(PublicKey, String)>,
    by_key: HashMap<PublicKey, usize>,
}

impl PeerNames {
    /// Those of a configuration.
    pub fn new(config: &Config) -> Self {
        let mut names = Self::default();
        for (index, peer) in config.peers.iter().enumerate() {
            names.ordered.push((peer.public_key, peer.name.clone()));
            names.by_key.extend([peer.public_key].into_iter().chain(peer.next_public_key).map(|key| (key, index)));
        }
        names
    }

    /// In the configuration's order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.ordered.iter().map(|(_, name)| name.as_str())
    }

    /// Set if it is one of the peers.
    pub fn contain(&self, key: &PublicKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// The peer's name; the start of its key for one that is not configured.
    pub fn of(&self, key: &PublicKey) -> String {
        self.by_key.get(key).map_or_else(|| key.short(), |&index| self.ordered[index].1.clone())
    }
}

impl Identity {
    /// The whole answer to `status`.
    pub fn report(
        &self,
        now: Instant,
        unix_time: Duration,
        DataplaneStatus { device: status, workers }: &DataplaneStatus,
        (guard, found, mtu): (&GuardReport, &Found, &MtuState),
    ) -> StatusReport {
        let by_key: HashMap<&PublicKey, &PeerStatus> =
            status.peers.iter().map(|peer| (&peer.public_key, peer)).collect();
        let peers = self.peers.ordered.iter();
        StatusReport {
            schema_version: SCHEMA_VERSION,
            unix_time: unix_time.as_secs(),
            interface: InterfaceReport {
                workers: Some(workers_report(workers)),
                ..self.interface_report(now, &status.public_key, mtu)
            },
            sandbox: SandboxReport { privileged: self.privileged_report(), ..self.sandbox.report() },
            guard: guard.clone(),
            routes: routes_report(found),
            peers: peers.filter_map(|(key, name)| Some(self.peer_report(name, by_key.get(key)?, found))).collect(),
            drops: status.drops.iter().map(|(reason, count)| (reason.as_str().to_owned(), count)).collect(),
            refused_initiations: status.refused.iter().map(|refused| self.refused_report(refused)).collect(),
        }
    }

    fn privileged_report(&self) -> Option<PrivilegedReport> {
        let Started { pid, capabilities, .. } = self.privileged.clone()?;
        Some(PrivilegedReport { pid, capabilities })
    }

    fn peer_report(&self, name: &str, status: &PeerStatus, found: &Found) -> PeerReport {
        let error = status.endpoint.and_then(|endpoint| self.network_errors.of(endpoint.remote));
        PeerReport { network_error: error.as_ref().map(network_error_report), ..peer_report(name, status, found) }
    }

    fn refused_report(&self, refused: &RefusedInitiation) -> RefusedReport {
        let known = refused.key.filter(|key| self.peers.contain(key));
        RefusedReport {
            peer: known.map(|key| self.peers.of(&key)),
            public_key: refused.key.map(|key| key.to_string()),
            from: refused.from,
            reason: refused.reason.as_str().to_owned(),
            count: refused.count,
            latest: refused.latest.as_secs(),
        }
    }

    fn interface_report(&self, now: Instant, public_key: &PublicKey, mtu: &MtuState) -> InterfaceReport {
        InterfaceReport {
            name: self.interface.clone(),
            role: self.role.to_string(),
            public_key: public_key.to_string(),
            addresses: self.addresses.clone(),
            listen: self.listen.clone(),
            mtu: mtu.mtu,
            mtu_source: mtu.source,
            mtu_problem: mtu.problem.clone(),
            offload: self.offload,
            tunnel_offload: self.tunnel_offload,
            workers: None,
            uptime_seconds: now.saturating_duration_since(self.started_at).as_secs(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            private_key_written: self.private_key_written,
            clock_synchronized: clock::is_synchronized(),
            config: Some(self.file.clone()),
        }
    }
}

fn workers_report(status: &WorkersStatus) -> WorkersReport {
    let WorkersStatus { number, lanes, is_chosen, ref reason } = *status;
    WorkersReport { number, lanes, chosen: is_chosen, reason: reason.clone() }
}

fn routes_report(found: &Found) -> RoutesReport {
    let missing = Some(found.missing.clone()).filter(|missing| !missing.is_empty());
    RoutesReport { repairs: found.repairs, missing, refused: found.refused.clone() }
}

fn peer_report(name: &str, status: &PeerStatus, found: &Found) -> PeerReport {
    PeerReport {
        name: name.to_owned(),
        public_key: status.public_key.to_string(),
        state: link_state(status.state),
        reason: status.reason.map(|reason| reason.as_str().to_owned()),
        state_since: status.state_since.as_secs_f64(),
        route: found.faults.get(&status.public_key).cloned(),
        endpoint: status.endpoint.map(|endpoint| endpoint.remote),
        endpoint_source: status.endpoint_source.map(endpoint_source),
        allowed_ips: status.allowed_ips.clone(),
        latest_handshake: status.latest_handshake.map(|time| time.as_secs()),
        received_bytes: status.received_bytes,
        sent_bytes: status.sent_bytes,
        suite: status.suite.map(|suite| suite.as_str().to_owned()),
        rtt_microseconds: status.round_trip.map(microseconds),
        rtt_variation_microseconds: status.round_trip_variation.map(microseconds),
        loss: status.loss,
        path_mtu: status.path_mtu,
        handshakes: status.handshakes,
        pings: status.pings,
        pings_lost: status.pings_lost,
        network_error: None,
    }
}

fn network_error_report(error: &NetworkError) -> NetworkErrorReport {
    NetworkErrorReport {
        endpoint: error.endpoint,
        what: error.kind.to_string(),
        from: error.from,
        count: error.count,
        latest: error.latest.as_secs(),
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn endpoint_source(source: stats::EndpointSource) -> EndpointSource {
    match source {
        stats::EndpointSource::Configured => EndpointSource::Configured,
        stats::EndpointSource::Roamed => EndpointSource::Roamed,
        stats::EndpointSource::Learned => EndpointSource::Learned,
        stats::EndpointSource::Remembered => EndpointSource::Remembered,
    }
}

fn link_state(state: stats::LinkState) -> LinkState {
    match state {
        stats::LinkState::Up => LinkState::Up,
        stats::LinkState::Degraded => LinkState::Degraded,
        stats::LinkState::Draining => LinkState::Draining,
        stats::LinkState::Down => LinkState::Down,
        stats::LinkState::Idle => LinkState::Idle,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::api::MtuSource;
    use crate::keys::PrivateKey;
    use crate::proto::endpoint::Endpoint;
    use crate::proto::error::DropReason;
    use crate::proto::noise::Suite;
    use crate::proto::stats::{DeviceStatus, DropCounters};

    fn key(byte: u8) -> PublicKey {
        PrivateKey::from_bytes([byte; 32]).unwrap().public_key()
    }

    pub(in crate::control) fn names(peers: &[(&str, PublicKey)]) -> PeerNames {
        let ordered: Vec<_> = peers.iter().map(|&(name, key)| (key, name.to_owned())).collect();
        let by_key = ordered.iter().enumerate().map(|(index, (key, _))| (*key, index)).collect();
        PeerNames { ordered, by_key }
    }

    fn peer_status(public_key: PublicKey) -> PeerStatus {
        PeerStatus {
            public_key,
            state: stats::LinkState::Up,
            reason: None,
            state_since: Duration::from_millis(1_800_000_000_900),
            awaits_answer: false,
            endpoint: Some(Endpoint::new("192.0.2.1:51900".parse().unwrap())),
            endpoint_source: Some(stats::EndpointSource::Configured),
            allowed_ips: vec!["10.77.0.11/32".parse().unwrap()],
            latest_handshake: Some(Duration::from_millis(1_800_000_000_900)),
            received_bytes: 1,
            sent_bytes: 2,
            suite: Some(Suite::Aes256Gcm),
            round_trip: Some(Duration::from_micros(412)),
            round_trip_variation: Some(Duration::from_micros(9)),
            loss: 0.25,
            path_mtu: Some(1420),
            handshakes: 3,
            pings: 8,
            pings_lost: 2,
        }
    }

    pub(in crate::control) fn identity(peers: PeerNames) -> Identity {
        Identity {
            interface: "underpass0".into(),
            role: Role::Proxy,
            addresses: Vec::new(),
            listen: Vec::new(),
            offload: false,
            tunnel_offload: false,
            started_at: clock::now(),
            private_key_written: Some(1_700_000_000),
            file: PathBuf::new(),
            sandbox: Sandbox::default(),
            privileged: None,
            peers,
            network_errors: Arc::default(),
        }
    }

    fn report(peers: PeerNames, statuses: Vec<PeerStatus>) -> StatusReport {
        let identity = identity(peers);
        let started_at = identity.started_at;
        let mut drops = DropCounters::default();
        drops.add(DropReason::Malformed, 3);
        let device = DeviceStatus { public_key: key(9), peers: statuses, drops, refused: Vec::new() };
        let workers = WorkersStatus { number: 2, lanes: 4, is_chosen: false, reason: "configured".to_owned() };
        let status = DataplaneStatus { device, workers };
        let (now, unix_time) = (started_at + Duration::from_secs(61), Duration::from_secs(1_800_000_001));
        let mtu = MtuState { mtu: 1420, source: MtuSource::Auto, problem: None };
        let found = Found { faults: HashMap::from([(key(1), "10.77.0.11 dev eth0".to_owned())]), ..Found::default() };
        identity.report(now, unix_time, &status, (&GuardReport::default(), &found, &mtu))
    }

    #[test]
    fn peers_have_their_names_and_the_configurations_order() {
        let peers = names(&[("zebra", key(1)), ("ant", key(2))]);
        let report = report(peers, vec![peer_status(key(2)), peer_status(key(1))]);
        let named: Vec<_> = report.peers.iter().map(|peer| (peer.name.as_str(), peer.public_key.clone())).collect();
        assert_eq!(named, [("zebra", key(1).to_string()), ("ant", key(2).to_string())]);
        let routes: Vec<_> = report.peers.iter().map(|peer| peer.route.as_deref()).collect();
        assert_eq!(routes, [Some("10.77.0.11 dev eth0"), None]);
    }

    #[test]
    fn numbers_keep_their_units() {
        let report = report(names(&[("app1", key(1))]), vec![peer_status(key(1))]);
        let peer = &report.peers[0];
        assert_eq!((peer.latest_handshake, peer.rtt_microseconds), (Some(1_800_000_000), Some(412)));
        assert_eq!((report.unix_time, report.interface.uptime_seconds), (1_800_000_001, 61));
        assert_eq!(report.interface.private_key_written, Some(1_700_000_000));
        let workers = report.interface.workers.map(|workers| (workers.number, workers.lanes, workers.chosen));
        assert_eq!(workers, Some((2, 4, false)));
        assert_eq!(report.drops["malformed"], 3);
        assert_eq!(report.drops.len(), DropReason::COUNT);
    }

    #[test]
    fn a_key_that_nobody_named_is_shown_by_its_start() {
        assert_eq!(names(&[("app1", key(1))]).of(&key(1)), "app1");
        assert_eq!(names(&[]).of(&key(1)), key(1).short());
    }
}

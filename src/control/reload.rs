//! Reading the configuration again while packets flow: what is different is changed, and nothing else is touched.
//!
//! ```text
//! read, judge ─▶ compare ─▶ open sockets, add to the interface ─▶ sockets, keys, peers, names ─▶ remove from the interface
//! └─── a bad file ends here    └─ what is refused is taken back, ends here               └─ what stays behind is told
//! ```
//!
//! Whatever can fail comes before what peers notice.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::api::{ApiError, ChangedPeer, CompareReport, ErrorCode, GuardState, Reload, ReloadReport, SCHEMA_VERSION};
use super::audit;
use super::netlink::{InterfaceSettings, Netlink, NetlinkError, still_refused};
use super::privileged::{PrivilegedError, PrivilegedPlan};
use super::report::{Identity, PeerNames};
use super::resolver::{Families, NamedPeer, Resolver};
use super::routes::networks;
use super::running::Running;
use super::systemd::{self, Readiness};
use super::{daemon, open, translate};
use crate::config::{Config, ConfigError, Diff, Interface, written};
use crate::dataplane::{BindError, OtherSockets, PeerChange};
use crate::keys::PublicKey;
use crate::proto::endpoint::Endpoint;
use crate::proto::peer::PeerConfig;

/// Why a reload has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file, or a key file.
    #[error(transparent)]
    Refused(#[from] ConfigError),
    /// A key file is a pipe that nobody writes to, or on a file server that is gone.
    #[error("{} cannot be read: it or a key file that it names takes longer than {} s", .0.display(), LOAD_TIMEOUT.as_secs())]
    TooSlow(PathBuf),
    /// Nobody to tell the changes to.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A socket.
    #[error("interface.listen: {}; {}", .0, left_behind(&[]))]
    Listen(#[from] BindError),
    /// An address to listen on that overlaps with one in use, which would have to be closed before.
    #[error(
        "interface.listen: {wanted} can't be opened beside {used}, which is in use: `underpass restart` changes it, and breaks \
         no connection; {}",
        left_behind(&[])
    )]
    Overlap {
        /// The new one.
        wanted: SocketAddr,
        /// The old one.
        used: SocketAddr,
    },
    /// An address, a route, or the table that refuses tunnel addresses on other interfaces.
    #[error("{cause}; {}", left_behind(.left))]
    Network {
        /// What was refused.
        cause: PrivilegedError,
        /// What had been added before and could not be taken back.
        left: Vec<String>,
    },
    /// The same, of a daemon that has given up what it takes.
    #[error("{changes}: {cause}; {}", left_behind(&[]))]
    GivenUp {
        /// What of the interface would change.
        changes: String,
        /// Why it does not.
        cause: PrivilegedError,
    },
    /// The firewall mark.
    #[error("interface.fwmark: the sockets do not take it: {cause}; {}", left_behind(.left))]
    Mark {
        /// The system's answer.
        cause: io::Error,
        /// What had been added before and could not be taken back.
        left: Vec<String>,
    },
}

impl Running<'_> {
    /// Reloads, and tells the log and the service manager what came of it.
    pub(super) async fn reload_and_tell(&mut self) -> Result<ReloadReport, ApiError> {
        systemd::notify(Readiness::Reloading);
        let before = peer_keys(&self.config);
        match self.reload().await {
            Ok(reload) => {
                let now = peer_keys(&self.config);
                audit::reloaded(&reload, |name| now.get(name).or(before.get(name)).copied());
                warn_of_rest(&reload);
                open::warn_of_networks(&reload.refused);
                systemd::notify(Readiness::Ready);
                Ok(ReloadReport { schema_version: SCHEMA_VERSION, reload })
            }
            Err(error) => {
                log_refusal(&error);
                systemd::notify(Readiness::ReloadRefused);
                Err(error.into())
            }
        }
    }

    async fn reload(&mut self) -> Result<Reload, ReloadError> {
        let readable = self.identity.borrow().sandbox.readable();
        let file = load(&self.file, readable).await?;
        let lanes = self.dataplane.borrow().lanes();
        let diff = Diff::between(&self.config, &file, lanes);
        let new = file.applied_to(&self.config, lanes);
        let netlink = Netlink::open()?;
        let routes = self.routes;
        let held = routes.hold().await;
        let changes = self.network_changes(&new);
        let sockets = match self.prepare(&new, &changes).await {
            Ok(sockets) => sockets,
            Err(error) if changes == NetworkChanges::Possible && !error.is_of_a_gone_process() => {
                return Err(error.and_left(self.privileged.rollback().await));
            }
            Err(error) => return Err(error),
        };

        if let Some(sockets) = sockets {
            self.use_sockets(sockets, &new);
        }
        self.set_keys(&new.interface);
        if new.interface.suites != self.config.interface.suites {
            self.handle.set_accepted_suites(new.interface.suites.clone());
        }
        if new.interface.workers != self.config.interface.workers {
            self.handle.set_workers(translate::worker_count(new.interface.workers));
        }
        self.set_peers(&new, &diff);
        self.identity.send_modify(|identity| {
            let (addresses, listen) = (new.interface.addresses.clone(), self.dataplane.borrow().local_addresses());
            let peers = PeerNames::new(&new);
            let private_key_written = written(&new.interface.private_key_file);
            *identity =
                Arc::new(Identity { addresses, listen, peers, private_key_written, ..Identity::clone(identity) });
        });
        let mut left = match changes {
            NetworkChanges::Possible => self.privileged.commit().await.unwrap_or_else(|error| vec![chain(&error)]),
            NetworkChanges::None | NetworkChanges::GivenUp(_) => Vec::new(),
        };
        let settings = interface_settings(&new, &held.settings);
        let refused = still_refused(&settings).await.unwrap_or_else(|error| {
            left.push(chain(&error));
            held.refused.clone()
        });
        let notes = new.cut_off_since(&self.config);
        self.config = new;
        let listen = self.dataplane.borrow().local_addresses();
        daemon::warn_of(&self.config, &listen, &netlink, &settings).await;
        let report = Reload { notes, refused: networks(&refused), ..self.report(diff, left) };
        routes.replace(held, translate::route_watch_plan(&self.config, settings, refused));
        Ok(report)
    }

    /// Everything that can fail. What of it is done when something fails can be rolled back.
    async fn prepare(&self, new: &Config, changes: &NetworkChanges) -> Result<Option<OtherSockets>, ReloadError> {
        let changes = match changes {
            NetworkChanges::None => None,
            NetworkChanges::Possible => Some(self.privileged.load(&PrivilegedPlan::of(new)).await?),
            NetworkChanges::GivenUp(changes) => {
                return Err(ReloadError::GivenUp { changes: changes.clone(), cause: PrivilegedError::GivenUp });
            }
        };
        let sockets = self.other_sockets(&new.interface)?;
        if changes.is_some() {
            self.privileged.prepare().await?;
        }
        self.set_fwmark(new.interface.fwmark)?;
        Ok(sockets)
    }

    /// What the privileged process would have to do. Of one that was given up, the table stays as it is, if there is one.
    fn network_changes(&self, new: &Config) -> NetworkChanges {
        let [before, after] = [&self.config, new].map(PrivilegedPlan::of);
        if self.privileged.started().is_some() {
            return if before == after { NetworkChanges::None } else { NetworkChanges::Possible };
        }
        let changes = before.interface_changes(&after);
        let is_guarded = self.privileged.guard().borrow().state == GuardState::On;
        let is_same = changes.is_empty() && (before.has_same_guard(&after) || !is_guarded);
        if is_same { NetworkChanges::None } else { NetworkChanges::GivenUp(changes.to_string()) }
    }

    /// What a reload would change.
    pub(super) async fn compare(&self) -> Result<CompareReport, ApiError> {
        let readable = self.identity.borrow().sandbox.readable();
        let file = load(&self.file, readable).await?;
        let lanes = self.dataplane.borrow().lanes();
        let compare = self.report(Diff::between(&self.config, &file, lanes), Vec::new());
        Ok(CompareReport { schema_version: SCHEMA_VERSION, compare })
    }

    /// `None` where what is listened on stays as it is.
    fn other_sockets(&self, new: &Interface) -> Result<Option<OtherSockets>, ReloadError> {
        if new.listen == self.config.interface.listen {
            return Ok(None);
        }
        let dataplane = self.dataplane.borrow();
        let overlap = |used: &SocketAddr, wanted: &SocketAddr| {
            let is_all = used.ip().is_unspecified() != wanted.ip().is_unspecified();
            is_all && used.port() == wanted.port() && used.is_ipv4() == wanted.is_ipv4()
        };
        for used in dataplane.local_addresses() {
            if let Some(&wanted) = new.listen.iter().find(|wanted| overlap(&used, wanted)) {
                return Err(ReloadError::Overlap { wanted, used });
            }
        }
        Ok(Some(dataplane.bind(new.listen.clone(), new.listen_is_default, new.fwmark)?))
    }

    fn use_sockets(&self, sockets: OtherSockets, new: &Config) {
        let mut dataplane = self.dataplane.borrow_mut();
        let before = Families::of(&dataplane.local_addresses());
        dataplane.use_sockets(sockets);
        systemd::store(&dataplane.descriptors());
        if Families::of(&dataplane.local_addresses()) != before {
            *self.resolver.borrow_mut() = daemon::start_resolver(new, &dataplane);
        }
    }

    /// Back to the old one if a socket refuses the new one.
    fn set_fwmark(&self, mark: Option<u32>) -> Result<(), ReloadError> {
        let before = self.config.interface.fwmark;
        if mark == before {
            return Ok(());
        }
        let dataplane = self.dataplane.borrow();
        dataplane.set_fwmark(mark).map_err(|cause| {
            // As far as the sockets have taken it.
            let _ = dataplane.set_fwmark(before);
            ReloadError::Mark { cause, left: Vec::new() }
        })
    }

    fn set_keys(&self, new: &Interface) {
        let keys = |interface: &Interface| {
            let previous = interface.previous_private_key.as_ref();
            (interface.private_key.public_key(), previous.map(|key| key.public_key()))
        };
        if keys(new) != keys(&self.config.interface) {
            audit::own_keys_changed(&new.private_key.public_key());
            self.handle.set_private_key(new.private_key.clone(), new.previous_private_key.clone());
        }
    }

    fn set_peers(&mut self, new: &Config, diff: &Diff) {
        let mut changes = peer_changes(&translate::peer_configs(&self.config), translate::peer_configs(new));
        let named = translate::named_peers(new);
        let resolver = &mut *self.resolver.borrow_mut();
        tell_known_addresses(&mut changes, &named, resolver);
        if !changes.is_empty() {
            self.handle.change_peers(changes);
        }
        resolver.set_peers(named);
        self.drained.follow(diff);
        let touched: HashSet<&str> =
            diff.changed.iter().map(|peer| &peer.name).chain(&diff.added).map(String::as_str).collect();
        for peer in new.peers.iter().filter(|peer| touched.contains(peer.name.as_str())) {
            self.handle.set_draining(peer.public_key, self.drained.contain(&peer.name));
        }
    }

    fn report(&self, diff: Diff, left: Vec<String>) -> Reload {
        let texts = |keys: Vec<&'static str>| keys.into_iter().map(str::to_owned).collect();
        let changed = diff.changed.into_iter();
        Reload {
            config: self.file.clone(),
            added: diff.added,
            removed: diff.removed,
            changed: changed.map(|peer| ChangedPeer { name: peer.name, keys: texts(peer.keys) }).collect(),
            keys: texts(diff.live),
            needs_restart: texts(diff.needs_restart),
            left,
            notes: Vec::new(),
            refused: Vec::new(),
        }
    }
}

/// Of the device that there is.
fn interface_settings(config: &Config, before: &InterfaceSettings) -> InterfaceSettings {
    let InterfaceSettings { index, offload, is_prepared, mtu, .. } = *before;
    InterfaceSettings { is_prepared, mtu, ..translate::interface_settings(config, index, offload) }
}

async fn load(path: &Path, readable: Option<Vec<PathBuf>>) -> Result<Config, ReloadError> {
    let file = path.to_owned();
    let loaded = spawn_blocking(move || Config::load_within(&file, readable));
    match timeout(LOAD_TIMEOUT, loaded).await {
        Ok(Ok(config)) => Ok(config?),
        // The thread panicked, or waits.
        Ok(Err(_)) | Err(_) => Err(ReloadError::TooSlow(path.to_owned())),
    }
}

/// What the data plane is to do, in an order in which no peer is taken for another: peers of whom no key is left go first;
/// then come those that keep their public key, and with it their sessions, then those that change to an announced key or
/// are new; the keys that nobody has any more go last.
fn peer_changes(old: &[PeerConfig], new: Vec<PeerConfig>) -> Vec<PeerChange> {
    let before: HashMap<PublicKey, &PeerConfig> = old.iter().map(|peer| (peer.public_key, peer)).collect();
    let wanted: HashSet<PublicKey> = new.iter().flat_map(keys_of).collect();
    let (left, gone): (Vec<_>, Vec<_>) = old.iter().partition(|peer| keys_of(peer).any(|key| wanted.contains(&key)));
    let unused = left.into_iter().flat_map(keys_of).filter(|key| !wanted.contains(key));
    let (known, unknown): (Vec<_>, Vec<_>) = new
        .into_iter()
        .filter(|peer| before.get(&peer.public_key) != Some(&peer))
        .partition(|peer| before.contains_key(&peer.public_key));
    let removed = gone.into_iter().map(|peer| PeerChange::Remove(peer.public_key));
    let upserted = known.into_iter().chain(unknown).map(PeerChange::Upsert);
    removed.chain(upserted).chain(unused.map(PeerChange::Remove)).collect()
}

fn keys_of(peer: &PeerConfig) -> impl Iterator<Item = PublicKey> + use<> {
    std::iter::once(peer.public_key).chain(peer.next_public_key)
}

/// A peer whose names are the same as before stays where it was found by them.
fn tell_known_addresses(changes: &mut [PeerChange], named: &[NamedPeer], resolver: &Resolver) {
    let named: HashMap<PublicKey, &NamedPeer> = named.iter().map(|peer| (peer.public_key, peer)).collect();
    for change in changes {
        let PeerChange::Upsert(peer) = change else { continue };
        let known = named.get(&peer.public_key).and_then(|named| resolver.addresses_of(named));
        if let Some(addresses) = known {
            peer.endpoints = addresses.into_iter().map(Endpoint::new).collect();
        }
    }
}

fn peer_keys(config: &Config) -> HashMap<String, PublicKey> {
    config.peers.iter().map(|peer| (peer.name.clone(), peer.public_key)).collect()
}

/// What is to be known beside what has changed.
fn warn_of_rest(reload: &Reload) {
    for problem in &reload.left {
        tracing::warn!("left behind: {problem}");
    }
    for note in &reload.notes {
        tracing::warn!("{note}");
    }
    if !reload.needs_restart.is_empty() {
        tracing::warn!(keys = reload.needs_restart.join(" "), "changed in the file, needs a restart");
    }
}

/// A line for each problem: lines without a priority of their own would go astray in a journal.
fn log_refusal(error: &ReloadError) {
    match error {
        ReloadError::Refused(refused) => {
            for problem in refused.problems() {
                let problem = problem.to_string().replace("\n      ", "; ");
                tracing::warn!("{}{problem}", refused.file().display());
            }
            audit::reload_refused(refused.count());
        }
        error => audit::reload_failed(error),
    }
}

impl From<ReloadError> for ApiError {
    fn from(error: ReloadError) -> Self {
        let code = match error {
            ReloadError::Refused(_) | ReloadError::TooSlow(_) => ErrorCode::ConfigRefused,
            ReloadError::Netlink(_)
            | ReloadError::Listen(_)
            | ReloadError::Overlap { .. }
            | ReloadError::Network { .. }
            | ReloadError::GivenUp { .. }
            | ReloadError::Mark { .. } => ErrorCode::ReloadFailed,
        };
        Self::new(code, error.to_string())
    }
}

impl ReloadError {
    /// There is nobody left who could roll anything back.
    fn is_of_a_gone_process(&self) -> bool {
        matches!(self, Self::Network { cause: PrivilegedError::Gone(_), .. })
    }

    /// The same, where more of what had been done could not be undone.
    fn and_left(mut self, more: Vec<String>) -> Self {
        if let Self::Network { left, .. } | Self::Mark { left, .. } = &mut self {
            left.extend(more);
        }
        self
    }
}

impl From<PrivilegedError> for ReloadError {
    fn from(cause: PrivilegedError) -> Self {
        let left = match &cause {
            PrivilegedError::Refused(refusal) => refusal.left.clone(),
            _ => Vec::new(),
        };
        Self::Network { cause, left }
    }
}

/// What a reload changes of the network that takes a capability.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NetworkChanges {
    None,
    Possible,
    /// The daemon has nobody left who may.
    GivenUp(String),
}

fn left_behind(left: &[String]) -> String {
    match left {
        [] => "nothing was changed".to_owned(),
        left => format!("nothing but this was changed: {}", left.join("; ")),
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// Local files are read in milliseconds, and nothing else is done meanwhile.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::privileged::{Refusal, RefusalKind};
    use crate::dataplane::clock;
    use crate::keys::PrivateKey;
    use crate::proto::device::{Device, DeviceConfig};
    use crate::proto::noise::Suite;
    use crate::proto::policy::{Exposure, Policy};
    use crate::proto::randomness::Entropy;
    use crate::proto::transmit::Dscp;

    fn key(number: u8) -> PublicKey {
        PrivateKey::from_bytes([number; 32]).unwrap().public_key()
    }

    /// A peer by the numbers of its keys, with an address of the first one's number.
    fn peer(number: u8, next: Option<u8>) -> PeerConfig {
        PeerConfig {
            public_key: key(number),
            next_public_key: next.map(key),
            preshared_key: None,
            endpoints: Vec::new(),
            watched: false,
            connects: false,
            allowed_ips: vec![format!("10.77.0.{number}/32").parse().unwrap()],
            persistent_keepalive: None,
            suite: None,
            dscp: Dscp::default(),
            policy: Policy::exposing(Exposure::everything()).into(),
        }
    }

    /// The numbers that a device gives the peers when the changes are made, with the keys that lead to each.
    fn after(old: &[PeerConfig], new: &[PeerConfig]) -> Vec<(usize, PublicKey)> {
        let config = DeviceConfig {
            private_key: PrivateKey::from_bytes([100; 32]).unwrap(),
            previous_private_key: None,
            suite: Suite::Aes256Gcm,
            send_lanes: 1,
            lane_paths: false,
            mtu: None,
        };
        let now = clock::now();
        let mut device = Device::new(now, Duration::from_secs(1), config, Entropy::seeded([0; 32]));
        let changes = peer_changes(&[], old.to_vec()).into_iter().chain(peer_changes(old, new.to_vec()));
        let mut numbers = HashMap::new();
        for change in changes {
            match change {
                PeerChange::Remove(key) => device.remove_peer(&key),
                PeerChange::Upsert(peer) => {
                    let key = peer.public_key;
                    numbers.insert(key, device.upsert_peer(now, peer).unwrap().index());
                }
            }
        }
        device.status(now).peers.iter().map(|peer| (numbers[&peer.public_key], peer.public_key)).collect()
    }

    fn sorted(mut peers: Vec<(usize, PublicKey)>) -> Vec<(usize, PublicKey)> {
        peers.sort_by_key(|(_, key)| *key);
        peers
    }

    #[test]
    fn peers_that_stay_as_they_are_are_not_touched() {
        let old = [peer(1, None), peer(2, Some(3))];
        assert_eq!(peer_changes(&old, vec![peer(2, Some(3)), peer(1, None)]), []);
        let changed = PeerConfig { persistent_keepalive: Some(Duration::from_secs(1)), ..peer(1, None) };
        assert_eq!(peer_changes(&old, vec![changed.clone(), peer(2, Some(3))]), [PeerChange::Upsert(changed)]);
    }

    #[test]
    fn a_peer_is_the_same_to_the_device_while_it_has_a_key_left() {
        for (old, new, expected) in [
            // Removed and added: the place is used again, the sessions went with the old one.
            (vec![peer(1, None)], vec![peer(2, None)], vec![(0, 2)]),
            // A key is announced, and then taken.
            (vec![peer(1, None)], vec![peer(1, Some(2))], vec![(0, 1)]),
            (vec![peer(1, Some(2))], vec![peer(2, None)], vec![(0, 2)]),
            (vec![peer(1, Some(2))], vec![peer(2, Some(3))], vec![(0, 2)]),
            // A key that was announced is another peer's now, which is not the one that it was announced for.
            (vec![peer(1, Some(2))], vec![peer(2, None), peer(1, None)], vec![(1, 2), (0, 1)]),
            (vec![peer(1, Some(2))], vec![peer(3, Some(2))], vec![(1, 3)]),
            (vec![peer(1, Some(2)), peer(3, None)], vec![peer(3, Some(2)), peer(1, None)], vec![(1, 3), (0, 1)]),
        ] {
            let expected = expected.into_iter().map(|(number, name)| (number, key(name))).collect();
            assert_eq!(sorted(after(&old, &new)), sorted(expected), "{old:?} → {new:?}");
        }
    }

    #[test]
    fn what_is_left_behind_is_told_exactly() {
        let error = |left: &[&str]| {
            let left: Vec<String> = left.iter().copied().map(str::to_owned).collect();
            let (kind, text) = (RefusalKind::Device, "interface underpass0: could not add this: no room".to_owned());
            let refusal = Refusal { kind, text, errno: None, left };
            ApiError::from(ReloadError::from(PrivilegedError::Refused(refusal)))
        };
        let expected = "interface underpass0: could not add this: no room; nothing was changed";
        assert_eq!(error(&[]), ApiError::new(ErrorCode::ReloadFailed, expected));
        let left = "interface underpass0: could not remove that: no room";
        let expected =
            format!("interface underpass0: could not add this: no room; nothing but this was changed: {left}");
        assert_eq!(error(&[left]), ApiError::new(ErrorCode::ReloadFailed, expected));
    }
}

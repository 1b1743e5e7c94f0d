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

use super::api::{ApiError, ChangedPeer, CompareReport, ErrorCode, Reload, ReloadReport, SCHEMA_VERSION};
use super::audit;
use super::netlink::{Failed, InterfaceChanges, InterfaceSettings, Netlink, NetlinkError};
use super::nftables::GuardError;
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
    /// An address or a route.
    #[error("{}; {}", chain(.cause), left_behind(.left))]
    Interface {
        /// What was refused.
        cause: NetlinkError,
        /// What had been added before and could not be taken back.
        left: Vec<NetlinkError>,
    },
    /// The table that refuses tunnel addresses on other interfaces.
    #[error("{}; {}", chain(.0), left_behind(&[]))]
    Guard(#[from] GuardError),
    /// The firewall mark.
    #[error("interface.fwmark: the sockets do not take it: {cause}; {}", left_behind(.left))]
    Mark {
        /// The system's answer.
        cause: io::Error,
        /// What had been added before and could not be taken back.
        left: Vec<NetlinkError>,
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
        let diff = Diff::between(&self.config, &file);
        let new = file.applied_to(&self.config);
        let settings = self.interface_settings(&new);
        let changes = InterfaceChanges::between(&self.interface_settings(&self.config), &settings);
        let sockets = self.other_sockets(&new.interface)?;
        let netlink = Netlink::open()?;
        let routes = self.routes;
        let held = routes.hold().await;
        netlink.check_new(&settings, &changes).await?;
        self.guard.borrow_mut().prepare(translate::guard_subject(&new))?;
        if let Err(failed) = netlink.add(&settings, &changes).await {
            self.roll_guard_back();
            return Err(failed.into());
        }
        if let Err(cause) = self.set_fwmark(new.interface.fwmark) {
            let left = netlink.take_back(&settings, &changes).await;
            self.roll_guard_back();
            return Err(ReloadError::Mark { cause, left });
        }

        if let Some(sockets) = sockets {
            self.use_sockets(sockets, &new);
        }
        self.set_keys(&new.interface);
        if new.interface.suites != self.config.interface.suites {
            self.handle.set_accepted_suites(new.interface.suites.clone());
        }
        self.set_peers(&new, &diff);
        self.identity.send_modify(|identity| {
            let (addresses, listen) = (new.interface.addresses.clone(), self.dataplane.borrow().local_addresses());
            let peers = PeerNames::new(&new);
            let private_key_written = written(&new.interface.private_key_file);
            *identity =
                Arc::new(Identity { addresses, listen, peers, private_key_written, ..Identity::clone(identity) });
        });
        let mut left: Vec<String> =
            netlink.remove(&settings, &changes).await.iter().map(|error| chain(error)).collect();
        let closed = netlink.close(&settings).await;
        let refused = closed.unwrap_or_else(|error| {
            left.push(chain(&error));
            held.refused.clone()
        });
        left.extend(self.guard.borrow_mut().finish().err().map(|error| chain(&error)));
        let notes = new.cut_off_since(&self.config);
        self.config = new;
        let listen = self.dataplane.borrow().local_addresses();
        daemon::warn_of(&self.config, &listen, &netlink, &settings).await;
        let report = Reload { notes, refused: networks(&refused), ..self.report(diff, left) };
        routes.replace(held, translate::route_watch_plan(&self.config, settings, refused));
        Ok(report)
    }

    /// What stays is refused beside what was before.
    fn roll_guard_back(&self) {
        if let Err(error) = self.guard.borrow_mut().rollback() {
            tracing::warn!(error = chain(&error), "the nftables table refuses what the new configuration has, too");
        }
    }

    /// What a reload would change.
    pub(super) async fn compare(&self) -> Result<CompareReport, ApiError> {
        let readable = self.identity.borrow().sandbox.readable();
        let file = load(&self.file, readable).await?;
        let compare = self.report(Diff::between(&self.config, &file), Vec::new());
        Ok(CompareReport { schema_version: SCHEMA_VERSION, compare })
    }

    fn interface_settings(&self, config: &Config) -> InterfaceSettings {
        let dataplane = self.dataplane.borrow();
        let settings = translate::interface_settings(config, dataplane.interface_index(), dataplane.offload());
        InterfaceSettings { is_prepared: dataplane.is_prepared(), ..settings }
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
    fn set_fwmark(&self, mark: Option<u32>) -> io::Result<()> {
        let before = self.config.interface.fwmark;
        if mark == before {
            return Ok(());
        }
        let dataplane = self.dataplane.borrow();
        dataplane.set_fwmark(mark).inspect_err(|_| drop(dataplane.set_fwmark(before)))
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
            | ReloadError::Interface { .. }
            | ReloadError::Guard(_)
            | ReloadError::Mark { .. } => ErrorCode::ReloadFailed,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Failed> for ReloadError {
    fn from(Failed { cause, left }: Failed) -> Self {
        Self::Interface { cause, left }
    }
}

fn left_behind(left: &[NetlinkError]) -> String {
    if left.is_empty() {
        return "nothing was changed".to_owned();
    }
    let left: Vec<String> = left.iter().map(|error| chain(error)).collect();
    format!("nothing but this was changed: {}", left.join("; "))
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
        let refused = |what: &str| NetlinkError::Refused {
            interface: "underpass0".into(),
            action: what.into(),
            source: io::Error::other("no room"),
        };
        let error = ReloadError::Interface { cause: refused("add this"), left: vec![] };
        let expected = "interface underpass0: could not add this: no room; nothing was changed";
        assert_eq!(ApiError::from(error), ApiError::new(ErrorCode::ReloadFailed, expected));
        let error = ReloadError::Interface { cause: refused("add this"), left: vec![refused("remove that")] };
        assert!(
            error
                .to_string()
                .ends_with("nothing but this was changed: interface underpass0: could not remove that: no room")
        );
    }
}

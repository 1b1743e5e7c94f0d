//! What of a configuration takes a capability.

use std::net::SocketAddr;

use blake2::{Blake2s256, Digest as _};

use crate::config::Config;
use crate::control::netlink::{InterfaceChanges, InterfaceSettings};
use crate::control::nftables::GuardSubject;
use crate::control::translate;
use crate::dataplane::{DeviceMode, MAX_SOCKET_BUFFER_LEN, SocketGrant};
use crate::proto::interface_mtu::MtuRange;

/// What of a configuration takes a capability. Made the same by the daemon and by the privileged process, each from the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivilegedPlan {
    pub(super) settings: InterfaceSettings,
    pub(super) guard: Option<GuardSubject>,
    pub(super) mode: DeviceMode,
    pub(super) lanes: u8,
    /// MTUs that the interface may be made to take.
    pub(super) mtu: MtuRange,
    fwmark: Option<u32>,
    listen: Vec<SocketAddr>,
    health: Vec<SocketAddr>,
}

/// Which sockets an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

impl PrivilegedPlan {
    /// Of `config`, whose keys do not matter.
    pub fn of(config: &Config) -> Self {
        let dataplane = translate::dataplane_config(config);
        let health = &config.health;
        Self {
            settings: translate::interface_settings(config, 0, false),
            guard: translate::guard_subject(config),
            mode: dataplane.mode,
            lanes: dataplane.lanes,
            mtu: dataplane.mtu,
            fwmark: dataplane.fwmark,
            listen: dataplane.listen,
            health: health.agent_check.iter().chain(&health.http).copied().collect(),
        }
    }

    /// The same with all that a reload does not change as it is in `running`.
    pub(super) fn applied_to(self, running: &Self) -> Self {
        let (name, mtu) = (running.settings.name.clone(), running.settings.mtu);
        let guard = self.guard.map(|guard| GuardSubject { interface: name.clone(), ..guard });
        Self {
            settings: InterfaceSettings { name, mtu, ..self.settings },
            guard,
            mode: running.mode,
            lanes: running.lanes,
            mtu: running.mtu,
            health: running.health.clone(),
            ..self
        }
    }

    /// By which two of them are compared, in hexadecimal digits. Without what a reload does not change: the number of lanes
    /// may follow from how many processors there are, which may change.
    pub fn digest(&self) -> String {
        let Self { settings, guard, fwmark, listen, .. } = self;
        let digest = Blake2s256::digest(format!("{settings:?} {guard:?} {fwmark:?} {listen:?}"));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether the file says that a socket for `transport` has this.
    pub(super) fn grants(&self, grant: SocketGrant, transport: Transport) -> bool {
        match (grant, transport) {
            (SocketGrant::Bind(address), Transport::Udp) => self.listen.contains(&address),
            (SocketGrant::Bind(address), Transport::Tcp) => self.health.contains(&address),
            (SocketGrant::Mark(mark), Transport::Udp) => mark == self.fwmark.unwrap_or(0),
            (SocketGrant::ReceiveBuffer(len) | SocketGrant::SendBuffer(len), Transport::Udp) => {
                len <= MAX_SOCKET_BUFFER_LEN
            }
            (_, Transport::Tcp) => false,
        }
    }

    /// Whether the file says that the interface may take packets of this length.
    pub(super) fn admits_mtu(&self, mtu: u16) -> bool {
        (self.mtu.least..=self.mtu.most).contains(&mtu)
    }

    /// Settings of the interface, where it takes packets of this length.
    pub(super) fn settings_with(&self, mtu: Option<u16>) -> InterfaceSettings {
        let settings = self.settings.clone();
        InterfaceSettings { mtu: mtu.unwrap_or(settings.mtu), ..settings }
    }

    /// What a reload changes of the interface.
    pub fn interface_changes(&self, after: &Self) -> InterfaceChanges {
        InterfaceChanges::between(&self.settings, &after.settings)
    }

    /// Whether both have the same refused on other interfaces.
    pub fn has_same_guard(&self, other: &Self) -> bool {
        self.guard == other.guard
    }
}

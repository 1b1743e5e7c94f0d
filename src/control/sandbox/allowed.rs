//! What a configuration needs of files, ports and capabilities once its daemon is set up.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::translate;
use super::{Part, REMEDY, access, system_calls};
use crate::config::Config;

/// What is left to a daemon in its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// Of which process.
    pub(super) part: Part,
    /// Directories to read below: of the configuration, of key files, and what names are resolved by.
    pub(super) read: BTreeSet<PathBuf>,
    /// Directories to read and start programs below.
    pub(super) run: BTreeSet<PathBuf>,
    /// Directories to make sockets and files in.
    pub(super) write: BTreeSet<PathBuf>,
    /// TCP ports to listen on.
    pub(super) tcp_ports: BTreeSet<u16>,
    /// Set if a port that is listened on is one for the privileged.
    pub(super) has_low_port: bool,
    /// What of the network the daemon was started with, if it has no capability left to change it.
    pub(super) fixed_network: Option<String>,
    /// Lanes of the device, if the daemon can't make another.
    #[serde(default)]
    pub(super) fixed_lanes: Option<u8>,
}

impl Allowed {
    /// What a part of the daemon needs for `config` that was read from `file`.
    pub fn new(part: Part, config: &Config, file: &Path) -> Self {
        let keys = config.key_directories.iter().filter(|_| part == Part::Daemon);
        let directories = keys.cloned().chain(parent(file));
        let served: Vec<&SocketAddr> = config.health.agent_check.iter().chain(&config.health.http).collect();
        let mut ports = served.iter().copied().chain(&config.interface.listen).map(SocketAddr::port);
        Self {
            part,
            read: directories.map(|directory| absolute(&directory)).collect(),
            run: BTreeSet::new(),
            write: parent(&config.interface.control_socket).into_iter().filter(|_| part == Part::Daemon).collect(),
            has_low_port: ports.any(|port| port < FIRST_UNPRIVILEGED),
            tcp_ports: served.iter().map(|address| address.port()).collect(),
            fixed_network: config.interface.drop_capabilities.then(|| network(config)),
            fixed_lanes: config.interface.drop_capabilities.then(|| translate::dataplane_config(config).lanes),
        }
    }

    /// And the programs beside `program`, by which it may be replaced, with the libraries that this one has loaded.
    pub fn and_programs_beside(mut self, program: &Path) -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let mapped = maps.lines().filter_map(|line| parent(Path::new(&line[line.find('/')?..])));
        self.run.extend(mapped.chain(parent(program)));
        self
    }

    /// Keeps this thread, and what comes of it, to this. Returns what could not be had.
    pub(super) fn enforce(&self) -> Vec<String> {
        let no_new_privileges = nix::sys::prctl::set_no_new_privs();
        let refused = |error| format!("new privileges can't be refused ({error})");
        let files = access::restrict(self);
        let calls = system_calls::restrict(self.part);
        [no_new_privileges.err().map(refused), files.err(), calls.err()].into_iter().flatten().collect()
    }

    pub(super) fn readable(&self) -> Vec<PathBuf> {
        self.read.iter().cloned().collect()
    }

    /// What of `wanted` this does not include, by the names of the configuration's keys.
    pub(super) fn missing_for(&self, wanted: &Self) -> Vec<String> {
        let is_below = |path: &PathBuf, known: &BTreeSet<PathBuf>| known.iter().any(|known| path.starts_with(known));
        let mut missing = Vec::new();
        for path in wanted.read.iter().filter(|path| !is_below(path, &self.read)) {
            missing.push(format!("the sandbox does not let the running daemon read {}: {REMEDY}", path.display()));
        }
        // The control socket stays the one that is bound and is only renamed, which the sandbox allows within a directory.
        for path in wanted.write.difference(&self.write) {
            missing.push(format!(
                "interface.control_socket: the sandbox does not let the running daemon write to {}: {REMEDY}",
                path.display()
            ));
        }
        for port in wanted.tcp_ports.difference(&self.tcp_ports) {
            missing.push(format!(
                "health: the sandbox does not let the running daemon listen on TCP port {port}: {REMEDY}"
            ));
        }
        let is_other_network = self.fixed_network.is_some() && self.fixed_network != wanted.fixed_network;
        if is_other_network || self.fixed_lanes.is_some() && self.fixed_lanes < wanted.fixed_lanes {
            missing.push(format!(
                "interface.drop_capabilities: the running daemon has no capability left to change addresses, routes, ports, marks \
                 or the device: {REMEDY}"
            ));
        }
        if wanted.has_low_port && !self.has_low_port {
            missing.push(format!(
                "the running daemon has given up the capability CAP_NET_BIND_SERVICE, which ports below {FIRST_UNPRIVILEGED} \
                 need: {REMEDY}"
            ));
        }
        missing
    }
}

/// What only a capability can change, to be compared.
fn network(config: &Config) -> String {
    let interface = &config.interface;
    let settings = translate::interface_settings(config, 0, false);
    format!("{settings:?} {:?} {} {:?}", interface.device, interface.fwmark.unwrap_or(0), interface.listen)
}

/// `None` for the root, and for what is no path to a file.
fn parent(path: &Path) -> Option<PathBuf> {
    absolute(path).parent().map(Path::to_owned)
}

/// That of a file here is empty.
fn absolute(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// `net.ipv4.ip_unprivileged_port_start`, as it is everywhere but in containers, where one capability more is no harm.
const FIRST_UNPRIVILEGED: u16 = 1024;

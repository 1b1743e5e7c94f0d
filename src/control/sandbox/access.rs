//! Which files, directories and ports are left: Landlock.
//!
//! Directories and not files: configurations, keys, `/etc/resolv.conf` and programs are replaced by others of the same name.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, NetPort, RestrictionStatus,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::{Allowed, Part};

/// Leaves this thread, and what comes of it, what `allowed` names, as far as the kernel can.
pub(super) fn restrict(allowed: &Allowed) -> Result<(), String> {
    match try_restrict(allowed) {
        Ok(RestrictionStatus { ruleset: RulesetStatus::FullyEnforced, .. }) => Ok(()),
        Ok(status) => Err(lack(&status.landlock)),
        Err(error) => Err(format!("files and ports can't be restricted (Landlock: {error})")),
    }
}

fn try_restrict(allowed: &Allowed) -> Result<RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // The control socket, and the file of peers, which is replaced as a whole.
    let make = AccessFs::MakeSock | AccessFs::MakeReg | AccessFs::RemoveFile;
    let write = read | make | AccessFs::WriteFile | AccessFs::Truncate;
    let names_and_numbers = SYSTEM_FILES.iter().map(PathBuf::from).chain(resolver_directory());
    let devices: &[&str] = match allowed.part {
        Part::Daemon => &[NULL],
        Part::Privileged => &[TUN, NULL],
    };
    let tcp_ports = allowed.tcp_ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::BindTcp)));
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LEVEL))?
        .handle_access(AccessNet::from_all(LEVEL))?
        .scope(Scope::from_all(LEVEL))?
        .create()?
        .add_rules(path_beneath_rules(names_and_numbers.chain(allowed.readable()), read))?
        .add_rules(path_beneath_rules(&allowed.run, read | AccessFs::Execute))?
        .add_rules(path_beneath_rules(&allowed.write, write))?
        .add_rules(path_beneath_rules(devices, AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev))?
        .add_rules(tcp_ports)?
        .add_rule(NetPort::new(DNS, AccessNet::ConnectTcp))?
        .restrict_self()
}

/// That of the file behind `/etc/resolv.conf`, which often is a link.
fn resolver_directory() -> Option<PathBuf> {
    fs::canonicalize("/etc/resolv.conf").ok()?.parent().map(Path::to_owned)
}

fn lack(landlock: &LandlockStatus) -> String {
    match landlock {
        LandlockStatus::NotEnabled => "files and ports are not restricted (Landlock is turned off)".to_owned(),
        LandlockStatus::NotImplemented => "files and ports are not restricted (the kernel has no Landlock)".to_owned(),
        LandlockStatus::Available { effective_abi, .. } => {
            let missing = [
                (ABI::V1, "files"),
                (ABI::V3, "truncation of files"),
                (ABI::V4, "TCP ports"),
                (ABI::V5, "requests to devices"),
                (ABI::V6, "abstract Unix sockets and signals"),
            ];
            let missing = missing.into_iter().filter(|(since, _)| since > effective_abi).map(|(_, what)| what);
            format!("not restricted by this kernel's Landlock: {}", missing.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Linux 6.12.
const LEVEL: ABI = ABI::V6;
/// How names are resolved and libraries found; the daemon's own numbers, for metrics; how many CPUs it may use; whose a TUN
/// is that was made beforehand.
const SYSTEM_FILES: [&str; 4] = ["/etc", "/proc", "/sys/fs/cgroup", "/sys/devices/virtual/net"];
/// Should the interface be made anew, which takes a capability.
const TUN: &str = "/dev/net/tun";
/// For the input of a trial run.
const NULL: &str = "/dev/null";
/// An answer that does not fit a datagram is asked for again.
const DNS: u16 = 53;

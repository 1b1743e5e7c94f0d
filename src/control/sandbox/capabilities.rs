//! The capabilities that a daemon keeps, as its own and as those of a program that takes its place.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::geteuid;

use super::{Allowed, Part};

/// Drops all that `allowed` does not need. Those that are left pass to the next program, whoever the user is.
pub(super) fn drop_all_but(allowed: &Allowed) -> Result<(), String> {
    drop_but(&needed(allowed)).map_err(|error| format!("capabilities can't be dropped ({error})"))
}

/// Whether this thread may change addresses and routes.
pub(in crate::control) fn may_configure() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or_default()
}

/// The names of those that this thread has.
pub(super) fn left() -> Vec<String> {
    let left = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let mut left: Vec<String> = left.iter().map(ToString::to_string).collect();
    left.sort();
    left
}

/// None for a daemon, but for root's, who is nobody special without it, to read another user's configuration and keys. For
/// its privileged process addresses, routes, marks and, should it be made anew, the device; and a port below 1024.
fn needed(allowed: &Allowed) -> CapsHashSet {
    let is_foreign = |owner: u32| owner != geteuid().as_raw();
    let mut owners = allowed.read.iter().filter_map(|directory| Some(fs::metadata(directory).ok()?.uid()));
    let reads = geteuid().is_root() && owners.any(is_foreign) && allowed.fixed_network.is_none();
    let read = reads.then_some(Capability::CAP_DAC_READ_SEARCH);
    let is_privileged = allowed.part == Part::Privileged;
    let network = is_privileged.then_some(Capability::CAP_NET_ADMIN);
    let low_port = (is_privileged && allowed.has_low_port).then_some(Capability::CAP_NET_BIND_SERVICE);
    read.into_iter().chain(network).chain(low_port).collect()
}

fn drop_but(needed: &CapsHashSet) -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = permitted.intersection(needed).copied().collect();
    if permitted.contains(&Capability::CAP_SETPCAP) {
        // Without it nothing can be taken from this set, and without new privileges nothing can be had from it.
        for unused in caps::read(None, CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *unused)?;
        }
    }
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::set(None, CapSet::Inheritable, &kept)?;
    caps::set(None, CapSet::Ambient, &kept)
}

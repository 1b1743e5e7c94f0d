//! Whether this process is in the sandbox that its environment claims, by what the kernel answers.
//!
//! An environment proves nothing: the number of a process is 1 in every container, and variables come down from whoever starts
//! it.

use std::fs::File;
use std::io::ErrorKind;

use landlock::{AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::getsid;
use socket2::{Domain, Socket, Type};

/// Set if system calls and files are restricted as [`Allowed::enforce`](super::Allowed::enforce) does it. The probes change
/// nothing where they are let through.
pub(super) fn is_inside() -> bool {
    prctl::get_no_new_privs() == Ok(true) && calls_are_missing() && (root_is_closed() || !has_landlock())
}

/// Calls that every kernel has. A container's own filter lets the first one pass, and refuses the second, if at all, with
/// another error.
fn calls_are_missing() -> bool {
    let packets = Socket::new(Domain::PACKET, Type::RAW, None);
    let is_missing = |error: std::io::Error| error.raw_os_error() == Some(Errno::ENOSYS as i32);
    getsid(None) == Err(Errno::ENOSYS) && packets.is_err_and(is_missing)
}

/// Everybody may list it, but for Landlock.
fn root_is_closed() -> bool {
    File::open("/").is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn has_landlock() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::ReadFile).and_then(Ruleset::create).is_ok()
}

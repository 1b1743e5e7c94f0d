//! The guard: an nftables table of our own for each tunnel interface, which has the kernel take packets to and from tunnel
//! addresses from the tunnel only.
//!
//! Linux takes a packet for any of its addresses by any interface, so that whoever is on a network of this machine would
//! reach an app at its tunnel address, in the clear. The table refuses that, outlives the daemon however it ends, and names
//! interfaces instead of numbering them: the tunnel comes and goes.
//!
//! ```text
//!  prerouting (before conntrack)                     postrouting (after source NAT)
//!  ├ by the tunnel or lo ───────────────▶ pass       ├ by the tunnel or lo ───────────────▶ pass
//!  ├ to a tunnel address of ours ───────▶ drop       ├ from a tunnel address of ours ─────▶ drop
//!  ├ from a tunnel address of ours ─────▶ drop       ├ our own datagrams ─────────────────▶ pass
//!  ├ our own datagrams ─────────────────▶ pass       └ to a network behind the tunnel ────▶ drop
//!  └ from a network behind the tunnel ──▶ drop
//! ```
//!
//! The table's content is [`GuardRules`], made by [`GuardSubject`]; [`apply`], [`remove`] and [`read`] are plain
//! functions on owned data, for whoever has the privilege. [`Guard`] keeps the table of a daemon that runs as it should
//! be.

use std::io;

use nix::errno::Errno;

mod expression;
mod guard;
mod machine;
mod messages;
mod notifications;
mod rules;
mod script;
mod socket;
mod subject;

pub use guard::Guard;
pub use machine::{MachineAddress, PROBE_INTERFACE};
pub use rules::GuardRules;
pub use script::script;
pub use socket::{Content, apply, read, remove, remove_all};
pub use subject::{GuardPlan, GuardSubject, LeftOut};

/// Why the table could not be set, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Neither root nor privileged otherwise.
    #[error("no permission to change nftables: this needs root or the capability CAP_NET_ADMIN")]
    NoPermission,
    /// Not compiled in, and no module either.
    #[error("this kernel has no nftables, or not all that is needed (modules nf_tables, nf_tables_inet): {0}")]
    Unsupported(Errno),
    /// The kernel's answer, which is none of these.
    #[error("the kernel refuses the nftables table")]
    Refused(#[source] io::Error),
}

impl From<io::Error> for GuardError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::NoPermission,
            // No such protocol, subsystem, family of tables, or expression.
            Some(errno @ (Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::ENOENT)) => {
                Self::Unsupported(errno)
            }
            _ => Self::Refused(error),
        }
    }
}

/// The table of an interface. Letters and digits stand for themselves, all else for its number, so that no two interfaces
/// share a table.
pub fn table_name(interface: &str) -> String {
    let mut name = PREFIX.to_owned();
    for byte in interface.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => name.push(byte.into()),
            _ => name.push_str(&format!("_{byte:02x}")),
        }
    }
    name
}

/// The interface that a table of this name is of; `None` if the name is none of ours.
fn interface_of(table: &str) -> Option<String> {
    let mut rest = table.strip_prefix(PREFIX)?;
    let mut interface = String::new();
    while let Some(first) = rest.chars().next() {
        let (byte, len) = match first {
            '_' => (u8::from_str_radix(rest.get(1..3)?, 16).ok()?, 3),
            letter if letter.is_ascii_alphanumeric() => (u8::try_from(letter).ok()?, 1),
            _ => return None,
        };
        interface.push(byte.into());
        rest = &rest[len..];
    }
    Some(interface)
}

/// Begins the name of each table of ours.
const PREFIX: &str = "underpass_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_interfaces_share_a_table() {
        assert_eq!(table_name("underpass0"), "underpass_underpass0");
        assert_eq!(table_name("a-b.c_d"), "underpass_a_2db_2ec_5fd");
        assert_ne!(table_name("a_2d"), table_name("a-"));
        for interface in ["underpass0", "a-b.c_d", "a_2d"] {
            assert_eq!(interface_of(&table_name(interface)).as_deref(), Some(interface));
        }
        assert_eq!(
            (interface_of("filter"), interface_of("underpass_a_"), interface_of("underpass_ä")),
            (None, None, None)
        );
    }

    #[test]
    fn a_missing_privilege_and_a_missing_kernel_are_told_apart() {
        let error = |errno: Errno| GuardError::from(io::Error::from(errno));
        assert!(matches!(error(Errno::EPERM), GuardError::NoPermission));
        assert!(matches!(error(Errno::EOPNOTSUPP), GuardError::Unsupported(_)));
        assert!(matches!(error(Errno::EINVAL), GuardError::Refused(_)));
    }
}

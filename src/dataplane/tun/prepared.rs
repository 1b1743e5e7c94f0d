//! A TUN that somebody has made for this daemon's user before it started, so that making one takes no privilege:
//! `ip tuntap add dev NAME mode tun user USER multi_queue`.

use std::fs;

use nix::unistd::geteuid;

use super::TunError;

/// What the kernel says of such a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prepared {
    /// It can have several queues, and none is opened without saying so.
    pub(super) multi_queue: bool,
}

impl Prepared {
    /// Of the interface `name`, which exists: `NameTaken` unless it is a TUN that was given to this user, which no process
    /// has open.
    pub(super) fn find(name: &str) -> Result<Self, TunError> {
        let attribute = |attribute: &str| fs::read_to_string(format!("/sys/class/net/{name}/{attribute}")).ok();
        let [flags, owner, carrier] = ["tun_flags", "owner", "carrier"].map(attribute);
        let user = geteuid().as_raw();
        Self::of(flags.as_deref(), owner.as_deref(), carrier.as_deref(), user).ok_or(TunError::NameTaken(name.into()))
    }

    fn of(flags: Option<&str>, owner: Option<&str>, carrier: Option<&str>, user: u32) -> Option<Self> {
        let flags = i32::from_str_radix(flags?.trim().strip_prefix("0x")?, 16).ok()?;
        let has = |flag: libc::c_int| flags & flag != 0;
        let is_ours = owner?.trim().parse() == Ok(user);
        // There is one while a process has it open; where the device is down, nobody can tell.
        let is_open = carrier.is_some_and(|carrier| carrier.trim() == "1");
        let fits = has(libc::IFF_TUN) && has(IFF_PERSIST) && is_ours && !is_open;
        fits.then_some(Self { multi_queue: has(libc::IFF_MULTI_QUEUE) })
    }
}

/// Of `linux/if_tun.h`: the device stays when nobody has it open.
pub(super) const IFF_PERSIST: libc::c_int = 0x0800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_persistent_tun_of_this_user_that_nobody_has_open_is_taken() {
        let of = |flags, owner, carrier| Prepared::of(Some(flags), Some(owner), carrier, 1000);
        assert_eq!(of("0x1801\n", "1000\n", Some("0\n")), Some(Prepared { multi_queue: false }));
        assert_eq!(of("0x1901\n", "1000\n", None), Some(Prepared { multi_queue: true }));
        for (flags, owner, carrier) in [
            // Open, of nobody in particular, another's, gone with its process, with link-layer headers.
            ("0x1801\n", "1000\n", Some("1\n")),
            ("0x1801\n", "-1\n", Some("0\n")),
            ("0x1801\n", "1001\n", Some("0\n")),
            ("0x1001\n", "1000\n", Some("0\n")),
            ("0x1802\n", "1000\n", Some("0\n")),
        ] {
            assert_eq!(of(flags, owner, carrier), None, "{flags} {owner} {carrier:?}");
        }
        assert_eq!(Prepared::of(None, None, Some("1"), 1000), None);
    }
}

//! Network address translation.

use std::time::Duration;

use crate::host::Host;

/// Source NAT (masquerading) on a router.
pub struct Nat {
    router: Host,
}

impl Nat {
    /// Whatever leaves the router by its interface `outside` gets that interface's address.
    #[track_caller]
    pub fn masquerade(router: &Host, outside: &str) -> Nat {
        let rules = format!(
            "table inet nat {{
               chain postrouting {{
                 type nat hook postrouting priority srcnat
                 oifname {outside} masquerade
               }}
             }}"
        );
        router.command("nft").args(["-f", "-"]).stdin(rules).run();
        Nat { router: router.clone() }
    }

    /// Forgets a UDP flow after so long a silence, in place of the usual half minute or more.
    #[track_caller]
    pub fn forget_udp_after(&self, silence: Duration) {
        for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            self.router.set_sysctl(&format!("netfilter/{timeout}"), &silence.as_secs().to_string());
        }
    }
}

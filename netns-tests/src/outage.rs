//! A network that fails without a word: what a router passes on is lost, and nobody is told.

use crate::host::Host;

/// Something wrong with a cable of a router, until it is healed.
#[must_use]
pub struct Outage {
    router: Host,
    table: String,
}

impl Outage {
    /// As if the cable were cut somewhere beyond: nothing that comes or goes by the router's interface is passed on. No link
    /// goes down at either end, and no error comes back.
    #[track_caller]
    pub fn cut(router: &Host, interface: &str) -> Outage {
        Outage::start(router, interface, "cut", "")
    }

    /// Of a hundred packets, so many are lost at random, each way.
    #[track_caller]
    pub fn lose(router: &Host, interface: &str, percent: u32) -> Outage {
        Outage::start(router, interface, "lose", &format!("numgen random mod 100 < {percent}"))
    }

    #[track_caller]
    fn start(router: &Host, interface: &str, what: &str, which: &str) -> Outage {
        let table = format!("{what}-{interface}");
        let rules = format!(
            "table inet {table} {{
               chain forward {{
                 type filter hook forward priority filter
                 iifname {interface} {which} drop
                 oifname {interface} {which} drop
               }}
             }}"
        );
        router.command("nft").args(["-f", "-"]).stdin(rules).run();
        Outage { router: router.clone(), table }
    }

    /// Everything is passed on again.
    #[track_caller]
    pub fn heal(self) {
        self.router.command("nft").args(["delete", "table", "inet", &self.table]).run();
    }
}

//! A path that is narrower than the cables at its ends.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::ends::Ends;
use crate::host::Host;
use crate::underpass::Daemon;
use crate::wait;

/// Two ends and what is between them:
///
/// ```text
///   proxy ─────────────────────── left ═══════ narrow ═══════ right ─────────────────────── backend
///     wan 10.1.0.1/24   10.1.0.254    10.3.0.1     10.3.0.2    10.2.0.254   wan 10.2.0.2/24
///         fd01::1/64    fd01::fe      fd03::1      fd03::2     fd02::fe         fd02::2/64
/// ```
///
/// The ends' own cables carry 1500 bytes, but for those of [`Narrows::jumbo`].
pub struct Narrows {
    /// The machines at its ends.
    pub ends: Ends,
    /// The router at the proxy's end.
    pub left: Host,
    right: Host,
}

/// Where the backend side is called, over IPv4 and over IPv6.
pub const ENDPOINTS: [&str; 2] = ["10.2.0.2:51900", "[fd02::2]:51900"];

impl Narrows {
    /// Routers say nothing of packets that are too long for them.
    #[track_caller]
    pub fn silent(name: &str, mtu: u32) -> Narrows {
        Narrows::honest(name, mtu).silenced()
    }

    /// The same on cables that all carry 9000 bytes.
    #[track_caller]
    pub fn jumbo(name: &str) -> Narrows {
        Narrows::laid(name, 9000, 9000).silenced()
    }

    fn silenced(self) -> Narrows {
        let rules = "table inet silence {
            chain output {
                type filter hook output priority 0;
                icmp type destination-unreachable drop
                icmpv6 type { destination-unreachable, packet-too-big } drop
            }
        }
        ";
        for router in [&self.left, &self.right] {
            router.command("nft").args(["-f", "-"]).stdin(rules).run();
        }
        self
    }

    /// Routers say what they should.
    #[track_caller]
    pub fn honest(name: &str, mtu: u32) -> Narrows {
        Narrows::laid(name, 1500, mtu)
    }

    #[track_caller]
    fn laid(name: &str, own: u32, mtu: u32) -> Narrows {
        let ends = Ends::new(name);
        let (left, right) = (ends.lab.router("left"), ends.lab.router("right"));
        ends.lab.link(ends.proxy_port().mtu(own), left.port("lan", ["10.1.0.254/24", "fd01::fe/64"]).mtu(own));
        ends.lab.link(
            ends.backend.port("wan", ["10.2.0.2/24", "fd02::2/64"]).mtu(own),
            right.port("lan", ["10.2.0.254/24", "fd02::fe/64"]).mtu(own),
        );
        ends.lab.link(
            left.port("narrow", ["10.3.0.1/24", "fd03::1/64"]).mtu(mtu),
            right.port("narrow", ["10.3.0.2/24", "fd03::2/64"]).mtu(mtu),
        );
        for (host, v4, v6) in [
            (&ends.proxy, "default via 10.1.0.254", "default via fd01::fe"),
            (&ends.backend, "default via 10.2.0.254", "default via fd02::fe"),
            (&left, "10.2.0.0/24 via 10.3.0.2", "fd02::/64 via fd03::2"),
            (&right, "10.1.0.0/24 via 10.3.0.1", "fd01::/64 via fd03::1"),
        ] {
            host.ip(&format!("route add {v4}"));
            host.ip(&format!("-6 route add {v6}"));
            host.wait_for_ipv6_addresses();
        }
        Narrows { ends, left, right }
    }

    /// Has the middle carry packets of another length.
    #[track_caller]
    pub fn set_mtu(&self, mtu: u32) {
        for router in [&self.left, &self.right] {
            router.ip(&format!("link set dev narrow mtu {mtu}"));
        }
    }

    /// Starts both sides' daemons; with each, what it calls the other.
    #[track_caller]
    pub fn start(&self, endpoint: &str) -> [(Daemon, &'static str); 2] {
        let (proxy, backend) = self.ends.start_calling(endpoint);
        [(proxy, "backend"), (backend, "proxy")]
    }
}

/// Until both know what their path carries.
#[track_caller]
pub fn wait_for_path_mtu(daemons: &[(Daemon, &str); 2], range: RangeInclusive<u64>) {
    for (daemon, peer) in daemons {
        wait::until_within(Duration::from_secs(60), &format!("the path to {peer} is found to carry {range:?}"), || {
            range.contains(&daemon.status().peer(peer).number("path_mtu"))
        });
    }
}

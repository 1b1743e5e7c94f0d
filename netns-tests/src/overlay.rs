//! An overlay network as Kubernetes' network plugins make them: Ethernet frames in UDP between two machines' addresses.

use crate::host::Host;

/// One end of an overlay: a device of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    /// The words that `ip link` has for its kind, its port and its checksums.
    pub kind: &'a str,
    /// The longest packet inside: what is left of the path's MTU once the tunnel's headers are taken off.
    pub mtu: u32,
    /// Each end's address outside.
    pub outside: [&'a str; 2],
    /// Each end's addresses inside, with their prefix lengths.
    pub inside: [[&'a str; 2]; 2],
}

/// VXLAN as it is set up for pods: without a checksum of its own over IPv4.
pub const VXLAN: &str = "vxlan dstport 4789 noudpcsum";

impl Overlay<'_> {
    /// Whether a machine's kernel has devices of this kind at all.
    pub fn is_known_to(&self, host: &Host) -> bool {
        let kind = self.kind.split(' ').next().expect("a kind");
        let words = format!("link add name probe0 type {kind} id 8 remote {} dstport 4999", self.outside[1]);
        let is_made = host.command("ip").args(words.split_whitespace()).output().status.success();
        if is_made {
            host.ip("link delete dev probe0");
        }
        is_made
    }

    /// Makes the device at both ends.
    #[track_caller]
    pub fn connect(&self, hosts: [&Host; 2]) {
        for (end, host) in hosts.into_iter().enumerate() {
            let (local, remote) = (self.outside[end], self.outside[1 - end]);
            let (kind, words) = self.kind.split_once(' ').expect("a kind, and its words");
            // Geneve takes its own address from the route.
            let local = if kind == "vxlan" { format!("local {local}") } else { String::new() };
            host.ip(&format!("link add name {DEVICE} type {kind} id 7 remote {remote} {local} {words}"));
            host.ip(&format!("link set dev {DEVICE} mtu {} up", self.mtu));
            for address in self.inside[end] {
                host.ip(&format!("address add {address} dev {DEVICE}"));
            }
            host.wait_for_ipv6_addresses();
        }
    }

    /// Removes the device from both ends.
    #[track_caller]
    pub fn remove(&self, hosts: [&Host; 2]) {
        hosts.into_iter().for_each(|host| host.ip(&format!("link delete dev {DEVICE}")));
    }
}

/// Name of its device.
pub const DEVICE: &str = "overlay0";

/// Counts of an interface since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes and packets that came out of it, superpackets counted once.
    pub received: [u64; 2],
    /// The same of what went into it.
    pub sent: [u64; 2],
}

impl Carried {
    /// By an interface of a machine.
    #[track_caller]
    pub fn by(host: &Host, interface: &str) -> Carried {
        let table = host.read("/proc/thread-self/net/dev");
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
        let line = line.unwrap_or_else(|| panic!("{} has no {interface}", host.name()));
        let number =
            |column: usize| line.split_whitespace().nth(column).and_then(|word| word.parse().ok()).unwrap_or(0);
        Carried { received: [number(0), number(1)], sent: [number(8), number(9)] }
    }

    /// Bytes of a packet since `before`, on average, received and sent.
    pub fn mean_lengths_since(&self, before: &Carried) -> [u64; 2] {
        [(self.received, before.received), (self.sent, before.sent)]
            .map(|(now, before)| (now[0] - before[0]) / (now[1] - before[1]).max(1))
    }
}

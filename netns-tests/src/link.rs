//! Cables and switches.

use crate::host::Host;

/// One end of a cable: an interface of a machine, with its addresses.
#[derive(Clone)]
pub struct Port<'a> {
    pub(crate) host: Host,
    pub(crate) name: &'a str,
    addresses: Vec<&'a str>,
    mtu: u32,
    wire: bool,
}

impl<'a> Port<'a> {
    pub(crate) fn new(host: Host, name: &'a str, addresses: impl IntoIterator<Item = &'a str>) -> Self {
        Port { host, name, addresses: addresses.into_iter().collect(), mtu: 1500, wire: false }
    }

    /// Another MTU than 1500.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Behaves as a wire does: one datagram after the other, in order. Without this, a veth pair hands on superpackets, and
    /// datagrams overtake each other when their sender moves to another processor.
    pub fn wire(mut self) -> Self {
        self.wire = true;
        self
    }

    #[track_caller]
    fn configure(&self) {
        let Port { host, name, mtu, .. } = self;
        host.ip(&format!("link set dev {name} mtu {mtu} up"));
        if self.wire {
            host.ip(&format!("link set dev {name} gso_max_segs 1"));
            host.receive_on_one_processor(name);
        }
        for address in &self.addresses {
            host.ip(&format!("address add {address} dev {name}"));
        }
        host.wait_for_ipv6_addresses();
    }
}

/// Puts a veth pair between two machines.
#[track_caller]
pub(crate) fn connect(a: &Port, b: &Port) {
    let netns = b.host.netns();
    a.host.ip(&format!("link add name {} type veth peer name {} netns {}", a.name, b.name, netns.display()));
    a.configure();
    b.configure();
}

/// A learning switch in a namespace of its own.
pub struct Switch {
    host: Host,
}

impl Switch {
    #[track_caller]
    pub(crate) fn new(host: Host) -> Self {
        host.ip("link add name bridge type bridge mcast_snooping 0");
        host.ip("link set bridge up");
        Switch { host }
    }

    /// The namespace of the switch: whoever listens on its `bridge` hears everything that passes.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Connects a machine to the switch.
    #[track_caller]
    pub fn plug(&self, port: &Port) {
        let socket = format!("to-{}", port.host.name());
        let end = Port { mtu: port.mtu, ..self.host.port(&socket, []) };
        connect(port, &end);
        self.host.ip(&format!("link set dev {socket} master bridge"));
    }
}

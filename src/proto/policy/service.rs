//! Services and destinations as operators name them, and sets of services that are quick to look into. Judges no packet.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A kind of traffic that may be exposed to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Whatever there is: no packet is judged.
    Any,
    /// Nothing but answers to pings.
    Echo,
    /// TCP connections to these ports.
    Tcp(PortRange),
    /// UDP datagrams to these ports.
    Udp(PortRange),
    /// Every packet of an IP protocol, by its number.
    Protocol(u8),
}

/// Ports from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest, not below the first.
    pub last: u16,
}

/// A service, and where it may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exposure {
    /// The service.
    pub service: Service,
    /// The addresses at which it may be reached.
    pub destination: Destination,
}

/// Addresses to which a service is exposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// This machine's own tunnel addresses, whichever they are.
    Own,
    /// Every address in a network, this machine's own among them.
    Network(IpNet),
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl Service {
    /// This service at every address in `network`.
    pub fn within(self, network: IpNet) -> Exposure {
        Exposure { service: self, destination: Destination::Network(network) }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Echo => "icmp-echo",
            Self::Tcp(_) => "tcp",
            Self::Udp(_) => "udp",
            Self::Protocol(_) => "ip",
        }
    }

    /// Which ports, or which protocol; `None` for all.
    fn selector(&self) -> Option<String> {
        match self {
            Self::Any | Self::Echo | Self::Tcp(PortRange::ALL) | Self::Udp(PortRange::ALL) => None,
            Self::Tcp(range) | Self::Udp(range) if range.first == range.last => Some(range.first.to_string()),
            Self::Tcp(range) | Self::Udp(range) => Some(format!("{}-{}", range.first, range.last)),
            Self::Protocol(number) => Some(number.to_string()),
        }
    }
}

impl Exposure {
    /// Everything that a machine can forward, and its own services.
    pub fn everything() -> [Self; 2] {
        let all = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        all.map(|network| Service::Any.within(network))
    }
}

/// A service of this machine's own.
impl From<Service> for Exposure {
    fn from(service: Service) -> Self {
        Self { service, destination: Destination::Own }
    }
}

/// As it is configured.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        self.selector().map_or(Ok(()), |selector| write!(f, "/{selector}"))
    }
}

/// As it is configured: `tcp/8080`, `tcp/10.30.0.0/24:8080`, `any/[fd30::]/64`.
impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Destination::Network(network) = self.destination else { return self.service.fmt(f) };
        match network.addr() {
            IpAddr::V4(address) => write!(f, "{}/{address}", self.service.word())?,
            IpAddr::V6(address) => write!(f, "{}/[{address}]", self.service.word())?,
        }
        if network.prefix_len() < network.max_prefix_len() {
            write!(f, "/{}", network.prefix_len())?;
        }
        self.service.selector().map_or(Ok(()), |selector| write!(f, ":{selector}"))
    }
}

/// A set of services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Services {
    pub(super) any: bool,
    pub(super) echo: bool,
    pub(super) tcp: Ports,
    pub(super) udp: Ports,
    /// A bit for each protocol number.
    protocols: [u64; 4],
}

impl Services {
    /// `services`, and pings if there are any: a machine that may be reached may be looked for.
    pub(super) fn new(services: &[Service]) -> Self {
        let ports = |of: fn(&Service) -> Option<PortRange>| Ports::new(services.iter().filter_map(of));
        let mut protocols = [0; 4];
        for service in services {
            if let Service::Protocol(number) = service {
                protocols[usize::from(number / 64)] |= 1 << (number % 64);
            }
        }
        Self {
            any: services.contains(&Service::Any),
            echo: !services.is_empty(),
            tcp: ports(|service| if let Service::Tcp(range) = service { Some(*range) } else { None }),
            udp: ports(|service| if let Service::Udp(range) = service { Some(*range) } else { None }),
            protocols,
        }
    }

    pub(super) fn has_protocol(&self, number: u8) -> bool {
        self.protocols[usize::from(number / 64)] & 1 << (number % 64) != 0
    }
}

/// Ranges in order that do not touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ports(Box<[PortRange]>);

impl Ports {
    fn new(ranges: impl Iterator<Item = PortRange>) -> Self {
        let mut ranges: Vec<PortRange> = ranges.collect();
        ranges.sort_unstable();
        let mut joined: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(before) if range.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        Self(joined.into())
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        let at = self.0.partition_point(|range| range.last < port);
        self.0.get(at).is_some_and(|range| range.first <= port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_may_touch_overlap_and_come_in_any_order() {
        let range = |first, last| PortRange { first, last };
        let ports = Ports::new(
            [range(500, 600), range(1, 10), range(11, 20), range(550, 560), range(65_535, 65_535)].into_iter(),
        );
        assert_eq!(*ports.0, [range(1, 20), range(500, 600), range(65_535, 65_535)]);
        for (port, is_in) in [(0, false), (1, true), (20, true), (21, false), (500, true), (601, false), (65_535, true)]
        {
            assert_eq!(ports.contains(port), is_in, "{port}");
        }
    }

    #[test]
    fn services_are_written_as_they_are_configured() {
        let written = |service: Service| service.to_string();
        assert_eq!([Service::Any, Service::Echo].map(written), ["any", "icmp-echo"]);
        assert_eq!(
            [PortRange::ALL, 53.into(), PortRange { first: 8000, last: 8080 }].map(Service::Udp).map(written),
            ["udp", "udp/53", "udp/8000-8080"]
        );
        assert_eq!([Service::Tcp(443.into()), Service::Protocol(47)].map(written), ["tcp/443", "ip/47"]);
    }

    #[test]
    fn exposures_name_their_destination_unless_it_is_this_machine() {
        let within = |service: Service, network: &str| service.within(network.parse().unwrap()).to_string();
        assert_eq!(Exposure::from(Service::Tcp(8080.into())).to_string(), "tcp/8080");
        assert_eq!(within(Service::Tcp(8080.into()), "10.30.0.0/24"), "tcp/10.30.0.0/24:8080");
        assert_eq!(within(Service::Udp(53.into()), "10.30.0.5/32"), "udp/10.30.0.5:53");
        assert_eq!(within(Service::Tcp(PortRange::ALL), "fd30::/64"), "tcp/[fd30::]/64");
        assert_eq!(within(Service::Tcp(443.into()), "fd30::5/128"), "tcp/[fd30::5]:443");
        assert_eq!(within(Service::Protocol(47), "10.30.0.0/24"), "ip/10.30.0.0/24:47");
        assert_eq!(Exposure::everything().map(|all| all.to_string()), ["any/0.0.0.0/0", "any/[::]/0"]);
    }
}

//! The addresses of this machine's other interfaces.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;

/// An address of an interface that is not the tunnel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineAddress {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub interface: String,
    /// Set unless it came with a lifetime from the network: anybody there may announce one.
    pub is_permanent: bool,
}

impl MachineAddress {
    /// All but those of loopback, of this interface, and of one that exists for a test of it.
    pub fn list_without(tunnel: &str) -> io::Result<Vec<Self>> {
        let mut addresses: Vec<Self> = getifaddrs()?
            .filter_map(|interface| {
                let address = interface.address.as_ref()?.as_sockaddr_in()?.ip();
                Some(Self { address: address.into(), interface: interface.interface_name, is_permanent: true })
            })
            .collect();
        // Without IPv6 there is no such file.
        let table = fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
        addresses.extend(table.lines().filter_map(parse_v6));
        addresses.retain(|address| !["lo", PROBE_INTERFACE, tunnel].contains(&&*address.interface));
        Ok(addresses)
    }
}

/// A line of `if_inet6`: address, index, prefix length, scope, flags, name.
fn parse_v6(line: &str) -> Option<MachineAddress> {
    let mut columns = line.split_whitespace();
    let address = u128::from_str_radix(columns.next()?, 16).ok()?;
    let flags = u32::from_str_radix(columns.nth(3)?, 16).ok()?;
    let interface = columns.next()?.to_owned();
    Some(MachineAddress {
        address: Ipv6Addr::from(address).into(),
        interface,
        is_permanent: flags & IFA_F_PERMANENT != 0,
    })
}

/// Tunnel addresses are tried from there, and nobody else is.
pub const PROBE_INTERFACE: &str = "upverify0";
const IFA_F_PERMANENT: u32 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announced_address_is_told_from_one_that_was_set() {
        let line = |flags: &str| format!("fd770000000000000000000000000011 03 40 00 {flags}     eth0");
        let set = parse_v6(&line("80")).unwrap();
        assert_eq!((set.address, set.interface.as_str()), ("fd77::11".parse().unwrap(), "eth0"));
        assert!(set.is_permanent && !parse_v6(&line("00")).unwrap().is_permanent);
        assert_eq!(parse_v6("nonsense"), None);
    }
}

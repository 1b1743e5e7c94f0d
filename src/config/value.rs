//! The checks of single values: text in, value out, or why not and what would be right.
//!
//! Owns the syntax of names, addresses, endpoints and numbers. What values mean to each other is judged where tables are.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::error::quote;
use super::scope::Refusal;
use super::{DEFAULT_PORT, DeviceMode, Endpoint, Refuse, Role, SuiteChoice};
use crate::proto::noise::Suite;
use crate::proto::transmit::Dscp;

/// Bytes of an interface name: the kernel's IFNAMSIZ less the closing zero.
const INTERFACE_NAME_LEN: usize = 15;
/// Characters of a peer's name: those of a DNS label.
const PEER_NAME_LEN: usize = 63;
/// Characters of a DNS name (RFC 1035 §2.3.4, without the root's length byte and the closing dot).
const DNS_NAME_LEN: usize = 253;
/// Characters of one label of a DNS name (RFC 1035 §2.3.4).
const DNS_LABEL_LEN: usize = 63;

pub(super) type Checked<T> = Result<T, Refusal>;

pub(super) fn role(text: &str) -> Checked<Role> {
    one_of(text, &Role::ALL, Role::as_str)
}

pub(super) fn device(text: &str) -> Checked<DeviceMode> {
    one_of(text, &DeviceMode::ALL, DeviceMode::as_str)
}

pub(super) fn refuse(text: &str) -> Checked<Refuse> {
    one_of(text, &Refuse::ALL, Refuse::as_str)
}

/// "copy", "zero", or a name of RFC 2474, RFC 2597, RFC 3246 or RFC 8622.
pub(super) fn dscp(text: &str) -> Checked<Dscp> {
    let value = match *text.as_bytes() {
        [b'c', b'o', b'p', b'y'] => return Ok(Dscp::Copy),
        [b'z', b'e', b'r', b'o'] => 0,
        [b'l', b'e'] => 1,
        [b'e', b'f'] => 46,
        [b'c', b's', class @ b'0'..=b'7'] => (class - b'0') * 8,
        [b'a', b'f', class @ b'1'..=b'4', precedence @ b'1'..=b'3'] => (class - b'0') * 8 + (precedence - b'0') * 2,
        _ => {
            let remedy =
                "write \"zero\", \"copy\", a number from 0 to 63, or a name such as \"ef\", \"af41\" or \"cs6\"";
            return Err(Refusal::new(format!("{} is no DSCP", quote(text)), remedy));
        }
    };
    Ok(Dscp::Value(value))
}

/// The suite to propose: one that this side accepts itself. Without an interface none is known, which is told by
/// itself.
pub(super) fn suite(text: &str, accepted: &[Suite]) -> Checked<SuiteChoice> {
    let choice = one_of(text, &SuiteChoice::ALL, SuiteChoice::as_str)?;
    if accepted.is_empty() || accepted.iter().any(|suite| choice.admits(*suite)) {
        return Ok(choice);
    }
    let remedy = format!("write \"auto\", or add {text:?} to interface.suites");
    Err(Refusal::new(format!("{} is not among interface.suites", quote(text)), remedy))
}

pub(super) fn accepted_suite(text: &str) -> Checked<Suite> {
    one_of(text, &Suite::ALL, Suite::as_str)
}

fn one_of<T: Copy>(text: &str, all: &[T], word: impl Fn(T) -> &'static str) -> Checked<T> {
    all.iter().copied().find(|value| word(*value) == text).ok_or_else(|| {
        let words: Vec<String> = all.iter().map(|value| format!("{:?}", word(*value))).collect();
        Refusal::new(format!("{} is not known", quote(text)), format!("write one of {}", words.join(", ")))
    })
}

/// A number in `range`, whose bounds `why` explains.
pub(super) fn number<T>(number: i64, range: RangeInclusive<T>, why: &str) -> Checked<T>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    let (low, high) = (range.start(), range.end());
    match T::try_from(number) {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => {
            let side =
                if T::try_from(number).is_ok_and(|value| value < *low) || number < 0 { "small" } else { "large" };
            Err(Refusal::new(format!("{number} is too {side}: {why}"), format!("write a number from {low} to {high}")))
        }
    }
}

pub(super) fn interface_name(name: &str) -> Checked<String> {
    let rule = format!("write 1 to {INTERFACE_NAME_LEN} letters, digits, '.', '_' or '-', such as \"underpass0\"");
    if name.len() > INTERFACE_NAME_LEN {
        let what = format!("{} has {} bytes, the kernel takes {INTERFACE_NAME_LEN}", quote(name), name.len());
        return Err(Refusal::new(what, rule));
    }
    if !is_plain_name(name) || matches!(name, "." | ".." | "all" | "default" | "lo") {
        return Err(Refusal::new(format!("{} cannot name an interface", quote(name)), rule));
    }
    Ok(name.to_owned())
}

pub(super) fn peer_name(name: &str) -> Checked<String> {
    if is_plain_name(name) && name.len() <= PEER_NAME_LEN {
        return Ok(name.to_owned());
    }
    let rule = format!("write 1 to {PEER_NAME_LEN} letters, digits, '.', '_' or '-', such as \"app1\"");
    Err(Refusal::new(format!("{} cannot name a peer", quote(name)), rule))
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A tunnel address of this machine, with its prefix length.
pub(super) fn interface_address(text: &str) -> Checked<IpNet> {
    let rule = "write an address with its prefix length, such as \"10.77.0.1/24\"";
    if let Ok(address) = text.parse::<IpAddr>() {
        let length = if address.is_ipv4() { 24 } else { 64 };
        let what = format!("{} has no prefix length", quote(text));
        return Err(Refusal::new(what, format!("write \"{address}/{length}\" if the tunnel's network is that large")));
    }
    let net = text.parse::<IpNet>().map_err(|_| not_a(text, "an address with a prefix length", rule))?;
    usable_tunnel_address(net.addr(), text)?;
    let of_the_network = net.addr() == net.network() && net.prefix_len() < net.max_prefix_len() - 1;
    let for_everyone = matches!(net, IpNet::V4(v4) if v4.prefix_len() < 31 && v4.addr() == v4.broadcast());
    if of_the_network || for_everyone {
        let what = format!("{} is the address of the whole network, not of a machine in it", quote(text));
        return Err(Refusal::new(what, rule));
    }
    Ok(net)
}

/// A tunnel address of a peer.
pub(super) fn peer_address(text: &str) -> Checked<IpAddr> {
    let rule = "write an address such as \"10.77.0.11\"; whole networks go into allowed_ips";
    if let Ok(net) = text.parse::<IpNet>() {
        let what = format!("{} is a network, a peer's address is one machine", quote(text));
        let remedy = format!(
            "write \"{}\" here; if there are more machines behind this peer, list networks in allowed_ips",
            net.addr()
        );
        return Err(Refusal::new(what, remedy));
    }
    let address = text.parse::<IpAddr>().map_err(|_| not_a(text, "an IP address", rule))?;
    usable_tunnel_address(address, text)?;
    Ok(address)
}

/// A prefix that a peer may use.
pub(super) fn allowed_prefix(text: &str) -> Checked<IpNet> {
    let rule = "write a network such as \"192.168.7.0/24\" or an address such as \"192.168.7.5/32\"";
    if let Ok(address) = text.parse::<IpAddr>() {
        usable_tunnel_address(address, text)?;
        return Ok(IpNet::from(address));
    }
    let net = text.parse::<IpNet>().map_err(|_| not_a(text, "a network", rule))?;
    if net != net.trunc() {
        let what = format!("{} has bits set beyond its prefix length", quote(text));
        return Err(Refusal::new(
            what,
            format!("write \"{}\" for the network, or \"{}\" for one address", net.trunc(), IpNet::from(net.addr())),
        ));
    }
    // Half of all addresses, as in "0.0.0.0/1", begins with one that none has.
    let is_wide = net.prefix_len() < 8 && net.addr().is_unspecified();
    match unusable(net.addr()).filter(|_| !is_wide) {
        Some(why) => Err(Refusal::new(format!("{} names {why}: a tunnel carries none", quote(text)), rule)),
        None => Ok(net),
    }
}

fn usable_tunnel_address(address: IpAddr, text: &str) -> Checked<()> {
    let rule = "write an address of your own for the tunnel, such as one from 10.0.0.0/8 or fd00::/8";
    match unusable(address) {
        Some(why) => Err(Refusal::new(format!("{} is {why}", quote(text)), rule)),
        None => Ok(()),
    }
}

/// Why no machine answers to `address`, if none does.
pub(super) fn unusable(address: IpAddr) -> Option<&'static str> {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    match address {
        _ if mapped => Some("an IPv4 address in IPv6's clothing: write it as IPv4"),
        _ if address.is_unspecified() => Some("the address that means none"),
        _ if address.is_loopback() => Some("a loopback address, which never leaves its machine"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if broadcast => Some("the broadcast address"),
        _ => None,
    }
}

/// A local UDP address to receive on.
pub(super) fn listen_address(text: &str) -> Checked<SocketAddr> {
    let rule = format!("write an address with a port, such as \"0.0.0.0:{DEFAULT_PORT}\" or \"[::]:{DEFAULT_PORT}\"");
    let address: SocketAddr = text.parse().map_err(|_| not_a(text, "an IP address with a port", rule.as_str()))?;
    if address.port() == 0 {
        return Err(Refusal::new("port 0 means any port, and peers have to know it", rule));
    }
    let ip = address.ip();
    let unusable = unusable(ip).filter(|_| !ip.is_unspecified() && !ip.is_loopback());
    match unusable {
        Some(why) => Err(Refusal::new(format!("{} is {why}", quote(text)), rule)),
        None => Ok(address),
    }
}

/// A local TCP address to answer checks on.
pub(super) fn service_address(text: &str) -> Checked<SocketAddr> {
    let rule = "write an address of this machine with a port, such as \"127.0.0.1:51901\" or \"[::1]:51901\", or \"off\" alone";
    let address: SocketAddr = text.parse().map_err(|_| not_a(text, "an IP address with a port", rule))?;
    if address.port() == 0 {
        return Err(Refusal::new("port 0 means any port, and who asks has to know it", rule));
    }
    let ip = address.ip();
    match unusable(ip).filter(|_| !ip.is_unspecified() && !ip.is_loopback()) {
        Some(why) => Err(Refusal::new(format!("{} is {why}", quote(text)), rule)),
        None => Ok(address),
    }
}

/// Where a peer is reached: an address or a name, with or without a port.
pub(super) fn endpoint(text: &str) -> Checked<Endpoint> {
    let rule = format!(
        "write \"192.0.2.10:{DEFAULT_PORT}\", \"[2001:db8::10]:{DEFAULT_PORT}\" or \"app1.example.com:{DEFAULT_PORT}\""
    );
    if let Ok(bare) = text.parse::<Ipv6Addr>() {
        let what = format!("{} leaves open where the address ends and the port begins", quote(text));
        return Err(Refusal::new(what, format!("write \"[{bare}]:{DEFAULT_PORT}\"")));
    }
    if let Some(address) = socket_address(text) {
        return usable_endpoint(address, text, &rule);
    }
    let (host, port) = split_port(text).ok_or_else(|| not_a(text, "an address or name with a port", rule.as_str()))?;
    if port == 0 {
        return Err(Refusal::new("port 0 is no port to send to", rule));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if !is_dns_name(host) {
        return Err(not_a(text, "an address or a DNS name", rule.as_str()));
    }
    Ok(Endpoint::Name { host: host.to_owned(), port })
}

fn usable_endpoint(address: SocketAddr, text: &str, rule: &str) -> Checked<Endpoint> {
    if address.port() == 0 {
        return Err(Refusal::new("port 0 is no port to send to", rule));
    }
    match unusable(address.ip()).filter(|_| !address.ip().is_loopback()) {
        Some(why) => Err(Refusal::new(format!("{} is {why}", quote(text)), rule)),
        None => Ok(Endpoint::Address(address)),
    }
}

/// `text` as an IP address; IPv6 in brackets; the port may be left out.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let with_port = || format!("{text}:{DEFAULT_PORT}").parse().ok();
    text.parse().ok().or_else(with_port)
}

fn split_port(text: &str) -> Option<(&str, u16)> {
    match text.split_once(':') {
        None => Some((text, DEFAULT_PORT)),
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => Some((host, port.parse().ok()?)),
        Some(_) => None,
    }
}

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        plain && (1..=DNS_LABEL_LEN).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    // No top-level domain is a number (RFC 3696 §2): "192.0.2.300" is a mistyped address.
    let last_is_a_word = name.rsplit('.').next().is_some_and(|last| last.bytes().any(|b| !b.is_ascii_digit()));
    name.len() <= DNS_NAME_LEN && last_is_a_word && name.split('.').all(is_label)
}

fn not_a(text: &str, kind: &str, remedy: impl Into<String>) -> Refusal {
    Refusal::new(format!("{} is not {kind}", quote(text)), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_or_a_name_with_or_without_a_port() {
        let address = |text: &str| Endpoint::Address(text.parse().unwrap());
        let name = |host: &str, port| Endpoint::Name { host: host.to_owned(), port };
        for (text, expected) in [
            ("192.0.2.10:7000", address("192.0.2.10:7000")),
            ("192.0.2.10", address("192.0.2.10:51900")),
            ("[2001:db8::1]:7000", address("[2001:db8::1]:7000")),
            ("[2001:db8::1]", address("[2001:db8::1]:51900")),
            ("[fe80::1%2]:7000", address("[fe80::1%2]:7000")),
            ("app1.example.com:7000", name("app1.example.com", 7000)),
            ("app1.example.com.", name("app1.example.com", 51900)),
            ("app1", name("app1", 51900)),
            ("_srv.example-1.com", name("_srv.example-1.com", 51900)),
        ] {
            assert_eq!(endpoint(text).ok(), Some(expected), "{text}");
        }
    }

    #[test]
    fn refuses_endpoints_that_nobody_answers() {
        for text in [
            "",
            ":51900",
            "192.0.2.300",
            "192.0.2.1:0",
            "192.0.2.1:70000",
            "app1:0",
            "app1:http",
            "-a.com",
            "a..b",
            "a b",
            "2001:db8::1",
            "2001:db8::1:5190",
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[::ffff:1.2.3.4]:1",
            "https://app1",
            "app1:",
            "app\u{1}",
            "äpp1",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
        assert!(endpoint(&format!("{}.com", "a".repeat(64))).is_err());
        assert!(endpoint(&format!("{}com", "a.".repeat(126))).is_err());
    }

    #[test]
    fn a_dscp_is_a_word_of_ours_or_a_name() {
        for (text, expected) in [
            ("copy", Dscp::Copy),
            ("zero", Dscp::Value(0)),
            ("cs0", Dscp::Value(0)),
            ("le", Dscp::Value(1)),
            ("af11", Dscp::Value(10)),
            ("af43", Dscp::Value(38)),
            ("ef", Dscp::Value(46)),
            ("cs7", Dscp::Value(56)),
        ] {
            assert_eq!(dscp(text).ok(), Some(expected), "{text}");
        }
        for text in ["", "EF", "cs8", "af10", "af14", "af50", "46", "copy "] {
            assert!(dscp(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_interface_address_is_one_machine_in_a_network() {
        for text in ["10.0.0.1/24", "10.0.0.0/31", "10.0.0.1/32", "fd00::1/64", "fd00::/128", "fd00::/127"] {
            assert!(interface_address(text).is_ok(), "{text}");
        }
        for text in
            ["10.0.0.1", "10.0.0.0/24", "10.0.0.255/24", "127.0.0.1/8", "fd00::/64", "::/0", "10.0.0.1/33", "x/24"]
        {
            assert!(interface_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_prefix_has_no_bits_beyond_its_length() {
        assert_eq!(allowed_prefix("10.0.0.0/8").ok(), "10.0.0.0/8".parse().ok());
        assert_eq!(allowed_prefix("10.0.0.5").ok(), "10.0.0.5/32".parse().ok());
        assert_eq!(allowed_prefix("0.0.0.0/0").ok(), "0.0.0.0/0".parse().ok());
        assert_eq!(
            allowed_prefix("10.0.0.5/8").unwrap_err().remedy,
            "write \"10.0.0.0/8\" for the network, or \"10.0.0.5/32\" for one address"
        );
        assert_eq!(allowed_prefix("0.0.0.0/1").ok(), "0.0.0.0/1".parse().ok());
        assert_eq!(allowed_prefix("::/0").ok(), "::/0".parse().ok());
        for text in [
            "224.0.0.0/4",
            "127.0.0.0/8",
            "127.0.0.1/32",
            "255.255.255.255/32",
            "0.0.0.0/32",
            "0.0.0.0/8",
            "::1/128",
            "ff00::/8",
        ] {
            assert!(allowed_prefix(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_says_on_which_side_it_is_wrong() {
        assert_eq!(number::<u16>(5, 1..=10, "").ok(), Some(5));
        assert!(number::<u16>(0, 1..=10, "").unwrap_err().what.contains("small"));
        assert!(number::<u16>(-70_000, 1..=10, "").unwrap_err().what.contains("small"));
        assert!(number::<u16>(70_000, 1..=10, "").unwrap_err().what.contains("large"));
        assert!(number::<u16>(11, 1..=10, "").unwrap_err().remedy.contains("from 1 to 10"));
    }
}

//! The check of what may be exposed: `tcp/8080` here, `tcp/10.30.0.0/24:8080` in a network behind this machine.
//!
//! Owns that syntax and the guesses at what was meant. What it permits is the core's.
//!
//! ```text
//! PROTOCOL [/PORTS]              at this machine's own tunnel addresses
//! PROTOCOL /NETWORK [:PORTS]     in a network: 10.30.0.0/24, 10.30.0.5, [fd30::]/64, [fd30::5]
//! ```

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use super::error::quote;
use super::scope::Refusal;
use super::value::{Checked, unusable};
use crate::proto::policy::{Exposure, PortRange, Service};

const RULE: &str = "write \"tcp/8080\", \"udp/53\", a range such as \"tcp/8000-8099\", or \"icmp-echo\" for pings alone; in a \
                    network behind this machine \"tcp/10.30.0.0/24:8080\" or \"tcp/[fd30::]/64:8080\"";
const PROTOCOLS: [&str; 5] = ["tcp", "udp", "icmp-echo", "any", "ip"];

/// A service and where it is exposed.
pub(super) fn exposure(text: &str) -> Checked<Exposure> {
    match text.split_once('/') {
        Some((protocol, at)) if at.contains(['.', ':', '[']) => behind(text, protocol, at),
        _ => service(text, text).map(Exposure::from),
    }
}

/// A service in a network.
fn behind(text: &str, protocol: &str, at: &str) -> Checked<Exposure> {
    if !PROTOCOLS.contains(&protocol) {
        return Err(unknown_protocol(text, protocol, at));
    }
    let (network, selector) = destination(text, protocol, at)?;
    let service = match (protocol, selector) {
        ("any" | "icmp-echo", Some(_)) => {
            let remedy = format!("write \"{protocol}/{}\", or the port behind tcp or udp", shown(network));
            return Err(Refusal::new(format!("{} names a port, and {protocol} has none", quote(text)), remedy));
        }
        ("ip", None) => {
            let remedy = format!("write \"ip/{}:47\" with its number", shown(network));
            return Err(Refusal::new(format!("{} does not say which IP protocol", quote(text)), remedy));
        }
        (_, None) => service(protocol, text)?,
        (_, Some(selector)) => service(&format!("{protocol}/{selector}"), text)?,
    };
    usable_network(network, text)?;
    Ok(service.within(network))
}

/// Splits `NETWORK[:PORTS]`.
fn destination<'t>(text: &str, protocol: &str, at: &'t str) -> Checked<(IpNet, Option<&'t str>)> {
    let no_network = || Refusal::new(format!("{} names no network", quote(text)), RULE);
    if let Some(rest) = at.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(no_network)?;
        if let Ok(network) = address.parse::<Ipv6Net>() {
            let remedy = format!("write \"{protocol}/{}{rest}\"", shown(network.into()));
            return Err(Refusal::new(format!("{} has the prefix length inside the brackets", quote(text)), remedy));
        }
        let (length, selector) = split_selector(rest);
        let address: Ipv6Addr = address.parse().map_err(|_| no_network())?;
        let network = format!("{address}{}", if length.is_empty() { "/128" } else { length });
        return Ok((network.parse().map_err(|_| no_network())?, selector));
    }
    if at.matches(':').count() > 1 {
        return Err(without_brackets(text, protocol, at).unwrap_or_else(no_network));
    }
    let (network, selector) = split_selector(at);
    let alone = || network.parse::<IpAddr>().map(IpNet::from);
    Ok((network.parse().or_else(|_| alone()).map_err(|_| no_network())?, selector))
}

fn split_selector(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(network, selector)| (network, Some(selector)))
}

/// The refusal of an IPv6 address without brackets: where it ends and a port begins can't be told.
fn without_brackets(text: &str, protocol: &str, at: &str) -> Option<Refusal> {
    let network =
        |text: &str| text.parse::<Ipv6Net>().ok().or_else(|| text.parse::<Ipv6Addr>().ok().map(Ipv6Net::from));
    let with_port = || at.rsplit_once(':').and_then(|(before, port)| Some((network(before)?, format!(":{port}"))));
    let (network, port) = network(at).map(|network| (network, String::new())).or_else(with_port)?;
    let remedy = format!("write \"{protocol}/{}{port}\"", shown(network.into()));
    Some(Refusal::new(format!("{} has an IPv6 address without brackets", quote(text)), remedy))
}

/// As it is configured.
fn shown(network: IpNet) -> String {
    let exposure = Service::Any.within(network).to_string();
    exposure.trim_start_matches("any/").to_owned()
}

fn usable_network(network: IpNet, text: &str) -> Checked<()> {
    if network != network.trunc() {
        let what = format!("{} has bits set beyond its prefix length", quote(text));
        let (all, one) = (shown(network.trunc()), shown(network.addr().into()));
        return Err(Refusal::new(what, format!("write {all} for the network, or {one} for one address")));
    }
    let is_everything = network.prefix_len() == 0;
    match unusable(network.addr()).filter(|_| !is_everything) {
        Some(why) => Err(Refusal::new(format!("{} names {why}", quote(text)), "write a network behind this machine")),
        None => Ok(()),
    }
}

fn unknown_protocol(text: &str, protocol: &str, at: &str) -> Refusal {
    let is_network = protocol.parse::<IpAddr>().is_ok() || protocol.starts_with('[');
    let what = format!("{} does not say of which protocol", quote(text));
    if is_network {
        return Refusal::new(what, format!("write \"tcp/{protocol}/{at}\" or \"udp/{protocol}/{at}\""));
    }
    match similar(protocol) {
        Some(meant) => Refusal::new(what, format!("did you mean \"{meant}/{at}\"?")),
        None => Refusal::new(what, RULE),
    }
}

/// The protocol that was probably meant: one letter is wrong, missing, too many or exchanged with the next.
fn similar(protocol: &str) -> Option<&'static str> {
    if matches!(protocol, "icmp" | "ping" | "echo" | "icmpv6") {
        return Some("icmp-echo");
    }
    PROTOCOLS.into_iter().find(|known| strsim::osa_distance(protocol, known) == 1)
}

/// The service that `text` names, without a network. Messages quote `written`, which is what the file says.
fn service(text: &str, written: &str) -> Checked<Service> {
    let refused = |what: String| Err(Refusal::new(what, RULE));
    let not_known = || refused(format!("{} is no port of a protocol", quote(written)));
    match (text, text.split_once('/')) {
        ("any", _) => Ok(Service::Any),
        ("icmp-echo", _) => Ok(Service::Echo),
        ("tcp", _) => Ok(Service::Tcp(PortRange::ALL)),
        ("udp", _) => Ok(Service::Udp(PortRange::ALL)),
        (_, Some(("tcp", ports))) => port_range(ports).map_or_else(not_known, |range| Ok(Service::Tcp(range))),
        (_, Some(("udp", ports))) => port_range(ports).map_or_else(not_known, |range| Ok(Service::Udp(range))),
        (_, Some(("ip", number))) => match plain_number(number).and_then(|number| u8::try_from(number).ok()) {
            Some(number) => Ok(Service::Protocol(number)),
            None => refused(format!("{} is no IP protocol: their numbers go from 0 to 255", quote(written))),
        },
        (port, _) if port_range(port).is_some() => {
            let remedy = format!("write \"tcp/{port}\" or \"udp/{port}\"");
            Err(Refusal::new(format!("{} does not say of which protocol", quote(written)), remedy))
        }
        (_, Some((port, protocol @ ("tcp" | "udp")))) if port_range(port).is_some() => {
            let what = format!("{} has the protocol behind the port", quote(written));
            Err(Refusal::new(what, format!("write \"{protocol}/{port}\"")))
        }
        (_, Some((protocol, ports))) if !PROTOCOLS.contains(&protocol) && similar(protocol).is_some() => {
            let meant = similar(protocol).expect("asked just before");
            let remedy = format!("did you mean \"{meant}/{ports}\"?");
            Err(Refusal::new(format!("{} is no port of a protocol", quote(written)), remedy))
        }
        _ => not_known(),
    }
}

/// "8080" or "8000-8099"; port 0 is none.
fn port_range(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = PortRange { first: plain_number(first)?, last: plain_number(last)? };
    (range.first > 0 && range.first <= range.last).then_some(range)
}

fn plain_number(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_written_as_it_is_shown() {
        for text in [
            "any",
            "icmp-echo",
            "tcp",
            "udp",
            "tcp/8080",
            "udp/53",
            "tcp/8000-8099",
            "ip/47",
            "tcp/10.30.0.0/24:8080",
            "udp/10.30.0.5:53",
            "tcp/10.30.0.0/24",
            "tcp/10.30.0.0/24:8000-8099",
            "any/10.30.0.0/24",
            "any/0.0.0.0/0",
            "any/[::]/0",
            "icmp-echo/10.30.0.0/24",
            "ip/10.30.0.0/24:47",
            "tcp/[fd30::]/64:8080",
            "tcp/[fd30::5]:8080",
            "any/[fd30::]/64",
        ] {
            assert_eq!(exposure(text).map(|exposure| exposure.to_string()).ok().as_deref(), Some(text));
        }
        assert_eq!(exposure("tcp/80-80").ok(), Some(Service::Tcp(80.into()).into()));
        assert_eq!(exposure("udp/10.30.0.5/32:53").unwrap().to_string(), "udp/10.30.0.5:53");
    }

    #[test]
    fn a_service_that_is_none_is_refused_with_what_was_meant() {
        for text in
            ["", "tcp/", "tcp/0", "tcp/90-80", "tcp/70000", "tcp/+80", "tcp/80/81", "tcp/80-", "http", "sctp/80"]
        {
            assert!(exposure(text).unwrap_err().what.ends_with("is no port of a protocol"), "{text}");
        }
        assert!(exposure("ip/256").unwrap_err().what.contains("from 0 to 255"));
        for (text, remedy) in [
            ("8080", "write \"tcp/8080\" or \"udp/8080\""),
            ("53/udp", "write \"udp/53\""),
            ("tpc/8080", "did you mean \"tcp/8080\"?"),
            ("tpc/10.30.0.0/24:8080", "did you mean \"tcp/10.30.0.0/24:8080\"?"),
            ("icmp/10.30.0.0/24", "did you mean \"icmp-echo/10.30.0.0/24\"?"),
            ("10.30.0.0/24:8080", "write \"tcp/10.30.0.0/24:8080\" or \"udp/10.30.0.0/24:8080\""),
            ("tcp/fd30::/64", "write \"tcp/[fd30::]/64\""),
            ("tcp/fd30::/64:8080", "write \"tcp/[fd30::]/64:8080\""),
            ("tcp/[fd30::/64]:8080", "write \"tcp/[fd30::]/64:8080\""),
            ("tcp/10.30.0.7/24:8080", "write 10.30.0.0/24 for the network, or 10.30.0.7 for one address"),
            ("any/10.30.0.0/24:8080", "write \"any/10.30.0.0/24\", or the port behind tcp or udp"),
            ("ip/10.30.0.0/24", "write \"ip/10.30.0.0/24:47\" with its number"),
        ] {
            assert_eq!(exposure(text).unwrap_err().remedy, remedy, "{text}");
        }
    }

    #[test]
    fn a_refusal_quotes_what_the_file_says() {
        for text in
            ["tcp/99999", "tcp/10.30.0.0/24:99999", "udp/[fd30::]/64:0", "tcp/10.30.0.5:90-80", "ip/10.30.0.0/24:256"]
        {
            let what = exposure(text).unwrap_err().what;
            assert!(what.starts_with(&format!("\"{text}\" ")), "{what}");
        }
    }

    #[test]
    fn a_destination_that_is_none_is_refused() {
        for text in [
            "tcp/10.30.0.0/33:80",
            "tcp/10.30.0:80",
            "tcp/[fd30::]/129:80",
            "tcp/[fd30::",
            "tcp/[10.30.0.0]/24:80",
            "tcp/example.com:80",
            "tcp/10.30.0.0/24:0",
            "tcp/10.30.0.0/24:",
            "tcp/127.0.0.0/8:80",
            "tcp/224.0.0.0/4",
            "udp/255.255.255.255:67",
            "udp/[ff02::1]:53",
            "any/[::1]",
            "tcp/[::ffff:10.0.0.1]:80",
            "tcp/0.0.0.0:80",
        ] {
            assert!(exposure(text).is_err(), "{text}");
        }
    }
}

//! The table as a file for `nft -f`: for machines whose daemon has not the privilege to set it.

use std::fmt::Write as _;

use super::messages::{COMMENT, POSTROUTING, PREROUTING, PRIORITIES};
use super::rules::GuardRules;
use super::table_name;

/// Has `nft -f` set what [`apply`](super::apply) would.
pub fn script(rules: &GuardRules) -> String {
    let table = table_name(&rules.interface);
    let mut text = format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
    let _ = writeln!(text, "    comment \"{COMMENT}\"");
    for (is_v4, suffix, kind) in [(true, '4', "ipv4_addr"), (false, '6', "ipv6_addr")] {
        let addresses = rules.addresses.iter().filter(|address| address.is_ipv4() == is_v4);
        let _ = writeln!(text, "    set addresses{suffix} {{ type {kind};{} }}", elements(addresses));
        let networks = rules.networks.iter().filter(|network| network.addr().is_ipv4() == is_v4);
        let networks = elements(networks);
        let _ = writeln!(text, "    set networks{suffix} {{ type {kind}; flags interval; auto-merge;{networks} }}");
    }
    write_chain(&mut text, rules, PREROUTING);
    write_chain(&mut text, rules, POSTROUTING);
    text.push_str("}\n");
    text
}

fn elements<T: ToString>(all: impl Iterator<Item = T>) -> String {
    let all: Vec<String> = all.map(|one| one.to_string()).collect();
    if all.is_empty() { String::new() } else { format!(" elements = {{ {} }}", all.join(", ")) }
}

fn write_chain(text: &mut String, rules: &GuardRules, chain: &str) {
    let is_in = chain == PREROUTING;
    let [by, end, other, port] =
        if is_in { ["iifname", "daddr", "saddr", "dport"] } else { ["oifname", "saddr", "daddr", "sport"] };
    let priority = PRIORITIES[usize::from(!is_in)];
    let _ = writeln!(text, "    chain {chain} {{");
    let _ = writeln!(text, "        type filter hook {chain} priority {priority}; policy accept;");
    let _ = writeln!(text, "        {by} \"lo\" accept\n        {by} \"{}\" accept", rules.interface);
    let refuse = |text: &mut String, end: &str, set: &str| {
        let _ = writeln!(text, "        ip {end} @{set}4 counter drop\n        ip6 {end} @{set}6 counter drop");
    };
    refuse(text, end, "addresses");
    if is_in {
        refuse(text, other, "addresses");
    } else if let Some(mark) = rules.fwmark {
        let _ = writeln!(text, "        meta mark {mark} accept");
    }
    for number in &rules.ports {
        let _ = writeln!(text, "        udp {port} {number} accept");
    }
    refuse(text, other, "networks");
    text.push_str("    }\n");
}

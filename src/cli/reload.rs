//! `underpass reload`: has a running daemon read its configuration file again, and prints what was different.

use std::fmt::Write as _;
use std::io::Write;

use ipnet::IpNet;

use super::Failure;
use super::arguments::DaemonArguments;
use crate::control::api::Reload;
use crate::control::client;

/// Asks the daemon and writes to `out` what it has changed.
pub fn run(arguments: &DaemonArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let reload = client::reload(&arguments.socket()?)?;
    Ok(out.write_all(render(&reload).as_bytes())?)
}

fn render(reload: &Reload) -> String {
    let Reload { config, added, removed, changed, keys, needs_restart, left, notes, refused } = reload;
    let mut text = format!("{} is in effect", config.display());
    let is_same = added.is_empty() && removed.is_empty() && changed.is_empty() && keys.is_empty();
    text += if is_same { ", nothing was changed\n" } else { "\n" };
    let mut line = |what: &str, of: &str| {
        let _ = writeln!(text, "  {what:<14} {of}");
    };
    added.iter().for_each(|peer| line("added", peer));
    removed.iter().for_each(|peer| line("removed", peer));
    changed.iter().for_each(|peer| line("changed", &format!("{}: {}", peer.name, peer.keys.join(", "))));
    keys.iter().for_each(|key| line("changed", key));
    needs_restart.iter().for_each(|key| line("needs restart", key));
    left.iter().for_each(|problem| line("left behind", problem));
    notes.iter().for_each(|note| line("look again", note));
    refused.iter().for_each(|network| line("still refused", &still_refused(network)));
    text
}

/// Of a network that is not configured any longer.
pub(super) fn still_refused(network: &IpNet) -> String {
    format!("{network}; `underpass open {network}` lets it pass in the clear")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::ChangedPeer;

    #[test]
    fn every_change_has_its_line() {
        let changed = ChangedPeer { name: "app1".into(), keys: vec!["endpoint".into(), "allowed_ips".into()] };
        let reload = Reload {
            config: "/etc/underpass/proxy.toml".into(),
            added: vec!["app3".into()],
            removed: vec!["app2".into()],
            changed: vec![changed],
            keys: vec!["interface.fwmark".into()],
            needs_restart: vec!["interface.workers".into()],
            left: vec![],
            notes: vec!["app1: its public_key was replaced".into()],
            refused: vec!["10.1.0.0/16".parse().unwrap()],
        };
        let expected = "\
/etc/underpass/proxy.toml is in effect
  added          app3
  removed        app2
  changed        app1: endpoint, allowed_ips
  changed        interface.fwmark
  needs restart  interface.workers
  look again     app1: its public_key was replaced
  still refused  10.1.0.0/16; `underpass open 10.1.0.0/16` lets it pass in the clear
";
        assert_eq!(render(&reload), expected);
        let same = Reload { config: "x.toml".into(), ..Reload::default() };
        assert_eq!(render(&same), "x.toml is in effect, nothing was changed\n");
    }
}

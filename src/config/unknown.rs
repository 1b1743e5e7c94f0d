//! Refuses keys that do not exist and tables of the wrong shape, and takes them out, so that the rest can be judged.
//!
//! Owns the guesses at what was meant. Which keys exist is `raw`'s.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Problems, quote};
use super::raw::{RawConfig, RawHealth, RawInterface, RawPeer, keys_of};

/// How alike two keys are when one can stand for the other: `adress` and `ListenPort` pass, `port` and `mtu` do not.
const ALIKE: f64 = 0.8;

const INTERFACE: &str = "interface";
const HEALTH: &str = "health";
const PEER_TABLES: [&str; 2] = ["backend", "proxy"];

/// Leaves in `root` only what `RawConfig` can hold.
pub(super) fn refuse_unknown(root: &mut DeTable<'_>, problems: &mut Problems<'_>) {
    keep_known(root, &Place { table: "", keys: keys_of::<RawConfig>() }, problems);
    for place in single_tables() {
        if root.get_mut(place.table).is_some_and(|value| !keep_table(&place, value, problems)) {
            root.remove(place.table);
        }
    }
    for table in PEER_TABLES {
        if root.get_mut(table).is_some_and(|value| !keep_peers(table, value, problems)) {
            root.remove(table);
        }
    }
}

/// A table of the file: its name, empty at the top, and the keys it may have.
struct Place {
    table: &'static str,
    keys: &'static [&'static str],
}

/// The tables that a file has once at most.
fn single_tables() -> [Place; 2] {
    [Place { table: INTERFACE, keys: keys_of::<RawInterface>() }, Place { table: HEALTH, keys: keys_of::<RawHealth>() }]
}

fn keep_table(place: &Place, value: &mut Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> bool {
    let (span, table) = (value.span(), place.table);
    match value.get_mut() {
        DeValue::Table(entries) => {
            keep_known(entries, place, problems);
            true
        }
        DeValue::Array(_) => {
            let what = format!("there is only one {table} for each daemon");
            let remedy = format!("write [{table}] with single brackets, once; run a second daemon for another");
            problems.push(span, table, what, remedy);
            false
        }
        _ => {
            let remedy = format!("write [{table}] and its keys on the lines below");
            problems.push(span, table, "this is a table", remedy);
            false
        }
    }
}

fn keep_peers(table: &'static str, value: &mut Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> bool {
    let span = value.span();
    let remedy = format!("write [[{table}]] with double brackets before the keys of each {table}");
    match value.get_mut() {
        DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => {
            for item in items.iter_mut() {
                if let DeValue::Table(entries) = item.get_mut() {
                    keep_known(entries, &Place { table, keys: keys_of::<RawPeer>() }, problems);
                }
            }
            true
        }
        DeValue::Table(_) => {
            problems.push(span, table, format!("[{table}] with single brackets is one table, not a list"), remedy);
            false
        }
        _ => {
            problems.push(span, table, "this is a list of tables", remedy);
            false
        }
    }
}

fn keep_known(table: &mut DeTable<'_>, place: &Place, problems: &mut Problems<'_>) {
    let unknown: Vec<_> = table.keys().filter(|key| !place.keys.contains(&&**key.get_ref())).cloned().collect();
    for key in unknown {
        table.remove(&**key.get_ref());
        refuse(key.get_ref(), key.span(), place, problems);
    }
}

fn refuse(name: &str, span: Range<usize>, place: &Place, problems: &mut Problems<'_>) {
    let quoted = quote(name);
    let key = match place.table {
        "" => quoted.trim_matches('"').to_owned(),
        table => format!("{table}.{}", quoted.trim_matches('"')),
    };
    let what = match place.table {
        "" => format!("there is no key {quoted} at the top of the file"),
        table => format!("there is no key {quoted} in {}", header(table)),
    };
    problems.push(span, key, what, remedy(name, place));
}

fn remedy(name: &str, place: &Place) -> String {
    if name == "private_key" || name == "preshared_key" {
        return format!("keys are never in this file: put it in a file of its own and write `{name}_file`");
    }
    if let Some(table) = table_of(name) {
        return match table {
            "" => format!("`{name}` belongs at the top of the file, before the first [table]"),
            table => format!("`{name}` belongs in {}", header(table)),
        };
    }
    match similar(name, place.keys) {
        Some(key) => format!("did you mean `{key}`?"),
        None => format!("the keys here are {}", place.keys.join(", ")),
    }
}

fn header(table: &str) -> String {
    if PEER_TABLES.contains(&table) { format!("[[{table}]]") } else { format!("[{table}]") }
}

/// The table that does have the key `name`.
fn table_of(name: &str) -> Option<&'static str> {
    let top = Place { table: "", keys: keys_of::<RawConfig>() };
    let peer = Place { table: "backend", keys: keys_of::<RawPeer>() };
    let tables = [top].into_iter().chain(single_tables()).chain([peer]);
    tables.into_iter().find(|place| place.keys.contains(&name)).map(|place| place.table)
}

/// The key that was probably meant, also for names in the style of other programs: `AllowedIPs`, `listen-port`.
fn similar(name: &str, keys: &[&'static str]) -> Option<&'static str> {
    let folded: String = name.chars().filter(|c| !matches!(c, '_' | '-')).take(64).collect::<String>().to_lowercase();
    keys.iter()
        .map(|key| (likeness(&folded, &key.replace('_', "")), *key))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

fn likeness(written: &str, key: &str) -> f64 {
    let (short, long) = (written.len().min(key.len()), written.len().max(key.len()));
    // `keepalive` for `persistent_keepalive`, `cipher_suite` for `suite`.
    let holds_the_other = short > 3 && (key.contains(written) || written.contains(key));
    let held = if holds_the_other { ALIKE + short as f64 / long as f64 / 10.0 } else { 0.0 };
    strsim::jaro_winkler(written, key).max(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_what_was_meant() {
        for (written, meant) in [
            ("adresses", "addresses"),
            ("Address", "addresses"),
            ("ListenPort", "listen"),
            ("PrivateKey", "private_key_file"),
            ("key_file", "private_key_file"),
            ("MTU", "mtu"),
            ("fw_mark", "fwmark"),
            ("worker", "workers"),
            ("pin", "pin_workers"),
            ("busypoll", "busy_poll"),
            ("cipher_suite", "suite"),
        ] {
            assert_eq!(similar(written, keys_of::<RawInterface>()), Some(meant), "{written}");
        }
        for (written, meant) in [
            ("AllowedIPs", "allowed_ips"),
            ("PresharedKey", "preshared_key_file"),
            ("keepalive", "persistent_keepalive"),
            ("PublicKey", "public_key"),
            ("end_point", "endpoint"),
        ] {
            assert_eq!(similar(written, keys_of::<RawPeer>()), Some(meant), "{written}");
        }
        assert_eq!(similar("colour", keys_of::<RawInterface>()), None);
    }
}

//! From the text of a configuration file to a `Config`, or to everything that is wrong with it.
//!
//! Owns the order of judgement: syntax, then which keys exist, then types, then values, then what they mean together.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use toml::de::DeTable;
use toml::{Deserializer, Spanned};

use super::error::{ConfigError, Problems, printable};
use super::health;
use super::interface::{self, Draft};
use super::key_file::{Disk, KeyFiles, Unread};
use super::key_source::KeySource;
use super::peer::PeerTables;
use super::raw::{Field, RawConfig, RawInterface, RawPeer};
use super::unknown::refuse_unknown;
use super::{Config, Peer, Role, value};

/// Room for ten thousand peers with a hundred prefixes each.
const MAX_SIZE: u64 = 16 << 20;

impl Config {
    /// Reads and judges the file at `path` and the key files it names.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_within(path, None)
    }

    /// As [`load`](Self::load), where a sandbox lets nothing but these directories be read, if there are any.
    pub fn load_within(path: &Path, readable: Option<Vec<PathBuf>>) -> Result<Self, ConfigError> {
        let text = read(path)?;
        Self::parse(&text, path, &mut Disk::from_environment().within(readable))
    }

    /// As [`load`](Self::load), without a look at key files: for what has to do with addresses only. Its keys are of no use.
    pub fn load_without_keys(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read(path)?, path, &mut Unread::default())
    }

    /// Judges `text` as the content of `path`; relative names of key files begin at its directory. Only `files` is asked
    /// for what lies outside the text.
    pub fn parse(text: &str, path: &Path, files: &mut dyn KeyFiles) -> Result<Self, ConfigError> {
        let mut problems = Problems::new(text);
        let directory = path.parent().unwrap_or(Path::new(""));
        let raw = read_raw(text, &mut problems);
        let mut keys = KeySource { directory, files, directories: BTreeSet::new() };
        let config = raw.and_then(|raw| check(raw, &mut problems, &mut keys));
        match problems.into_error(path) {
            Some(error) => Err(error),
            None => Ok(config.expect("what is left out of a configuration was reported as a problem")),
        }
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes));
    read.map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > MAX_SIZE {
        let what = format!("the file is larger than {} MiB", MAX_SIZE >> 20);
        return Err(ConfigError::of_file(path, what, "name a configuration file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        ConfigError::of_file(path, format!("line {line} is not UTF-8 text"), "save the file as UTF-8")
    })
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    let shown = printable(path);
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "name a file that exists; docs/configuration.md shows the smallest".to_owned(),
        io::ErrorKind::PermissionDenied => format!("run as root, or let this user read it: `ls -l {shown}`"),
        _ => "name a configuration file".to_owned(),
    };
    ConfigError::of_file(path, format!("it cannot be read: {error}"), remedy)
}

/// The file's shape. `None` when it is not even TOML.
fn read_raw(text: &str, problems: &mut Problems<'_>) -> Option<RawConfig> {
    let (mut root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What follows the first is often its consequence.
        let first = errors.iter().min_by_key(|error| error.span().map_or(0, |span| span.start))?;
        refuse_syntax(first, text, problems);
        return None;
    }
    refuse_unknown(root.get_mut(), problems);
    let raw = serde::Deserialize::deserialize(Deserializer::from(root));
    raw.map_err(|error| refuse_syntax(&error, text, problems)).ok()
}

fn refuse_syntax(error: &toml::de::Error, text: &str, problems: &mut Problems<'_>) {
    let remedy = "strings stand in \"quotes\", lists in [brackets], and every key has one line, once: `key = value`";
    let span = error.span().unwrap_or(0..0);
    problems.push(span.clone(), key_around(text, span.start), error.message(), remedy);
}

/// The table and key of the line at `offset`, read by eye: the parser gave up there.
fn key_around(text: &str, offset: usize) -> String {
    let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let header = before[..line_start].lines().rev().find(|line| line.trim_start().starts_with('['));
    let table = header.map(|header| header.trim().trim_matches(['[', ']'])).filter(is_word);
    let key = line.split_once('=').map(|(key, _)| key.trim()).filter(is_word);
    table.into_iter().chain(key).collect::<Vec<_>>().join(".")
}

/// Judges every part even if another was refused, so that all mistakes are reported at once.
fn check(raw: RawConfig, problems: &mut Problems<'_>, keys: &mut KeySource<'_>) -> Option<Config> {
    let role = check_role(raw.role, problems);
    refuse_tables_of_the_own_role(role, &raw.backend, &raw.proxy, problems);
    let interface_header = raw.interface.as_ref().map_or(0..0, Spanned::span);
    let draft = check_interface(raw.interface, role, problems, keys);
    let own = draft.as_ref().map(Draft::own_end).unwrap_or_default();
    let mut tables = PeerTables::new(&own);
    let mut peers = tables.check_all(Role::Proxy.peer_table(), raw.backend, problems, keys);
    peers.extend(tables.check_all(Role::Backend.peer_table(), raw.proxy, problems, keys));
    let health = health::check(role.unwrap_or(Role::Proxy), raw.health, problems);
    let ipv6 = own.addresses.iter().any(|address| address.addr().is_ipv6()) || peers.iter().any(uses_ipv6);
    let interface = draft?.finish(&mut interface::scope(problems, interface_header), ipv6)?;
    let key_directories = std::mem::take(&mut keys.directories);
    Some(Config { role: role?, interface, health, peers, key_directories })
}

fn check_role(raw: Option<Field<String>>, problems: &mut Problems<'_>) -> Option<Role> {
    let remedy = "write `role = \"proxy\"` beside the load balancer, `role = \"backend\"` beside an app server";
    let Some(field) = raw else {
        problems.push(0..0, "role", "this key is missing and has no default", remedy);
        return None;
    };
    let what = match field.value.map(|text| value::role(&text)) {
        Ok(Ok(role)) => return Some(role),
        Ok(Err(refusal)) => refusal.what,
        Err(wrong) => format!("this is {}, not {}", wrong.found, wrong.expected),
    };
    problems.push(field.span, "role", what, remedy);
    None
}

fn check_interface(
    raw: Option<Spanned<RawInterface>>,
    role: Option<Role>,
    problems: &mut Problems<'_>,
    keys: &mut KeySource<'_>,
) -> Option<Draft> {
    let Some(raw) = raw else {
        if !problems.mentions("interface") {
            let remedy = "write [interface], and below it at least `addresses` and `private_key_file`";
            problems.push(0..0, "interface", "this table is missing", remedy);
        }
        return None;
    };
    let header = raw.span();
    Some(Draft::new(raw.into_inner(), role, &mut interface::scope(problems, header), keys))
}

/// A proxy side lists its backends and a backend side its proxies, at least one.
fn refuse_tables_of_the_own_role(
    role: Option<Role>,
    backends: &[Spanned<RawPeer>],
    proxies: &[Spanned<RawPeer>],
    problems: &mut Problems<'_>,
) {
    let Some(role) = role else { return };
    let table = role.peer_table();
    let (own, other) = match role {
        Role::Proxy => (proxies, backends),
        Role::Backend => (backends, proxies),
    };
    if let Some(first) = own.first() {
        let what = format!("this file says role = \"{role}\", and its peers are [[{table}]] tables");
        let remedy = format!("write [[{table}]], or role = \"{table}\" if this machine is a {table}");
        problems.push(first.span(), role.to_string(), what, remedy);
    } else if other.is_empty() && !problems.mentions(table) {
        let remedy = format!("add a [[{table}]] table with `name`, `public_key` and `addresses`");
        problems.push(0..0, table, format!("there is no [[{table}]] to connect to"), remedy);
    }
}

fn uses_ipv6(peer: &Peer) -> bool {
    peer.allowed_ips.iter().any(|prefix| prefix.addr().is_ipv6())
}

#[cfg(test)]
pub(super) mod tests;

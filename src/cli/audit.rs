//! `underpass audit`: what an auditor asks of one machine, with its answers: algorithms, keys and their ages, who may reach
//! what, what the daemon has given up and refuses.
//!
//! What is configured comes from the file, what is so from the running daemon. Nothing is judged and nothing is changed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Failure;
use super::arguments::AuditArguments;
use super::lines::{HEADING, line, optional_line, reach_line, texts};
use super::quantity::ago;
use crate::config::{Config, Peer, SuiteChoice};
use crate::control::api::{GuardReport, GuardState, PeerReport, PrivilegedReport, SandboxReport, StatusReport};
use crate::control::client;
use crate::control::translate::proposed_suite;
use crate::dataplane::clock;
use crate::proto::constants::{REJECT_AFTER_TIME, REKEY_AFTER_TIME};
use crate::proto::noise::Suite;

/// Raised when a field of the JSON is renamed, removed or changes its meaning.
const SCHEMA_VERSION: u32 = 1;

/// Writes to `out` what is so. Without a daemon: what is configured, and then the failure.
pub fn run(arguments: &AuditArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let config = Config::load(&arguments.config)?;
    let status = client::status(&config.interface.control_socket);
    let audit = Audit::new(&arguments.config, &config, status.as_ref().ok(), clock::unix_time().as_secs());
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&audit).expect("an audit is plain data"))?;
    } else {
        audit.write(out)?;
    }
    out.flush()?;
    Ok(status.map(drop)?)
}

/// The answers. Holds no secret.
#[derive(Debug, Serialize)]
struct Audit {
    schema_version: u32,
    /// When it was asked, in seconds since 1970.
    unix_time: u64,
    /// Of the program that answers.
    version: &'static str,
    config: PathBuf,
    role: &'static str,
    algorithms: Algorithms,
    private_key: Key,
    /// The key before, while peers change over.
    previous_private_key: Option<Key>,
    fail_closed: bool,
    /// As configured.
    sandbox: bool,
    /// Null if no daemon runs.
    daemon: Option<Daemon>,
    peers: Vec<PeerAudit>,
}

#[derive(Debug, Serialize)]
struct Algorithms {
    /// The Noise protocols of which sessions can be, that which this side proposes first.
    handshakes: Vec<&'static str>,
    key_encapsulation: &'static str,
    /// Age of a session by which there is a successor.
    rekey_after_seconds: u64,
    /// Age at which it ends and its keys are erased.
    reject_after_seconds: u64,
}

/// A key of this machine in its file.
#[derive(Debug, Serialize)]
struct Key {
    public_key: String,
    #[serde(flatten)]
    file: KeyFile,
}

/// Where a secret is kept. What the system doesn't tell of it is null.
#[derive(Debug, Serialize)]
struct KeyFile {
    path: PathBuf,
    /// Permission bits in octal.
    mode: Option<String>,
    /// User's number.
    owner: Option<u32>,
    /// When the file was last written, in seconds since 1970.
    written: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Daemon {
    version: String,
    pid: u32,
    /// Set if its key is that of the file.
    runs_by_this_key: bool,
    sandbox: SandboxReport,
    guard: GuardReport,
}

#[derive(Debug, Serialize)]
struct PeerAudit {
    name: String,
    public_key: String,
    next_public_key: Option<String>,
    allowed_ips: Vec<String>,
    /// What it may reach here.
    exposes: Vec<String>,
    /// Null if there is none.
    preshared_key: Option<KeyFile>,
    /// Of the running daemon; null if there is none, or none that knows this peer.
    link: Option<Link>,
}

#[derive(Debug, Serialize)]
struct Link {
    state: &'static str,
    suite: Option<String>,
    /// When the newest session was agreed, with keys of its own, in seconds since 1970.
    last_rekey: Option<u64>,
    /// Since the daemon's start.
    handshakes: u64,
}

impl Audit {
    fn new(file: &Path, config: &Config, status: Option<&StatusReport>, unix_time: u64) -> Self {
        let interface = &config.interface;
        let own = interface.private_key.public_key().to_string();
        let key = |public_key: String, path: &Path| Key { public_key, file: KeyFile::of(path) };
        let previous = interface.previous_private_key.as_ref().zip(interface.previous_private_key_file.as_deref());
        Self {
            schema_version: SCHEMA_VERSION,
            unix_time,
            version: env!("CARGO_PKG_VERSION"),
            config: file.to_owned(),
            role: config.role.as_str(),
            algorithms: Algorithms::of(interface.suite, &interface.suites),
            private_key: key(own.clone(), &interface.private_key_file),
            previous_private_key: previous.map(|(previous, path)| key(previous.public_key().to_string(), path)),
            fail_closed: interface.fail_closed,
            sandbox: interface.sandbox.is_on(),
            daemon: status.map(|status| Daemon {
                version: status.interface.version.clone(),
                pid: status.interface.pid,
                runs_by_this_key: status.interface.public_key == own,
                sandbox: status.sandbox.clone(),
                guard: status.guard.clone(),
            }),
            peers: config.peers.iter().map(|peer| PeerAudit::new(peer, status)).collect(),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{HEADING}underpass {}, {} side{HEADING:#}", self.version, self.role)?;
        line(out, "configuration", self.config.display())?;
        line(
            out,
            "without it",
            if self.fail_closed { "packets for peers are refused" } else { "packets go another way" },
        )?;
        match &self.daemon {
            Some(daemon) => daemon.write(out)?,
            None => line(out, "daemon", "none answers")?,
        }
        self.algorithms.write(out)?;
        writeln!(out, "\n{HEADING}keys{HEADING:#}")?;
        self.private_key.write(out, "private key", self.unix_time)?;
        if let Some(previous) = &self.previous_private_key {
            previous.write(out, "previous key", self.unix_time)?;
        }
        self.peers.iter().try_for_each(|peer| peer.write(out, self.unix_time))
    }
}

impl Algorithms {
    fn of(choice: SuiteChoice, accepted: &[Suite]) -> Self {
        let first = proposed_suite(choice, accepted);
        let others = accepted.iter().copied().filter(|suite| *suite != first);
        Self {
            handshakes: std::iter::once(first).chain(others).map(Suite::noise_name).collect(),
            key_encapsulation: "ML-KEM-768",
            rekey_after_seconds: REKEY_AFTER_TIME.as_secs(),
            reject_after_seconds: REJECT_AFTER_TIME.as_secs(),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\n{HEADING}algorithms{HEADING:#}")?;
        let [proposed, accepted @ ..] = &self.handshakes[..] else { return Ok(()) };
        line(out, "proposes", format!("{proposed} with {} in each handshake", self.key_encapsulation))?;
        line(out, "accepts also", if accepted.is_empty() { "no other".to_owned() } else { accepted.join(", ") })?;
        let (rekey, end) = (self.rekey_after_seconds, self.reject_after_seconds);
        line(out, "session keys", format!("replaced after {rekey} s, erased after {end} s"))
    }
}

impl Daemon {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        line(out, "daemon", format!("version {}, process {}", self.version, self.pid))?;
        if !self.runs_by_this_key {
            line(out, "", "runs by another private key than this file's")?;
        }
        self.write_guard(out)?;
        let sandbox = &self.sandbox;
        line(out, "sandbox", if sandbox.on { "on" } else { "off" })?;
        if !sandbox.on {
            return Ok(());
        }
        let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        line(out, "capabilities", list(&sandbox.capabilities))?;
        if let Some(PrivilegedReport { pid, capabilities }) = &sandbox.privileged {
            line(out, "privileged", format!("process {pid}, {}", list(capabilities)))?;
        }
        let paths = |paths: &[PathBuf]| list(&paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>());
        line(out, "reads", paths(&sandbox.reads))?;
        line(out, "writes", paths(&sandbox.writes))?;
        sandbox.lacks.iter().try_for_each(|lack| line(out, "lacks", lack))
    }

    fn write_guard(&self, out: &mut dyn Write) -> io::Result<()> {
        let guard = &self.guard;
        let state = match guard.state {
            GuardState::On => "tunnel addresses are refused on other interfaces",
            GuardState::Off => "off: tunnel addresses are not refused on other interfaces",
            GuardState::Unavailable => "tunnel addresses are not refused on other interfaces by this daemon",
            GuardState::Unknown => "the daemon does not tell",
        };
        line(out, "guard", state)?;
        optional_line(out, "", guard.lacks.as_ref())?;
        guard.left_out.iter().try_for_each(|left| line(out, "", format!("but for {left}")))?;
        if guard.restored > 0 {
            line(out, "", format!("put back {} times since the daemon's start", guard.restored))?;
        }
        Ok(())
    }
}

impl Key {
    fn write(&self, out: &mut dyn Write, name: &str, now: u64) -> io::Result<()> {
        line(out, name, format!("of the public key {}", self.public_key))?;
        line(out, "", self.file.describe(now))
    }
}

impl KeyFile {
    fn of(path: &Path) -> Self {
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file);
        Self {
            path: path.to_owned(),
            mode: metadata.as_ref().map(|metadata| format!("{:04o}", metadata.mode() & 0o7777)),
            owner: metadata.as_ref().map(|metadata| metadata.uid()),
            written: metadata.and_then(|metadata| u64::try_from(metadata.mtime()).ok()),
        }
    }

    fn describe(&self, now: u64) -> String {
        let path = self.path.display();
        match (&self.mode, self.owner, self.written) {
            (Some(mode), Some(owner), Some(written)) => {
                format!("{path}, mode {mode}, of user {owner}, written {}", ago(now.saturating_sub(written)))
            }
            _ => format!("{path}, which is no file to be looked at"),
        }
    }
}

impl PeerAudit {
    fn new(peer: &Peer, status: Option<&StatusReport>) -> Self {
        let key = peer.public_key.to_string();
        let report = status.and_then(|status| status.peers.iter().find(|report| report.public_key == key));
        Self {
            name: peer.name.clone(),
            public_key: key,
            next_public_key: peer.next_public_key.map(|key| key.to_string()),
            allowed_ips: texts(&peer.allowed_ips),
            exposes: texts(&peer.expose),
            preshared_key: peer.preshared_key_file.as_deref().map(KeyFile::of),
            link: report.map(Link::of),
        }
    }

    fn write(&self, out: &mut dyn Write, now: u64) -> io::Result<()> {
        writeln!(out, "\n{HEADING}{}{HEADING:#}", self.name)?;
        line(out, "public key", &self.public_key)?;
        optional_line(out, "next key", self.next_public_key.as_ref())?;
        let preshared = self.preshared_key.as_ref().map_or_else(|| "none".to_owned(), |file| file.describe(now));
        line(out, "preshared key", preshared)?;
        line(out, "may speak for", self.allowed_ips.join(", "))?;
        reach_line(out, &self.exposes)?;
        match &self.link {
            Some(link) => link.write(out, now),
            None => line(out, "link", "unknown to a running daemon"),
        }
    }
}

impl Link {
    fn of(report: &PeerReport) -> Self {
        Self {
            state: report.state.as_str(),
            suite: report.suite.clone(),
            last_rekey: report.latest_handshake,
            handshakes: report.handshakes,
        }
    }

    fn write(&self, out: &mut dyn Write, now: u64) -> io::Result<()> {
        let suite = self.suite.as_ref().map(|suite| format!(", {suite}")).unwrap_or_default();
        line(out, "link", format!("{}{suite}", self.state))?;
        let rekey = self.last_rekey.map_or_else(|| "never".to_owned(), |then| ago(now.saturating_sub(then)));
        line(out, "last rekey", format!("{rekey}, {} since the daemon's start", self.handshakes))
    }
}

//! `underpass doctor`: what is wrong with one link, the most likely cause first, each with what mends it.
//!
//! Only finding the daemon and its file, and printing. What facts mean is `control::doctor`'s.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use tokio::runtime::Builder;

use super::arguments::DoctorArguments;
use super::{Exit, Failure};
use crate::config::Config;
use crate::control::api::{PeerReport, StatusReport};
use crate::control::client::ClientError;
use crate::control::doctor::{self, Cause, Facts, Question, Weight};

/// Raised when a field of the JSON is renamed, removed or changes its meaning.
const SCHEMA_VERSION: u32 = 1;
/// The directory that is searched for configuration files if no daemon says where its own is.
const CONFIG_DIRECTORY: &str = "/etc/underpass";

/// Why the exit code is not 0.
#[derive(Debug, thiserror::Error)]
enum Ill {
    #[error("{peer}: something is wrong")]
    Wrong { peer: String },
    #[error("no peer is called {peer}; there are: {}", .known.join(", "))]
    UnknownPeer { peer: String, known: Vec<String> },
    #[error(
        "{peer}: no daemon answers, and no file in {CONFIG_DIRECTORY} has a peer of that name: name one with --config"
    )]
    NoFile { peer: String, source: ClientError },
}

/// Finds out, and writes it to `out`.
pub fn run(arguments: &DoctorArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let facts = runtime.block_on(doctor::gather(question(arguments)?));
    // Not dropped, which would wait for a look-up that hangs.
    runtime.shutdown_background();
    let causes = doctor::diagnose(&facts);
    if arguments.json {
        let report = Report { schema_version: SCHEMA_VERSION, causes: &causes, facts: &facts };
        writeln!(out, "{}", serde_json::to_string_pretty(&report).expect("facts are plain data"))?;
    } else {
        write(&facts, &causes, out)?;
    }
    if causes.iter().any(Cause::is_fault) {
        out.flush()?;
        return Err(Failure::new(Exit::Unverified, Ill::Wrong { peer: facts.peer }));
    }
    Ok(())
}

/// Asks the daemon that is meant, and finds its configuration file; or the file first, which says where a daemon would be.
fn question(arguments: &DoctorArguments) -> Result<Question, Failure> {
    let peer = arguments.peer.clone();
    let named = arguments.config.as_ref().map(|path| (path.clone(), Config::load(path)));
    let socket = match &named {
        Some((_, Ok(config))) if arguments.daemon.socket.is_none() && arguments.daemon.interface.is_none() => {
            Ok(config.interface.control_socket.clone())
        }
        _ => arguments.daemon.socket(),
    };
    let (status, changes) = match socket {
        Ok(socket) => doctor::ask(&socket),
        Err(error) => (Err(error), None),
    };
    let status = match status {
        Err(error @ (ClientError::NoPermission { .. } | ClientError::SeveralRunning { .. })) => {
            return Err(error.into());
        }
        status => status,
    };
    let found = || {
        let file = doctor::find_file(status.as_ref().ok(), &peer, Path::new(CONFIG_DIRECTORY))?;
        let config = Config::load(&file);
        Some((file, config))
    };
    let (file, config): (Option<PathBuf>, _) = match named.or_else(found) {
        Some((file, config)) => (Some(file), Some(config)),
        None => (None, None),
    };
    let known = known_peers(status.as_ref().ok(), config.as_ref().and_then(|config| config.as_ref().ok()));
    match status {
        Err(source) if config.is_none() => Err(Failure::new(Exit::Unreachable, Ill::NoFile { peer, source })),
        _ if !known.is_empty() && !known.contains(&peer) => {
            Err(Failure::new(Exit::Usage, Ill::UnknownPeer { peer, known }))
        }
        status => Ok(Question { peer, status, changes, file, config }),
    }
}

fn known_peers(status: Option<&StatusReport>, config: Option<&Config>) -> Vec<String> {
    let running = status.iter().flat_map(|status| &status.peers).map(|peer| peer.name.clone());
    let configured = config.iter().flat_map(|config| &config.peers).map(|peer| peer.name.clone());
    let mut known: Vec<String> = running.chain(configured).collect();
    known.sort();
    known.dedup();
    known
}

/// The whole answer as JSON.
#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    /// The most likely first. Empty: nothing is wrong.
    causes: &'a [Cause],
    facts: &'a Facts,
}

fn write(facts: &Facts, causes: &[Cause], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{BOLD}{}{BOLD:#}: {}", facts.peer, summary(facts.daemon.link.as_ref()))?;
    if !causes.iter().any(Cause::is_fault) {
        writeln!(out, "  nothing is wrong, as far as it can be seen from here")?;
    }
    for cause in causes {
        let (word, style) = word(cause.weight);
        writeln!(out, "  {style}{word:<8}{style:#}  {}", cause.what)?;
        writeln!(out, "  {:<8}  → {}", "", cause.remedy)?;
    }
    if let Some(link) = &facts.daemon.link {
        writeln!(out, "\n  this machine's key  {}", facts.own_key.as_deref().unwrap_or("-"))?;
        writeln!(out, "  the peer's key      {}", link.public_key)?;
    }
    Ok(())
}

fn summary(link: Option<&PeerReport>) -> String {
    let Some(link) = link else { return "nothing is known of its link".to_owned() };
    let reason = link.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
    let endpoint = link.endpoint.map_or_else(|| "no endpoint known".to_owned(), |endpoint| format!("at {endpoint}"));
    format!(
        "{}{reason}, {endpoint}, {} bytes received, {} sent",
        link.state.as_str(),
        link.received_bytes,
        link.sent_bytes
    )
}

fn word(weight: Weight) -> (&'static str, Style) {
    match weight {
        Weight::Certain => ("CAUSE", AnsiColor::Red.on_default().bold()),
        Weight::Likely => ("likely", AnsiColor::Red.on_default()),
        Weight::Possible => ("maybe", AnsiColor::Yellow.on_default()),
        Weight::Notice => ("note", Style::new().dimmed()),
    }
}

const BOLD: Style = Style::new().bold();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::doctor::{CauseKind, DaemonFacts, FileFacts};

    #[test]
    fn the_cause_comes_first_and_each_has_its_remedy() {
        let link = crate::control::api::tests::status().peers.remove(0);
        let facts = Facts {
            peer: "app1".into(),
            daemon: DaemonFacts { link: Some(link), ..DaemonFacts::default() },
            file: FileFacts::default(),
            own_key: Some("OURS".into()),
            names: vec![],
            routes: vec![],
            clock_synchronised: None,
            unserved_ports: vec![],
            serves_any_port: true,
        };
        let cause =
            |weight, what: &str| Cause { cause: CauseKind::Other, weight, what: what.into(), remedy: "mend it".into() };
        let text = |causes: &[Cause]| {
            let mut out = anstream::StripStream::new(Vec::new());
            write(&facts, causes, &mut out).unwrap();
            String::from_utf8(out.into_inner()).unwrap()
        };
        let expected = "\
app1: up, at 192.0.2.10:51900, 2048 bytes received, 3145728 sent
  CAUSE     it is broken
            → mend it
  note      the moon is full
            → mend it

  this machine's key  OURS
  the peer's key      AAAA
";
        let causes = [cause(Weight::Certain, "it is broken"), cause(Weight::Notice, "the moon is full")];
        assert_eq!(text(&causes), expected);
        assert!(text(&causes[1..]).contains("  nothing is wrong"));
    }
}

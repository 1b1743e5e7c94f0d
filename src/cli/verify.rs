//! `underpass verify`: checks an installation that runs, and says what to do.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use tokio::runtime::Builder;

use super::arguments::VerifyArguments;
use super::{Exit, Failure};
use crate::config::Config;
use crate::control::client;
use crate::control::verify::{self, Finding, Outcome, Port};

/// Raised when a field of the JSON is renamed, removed or changes its meaning.
const SCHEMA_VERSION: u32 = 1;

const HEADING: Style = Style::new().bold();

/// Why the exit code is not 0.
#[derive(Debug, thiserror::Error)]
enum Unverified {
    #[error("{failed} of {all} checks have failed")]
    Failed { failed: usize, all: usize },
    #[error("--port {peer}:{number}: {config} has no peer of that name", config = .config.display())]
    UnknownPeer { peer: String, number: u16, config: PathBuf },
    #[error("--port {address}: no peer in {config} has that address", config = .config.display())]
    UnknownAddress { address: SocketAddr, config: PathBuf },
}

/// Runs the checks and writes to `out` how they went.
pub fn run(arguments: &VerifyArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let config = Config::load(&arguments.config)?;
    check_names(arguments, &config)?;
    let status = client::status(&config.interface.control_socket);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let patience = Duration::from_secs(arguments.timeout);
    let findings = runtime.block_on(verify::verify(&config, status, &arguments.ports, patience));
    // Not dropped, which would wait for a look-up that hangs.
    runtime.shutdown_background();
    if arguments.json {
        let report =
            Report { schema_version: SCHEMA_VERSION, verdict: verify::verdict(&findings), findings: &findings };
        writeln!(out, "{}", serde_json::to_string_pretty(&report).expect("findings are plain data"))?;
    } else {
        write(&findings, out)?;
    }
    let failed = findings.iter().filter(|finding| finding.outcome == Outcome::Failed).count();
    if failed > 0 {
        out.flush()?;
        return Err(Failure::new(Exit::Unverified, Unverified::Failed { failed, all: findings.len() }));
    }
    Ok(())
}

fn check_names(arguments: &VerifyArguments, config: &Config) -> Result<(), Failure> {
    let Some(unknown) = arguments.ports.iter().find(|port| !port.is_known(config)) else { return Ok(()) };
    let Port { peer, address, number } = unknown;
    let config = arguments.config.clone();
    let error = match (peer, address) {
        (None, Some(address)) => Unverified::UnknownAddress { address: SocketAddr::new(*address, *number), config },
        _ => Unverified::UnknownPeer { peer: peer.clone().unwrap_or_default(), number: *number, config },
    };
    Err(Failure::new(Exit::Usage, error))
}

/// The whole answer as JSON.
#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    /// The worst outcome.
    verdict: Outcome,
    findings: &'a [Finding],
}

fn write(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    let mut heading: Option<Option<&str>> = None;
    for finding in findings {
        let peer = finding.peer.as_deref();
        if heading != Some(peer) {
            let gap = if heading.is_some() { "\n" } else { "" };
            writeln!(out, "{gap}{HEADING}{}{HEADING:#}", peer.unwrap_or("this machine"))?;
            heading = Some(peer);
        }
        let (word, style) = outcome(finding.outcome);
        writeln!(out, "  {style}{word:<7}{style:#}  {}", finding.what)?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "  {:<7}  → {remedy}", "")?;
        }
    }
    Ok(())
}

fn outcome(outcome: Outcome) -> (&'static str, Style) {
    match outcome {
        Outcome::Ok => ("ok", AnsiColor::Green.on_default()),
        Outcome::Skipped => ("skipped", Style::new().dimmed()),
        Outcome::Warning => ("warning", AnsiColor::Yellow.on_default()),
        Outcome::Failed => ("FAILED", AnsiColor::Red.on_default().bold()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::verify::Check;

    #[test]
    fn each_side_has_its_heading_and_each_failure_its_remedy() {
        let finding = |peer: Option<&str>, outcome, what: &str, remedy: Option<&str>| Finding {
            peer: peer.map(str::to_owned),
            check: Check::Port,
            outcome,
            what: what.to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let findings = [
            finding(None, Outcome::Ok, "runs", None),
            finding(Some("app1"), Outcome::Failed, "192.0.2.1:80 answers in the clear", Some("close it")),
            finding(Some("app1"), Outcome::Skipped, "no port was tried", None),
        ];
        let mut out = anstream::StripStream::new(Vec::new());
        write(&findings, &mut out).unwrap();
        let text = String::from_utf8(out.into_inner()).unwrap();
        let expected = "\
this machine
  ok       runs

app1
  FAILED   192.0.2.1:80 answers in the clear
           → close it
  skipped  no port was tried
";
        assert_eq!(text, expected);
    }
}

//! Where the log goes and how it looks: text, JSON, or entries of the journal with a field for each of an event's.
//!
//! What is logged at which level is each module's own; inner addresses, and more of keys than the beginning of a public one,
//! never above DEBUG.

mod journal;

use std::env;
use std::io::{self, IsTerminal};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use clap::ValueEnum;
use nix::sys::stat::fstat;
use tracing::Subscriber;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, registry};

use self::journal::Journal;

/// The filter where none is given.
pub const DEFAULT_FILTER: &str = "info";
/// The environment variable that holds a filter.
pub const FILTER_VARIABLE: &str = "UNDERPASS_LOG";
/// The environment variable that holds a format.
pub const FORMAT_VARIABLE: &str = "UNDERPASS_LOG_FORMAT";

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// The journal's where standard error leads there, else text
    Auto,
    /// Lines for people, on standard error
    Text,
    /// One JSON object for each line, on standard error
    Json,
    /// Entries with fields, sent to the systemd journal
    Journald,
}

/// What cannot be done as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum BadSetting {
    /// A filter that cannot be read.
    #[error("{origin}: \"{filter}\" is no log filter; use error, warn, info, debug or trace")]
    Filter {
        /// Who gave it.
        origin: &'static str,
        /// What it is.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A format that there is not.
    #[error("{FORMAT_VARIABLE}: \"{0}\" is no log format; use auto, text, json or journald")]
    Format(String),
}

/// Starts the log. By `filter`, else by [`FILTER_VARIABLE`], else at INFO; in `format`, else that of [`FORMAT_VARIABLE`], else
/// as fits standard error. `journal` is the way to the journal that a predecessor has left. Without effect the second time.
pub fn start(filter: Option<&str>, format: Option<LogFormat>, journal: Option<OwnedFd>) -> Result<(), BadSetting> {
    let filter = chosen_filter(filter)?;
    let stderr_is_journal = stderr_is_journal();
    let layer = match chosen_format(format)? {
        LogFormat::Auto if stderr_is_journal => Journal::of_system(journal).boxed(),
        LogFormat::Journald => Journal::of_system(journal).boxed(),
        LogFormat::Json => json(io::stderr),
        LogFormat::Text if stderr_is_journal => {
            fmt::layer().event_format(journal::PrefixedLine::new()).with_ansi(false).with_writer(io::stderr).boxed()
        }
        LogFormat::Text | LogFormat::Auto => {
            fmt::layer().with_ansi(wants_colour()).with_target(false).with_writer(io::stderr).boxed()
        }
    };
    let _ = registry().with(layer.with_filter(filter)).try_init();
    Ok(())
}

/// The way to the journal, if the log goes there, for a program that takes this one's place.
pub fn journal_socket() -> Option<BorrowedFd<'static>> {
    journal::socket()
}

fn chosen_filter(filter: Option<&str>) -> Result<EnvFilter, BadSetting> {
    let (origin, filter) = match (filter, variable(FILTER_VARIABLE)) {
        (Some(filter), _) => ("--log-level", filter.to_owned()),
        (None, Some(filter)) => (FILTER_VARIABLE, filter),
        (None, None) => ("default", DEFAULT_FILTER.to_owned()),
    };
    EnvFilter::builder().parse(&filter).map_err(|source| BadSetting::Filter { origin, filter, source })
}

fn chosen_format(format: Option<LogFormat>) -> Result<LogFormat, BadSetting> {
    match (format, variable(FORMAT_VARIABLE)) {
        (Some(format), _) => Ok(format),
        (None, Some(text)) => LogFormat::from_str(&text, true).map_err(|_| BadSetting::Format(text)),
        (None, None) => Ok(LogFormat::Auto),
    }
}

fn variable(name: &str) -> Option<String> {
    env::var_os(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned())
}

/// The fields beside time, level and target, not in an object of their own: `jq .peer`.
fn json<S, W>(writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false).with_writer(writer).boxed()
}

fn wants_colour() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Set if standard error is a stream to the journal (systemd.exec(5), `JOURNAL_STREAM`).
fn stderr_is_journal() -> bool {
    let Some(journal) = env::var_os("JOURNAL_STREAM") else { return false };
    fstat(io::stderr())
        .is_ok_and(|stderr| journal.as_bytes() == format!("{}:{}", stderr.st_dev, stderr.st_ino).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What a log has written.
    #[derive(Clone, Default)]
    pub(super) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_has_an_events_fields_beside_its_level_and_target() {
        let captured = Captured::default();
        let writer = captured.clone();
        let log = registry().with(json(move || writer.clone()));
        tracing::subscriber::with_default(log, || {
            tracing::warn!(target: "underpass::audit", peer = "app1", loss = 0.5, "link\ndown");
        });
        let line: serde_json::Value = serde_json::from_str(&captured.text()).unwrap();
        assert_eq!((&line["level"], &line["target"]), (&"WARN".into(), &"underpass::audit".into()));
        assert_eq!((&line["message"], &line["peer"]), (&"link\ndown".into(), &"app1".into()));
        assert_eq!(line["loss"], 0.5);
        assert!(line["timestamp"].is_string() && captured.text().matches('\n').count() == 1);
    }

    #[test]
    fn says_which_filter_cannot_be_read() {
        let error = chosen_filter(Some("underpass=loud")).unwrap_err().to_string();
        assert!(error.starts_with("--log-level: \"underpass=loud\""), "{error}");
    }
}

//! Where the log goes and how a line looks: standard error, with a timestamp only where nobody else adds one.
//!
//! What is logged at which level is each module's own; keys and inner addresses never above DEBUG.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The filter where none is given.
pub const DEFAULT_FILTER: &str = "info";
/// The environment variable that holds a filter.
pub const FILTER_VARIABLE: &str = "UNDERPASS_LOG";

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: \"{filter}\" is no log filter; use error, warn, info, debug or trace")]
pub struct BadFilter {
    /// Who gave it.
    origin: &'static str,
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Sends the log to standard error, by `filter`, else by [`FILTER_VARIABLE`], else at INFO. Without effect the second time.
pub fn start(filter: Option<&str>) -> Result<(), BadFilter> {
    let (origin, filter) = match (filter, env::var(FILTER_VARIABLE)) {
        (Some(filter), _) => ("--log-level", filter.to_owned()),
        (None, Ok(filter)) if !filter.is_empty() => (FILTER_VARIABLE, filter),
        _ => ("default", DEFAULT_FILTER.to_owned()),
    };
    let parsed = EnvFilter::builder().parse(&filter).map_err(|source| BadFilter { origin, filter, source })?;
    let log = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(io::stderr);
    let _ = if stderr_is_journal() {
        log.with_ansi(false).event_format(JournalFormat::new()).try_init()
    } else {
        log.with_ansi(wants_colour()).with_target(false).try_init()
    };
    Ok(())
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

/// The journal has its own timestamps, and takes the priority from a prefix (sd-daemon(3)).
struct JournalFormat(Format<Full, ()>);

impl JournalFormat {
    fn new() -> Self {
        Self(Format::default().without_time().with_level(false).with_target(false).with_ansi(false))
    }
}

impl<S> FormatEvent<S, DefaultFields> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    DefaultFields: for<'w> FormatFields<'w>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_for_the_journal_has_a_priority_and_no_timestamp() {
        let captured = Captured::default();
        let writer = captured.clone();
        let log =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(JournalFormat::new()).finish();
        tracing::subscriber::with_default(log, || tracing::warn!(peer = "app1", "link down"));
        let line = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        assert_eq!(line, "<4>link down peer=\"app1\"\n");
    }

    #[test]
    fn says_which_filter_cannot_be_read() {
        let error = start(Some("underpass=loud")).unwrap_err().to_string();
        assert!(error.starts_with("--log-level: \"underpass=loud\""), "{error}");
    }
}

//! Entries of the systemd journal, with a field for each of an event's (systemd's "Native Journal Protocol").
//!
//! The message has the fields in it too, so that `journalctl` without further arguments shows them.

use std::fmt::{self, Debug};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Sends events to a journal.
pub(super) struct Journal {
    /// None if the system gives none.
    socket: Option<&'static UnixDatagram>,
    path: PathBuf,
}

/// The socket that entries leave by, if the log goes to the journal.
pub(super) fn socket() -> Option<BorrowedFd<'static>> {
    OPEN.get()?.as_ref().map(UnixDatagram::as_fd)
}

/// One for the whole process, which in its sandbox can make no other.
static OPEN: OnceLock<Option<UnixDatagram>> = OnceLock::new();

/// One entry in the making.
struct Entry(Vec<u8>);

/// A line to the journal by a stream: that has its own timestamps, and takes the priority from a prefix (sd-daemon(3)).
pub(super) struct PrefixedLine(Format<Full, ()>);

impl Journal {
    /// The one of this machine, by the socket that a predecessor has left, if it has.
    pub(super) fn of_system(inherited: Option<OwnedFd>) -> Self {
        let socket = OPEN.get_or_init(|| match inherited {
            Some(inherited) => Some(inherited.into()),
            None => UnixDatagram::unbound().ok(),
        });
        Self { socket: socket.as_ref(), path: SOCKET.into() }
    }
}

impl<S> Layer<S> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let message = message(event);
        let entry = Entry::new(event, &message);
        // Not connected: the journal may be restarted.
        let sent = self.socket.as_ref().map(|socket| socket.send_to(&entry.0, &self.path));
        if !matches!(sent, Some(Ok(_))) {
            // Where the service manager leads it, which is the journal by another way. Nothing is left if that fails too.
            let _ = writeln!(io::stderr(), "<{}>{message}", priority(*event.metadata().level()));
        }
    }
}

impl Entry {
    fn new(event: &Event<'_>, message: &str) -> Self {
        let metadata = event.metadata();
        let mut entry = Self(Vec::new());
        entry.add("MESSAGE", message);
        entry.add("PRIORITY", &priority(*metadata.level()).to_string());
        entry.add("SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
        entry.add("TARGET", metadata.target());
        metadata.file().into_iter().for_each(|file| entry.add("CODE_FILE", file));
        metadata.line().into_iter().for_each(|line| entry.add("CODE_LINE", &line.to_string()));
        event.record(&mut entry);
        entry
    }

    fn add(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

/// The message itself is in the entry already.
impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != MESSAGE {
            self.add(&journal_name(field.name()), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl PrefixedLine {
    pub(super) fn new() -> Self {
        Self(Format::default().without_time().with_level(false).with_target(false).with_ansi(false))
    }
}

impl<S> FormatEvent<S, DefaultFields> for PrefixedLine
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

/// As the lines of text have it.
fn message(event: &Event<'_>) -> String {
    let mut text = String::new();
    // A string takes all that is written to it.
    let _ = DefaultFields::new().format_fields(Writer::new(&mut text), event);
    text
}

/// Upper-case letters, digits and underscores are allowed; the prefix keeps clear of the journal's own fields.
fn journal_name(field: &str) -> String {
    let allowed =
        |character: char| if character.is_ascii_alphanumeric() { character.to_ascii_uppercase() } else { '_' };
    "UNDERPASS_".chars().chain(field.chars().map(allowed)).collect()
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

const SOCKET: &str = "/run/systemd/journal/socket";
/// The field of a macro's text.
const MESSAGE: &str = "message";

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::registry;

    use super::super::tests::Captured;
    use super::*;

    #[test]
    fn an_entry_has_a_field_for_each_of_the_events() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let journal = UnixDatagram::bind(&path).unwrap();
        let log = registry().with(Journal { path, ..Journal::of_system(None) });
        tracing::subscriber::with_default(log, || {
            let endpoint = std::net::SocketAddr::from(([192, 0, 2, 1], 51900));
            tracing::warn!(target: "underpass::audit", peer = "app1", %endpoint, problems = 3, "link down");
        });
        let mut bytes = [0; 4096];
        let length = journal.recv(&mut bytes).unwrap();
        let entry = String::from_utf8(bytes[..length].to_vec()).unwrap();
        let lines: Vec<&str> = entry.lines().filter(|line| !line.starts_with("CODE_")).collect();
        let expected = [
            "MESSAGE=link down peer=\"app1\" endpoint=192.0.2.1:51900 problems=3",
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=underpass",
            "TARGET=underpass::audit",
            "UNDERPASS_PEER=app1",
            "UNDERPASS_ENDPOINT=192.0.2.1:51900",
            "UNDERPASS_PROBLEMS=3",
        ];
        assert_eq!(lines, expected);
        assert!(entry.contains("\nCODE_FILE=src/logging/journal.rs\nCODE_LINE="), "{entry}");
    }

    #[test]
    fn a_value_of_several_lines_is_one_field() {
        let mut entry = Entry(Vec::new());
        entry.add("A", "x\nPRIORITY=0");
        assert_eq!(entry.0, b"A\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\n");
        assert_eq!(journal_name("state.since"), "UNDERPASS_STATE_SINCE");
    }

    #[test]
    fn a_line_for_the_journal_has_a_priority_and_no_timestamp() {
        let captured = Captured::default();
        let writer = captured.clone();
        let log =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(PrefixedLine::new()).finish();
        tracing::subscriber::with_default(log, || tracing::warn!(peer = "app1", "link down"));
        assert_eq!(captured.text(), "<4>link down peer=\"app1\"\n");
    }
}

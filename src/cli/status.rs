//! `underpass status`: what a running daemon says of its links, for people or, with `--json`, for programs.
//!
//! Only printing: asking the daemon is `control::client`'s.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use terminal_size::{Width, terminal_size_of};

use super::arguments::{DaemonArguments, StatusArguments};
use super::{Exit, Failure};
use crate::control::api::{ErrorCode, InterfaceReport, LinkState, PeerReport, StatusReport};
use crate::control::client::{self, ClientError};

/// Asks the daemon and writes its answer to `out`.
pub fn run(arguments: &StatusArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let status = client::status(&arguments.daemon.socket()?)?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&status).map_err(|error| Failure::new(Exit::Other, error))?;
        return Ok(writeln!(out, "{json}")?);
    }
    Ok(out.write_all(render(&status, terminal_width()).as_bytes())?)
}

impl DaemonArguments {
    /// Where the daemon that is meant can be asked.
    pub(super) fn socket(&self) -> Result<PathBuf, ClientError> {
        client::find_socket(self.socket.clone(), self.interface.as_deref())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match error {
            ClientError::NoPermission { .. } => Exit::Permission,
            ClientError::Refused { code: ErrorCode::ConfigRefused, .. } => Exit::Config,
            ClientError::Refused { code: ErrorCode::UnknownPeer, .. } => Exit::Usage,
            ClientError::Refused {
                code: ErrorCode::ReloadFailed | ErrorCode::RestartFailed | ErrorCode::Stopping,
                ..
            }
            | ClientError::NoRestart { .. } => Exit::Other,
            _ => Exit::Unreachable,
        };
        Self::new(exit, error)
    }
}

/// `None` for a pipe or a file, whose lines may be as long as they like.
fn terminal_width() -> Option<usize> {
    let stdout = std::io::stdout();
    let (Width(width), _) = stdout.is_terminal().then(|| terminal_size_of(&stdout))??;
    Some(width.into())
}

/// A table, or one paragraph per peer where the table is wider than `width`.
fn render(status: &StatusReport, width: Option<usize>) -> String {
    let rows: Vec<Row> = status.peers.iter().map(|peer| Row::new(peer, status.unix_time)).collect();
    let widths = column_widths(&rows);
    let table_width = widths.iter().sum::<usize>() + GAP.len() * (COLUMNS - 1);
    let mut text = header(&status.interface);
    if width.is_some_and(|width| table_width > width) {
        rows.iter().for_each(|row| row.write_paragraph(&mut text));
    } else {
        write_table(&mut text, &rows, widths);
    }
    write_drops(&mut text, status);
    text
}

fn header(interface: &InterfaceReport) -> String {
    let device = if interface.offload { "with offload" } else { "without offload" };
    format!(
        "{BOLD}{}{BOLD:#}: {} side, MTU {}, {device}, up {}\n  public key  {}\n  addresses   {}\n  listening   {}\n\n",
        interface.name,
        interface.role,
        interface.mtu,
        span(interface.uptime_seconds),
        interface.public_key,
        list(&interface.addresses),
        list(&interface.listen),
    )
}

fn write_table(text: &mut String, rows: &[Row], widths: [usize; COLUMNS]) {
    let heading: Vec<String> = TITLES.iter().enumerate().map(|(column, title)| pad(title, column, widths)).collect();
    let _ = writeln!(text, "{BOLD}{}{BOLD:#}", heading.join(GAP).trim_end());
    for row in rows {
        let cells: Vec<String> = (0..COLUMNS).map(|column| row.styled(column, widths)).collect();
        let _ = writeln!(text, "{}", cells.join(GAP).trim_end());
    }
}

/// Reasons for which something was refused, the most frequent first.
fn write_drops(text: &mut String, status: &StatusReport) {
    let mut drops: Vec<(&String, &u64)> = status.drops.iter().filter(|&(_, &count)| count > 0).collect();
    drops.sort_by_key(|&(reason, &count)| (std::cmp::Reverse(count), reason));
    if !drops.is_empty() {
        let reasons: Vec<String> = drops.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let _ = writeln!(text, "\nrefused: {}", reasons.join(", "));
    }
}

/// One peer's cells, in the order of [`TITLES`].
struct Row {
    cells: [String; COLUMNS],
    state: LinkState,
}

impl Row {
    fn new(peer: &PeerReport, unix_time: u64) -> Self {
        let unknown = || "-".to_owned();
        let handshake = peer.latest_handshake.map(|then| ago(unix_time.saturating_sub(then)));
        Self {
            cells: [
                peer.name.clone(),
                peer.state.as_str().to_owned(),
                peer.endpoint.map_or_else(unknown, |endpoint| endpoint.to_string()),
                handshake.unwrap_or_else(unknown),
                bytes(peer.received_bytes),
                bytes(peer.sent_bytes),
                peer.suite.clone().unwrap_or_else(unknown),
            ],
            state: peer.state,
        }
    }

    /// Padded first: the escape sequences have no width.
    fn styled(&self, column: usize, widths: [usize; COLUMNS]) -> String {
        let cell = pad(&self.cells[column], column, widths);
        let style = if column == STATE { state_style(self.state) } else { Style::new() };
        format!("{style}{cell}{style:#}")
    }

    fn write_paragraph(&self, text: &mut String) {
        let style = state_style(self.state);
        let _ = writeln!(text, "{BOLD}{}{BOLD:#}: {style}{}{style:#}", self.cells[0], self.cells[STATE]);
        for (title, cell) in TITLES.iter().zip(&self.cells).skip(STATE + 1) {
            let _ = writeln!(text, "  {:<16}{cell}", title.to_lowercase());
        }
    }
}

fn column_widths(rows: &[Row]) -> [usize; COLUMNS] {
    std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row.cells[column].len());
        cells.chain([TITLES[column].len()]).max().expect("the title is there")
    })
}

fn pad(cell: &str, column: usize, widths: [usize; COLUMNS]) -> String {
    let width = widths[column];
    if NUMBERS.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
}

fn state_style(state: LinkState) -> Style {
    match state {
        LinkState::Up => AnsiColor::Green.on_default(),
        LinkState::Degraded | LinkState::Draining => AnsiColor::Yellow.on_default(),
        LinkState::Down => AnsiColor::Red.on_default(),
        LinkState::Idle | LinkState::Unknown => Style::new(),
    }
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn ago(seconds: u64) -> String {
    if seconds == 0 { "now".to_owned() } else { format!("{} ago", span(seconds)) }
}

/// In the largest unit of which there are at least two, so that it is off by less than half.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Past 1,023.95 one decimal would show 1024.0: the next unit's.
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

const COLUMNS: usize = 7;
const TITLES: [&str; COLUMNS] = ["NAME", "STATE", "ENDPOINT", "LAST HANDSHAKE", "RECEIVED", "SENT", "SUITE"];
const STATE: usize = 1;
/// The columns that are aligned to the right.
const NUMBERS: [usize; 2] = [4, 5];
const GAP: &str = "  ";
const BOLD: Style = Style::new().bold();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::tests::status;

    fn plain(width: Option<usize>) -> String {
        anstream::adapter::strip_str(&render(&status(), width)).to_string()
    }

    #[test]
    fn prints_an_aligned_table_where_it_fits() {
        let expected = "\
underpass0: proxy side, MTU 1420, with offload, up 60 min
  public key  BBBB
  addresses   10.77.0.1/24
  listening   0.0.0.0:51900

NAME  STATE  ENDPOINT          LAST HANDSHAKE  RECEIVED     SENT  SUITE
app1  up     192.0.2.10:51900  12 s ago         2.0 KiB  3.0 MiB  aes-256-gcm
app2  idle   -                 -                    0 B      0 B  -

refused: 3 malformed
";
        assert_eq!(plain(None), expected);
        assert_eq!(plain(Some(80)), expected);
    }

    #[test]
    fn no_line_is_wider_than_a_narrow_terminal() {
        let text = plain(Some(60));
        assert!(text.contains("app1: up\n  endpoint        192.0.2.10:51900\n  last handshake  12 s ago\n"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 60), "{text}");
    }

    #[test]
    fn only_the_state_and_the_titles_are_styled() {
        let styled = render(&status(), None);
        assert!(
            styled.contains("\u{1b}[32mup    \u{1b}[0m") || styled.contains("\u{1b}[32mup   \u{1b}[0m"),
            "{styled:?}"
        );
        assert_eq!(styled.matches("\u{1b}[0m").count(), 3);
    }

    #[test]
    fn times_are_off_by_less_than_half() {
        let texts = [0, 1, 119, 120, 7_199, 7_200, 172_799, 172_800].map(ago);
        assert_eq!(
            texts,
            ["now", "1 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "47 h ago", "2 d ago"]
        );
    }

    #[test]
    fn bytes_have_binary_units() {
        let texts = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 30, u64::MAX].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 GiB", "16.0 EiB"]);
    }
}

//! `underpass status`: what a running daemon says of its links, for people or, with `--json`, for programs.
//!
//! Only printing: asking the daemon is `control::client`'s.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anstyle::{AnsiColor, Color, Style};
use terminal_size::{Width, terminal_size_of};

use super::arguments::{DaemonArguments, StatusArguments};
use super::columns::{GAP, fitting};
use super::quantity::{ago, bytes, percent, round_trip, span};
use super::{Exit, Failure};
use crate::control::api::{
    EndpointSource, ErrorCode, GuardReport, GuardState, InterfaceReport, LinkState, MtuSource, PeerReport,
    StatusReport, WorkersReport,
};
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
                code: ErrorCode::ReloadFailed | ErrorCode::RestartFailed | ErrorCode::OpenFailed | ErrorCode::Stopping,
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

/// A table of as many columns as fit into `width`, or one paragraph per peer where not even the first few do.
fn render(status: &StatusReport, width: Option<usize>) -> String {
    let rows: Vec<Row> = status.peers.iter().map(|peer| Row::new(peer, status.unix_time)).collect();
    let widths = column_widths(&rows);
    let mut shown = fitting(&BY_IMPORTANCE, width.unwrap_or(usize::MAX), |column| widths[column]).to_vec();
    shown.sort_unstable();
    let mut text = header(&status.interface, &status.guard);
    if shown.len() < LEAST_COLUMNS {
        rows.iter().for_each(|row| row.write_paragraph(&mut text));
    } else {
        write_table(&mut text, &rows, &shown, widths);
    }
    write_roamed(&mut text, status);
    write_routes(&mut text, status);
    write_drops(&mut text, status);
    text
}

/// Mistakes in the configuration of links that work nevertheless, until the next boot.
fn write_roamed(text: &mut String, status: &StatusReport) {
    let has_roamed = |peer: &&PeerReport| peer.endpoint_source == Some(EndpointSource::Roamed);
    for (index, peer) in status.peers.iter().filter(has_roamed).enumerate() {
        let gap = if index == 0 { "\n" } else { "" };
        let endpoint = peer.endpoint.map_or_else(String::new, |endpoint| endpoint.to_string());
        let _ = writeln!(
            text,
            "{gap}{}: {endpoint} is no configured endpoint; the peer has connected from there",
            peer.name
        );
    }
}

/// Routes around the tunnel, and networks that are refused beside the configuration.
fn write_routes(text: &mut String, status: &StatusReport) {
    for peer in &status.peers {
        if let Some(route) = &peer.route {
            let _ = writeln!(text, "\n{WARNING}{}: not into the tunnel:{WARNING:#} {route}", peer.name);
        }
    }
    if let Some(missing) = &status.routes.missing {
        let _ = writeln!(text, "\n{WARNING}missing:{WARNING:#} {missing}");
    }
    if !status.routes.refused.is_empty() {
        let refused = list(&status.routes.refused);
        let _ = writeln!(text, "\nstill refused, no longer configured: {refused} (underpass open NETWORK)");
    }
}

fn header(interface: &InterfaceReport, guard: &GuardReport) -> String {
    let device = match (interface.offload, interface.tunnel_offload) {
        (true, true) => "with offload, tunnels too",
        (true, false) => "with offload",
        (false, _) => "without offload",
    };
    format!(
        "{BOLD}{}{BOLD:#}: {} side, MTU {}{}, {device}, up {}\n  public key  {}\n  addresses   {}\n  listening   {}\n{}\n",
        interface.name,
        interface.role,
        interface.mtu,
        if interface.mtu_source == MtuSource::Auto { " (auto)" } else { "" },
        span(interface.uptime_seconds),
        interface.public_key,
        list(&interface.addresses),
        list(&interface.listen),
        workers(interface) + &unadapted(interface) + &unguarded(guard),
    )
}

fn workers(interface: &InterfaceReport) -> String {
    let Some(WorkersReport { number, lanes, chosen, reason }) = &interface.workers else { return String::new() };
    let plural = if *lanes == 1 { "" } else { "s" };
    let how = if *chosen { "chosen: " } else { "" };
    format!("  workers     {number} for {lanes} lane{plural}, {how}{reason}\n")
}

/// The same for an MTU that is to follow the paths, and does not.
fn unadapted(interface: &InterfaceReport) -> String {
    let problem = interface.mtu_problem.as_ref();
    problem.map_or_else(String::new, |problem| format!("  {WARNING}MTU{WARNING:#}         stays: {problem}\n"))
}

/// A line of its own for what somebody should look at.
fn unguarded(guard: &GuardReport) -> String {
    let Some(lacks) = guard.lacks.as_ref().filter(|_| guard.state == GuardState::Unavailable) else {
        return String::new();
    };
    format!(
        "  {WARNING}unguarded{WARNING:#}   tunnel addresses are not refused on other interfaces: {lacks}\n\
         {:<14}have root run `underpass close --config FILE`\n",
        ""
    )
}

fn write_table(text: &mut String, rows: &[Row], shown: &[usize], widths: [usize; COLUMNS]) {
    let gap = " ".repeat(GAP);
    let heading: Vec<String> = shown.iter().map(|&column| pad(TITLES[column], column, widths)).collect();
    let _ = writeln!(text, "{BOLD}{}{BOLD:#}", heading.join(&gap).trim_end());
    for row in rows {
        let cells: Vec<String> = shown.iter().map(|&column| row.styled(column, widths)).collect();
        let _ = writeln!(text, "{}", cells.join(&gap).trim_end());
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
                peer.reason.clone().unwrap_or_else(unknown),
                peer.rtt_microseconds.map_or_else(unknown, round_trip),
                if peer.pings > 0 { percent(peer.loss) } else { unknown() },
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
        let cells = rows.iter().map(|row| row.cells[column].chars().count());
        cells.chain([TITLES[column].len()]).max().expect("the title is there")
    })
}

fn pad(cell: &str, column: usize, widths: [usize; COLUMNS]) -> String {
    let width = widths[column];
    if NUMBERS.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
}

fn state_style(state: LinkState) -> Style {
    Style::new().fg_color(state_colour(state).map(Color::Ansi))
}

/// None for the terminal's own.
pub(super) fn state_colour(state: LinkState) -> Option<AnsiColor> {
    match state {
        LinkState::Up => Some(AnsiColor::Green),
        LinkState::Degraded | LinkState::Draining => Some(AnsiColor::Yellow),
        LinkState::Down => Some(AnsiColor::Red),
        LinkState::Idle | LinkState::Unknown => None,
    }
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

const COLUMNS: usize = 10;
const TITLES: [&str; COLUMNS] =
    ["NAME", "STATE", "REASON", "RTT", "LOSS", "ENDPOINT", "LAST HANDSHAKE", "RECEIVED", "SENT", "SUITE"];
const STATE: usize = 1;
/// The columns that are aligned to the right.
const NUMBERS: [usize; 4] = [3, 4, 7, 8];
/// Name, state, reason, endpoint, then round trip, traffic, handshake, loss and suite.
const BY_IMPORTANCE: [usize; COLUMNS] = [0, 1, 2, 5, 3, 7, 8, 6, 4, 9];
/// With fewer there is more to see in paragraphs.
const LEAST_COLUMNS: usize = 4;
const BOLD: Style = Style::new().bold();
const WARNING: Style = AnsiColor::Yellow.on_default();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::tests::status;

    fn plain(width: Option<usize>) -> String {
        let mut status = status();
        (status.peers[0].pings, status.peers[0].loss) = (100, 0.02);
        anstream::adapter::strip_str(&render(&status, width)).to_string()
    }

    #[test]
    fn prints_an_aligned_table_where_it_fits() {
        let expected = "\
underpass0: proxy side, MTU 1420 (auto), with offload, tunnels too, up 60 min
  public key  BBBB
  addresses   10.77.0.1/24
  listening   0.0.0.0:51900
  workers     2 for 4 lanes, chosen: one was busy for 3 s, 1.4 CPUs idle

NAME  STATE  REASON         RTT   LOSS  ENDPOINT          LAST HANDSHAKE  RECEIVED     SENT  SUITE
app1  up     -           412 µs  2.0 %  192.0.2.10:51900  12 s ago         2.0 KiB  3.0 MiB  aes-256-gcm
app2  idle   no-traffic       -      -  -                 -                    0 B      0 B  -

refused: 3 malformed
";
        assert_eq!(plain(None), expected);
        assert_eq!(plain(Some(104)), expected);
    }

    #[test]
    fn workers_are_told_with_the_reason_of_their_number() {
        let mut status = status();
        let report = WorkersReport { number: 1, lanes: 1, chosen: false, reason: "configured".into() };
        status.interface.workers = Some(report);
        assert!(render(&status, None).contains("\n  workers     1 for 1 lane, configured\n"));
        status.interface.workers = None;
        assert!(!render(&status, None).contains("workers"), "an older daemon does not tell");
    }

    #[test]
    fn an_endpoint_that_is_not_configured_is_told_where_others_are() {
        let mut status = status();
        let text = |status: &StatusReport| render(status, None);
        for source in [EndpointSource::Configured, EndpointSource::Learned, EndpointSource::Remembered] {
            status.peers[0].endpoint_source = Some(source);
            assert!(!text(&status).contains("no configured endpoint"), "{source:?}");
        }
        status.peers[0].endpoint_source = Some(EndpointSource::Roamed);
        assert!(text(&status).contains("\napp1: 192.0.2.10:51900 is no configured endpoint"), "{}", text(&status));
    }

    #[test]
    fn what_the_routes_do_is_told_below_the_table() {
        let mut status = status();
        status.peers[0].route = Some("10.77.0.11 via 192.0.2.1 dev eth0".into());
        status.routes.refused = vec!["10.1.0.0/16".parse().unwrap()];
        status.routes.missing = Some("route 10.99.0.0/16".into());
        let text = anstream::adapter::strip_str(&render(&status, None)).to_string();
        let expected = "
app1: not into the tunnel: 10.77.0.11 via 192.0.2.1 dev eth0

missing: route 10.99.0.0/16

still refused, no longer configured: 10.1.0.0/16 (underpass open NETWORK)

refused: 3 malformed
";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_narrow_terminal_leaves_columns_out() {
        let titles = |width| {
            let text = plain(Some(width));
            assert!(text.lines().skip(6).all(|line| line.chars().count() <= width), "{text}");
            text.lines().find(|line| line.starts_with("NAME")).map(|line| line.replace("LAST HANDSHAKE", "LAST"))
        };
        let titles = |width| titles(width).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(titles(103), "NAME STATE REASON RTT LOSS ENDPOINT LAST RECEIVED SENT");
        assert_eq!(titles(80), "NAME STATE REASON RTT ENDPOINT RECEIVED SENT");
        assert_eq!(titles(45), "NAME STATE REASON ENDPOINT");
        assert_eq!(titles(40), "", "paragraphs");
    }

    #[test]
    fn a_very_narrow_terminal_has_paragraphs() {
        let text = plain(Some(40));
        assert!(text.contains("app1: up\n  reason          -\n  rtt             412 µs\n"), "{text}");
        assert!(text.contains("  endpoint        192.0.2.10:51900\n  last handshake  12 s ago\n"), "{text}");
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
}

//! How `underpass top` looks: a header, a table of links with as many columns as there is room for, a line of keys.

use std::time::Instant;

use anstyle::AnsiColor;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::symbols::bar;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Table};

use super::model::{Link, Model};
use super::view::{Mode, View};
use crate::cli::columns::{GAP, fitting};
use crate::cli::quantity::{bit_rate, bytes, percent, round_trip, span};
use crate::cli::status::state_colour;
use crate::control::api::LinkState;

/// Draws all of it, and tells `view` how many links there was room for.
pub(super) fn draw(now: Instant, frame: &mut Frame<'_>, model: &Model, view: &mut View) {
    let parts = [Constraint::Length(HEADER_LINES), Constraint::Min(2), Constraint::Length(1)];
    let [header, table, keys] = Layout::vertical(parts).areas(frame.area());
    let links = view.links(model);
    view.fit(links.len(), usize::from(table.height.saturating_sub(1)));
    frame.render_widget(Paragraph::new(header_lines(now, model)), header);
    draw_table(now, frame, table, model, &links, view);
    frame.render_widget(keys_line(view, links.len()), keys);
    if view.mode == Mode::Help {
        draw_help(frame);
    }
}

fn header_lines(now: Instant, model: &Model) -> Vec<Line<'static>> {
    vec![daemon_line(now, model), totals_line(model), refusals_line(now, model), Line::default()]
}

fn daemon_line(now: Instant, model: &Model) -> Line<'static> {
    let interface = &model.status().interface;
    let name = interface.name.clone().bold();
    if let Some(silence) = model.silence(now) {
        let problem = silence.problem.unwrap_or("the daemon does not answer");
        return Line::from(vec![name, format!(": for {} {problem}", span(silence.seconds)).red().bold()]);
    }
    let facts = format!(
        ": {} side, version {}, up {}, process {}",
        interface.role,
        interface.version,
        span(interface.uptime_seconds),
        interface.pid
    );
    Line::from(vec![name, facts.into()])
}

fn totals_line(model: &Model) -> Line<'static> {
    let peers = &model.status().peers;
    let links = if peers.len() == 1 { "link" } else { "links" };
    let mut spans = vec![Span::from(format!("{} {links}: ", peers.len()))];
    for (number, (state, count)) in model.states().into_iter().enumerate() {
        spans.push(if number > 0 { ", " } else { "" }.into());
        spans.push(Span::styled(format!("{count} {}", state.as_str()), state_style(state)));
    }
    let received = peers.iter().map(|peer| peer.received_bytes).fold(0, u64::saturating_add);
    let sent = peers.iter().map(|peer| peer.sent_bytes).fold(0, u64::saturating_add);
    let rate = model.total_rate();
    let [rate_in, rate_out] = [rate.received, rate.sent].map(bit_rate);
    let [received, sent] = [received, sent].map(bytes);
    spans.push(format!("   in {rate_in} ({received})   out {rate_out} ({sent})").into());
    Line::from(spans)
}

fn refusals_line(now: Instant, model: &Model) -> Line<'static> {
    let refusals = model.refusals(now);
    if refusals.is_empty() {
        let total: u64 = model.status().drops.values().sum();
        return Line::from(format!("refused: nothing now, {total} since the start")).dim();
    }
    let mut spans = vec![Span::from("refused: ")];
    for (number, refusal) in refusals.iter().enumerate() {
        spans.push(if number > 0 { ", " } else { "" }.into());
        let text = format!("{} +{:.0}/s ({})", refusal.reason, refusal.per_second, refusal.count);
        spans.push(if refusal.per_second > 0.0 { text.yellow() } else { text.dim() });
    }
    Line::from(spans)
}

/// The columns that there are, in their order on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Name,
    State,
    Reason,
    Age,
    RoundTrip,
    Loss,
    In,
    Out,
    Graph,
    Endpoint,
}

impl Column {
    /// Those that are left out last come first.
    const BY_IMPORTANCE: [Self; 10] = [
        Self::Name,
        Self::State,
        Self::In,
        Self::Out,
        Self::Reason,
        Self::RoundTrip,
        Self::Graph,
        Self::Age,
        Self::Loss,
        Self::Endpoint,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::State => "STATE",
            Self::Reason => "REASON",
            Self::Age => "FOR",
            Self::RoundTrip => "RTT",
            Self::Loss => "LOSS",
            Self::In => "IN",
            Self::Out => "OUT",
            Self::Graph => "RATE",
            Self::Endpoint => "ENDPOINT",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Age | Self::RoundTrip | Self::Loss | Self::In | Self::Out)
    }

    /// Numbers have room for all that they may become, so that the table does not move with them.
    fn width(self, model: &Model) -> usize {
        let longest = |of: fn(&Link<'_>) -> usize| model.links().map(|link| of(&link)).max().unwrap_or_default();
        let content = match self {
            Self::Name => longest(|link| link.peer.name.chars().count()).min(MAX_NAME),
            Self::State => 8,
            Self::Reason => longest(|link| link.peer.reason.as_ref().map_or(1, String::len)).min(MAX_NAME),
            Self::Age | Self::RoundTrip => 7,
            Self::Loss => 5,
            Self::In | Self::Out => 11,
            Self::Graph => MIN_GRAPH,
            Self::Endpoint => longest(|link| link.peer.endpoint.map_or(1, |endpoint| endpoint.to_string().len())),
        };
        content.max(self.title().len())
    }

    fn cell(self, link: &Link<'_>, width: usize) -> Span<'static> {
        let peer = link.peer;
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        match self {
            Self::Name => shortened(&peer.name, width).bold(),
            Self::State => Span::styled(peer.state.as_str(), state_style(peer.state)),
            Self::Reason => or_unknown(peer.reason.clone()).into(),
            Self::Age => span(link.age).into(),
            Self::RoundTrip => or_unknown(peer.rtt_microseconds.map(round_trip)).into(),
            Self::Loss => or_unknown((peer.pings > 0).then(|| percent(peer.loss))).into(),
            Self::In => or_unknown(link.rate.map(|rate| bit_rate(rate.received))).into(),
            Self::Out => or_unknown(link.rate.map(|rate| bit_rate(rate.sent))).into(),
            Self::Graph => graph(link, width).cyan(),
            Self::Endpoint => or_unknown(peer.endpoint.map(|endpoint| endpoint.to_string())).into(),
        }
    }
}

fn draw_table(now: Instant, frame: &mut Frame<'_>, area: Rect, model: &Model, links: &[Link<'_>], view: &View) {
    let width = usize::from(area.width);
    let mut columns = fitting(&Column::BY_IMPORTANCE, width, |column| column.width(model)).to_vec();
    columns.sort_unstable();
    let mut widths: Vec<usize> = columns.iter().map(|column| column.width(model)).collect();
    let left = width.saturating_sub(widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1));
    if let Some(graph) = columns.iter().position(|&column| column == Column::Graph) {
        widths[graph] = (widths[graph] + left).min(MAX_GRAPH);
    }
    let aligned = |column: Column, span: Span<'static>| {
        let line = Line::from(span);
        if column.is_number() { line.right_aligned() } else { line }
    };
    let titles = Row::new(columns.iter().map(|&column| aligned(column, column.title().into()))).bold();
    let rows = links.iter().skip(view.offset).take(view.page).map(|link| {
        let cells = columns.iter().zip(&widths);
        Row::new(cells.map(|(&column, &width)| aligned(column, column.cell(link, width))))
    });
    let lengths = widths.iter().map(|&width| Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)));
    let style = if model.silence(now).is_some() { Style::new().dim() } else { Style::new() };
    let table = Table::new(rows, lengths).header(titles).column_spacing(GAP as u16).style(style);
    frame.render_widget(table, area);
}

fn keys_line(view: &View, links: usize) -> Line<'static> {
    if view.mode == Mode::Filter {
        return Line::from(vec!["filter: ".into(), view.filter.clone().bold(), "▏".into()]);
    }
    let order = format!("sort: {}{}", view.sort.as_str(), if view.reversed { ", reversed" } else { "" });
    let key = |key: &'static str| key.bold();
    let mut spans = vec![key("q"), " quit  ".into(), key("s"), format!(" {order}  ").into(), key("/")];
    spans.push(if view.filter.is_empty() { " filter".into() } else { format!(" filter: {}", view.filter).yellow() });
    spans.extend(["  ".into(), key("?"), " help".into()]);
    if links > view.page {
        let last = (view.offset + view.page).min(links);
        spans.extend(["  ".into(), key("↑↓"), format!(" {}-{last} of {links}", view.offset + 1).into()]);
    }
    Line::from(spans)
}

fn draw_help(frame: &mut Frame<'_>) {
    let lines: Vec<Line<'_>> = HELP.lines().map(Line::from).collect();
    let width = lines.iter().map(Line::width).max().unwrap_or_default() + 4;
    let [width, height] = [width, lines.len() + 2].map(|size| u16::try_from(size).unwrap_or(u16::MAX));
    let area = frame.area().centered(Constraint::Max(width), Constraint::Max(height));
    let block = Block::bordered().title(" underpass top ").padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// The newest values as bars, to the right. Their height tells of the link's own highest among them.
fn graph(link: &Link<'_>, width: usize) -> String {
    let shown = link.history.iter().skip(link.history.len().saturating_sub(width));
    let highest = shown.clone().copied().fold(0.0, f64::max);
    let steps = (BARS.len() - 1) as f64;
    let bars: String = shown
        .map(|value| if highest > 0.0 { BARS[(value / highest * steps).ceil() as usize] } else { BARS[0] })
        .collect();
    format!("{bars:>width$}")
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

fn state_style(state: LinkState) -> Style {
    let colour = match state_colour(state) {
        Some(AnsiColor::Green) => Color::Green,
        Some(AnsiColor::Yellow) => Color::Yellow,
        Some(AnsiColor::Red) => Color::Red,
        _ => Color::Reset,
    };
    Style::new().fg(colour)
}

/// With an empty one.
const HEADER_LINES: u16 = 4;
/// Longer ones are shortened.
const MAX_NAME: usize = 24;
const MIN_GRAPH: usize = 10;
/// Two minutes would be more than anybody looks at.
const MAX_GRAPH: usize = 60;
const BARS: [&str; 9] = [
    " ",
    bar::ONE_EIGHTH,
    bar::ONE_QUARTER,
    bar::THREE_EIGHTHS,
    bar::HALF,
    bar::FIVE_EIGHTHS,
    bar::THREE_QUARTERS,
    bar::SEVEN_EIGHTHS,
    bar::FULL,
];
const HELP: &str = "\
q Esc Ctrl-C   quit
s              sort by the next column
r              reverse the order
/              show only links whose name, state, reason
               or endpoint has this text; Enter keeps it,
               Esc takes it away
↑ ↓ PgUp PgDn  scroll; Home and End

FOR   how long the link has been in its state
RTT   round trip of pings        LOSS  lost ones
IN    from the peer              OUT   to the peer
RATE  both, over time; each link's own scale
A narrow terminal shows fewer columns.";

#[cfg(test)]
mod tests;

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;

use super::*;
use crate::control::api::StatusReport;
use crate::control::api::tests::status;
use crate::dataplane::clock;

fn draw_on(width: u16, height: u16, model: &Model, view: &mut View, now: Instant) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(now, frame, model, view)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let rows = buffer.content().chunks(usize::from(buffer.area.width));
    let lines = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Links of which each has another state, and app1 has had four seconds of traffic.
fn model() -> (Model, Instant) {
    let report = |seconds: u64, bytes: u64| {
        let mut report: StatusReport = status();
        let peers = &mut report.peers;
        peers[0].received_bytes += bytes;
        peers[0].sent_bytes += bytes / 10;
        peers[0].pings = 100;
        let mut down = peers[1].clone();
        (down.name, down.state, down.reason) = ("app3".into(), LinkState::Down, Some("unanswered".into()));
        (down.pings, down.loss) = (100, 1.0);
        peers.push(down);
        report.unix_time += seconds;
        report.interface.uptime_seconds += seconds;
        report.drops.insert("replayed".into(), seconds * 12);
        report
    };
    let start = clock::now();
    let mut model = Model::new(start, report(0, 0));
    for (seconds, bytes) in [(1, 1_000_000), (2, 1_500_000), (3, 1_500_000), (4, 2_500_000)] {
        model.on_report(start + Duration::from_secs(seconds), report(seconds, bytes));
    }
    (model, start + Duration::from_secs(4))
}

#[test]
fn a_wide_terminal_shows_everything() {
    let (model, now) = model();
    let expected = "\
underpass0: proxy side, version 0.1.0, up 60 min, process 7
3 links: 1 up, 1 down, 1 idle   in 8.00 Mbit/s (2.4 MiB)   out 800 kbit/s (3.2 MiB)
refused: replayed +12/s (48)

NAME  STATE     REASON          FOR      RTT   LOSS           IN          OUT  RATE                     ENDPOINT
app1  up        -              15 s   412 µs    0 %  8.00 Mbit/s   800 kbit/s                     █▄ █  192.0.2.10:51900
app2  idle      no-traffic     15 s        -      -      0 bit/s      0 bit/s                           -
app3  down      unanswered     15 s        -  100 %      0 bit/s      0 bit/s                           -


q quit  s sort: as configured  / filter  ? help
";
    assert_eq!(text(&draw_on(120, 11, &model, &mut View::default(), now)), expected);
}

#[test]
fn a_narrow_terminal_leaves_columns_out() {
    let (model, now) = model();
    let titles = |width| {
        let text = text(&draw_on(width, 12, &model, &mut View::default(), now));
        let line = text.lines().find(|line| line.starts_with("NAME")).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(titles(82), "NAME STATE REASON FOR RTT IN OUT RATE");
    assert_eq!(titles(72), "NAME STATE REASON RTT IN OUT");
    assert_eq!(titles(40), "NAME STATE IN OUT");
    assert_eq!(titles(20), "NAME STATE");
    // No size is too small to draw.
    for (width, height) in [(1, 1), (3, 2), (10, 4), (500, 5)] {
        let mut view = View { mode: Mode::Help, ..View::default() };
        draw_on(width, height, &model, &mut view, now);
    }
}

#[test]
fn states_have_the_colours_of_status() {
    let (model, now) = model();
    let buffer = draw_on(120, 12, &model, &mut View::default(), now);
    let colours = [5, 6, 7].map(|y| buffer[(6, y)].fg);
    assert_eq!(colours, [Color::Green, Color::Reset, Color::Red]);
}

#[test]
fn a_daemon_that_is_gone_is_told_and_its_last_report_fades() {
    let (mut model, now) = model();
    model.on_failure("no daemon is running: /run/underpass/underpass0.sock does not exist".into());
    let buffer = draw_on(100, 12, &model, &mut View::default(), now + Duration::from_secs(7));
    let text = text(&buffer);
    assert!(text.starts_with("underpass0: for 7 s no daemon is running: /run/underpass/underpass0.sock"), "{text}");
    assert!(text.contains("app1"), "{text}");
    assert!(buffer[(0, 5)].modifier.contains(ratatui::style::Modifier::DIM));
}

#[test]
fn more_links_than_lines_are_scrolled() {
    let (model, now) = model();
    let mut view = View { offset: 9, ..View::default() };
    let text = text(&draw_on(80, 8, &model, &mut view, now));
    assert!(!text.contains("app1") && text.contains("app2") && text.contains("app3"), "{text}");
    assert!(text.contains("↑↓ 2-3 of 3"), "{text}");
}

#[test]
fn the_filter_and_the_help_are_shown() {
    let (model, now) = model();
    let mut view = View { mode: Mode::Filter, filter: "App3".into(), ..View::default() };
    let typed = text(&draw_on(80, 12, &model, &mut view, now));
    assert!(typed.contains("filter: App3▏") && !typed.contains("app1"), "{typed}");
    view.mode = Mode::Help;
    let help = text(&draw_on(80, 24, &model, &mut view, now));
    assert!(help.contains("how long the link has been in its state"), "{help}");
}

#[test]
fn a_long_name_is_shortened() {
    assert_eq!(shortened("application", 11), "application");
    assert_eq!(shortened("application", 5), "appl…");
}

#[test]
fn a_graph_shows_the_newest_values_by_their_own_highest() {
    let (model, _) = model();
    let links: Vec<_> = model.links().collect();
    assert_eq!(graph(&links[0], 6), "  █▄ █");
    assert_eq!(graph(&links[0], 3), "▄ █");
    assert_eq!(graph(&links[1], 6), "      ");
}

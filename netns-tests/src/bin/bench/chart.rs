//! A picture of what was measured: bars beside each other, as SVG, from the file that `--json` writes.

use std::fmt::Write as _;

use anyhow::Context;
use serde_json::Value;

/// Tests that are drawn, with a title that needs no explanation and its unit.
const PANELS: [(&str, &str); 8] = [
    ("tcp-1", "TCP, one flow, Gb/s"),
    ("tcp-8", "TCP, 8 flows, Gb/s"),
    ("http-kept", "HTTP, kept connections, 1000 requests/s"),
    ("http-new", "HTTP, new connections, 1000 requests/s"),
    ("http-1m", "HTTP, 1 MiB bodies, Gb/s"),
    ("udp-64", "UDP, 64 bytes, 1000 datagrams/s"),
    ("http-rate", "HTTP at 5000 requests/s, median, µs"),
    ("ping", "Ping, median, µs"),
];
/// Tests whose numbers are divided by a thousand.
const IN_THOUSANDS: [&str; 2] = ["http-kept", "http-new"];
/// Contenders that are not drawn: plain is no rival, and some are variants of others.
const NOT_DRAWN: [&str; 4] = ["plain", "underpass-chacha", "haproxy-tls-full", "underpass-against"];

const PANEL_WIDTH: f64 = 440.0;
const NAME_WIDTH: f64 = 140.0;
const BAR_WIDTH: f64 = 230.0;
const ROW_HEIGHT: f64 = 26.0;
const HEAD_HEIGHT: f64 = 34.0;
const MARGIN: f64 = 16.0;

/// One contender's medians of a test.
struct Row<'a> {
    name: &'a str,
    idle: Option<f64>,
    busy: Option<f64>,
}

/// Draws the bench's results: for each test and contender a bar for the idle machine, and one for the busy one.
pub(crate) fn draw(results: &Value) -> anyhow::Result<String> {
    let tests = results["tests"].as_object().context("no \"tests\": is it a file that --json wrote?")?;
    let mut panels = vec![];
    for (test, title) in PANELS {
        let Some(idle) = tests.get(test) else { continue };
        let busy = tests.get(&format!("{test}@nice19")).unwrap_or(&Value::Null);
        panels.push(panel(test, title, &rows(test, idle, busy), idle["better"] == "less"));
    }
    anyhow::ensure!(!panels.is_empty(), "none of the tests that are drawn was measured");
    let mut body = String::new();
    let mut tops = [MARGIN + HEAD_HEIGHT; 2];
    for (panel, height) in panels {
        let column = usize::from(tops[1] < tops[0]);
        let x = MARGIN + column as f64 * (PANEL_WIDTH + MARGIN);
        write!(body, "<g transform=\"translate({x},{:.0})\">{panel}</g>", tops[column])?;
        tops[column] += height + MARGIN;
    }
    let (width, height) = (2.0 * PANEL_WIDTH + 3.0 * MARGIN, tops[0].max(tops[1]));
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">
<style>text{{fill:#222}} .us{{fill:#0b7a4b}} .them{{fill:#8a94a0}} .busy{{opacity:.5}}</style>
<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>
<text x=\"{MARGIN}\" y=\"{:.0}\" font-size=\"14\">underpass (green) and its rivals: above on an idle machine, below (pale) beside two busy loops at nice 19</text>
{body}
</svg>
",
        MARGIN + 12.0
    ))
}

fn rows<'a>(test: &str, idle: &'a Value, busy: &'a Value) -> Vec<Row<'a>> {
    let unit = if IN_THOUSANDS.contains(&test) { 1e3 } else { 1.0 };
    let median = |of: &Value, name: &str| Some(of["contenders"][name]["median"].as_f64()? / unit);
    let names = idle["contenders"].as_object().into_iter().flat_map(|contenders| contenders.keys());
    names
        .filter(|name| !NOT_DRAWN.contains(&name.as_str()))
        .map(|name| Row { name, idle: median(idle, name), busy: median(busy, name) })
        .collect()
}

/// A test's bars and the height that they take.
fn panel(test: &str, title: &str, rows: &[Row], less_is_better: bool) -> (String, f64) {
    let values = || rows.iter().flat_map(|row| [row.idle, row.busy]).flatten();
    // One that is far off would leave nothing of the others.
    let ours = rows.iter().filter(|row| row.name == "underpass").flat_map(|row| [row.idle, row.busy]).flatten();
    let most = values().fold(0.0, f64::max).min(4.0 * ours.fold(0.0, f64::max)).max(f64::MIN_POSITIVE);
    let hint = if less_is_better { "less is better" } else { "more is better" };
    let mut svg = format!("<text y=\"12\" font-weight=\"bold\">{title}<title>{test}</title></text>");
    svg += &format!("<text y=\"12\" x=\"{PANEL_WIDTH}\" text-anchor=\"end\" font-size=\"10\">{hint}</text>");
    for (number, row) in rows.iter().enumerate() {
        let y = HEAD_HEIGHT - 12.0 + number as f64 * ROW_HEIGHT;
        let kind = if row.name == "underpass" { "us" } else { "them" };
        let name_y = y + 13.0;
        svg +=
            &format!("<text x=\"{:.0}\" y=\"{name_y:.0}\" text-anchor=\"end\">{}</text>", NAME_WIDTH - 6.0, row.name);
        for (value, class, offset) in [(row.idle, kind.to_owned(), 0.0), (row.busy, format!("{kind} busy"), 10.0)] {
            let Some(value) = value else { continue };
            let (top, length) = (y + offset, (value / most).min(1.0) * BAR_WIDTH);
            svg += &format!(
                "<rect class=\"{class}\" x=\"{NAME_WIDTH}\" y=\"{top:.0}\" width=\"{length:.1}\" height=\"9\"/>"
            );
            let (text_x, text_y) = (NAME_WIDTH + length + 4.0, top + 8.5);
            svg += &format!("<text x=\"{text_x:.1}\" y=\"{text_y:.1}\" font-size=\"9\">{}</text>", label(value));
        }
    }
    (svg, HEAD_HEIGHT + rows.len() as f64 * ROW_HEIGHT)
}

fn label(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::draw;

    #[test]
    fn each_contender_has_a_bar_for_the_idle_and_one_for_the_busy_machine() {
        let of = |ours: f64, theirs: f64| {
            let contenders = json!({
                "plain": { "median": 50.0 }, "underpass": { "median": ours }, "quincy": { "median": theirs },
            });
            json!({ "better": "more", "contenders": contenders })
        };
        let svg = draw(&json!({ "tests": { "tcp-1": of(8.0, 1.0), "tcp-1@nice19": of(6.0, 0.5) } })).unwrap();
        assert_eq!(svg.matches("<rect class=\"us").count(), 2);
        assert_eq!(svg.matches("<rect class=\"them").count(), 2);
        assert!(svg.contains(">8.00<") && svg.contains(">0.50<") && !svg.contains("plain"));
    }

    #[test]
    fn a_file_of_another_kind_is_refused() {
        assert!(draw(&json!({ "cases": [] })).is_err());
        assert!(draw(&json!({ "tests": {} })).is_err());
    }
}

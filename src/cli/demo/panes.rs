//! The same request twice, side by side: as a stranger on the wire has it without underpass, and with it.
//!
//! Lays out captured payloads as text and as bytes. What to compare is chosen by `story`.

use std::ops::Range;

use anstyle::Style;

use super::screen::{BAD, FAINT, GOOD, Glyphs, STRONG};

const TEXT_ROWS: usize = 7;
const BYTE_ROWS: usize = 5;

/// One side.
#[derive(Debug)]
pub(super) struct Pane<'p> {
    /// What stands above.
    pub(super) title: &'p str,
    /// Protocol, source and destination.
    pub(super) caption: String,
    /// What the datagram or segment carries.
    pub(super) payload: &'p [u8],
    /// Words in it that should be secret.
    pub(super) secrets: &'p [&'p str],
}

/// Draws two panes in `width` columns.
pub(super) fn draw(left: &Pane<'_>, right: &Pane<'_>, width: usize, glyphs: Glyphs) -> Vec<String> {
    let columns = (width - 7) / 2;
    let [_, _, top_left, top, top_right, middle_left, cross, middle_right, bottom_left, bottom, bottom_right] =
        glyphs.frame;
    let rule = |labels: [&str; 2], ends: [&str; 3]| rule(labels, ends, columns, glyphs);
    let mut lines = vec![rule([left.title, right.title], [top_left, top, top_right])];
    let caption = |pane: &Pane<'_>| paint(pane.caption.chars().map(|char| (char, false)), FAINT, columns);
    lines.push(row(&caption(left), &caption(right), glyphs));
    lines.push(rule(["as text", "as text"], [middle_left, cross, middle_right]));
    lines.extend(rows(left.text(columns), right.text(columns), columns, glyphs));
    lines.push(rule(["as bytes", "as bytes"], [middle_left, cross, middle_right]));
    lines.extend(rows(left.bytes(columns), right.bytes(columns), columns, glyphs));
    lines.push(rule(["", ""], [bottom_left, bottom, bottom_right]));
    lines
}

impl Pane<'_> {
    /// The payload as text. Lines where it has them; bytes that are no text are dots.
    fn text(&self, columns: usize) -> Vec<String> {
        let marks = self.marks();
        let lines = if self.is_text() { self.lines(columns) } else { chunks(0..self.payload.len(), columns) };
        let paint_line = |line: Range<usize>| {
            paint(line.map(|index| (printable(self.payload[index]), marks[index])), self.style(), columns)
        };
        lines.into_iter().take(TEXT_ROWS).map(paint_line).collect()
    }

    /// The payload in hexadecimal and characters. Text is shown from where it is most telling, its last lines.
    fn bytes(&self, columns: usize) -> Vec<String> {
        let marks = self.marks();
        // A byte takes three columns in hexadecimal and one as a character; two columns are between the two.
        let per_row = (columns - 1) / 4 / 4 * 4;
        let start = self.payload.len().saturating_sub(per_row * BYTE_ROWS);
        let start = if self.is_text() { start.div_ceil(per_row) * per_row } else { 0 };
        let paint_row = |row: Range<usize>| {
            let hex = row.clone().flat_map(|index| {
                format!("{:02x} ", self.payload[index]).chars().map(|char| (char, marks[index])).collect::<Vec<_>>()
            });
            let gap = std::iter::repeat_n((' ', false), (per_row - row.len()) * 3 + 1);
            let text = row.map(|index| (printable(self.payload[index]), marks[index]));
            paint(hex.chain(gap).chain(text), self.style(), columns)
        };
        chunks(start..self.payload.len(), per_row).into_iter().take(BYTE_ROWS).map(paint_row).collect()
    }

    /// For each byte: does it belong to a secret?
    fn marks(&self) -> Vec<bool> {
        let mut marks = vec![false; self.payload.len()];
        for secret in self.secrets {
            for (start, window) in self.payload.windows(secret.len()).enumerate() {
                if window == secret.as_bytes() {
                    marks[start..start + secret.len()].fill(true);
                }
            }
        }
        marks
    }

    fn is_text(&self) -> bool {
        self.payload.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    }

    fn lines(&self, columns: usize) -> Vec<Range<usize>> {
        let mut lines = Vec::new();
        let mut start = 0;
        for line in self.payload.split(|byte| *byte == b'\n') {
            let length = line.strip_suffix(b"\r").unwrap_or(line).len();
            lines.extend(chunks(start..start + length, columns));
            start += line.len() + 1;
        }
        lines
    }

    fn style(&self) -> Style {
        if self.is_text() { Style::new() } else { GOOD }
    }
}

/// Cuts a range into pieces of at most `length`; an empty range is one piece.
fn chunks(range: Range<usize>, length: usize) -> Vec<Range<usize>> {
    if range.is_empty() {
        return vec![range];
    }
    range.clone().step_by(length).map(|start| start..range.end.min(start + length)).collect()
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '.' }
}

/// Exactly `columns` characters, those that are marked in the colour of alarm.
fn paint(chars: impl Iterator<Item = (char, bool)>, style: Style, columns: usize) -> String {
    let padding = std::iter::repeat((' ', false));
    let mut line = String::new();
    let mut current = None;
    for (char, marked) in chars.chain(padding).take(columns) {
        let wanted = if marked { BAD } else { style };
        if current != Some(wanted) {
            line += &format!("{}{wanted}", anstyle::Reset);
            current = Some(wanted);
        }
        line.push(char);
    }
    line + &anstyle::Reset.to_string()
}

fn rows(mut left: Vec<String>, mut right: Vec<String>, columns: usize, glyphs: Glyphs) -> Vec<String> {
    let count = left.len().max(right.len());
    left.resize(count, " ".repeat(columns));
    right.resize(count, " ".repeat(columns));
    left.iter().zip(&right).map(|(left, right)| row(left, right, glyphs)).collect()
}

fn row(left: &str, right: &str, glyphs: Glyphs) -> String {
    let vertical = glyphs.frame[1];
    format!("{vertical} {left} {vertical} {right} {vertical}")
}

/// A horizontal line with a label over each pane.
fn rule(labels: [&str; 2], [start, joint, end]: [&str; 3], columns: usize, glyphs: Glyphs) -> String {
    let horizontal = glyphs.frame[0];
    let part = |label: &str| {
        if label.is_empty() {
            return horizontal.repeat(columns + 2);
        }
        let rest = (columns - 1).saturating_sub(label.chars().count());
        format!("{horizontal} {STRONG}{label}{STRONG:#} {}", horizontal.repeat(rest))
    };
    format!("{start}{}{joint}{}{end}", part(labels[0]), part(labels[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawing(width: usize) -> Vec<String> {
        let text = b"POST /pay HTTP/1.1\r\nCookie: session=alice\r\n\r\ncard=4242&amount=1";
        let noise: Vec<u8> = (0..=255).collect();
        let secrets = ["session=alice", "4242"];
        let left = Pane { title: "without", caption: "TCP a".into(), payload: text, secrets: &secrets };
        let right = Pane { title: "with", caption: "UDP b".into(), payload: &noise, secrets: &secrets };
        draw(&left, &right, width, Glyphs::UNICODE)
    }

    #[test]
    fn every_line_fills_the_width_exactly() {
        for width in [61, 79, 81, 111] {
            for line in drawing(width) {
                assert_eq!(anstream::adapter::strip_str(&line).to_string().chars().count(), width, "{line}");
            }
        }
    }

    #[test]
    fn secrets_are_marked_in_text_and_in_bytes() {
        let lines = drawing(79);
        let marked = lines.iter().filter(|line| line.contains(&format!("{BAD}"))).count();
        assert!(lines.iter().any(|line| line.contains(&format!("{BAD}session=alice"))), "{lines:#?}");
        assert!(marked >= 4, "{lines:#?}");
    }
}

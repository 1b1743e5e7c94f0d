//! The demo's voice: numbered steps, sentences and marked findings, as wide as the terminal allows.
//!
//! Colour only on a terminal that wants it (anstream decides, `NO_COLOR` included); every mark is also a character, so
//! nothing is lost without colour. Box drawing falls back to ASCII where the locale says that the terminal has no more.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

/// For what must be noticed first: titles and step numbers.
pub(super) const STRONG: Style = Style::new().bold();
/// For what may be skipped.
pub(super) const FAINT: Style = Style::new().dimmed();
/// For what is as it should be.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// For what nobody would want.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
/// For steps.
const STEP: Style = AnsiColor::Cyan.on_default().bold();

const MARGIN: &str = "    ";
const NARROWEST: usize = 60;
const WIDEST: usize = 112;
/// What a pipe gets, and the measure for everything the demo prints.
const USUAL: usize = 80;

/// The characters beyond letters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Glyphs {
    /// Before what is as it should be.
    pub(super) good: &'static str,
    /// Before what nobody would want, though the demo expects it.
    pub(super) alarm: &'static str,
    /// Before what failed.
    pub(super) failed: &'static str,
    /// The body of a bar.
    pub(super) bar: &'static str,
    /// Between two ends of a way.
    pub(super) arrow: &'static str,
    /// A box: horizontal, vertical, then the corners and joints from top left to bottom right.
    pub(super) frame: [&'static str; 11],
}

impl Glyphs {
    /// For terminals with Unicode: nearly all.
    pub(super) const UNICODE: Self = Self {
        good: "✓",
        alarm: "!",
        failed: "✗",
        bar: "█",
        arrow: "→",
        frame: ["─", "│", "┌", "┬", "┐", "├", "┼", "┤", "└", "┴", "┘"],
    };

    /// For the rest.
    pub(super) const ASCII: Self = Self {
        good: "ok",
        alarm: "!",
        failed: "FAILED",
        bar: "#",
        arrow: "->",
        frame: ["-", "|", "+", "+", "+", "+", "+", "+", "+", "+", "+"],
    };

    fn for_locale(locale: Option<&str>) -> Self {
        let utf8 = locale.is_none_or(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        if utf8 { Self::UNICODE } else { Self::ASCII }
    }
}

/// Where the demo speaks.
pub(super) struct Screen<'o> {
    out: &'o mut dyn Write,
    width: usize,
    glyphs: Glyphs,
    step: usize,
    steps: usize,
}

/// Nobody takes what the demo says.
#[derive(Debug, thiserror::Error)]
#[error("writing to standard output")]
pub(super) struct Unwritable(#[from] pub(super) io::Error);

type Written = Result<(), Unwritable>;

impl<'o> Screen<'o> {
    /// Speaks to `out` as wide as the terminal is, for a story of `steps` steps.
    pub(super) fn new(out: &'o mut dyn Write, steps: usize) -> Self {
        let columns = terminal_size::terminal_size().map_or(USUAL, |(columns, _)| columns.0.into());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| {
            let value = std::env::var(name).ok()?;
            (!value.is_empty()).then_some(value)
        });
        let glyphs = Glyphs::for_locale(locale.as_deref());
        Self { out, width: columns.clamp(NARROWEST, WIDEST), glyphs, step: 0, steps }
    }

    /// Columns to fill.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The characters to draw with.
    pub(super) fn glyphs(&self) -> Glyphs {
        self.glyphs
    }

    /// What stands above everything.
    pub(super) fn title(&mut self, title: &str, subtitle: &str) -> Written {
        self.heading(title)?;
        self.print(&format!(" {subtitle}"))
    }

    /// Begins the next step.
    pub(super) fn step(&mut self, title: &str) -> Written {
        self.step += 1;
        let number = format!("{STEP}{}/{}{STEP:#}", self.step, self.steps);
        self.print(&format!("\n {number} {STRONG}{title}{STRONG:#}"))
    }

    /// Begins what is no step.
    pub(super) fn heading(&mut self, title: &str) -> Written {
        self.print(&format!("\n {STRONG}{title}{STRONG:#}"))
    }

    /// Sentences.
    pub(super) fn say(&mut self, text: &str) -> Written {
        wrap(text, self.width - MARGIN.len()).iter().try_for_each(|line| self.line(line))
    }

    /// A finding that is as it should be.
    pub(super) fn good(&mut self, text: &str) -> Written {
        self.marked(self.glyphs.good, GOOD, "", text)
    }

    /// A finding that nobody would want: the reason for underpass.
    pub(super) fn alarm(&mut self, text: &str) -> Written {
        self.marked(self.glyphs.alarm, BAD, "", text)
    }

    /// A claim that did not hold.
    pub(super) fn failed(&mut self, text: &str) -> Written {
        self.marked(self.glyphs.failed, BAD, "", text)
    }

    /// A claim, in a column `columns` wide, and its evidence beside it.
    pub(super) fn finding(&mut self, held: bool, claim: &str, columns: usize, evidence: &str) -> Written {
        let (mark, style) = if held { (self.glyphs.good, GOOD) } else { (self.glyphs.failed, BAD) };
        self.marked(mark, style, &format!("{claim:columns$}  "), evidence)
    }

    /// A line that is already laid out, with the margin before it.
    pub(super) fn line(&mut self, line: &str) -> Written {
        self.print(&format!("{MARGIN}{line}"))
    }

    /// A line that fills the whole width.
    pub(super) fn wide_line(&mut self, line: &str) -> Written {
        self.print(line)
    }

    /// Mark, label and text; the text's further lines begin where its first does.
    fn marked(&mut self, mark: &str, style: Style, label: &str, text: &str) -> Written {
        let indent = mark.chars().count() + 1 + label.chars().count();
        let mut start = format!("{style}{mark}{style:#} {label}");
        for line in wrap(text, self.width - MARGIN.len() - indent) {
            self.line(&format!("{start}{line}"))?;
            start = " ".repeat(indent);
        }
        Ok(())
    }

    /// Shows a line at once: a step may take seconds.
    fn print(&mut self, line: &str) -> Written {
        self.out.write_all(format!("{}\n", line.trim_end()).as_bytes())?;
        Ok(self.out.flush()?)
    }
}

/// Breaks `text` between words into lines of at most `width` columns, where a word allows it.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            write!(line, " {word}").expect("writing to a string succeeds");
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_between_words_and_leaves_long_words_whole() {
        assert_eq!(wrap("a bb ccc dddddddd e", 6), ["a bb", "ccc", "dddddddd", "e"]);
    }

    #[test]
    fn draws_with_ascii_only_where_the_locale_has_no_more() {
        let bar = |locale| Glyphs::for_locale(locale).bar;
        assert_eq!(bar(None), Glyphs::UNICODE.bar);
        assert_eq!(bar(Some("en_US.UTF-8")), Glyphs::UNICODE.bar);
        assert_eq!(bar(Some("C.utf8")), Glyphs::UNICODE.bar);
        assert_eq!(bar(Some("C")), Glyphs::ASCII.bar);
    }
}

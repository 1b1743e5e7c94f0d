//! Paragraphs of named values, as `check` and `audit` print them.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::Style;

/// Of a paragraph's first line.
pub(super) const HEADING: Style = Style::new().bold();

/// One value of a paragraph.
pub(super) fn line(out: &mut dyn Write, name: &str, value: impl Display) -> io::Result<()> {
    writeln!(out, "  {name:<14} {value}")
}

/// The same, of what may not be there.
pub(super) fn optional_line(out: &mut dyn Write, name: &str, value: Option<impl Display>) -> io::Result<()> {
    value.map_or(Ok(()), |value| line(out, name, value))
}

/// As they are written in the configuration.
pub(super) fn texts<T: Display>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// What a peer may reach.
pub(super) fn reach_line(out: &mut dyn Write, exposed: &[String]) -> io::Result<()> {
    let reaches = if exposed.is_empty() { "nothing: it may only answer".to_owned() } else { exposed.join(", ") };
    line(out, "may reach", reaches)
}

//! Why a configuration was refused, for the person who wrote it: file, line, key, what is wrong and what would be right.
//!
//! Owns the collecting, ordering and wording of problems. It judges no value; secrets never enter it.

use std::cell::OnceCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Problems shown before the rest is only counted: a screenful.
const SHOWN: usize = 20;
/// Characters of a refused value that are repeated in the message.
const QUOTED: usize = 64;

/// Everything that is wrong with one configuration file, in the file's order. Holds at least one problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    problems: Vec<Problem>,
    /// How many more there are than `problems` holds.
    omitted: usize,
}

/// One mistake and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line and column in the configuration file. `None` when it is about the file as a whole.
    pub position: Option<Position>,
    /// The key, as `interface.mtu` or `backend "app1".endpoint`. Empty when it is about the file as a whole.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What would be right, as an instruction.
    pub remedy: String,
}

/// A place in a text, both counted from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
}

impl ConfigError {
    /// The file as a whole cannot be used.
    pub(super) fn of_file(file: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        let problem = Problem { position: None, key: String::new(), what: what.into(), remedy: remedy.into() };
        Self { file: file.to_owned(), problems: vec![problem], omitted: 0 }
    }

    /// The configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What is wrong, in the file's order; after the first twenty the rest is only counted.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many problems there are in all.
    pub fn count(&self) -> usize {
        self.problems.len() + self.omitted
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = printable(&self.file);
        match self.count() {
            1 => write!(f, "{file} is refused:")?,
            count => write!(f, "{file} is refused, {count} problems:")?,
        }
        for problem in &self.problems {
            write!(f, "\n  {file}{problem}")?;
        }
        match self.omitted {
            0 => Ok(()),
            omitted => write!(f, "\n  … and {omitted} more"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// As it follows the file's name: `:7:7: interface.mtu: what is wrong`, and the remedy on a line of its own.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}\n      help: {}", self.what, self.remedy)
    }
}

/// Gathers problems while a file is judged.
pub(super) struct Problems<'a> {
    text: &'a str,
    /// Offsets at which lines begin, made when first asked for.
    line_starts: OnceCell<Vec<usize>>,
    found: Vec<(usize, Problem)>,
}

impl<'a> Problems<'a> {
    /// `text` is what all spans point into.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, line_starts: OnceCell::new(), found: Vec::new() }
    }

    /// Notes that the value at `span` is refused.
    pub(super) fn push(
        &mut self,
        span: Range<usize>,
        key: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let problem = Problem { position: None, key: key.into(), what: what.into(), remedy: remedy.into() };
        self.found.push((span.start, problem));
    }

    /// Set when `key` itself was refused.
    pub(super) fn mentions(&self, key: &str) -> bool {
        self.found.iter().any(|(_, problem)| problem.key == key)
    }

    /// The line of `span`, to refer to from another.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.line_starts().partition_point(|&start| start <= span.start)
    }

    /// The problems found, as the error of `file`; `None` when there are none.
    pub(super) fn into_error(mut self, file: &Path) -> Option<ConfigError> {
        if self.found.is_empty() {
            return None;
        }
        self.found.sort_by_key(|(offset, _)| *offset);
        let omitted = self.found.len().saturating_sub(SHOWN);
        let shown = self.found.len() - omitted;
        let mut found = std::mem::take(&mut self.found);
        found.truncate(shown);
        let problems = found
            .into_iter()
            .map(|(offset, problem)| Problem { position: Some(self.position(offset)), ..problem })
            .collect();
        Some(ConfigError { file: file.to_owned(), problems, omitted })
    }

    fn position(&self, offset: usize) -> Position {
        let line = self.line(&(offset..offset));
        let start = self.line_starts()[line - 1];
        let column = self.text[start..].char_indices().take_while(|(index, _)| start + index < offset).count() + 1;
        Position { line, column }
    }

    fn line_starts(&self) -> &[usize] {
        self.line_starts.get_or_init(|| {
            let after_newlines = self.text.match_indices('\n').map(|(index, _)| index + 1);
            std::iter::once(0).chain(after_newlines).collect()
        })
    }
}

/// `value` in quotation marks for a message: control characters escaped, long ones cut, and nothing that could be a key.
pub(super) fn quote(value: &str) -> String {
    if could_hold_a_key(value) {
        return "a value that could be a key and is not repeated here".to_owned();
    }
    let mut short: String = value.chars().take(QUOTED).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// `path` for a message: control characters escaped, and nothing that could be a key.
pub(super) fn printable(path: &Path) -> String {
    let text = path.to_string_lossy();
    if could_hold_a_key(&text) {
        return "(a path that could be a key)".to_owned();
    }
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text.into_owned() }
}

/// Set for 43 base64 characters and a closing '=', wherever they stand: someone put a key where a name belongs.
fn could_hold_a_key(value: &str) -> bool {
    value.split('=').rev().skip(1).any(|before| {
        let base64 = before.bytes().rev().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/')).count();
        base64 >= 43
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_in_the_order_of_the_file() {
        let mut problems = Problems::new("a = 1\nb = 2\n");
        problems.push(10..11, "b", "second", "fix b");
        problems.push(4..5, "a", "first", "fix a");
        let error = problems.into_error(Path::new("x.toml")).unwrap();
        assert_eq!(
            error.to_string(),
            "x.toml is refused, 2 problems:\n  x.toml:1:5: a: first\n      help: fix a\n  x.toml:2:5: b: second\n      help: fix b"
        );
    }

    #[test]
    fn columns_count_characters() {
        let mut problems = Problems::new("é = 1");
        problems.push(5..6, "é", "w", "r");
        let error = problems.into_error(Path::new("x.toml")).unwrap();
        assert_eq!(error.problems()[0].position, Some(Position { line: 1, column: 5 }));
    }

    #[test]
    fn a_flood_of_problems_is_cut() {
        let mut problems = Problems::new("");
        for _ in 0..1000 {
            problems.push(0..0, "k", "w", "r");
        }
        let error = problems.into_error(Path::new("x.toml")).unwrap();
        assert_eq!((error.problems().len(), error.count()), (SHOWN, 1000));
        assert!(error.to_string().ends_with("and 980 more"));
    }

    #[test]
    fn a_key_in_the_wrong_place_is_not_repeated() {
        let key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
        assert!(!quote(key).contains("yAnz"));
        assert!(!quote(&format!("/etc/{key}")).contains("yAnz"));
        assert!(!printable(Path::new(key)).contains("yAnz"));
        assert_eq!(quote("app\n1"), r#""app\n1""#);
        assert_eq!(quote(&"x".repeat(100)).chars().count(), QUOTED + 3);
    }
}

//! The `underpass` command: takes the arguments, does what they ask, and says in one place why it could not.

use std::io::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Parser as _;
use underpass::cli::{self, Arguments, Failure};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match cli::execute(arguments, &mut anstream::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

/// Prints the chain of causes in one line (a refused configuration brings its own lines) and picks the exit code.
fn report(failure: &Failure) -> ExitCode {
    const ERROR: Style = AnsiColor::Red.on_default().bold();
    // Nothing is left to tell it to when standard error is closed.
    let _ = writeln!(anstream::stderr(), "{ERROR}error:{ERROR:#} {:#}", failure.error);
    ExitCode::from(failure.exit as u8)
}

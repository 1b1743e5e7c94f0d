//! `underpass completions`: a shell's completion script.

use std::io::Write;

use clap::CommandFactory as _;

use super::Failure;
use super::arguments::{Arguments, CompletionsArguments};

/// Writes the script to `out`.
pub fn run(arguments: &CompletionsArguments, out: &mut dyn Write) -> Result<(), Failure> {
    // Into memory first: the generator panics when its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "underpass", &mut script);
    Ok(out.write_all(&script)?)
}

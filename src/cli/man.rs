//! `underpass man`: the manual pages, made of the same text as `--help`.

use std::fs;
use std::io::Write;
use std::path::Path;

use clap::CommandFactory as _;
use clap_mangen::Man;

use super::Failure;
use super::arguments::{Arguments, ManArguments};

/// Writes all pages to `out`, or each to a file of its own.
pub fn run(arguments: &ManArguments, out: &mut dyn Write) -> Result<(), Failure> {
    for page in pages() {
        match &arguments.out {
            None => page.render(out)?,
            Some(directory) => write_file(&page, directory)?,
        }
    }
    Ok(())
}

fn write_file(page: &Man, directory: &Path) -> Result<(), Failure> {
    let path = directory.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(&path, text).map_err(|error| Failure::from(error).context(format!("cannot write {}", path.display())))
}

/// The page of the program, then one for each subcommand.
fn pages() -> Vec<Man> {
    let mut root = Arguments::command();
    root.build();
    let subcommands: Vec<_> = root.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    std::iter::once(root).chain(subcommands).map(|command| Man::new(command).manual("underpass manual")).collect()
}

//! The command line: what can be asked of `underpass`, and how the answers look.
//!
//! One file for each subcommand. Owns arguments, printing and exit codes; what a command does beyond that lies in the
//! layers below.

pub mod arguments;
pub mod audit;
pub mod check;
pub mod close;
mod columns;
pub mod completions;
pub mod demo;
pub mod doctor;
pub mod drain;
pub mod failure;
pub mod genkey;
pub mod genpsk;
mod key_output;
mod lines;
pub mod man;
pub mod open;
pub mod privileged;
pub mod pubkey;
mod quantity;
pub mod reload;
pub mod restart;
pub mod run;
pub mod status;
pub mod top;
pub mod verify;

use std::io::Write;

pub use arguments::{Arguments, Command};
pub use failure::{Exit, Failure};

/// Does what `arguments` ask for and writes the answer to `out`.
pub fn execute(arguments: Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    match arguments.command {
        Command::Run(arguments) => run::run(&arguments)?,
        Command::Privileged(arguments) => privileged::run(&arguments)?,
        Command::Demo => demo::run(out)?,
        Command::Genkey(arguments) => genkey::run(&arguments, out)?,
        Command::Pubkey(arguments) => pubkey::run(&arguments, out)?,
        Command::Genpsk(arguments) => genpsk::run(&arguments, out)?,
        Command::Check(arguments) => check::run(&arguments, out)?,
        Command::Status(arguments) => status::run(&arguments, out)?,
        Command::Top(arguments) => top::run(&arguments)?,
        Command::Reload(arguments) => reload::run(&arguments, out)?,
        Command::Drain(arguments) => drain::run(&arguments, true, out)?,
        Command::Undrain(arguments) => drain::run(&arguments, false, out)?,
        Command::Open(arguments) => open::run(&arguments, out)?,
        Command::Restart(arguments) => restart::run(&arguments, out)?,
        Command::Verify(arguments) => verify::run(&arguments, out)?,
        Command::Doctor(arguments) => doctor::run(&arguments, out)?,
        Command::Audit(arguments) => audit::run(&arguments, out)?,
        Command::Close(arguments) => close::run(&arguments, out)?,
        Command::Completions(arguments) => completions::run(&arguments, out)?,
        Command::Man(arguments) => man::run(&arguments, out)?,
    }
    Ok(out.flush()?)
}

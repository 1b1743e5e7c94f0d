//! `underpass pubkey`: the public key that belongs to a private key.

use std::io::{self, IsTerminal as _, Read as _, Write};
use std::path::Path;

use anyhow::{Context as _, anyhow};
use zeroize::Zeroizing;

use super::arguments::PubkeyArguments;
use super::{Exit, Failure};
use crate::config::{Disk, KeyFiles as _};
use crate::keys::PrivateKey;

/// More than a key's text with white space around it.
const MAX_INPUT: usize = 1024;

/// Reads the private key from a file or standard input and writes its public key to `out`.
pub fn run(arguments: &PubkeyArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let key = match &arguments.file {
        Some(path) => read_file(path),
        None => read_stdin(),
    };
    let key = key.map_err(|error| Failure::new(Exit::Config, error))?;
    Ok(writeln!(out, "{}", key.public_key())?)
}

fn read_file(path: &Path) -> anyhow::Result<PrivateKey> {
    let refused = || format!("{} is refused as a private key", path.display());
    let text = Disk::from_environment().read(path).with_context(refused)?;
    text.parse().with_context(refused)
}

fn read_stdin() -> anyhow::Result<PrivateKey> {
    let stdin = io::stdin().lock();
    if stdin.is_terminal() {
        writeln!(anstream::stderr(), "underpass: paste the private key and press Enter, then Ctrl-D")?;
    }
    // Room for one byte more than allowed, so that the buffer never moves and leaves a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_INPUT + 1));
    stdin.take(MAX_INPUT as u64 + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    let text = std::str::from_utf8(&bytes).map_err(|_| anyhow!("what stands on standard input is not text"))?;
    text.parse().context("what stands on standard input is not a private key")
}

//! `underpass genkey`: makes a private key.

use std::io::Write;

use super::arguments::GenkeyArguments;
use super::key_output::{random_bytes, write_new_file};
use super::{Exit, Failure};
use crate::keys::PrivateKey;

/// Writes the key to `out`, or to a file and its public key to `out`.
pub fn run(arguments: &GenkeyArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let key = PrivateKey::from_bytes(*random_bytes()?).map_err(|error| Failure::new(Exit::Other, error))?;
    match &arguments.out {
        None => writeln!(out, "{}", key.to_base64().as_str())?,
        Some(path) => {
            write_new_file(path, &key.to_base64())?;
            writeln!(out, "{}", key.public_key())?;
        }
    }
    Ok(())
}

//! `underpass genpsk`: makes a preshared key.

use std::io::Write;

use super::arguments::GenpskArguments;
use super::key_output::{random_bytes, write_new_file};
use super::{Exit, Failure};
use crate::keys::PresharedKey;

/// Writes the key to `out` or to a file.
pub fn run(arguments: &GenpskArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let key = PresharedKey::from_bytes(*random_bytes()?).map_err(|error| Failure::new(Exit::Other, error))?;
    match &arguments.out {
        None => writeln!(out, "{}", key.to_base64().as_str())?,
        Some(path) => write_new_file(path, &key.to_base64())?,
    }
    Ok(())
}

//! Makes secrets and puts them where only their owner can read them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

use nix::unistd::geteuid;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::{Exit, Failure};
use crate::keys::KEY_LEN;

/// Fresh bytes from the kernel.
pub(super) fn random_bytes() -> Result<Zeroizing<[u8; KEY_LEN]>, Failure> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    let filled = SystemRandom::new().fill(bytes.as_mut_slice());
    filled.map_err(|_| Failure::new(Exit::Other, anyhow::anyhow!("the kernel gives no random bytes")))?;
    Ok(bytes)
}

/// Writes the line `text` to a file that must not exist yet and that only its owner may read: whoever calls, but of root's
/// the owner of the directory, who could put another in its place anyway.
pub(super) fn write_new_file(path: &Path, text: &str) -> Result<(), Failure> {
    write_line(path, text).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AlreadyExists => "it exists, and a key is never overwritten: name another file",
            io::ErrorKind::NotFound => "its directory does not exist: make it with `install -d -m 700 DIRECTORY`",
            _ => "the system refuses",
        };
        Failure::from(error).context(format!("cannot write a key to {}: {why}", path.display()))
    })
}

fn write_line(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = writeln!(file, "{text}").and_then(|()| give_away(&file, path)).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a key helps nobody, and would stand in the way of the next attempt.
        let _ = fs::remove_file(path);
    }
    written
}

fn give_away(file: &File, path: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let owner = fs::metadata(directory)?;
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

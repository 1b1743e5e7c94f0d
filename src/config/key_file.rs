//! Reads secrets from files, and refuses files that would not keep them secret.
//!
//! Owns what a key file may be: small, regular (or a pipe that the caller opened), closed to group and others. It does not
//! know what the key is for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use zeroize::Zeroizing;

/// A key is 44 characters: what is larger than this is another file.
const MAX_SIZE: usize = 1024;

/// Why a key file was refused. Never carries the file's content.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Nothing has that name.
    #[error("there is no such file")]
    NotFound,
    /// This user may not read it.
    #[error("this user may not read it")]
    Denied,
    /// The running daemon's sandbox does not let it be read.
    #[error("it lies outside of the directories that the sandbox of the running daemon lets it read")]
    OutsideSandbox,
    /// A directory, device, socket or named pipe.
    #[error("it is not a regular file")]
    NotRegular,
    /// Others than the owner may read or write it; the mode's permission bits.
    #[error("its mode is {0:04o}: others than its owner may read or change it")]
    Exposed(u32),
    /// Larger than a key file can be.
    #[error("it is larger than {MAX_SIZE} bytes, so it holds something else than one key")]
    TooLarge,
    /// Only white space, or nothing.
    #[error("it is empty")]
    Empty,
    /// Bytes that are no text.
    #[error("it is not text")]
    NotText,
    /// Anything else the system reports.
    #[error("reading it failed: {0}")]
    Io(io::Error),
}

/// Where the text of a key file comes from: the disk, or a test that has none.
pub trait KeyFiles {
    /// The whole text of the file at `path`.
    fn read(&mut self, path: &Path) -> Result<Zeroizing<String>, KeyFileError>;
}

/// No key files: each is taken to hold a key of its own, of which nobody knows anything.
#[derive(Debug, Default, Clone)]
pub(super) struct Unread {
    files: u8,
}

impl KeyFiles for Unread {
    fn read(&mut self, _path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
        // The number keeps them apart, where X25519 looks at all bits.
        self.files = self.files.wrapping_add(1);
        let mut bytes = [0xff; 32];
        bytes[1] = self.files;
        Ok(Zeroizing::new(STANDARD.encode(bytes)))
    }
}

/// Key files on disk.
#[derive(Debug, Default, Clone)]
pub struct Disk {
    /// `$CREDENTIALS_DIRECTORY`. systemd grants the service's user access to the files in it by an access control list, which
    /// shows as group-readable.
    credentials: Option<PathBuf>,
    /// The only directories that a sandbox lets be read, if there is one.
    readable: Option<Vec<PathBuf>>,
}

impl Disk {
    /// Knows the credentials directory that systemd names in the environment, if it does.
    pub fn from_environment() -> Self {
        Self { credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from), readable: None }
    }

    /// Where a sandbox lets nothing but these directories be read, if there are any.
    pub fn within(self, readable: Option<Vec<PathBuf>>) -> Self {
        Self { readable, ..self }
    }

    fn may_be_group_readable(&self, path: &Path) -> bool {
        let inside = |directory: &PathBuf| path.parent() == Some(directory);
        self.credentials.as_ref().is_some_and(inside)
    }

    fn is_outside_sandbox(&self, path: &Path) -> bool {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.readable.as_ref().is_some_and(|readable| !readable.iter().any(|directory| path.starts_with(directory)))
    }
}

impl KeyFiles for Disk {
    fn read(&mut self, path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
        let file = open(path).map_err(|error| match error {
            KeyFileError::Denied if self.is_outside_sandbox(path) => KeyFileError::OutsideSandbox,
            error => error,
        })?;
        let metadata = file.metadata().map_err(KeyFileError::Io)?;
        if metadata.is_file() {
            let refused = if self.may_be_group_readable(path) { 0o026 } else { 0o066 };
            if metadata.mode() & refused != 0 {
                return Err(KeyFileError::Exposed(metadata.mode() & 0o7777));
            }
        } else if metadata.file_type().is_fifo() && is_open_already(path) {
            wait_for_the_writer(&file)?;
        } else {
            return Err(KeyFileError::NotRegular);
        }
        read_text(file)
    }
}

/// Opens without waiting for the writer of a pipe and without becoming a terminal's session leader.
/// When the file at `path` was written, in seconds since 1970.
pub fn written(path: &Path) -> Option<u64> {
    u64::try_from(path.metadata().ok()?.mtime()).ok()
}

fn open(path: &Path) -> Result<File, KeyFileError> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => KeyFileError::NotFound,
        io::ErrorKind::PermissionDenied => KeyFileError::Denied,
        _ => KeyFileError::Io(error),
    })
}

/// Set for names of what the caller handed over: `underpass run < pipe` and the shell's `<(command)`.
pub(super) fn is_open_already(path: &Path) -> bool {
    path == Path::new("/dev/stdin") || path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd")
}

fn wait_for_the_writer(file: &File) -> Result<(), KeyFileError> {
    fcntl(file, FcntlArg::F_SETFL(OFlag::empty())).map(drop).map_err(|error| KeyFileError::Io(error.into()))
}

fn read_text(file: File) -> Result<Zeroizing<String>, KeyFileError> {
    // Room for one byte more than allowed, so that the buffer never moves and leaves a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SIZE + 1));
    file.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes).map_err(KeyFileError::Io)?;
    if bytes.len() > MAX_SIZE {
        return Err(KeyFileError::TooLarge);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| KeyFileError::NotText)?;
    if text.trim().is_empty() { Err(KeyFileError::Empty) } else { Ok(Zeroizing::new(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const TEXT: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n";

    fn file_with(mode: u32, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn reads_a_file_that_only_its_owner_may_read() {
        let (_directory, path) = file_with(0o400, TEXT.as_bytes());
        assert_eq!(Disk::default().read(&path).unwrap().as_str(), TEXT);
    }

    #[test]
    fn refuses_files_open_to_others() {
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666] {
            let (_directory, path) = file_with(mode, TEXT.as_bytes());
            let error = Disk::default().read(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed(found) if found == mode), "{mode:o}: {error}");
        }
    }

    #[test]
    fn a_credential_of_systemd_may_be_group_readable_but_not_more() {
        for (mode, accepted) in [(0o440, true), (0o444, false), (0o460, false)] {
            let (directory, path) = file_with(mode, TEXT.as_bytes());
            let mut disk = Disk { credentials: Some(directory.path().to_owned()), readable: None };
            assert_eq!(disk.read(&path).is_ok(), accepted, "{mode:o}");
        }
    }

    #[test]
    fn refuses_what_is_no_key_file() {
        let (directory, path) = file_with(0o600, b" \n");
        assert!(matches!(Disk::default().read(&path), Err(KeyFileError::Empty)));
        fs::write(&path, [b'x'; MAX_SIZE + 1]).unwrap();
        assert!(matches!(Disk::default().read(&path), Err(KeyFileError::TooLarge)));
        fs::write(&path, [0xff; 44]).unwrap();
        assert!(matches!(Disk::default().read(&path), Err(KeyFileError::NotText)));
        assert!(matches!(Disk::default().read(directory.path()), Err(KeyFileError::NotRegular)));
        assert!(matches!(Disk::default().read(Path::new("/dev/null")), Err(KeyFileError::NotRegular)));
        assert!(matches!(Disk::default().read(&directory.path().join("other")), Err(KeyFileError::NotFound)));
    }

    #[test]
    fn a_named_pipe_is_refused_without_waiting_for_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(Disk::default().read(&path), Err(KeyFileError::NotRegular)));
    }
}

//! From the name of a key file in the configuration to the key.
//!
//! Owns how a name becomes a path and how each failure is worded, with the command that mends it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::error::printable;
use super::key_file::{KeyFileError, KeyFiles, is_open_already};
use super::scope::{Refusal, Scope};
use crate::keys::{KeyError, PresharedKey, PrivateKey};

/// Where one configuration's keys come from.
pub(super) struct KeySource<'a> {
    /// The configuration file's directory, against which names are resolved.
    pub(super) directory: &'a Path,
    pub(super) files: &'a mut dyn KeyFiles,
    /// Of the files that were asked for.
    pub(super) directories: BTreeSet<PathBuf>,
}

impl KeySource<'_> {
    /// `name` as a path: relative ones begin at the configuration file's directory.
    pub(super) fn resolve(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The path that a key of the configuration names.
    pub(super) fn path(&self, file: Option<&Spanned<String>>) -> Option<PathBuf> {
        file.map(|name| self.resolve(name.get_ref()))
    }

    /// The private key in the file that `key` names.
    pub(super) fn private(
        &mut self,
        scope: &mut Scope<'_, '_>,
        key: &str,
        file: Option<Spanned<String>>,
    ) -> Option<PrivateKey> {
        scope.check(key, file, |name| self.read(name, "genkey", str::parse))
    }

    /// The preshared key in the file that `key` names.
    pub(super) fn preshared(
        &mut self,
        scope: &mut Scope<'_, '_>,
        key: &str,
        file: Option<Spanned<String>>,
    ) -> Option<PresharedKey> {
        scope.check(key, file, |name| self.read(name, "genpsk", str::parse))
    }

    /// `generator` is the subcommand that makes such a file.
    fn read<K>(
        &mut self,
        name: &str,
        generator: &str,
        parse: impl FnOnce(&str) -> Result<K, KeyError>,
    ) -> Result<K, Refusal> {
        if name.is_empty() || name.contains('\0') {
            return Err(Refusal::new("this cannot name a file", "write the path of the key file"));
        }
        let path = self.resolve(name);
        if !is_open_already(&path) {
            self.directories.extend(path.parent().map(Path::to_owned));
        }
        let text = self.files.read(&path).map_err(|error| refuse_file(&path, generator, &error))?;
        parse(&text).map_err(|error| {
            let what = format!("{} does not hold a key: {error}", printable(&path));
            Refusal::new(
                what,
                format!("make a new one elsewhere with `underpass {generator} --out FILE`, or name the right file"),
            )
        })
    }
}

fn refuse_file(path: &Path, generator: &str, error: &KeyFileError) -> Refusal {
    let shown = printable(path);
    let remedy = match error {
        KeyFileError::NotFound => {
            format!("name a file that exists, or make it with `underpass {generator} --out {shown}`")
        }
        KeyFileError::OutsideSandbox => {
            "move it to where the others are, or have the service manager restart the daemon: `systemctl restart`"
                .to_owned()
        }
        KeyFileError::Denied => format!("run as root, or give the file to this user: `chown USER {shown}`"),
        KeyFileError::Exposed(_) => format!("`chmod 600 {shown}`; if others may have read it, make a new key"),
        KeyFileError::Empty => format!("delete it and make a key with `underpass {generator} --out {shown}`"),
        KeyFileError::NotRegular | KeyFileError::TooLarge | KeyFileError::NotText => {
            "name the file that holds one key and nothing else: 44 characters of base64".to_owned()
        }
        KeyFileError::Io(_) => "mend what the system reports, or move the file".to_owned(),
    };
    Refusal::new(format!("{shown} is refused as a key file: {error}"), remedy)
}

//! Where peers were last, in a small file beside the control socket: so that a daemon that was restarted can call those
//! who otherwise call it, at once.
//!
//! The file lies in the runtime directory: it outlives the daemon, not the machine's next start.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::keys::PublicKey;
use crate::proto::event::Event;

/// The endpoints of peers that have proven themselves.
#[derive(Debug)]
pub struct RememberedPeers {
    path: PathBuf,
    endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// Set while the file is older.
    is_changed: bool,
}

impl RememberedPeers {
    /// Those in the file beside `control_socket` whom `is_known` knows. A file that can't be read is one without peers.
    pub fn load(control_socket: &Path, is_known: impl Fn(&PublicKey) -> bool) -> Self {
        let path = beside(control_socket);
        let mut endpoints = read(&path).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "the endpoints of peers before the restart can't be read");
            }
            BTreeMap::new()
        });
        endpoints.retain(|key, _| is_known(key));
        Self { path, endpoints, is_changed: false }
    }

    /// Who they are, and where.
    pub fn endpoints(&self) -> impl Iterator<Item = (PublicKey, SocketAddr)> {
        self.endpoints.iter().map(|(key, endpoint)| (*key, *endpoint))
    }

    /// Takes what happened.
    pub fn note(&mut self, event: &Event) {
        if let Event::EndpointChanged { peer, endpoint } = event {
            let before = self.endpoints.insert(*peer, endpoint.remote);
            self.is_changed |= before != Some(endpoint.remote);
        }
    }

    /// Whether there is something to write.
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Writes the file, if there is something to write.
    pub fn write(&mut self) {
        if std::mem::take(&mut self.is_changed)
            && let Err(error) = write(&self.path, &self.endpoints)
        {
            tracing::warn!(%error, path = %self.path.display(), "the endpoints of peers can't be remembered for a restart");
        }
    }
}

/// `NAME.peers` for `NAME.sock`.
fn beside(control_socket: &Path) -> PathBuf {
    if control_socket.extension().is_some_and(|extension| extension == "sock") {
        return control_socket.with_extension("peers");
    }
    let mut path = control_socket.as_os_str().to_owned();
    path.push(".peers");
    path.into()
}

/// The file, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    schema_version: u32,
    /// By public key, in base64.
    peers: BTreeMap<String, SocketAddr>,
}

/// Goes up when a daemon would misunderstand the file of another version.
const SCHEMA_VERSION: u32 = 1;

fn read(path: &Path) -> io::Result<BTreeMap<PublicKey, SocketAddr>> {
    let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may write to it"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let contents: Contents = serde_json::from_str(&text)?;
    if contents.schema_version != SCHEMA_VERSION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another version"));
    }
    let peers = contents.peers.into_iter();
    Ok(peers.filter_map(|(key, endpoint)| Some((key.parse().ok()?, endpoint))).collect())
}

/// In the place of the old file, whole or not at all.
fn write(path: &Path, endpoints: &BTreeMap<PublicKey, SocketAddr>) -> io::Result<()> {
    let peers = endpoints.iter().map(|(key, endpoint)| (key.to_string(), *endpoint)).collect();
    let text = serde_json::to_vec(&Contents { schema_version: SCHEMA_VERSION, peers })?;
    let new = path.with_extension("peers.new");
    // One that a killed daemon left. Anything else at the path makes the next line fail.
    let _ = fs::remove_file(&new);
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::keys::PrivateKey;
    use crate::proto::endpoint::Endpoint;

    fn key(byte: u8) -> PublicKey {
        PrivateKey::from_bytes([byte; 32]).unwrap().public_key()
    }

    fn moved(peer: u8, remote: &str) -> Event {
        Event::EndpointChanged { peer: key(peer), endpoint: Endpoint::new(remote.parse().unwrap()) }
    }

    /// A runtime directory with a control socket in it.
    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("underpass0.sock");
        (directory, socket)
    }

    #[test]
    fn the_next_daemon_knows_where_peers_were_and_only_those_it_has() {
        let (_directory, socket) = directory();
        let mut peers = RememberedPeers::load(&socket, |_| true);
        assert_eq!(peers.endpoints().count(), 0);
        peers.note(&moved(1, "192.0.2.1:51900"));
        peers.note(&moved(1, "192.0.2.1:40000"));
        peers.note(&moved(2, "[fe80::1%3]:51900"));
        peers.write();
        assert!(!peers.is_changed());
        let known: Vec<_> = RememberedPeers::load(&socket, |_| true).endpoints().collect();
        let mut expected =
            [(key(1), "192.0.2.1:40000".parse().unwrap()), (key(2), "[fe80::1%3]:51900".parse().unwrap())];
        expected.sort();
        assert_eq!(known, expected);
        let of_others: Vec<_> = RememberedPeers::load(&socket, |peer| *peer == key(2)).endpoints().collect();
        assert_eq!(of_others, [(key(2), "[fe80::1%3]:51900".parse().unwrap())]);
    }

    #[test]
    fn the_file_is_never_the_socket() {
        let path = |socket: &str| beside(Path::new(socket)).display().to_string();
        assert_eq!(path("/run/underpass/blue.sock"), "/run/underpass/blue.peers");
        assert_eq!(path("/run/blue.peers"), "/run/blue.peers.peers");
    }

    #[test]
    fn only_root_reads_the_file_and_only_a_change_is_written() {
        let (_directory, socket) = directory();
        let mut peers = RememberedPeers::load(&socket, |_| true);
        peers.note(&moved(1, "192.0.2.1:51900"));
        peers.write();
        let path = socket.with_extension("peers");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        peers.note(&moved(1, "192.0.2.1:51900"));
        peers.write();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_others_may_have_written_or_nobody_understands_is_not_believed() {
        let (_directory, socket) = directory();
        let path = socket.with_extension("peers");
        let peers = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            RememberedPeers::load(&socket, |_| true).endpoints().count()
        };
        let good = format!(r#"{{"schema_version":1,"peers":{{"{}":"192.0.2.1:1","no key":"192.0.2.1:1"}}}}"#, key(1));
        assert_eq!(peers(&good, 0o600), 1);
        assert_eq!(peers(&good, 0o622), 0);
        for bad in ["", "[]", r#"{"schema_version":2,"peers":{}}"#, "\u{0}"] {
            assert_eq!(peers(bad, 0o600), 0, "{bad:?}");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert_eq!(RememberedPeers::load(&socket, |_| true).endpoints().count(), 0);
    }
}

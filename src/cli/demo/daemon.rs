//! The real daemons: this program again, as `underpass run --config FILE`, one in each machine of the demo.
//!
//! Makes their keys and configurations, starts them, and asks them for their counters by `underpass status --json`, as
//! an operator would. Ending them is the business of `cleanup`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::cleanup;
use super::namespace::Namespace;
use super::network::{APP_NAMES, APPS, Network};
use super::wait::wait_for;
use super::{shop, speed};
use crate::keys::{PrivateKey, PublicKey};

/// The UDP port of the tunnel.
pub(super) const TUNNEL_PORT: u16 = 51_900;
/// The proxy's address inside the tunnel.
const PROXY_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The apps' addresses inside the tunnel.
pub(super) const APPS_INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 11), Ipv4Addr::new(10, 77, 0, 12)];

const START: Duration = Duration::from_secs(10);

/// A daemon that was started.
#[derive(Debug)]
pub(super) struct Daemon {
    name: &'static str,
    program: PathBuf,
    id: u32,
    control_socket: PathBuf,
    log: PathBuf,
}

/// A daemon ended before it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("the daemon of {name} ended at once; its last words:\n{log}")]
pub(super) struct DaemonEnded {
    name: &'static str,
    log: String,
    /// Its exit code says whose fault it is; ours is the same.
    pub(super) code: Option<i32>,
}

/// What `underpass status --json` prints, as far as the demo reads it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    /// One per link.
    pub(super) peers: Vec<Peer>,
    /// How many datagrams and packets were refused, by reason.
    pub(super) drops: BTreeMap<String, u64>,
}

/// One link.
#[derive(Debug, Deserialize)]
pub(super) struct Peer {
    /// As configured.
    pub(super) name: Option<String>,
    /// The suite of its session.
    pub(super) suite: Option<String>,
}

/// The daemons of the demo and the directory with their files.
#[derive(Debug)]
pub(super) struct Daemons {
    /// The proxy side's, then the backend sides'.
    daemons: Vec<Daemon>,
    /// The proxy side's configuration.
    pub(super) proxy_config: String,
}

impl Daemons {
    /// Makes keys and configurations and starts a daemon beside the load balancer and beside each app.
    pub(super) fn start(network: &Network) -> Result<Self> {
        let directory = make_directory()?;
        let proxy_key = make_key(&directory, "proxy")?;
        let app_keys = [make_key(&directory, APP_NAMES[0])?, make_key(&directory, APP_NAMES[1])?];
        let proxy_config = proxy_config(&directory, &app_keys);
        let mut daemons = vec![Daemon::start(&network.proxy, &directory, "proxy", &proxy_config)?];
        for ((namespace, name), address) in network.apps.iter().zip(APP_NAMES).zip(APPS_INSIDE) {
            let config = backend_config(&directory, name, address, &proxy_key);
            daemons.push(Daemon::start(namespace, &directory, name, &config)?);
        }
        daemons.iter().try_for_each(Daemon::wait_until_ready)?;
        Ok(Self { daemons, proxy_config })
    }

    /// What the proxy side says of its links.
    pub(super) fn proxy_status(&self) -> Result<Status> {
        self.daemons[0].status()
    }

    /// Everything that all daemons have refused, by reason.
    pub(super) fn drops(&self) -> Result<BTreeMap<String, u64>> {
        let mut total = BTreeMap::new();
        for daemon in &self.daemons {
            for (reason, count) in daemon.status()?.drops {
                *total.entry(reason).or_default() += count;
            }
        }
        Ok(total)
    }
}

impl Daemon {
    fn start(namespace: &Namespace, directory: &Path, name: &'static str, config: &str) -> Result<Self> {
        let config_file = directory.join(format!("{name}.toml"));
        fs::write(&config_file, config)?;
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let program = std::env::current_exe().context("finding this program's file")?;
        let id = namespace.run(|| {
            let mut command = Command::new(&program);
            command
                .args(["run", "--allow-root", "--config"])
                .arg(&config_file)
                .env("NO_COLOR", "1")
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                // Ctrl-C is for the demo; the daemons are told by `cleanup`.
                .process_group(0);
            cleanup::spawn(&mut command)
        })?;
        Ok(Self { name, program, id, control_socket: control_socket(directory, name), log })
    }

    fn wait_until_ready(&self) -> Result<()> {
        wait_for(&format!("the daemon of {} to start", self.name), START, || {
            if let Some(status) = cleanup::exit_status(self.id) {
                let log = fs::read_to_string(&self.log)?;
                return Err(DaemonEnded { name: self.name, log, code: status.code() }.into());
            }
            Ok(self.status().ok().map(drop))
        })
    }

    fn status(&self) -> Result<Status> {
        let output = Command::new(&self.program)
            .args(["status", "--json", "--socket"])
            .arg(&self.control_socket)
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the daemon of {} gave no status: {said}", self.name);
        serde_json::from_slice(&output.stdout).with_context(|| format!("reading the status of {}", self.name))
    }
}

/// A new directory that only root can enter.
fn make_directory() -> Result<PathBuf> {
    let mut suffix = [0; 8];
    fill(&mut suffix)?;
    let directory = std::env::temp_dir().join(format!("underpass-demo-{:016x}", u64::from_be_bytes(suffix)));
    cleanup::make_directory(&directory)?;
    Ok(directory)
}

/// A new private key in a file of its owner's; returns its public half.
fn make_key(directory: &Path, name: &str) -> Result<PublicKey> {
    let mut bytes = Zeroizing::new([0; 32]);
    fill(bytes.as_mut_slice())?;
    let key = PrivateKey::from_bytes(*bytes)?;
    let path = directory.join(format!("{name}.key"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(key.to_base64().as_bytes())?;
    file.write_all(b"\n")?;
    Ok(key.public_key())
}

/// Fills `bytes` with randomness of the system's.
pub(super) fn fill(bytes: &mut [u8]) -> Result<()> {
    SystemRandom::new().fill(bytes).ok().context("the system gives no randomness")
}

fn control_socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

fn interface(directory: &Path, name: &str, address: Ipv4Addr) -> String {
    format!(
        "[interface]\naddresses = [\"{address}/24\"]\nprivate_key_file = \"{name}.key\"\ncontrol_socket = {:?}\n",
        control_socket(directory, name)
    )
}

fn proxy_config(directory: &Path, keys: &[PublicKey; 2]) -> String {
    let mut config = format!("role = \"proxy\"\n\n{}", interface(directory, "proxy", PROXY_INSIDE));
    for (index, key) in keys.iter().enumerate() {
        config += &format!(
            "\n[[backend]]\nname = \"{}\"\npublic_key = \"{key}\"\nendpoint = \"{}:{TUNNEL_PORT}\"\naddresses = [\"{}\"]\n",
            APP_NAMES[index], APPS[index], APPS_INSIDE[index]
        );
    }
    config
}

fn backend_config(directory: &Path, name: &str, address: Ipv4Addr, proxy: &PublicKey) -> String {
    let interface = interface(directory, name, address);
    format!(
        "role = \"backend\"\n\n{interface}expose = [\"tcp/{}\", \"tcp/{}\"]\n\n[[proxy]]\nname = \"proxy\"\npublic_key = \"{proxy}\"\naddresses = [\"{PROXY_INSIDE}\"]\n",
        shop::PORT,
        speed::BULK_PORT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_counters_and_ignores_what_it_does_not_know() {
        let text = r#"{"schema_version":1,"interface":{},"peers":[{"name":"app1","suite":"aes-256-gcm","new":1}],
            "drops":{"replayed":3},"more":[]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(status.peers[0].name.as_deref(), Some("app1"));
        assert_eq!(status.drops["replayed"], 3);
    }
}

//! The daemon under test: its keys, its configuration, its command line and what it says of itself.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::host::Host;
use crate::process::{Command, Output, Process};
use crate::service_manager::ServiceManager;
use crate::wait;

/// The UDP port that daemons listen on where a test names none.
pub const PORT: u16 = 51900;

/// The interface's name where a test names none.
pub const INTERFACE: &str = "underpass0";

/// Where the proxy side answers agent checks, if not said otherwise.
pub const AGENT_CHECK: &str = "127.0.0.1:51901";

/// At a machine's own addresses, and at every other that it can reach.
const EVERY_PORT: [&str; 6] = ["tcp", "udp", "tcp/0.0.0.0/0", "tcp/[::]/0", "udp/0.0.0.0/0", "udp/[::]/0"];

/// A key pair, as text.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// For the machine itself.
    pub private: String,
    /// For its peers.
    pub public: String,
}

/// A configuration file in the making.
#[derive(Clone)]
pub struct Config {
    program: Option<PathBuf>,
    role: Role,
    private_key: String,
    interface: Vec<(String, String)>,
    health: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    peers: Vec<Peer>,
    /// Set if root's daemon stays root.
    is_root: bool,
}

/// The side of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Beside the load balancer.
    Proxy,
    /// Beside an app server.
    Backend,
}

/// A `[[backend]]` or `[[proxy]]` table.
#[derive(Clone)]
pub struct Peer {
    name: String,
    keys: Vec<(String, String)>,
    preshared_key: Option<String>,
}

/// A running daemon.
pub struct Daemon {
    program: PathBuf,
    process: Process,
    interface: String,
}

/// What `underpass status --json` says.
#[derive(Clone)]
pub struct Status(Value);

impl KeyPair {
    /// Makes one with the command line, as an operator does.
    #[track_caller]
    pub fn generate(host: &Host) -> KeyPair {
        let private = command(host).arg("genkey").run();
        let public = command(host).arg("pubkey").stdin(private.clone()).run();
        KeyPair { private: private.trim().to_owned(), public: public.trim().to_owned() }
    }
}

impl Peer {
    /// A peer with its tunnel addresses.
    pub fn new<'a>(name: &str, public_key: &str, addresses: impl IntoIterator<Item = &'a str>) -> Peer {
        let peer = Peer { name: name.to_owned(), keys: vec![], preshared_key: None };
        peer.set("public_key", quote(public_key)).set("addresses", list(addresses))
    }

    /// Where it is reached.
    pub fn endpoint(self, endpoint: &str) -> Peer {
        self.set("endpoint", quote(endpoint))
    }

    /// What lies behind it.
    pub fn allowed_ips<'a>(self, prefixes: impl IntoIterator<Item = &'a str>) -> Peer {
        self.set("allowed_ips", list(prefixes))
    }

    /// Whether, and in what silence, it is sent keepalives.
    pub fn persistent_keepalive(self, seconds: u16) -> Peer {
        self.set("persistent_keepalive", seconds.to_string())
    }

    /// The key that it will have.
    pub fn next_public_key(self, public_key: &str) -> Peer {
        self.set("next_public_key", quote(public_key))
    }

    /// A key shared beside the key pairs.
    pub fn preshared_key(mut self, key: &str) -> Peer {
        self.preshared_key = Some(key.to_owned());
        self
    }

    /// Sets a key of its table to a TOML value.
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Peer {
        set(&mut self.keys, key, value.into());
        self
    }
}

impl Config {
    /// The least that is needed, without peers yet. All ports are exposed, so that a test may use any, at either side and behind it.
    pub fn new<'a>(role: Role, keys: &KeyPair, addresses: impl IntoIterator<Item = &'a str>) -> Config {
        let private_key = keys.private.clone();
        let (interface, health, environment, peers) = (vec![], vec![], vec![], vec![]);
        let config = Config { program: None, role, private_key, interface, health, environment, peers, is_root: true };
        config.set("addresses", list(addresses)).set("expose", list(EVERY_PORT))
    }

    /// Sets a key of `[interface]` to a TOML value.
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Config {
        set(&mut self.interface, key, value.into());
        self
    }

    /// Sets a key of `[health]` to a TOML value.
    pub fn health(mut self, key: &str, value: impl Into<String>) -> Config {
        set(&mut self.health, key, value.into());
        self
    }

    /// Another interface than [`INTERFACE`], on another port than [`PORT`], and no health checks, whose ports the first has:
    /// for a second daemon on one machine.
    pub fn interface(self, name: &str, port: u16) -> Config {
        let socket = format!("/run/underpass/{name}.sock");
        let config = self.health("agent_check", quote("off")).health("http", quote("off"));
        config.set("name", quote(name)).set("listen", port.to_string()).set("control_socket", quote(&socket))
    }

    /// Sets a variable of the daemon's environment.
    pub fn env(mut self, name: &str, value: &str) -> Config {
        set(&mut self.environment, name, value.to_owned());
        self
    }

    /// Another build than [`program`]: to compare the two.
    pub fn program(mut self, program: PathBuf) -> Config {
        self.program = Some(program);
        self
    }

    /// Has the daemon become its own user.
    pub fn own_user(mut self) -> Config {
        self.is_root = false;
        self
    }

    /// One more peer.
    pub fn peer(mut self, peer: Peer) -> Config {
        self.peers.push(peer);
        self
    }

    /// Another private key.
    pub fn private_key(mut self, keys: &KeyPair) -> Config {
        self.private_key.clone_from(&keys.private);
        self
    }

    /// The key before, which peers may still address.
    pub fn previous_private_key(self, host: &Host, keys: &KeyPair) -> Config {
        let file = write_key(host, "previous.key", &keys.private);
        self.set("previous_private_key_file", quote(&file.display().to_string()))
    }

    /// Another build may be one that exposes everything, or names no destinations: then all ports are exposed.
    fn expose(&self, host: &Host) -> Option<String> {
        let value = self.interface.iter().find(|(key, _)| key == "expose").map(|(_, value)| value.clone());
        let Some(program) = &self.program else { return value };
        let accepts = |value: &str| {
            let file = host.write_file("expose.toml", format!("[interface]\nexpose = {value}\n"));
            !host.command(program).args(["check", "--config"]).arg(file).output().stderr.contains("interface.expose")
        };
        [value?, list(["tcp", "udp"])].into_iter().find(|value| accepts(value))
    }

    /// Arguments of `run` beside the file. Another build may be one that always stays root.
    fn arguments(&self, host: &Host) -> &'static [&'static str] {
        let knows = |program: &PathBuf| host.command(program).args(["run", "--help"]).run().contains("--allow-root");
        if self.is_root && self.program.as_ref().is_none_or(knows) { &["--allow-root"] } else { &[] }
    }

    fn name(&self) -> &str {
        let name = self.interface.iter().find(|(key, _)| key == "name");
        name.map_or(INTERFACE, |(_, value)| value.trim_matches('"'))
    }

    /// Writes the file and its key files for a machine.
    #[track_caller]
    pub fn write(&self, host: &Host) -> PathBuf {
        let name = self.name();
        let key = write_key(host, &format!("{name}.key"), &self.private_key);
        let (role, table) = match self.role {
            Role::Proxy => ("proxy", "backend"),
            Role::Backend => ("backend", "proxy"),
        };
        let mut text = format!("role = \"{role}\"\n[interface]\nprivate_key_file = \"{}\"\n", key.display());
        append(&mut text, self.interface.iter().filter(|(key, _)| key != "expose"));
        append(&mut text, self.expose(host).map(|value| ("expose".to_owned(), value)).as_ref());
        // Another build may be one that knows no health checks.
        if !self.health.is_empty() && self.program.is_none() {
            text += "[health]\n";
            append(&mut text, &self.health);
        }
        for peer in &self.peers {
            text += &format!("[[{table}]]\nname = \"{}\"\n", peer.name);
            append(&mut text, &peer.keys);
            if let Some(secret) = &peer.preshared_key {
                let file = write_key(host, &format!("{name}-{}.psk", peer.name), secret);
                text += &format!("preshared_key_file = \"{}\"\n", file.display());
            }
        }
        host.write_file(&format!("{name}.toml"), text)
    }
}

impl Daemon {
    /// Writes the configuration, starts `underpass run` and waits until it answers on its control socket.
    #[track_caller]
    pub fn start(host: &Host, config: &Config) -> Daemon {
        let mut daemon = Daemon::launch(host, config);
        wait::until(&format!("{} answers", daemon.interface), || {
            daemon.process.assert_running();
            daemon.try_status().is_some()
        });
        host.wait_for_ipv6_addresses();
        daemon
    }

    /// Starts `underpass run` without waiting for it.
    #[track_caller]
    pub fn launch(host: &Host, config: &Config) -> Daemon {
        Daemon::launch_with(host, config, |program| host.command(program))
    }

    /// Starts `underpass run` as a service manager does, with what that has kept, without waiting for it.
    #[track_caller]
    pub fn launch_under(manager: &ServiceManager, config: &Config) -> Daemon {
        Daemon::launch_with(manager.host(), config, |program| manager.command(program))
    }

    #[track_caller]
    fn launch_with(host: &Host, config: &Config, command: impl FnOnce(&Path) -> Command) -> Daemon {
        let file = config.write(host);
        let interface = config.name().to_owned();
        let program = config.program.clone().unwrap_or_else(program);
        let command = command(&program).arg("run").args(config.arguments(host)).arg("--config").arg(file);
        let command = command.env("RUST_BACKTRACE", "1");
        let command = config.environment.iter().fold(command, |command, (name, value)| command.env(name, value));
        Daemon { program, process: command.start(&interface), interface }
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it as an operator would, and returns its exit code.
    #[track_caller]
    pub fn stop(mut self) -> i32 {
        let status = self.process.stop();
        status.code().unwrap_or_else(|| panic!("the daemon was killed: {status}"))
    }

    /// Writes another configuration in the place of the one that it was started with, and asks it to reload.
    #[track_caller]
    pub fn try_reload(&self, config: &Config) -> Output {
        config.write(self.process.host());
        self.ask(&["reload"])
    }

    /// The same; it must be done. Returns what the command said.
    #[track_caller]
    pub fn reload(&self, config: &Config) -> String {
        let output = self.try_reload(config);
        assert_eq!(output.code(), 0, "{}\n{}", output.stderr, self.process.log());
        output.stdout
    }

    /// Runs a command of the program's that asks this daemon.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Output {
        let command = self.process.host().command(&self.program).args(arguments);
        command.args(["--interface", &self.interface]).output()
    }

    /// What it says of itself.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|| panic!("{} does not answer:\n{}", self.interface, self.process.log()))
    }

    fn try_status(&self) -> Option<Status> {
        let output = self.ask(&["status", "--json"]);
        output.status.success().then(|| Status(serde_json::from_str(&output.stdout).expect("status --json is JSON")))
    }

    /// Waits until the link to a peer is in this state.
    #[track_caller]
    pub fn wait_for_state(&self, peer: &str, state: &str) {
        wait::until(&format!("the link to {peer} is {state}"), || self.status().peer(peer).text("state") == state);
    }

    /// How many packets and datagrams it has refused for this reason.
    #[track_caller]
    pub fn drops(&self, reason: &str) -> u64 {
        self.status().drops(reason)
    }
}

impl AsRef<Process> for Daemon {
    fn as_ref(&self) -> &Process {
        &self.process
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = self.try_status();
            eprintln!("{} on {}: {status:?}", self.interface, self.process.host().name());
        }
    }
}

impl Status {
    /// The names of the peers, in their order.
    pub fn peers(&self) -> Vec<String> {
        let peers = self.0["peers"].as_array().into_iter().flatten();
        peers.filter_map(|peer| peer["name"].as_str()).map(str::to_owned).collect()
    }

    /// A peer's part.
    #[track_caller]
    pub fn peer(&self, name: &str) -> Status {
        let peers = self.0["peers"].as_array().into_iter().flatten();
        let peer = peers.into_iter().find(|peer| peer["name"] == name).cloned();
        Status(peer.unwrap_or_else(|| panic!("no peer {name} in {}", self.0)))
    }

    /// The interface's part.
    pub fn interface(&self) -> Status {
        self.part("interface")
    }

    /// A part of that name.
    #[track_caller]
    pub fn part(&self, name: &str) -> Status {
        Status(self.field(name).clone())
    }

    /// A field that is text; empty if it has no value.
    #[track_caller]
    pub fn text(&self, field: &str) -> String {
        self.field(field).as_str().unwrap_or_default().to_owned()
    }

    /// A field that is a list of texts.
    #[track_caller]
    pub fn texts(&self, field: &str) -> Vec<String> {
        self.field(field).as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// A field that is a number; 0 if it has no value.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.field(field).as_u64().unwrap_or_default()
    }

    /// A field that is a time in seconds; 0 if it has no value.
    #[track_caller]
    pub fn seconds(&self, field: &str) -> f64 {
        self.field(field).as_f64().unwrap_or_default()
    }

    /// A field that is true or false.
    #[track_caller]
    pub fn flag(&self, field: &str) -> bool {
        self.field(field).as_bool().unwrap_or_else(|| panic!("{field} is neither true nor false in {}", self.0))
    }

    /// A peer's endpoint, if it is known.
    #[track_caller]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.text("endpoint").parse().ok()
    }

    /// How many packets and datagrams were refused for this reason.
    #[track_caller]
    pub fn drops(&self, reason: &str) -> u64 {
        Status(self.field("drops").clone()).number(reason)
    }

    /// How many packets and datagrams were refused, for whatever reason.
    #[track_caller]
    pub fn all_drops(&self) -> u64 {
        self.field("drops").as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
    }

    #[track_caller]
    fn field(&self, field: &str) -> &Value {
        self.0.get(field).unwrap_or_else(|| panic!("no field {field} in {}", self.0))
    }
}

/// As JSON, without the reasons for which nothing was dropped.
impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if let Some(drops) = shown.get_mut("drops").and_then(Value::as_object_mut) {
            drops.retain(|_, count| *count != 0);
        }
        write!(f, "{shown}")
    }
}

/// The `underpass` program, with arguments to follow.
#[track_caller]
pub fn command(host: &Host) -> Command {
    host.command(program())
}

/// What the daemon on a host says of itself.
#[track_caller]
pub fn status(host: &Host) -> Status {
    let output = command(host).args(["status", "--json", "--interface", INTERFACE]).run();
    Status(serde_json::from_str(&output).expect("status --json is JSON"))
}

/// What HAProxy's agent check of a peer is answered by the daemon on this host, if it is.
pub fn agent_check(host: &Host, name: &str) -> Option<String> {
    let mut stream = host.run(|| TcpStream::connect(AGENT_CHECK)).ok()?;
    let mut answer = String::new();
    stream.write_all(format!("{name}\n").as_bytes()).and_then(|()| stream.read_to_string(&mut answer)).ok()?;
    Some(answer.trim_end().to_owned())
}

/// Runs `underpass run` to its end, which a test expects to be an early one.
#[track_caller]
pub fn run_to_the_end(host: &Host, config: &Config) -> Output {
    let command = command(host).arg("run").args(config.arguments(host)).arg("--config").arg(config.write(host));
    command.within(wait::PATIENCE).output()
}

/// The program that was built with these tests: it lies where they do, in the same profile's directory. The benchmark has a
/// profile of its own and is about the release.
#[track_caller]
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("Linux tells a program where it lies");
    let here = test.parent().expect("a program lies in a directory");
    let directories = here.ancestors().take(2).map(PathBuf::from).chain([here.with_file_name("release")]);
    let found = directories.map(|directory| directory.join("underpass")).find(|program| program.is_file());
    found
        .unwrap_or_else(|| panic!("no underpass beside {}: build it first (cargo build, or make test)", test.display()))
}

/// Puts that program at `path`, as package managers do. By another process: whatever is forked here while this one writes a
/// program keeps the file open for a moment, and nobody can execute it.
#[track_caller]
pub fn install(path: &Path) {
    let new = path.with_extension("new");
    let copied = std::process::Command::new("cp").arg(program()).arg(&new).status().expect("every system has cp");
    assert!(copied.success(), "{}: {copied}", new.display());
    std::fs::rename(&new, path).expect("they lie in one directory");
}

fn write_key(host: &Host, name: &str, key: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let file = host.write_file(name, format!("{key}\n"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("a file of our own");
    file
}

fn set(keys: &mut Vec<(String, String)>, key: &str, value: String) {
    keys.retain(|(existing, _)| existing != key);
    keys.push((key.to_owned(), value));
}

fn append<'a>(text: &mut String, keys: impl IntoIterator<Item = &'a (String, String)>) {
    keys.into_iter().for_each(|(key, value)| *text += &format!("{key} = {value}\n"));
}

/// Text as TOML.
pub fn quote(text: &str) -> String {
    format!("\"{text}\"")
}

/// Texts as TOML.
pub fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let items: Vec<String> = items.into_iter().map(quote).collect();
    format!("[{}]", items.join(", "))
}

//! `underpass check`: judges a configuration and says what it would do, without doing it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anstyle::{AnsiColor, Style};
use anyhow::anyhow;
use ipnet::IpNet;
use serde::Serialize;

use super::arguments::CheckArguments;
use super::lines::{HEADING, line, optional_line, reach_line, texts};
use super::{Exit, Failure};
use crate::config::{Config, ConfigError, Health, Interface, Mtu, Peer, Problem, Refuse, SandboxPolicy};
use crate::control::{forwarding, open, sandbox, user};

/// Raised when a field of the JSON is renamed, removed or changes its meaning.
const SCHEMA_VERSION: u32 = 1;

const ADVICE: Style = AnsiColor::Yellow.on_default();

/// Loads the file and writes to `out` what `run` would make of it.
pub fn run(arguments: &CheckArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let config = Config::load_within(&arguments.config, sandbox::readable_here()).inspect_err(|error| {
        if arguments.json {
            // A reader that has gone away has no use for the exit code either.
            let _ = write_json(&Refused::new(error), out);
        }
    })?;
    refuse_what_the_sandbox_lacks(&config, &arguments.config)?;
    let mut plan = Plan::new(arguments.config.clone(), &config);
    plan.advice.extend(user::advice(&config, &arguments.config));
    if arguments.json {
        write_json(&plan, out)?;
    } else {
        plan.write(out)?;
    }
    Ok(())
}

fn write_json(answer: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(answer).expect("an answer is plain data"))
}

/// A running daemon asks whether this program can take its place.
fn refuse_what_the_sandbox_lacks(config: &Config, file: &Path) -> Result<(), Failure> {
    let missing = sandbox::missing_here(config, file);
    if missing.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Config, anyhow!(missing.join("; ")))) }
}

/// Why `run` would refuse a file. Holds no secret.
#[derive(Debug, Serialize)]
struct Refused<'e> {
    schema_version: u32,
    valid: bool,
    config: &'e Path,
    /// The first twenty, in the file's order.
    problems: Vec<RefusedKey<'e>>,
    /// The number of all.
    count: usize,
}

/// One mistake. What is about the file as a whole has no line and no key.
#[derive(Debug, Serialize)]
struct RefusedKey<'e> {
    file: &'e Path,
    line: Option<usize>,
    column: Option<usize>,
    key: Option<&'e str>,
    message: &'e str,
    help: &'e str,
}

impl<'e> Refused<'e> {
    fn new(error: &'e ConfigError) -> Self {
        let problem = |problem: &'e Problem| RefusedKey {
            file: error.file(),
            line: problem.position.map(|position| position.line),
            column: problem.position.map(|position| position.column),
            key: Some(problem.key.as_str()).filter(|key| !key.is_empty()),
            message: &problem.what,
            help: &problem.remedy,
        };
        Self {
            schema_version: SCHEMA_VERSION,
            valid: false,
            config: error.file(),
            problems: error.problems().iter().map(problem).collect(),
            count: error.count(),
        }
    }
}

/// What `run` would do. Holds no secret.
#[derive(Debug, Serialize)]
struct Plan {
    schema_version: u32,
    valid: bool,
    config: PathBuf,
    role: String,
    interface: InterfacePlan,
    health: HealthPlan,
    peers: Vec<PeerPlan>,
    /// Routes into the tunnel.
    routes: Vec<Route>,
    advice: Vec<String>,
    /// Notes about it on this machine.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct InterfacePlan {
    name: String,
    public_key: String,
    previous_public_key: Option<String>,
    addresses: Vec<String>,
    listen: Vec<String>,
    /// At first.
    mtu: u16,
    /// The MTU follows what the paths carry.
    mtu_auto: bool,
    fwmark: Option<u32>,
    dscp: String,
    device: &'static str,
    workers: String,
    pin_workers: bool,
    busy_poll: bool,
    suite: &'static str,
    /// Suites that peers may propose.
    suites: Vec<&'static str>,
    expose: Vec<String>,
    refuse: &'static str,
    control_socket: PathBuf,
    drain_timeout: u64,
    sandbox: bool,
    sandbox_required: bool,
    drop_capabilities: bool,
    fail_closed: bool,
    open: Vec<String>,
}

#[derive(Debug, Serialize)]
struct HealthPlan {
    agent_check: Vec<String>,
    http: Vec<String>,
    degraded_weight: u8,
}

#[derive(Debug, Serialize)]
struct PeerPlan {
    name: String,
    public_key: String,
    next_public_key: Option<String>,
    endpoints: Vec<String>,
    addresses: Vec<String>,
    allowed_ips: Vec<String>,
    preshared_key: bool,
    persistent_keepalive: Option<u64>,
    suite: &'static str,
    /// What it may reach of this machine.
    expose: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Route {
    destination: String,
    peer: String,
}

impl Plan {
    fn new(file: PathBuf, config: &Config) -> Self {
        let routes_of = |peer: &Peer| -> Vec<Route> {
            let route = |prefix: &IpNet| Route { destination: prefix.to_string(), peer: peer.name.clone() };
            peer.allowed_ips.iter().map(route).collect()
        };
        Self {
            schema_version: SCHEMA_VERSION,
            valid: true,
            config: file,
            role: config.role.to_string(),
            interface: InterfacePlan::new(&config.interface),
            health: HealthPlan::new(&config.health),
            peers: config.peers.iter().map(PeerPlan::new).collect(),
            routes: config.peers.iter().flat_map(routes_of).collect(),
            advice: config.advice().into_iter().chain(open::refused_beside(config).iter().map(still_refused)).collect(),
            notes: forwarding::advice(config).into_iter().collect(),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let file = self.config.display();
        let links = if self.peers.len() == 1 { "link" } else { "links" };
        writeln!(out, "{file} is valid. This machine is the {} side of {} {links}.", self.role, self.peers.len())?;
        self.interface.write(out)?;
        self.health.write(out)?;
        for peer in &self.peers {
            peer.write(out)?;
        }
        for advice in &self.advice {
            writeln!(out, "\n{ADVICE}look again:{ADVICE:#} {advice}")?;
        }
        for note in &self.notes {
            writeln!(out, "\n{ADVICE}here:{ADVICE:#} {note}")?;
        }
        Ok(())
    }
}

fn still_refused(network: &IpNet) -> String {
    format!(
        "{network} is still refused, though it is no longer led into the tunnel; `underpass open {network}`, or \
         interface.open, lets it be reached in the clear"
    )
}

impl InterfacePlan {
    fn new(interface: &Interface) -> Self {
        Self {
            name: interface.name.clone(),
            public_key: interface.private_key.public_key().to_string(),
            previous_public_key: interface.previous_private_key.as_ref().map(|key| key.public_key().to_string()),
            addresses: texts(&interface.addresses),
            listen: texts(&interface.listen),
            mtu: interface.mtu.first(),
            mtu_auto: interface.mtu == Mtu::Auto,
            fwmark: interface.fwmark,
            dscp: interface.dscp.to_string(),
            device: interface.device.as_str(),
            workers: interface.workers.to_string(),
            pin_workers: interface.pin_workers,
            busy_poll: interface.busy_poll,
            suite: interface.suite.as_str(),
            suites: interface.suites.iter().map(|suite| suite.as_str()).collect(),
            expose: texts(&interface.expose),
            refuse: interface.refuse.as_str(),
            control_socket: interface.control_socket.clone(),
            drain_timeout: interface.drain_timeout.as_secs(),
            sandbox: interface.sandbox.is_on(),
            sandbox_required: interface.sandbox == SandboxPolicy::Required,
            drop_capabilities: interface.drop_capabilities,
            fail_closed: interface.fail_closed,
            open: texts(&interface.open),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\n{HEADING}interface {}{HEADING:#}", self.name)?;
        line(out, "public key", &self.public_key)?;
        optional_line(out, "previous key", self.previous_public_key.as_ref())?;
        line(out, "addresses", self.addresses.join(", "))?;
        line(out, "listens on", format!("UDP {}", self.listen.join(", ")))?;
        line(out, "MTU", self.mtu())?;
        optional_line(out, "mark", self.fwmark.map(|mark| format!("{mark:#x}")))?;
        line(out, "DSCP", &self.dscp)?;
        line(out, "accepts", self.suites.join(", "))?;
        line(out, "device", self.device)?;
        let (pinned, sleepy) =
            (self.pin_workers.then_some(", pinned"), (!self.busy_poll).then_some(", no busy polling"));
        line(out, "workers", [Some(&*self.workers), pinned, sleepy].into_iter().flatten().collect::<String>())?;
        let refuses = if self.refuse == Refuse::Reset.as_str() { "with an answer" } else { "silently" };
        line(out, "refuses", refuses)?;
        line(out, "control", self.control_socket.display())?;
        let drain = match self.drain_timeout {
            0 => "at once".to_owned(),
            seconds => format!("once drained, after {seconds} s at the latest"),
        };
        line(out, "ends", drain)?;
        let without =
            if self.fail_closed { "what is for peers is refused" } else { "what is for peers goes another way" };
        line(out, "without it", without)?;
        optional_line(out, "open", Some(self.open.join(", ")).filter(|open| !open.is_empty()))?;
        line(out, "sandbox", self.sandbox())?;
        line(
            out,
            "capabilities",
            if self.drop_capabilities { "none once it runs" } else { "what changes while it runs" },
        )
    }
}

impl InterfacePlan {
    fn mtu(&self) -> String {
        let first = self.mtu;
        match (self.mtu_auto, self.drop_capabilities) {
            (false, _) => format!("{first} bytes"),
            (true, false) => format!("{first} bytes at first, then what the paths carry"),
            (true, true) => {
                format!("{first} bytes; without capabilities it can't follow the paths: set interface.mtu for more")
            }
        }
    }

    fn sandbox(&self) -> &'static str {
        match (self.sandbox_required, self.sandbox) {
            (true, _) => "required: all of it, or the daemon does not start",
            (_, true) => "on",
            (_, false) => "off",
        }
    }
}

impl HealthPlan {
    fn new(health: &Health) -> Self {
        Self {
            agent_check: texts(&health.agent_check),
            http: texts(&health.http),
            degraded_weight: health.degraded_weight,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let served = |addresses: &[String]| match addresses {
            [] => "off".to_owned(),
            addresses => format!("TCP {}", addresses.join(", ")),
        };
        writeln!(out, "\n{HEADING}health{HEADING:#}")?;
        line(out, "agent checks", served(&self.agent_check))?;
        line(out, "HTTP", served(&self.http))?;
        line(out, "degraded", format!("{} % of the weight", self.degraded_weight))
    }
}

impl PeerPlan {
    fn new(peer: &Peer) -> Self {
        Self {
            name: peer.name.clone(),
            public_key: peer.public_key.to_string(),
            next_public_key: peer.next_public_key.map(|key| key.to_string()),
            endpoints: texts(&peer.endpoints),
            addresses: texts(&peer.addresses),
            allowed_ips: texts(&peer.allowed_ips),
            preshared_key: peer.preshared_key.is_some(),
            persistent_keepalive: peer.persistent_keepalive.map(|interval| interval.as_secs()),
            suite: peer.suite.as_str(),
            expose: texts(&peer.expose),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\n{HEADING}{}{HEADING:#}", self.name)?;
        line(out, "public key", &self.public_key)?;
        optional_line(out, "next key", self.next_public_key.as_ref())?;
        match &self.endpoints[..] {
            [] => line(out, "endpoint", "none: this side waits to be called")?,
            endpoints => line(out, "endpoint", endpoints.join(", then "))?,
        }
        line(out, "routed to it", self.allowed_ips.join(", "))?;
        line(out, "preshared key", if self.preshared_key { "yes" } else { "no" })?;
        line(
            out,
            "keepalive",
            self.persistent_keepalive.map_or("off".to_owned(), |s| format!("every {s} s of silence")),
        )?;
        line(out, "suite", self.suite)?;
        reach_line(out, &self.expose)
    }
}

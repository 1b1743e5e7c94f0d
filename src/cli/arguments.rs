//! What may stand on the command line. The doc comments are the text of `--help` and of the manual pages.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum as _};
use ipnet::IpNet;

use crate::control::verify::Port;
use crate::logging::LogFormat;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  any failure that is not listed here
  2  the command line is wrong
  3  the configuration or a key file was refused
  4  no permission: root or CAP_NET_ADMIN is needed
  5  an address or port is in use or cannot be bound
  6  there is no TUN device, or it reports an error
  7  the daemon cannot be reached
  8  verify: a check has failed; doctor: something is wrong";

/// Encrypted, authenticated tunnel between a load balancer and its app servers.
#[derive(Debug, Parser)]
#[command(name = "underpass", version, after_help = EXIT_CODES, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What underpass can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground
    Run(RunArguments),
    /// Show what a running daemon says of its links
    Status(StatusArguments),
    /// Watch a running daemon's links on the terminal
    ///
    /// A table that is renewed every second, with rates and their course. `?` shows the keys, `q` ends it. Of a daemon that
    /// goes away the last that is known is shown until it is back.
    Top(DaemonArguments),
    /// Have a running daemon read its configuration file again
    ///
    /// What is different is changed, and nothing else is touched: links that stay as they are lose no packet. What cannot
    /// change without a restart is named. A file that `underpass check` would refuse changes nothing. SIGHUP does the same.
    Reload(DaemonArguments),
    /// Have a link called draining, so that the load balancer sends it no new connections
    ///
    /// It carries traffic as before. It stays so over reloads, until `underpass undrain` or a restart.
    Drain(DrainArguments),
    /// Have a link called draining no longer
    Undrain(DrainArguments),
    /// Let a network that is no longer configured be reached in the clear
    ///
    /// A network that a configuration has led into the tunnel stays refused when it no longer does, so that no reload
    /// sends its traffic out in the clear. This ends that, for all of it that lies in NETWORK. What is configured stays
    /// as it is. Where no daemon runs it needs root.
    Open(OpenArguments),
    /// Start a running daemon anew without interrupting traffic
    ///
    /// The program and the configuration as they lie on disk take the running daemon's place, in the same process, with
    /// its interface and its sockets: after an upgrade, and for changes of the configuration that need a restart. If the
    /// program does not start or refuses the configuration, the running daemon goes on and says why.
    Restart(RestartArguments),
    /// Judge a configuration file and print what it would do
    ///
    /// Reads the file and the key files that it names, as `run` does, and changes nothing. Every mistake is printed with
    /// its line, key and remedy.
    Check(CheckArguments),
    /// Check an installation that runs, from this side
    ///
    /// Tries what an operator would try by hand after setting it up: that the daemon runs by this file, that links are up
    /// and traffic for them goes into the tunnel; with --port also that the app is reached through the tunnel, and that it
    /// is not reached in the clear around it. Says what to do about each failure, and changes nothing. Exit code 8 if a
    /// check has failed.
    Verify(VerifyArguments),
    /// Find out why a link is not what it should be
    ///
    /// Asks the running daemon, the configuration file, the kernel and the name servers about one peer, from either side of
    /// the link and also without a daemon, and prints what is wrong: the most likely cause first, each with the line that mends
    /// it. Changes nothing. Exit code 8 if something is wrong.
    Doctor(DoctorArguments),
    /// Print what an auditor asks of this machine
    ///
    /// Algorithms, keys with their files and ages, when each link was last rekeyed, who may speak for which addresses and
    /// reach which ports, what the running daemon has given up. No secret is printed and nothing is changed. Exit code 7 if no
    /// daemon answers, after what is configured was printed.
    Audit(AuditArguments),
    /// Refuse without a daemon what a daemon would refuse
    ///
    /// Sets the routes that refuse packets for peers, and the nftables table that has the kernel take tunnel addresses from
    /// the tunnel only: before the first start of a daemon, where it failed to start, or for one that has not the privilege.
    /// Reads no key. What is set already stays; a daemon takes it over.
    Close(CloseArguments),
    /// Show on this machine, in seconds, what underpass is for
    ///
    /// Needs root and nothing else. Builds a small network of its own (in namespaces, gone at the end), lets a sniffer
    /// and a man in the middle loose between a load balancer and two apps, first without and then with underpass, and
    /// checks every claim that it prints.
    Demo,
    /// Make a private key
    ///
    /// Without --out it is written to standard output. With --out it goes into a new file that only its owner may read,
    /// and the public key is printed: the line that the other machines' configurations need.
    Genkey(GenkeyArguments),
    /// Print the public key that belongs to a private key
    Pubkey(PubkeyArguments),
    /// Make a preshared key
    ///
    /// It is a secret of both ends of one link, beside their key pairs: bring the same file to both machines over a way
    /// that you trust.
    Genpsk(GenpskArguments),
    /// Do for a daemon what takes a capability: `run` starts this
    #[command(hide = true)]
    Privileged(RunArguments),
    /// Print a shell's completion script
    Completions(CompletionsArguments),
    /// Print the manual pages
    ///
    /// Without --out all pages are written to standard output, one after the other: `underpass man | man -l -` shows them.
    Man(ManArguments),
}

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArguments {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Stay root, where root starts it, instead of becoming the user underpass
    ///
    /// For containers and trials. Without it a daemon that root starts becomes that user once it is set up, and does not start
    /// where there is no such user.
    #[arg(long)]
    pub allow_root: bool,
    /// The log.
    #[command(flatten)]
    pub log: LogArguments,
}

/// How the log of `run` looks.
#[derive(Debug, Clone, Args)]
pub struct LogArguments {
    /// What to log: a level (error, warn, info, debug, trace) or a filter such as
    /// "info,underpass::control=debug" [default: $UNDERPASS_LOG, else info]
    #[arg(long, value_name = "FILTER", visible_alias = "log")]
    pub log_level: Option<String>,
    /// How the log looks [default: $UNDERPASS_LOG_FORMAT, else auto]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

impl LogArguments {
    /// The words that say the same.
    pub fn words(&self) -> Vec<OsString> {
        let level = self.log_level.iter().map(|level| format!("--log-level={level}"));
        let format = self.log_format.and_then(|format| format.to_possible_value());
        level.chain(format.map(|format| format!("--log-format={}", format.get_name()))).map(Into::into).collect()
    }
}

/// Which daemon is meant.
#[derive(Debug, Clone, Args)]
pub struct DaemonArguments {
    /// Ask the daemon of this interface [default: the only one that runs]
    #[arg(short, long, value_name = "NAME", conflicts_with = "socket")]
    pub interface: Option<String>,
    /// Ask the daemon behind this control socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Arguments of `drain` and `undrain`.
#[derive(Debug, Clone, Args)]
pub struct DrainArguments {
    /// The peer's name in the configuration
    #[arg(value_name = "PEER")]
    pub peer: String,
    /// Which daemon.
    #[command(flatten)]
    pub daemon: DaemonArguments,
}

/// Arguments of `open`.
#[derive(Debug, Clone, Args)]
pub struct OpenArguments {
    /// Network to open, such as 10.1.0.0/16; 0.0.0.0/0 and ::/0 are everything
    #[arg(value_name = "NETWORK", value_parser = network)]
    pub prefix: IpNet,
    /// Which daemon.
    #[command(flatten)]
    pub daemon: DaemonArguments,
}

fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map(|network| network.trunc()).map_err(|_| "a network is written as 10.1.0.0/16 or fd01::/64".into())
}

/// Arguments of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArguments {
    /// The peer's name in the configuration
    #[arg(value_name = "PEER")]
    pub peer: String,
    /// Which daemon.
    #[command(flatten)]
    pub daemon: DaemonArguments,
    /// The configuration file [default: the daemon's, else the one in /etc/underpass that has the peer]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON, with all that was found, instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArguments {
    /// Which daemon.
    #[command(flatten)]
    pub daemon: DaemonArguments,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `restart`.
#[derive(Debug, Clone, Args)]
pub struct RestartArguments {
    /// Restart the daemon of this interface [default: the only one that runs]
    #[arg(short, long, value_name = "NAME", conflicts_with = "socket")]
    pub interface: Option<String>,
    /// Restart the daemon behind this control socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Arguments of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArguments {
    /// The configuration file that the daemon runs by
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// A TCP port of the app, of one peer or of all: 8080, app1:8080; or with an address behind a gateway:
    /// 10.30.0.5:8080. May be repeated
    #[arg(short, long = "port", value_name = "[PEER:|ADDRESS:]PORT", value_parser = port)]
    pub ports: Vec<Port>,
    /// How long a connection may take
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub timeout: u64,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

fn port(text: &str) -> Result<Port, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Port { peer: None, address: Some(address.ip()), number: address.port() });
    }
    let (peer, number) = text.rsplit_once(':').map_or((None, text), |(peer, number)| (Some(peer.to_owned()), number));
    match number.parse() {
        Ok(number) if number > 0 => Ok(Port { peer, address: None, number }),
        _ => Err(
            "a port is a number from 1 to 65535, after a peer's name or an address and a colon if it is that one's \
                  only"
                .into(),
        ),
    }
}

/// Arguments of `genkey`.
#[derive(Debug, Clone, Args)]
pub struct GenkeyArguments {
    /// Write the key to this new file and print the public key; an existing file is never overwritten
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `pubkey`.
#[derive(Debug, Clone, Args)]
pub struct PubkeyArguments {
    /// The file that holds the private key [default: standard input]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Arguments of `genpsk`.
#[derive(Debug, Clone, Args)]
pub struct GenpskArguments {
    /// Write the key to this new file; an existing file is never overwritten
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArguments {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArguments {
    /// The configuration file that the daemon runs by
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `close`.
#[derive(Debug, Clone, Args)]
pub struct CloseArguments {
    /// The configuration file of the daemon that is not there
    #[arg(short, long, value_name = "FILE", required_unless_present = "undo")]
    pub config: Option<PathBuf>,
    /// Change nothing, and print the table for `nft -f`, with the routes as comments
    #[arg(long)]
    pub print: bool,
    /// Take back what daemons of this machine have set to outlive them, of all interfaces: after the last one
    #[arg(long, conflicts_with_all = ["config", "print"])]
    pub undo: bool,
}

/// Arguments of `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Debug, Clone, Args)]
pub struct ManArguments {
    /// Write one file for each page into this directory
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_declarations_agree_with_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_port_may_have_a_peer_or_an_address() {
        let parsed =
            |text: &str| port(text).map(|port| (port.peer, port.address.map(|ip| ip.to_string()), port.number));
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(parsed("8080"), Ok((None, None, 8080)));
        assert_eq!(parsed("app1:8080"), Ok((text("app1"), None, 8080)));
        assert_eq!(parsed("10.30.0.5:8080"), Ok((None, text("10.30.0.5"), 8080)));
        assert_eq!(parsed("[fd30::5]:8080"), Ok((None, text("fd30::5"), 8080)));
        assert!(parsed("app1:").is_err() && parsed("0").is_err());
    }

    #[test]
    fn help_names_every_exit_code() {
        for code in super::super::Exit::ALL {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", code as u8)), "{code:?}");
        }
    }
}

//! Traffic whose fate can be measured: pings, and iperf3's flows.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::sockopt::BindToDevice;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket};
use serde_json::Value;

use crate::host::Host;
use crate::wait;

/// What became of some pings.
#[derive(Clone, Debug)]
pub struct Pings {
    /// How many were sent.
    pub sent: usize,
    /// How many were answered.
    pub answered: usize,
    /// What happened, in words.
    pub text: String,
}

/// Pings to be sent by ourselves: the `ping` program does not wait long for the last answers, which come late on a busy
/// machine.
#[derive(Clone, Debug)]
#[must_use]
pub struct Ping {
    target: IpAddr,
    count: usize,
    at_once: usize,
    payload: usize,
    device: Option<String>,
    patience: Duration,
}

/// Pings an address three times.
#[track_caller]
pub fn ping(host: &Host, target: &str) -> Pings {
    Ping::to(target).count(3).send(host)
}

/// Sends 500 pings, the next whenever one is answered.
#[track_caller]
pub fn flood_ping(host: &Host, target: &str) -> Pings {
    Ping::to(target).count(500).at_once(8).send(host)
}

/// Whether an address answers one ping at once.
pub fn answers(host: &Host, target: &str) -> bool {
    Ping::to(target).patience(Duration::from_secs(1)).send(host).answered == 1
}

/// Runs the `ping` program with its own options: for what it says of errors.
#[track_caller]
pub fn ping_program(host: &Host, target: &str, options: &[&str]) -> Pings {
    let output = host.command("ping").args(["-n"]).args(options).arg(target).output();
    let text = format!("{}{}", output.stdout, output.stderr);
    let count = |what: &str| text.split(what).next().and_then(|before| before.split_whitespace().last()?.parse().ok());
    let (sent, answered) = (count(" packets transmitted").unwrap_or(0), count(" received").unwrap_or(0));
    Pings { sent, answered, text }
}

impl Ping {
    /// One ping with 56 bytes.
    #[track_caller]
    pub fn to(target: &str) -> Ping {
        let target = target.parse().unwrap_or_else(|e| panic!("{target}: {e}"));
        Ping { target, count: 1, at_once: 1, payload: 56, device: None, patience: Duration::from_secs(5) }
    }

    /// So many.
    pub fn count(mut self, count: usize) -> Ping {
        self.count = count;
        self
    }

    /// So many on their way at a time.
    pub fn at_once(mut self, at_once: usize) -> Ping {
        self.at_once = at_once;
        self
    }

    /// With so many bytes behind the header.
    pub fn payload(mut self, length: usize) -> Ping {
        self.payload = length;
        self
    }

    /// From a socket that is bound to this interface.
    pub fn device(mut self, interface: &str) -> Ping {
        self.device = Some(interface.to_owned());
        self
    }

    /// How long to wait for an answer.
    pub fn patience(mut self, patience: Duration) -> Ping {
        self.patience = patience;
        self
    }

    /// Sends them.
    #[track_caller]
    pub fn send(self, host: &Host) -> Pings {
        let target = self.target;
        host.run(|| self.send_here()).unwrap_or_else(|e| panic!("pings from {} to {target}: {e}", host.name()))
    }

    fn send_here(self) -> io::Result<Pings> {
        let socket = self.socket()?;
        let (mut sent, mut answered, mut errors) = (0, BTreeSet::new(), vec![]);
        let mut buffer = vec![0; 1 << 16];
        let mut deadline = wait::now() + self.patience;
        while answered.len() < self.count && wait::now() < deadline {
            while sent < self.count && sent < answered.len() + self.at_once {
                // A packet that is not sent, for want of a route, is one without an answer.
                socket.send_to(&self.request(sent), (self.target, 0)).map_err(|error| errors.push(error)).ok();
                sent += 1;
            }
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let sequence =
                        buffer[..length].get(6..8).map(|number| usize::from(number[0]) << 8 | usize::from(number[1]));
                    let is_news = sequence.is_some_and(|number| answered.insert(number));
                    assert!(is_news && buffer[8..length] == self.request(0)[8..], "an answer came twice, or changed");
                    deadline = wait::now() + self.patience;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => errors.push(error),
            }
        }
        let missing: Vec<_> = (0..sent).filter(|number| !answered.contains(number)).collect();
        let text =
            format!("{}: {} of {sent} answered, missing {missing:?}; errors {errors:?}", self.target, answered.len());
        Ok(Pings { sent, answered: answered.len(), text })
    }

    fn socket(&self) -> io::Result<UdpSocket> {
        let socket = icmp_socket(self.target)?;
        if let Some(device) = &self.device {
            setsockopt(&socket, BindToDevice, &device.into())?;
        }
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(socket)
    }

    fn request(&self, sequence: usize) -> Vec<u8> {
        let [_, _, high, low] = u32::try_from(sequence).expect("a few pings").to_be_bytes();
        let kind = if self.target.is_ipv4() { 8 } else { 128 };
        let payload = (0..self.payload).map(|n| (n % 251) as u8);
        [kind, 0, 0, 0, 0, 0, high, low].into_iter().chain(payload).collect()
    }
}

/// A socket for pings: the kernel fills in identifier and checksum, and hands back only what answers this socket.
pub(crate) fn icmp_socket(target: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match target {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    Ok(UdpSocket::from(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?))
}

impl Pings {
    /// Fails if one got lost.
    #[track_caller]
    pub fn assert_all_answered(&self) {
        assert!(self.sent > 0 && self.answered == self.sent, "not every ping was answered:\n{}", self.text);
    }

    /// Fails if one was answered.
    #[track_caller]
    pub fn assert_none_answered(&self) {
        assert!(self.sent > 0 && self.answered == 0, "a ping was answered:\n{}", self.text);
    }
}

/// Where iperf3 measures: an address to send to.
pub struct Iperf3 {
    host: Host,
    listen: String,
    reached: SocketAddr,
}

/// Where its servers listen.
pub const IPERF3_PORT: u16 = 5201;

/// What an iperf3 run measured.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// What arrived, in bits per second.
    pub bits_per_second: f64,
    /// What arrived, in bytes.
    pub bytes: u64,
    /// TCP segments sent again (TCP only).
    pub retransmits: u64,
    /// Datagrams lost (UDP only).
    pub lost: u64,
    /// Datagrams sent (UDP only).
    pub packets: u64,
}

impl Iperf3 {
    /// A server at this address of `host` for every run.
    pub fn at(host: &Host, address: &str) -> Iperf3 {
        let ip = address.parse().unwrap_or_else(|e| panic!("{address}: {e}"));
        Iperf3 { host: host.clone(), listen: address.to_owned(), reached: SocketAddr::new(ip, IPERF3_PORT) }
    }

    /// A server at every address of `host` for every run, which clients reach at another address or port.
    pub fn behind(host: &Host, reached: SocketAddr) -> Iperf3 {
        Iperf3 { host: host.clone(), listen: "0.0.0.0".to_owned(), reached }
    }

    /// Sends from `host` to the server, with more of the program's options.
    #[track_caller]
    pub fn send(&self, host: &Host, options: &[&str]) -> Flow {
        // One server for each run: it is not ready for the next one as soon as the client has ended.
        let server = self.host.command("iperf3").args(["-s", "-1", "--forceflush", "-B", &self.listen]);
        let server = server.start("iperf3-server");
        wait::until("iperf3 listens", || server.log().contains("listening on"));
        let (address, port) = (self.reached.ip().to_string(), self.reached.port().to_string());
        let command = host.command("iperf3").args(["-J", "-c", &address, "-p", &port, "--connect-timeout", "5000"]);
        let command = command.args(options);
        let output = command.within(Duration::from_secs(120)).output();
        let report: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let measured = output.status.success() && report["end"].is_object() && report["error"].is_null();
        assert!(measured, "iperf3 {options:?}: {}\n{}{}", output.status, output.stdout, output.stderr);
        Flow::read(&report["end"])
    }
}

impl Flow {
    fn read(end: &Value) -> Flow {
        let udp = end["sum"]["packets"].is_u64();
        let received = if udp { &end["sum"] } else { &end["sum_received"] };
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        Flow {
            bits_per_second: received["bits_per_second"].as_f64().unwrap_or_default(),
            bytes: number(&received["bytes"]),
            retransmits: number(&end["sum_sent"]["retransmits"]),
            lost: number(&end["sum"]["lost_packets"]),
            packets: number(&end["sum"]["packets"]),
        }
    }
}

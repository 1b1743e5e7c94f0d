//! Traffic whose fate can be measured: pings, and iperf3's flows.

use std::time::Duration;

use serde_json::Value;

use crate::host::Host;
use crate::process::Process;

/// What became of some pings.
#[derive(Clone, Debug)]
pub struct Pings {
    /// How many were sent.
    pub sent: u32,
    /// How many were answered.
    pub answered: u32,
    /// Round-trip times, in milliseconds: least, mean and greatest.
    pub round_trip: Option<[f64; 3]>,
    /// All that ping said.
    pub text: String,
}

/// Pings an address three times.
#[track_caller]
pub fn ping(host: &Host, target: &str) -> Pings {
    ping_with(host, target, &["-c", "3", "-i", "0.05", "-W", "5"])
}

/// Sends 500 pings as fast as they are answered.
#[track_caller]
pub fn flood_ping(host: &Host, target: &str) -> Pings {
    ping_with(host, target, &["-c", "500", "-f", "-W", "5"])
}

/// Pings with the program's own options.
#[track_caller]
pub fn ping_with(host: &Host, target: &str, options: &[&str]) -> Pings {
    let output = host.command("ping").args(["-n"]).args(options).arg(target).output();
    let text = format!("{}{}", output.stdout, output.stderr);
    let count = |what: &str| text.split(what).next().and_then(|before| before.split_whitespace().last()?.parse().ok());
    let (sent, answered) = (count(" packets transmitted").unwrap_or(0), count(" received").unwrap_or(0));
    let times =
        text.split("mdev = ").nth(1).map(|times| times.split('/').filter_map(|time| time.parse().ok()).collect());
    let round_trip = times.and_then(|times: Vec<f64>| times.first_chunk().copied());
    Pings { sent, answered, round_trip, text }
}

/// Whether an address answers one ping at once.
pub fn answers(host: &Host, target: &str) -> bool {
    ping_with(host, target, &["-c", "1", "-W", "1"]).answered == 1
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

/// A running iperf3 server.
pub struct Iperf3 {
    address: String,
    _process: Process,
}

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
    /// Starts a server.
    #[track_caller]
    pub fn serve(host: &Host, address: &str) -> Iperf3 {
        const PORT: u16 = 5201;
        let process = host.command("iperf3").args(["-s", "-B", address]).start("iperf3-server");
        host.wait_for_tcp_listener(PORT);
        Iperf3 { address: address.to_owned(), _process: process }
    }

    /// Sends from `host` to the server, with more of the program's options.
    #[track_caller]
    pub fn send(&self, host: &Host, options: &[&str]) -> Flow {
        let command =
            host.command("iperf3").args(["-J", "-c", &self.address, "--connect-timeout", "5000"]).args(options);
        let output = command.within(Duration::from_secs(120)).output();
        let report: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        assert!(output.status.success(), "iperf3 {options:?}: {}", report["error"]);
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

//! A real sniffer on an interface: tcpdump, and what it wrote.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::frame::{self, Content};
use crate::host::Host;
use crate::process::Process;
use crate::wait;

/// A running tcpdump.
pub struct TcpDump {
    process: Process,
    file: PathBuf,
}

/// The frames that a tcpdump has seen, whole.
pub struct Capture {
    /// In the order in which they passed.
    pub frames: Vec<Vec<u8>>,
}

impl TcpDump {
    /// Listens on an interface, in both directions. It is listening when this returns.
    #[track_caller]
    pub fn start(host: &Host, interface: &str) -> TcpDump {
        let file = host.directory().join(format!("{interface}.pcap"));
        let command = host.command("tcpdump").args(["-i", interface, "-n", "-s", "0", "-U", "--immediate-mode"]);
        let process = command.args(["-B", "65536", "-Z", "root", "-w"]).arg(&file).start("tcpdump");
        wait::until("tcpdump listens", || process.log().contains("listening on"));
        TcpDump { process, file }
    }

    /// Ends it and reads what it has seen. Fails if it missed something.
    #[track_caller]
    pub fn stop(mut self) -> Capture {
        self.wait_for_queued();
        self.process.signal(Signal::SIGINT);
        self.process.wait_for_exit(wait::PATIENCE);
        let log = self.process.log();
        assert!(log.contains("\n0 packets dropped by kernel"), "the sniffer missed packets:\n{log}");
        let file = fs::read(&self.file).unwrap_or_else(|e| panic!("{}: {e}", self.file.display()));
        Capture { frames: read_pcap(&file) }
    }
}

impl TcpDump {
    /// What the kernel has queued for it is lost when it ends.
    #[track_caller]
    fn wait_for_queued(&self) {
        let mut passed = None;
        wait::until("tcpdump has read what has passed", || {
            let told = counts(&self.process.log()).count();
            self.process.signal(Signal::SIGUSR1);
            wait::until("tcpdump counts", || counts(&self.process.log()).nth(told).is_some());
            let (captured, received) = counts(&self.process.log()).nth(told).expect("it was there");
            captured >= *passed.get_or_insert(received)
        });
    }
}

/// How many packets were written and how many had passed, each time that tcpdump was asked.
fn counts(log: &str) -> impl Iterator<Item = (u64, u64)> {
    log.lines().filter_map(|line| {
        let mut words = line.strip_prefix("tcpdump: ")?.split(", ").map(|part| part.split(' ').next()?.parse().ok());
        Some((words.next()??, words.next()??))
    })
}

impl Capture {
    /// How many frames show this text.
    pub fn count_containing(&self, text: &str) -> usize {
        self.frames.iter().filter(|frame| frame::contains(frame, text.as_bytes())).count()
    }

    /// What the frames carry.
    pub fn contents(&self) -> impl Iterator<Item = Content> {
        self.frames.iter().map(|frame| frame::content(frame))
    }

    /// The payloads of the UDP datagrams to or from a port.
    pub fn datagrams(&self, port: u16) -> Vec<&[u8]> {
        let with_port = |frame: &Vec<u8>| {
            frame::datagram(frame).filter(|udp| udp.source.port() == port || udp.destination.port() == port)
        };
        self.frames.iter().filter_map(|frame| with_port(frame).map(|udp| &frame[udp.payload])).collect()
    }
}

/// The classic file format: a header of 24 bytes, then a record header of 16 bytes before each frame.
fn read_pcap(file: &[u8]) -> Vec<Vec<u8>> {
    const LITTLE_ENDIAN: [u8; 4] = 0xa1b2_c3d4_u32.to_le_bytes();
    assert_eq!(file.first_chunk(), Some(&LITTLE_ENDIAN), "tcpdump writes the format that it always wrote");
    let mut frames = vec![];
    let mut rest = &file[24..];
    while let Some(header) = rest.first_chunk::<16>() {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some(frame) = rest.get(16..16 + length) else { break };
        frames.push(frame.to_vec());
        rest = &rest[16 + length..];
    }
    frames
}

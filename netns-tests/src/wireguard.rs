//! WireGuard in userspace, Debian's wireguard-go or another: a tunnel to compare with, and to run inside or around ours.

use std::ffi::OsStr;
use std::net::SocketAddr;

use crate::host::Host;
use crate::process::Process;
use crate::wait;

/// A running implementation of WireGuard.
pub struct Wireguard {
    process: Process,
}

/// One end of a WireGuard link.
#[derive(Clone, Debug)]
pub struct End<'a> {
    /// Where it runs.
    pub host: &'a Host,
    /// The name of its interface.
    pub interface: &'a str,
    /// Its address in the tunnel, with prefix length.
    pub address: &'a str,
    /// Where it is reached.
    pub endpoint: SocketAddr,
}

impl AsRef<Process> for Wireguard {
    fn as_ref(&self) -> &Process {
        &self.process
    }
}

/// Starts wireguard-go at both ends of a link.
#[track_caller]
pub fn connect(ends: [End; 2]) -> [Wireguard; 2] {
    connect_with("wireguard-go".as_ref(), &[], ends)
}

/// Starts a program with wireguard-go's command line, and more options, at both ends of a link.
#[track_caller]
pub fn connect_with(program: &OsStr, options: &[&str], ends: [End; 2]) -> [Wireguard; 2] {
    let keys = [0, 1].map(|n: usize| ends[n].host.command("wg").arg("genkey").run());
    [(0, 1), (1, 0)].map(|(ours, theirs)| {
        let process = launch(program, options, &ends[ours]);
        configure(&ends[ours], &keys[ours], &ends[theirs], &keys[theirs]);
        Wireguard { process }
    })
}

fn launch(program: &OsStr, options: &[&str], end: &End) -> Process {
    let End { host, interface, .. } = end;
    let command = host.command(program).args(options).args(["-f", interface]);
    let mut process = command.env("WG_PROCESS_FOREGROUND", "1").start(interface);
    wait::until("a WireGuard has made its interface", || {
        process.assert_running();
        host.has_interface(interface)
    });
    process
}

fn configure(ours: &End, key: &str, theirs: &End, their_key: &str) {
    let End { host, interface, address, endpoint } = ours;
    let public = host.command("wg").arg("pubkey").stdin(their_key).run();
    let allowed = theirs.address.split('/').next().unwrap_or_default();
    let config = format!(
        "[Interface]\nPrivateKey = {key}\nListenPort = {}\n[Peer]\nPublicKey = {public}\nAllowedIPs = {allowed}\nEndpoint = {}\n",
        endpoint.port(),
        theirs.endpoint
    );
    let file = host.write_file(&format!("{interface}.conf"), config);
    wait::until("a WireGuard takes its config", || {
        let command = host.command("wg").args(["setconf", interface]).arg(&file);
        command.output().status.success()
    });
    host.ip(&format!("address add {address} dev {interface}"));
    host.ip(&format!("link set {interface} mtu 1420 up"));
}

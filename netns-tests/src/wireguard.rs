//! Debian's wireguard-go: another tunnel to compare with, and to run inside or around ours.

use std::net::SocketAddr;

use crate::host::Host;
use crate::process::Process;
use crate::wait;

/// A running wireguard-go.
pub struct WireguardGo {
    _process: Process,
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

/// Starts both ends of a link.
#[track_caller]
pub fn connect(ends: [End; 2]) -> [WireguardGo; 2] {
    let keys = [0, 1].map(|n: usize| ends[n].host.command("wg").arg("genkey").run());
    [(0, 1), (1, 0)].map(|(ours, theirs)| start(&ends[ours], &keys[ours], &ends[theirs], &keys[theirs]))
}

fn start(ours: &End, key: &str, theirs: &End, their_key: &str) -> WireguardGo {
    let End { host, interface, address, endpoint } = ours;
    let command = host.command("wireguard-go").args(["-f", interface]);
    let process = command.env("WG_PROCESS_FOREGROUND", "1").start("wireguard-go");
    wait::until("wireguard-go has made its interface", || host.has_interface(interface));
    let public = host.command("wg").arg("pubkey").stdin(their_key).run();
    let allowed = theirs.address.split('/').next().unwrap_or_default();
    let config = format!(
        "[Interface]\nPrivateKey = {key}\nListenPort = {}\n[Peer]\nPublicKey = {public}\nAllowedIPs = {allowed}\nEndpoint = {}\n",
        endpoint.port(),
        theirs.endpoint
    );
    let file = host.write_file(&format!("{interface}.conf"), config);
    wait::until("wireguard-go takes its config", || {
        let command = host.command("wg").args(["setconf", interface]).arg(&file);
        command.output().status.success()
    });
    host.ip(&format!("address add {address} dev {interface}"));
    host.ip(&format!("link set {interface} mtu 1420 up"));
    WireguardGo { _process: process }
}

//! A real HAProxy as the load balancer in front.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::host::Host;
use crate::process::Process;
use crate::wait;

/// A running HAProxy.
pub struct HaProxy {
    process: Process,
    socket: PathBuf,
}

/// What it says of one server: the columns of `show stat` by their names.
pub type Row = HashMap<String, String>;

impl HaProxy {
    /// Starts it, with requests spread over `apps` in turn and `/ws` over `websockets`, and checks the apps' health every 300 ms.
    /// With `kept`, connections to the apps are kept open; otherwise each request has its own.
    #[track_caller]
    pub fn start(
        host: &Host,
        listen: SocketAddr,
        apps: &[SocketAddr],
        websockets: &[SocketAddr],
        kept: bool,
    ) -> HaProxy {
        let socket = host.directory().join("haproxy.sock");
        let mode = if kept { "http-keep-alive\n  http-reuse always" } else { "httpclose" };
        let servers = |name: &str, addresses: &[SocketAddr], options: &str| {
            let line = |(n, address)| format!("  server {name}{n} {address} {options}\n");
            (1..).zip(addresses).map(line).collect::<String>()
        };
        let config = format!(
            "global
  stats socket {socket} mode 600 level admin
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  timeout tunnel 30s
  timeout check 10s
  retries 3
frontend front
  bind {listen}
  use_backend websockets if {{ path_beg /ws }}
  default_backend apps
backend apps
  balance roundrobin
  option httpchk GET /
  option {mode}
{apps}
backend websockets
  balance roundrobin
{websockets}",
            socket = socket.display(),
            apps = servers("app", apps, "check inter 300ms fall 3 rise 1"),
            websockets = servers("ws", websockets, ""),
        );
        let config = host.write_file("haproxy.cfg", config);
        let process = host.command("haproxy").args(["-db", "-f"]).arg(config).start("haproxy");
        host.wait_for_tcp_listener(listen.port());
        HaProxy { process, socket }
    }

    /// Starts it with a configuration file as it stands, which has its statistics somewhere in `/run/haproxy`.
    #[track_caller]
    pub fn start_with(host: &Host, config: &Path, port: u16) -> HaProxy {
        host.command("mkdir").args(["-p", "/run/haproxy"]).run();
        let text = fs::read_to_string(config).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
        let socket = text.split_once("stats socket ").and_then(|(_, rest)| rest.split_whitespace().next());
        let socket = socket.unwrap_or_else(|| panic!("no stats socket in {}", config.display()));
        let process = host.command("haproxy").args(["-db", "-f"]).arg(config).start("haproxy");
        host.wait_for_tcp_listener(port);
        // As this process sees the file system of that one.
        let socket = PathBuf::from(format!("/proc/{}/root{socket}", process.pid()));
        HaProxy { process, socket }
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it says of a server of `apps`: `app1`, `app2`, …
    #[track_caller]
    pub fn server(&self, name: &str) -> Row {
        self.show_stat().into_iter().find(|row| row["svname"] == name).unwrap_or_else(|| panic!("no server {name}"))
    }

    /// Waits until its health check of a server says this (`UP`, `DOWN`).
    #[track_caller]
    pub fn wait_for_status(&self, name: &str, status: &str) {
        wait::until(&format!("HAProxy finds {name} {status}"), || self.server(name)["status"] == status);
    }

    /// What it says of every frontend, backend and server.
    #[track_caller]
    pub fn show_stat(&self) -> Vec<Row> {
        let mut stream = UnixStream::connect(&self.socket).unwrap_or_else(|e| panic!("{}: {e}", self.socket.display()));
        let mut answer = String::new();
        let talk = stream.write_all(b"show stat\n").and_then(|()| stream.read_to_string(&mut answer));
        talk.unwrap_or_else(|e| panic!("HAProxy's statistics: {e}"));
        let mut lines = answer.trim_start_matches("# ").lines();
        let names: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        let row =
            |line: &str| names.iter().zip(line.split(',')).map(|(n, v)| ((*n).to_owned(), v.to_owned())).collect();
        lines.filter(|line| !line.is_empty()).map(row).collect()
    }
}

//! The site behind the load balancer: HAProxy on the proxy, with one way to the backend's nginx per contender.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use netns_tests::Process;
use netns_tests::certificates::Certificate;

use crate::contender::{BACKEND, Contender, Reach, Service};
use crate::field::{Field, NAME};

/// HAProxy and nginx, running.
pub(crate) struct Site {
    /// The contenders' names, in the order of their frontends.
    names: Vec<&'static str>,
    _haproxy: Process,
    _nginx: Process,
}

/// What HAProxy does with its connections to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// Keeps and shares them.
    Kept,
    /// Makes one for each request.
    New,
}

/// Names and lengths of what nginx serves.
const FILES: [(&str, usize); 4] = [("1k", 1 << 10), ("16k", 16 << 10), ("256k", 256 << 10), ("1m", 1 << 20)];

const TLS_PORT: u16 = 8443;
const FIRST_FRONTEND: u16 = 9000;

impl Site {
    pub(crate) fn start(field: &Field, contenders: &[Contender]) -> Site {
        let nginx = start_nginx(field);
        let file = field.proxy.write_file("haproxy.cfg", haproxy_config(contenders, &field.certificate));
        let haproxy = field.proxy.command("haproxy").args(["-db", "-f"]).arg(file).start("haproxy");
        let names: Vec<_> = contenders.iter().map(|contender| contender.name).collect();
        (0..names.len()).for_each(|n| field.proxy.wait_for_tcp_listener(frontend(n, Connections::New).port()));
        Site { names, _haproxy: haproxy, _nginx: nginx }
    }

    /// Where HAProxy takes requests that a contender shall carry.
    pub(crate) fn frontend(&self, contender: &Contender, connections: Connections) -> SocketAddr {
        let number = self.names.iter().position(|name| *name == contender.name);
        frontend(number.expect("HAProxy knows every contender"), connections)
    }
}

fn frontend(number: usize, connections: Connections) -> SocketAddr {
    let port = FIRST_FRONTEND + 2 * number as u16 + u16::from(connections == Connections::New);
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// One thread per core, no logs, no health checks; the same for all but for TLS.
fn haproxy_config(contenders: &[Contender], certificate: &Certificate) -> String {
    let mut config = "global
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
"
    .to_owned();
    for (number, contender) in contenders.iter().enumerate() {
        let server = server(contender, certificate);
        for (connections, options) in [
            (Connections::Kept, "option http-keep-alive\n  http-reuse always"),
            (
                Connections::New,
                "option http-server-close\n  http-reuse never\n  http-request set-header Connection close",
            ),
        ] {
            let (name, bind) = (format!("{}-{connections:?}", contender.name), frontend(number, connections));
            config += &format!(
                "frontend {name}\n  bind {bind}\n  default_backend {name}\nbackend {name}\n  {options}\n  server s {server}\n"
            );
        }
    }
    config
}

fn server(contender: &Contender, certificate: &Certificate) -> String {
    let Reach::Tls { resumed } = contender.reach else {
        return contender.tcp(Service::Http).expect("all others carry TCP").to_string();
    };
    let again = if resumed { "" } else { " no-ssl-reuse" };
    let authority = certificate.certificate.display();
    format!(
        "{BACKEND}:{TLS_PORT} ssl ssl-min-ver TLSv1.3 verify required ca-file {authority} verifyhost {NAME} sni str({NAME}){again}"
    )
}

/// One process, as HAProxy's two threads leave room for no more on two cores.
fn start_nginx(field: &Field) -> Process {
    let host = &field.backend;
    let directory = host.directory().join("nginx");
    fs::create_dir(&directory).expect("a new directory");
    for (name, length) in FILES {
        fs::write(directory.join(name), vec![b'x'; length]).expect("there is room for small files");
    }
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|kind| format!("  {kind}_temp_path {}/{kind};\n", directory.display())).concat();
    let config = format!(
        "user root; master_process off; daemon off; pid {directory}/pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; open_file_cache max=16;
  keepalive_requests 100000000; keepalive_timeout 600;
{temporary}  ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
  ssl_session_cache shared:tls:10m; ssl_session_tickets on;
  server {{
    listen {port} backlog=4096; listen {TLS_PORT} ssl backlog=4096;
    root {directory};
  }}
}}
",
        directory = directory.display(),
        certificate = field.certificate.certificate.display(),
        key = field.certificate.key.display(),
        port = Service::Http.port(),
    );
    let file = host.write_file("nginx.conf", config);
    let process = host.command("nginx").arg("-c").arg(file).args(["-e", "stderr"]).start("nginx");
    host.wait_for_tcp_listener(TLS_PORT);
    process
}

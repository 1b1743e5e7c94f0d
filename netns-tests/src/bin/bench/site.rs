//! The site behind the load balancer: HAProxy on the proxy, with one way to the backend's nginx per contender.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netns_tests::certificates::Certificate;
use netns_tests::http_rate::{self, Rate};
use netns_tests::random::Random;
use netns_tests::{Host, Process};

use crate::contender::{BACKEND, Contender, Reach, Service};
use crate::field::NAME;

/// Load balancers, running: one for each program.
pub(crate) struct Site {
    /// The routes' names, in the order of their frontends.
    names: Vec<&'static str>,
    _haproxies: Vec<Process>,
}

/// A way for requests: to each of some servers in turn.
pub(crate) struct Route {
    pub(crate) name: &'static str,
    /// Which HAProxy.
    pub(crate) program: PathBuf,
    /// As HAProxy's `server` lines have them after the name: address, and options.
    pub(crate) servers: Vec<String>,
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
    pub(crate) fn start(proxy: &Host, routes: &[Route]) -> Site {
        let programs: BTreeSet<&Path> = routes.iter().map(|route| route.program.as_path()).collect();
        let start = |(n, program): (usize, &&Path)| {
            let numbered = routes.iter().enumerate().filter(|(_, route)| route.program == **program);
            let file = proxy.write_file(&format!("haproxy-{n}.cfg"), config(numbered));
            proxy.command(program).args(["-db", "-f"]).arg(file).start("haproxy")
        };
        let haproxies = programs.iter().enumerate().map(start).collect();
        (0..routes.len()).for_each(|n| proxy.wait_for_tcp_listener(frontend(n, Connections::New).port()));
        Site { names: routes.iter().map(|route| route.name).collect(), _haproxies: haproxies }
    }

    /// Where HAProxy takes requests for a route.
    pub(crate) fn frontend(&self, name: &str, connections: Connections) -> SocketAddr {
        let number = self.names.iter().position(|known| *known == name);
        frontend(number.expect("HAProxy knows every route"), connections)
    }
}

fn frontend(number: usize, connections: Connections) -> SocketAddr {
    let port = FIRST_FRONTEND + 2 * number as u16 + u16::from(connections == Connections::New);
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The way through a contender.
pub(crate) fn route(contender: &Contender, haproxy: &Path, certificate: &Certificate) -> Route {
    let server = match contender.reach {
        Reach::Tls { resumed } => tls_server(resumed, certificate),
        _ => contender.tcp(Service::Http).expect("all others carry TCP").to_string(),
    };
    Route { name: contender.name, program: haproxy.to_owned(), servers: vec![server] }
}

fn tls_server(resumed: bool, certificate: &Certificate) -> String {
    let again = if resumed { "" } else { " no-ssl-reuse" };
    let authority = certificate.certificate.display();
    format!(
        "{BACKEND}:{TLS_PORT} ssl ssl-min-ver TLSv1.3 verify required ca-file {authority} verifyhost {NAME} sni str({NAME}){again}"
    )
}

/// One thread per core, no logs, no health checks; the same for all but for TLS.
fn config<'a>(routes: impl Iterator<Item = (usize, &'a Route)>) -> String {
    let mut config = "global
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
"
    .to_owned();
    for (number, route) in routes {
        let lines = route.servers.iter().enumerate().map(|(n, server)| format!("  server s{n} {server}\n"));
        let servers: String = lines.collect();
        for connections in [Connections::Kept, Connections::New] {
            let (name, bind) = (format!("{}-{connections:?}", route.name), frontend(number, connections));
            let options = connections.options();
            config += &format!("frontend to-{name}\n  bind {bind}\n  default_backend {name}\n");
            config += &format!("backend {name}\n  balance roundrobin\n  {options}\n{servers}");
        }
    }
    config
}

impl Connections {
    fn options(self) -> &'static str {
        match self {
            Connections::Kept => "option http-keep-alive\n  http-reuse always",
            Connections::New => {
                "option http-server-close\n  http-reuse never\n  http-request set-header Connection close"
            }
        }
    }
}

/// Processor time of the app for one request.
const APP_TIME: Duration = Duration::from_micros(100);
/// The file that nginx compresses for each request: in that way it is an app that needs a processor.
pub(crate) const APP: &str = "/app";

/// Makes nginx's [`APP`] as long as it must be for a request to take [`APP_TIME`] on this machine.
pub(crate) fn make_app(host: &Host, nginx: &Process) {
    let directory = host.directory().join("nginx");
    let write = |name: &str, length: usize| {
        fs::write(directory.join(name), text(length)).expect("there is room for small files");
    };
    let time = |path: &str| {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, Service::Http.port()));
        let before = nginx.running_time();
        let rate = Rate { path, per_second: 2000, connections: 4 };
        let trips = http_rate::ask(host, server, rate, Duration::from_millis(500));
        (nginx.running_time() - before) / trips.times.len().max(1) as u32
    };
    const TRIED: usize = 8 << 10;
    write("app-tried", TRIED);
    let (without, with) = (time("/1k"), time("/app-tried"));
    let per_byte = with.saturating_sub(without).as_secs_f64() / TRIED as f64;
    write("app", (APP_TIME.as_secs_f64() / per_byte).clamp(1e3, 1e6) as usize);
}

/// Text that takes a compressor time: words in an order that repeats nowhere.
fn text(length: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "balance ", "server ", "request ", "answer ", "queue ", "packet ", "session ", "key ", "route ", "backend ",
        "proxy ", "link ", "time ", "load ", "state ", "health ",
    ];
    let mut random = Random::new(1);
    let words = std::iter::repeat_with(|| WORDS[usize::from(random.bytes(1)[0]) % WORDS.len()]);
    words.flat_map(str::bytes).take(length).collect()
}

/// One process, as HAProxy's two threads leave room for no more on two cores.
pub(crate) fn start_nginx(host: &Host, certificate: Option<&Certificate>) -> Process {
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
{temporary}{tls}
  server {{
    listen {port} backlog=4096; root {directory};
    location /app {{ {COMPRESSED} }}
  }}
}}
",
        tls = certificate.map_or_else(String::new, |certificate| tls_listener(certificate, &directory)),
        directory = directory.display(),
        port = Service::Http.port(),
    );
    let file = host.write_file("nginx.conf", config);
    let process = host.command("nginx").arg("-c").arg(file).args(["-e", "stderr"]).start("nginx");
    host.wait_for_tcp_listener(Service::Http.port());
    process
}

const COMPRESSED: &str = "gzip on; gzip_comp_level 9; gzip_types *; gzip_proxied any; gzip_http_version 1.0;";

/// The same files for whom speaks TLS; `/resumed` says whether its session was resumed (`r`) or not (`.`).
fn tls_listener(certificate: &Certificate, directory: &Path) -> String {
    format!(
        "  ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;
  ssl_session_cache shared:tls:10m; ssl_session_tickets on;
  server {{
    listen {TLS_PORT} ssl backlog=4096; root {};
    location /app {{ {COMPRESSED} }}
    location = /resumed {{ return 200 $ssl_session_reused; }}
  }}",
        certificate.certificate.display(),
        certificate.key.display(),
        directory.display()
    )
}

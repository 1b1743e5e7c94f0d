//! A real nginx: as an unchanged app behind, or as the load balancer in front.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::host::Host;
use crate::process::Process;

/// An app that knows nothing of tunnels: `GET /` says who it is, `PUT` and `GET /files/…` store and fetch files.
pub struct NginxApp {
    process: Process,
    root: PathBuf,
}

/// A load balancer.
pub struct NginxFront {
    process: Process,
}

impl NginxApp {
    /// Starts it. `name` is what `GET /` and the header `X-App` say.
    #[track_caller]
    pub fn start(host: &Host, listen: SocketAddr, name: &str) -> NginxApp {
        let root = host.directory().join(format!("{name}-files"));
        fs::create_dir_all(root.join("files")).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
        let servers = format!(
            "server {{
                listen {listen} reuseport;
                add_header X-App {name} always;
                location = / {{ return 200 {name}; }}
                location = /connection {{ return 200 $connection; }}
                location /files/ {{ root {root}; dav_methods PUT; }}
            }}",
            root = root.display()
        );
        NginxApp { process: start(host, name, listen.port(), &servers), root }
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Where `/files/<name>` lies on the disk.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join("files").join(name)
    }
}

impl NginxFront {
    /// Starts it, with requests spread over `apps` in turn and `/ws` over `websockets`. With `kept`, connections to the apps
    /// are kept open; otherwise each request has its own.
    #[track_caller]
    pub fn start(
        host: &Host,
        listen: SocketAddr,
        apps: &[SocketAddr],
        websockets: &[SocketAddr],
        kept: bool,
    ) -> NginxFront {
        let servers = |addresses: &[SocketAddr]| {
            addresses.iter().map(|address| format!("server {address} max_fails=0;")).collect::<String>()
        };
        let (keepalive, connection) = if kept { ("keepalive 16;", "\"\"") } else { ("", "close") };
        let config = format!(
            "upstream apps {{ {apps} {keepalive} }}
             upstream websockets {{ {websockets} }}
             server {{
                listen {listen} reuseport;
                proxy_http_version 1.1;
                location / {{
                    proxy_pass http://apps;
                    proxy_set_header Connection {connection};
                    proxy_request_buffering off;
                    proxy_buffering off;
                }}
                location /ws {{
                    proxy_pass http://websockets;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection upgrade;
                }}
             }}",
            apps = servers(apps),
            websockets = servers(websockets),
        );
        NginxFront { process: start(host, "nginx-front", listen.port(), &config) }
    }

    /// Starts it with a configuration file as it stands, as one process, so that it ends with the laboratory.
    #[track_caller]
    pub fn start_with(host: &Host, config: &Path, port: u16) -> NginxFront {
        let command = host.command("nginx").arg("-c").arg(config).args(["-e", "stderr"]);
        let process = command.args(["-g", "daemon off; master_process off;"]).start("nginx-front");
        host.wait_for_tcp_listener(port);
        NginxFront { process }
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

#[track_caller]
fn start(host: &Host, name: &str, port: u16, servers: &str) -> Process {
    let directory = host.directory().join(format!("{name}-nginx"));
    fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind};\n", directory.display()))
        .concat();
    let config = format!(
        "user root;
         master_process off;
         daemon off;
         pid {directory}/pid;
         error_log stderr notice;
         events {{ worker_connections 1024; }}
         http {{
            access_log off;
            client_max_body_size 0;
            {temporary}
            {servers}
         }}",
        directory = directory.display(),
    );
    let config = host.write_file(&format!("{name}.conf"), config);
    let process = host.command("nginx").arg("-c").arg(config).args(["-e", "stderr"]).start(name);
    host.wait_for_tcp_listener(port);
    process
}

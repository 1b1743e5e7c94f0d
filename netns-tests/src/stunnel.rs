//! Debian's stunnel: a pair that carries TCP connections in TLS 1.3, one TLS connection for each.

use std::net::SocketAddr;

use crate::certificates::Certificate;
use crate::host::Host;
use crate::process::Process;

/// One TCP service that is reached through a pair.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Where its users connect to, at the near side.
    pub near: SocketAddr,
    /// Where the far side takes TLS connections.
    pub far: SocketAddr,
    /// Where the service itself listens, at the far side.
    pub server: SocketAddr,
}

/// Starts the near and the far side. The near one verifies the certificate and its name, and resumes sessions.
#[track_caller]
pub fn connect(near: &Host, far: &Host, services: &[Service], name: &str, tls: &Certificate) -> [Process; 2] {
    let (certificate, key) = (tls.certificate.display(), tls.key.display());
    let server = format!("cert = {certificate}\nkey = {key}\n");
    let client = format!("client = yes\nCAfile = {certificate}\nverifyChain = yes\ncheckHost = {name}\nsni = {name}\n");
    let far_side = services.iter().map(|service| (service.far, service.server));
    let near_side = services.iter().map(|service| (service.near, service.far));
    [start(far, &server, far_side), start(near, &client, near_side)]
}

#[track_caller]
fn start(host: &Host, options: &str, services: impl Iterator<Item = (SocketAddr, SocketAddr)>) -> Process {
    let mut config = format!(
        "foreground = yes\npid =\ndebug = warning\nsslVersion = TLSv1.3\n\
         socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n{options}"
    );
    let mut ports = vec![];
    for (n, (accept, connect)) in services.enumerate() {
        config += &format!("[service{n}]\naccept = {accept}\nconnect = {connect}\n");
        ports.push(accept.port());
    }
    let file = host.write_file("stunnel.conf", config);
    let process = host.command("stunnel").arg(file).start("stunnel");
    ports.into_iter().for_each(|port| host.wait_for_tcp_listener(port));
    process
}

//! quincy, a tunnel over QUIC: to compare with.

use std::net::SocketAddr;
use std::path::Path;

use crate::host::Host;
use crate::process::Process;
use crate::wait;

/// The ends of a link. The client gets the address after the server's.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Who calls.
    pub client: &'a Host,
    /// Who is called.
    pub server: &'a Host,
    /// Where the server is reached.
    pub endpoint: SocketAddr,
    /// The server's address in the tunnel, with prefix length.
    pub address: &'a str,
    /// The name of the interfaces.
    pub interface: &'a str,
}

/// Starts both ends, in Noise mode with the program's own defaults; `programs` is where its programs lie.
#[track_caller]
pub fn connect(programs: &Path, ends: Ends) -> [Process; 2] {
    let identity = |arguments: [&str; 2], stdin: &str| {
        let command = ends.client.command(programs.join("quincy-identity")).args(arguments);
        command.stdin(stdin).run().trim().to_owned()
    };
    let keys = [(); 2].map(|()| identity(["noise", "genkey"], ""));
    let public = keys.each_ref().map(|key| identity(["noise", "pubkey"], key));
    let server = start_server(programs, ends, &keys[0], &public[1]);
    let client = start_client(programs, ends, &keys[1], &public[0]);
    [server, client].map(|mut process| {
        wait::until("quincy has made its interface", || {
            process.assert_running();
            process.host().has_interface(ends.interface)
        });
        process
    })
}

fn start_server(programs: &Path, ends: Ends, key: &str, clients_key: &str) -> Process {
    let host = ends.server;
    let users = format!("[users.proxy]\nauthorized_keys = [\"{clients_key}\"]\nauthorized_certs = []\n");
    let users = host.write_file("quincy-users.toml", users);
    let config = format!(
        "name = \"bench\"\ninterface_name = \"{}\"\nbind_port = {}\ntunnel_network = \"{}\"\nusers_file = \"{}\"\n\
         [protocol]\nmode = \"noise\"\nkey_exchange = \"standard\"\nprivate_key = \"{key}\"\n[log]\nlevel = \"warn\"\n",
        ends.interface,
        ends.endpoint.port(),
        ends.address,
        users.display()
    );
    start(host, programs, "quincy-server", config)
}

fn start_client(programs: &Path, ends: Ends, key: &str, servers_key: &str) -> Process {
    let config = format!(
        "connection_string = \"{}\"\n[protocol]\nmode = \"noise\"\nkey_exchange = \"standard\"\n\
         server_public_key = \"{servers_key}\"\nprivate_key = \"{key}\"\n\
         [network]\ninterface_name = \"{}\"\n[log]\nlevel = \"warn\"\n",
        ends.endpoint, ends.interface
    );
    start(ends.client, programs, "quincy-client", config)
}

fn start(host: &Host, programs: &Path, program: &str, config: String) -> Process {
    let file = host.write_file(&format!("{program}.toml"), config);
    host.command(programs.join(program)).arg("--config-path").arg(file).start(program)
}

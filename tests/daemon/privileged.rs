//! What the privileged process does for whoever has taken over a daemon: they can send it whatever they like.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair,
};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use underpass::config::Config;
use underpass::control::privileged::PrivilegedPlan;

use crate::support::{Site, a_public_key};

/// A daemon that somebody has taken over.
struct Intruder {
    requests: OwnedFd,
    newest: u64,
}

impl Intruder {
    /// Beside a privileged process of its own, for the configuration in `file`.
    fn start(file: &Path) -> (Intruder, Child) {
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let ((requests, theirs), (_, reports)) = (pair(), pair());
        let mut command = Command::new(env!("CARGO_BIN_EXE_underpass"));
        command.args(["privileged", "--allow-root", "--config"]).arg(file);
        let process = command.stdin(theirs).stdout(reports).spawn().unwrap();
        // With its ends of the sockets.
        drop(command);
        let intruder = Intruder { requests, newest: 0 };
        assert!(intruder.receive()["content"]["Started"]["pid"].is_u64());
        (intruder, process)
    }

    fn receive(&self) -> Value {
        let mut bytes = vec![0; 1 << 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let (mut ancillary, mut parts) = (RecvAncillaryBuffer::new(&mut space), [IoSliceMut::new(&mut bytes)]);
        let received = recvmsg(&self.requests, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        serde_json::from_slice(&bytes[..received.bytes]).unwrap()
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(&self.requests, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
    }

    fn ask(&mut self, content: &Value, descriptors: &[BorrowedFd<'_>]) -> Value {
        self.newest += 1;
        self.send(json!({ "number": self.newest, "content": content }).to_string().as_bytes(), descriptors);
        let reply = self.receive();
        assert_eq!(reply["number"], self.newest);
        reply["content"].clone()
    }

    #[track_caller]
    fn assert_refused(&mut self, content: &Value, descriptors: &[BorrowedFd<'_>], kind: &str) {
        let reply = self.ask(content, descriptors);
        assert_eq!(reply["Refused"]["kind"], kind, "{content}: {reply}");
    }
}

fn grant(grant: &Value) -> Value {
    json!({ "Grant": grant })
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn whoever_takes_over_a_daemon_is_given_nothing_that_the_configuration_does_not_have() {
    let site = Site::new();
    let (port, health) = (free_port(), free_port());
    let text = format!(
        "role = \"proxy\"\n[interface]\nprivate_key_file = \"private.key\"\naddresses = [\"10.77.0.1/24\"]\n\
         listen = [\"127.0.0.1:{port}\"]\n[health]\nhttp = \"127.0.0.1:{health}\"\n\
         [[backend]]\nname = \"app1\"\npublic_key = \"{}\"\naddresses = [\"10.77.0.11\"]\n",
        a_public_key()
    );
    site.write("proxy.toml", 0o644, text);
    let file = site.path("proxy.toml");
    let (mut intruder, mut process) = Intruder::start(&file);
    let open = |kind, protocol| Socket::new(Domain::IPV4, kind, Some(protocol)).unwrap();
    let (udp, tcp) = (open(Type::DGRAM, Protocol::UDP), open(Type::STREAM, Protocol::TCP));
    let no_socket = File::open("/dev/null").unwrap();
    let (listen, health) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{health}"));

    // Nothing is known to it before it has read the file, and agrees with who asks on what that says.
    for request in ["Prepare", "Commit", "Repair", "CreateDevice"] {
        intruder.assert_refused(&request.into(), &[], "NotGranted");
    }
    let device = json!({ "offload": true, "is_kept": false, "is_prepared": false });
    intruder.assert_refused(&json!({ "Configure": { "device": device } }), &[], "NotGranted");
    intruder.assert_refused(&json!({ "Open": { "prefix": "0.0.0.0/0" } }), &[], "NotGranted");
    intruder.assert_refused(&grant(&json!({ "Bind": listen })), &[udp.as_fd()], "NotGranted");
    intruder.assert_refused(&json!({ "Load": { "expects": "00" } }), &[], "Configuration");

    let plan = PrivilegedPlan::of(&Config::load_without_keys(&file).unwrap());
    assert_eq!(intruder.ask(&json!({ "Load": { "expects": plan.digest() } }), &[]), "Done");
    let sockets = [udp.as_fd(), tcp.as_fd(), no_socket.as_fd()];
    for (wanted, with) in [
        (json!({ "Mark": 7 }), &sockets[..1]),
        (json!({ "ReceiveBuffer": 1 << 30 }), &sockets[..1]),
        (json!({ "SendBuffer": 1 << 30 }), &sockets[..1]),
        (json!({ "Bind": "0.0.0.0:443" }), &sockets[..1]),
        (json!({ "Bind": health }), &sockets[..1]),
        (json!({ "Bind": listen }), &sockets[1..2]),
        (json!({ "Bind": "0.0.0.0:443" }), &sockets[1..2]),
        (json!({ "Mark": 0 }), &sockets[1..2]),
        (json!({ "Bind": listen }), &sockets[2..]),
        (json!({ "Bind": listen }), &[]),
        (json!({ "Bind": listen }), &sockets[..2]),
    ] {
        intruder.assert_refused(&grant(&wanted), with, "NotGranted");
    }
    assert_eq!(intruder.ask(&grant(&json!({ "Bind": listen })), &sockets[..1]), "Done");
    assert_eq!(udp.local_addr().unwrap().as_socket().unwrap().to_string(), listen);
    assert_eq!(intruder.ask(&grant(&json!({ "Bind": health })), &sockets[1..2]), "Done");

    // What is no request ends it.
    intruder.send(b"{\"number\":1,\"content\":{\"Run\":\"/bin/sh\"}}", &[]);
    assert!(!process.wait().unwrap().success());
}

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::*;

/// Three directories, each with a file: one to read, one to write, and one that is nobody's business.
fn directories() -> [TempDir; 3] {
    let directory = || {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "content").unwrap();
        directory
    };
    [directory(), directory(), directory()]
}

fn allowed(read: &Path, write: &Path) -> Allowed {
    let only = |path: &Path| [path.to_owned()].into();
    let allowed = Allowed {
        part: Part::Daemon,
        read: only(read),
        run: [].into(),
        write: only(write),
        tcp_ports: [51902].into(),
        has_low_port: false,
        fixed_network: None,
        fixed_lanes: None,
    };
    allowed.and_programs_beside(&env::current_exe().unwrap())
}

/// Runs `test` in a sandbox. It is a thread's, and this one's goes with it.
fn inside(allowed: Allowed, test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        assert_eq!(allowed.enforce(), Vec::<String>::new(), "this test needs Linux 6.12 with Landlock and seccomp");
        test();
    });
    thread.join().unwrap();
}

#[track_caller]
fn assert_denied<T>(result: io::Result<T>) {
    assert_eq!(result.err().map(|error| error.kind()), Some(ErrorKind::PermissionDenied));
}

#[test]
fn only_the_directories_of_the_configuration_are_read_and_only_that_of_the_socket_is_written() {
    let [read, write, other] = directories();
    let at = |directory: &TempDir, name: &str| directory.path().join(name);
    let (readable, writable, secret) = (at(&read, "file"), at(&write, "file"), at(&other, "file"));
    let (own, renamed, moved) = (at(&write, "socket"), at(&write, "renamed"), at(&write, "moved"));
    let listener = UnixListener::bind(&own).unwrap();
    inside(allowed(read.path(), write.path()), move || {
        assert_eq!(fs::read(&readable).unwrap(), b"content");
        assert!(File::open("/etc/hostname").is_ok() || !Path::new("/etc/hostname").exists());
        assert_denied(fs::read(&secret));
        assert_denied(fs::write(&readable, "other"));
        assert_denied(fs::remove_file(&readable));
        fs::write(&writable, "other").unwrap();
        fs::rename(&writable, &moved).unwrap();
        fs::rename(&own, &renamed).unwrap();
        fs::remove_file(&renamed).unwrap();
        drop(listener);
        assert_denied(Command::new("/bin/sh").output());
    });
}

#[test]
fn no_tcp_connection_is_made_and_none_taken_but_for_health_checks() {
    let [read, write, _other] = directories();
    inside(allowed(read.path(), write.path()), || {
        assert_denied(TcpStream::connect("127.0.0.1:443"));
        assert_denied(TcpListener::bind("127.0.0.1:0"));
        UdpSocket::bind("127.0.0.1:0").unwrap();
    });
}

#[test]
fn no_namespace_mount_program_for_the_kernel_or_packet_socket_is_made() {
    let [read, write, _other] = directories();
    inside(allowed(read.path(), write.path()), || {
        assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::ENOSYS));
        let mounted =
            nix::mount::mount(None::<&str>, "/tmp", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>);
        assert_eq!(mounted, Err(Errno::ENOSYS));
        let packets = Socket::new(Domain::PACKET, Type::RAW, None);
        assert_eq!(packets.unwrap_err().raw_os_error(), Some(Errno::ENOSYS as i32));
    });
}

#[test]
fn no_unix_socket_is_opened_but_a_connected_pair_and_of_netlink_only_what_a_part_asks() {
    for part in [Part::Daemon, Part::Privileged] {
        let [read, write, _other] = directories();
        inside(Allowed { part, ..allowed(read.path(), write.path()) }, move || {
            let missing = |error: io::Error| error.raw_os_error() == Some(Errno::ENOSYS as i32);
            for kind in [Type::STREAM, Type::DGRAM, Type::SEQPACKET] {
                assert!(Socket::new(Domain::UNIX, kind, None).is_err_and(missing), "{kind:?}");
            }
            assert!(Socket::pair(Domain::UNIX, Type::DGRAM, None).is_err_and(missing));
            Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
            Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
            assert_eq!(Socket::new(Domain::IPV4, Type::STREAM, None).is_ok(), part == Part::Daemon);
            for protocol in 0..32 {
                let opened = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol.into()));
                let is_ours = system_calls::netlink_protocols(part).contains(&protocol);
                assert_eq!(opened.is_ok(), is_ours, "{part:?}: netlink's protocol {protocol}: {opened:?}");
            }
        });
    }
}

#[test]
fn a_thread_is_proven_to_be_inside_only_if_it_is() {
    let [read, write, _other] = directories();
    assert!(!proof::is_inside());
    inside(allowed(read.path(), write.path()), || assert!(proof::is_inside()));
}

#[test]
fn a_daemon_keeps_no_capability_and_its_privileged_process_one_for_good() {
    for (part, kept) in [(Part::Daemon, ""), (Part::Privileged, "CAP_NET_ADMIN")] {
        let [read, write, _other] = directories();
        let allowed = Allowed { part, ..allowed(read.path(), write.path()) };
        let thread = thread::spawn(move || {
            let before = capabilities::left();
            capabilities::drop_all_but(&allowed).unwrap();
            let kept = before.into_iter().filter(|name| name == kept).collect::<Vec<_>>();
            assert_eq!(capabilities::left(), kept);
            assert!(caps::raise(None, caps::CapSet::Permitted, caps::Capability::CAP_SYS_ADMIN).is_err());
        });
        thread.join().unwrap();
    }
}

#[test]
fn the_next_program_knows_what_it_is_in() {
    let allowed = allowed(Path::new("/etc/underpass"), Path::new("/run/underpass"));
    let entered =
        Entered { version: VERSION.to_owned(), allowed: allowed.clone(), lacks: vec!["no Landlock".to_owned()] };
    let sandbox = Sandbox { entered: Some(entered.clone()), capabilities: Vec::new() };
    let (name, value) = sandbox.variable().unwrap();
    assert_eq!(name, VARIABLE);
    assert_eq!(decode(value.to_str().unwrap()), Some((process::id(), entered.clone())));
    assert!(entered.made_the_same(&allowed));
    assert_eq!(decode("1234:nonsense"), None);
    assert_eq!(Sandbox::default().variable(), None);
}

#[test]
fn what_a_changed_configuration_needs_more_is_named() {
    let before = allowed(Path::new("/etc/underpass"), Path::new("/run/underpass"));
    let below = Allowed { read: [PathBuf::from("/etc/underpass/keys")].into(), ..before.clone() };
    assert_eq!(before.missing_for(&below), Vec::<String>::new());
    let more = Allowed {
        read: [PathBuf::from("/srv/keys")].into(),
        write: [PathBuf::from("/srv/run")].into(),
        tcp_ports: [51902, 8080].into(),
        has_low_port: true,
        ..before.clone()
    };
    let missing = before.missing_for(&more);
    for (missing, name) in missing.iter().zip(["/srv/keys", "/srv/run", "8080", "CAP_NET_BIND_SERVICE"]) {
        assert!(missing.contains(name) && missing.ends_with("systemctl restart"), "{missing}");
    }
    assert_eq!(missing.len(), 4);
}

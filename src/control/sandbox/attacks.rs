//! What whoever has broken into the daemon tries next, from inside of its sandbox; and the same without one, where it succeeds.
//!
//! `cargo test --lib attacks -- --nocapture` prints the table of `docs/security.md`. It needs root: one run for each kind of
//! daemon, in a process of its own with a network of its own.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, User, geteuid};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use socket2::{Domain, Socket, Type};

use super::super::user::DaemonUser;
use super::*;

/// Somebody who is nobody special, on every machine.
const USER: &str = "nobody";
/// Which of [`DAEMONS`] the inside is.
const DAEMON: &str = "UNDERPASS_TEST_DAEMON";
const DIRECTORY: &str = "UNDERPASS_TEST_DIRECTORY";
const VICTIM: &str = "UNDERPASS_TEST_VICTIM";
/// What a program of the same machine sends to another in the clear.
const SECRET: &[u8] = b"a password that another program sends";
const ABSTRACT: &str = "underpass-test";
const ABSTRACT_DATAGRAMS: &str = "underpass-test-datagrams";

/// Kinds of daemons: without a sandbox, as root (`--allow-root`), as its own user; and the privileged process of that.
const DAEMONS: [&str; 4] = ["no sandbox", "root", "own user", "privileged process"];

/// An attack, how it is tried, and what comes of it for each of [`DAEMONS`]; "done" is a success.
type Attack = (&'static str, fn(&Scene) -> io::Result<()>, [&'static str; 4]);

const ATTACKS: [Attack; 18] = [
    ("read them by a packet socket", packet_socket, ["done", "ENOSYS", "ENOSYS", "ENOSYS"]),
    ("flush all rules of nftables", flush_rules, ["done", "ENOSYS", "ENOSYS", "done"]),
    ("divert a route of the host", divert_route, ["done", "EPERM", "EPERM", "done"]),
    ("mark packets, to take another route", mark_packets, ["done", "EPERM", "EPERM", "done"]),
    ("connect to a Unix socket of root", connect_to_root, ["done", "ENOSYS", "ENOSYS", "ENOSYS"]),
    ("send to a Unix socket of root, by the journal's", send_to_root, ["done", "done", "EACCES", "EACCES"]),
    ("connect to an abstract socket", connect_to_abstract, ["done", "ENOSYS", "ENOSYS", "ENOSYS"]),
    ("send to an abstract socket, by the journal's", send_to_abstract, ["done", "EPERM", "EPERM", "EPERM"]),
    ("read /etc/shadow", |_| File::open("/etc/shadow").map(drop), ["done", "done", "EACCES", "EACCES"]),
    ("list /root", |_| fs::read_dir("/root").map(drop), ["done", "EACCES", "EACCES", "EACCES"]),
    ("change its own configuration", change_configuration, ["done", "EACCES", "EACCES", "EACCES"]),
    (
        "start a shell",
        |_| Command::new("/bin/sh").args(["-c", "true"]).status().map(drop),
        ["done", "EACCES", "EACCES", "EACCES"],
    ),
    ("make a mount namespace", |_| Ok(unshare(CloneFlags::CLONE_NEWNS)?), ["done", "ENOSYS", "ENOSYS", "ENOSYS"]),
    ("read another process (process_vm_readv)", read_process, ["done", "ENOSYS", "ENOSYS", "ENOSYS"]),
    ("read another process (/proc/PID/mem)", read_memory, ["done", "EACCES", "EACCES", "EACCES"]),
    ("connect by TCP to port 443", connect_by_tcp, ["done", "EACCES", "EACCES", "ENOSYS"]),
    (BY_TAP, read_packets, ["done", "EACCES", "EACCES", "done"]),
    ("kill another process of its user", kill_process, ["done", "EPERM", "EPERM", "EPERM"]),
];

const BY_TAP: &str = "read other programs' packets by a TAP and tc mirred";

/// As on Debian; elsewhere the own user has no TAP, whatever its capabilities.
fn tun_is_for_everybody() -> bool {
    fs::metadata("/dev/net/tun").unwrap().permissions().mode() & 0o006 == 0o006
}

/// What the inside finds.
struct Scene {
    directory: PathBuf,
    /// Another process of the same user.
    victim: Pid,
    /// Opened before the sandbox, as the way to the journal is.
    journal: UnixDatagram,
}

#[test]
fn attacks_from_inside_fail() {
    assert!(geteuid().is_root(), "this test makes networks and changes its user: run it as root");
    let mut outcomes = DAEMONS.map(outcomes_of);
    println!("| attack | {} |", DAEMONS.join(" | "));
    for (name, _, mut expected) in ATTACKS {
        if name == BY_TAP && !tun_is_for_everybody() {
            expected[3] = "EACCES";
        }
        let found = outcomes.each_mut().map(|outcomes| outcomes.remove(name).unwrap_or_default());
        println!("| {name} | {} |", found.join(" | "));
        assert_eq!(found, expected, "{name}");
    }
}

/// By the names of attacks.
fn outcomes_of(daemon: &str) -> BTreeMap<String, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::set_permissions(path, Permissions::from_mode(0o711)).unwrap();
    let is_root = ["no sandbox", "root"].contains(&daemon);
    let user = User::from_name(if is_root { "root" } else { USER }).unwrap().unwrap();
    write_configuration(path, &user);
    let _sockets =
        (UnixListener::bind(path.join("stream")).unwrap(), UnixDatagram::bind(path.join("datagram")).unwrap());
    for socket in ["stream", "datagram"] {
        fs::set_permissions(path.join(socket), Permissions::from_mode(0o600)).unwrap();
    }
    let mut victim =
        Victim(Command::new("sleep").arg("60").uid(user.uid.as_raw()).gid(user.gid.as_raw()).spawn().unwrap());
    let inside = Command::new(env::current_exe().unwrap())
        .args(["control::sandbox::attacks::inside", "--exact", "--ignored", "--nocapture"])
        .env(DAEMON, daemon)
        .env(DIRECTORY, path)
        .env(VICTIM, victim.0.id().to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inside.stdout);
    assert!(inside.status.success(), "{daemon}: {said}{}", String::from_utf8_lossy(&inside.stderr));
    // It ends a moment after the signal.
    let is_killed = daemon == "no sandbox" && victim.0.wait().unwrap().signal() == Some(Signal::SIGKILL as i32);
    let is_alive = !is_killed && victim.0.try_wait().unwrap().is_none();
    assert_eq!(is_alive, daemon != "no sandbox", "what {daemon} says of the victim is so");
    let lines = said.lines().filter_map(|line| line.strip_prefix("ATTACK\t")?.split_once('\t'));
    lines.map(|(attack, outcome)| (attack.to_owned(), outcome.to_owned())).collect()
}

/// Ends with the test.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn write_configuration(directory: &Path, user: &User) {
    let own = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    };
    own("key", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n");
    let key = crate::keys::PrivateKey::from_bytes([7; 32]).unwrap().public_key();
    let run = directory.join("run");
    fs::create_dir(&run).unwrap();
    let text = format!(
        "role = \"proxy\"\n[interface]\nprivate_key_file = \"key\"\naddresses = [\"10.77.0.1/24\"]\n\
         control_socket = \"{}\"\n\
         [[backend]]\nname = \"app1\"\npublic_key = \"{key}\"\naddresses = [\"10.77.0.11\"]\nendpoint = \"192.0.2.1:51900\"\n",
        run.join("control.sock").display()
    );
    own("proxy.toml", &text);
}

#[test]
#[ignore = "attacks_from_inside_fail starts it, once for each kind of daemon"]
fn inside() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("started by another test, which sets {name}"));
    let (daemon, directory) = (variable(DAEMON), PathBuf::from(variable(DIRECTORY)));
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    block_on(async {
        let netlink = netlink();
        netlink.link().change(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await
    })
    .unwrap();
    // Names of abstract sockets belong to a network.
    let address = |name| SocketAddr::from_abstract_name(name).unwrap();
    let _listener = UnixListener::bind_addr(&address(ABSTRACT)).unwrap();
    let _datagrams = UnixDatagram::bind_addr(&address(ABSTRACT_DATAGRAMS)).unwrap();
    let _web_server = TcpListener::bind("127.0.0.1:443").unwrap();
    thread::spawn(send_secrets);
    let victim = Pid::from_raw(variable(VICTIM).parse().unwrap());
    let scene = Scene { victim, journal: UnixDatagram::unbound().unwrap(), directory: directory.clone() };
    if daemon != "no sandbox" {
        let file = directory.join("proxy.toml");
        let user = (daemon != "root").then(|| DaemonUser::named(USER).unwrap());
        let config = Config::load(&file).unwrap();
        let part = if daemon == "privileged process" { Part::Privileged } else { Part::Daemon };
        let program = env::current_exe().unwrap();
        let sandbox = Sandbox::enter(part, &config, &file, &program, user.as_ref(), &[]).unwrap();
        let lacks = sandbox.report().lacks;
        assert!(lacks.iter().all(|lack| lack.starts_with("memory")), "this test needs Linux 6.12: {lacks:?}");
    }
    for (name, attack, _) in ATTACKS {
        let outcome = match attack(&scene) {
            Ok(()) => "done".to_owned(),
            Err(error) => {
                error.raw_os_error().map_or(error.to_string(), |number| format!("{:?}", Errno::from_raw(number)))
            }
        };
        println!("ATTACK\t{name}\t{outcome}");
    }
}

/// The other program: as long as this one runs, outside of its sandbox.
fn send_secrets() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    loop {
        let _ = socket.send_to(SECRET, "127.0.0.1:9");
        // Nobody answers: a moment later.
        let _ = socket.recv(&mut [0]);
    }
}

/// As of every network.
const LOOPBACK: u32 = 1;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn netlink() -> rtnetlink::Handle {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

fn errno(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        error => io::Error::other(error),
    }
}

/// All that arrives on the loopback interface is handed to a device of the attacker's, where they find the secret.
fn read_packets(_: &Scene) -> io::Result<()> {
    let tap = tun_tap::Iface::without_packet_info("evil0", tun_tap::Mode::Tap)?;
    let index = nix::net::if_::if_nametoindex("evil0")?;
    block_on(async {
        let netlink = netlink();
        netlink.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(errno)?;
        netlink.qdisc().add(LOOPBACK as i32).ingress().execute().await.map_err(errno)?;
        let every_protocol = 3_u16.to_be();
        let filter = netlink.traffic_filter(LOOPBACK as i32).add().parent(0xffff_0000).protocol(every_protocol);
        filter.redirect(index).map_err(errno)?.execute().await.map_err(errno)
    })?;
    let mut packet = [0; 2048];
    for _ in 0..1000 {
        let length = tap.recv(&mut packet)?;
        if packet[..length].ends_with(SECRET) {
            return Ok(());
        }
    }
    Err(io::Error::other("a thousand packets, and no secret in them"))
}

fn packet_socket(_: &Scene) -> io::Result<()> {
    Socket::new(Domain::PACKET, Type::RAW, None).map(drop)
}

/// A batch of one message: every table of every family is deleted.
fn flush_rules(_: &Scene) -> io::Result<()> {
    const BEGIN: u16 = 0x10;
    const DELETE_TABLE: u16 = 10 << 8 | 2;
    const END: u16 = 0x11;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkNetFilter)?;
    let message = |kind: u16, flags: u16, sequence: u32, subsystem: u16| {
        let mut message = 20_u32.to_ne_bytes().to_vec();
        message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        message.extend([sequence.to_ne_bytes(), [0; 4]].concat());
        message.extend([[0, 0], subsystem.to_be_bytes()].concat());
        message
    };
    let batch = [message(BEGIN, 1, 1, 10), message(DELETE_TABLE, 1 | 4, 2, 0), message(END, 1, 3, 10)].concat();
    sendto(netlink.as_raw_fd(), &batch, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 256];
    recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match i32::from_ne_bytes(answer[16..20].try_into().unwrap()) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn divert_route(_: &Scene) -> io::Result<()> {
    let builder = RouteMessageBuilder::<std::net::Ipv4Addr>::new().output_interface(LOOPBACK);
    let route = builder.destination_prefix([198, 51, 100, 0].into(), 24).build();
    block_on(async { netlink().route().add(route).execute().await.map_err(errno) })
}

fn mark_packets(_: &Scene) -> io::Result<()> {
    Socket::new(Domain::IPV4, Type::DGRAM, None)?.set_mark(7)
}

fn connect_to_root(scene: &Scene) -> io::Result<()> {
    UnixStream::connect(scene.directory.join("stream")).map(drop)
}

fn send_to_root(scene: &Scene) -> io::Result<()> {
    scene.journal.send_to(b"STOP", scene.directory.join("datagram")).map(drop)
}

fn connect_to_abstract(_: &Scene) -> io::Result<()> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(ABSTRACT)?).map(drop)
}

fn send_to_abstract(scene: &Scene) -> io::Result<()> {
    scene.journal.send_to_addr(b"STOP", &SocketAddr::from_abstract_name(ABSTRACT_DATAGRAMS)?).map(drop)
}

fn change_configuration(scene: &Scene) -> io::Result<()> {
    OpenOptions::new().append(true).open(scene.directory.join("proxy.toml")).map(drop)
}

/// The beginning of its program, whose place its map says.
fn read_process(scene: &Scene) -> io::Result<()> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", scene.victim)).unwrap_or_default();
    let base = usize::from_str_radix(maps.split('-').next().unwrap_or_default(), 16).unwrap_or(0x1000);
    let mut bytes = [0; 4];
    let local = &mut [IoSliceMut::new(&mut bytes)];
    process_vm_readv(scene.victim, local, &[RemoteIoVec { base, len: 4 }])?;
    Ok(())
}

fn read_memory(scene: &Scene) -> io::Result<()> {
    File::open(format!("/proc/{}/mem", scene.victim)).map(drop)
}

fn connect_by_tcp(_: &Scene) -> io::Result<()> {
    std::net::TcpStream::connect_timeout(&([127, 0, 0, 1], 443).into(), Duration::from_millis(200)).map(drop)
}

fn kill_process(scene: &Scene) -> io::Result<()> {
    Ok(kill(scene.victim, Signal::SIGKILL)?)
}

//! A machine of the laboratory: a network namespace with its own `/run` and `/sys`.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::link::Port;
use crate::process::Command;
use crate::wait;

type Job = Box<dyn FnOnce() + Send>;

/// A machine of the laboratory. Clones are the same machine.
///
/// The namespace belongs to a thread which lives until the last clone is gone. It starts all the machine's programs, which
/// the kernel kills when that thread ends.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    /// `/proc/<pid>/task/<thread>/ns`
    namespaces: PathBuf,
    jobs: Sender<Job>,
    directory: PathBuf,
    logs: Mutex<Vec<PathBuf>>,
}

impl Host {
    /// `directory` is where its programs keep their files and logs.
    pub(crate) fn new(name: &str, directory: PathBuf) -> Host {
        fs::create_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        let spawned = thread::Builder::new().name(format!("host {name}")).spawn(move || {
            let entered = enter_new_namespaces();
            ready.send(entered.map(|()| namespaces_of_this_thread())).expect("the maker of a host waits for it");
            queue.iter().for_each(|job| job());
        });
        spawned.expect("the system has room for one more thread");
        let namespaces =
            started.recv().expect("a new host answers").unwrap_or_else(|e| panic!("no namespace for host {name}: {e}"));
        let inner = Inner { name: name.to_owned(), namespaces, jobs, directory, logs: Mutex::default() };
        let host = Host { inner: Arc::new(inner) };
        host.set_defaults();
        host
    }

    /// What the test calls it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// A path that names its network namespace, for `ip link … netns` and `nsenter --net=`.
    pub fn netns(&self) -> PathBuf {
        self.inner.namespaces.join("net")
    }

    /// A directory of its own for the configs, keys and logs of its programs.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// Writes a file into [`Host::directory`].
    #[track_caller]
    pub fn write_file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory().join(name);
        fs::write(&path, contents).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// An interface to plug into a link, with its addresses (`address/length`).
    pub fn port<'a>(&self, name: &'a str, addresses: impl IntoIterator<Item = &'a str>) -> Port<'a> {
        Port::new(self.clone(), name, addresses)
    }

    /// Calls `work` in this machine's network: sockets made there belong to it, wherever they are used afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = self.netns();
        let outcome = thread::scope(|scope| {
            let worker = scope.spawn(move || {
                enter(&netns);
                work()
            });
            worker.join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread in this machine's network.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let netns = self.netns();
        thread::spawn(move || {
            enter(&netns);
            work()
        })
    }

    /// A program to run on this machine.
    #[track_caller]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::new(self.clone(), program.as_ref())
    }

    /// Runs `ip` with these words.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        self.command("ip").args(arguments.split_whitespace()).run();
    }

    /// Sets `/proc/sys/net/<name>`.
    #[track_caller]
    pub fn set_sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(|| fs::write(&path, value)).unwrap_or_else(|e| panic!("{} = {value}: {e}", path.display()));
    }

    /// Has what comes in by an interface handled in one place, so in order.
    #[track_caller]
    pub(crate) fn receive_on_one_processor(&self, interface: &str) {
        let queues = PathBuf::from(format!("/sys/class/net/{interface}/queues"));
        let steered = self.call(move || -> io::Result<usize> {
            let receive = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("rx-");
            let queues = fs::read_dir(queues)?.flatten().filter(receive);
            queues.map(|queue| fs::write(queue.path().join("rps_cpus"), "1").map(|()| 1)).sum()
        });
        assert!(steered.as_ref().is_ok_and(|queues| *queues > 0), "steering {interface}: {steered:?}");
    }

    /// Reads a file as this machine sees it (`/proc/thread-self/net/…`, `/proc/sys/net/…`).
    pub fn read(&self, path: &str) -> String {
        self.run(|| fs::read_to_string(path)).unwrap_or_default()
    }

    /// Lets it forward packets between its interfaces.
    #[track_caller]
    pub fn forward_packets(&self) {
        self.set_sysctl("ipv4/conf/all/forwarding", "1");
        self.set_sysctl("ipv6/conf/all/forwarding", "1");
    }

    /// Waits until something listens on this TCP port.
    #[track_caller]
    pub fn wait_for_tcp_listener(&self, port: u16) {
        let wanted = format!(":{port:04X}");
        wait::until(&format!("{} listens on TCP port {port}", self.name()), || {
            ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|table| {
                // Columns: slot, local address, remote address, state; state 0A is LISTEN.
                self.read(table).lines().any(|line| {
                    let mut columns = line.split_whitespace().skip(1);
                    columns.next().is_some_and(|local| local.ends_with(&wanted)) && columns.nth(1) == Some("0A")
                })
            })
        });
    }

    /// Waits until it takes packets to all of its IPv6 addresses: the kernel makes a new one receive in the background, and on
    /// a machine where many namespaces come and go that is long after the command has returned.
    #[track_caller]
    pub fn wait_for_ipv6_addresses(&self) {
        wait::until(&format!("{} receives on its IPv6 addresses", self.name()), || {
            let addresses = self.read("/proc/thread-self/net/if_inet6");
            let routes = self.read("/proc/thread-self/net/ipv6_route");
            // Columns: destination, its length in hex, source, its length, gateway, metric, references, uses, flags, interface.
            let is_local = |route: &str, address: &str| {
                let columns: Vec<&str> = route.split_whitespace().collect();
                let local = columns.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok());
                columns.starts_with(&[address, "80"]) && local.is_some_and(|flags| flags & RTF_LOCAL != 0)
            };
            let all = |address: &str| routes.lines().any(|route| is_local(route, address));
            addresses.lines().filter_map(|line| line.split_whitespace().next()).all(all)
        });
    }

    /// Whether it has an interface of that name.
    pub fn has_interface(&self, name: &str) -> bool {
        self.read("/proc/thread-self/net/dev").lines().any(|line| line.trim_start().starts_with(&format!("{name}:")))
    }

    /// The routes of a family (`-4` or `-6`), as `ip route` prints them, of all tables.
    #[track_caller]
    pub fn routes(&self, family: &str) -> String {
        self.command("ip").args([family, "route", "show", "table", "all"]).run()
    }

    /// Calls `job` on the thread that owns the namespaces: a program started there ends with the laboratory.
    pub fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job = move || drop(answer.send(job()));
        self.inner.jobs.send(Box::new(job)).expect("a host's thread lives as long as the host");
        answered.recv().expect("a job on a host's thread does not panic")
    }

    /// Has the log shown when the test fails.
    pub(crate) fn add_log(&self, path: PathBuf) {
        self.inner.logs.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }

    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        self.inner.logs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// No duplicate-address detection (a second's wait per address), no reverse-path filter (tests of spoofing are about the
    /// tunnel's own checks), loopback up.
    fn set_defaults(&self) {
        for scope in ["all", "default"] {
            self.set_sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0");
            self.set_sysctl(&format!("ipv6/conf/{scope}/accept_ra"), "0");
            self.set_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0");
        }
        self.set_sysctl("ipv4/ping_group_range", "0 2147483647");
        self.ip("link set lo up");
    }
}

/// From `linux/ipv6_route.h`: the route of an address of this machine.
const RTF_LOCAL: u32 = 0x8000_0000;

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.name()).finish()
    }
}

/// Gives the calling thread a network, a `/sys` that shows it, and an empty `/run` of its own (for control sockets and PID
/// files under their default names).
fn enter_new_namespaces() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), NONE)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), NONE)
}

fn namespaces_of_this_thread() -> PathBuf {
    PathBuf::from(format!("/proc/{}/task/{}/ns", nix::unistd::getpid(), nix::unistd::gettid()))
}

fn enter(netns: &Path) {
    let file = fs::File::open(netns).unwrap_or_else(|e| panic!("{}: {e}", netns.display()));
    setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace that it made");
}

//! Programs on the machines of the laboratory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;
use crate::wait;

/// A program to run on a machine.
#[must_use]
pub struct Command {
    host: Host,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    descriptors: Vec<FdMapping>,
    patience: Duration,
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Command {
    #[track_caller]
    pub(crate) fn new(host: Host, program: &OsStr) -> Command {
        let program = find_program(program);
        let patience = Duration::from_secs(60);
        let (arguments, environment, stdin, descriptors) = (vec![], vec![], vec![], vec![]);
        Command { host, program, arguments, environment, stdin, descriptors, patience }
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What it reads; nothing, if not said.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = input.into();
        self
    }

    /// Leaves it a descriptor as this number.
    pub fn descriptor(mut self, number: i32, descriptor: OwnedFd) -> Self {
        self.descriptors.push(FdMapping { parent_fd: descriptor, child_fd: number });
        self
    }

    /// Gives it a session of its own, whose terminal is that which it has as its standard input.
    pub fn controlling_terminal(mut self) -> Self {
        let program = std::mem::replace(&mut self.program, find_program(OsStr::new("setsid")));
        self.arguments.splice(0..0, ["--ctty".into(), program.into_os_string()]);
        self
    }

    /// How long it may take; a minute, if not said.
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs it to its end, which must be a success, and returns what it wrote.
    #[track_caller]
    pub fn run(self) -> String {
        let line = self.line();
        let output = self.output();
        assert!(output.status.success(), "{line}: {}\n{}{}", output.status, output.stdout, output.stderr);
        output.stdout
    }

    /// Runs it to its end, whichever that is.
    #[track_caller]
    pub fn output(self) -> Output {
        let (mut stdout, mut stderr) = (temporary_file(), temporary_file());
        let (line, patience) = (self.line(), self.patience);
        let host = self.host.clone();
        let streams = (stdout.try_clone(), stderr.try_clone());
        let child = self.spawn(streams.0.expect("a file can be shared"), streams.1.expect("a file can be shared"));
        let mut process = Process { name: line, child, log: None, host };
        let status = process.wait_for_exit(patience);
        Output { status, stdout: read_from_start(&mut stdout), stderr: read_from_start(&mut stderr) }
    }

    /// Starts it and leaves it running; what it writes goes to a log which is shown if the test fails.
    #[track_caller]
    pub fn start(self, name: &str) -> Process {
        let host = self.host.clone();
        let log = (0..).map(|n| host.directory().join(format!("{name}-{n}.log"))).find(|path| !path.exists());
        let log = log.expect("some number is free");
        let file = File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        host.add_log(log.clone());
        let child = self.spawn(file.try_clone().expect("a file can be shared"), file);
        Process { name: format!("{name} on {}", host.name()), child, log: Some(log), host }
    }

    #[track_caller]
    fn spawn(self, stdout: File, stderr: File) -> Child {
        let line = self.line();
        let mut stdin = temporary_file();
        stdin.write_all(&self.stdin).and_then(|()| stdin.rewind()).expect("there is room for temporary files");
        // The kernel kills the program when the thread that started it is gone, so also when the test run is killed.
        let mut command = std::process::Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program).args(&self.arguments).envs(self.environment);
        command.fd_mappings(self.descriptors).expect("each number is given once");
        command.stdin(stdin).stdout(stdout).stderr(stderr).current_dir(self.host.directory());
        self.host.call(move || command.spawn()).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    fn line(&self) -> String {
        let words: Vec<_> = self.arguments.iter().map(|argument| argument.to_string_lossy()).collect();
        format!("[{}] {} {}", self.host.name(), self.program.display(), words.join(" "))
    }
}

/// What a running program holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Resident memory, in bytes.
    pub bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// A running program. It is killed when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    log: Option<PathBuf>,
    /// Kept so that the thread it hangs on does not end before it.
    host: Host,
}

impl Process {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The machine it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        self.log.as_deref().map(|path| fs::read(path).unwrap_or_default()).map_or_else(String::new, lossy)
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, signal).unwrap_or_else(|e| panic!("{signal} to {}: {e}", self.name));
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_for_exit(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} has ended", self.name);
        wait::value_within(within, &what, || self.exit_status())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_exit(wait::PATIENCE)
    }

    /// Fails the test, with its log, if it has ended.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.exit_status() {
            panic!("{} has ended ({status}):\n{}", self.name, self.log());
        }
    }

    /// Memory of it that is in RAM, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most memory of it that was in RAM, in bytes.
    pub fn peak_resident_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// What it holds, while it runs.
    #[track_caller]
    pub fn held(&self) -> Held {
        Held { bytes: self.resident_bytes(), descriptors: self.entries("fd"), threads: self.entries("task") }
    }

    /// The same once no descriptor or thread has come or gone for a while: whoever asked the program something a moment ago
    /// is still connected to it.
    #[track_caller]
    pub fn held_at_rest(&self) -> Held {
        let (mut held, mut since) = (self.held(), wait::now());
        wait::value("it holds the same for a while", || {
            let before = std::mem::replace(&mut held, self.held());
            if (before.descriptors, before.threads) != (held.descriptors, held.threads) {
                since = wait::now();
            }
            (since.elapsed() >= REST).then_some(held)
        })
    }

    #[track_caller]
    fn entries(&self, directory: &str) -> u64 {
        let path = format!("/proc/{}/{directory}", self.pid());
        fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {path}: {e}", self.name)).count() as u64
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1024
    }

    /// Processor time of its first thread, to the nanosecond.
    pub fn running_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).unwrap_or_default();
        Duration::from_nanos(stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or_default())
    }

    /// Processor time that it has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // The name in parentheses may hold blanks; user and system time are the 12th and 13th field after it.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }
}

impl AsRef<Process> for Process {
    fn as_ref(&self) -> &Process {
        self
    }
}

/// Far longer than it takes a program to notice that somebody has gone.
const REST: Duration = Duration::from_millis(200);

/// `USER_HZ`, the same on every Linux that Rust has a standard library for.
const TICKS_PER_SECOND: u64 = 100;

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before: there is nothing to do about either call's failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    /// The exit code; a program killed by a signal gives 128 + signal, as a shell would.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }
}

/// Where a program lies. Debian keeps some outside an ordinary user's path.
#[track_caller]
pub fn find_program(program: &OsStr) -> PathBuf {
    if Path::new(program).components().count() > 1 {
        return PathBuf::from(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    let found = directories.map(|directory| directory.join(program)).find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| panic!("the program {} is missing: run `make deps`", program.display()))
}

fn temporary_file() -> File {
    tempfile::tempfile().expect("there is room for temporary files")
}

fn read_from_start(file: &mut File) -> String {
    let mut bytes = vec![];
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a temporary file can be read");
    lossy(bytes)
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

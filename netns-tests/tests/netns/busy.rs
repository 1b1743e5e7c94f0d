//! A machine that has other work to do.

use std::fs::{self, DirEntry};
use std::thread::available_parallelism;

use netns_tests::Process;
use netns_tests::probe::Ping;
use netns_tests::underpass::Daemon;
use netns_tests::wait;

use crate::ends::{BACKEND, Ends};

/// `SCHED_OTHER` of sched(7): a thread that has slept comes before one that has not.
const DEFAULT_POLICY: &str = "0";

/// The file of this name in `/proc/PID/task/TID/` of each worker of a daemon.
fn of_workers(daemon: &mut Daemon, file: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process().pid())).expect("a running program has threads");
    let read = |task: &DirEntry, file| fs::read_to_string(task.path().join(file)).ok();
    let is_worker = |task: &DirEntry| read(task, "comm").is_some_and(|name| name.starts_with("worker-"));
    let files: Vec<_> = tasks.flatten().filter(is_worker).filter_map(|task| read(&task, file)).collect();
    assert!(!files.is_empty(), "no worker found");
    files
}

/// The scheduling policy's number: the 41st field of proc(5), of which two stand up to the parenthesis.
fn policy(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split(' ').nth(38)
}

fn sleeps(status: &str) -> usize {
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|number| number.trim().parse().ok()).expect("the kernel counts how often a thread slept")
}

/// Programs that never sleep, as many as there are processors.
fn programs_that_never_sleep(ends: &Ends) -> Vec<Process> {
    let loops = available_parallelism().map_or(1, usize::from);
    (0..loops).map(|_| ends.proxy.command("sh").args(["-c", "while :; do :; done"]).start("busy")).collect()
}

#[test]
fn beside_programs_that_never_sleep_a_worker_does_not_wait_behind_them() {
    let ends = Ends::wired("busy");
    let (mut daemon, _backend) = ends.start_calling("10.1.0.2:51900");
    let _busy = programs_that_never_sleep(&ends);
    Ping::to(BACKEND[0]).count(200).send(&ends.proxy);
    let stats = of_workers(&mut daemon, "stat");
    assert!(stats.iter().all(|stat| policy(stat) == Some(DEFAULT_POLICY)), "{stats:?}");
}

#[test]
fn beside_programs_that_never_sleep_a_worker_sleeps_between_packets() {
    let ends = Ends::wired("asleep");
    let (mut daemon, _backend) = ends.start_calling("10.1.0.2:51900");
    let mut all_sleeps = || of_workers(&mut daemon, "status").iter().map(|status| sleeps(status)).sum::<usize>();
    let _busy = programs_that_never_sleep(&ends);
    wait::until("the workers sleep at least once for each ping, which comes there and back", || {
        let before = all_sleeps();
        let pings = Ping::to(BACKEND[0]).count(200).send(&ends.proxy);
        all_sleeps() - before >= pings.answered.max(1)
    });
}

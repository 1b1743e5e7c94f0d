//! A machine that has other work to do.

use std::fs;
use std::thread::available_parallelism;

use netns_tests::probe::Ping;
use netns_tests::underpass::Daemon;
use netns_tests::wait;

use crate::ends::{BACKEND, Ends};

/// `SCHED_OTHER` of sched(7): a thread that has slept comes before one that has not.
const DEFAULT_POLICY: &str = "0";

/// Scheduling policies of a daemon's workers, by their numbers.
fn policies_of_workers(daemon: &mut Daemon) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process().pid())).expect("a running program has threads");
    let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let policy = |stat: String| {
        let (name, fields) = stat.rsplit_once(") ")?;
        // The 41st field of proc(5), of which two stand before.
        name.contains("(worker-").then(|| fields.split(' ').nth(38).unwrap_or_default().to_owned())
    };
    stats.filter_map(policy).collect()
}

#[test]
fn beside_programs_that_never_sleep_a_worker_does_not_wait_behind_them() {
    let ends = Ends::wired("busy");
    let (mut daemon, _backend) = ends.start_calling("10.1.0.2:51900");
    let loops = available_parallelism().map_or(1, usize::from);
    let looping = || ends.proxy.command("sh").args(["-c", "while :; do :; done"]).start("busy");
    let _busy: Vec<_> = (0..loops).map(|_| looping()).collect();
    wait::until("the workers have the default scheduling policy", || {
        Ping::to(BACKEND[0]).count(20).send(&ends.proxy);
        let policies = policies_of_workers(&mut daemon);
        assert!(!policies.is_empty(), "no worker found");
        policies.iter().all(|policy| policy == DEFAULT_POLICY)
    });
}

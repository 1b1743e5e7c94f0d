//! Other work on the machine while something is measured. A backend's cores are busy: that is what backends are for.

use clap::ValueEnum;
use netns_tests::{Host, Process};

/// Other work on the machine while something is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    /// None.
    Idle,
    /// Two busy loops in the session of the programs that are measured.
    Nice0,
    /// Two busy loops at the lowest priority that an ordinary process can have: backups, builds, antivirus.
    Nice19,
    /// Four busy loops that the scheduler weighs as one group against the session of the programs that are measured:
    /// another service, container or login.
    Elsewhere,
}

impl Load {
    /// Its name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Load::Idle => "idle",
            Load::Nice0 => "nice0",
            Load::Nice19 => "nice19",
            Load::Elsewhere => "elsewhere",
        }
    }

    /// Starts the loops, which end when they are dropped.
    pub(crate) fn start(self, host: &Host) -> Vec<Process> {
        let (prefix, number) = match self {
            Load::Idle => return vec![],
            Load::Nice0 => (vec!["nice", "-n", "0"], 2),
            Load::Nice19 => (vec!["nice", "-n", "19"], 2),
            Load::Elsewhere => {
                assert!(
                    has_autogroups(),
                    "without kernel.sched_autogroup_enabled = 1, a session is no group of its own"
                );
                (vec!["setsid"], 4)
            }
        };
        let command = || host.command(prefix[0]).args(&prefix[1..]).args(["sh", "-c", "while :; do :; done"]);
        (0..number).map(|_| command().start("busy")).collect()
    }
}

/// Whether each session is a group of its own for the scheduler (sched(7)).
fn has_autogroups() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled").is_ok_and(|text| text.trim() == "1")
}

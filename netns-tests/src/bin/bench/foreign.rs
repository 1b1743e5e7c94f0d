//! Foreign load: processor time of other programs while something is measured. A disturbed sample is marked.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Instant;

use netns_tests::wait;

/// A sample is disturbed if others took more of one core than this, in percent.
pub(crate) const DISTURBING: f64 = 10.0;

/// A read of everybody's processor time.
pub(crate) struct ForeignLoad {
    at: Instant,
    ticks: u64,
}

impl ForeignLoad {
    pub(crate) fn start() -> ForeignLoad {
        ForeignLoad { at: wait::now(), ticks: foreign_ticks() }
    }

    /// Percent of one core that other programs took since the start, and other virtual machines of what was ours.
    pub(crate) fn percent(&self) -> f64 {
        let ticks = foreign_ticks().saturating_sub(self.ticks);
        // A tick is a hundredth of a second, on every Linux that Rust has a standard library for.
        ticks as f64 / self.at.elapsed().as_secs_f64()
    }
}

/// One program's line in `/proc`.
struct Entry {
    parent: u32,
    /// Its processor time, and that of its children who have ended and been waited for.
    ticks: u64,
}

/// All time of programs that are neither this one, nor started by it, nor the kernel's threads, which work for everybody.
fn foreign_ticks() -> u64 {
    let entries: HashMap<u32, Entry> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Entry::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let own = family(&entries, std::process::id());
    let kernels = family(&entries, KTHREADD);
    let foreign = entries.iter().filter(|(pid, _)| !own.contains(pid) && !kernels.contains(pid));
    foreign.map(|(_, entry)| entry.ticks).sum::<u64>() + stolen_ticks()
}

/// The parent of all threads of the kernel.
const KTHREADD: u32 = 2;

/// A program and all that descend from it.
fn family(entries: &HashMap<u32, Entry>, root: u32) -> HashSet<u32> {
    let descends = |pid: &u32| {
        let ancestors = std::iter::successors(Some(*pid), |pid| entries.get(pid).map(|entry| entry.parent));
        ancestors.take(entries.len()).any(|ancestor| ancestor == root)
    };
    entries.keys().filter(|pid| descends(pid)).copied().collect()
}

impl Entry {
    fn parse(stat: &str) -> Option<Entry> {
        // The name in parentheses may hold anything. Behind it: state, parent, …; the 12th to 15th are times, proc(5).
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11..15)?.iter().map(|ticks| ticks.parse::<u64>().unwrap_or_default()).sum();
        Some(Entry { parent: fields.get(1)?.parse().ok()?, ticks })
    }
}

/// Time that the hypervisor gave to others while this machine had work to do.
fn stolen_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    stat.split_whitespace().nth(8).and_then(|ticks| ticks.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_program_and_who_descends_from_it() {
        let entry = |parent| Entry { parent, ticks: 0 };
        let entries = HashMap::from([(1, entry(0)), (7, entry(1)), (8, entry(7)), (9, entry(8)), (10, entry(1))]);
        assert_eq!(family(&entries, 7), HashSet::from([7, 8, 9]));
    }

    #[test]
    fn a_name_in_parentheses_confuses_nobody() {
        let stat = "12 (a) R (b) S 7 1 1 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 100 0 0";
        let entry = Entry::parse(stat).unwrap();
        assert_eq!((entry.parent, entry.ticks), (7, 100));
    }
}

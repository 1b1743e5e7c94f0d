//! At most a handful of laboratories at a time on this machine, however many test runs there are.

use std::fs::File;
use std::path::PathBuf;
use std::thread;

use crate::wait;
use std::time::Duration;

/// The right to have a laboratory standing, for as long as it lives. The kernel takes it back from a process that dies.
#[derive(Debug)]
pub(crate) struct Slot {
    _locked: File,
}

impl Slot {
    /// Waits for a free slot: other tests may hold all of them for a while.
    pub(crate) fn acquire() -> Slot {
        wait::value_within(Duration::from_secs(900), "a slot for one more laboratory is free", || {
            (0..slots()).find_map(Slot::try_acquire)
        })
    }

    fn try_acquire(number: usize) -> Option<Slot> {
        let file = File::create(slot_path(number)).unwrap_or_else(|e| panic!("{}: {e}", slot_path(number).display()));
        file.try_lock().ok().map(|()| Slot { _locked: file })
    }
}

/// A laboratory keeps about one core busy, so more of them would only make deadlines tight.
fn slots() -> usize {
    thread::available_parallelism().map_or(2, |cores| cores.get().max(2))
}

fn slot_path(number: usize) -> PathBuf {
    std::env::temp_dir().join(format!("underpass-lab-slot-{number}"))
}

//! How the kernel's scheduler treats a worker, and where.
#![expect(unsafe_code, reason = "no crate here sets a thread's scheduling policy")]

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Asks the scheduler not to interrupt others for the calling thread when it is woken (`SCHED_BATCH`, sched(7)). On an
/// idle processor it runs as soon as ever. On a busy one, the application that sends goes on sending, and the worker
/// then finds several packets for one drain instead of one: more requests per second from the same machine (measured,
/// `docs/performance.md`). Needs no privilege; where it is refused, only speed is lost.
pub(super) fn prefer_batches() {
    // SAFETY: all zeros is a valid `sched_param`; priority 0 is the only one that this policy has.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the call only reads `parameters`, which outlives it; 0 is the calling thread.
    if let Err(errno) = Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) })
    {
        tracing::debug!(%errno, "the kernel refuses batch scheduling");
    }
}

/// Keeps the calling thread on one of the CPUs that it may use: on the first as worker 0, on the next as worker 1, and
/// from the first again where there are more workers.
pub(super) fn pin(worker: u8) {
    if let Err(errno) = try_pin(worker) {
        tracing::warn!(%errno, worker, "the kernel does not let a worker stay on one CPU");
    }
}

fn try_pin(worker: u8) -> Result<(), Errno> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread)?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect();
    let mut one = CpuSet::new();
    one.set(*cpus.get(usize::from(worker) % cpus.len().max(1)).ok_or(Errno::ENODEV)?)?;
    sched_setaffinity(this_thread, &one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_prefers_batches_has_the_batch_policy() {
        let policy = std::thread::spawn(|| {
            prefer_batches();
            // SAFETY: the call reads nothing of ours; 0 is the calling thread.
            unsafe { libc::sched_getscheduler(0) }
        });
        assert_eq!(policy.join().unwrap(), libc::SCHED_BATCH);
    }

    #[test]
    fn a_pinned_worker_stays_on_its_own_of_the_cpus_that_it_may_use() {
        let cpus = || {
            let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
            (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).collect::<Vec<_>>()
        };
        let all = cpus();
        for worker in 0..3 {
            let pinned = std::thread::spawn(move || {
                pin(worker);
                cpus()
            });
            assert_eq!(pinned.join().unwrap(), [all[usize::from(worker) % all.len()]]);
        }
    }
}

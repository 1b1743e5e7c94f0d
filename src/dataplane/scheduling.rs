//! How the kernel's scheduler treats a worker.
#![expect(unsafe_code, reason = "no crate here sets a thread's scheduling policy")]

use nix::errno::Errno;

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
}

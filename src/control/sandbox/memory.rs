//! Keys stay in memory: no core dump has them, no other process of this user reads them, and they are not swapped out.

use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Keeps every page in memory that is touched from here on, if as much as one likes may be: past a limit, memory that is
/// asked for later would be refused, and the daemon end.
pub(super) fn lock() -> Result<(), String> {
    let failed = |error| format!("memory can't be locked, keys may be swapped out ({error})");
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(failed)?;
    if soft != RLIM_INFINITY && setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err() {
        let limit = hard >> 10;
        return Err(format!(
            "memory is not locked, keys may be swapped out (LimitMEMLOCK is {limit} KiB, not infinity)"
        ));
    }
    let when_touched = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | when_touched).map_err(failed)
}

/// Neither dumps nor debuggers of the same user.
pub(super) fn refuse_to_be_read() -> Result<(), String> {
    let done = prctl::set_dumpable(false).and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, 0));
    done.map_err(|error| format!("core dumps can't be turned off ({error})"))
}

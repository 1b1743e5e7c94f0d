//! Which system calls are left: seccomp.
//!
//! What is not listed does not exist (ENOSYS): so the C library falls back from a call that is newer than this list to one
//! that is on it, where a refusal (EPERM) would be taken for an answer and a signal would end the daemon. The list is what
//! this program needs to run and to start again, which includes the dynamic loader. A call that is allowed whatever its
//! arguments are costs no run of the filter: the kernel knows it by its number (Linux 5.11).

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use super::Part;
use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Leaves this thread, and what comes of it, the listed calls.
pub(super) fn restrict(part: Part) -> Result<(), String> {
    let architecture = TargetArch::try_from(ARCH)
        .map_err(|_| format!("system calls are not restricted (the list is not for {ARCH})"))?;
    let filter = filter(part, architecture).map_err(|error| format!("system calls can't be restricted ({error})"))?;
    seccompiler::apply_filter(&filter).map_err(|error| format!("system calls can't be restricted (seccomp: {error})"))
}

fn filter(part: Part, architecture: TargetArch) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    rules.extend(CALLS.iter().chain(CALLS_OF_ARCHITECTURE).map(|call| (*call, Vec::new())));
    rules.insert(libc::SYS_socket, sockets(part)?);
    let pair = |kind: libc::c_int| {
        rule([
            argument(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64),
            argument(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE), kind as u64),
        ])
    };
    rules.insert(libc::SYS_socketpair, vec![pair(libc::SOCK_STREAM)?, pair(libc::SOCK_SEQPACKET)?]);
    let no_namespace = SeccompCmpOp::MaskedEq(NEW_NAMESPACES);
    rules.insert(libc::SYS_clone, vec![rule([argument(0, no_namespace, 0)])?]);
    let no_typing = TERMINAL_INPUT.map(|request| argument(1, SeccompCmpOp::Ne, request));
    rules.insert(libc::SYS_ioctl, vec![rule(no_typing)?]);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, missing, SeccompAction::Allow, architecture)?.try_into()
}

/// For the daemon UDP, and TCP to name servers and for health checks; for the privileged process UDP, by which a device is set
/// up. Of netlink, what each of them asks. No Unix sockets: those that a daemon needs are open before. No packet sockets.
fn sockets(part: Part) -> Result<Vec<SeccompRule>, BackendError> {
    let family = |family: libc::c_int| argument(0, SeccompCmpOp::Eq, family as u64);
    let ip = match part {
        Part::Daemon => vec![rule([family(libc::AF_INET)])?, rule([family(libc::AF_INET6)])?],
        Part::Privileged => {
            let datagrams = argument(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE), libc::SOCK_DGRAM as u64);
            vec![rule([family(libc::AF_INET), datagrams])?]
        }
    };
    let netlink = netlink_protocols(part)
        .map(|protocol| rule([family(libc::AF_NETLINK), argument(2, SeccompCmpOp::Eq, protocol as u64)]));
    ip.into_iter().map(Ok).chain(netlink).collect()
}

/// Both look at routes, which only a capability can change. The daemon hears events of devices: whether this virtual machine
/// is a copy. The privileged process changes nftables.
pub(super) fn netlink_protocols(part: Part) -> [libc::c_int; 2] {
    let other = match part {
        Part::Daemon => libc::NETLINK_KOBJECT_UEVENT,
        Part::Privileged => libc::NETLINK_NETFILTER,
    };
    [libc::NETLINK_ROUTE, other]
}

fn rule<const N: usize>(conditions: [Result<SeccompCondition, BackendError>; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

fn argument(number: u8, comparison: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, comparison, value)
}

/// `SOCK_TYPE_MASK` of `linux/net.h`: flags stand beside the type. A pair of streams or of sequenced packets is connected for good;
/// one of datagrams could send to any Unix socket that has a name.
const SOCKET_TYPE: u64 = 0xf;
/// `CLONE_NEW*`: in a user namespace of its own everybody has all capabilities.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;
/// TIOCSTI and TIOCLINUX type into the terminal that the daemon was started from.
const TERMINAL_INPUT: [u64; 2] = [0x5412, 0x541c];

/// Without `clone3`, whose flags no filter can see, and `bpf`, which only a new device wants.
const CALLS: &[i64] = &[
    // Packets
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    // Sockets and events
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_pipe2,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Files
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    // Memory
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, signals, time
    // To ask whether the clock is kept right: setting it takes CAP_SYS_TIME.
    libc::SYS_clock_adjtime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_kill,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // The program that is tried before a restart, and the one that takes this one's place
    libc::SYS_execve,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Who and where we are
    libc::SYS_capget,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Its own sandbox
    libc::SYS_capset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_setrlimit,
];

/// Older forms of the same.
#[cfg(target_arch = "x86_64")]
const CALLS_OF_ARCHITECTURE: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_OF_ARCHITECTURE: &[i64] = &[];

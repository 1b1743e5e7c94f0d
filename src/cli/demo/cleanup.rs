//! What must not outlive the demo: its daemons and its directory of keys.
//!
//! Made here, swept on every way out: the end of the story, an error, a panic (which aborts a release
//! build without unwinding), Ctrl-C and its kin. Namespaces need no sweeping: they end with their last process.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::wait::wait_for;

/// A daemon says goodbye to its peers and removes its device: milliseconds, unless it hangs.
const GOODBYE: Duration = Duration::from_secs(3);

/// Exit code after a panic, as Rust's own.
const PANICKED: i32 = 101;

static REMAINS: Mutex<Remains> = Mutex::new(Remains { children: Vec::new(), directory: None, swept: false });

/// Set when a signal ends the demo, so that errors which follow from it are not reported.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Remains {
    children: Vec<Child>,
    directory: Option<PathBuf>,
    /// Set by the first sweep: from then on nothing is made that would need another.
    swept: bool,
}

/// Sweeps when it goes out of scope.
#[derive(Debug)]
pub(super) struct Broom(());

impl Broom {
    /// Sweeps from now on, whatever happens.
    pub(super) fn ready() -> Result<Self> {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            report(info);
            sweep();
            std::process::exit(PANICKED);
        }));
        watch_signals()?;
        Ok(Self(()))
    }
}

impl Drop for Broom {
    fn drop(&mut self) {
        sweep();
    }
}

/// Starts a program and leaves it to the sweeping, with no moment between for a signal. Returns its process id.
pub(super) fn spawn(command: &mut Command) -> Result<u32> {
    let mut remains = remains();
    ensure!(!remains.swept, "the demo is ending");
    let child = command.spawn().context("starting a daemon")?;
    let id = child.id();
    remains.children.push(child);
    Ok(id)
}

/// Makes a directory that only its owner can enter, and leaves it to the sweeping.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    let mut remains = remains();
    ensure!(!remains.swept, "the demo is ending");
    DirBuilder::new().mode(0o700).create(path).with_context(|| format!("making {}", path.display()))?;
    remains.directory = Some(path.to_owned());
    Ok(())
}

/// How the child with this process id ended, or `None` while it runs.
pub(super) fn exit_status(id: u32) -> Option<ExitStatus> {
    let mut remains = remains();
    let child = remains.children.iter_mut().find(|child| child.id() == id)?;
    child.try_wait().ok().flatten()
}

/// What a sweep found.
#[derive(Debug)]
pub(super) struct Swept {
    /// How each daemon ended; `None` for one that had to be killed.
    pub(super) endings: Vec<Option<ExitStatus>>,
    /// The directory is gone.
    pub(super) removed: bool,
}

/// Ends the daemons and removes the directory. Sweeping a second time does nothing.
pub(super) fn sweep() -> Swept {
    let mut remains = remains();
    remains.swept = true;
    let mut children = std::mem::take(&mut remains.children);
    for child in &mut children {
        // Asked first, because the process id of a child that was waited for may belong to another process.
        if let Ok(None) = child.try_wait() {
            let id = Pid::from_raw(child.id().cast_signed());
            // It fails only if the process has just ended, which is what it is for.
            let _ended = kill(id, Signal::SIGTERM);
        }
    }
    let endings = children.iter_mut().map(see_off).collect();
    let removed = remains.directory.take().is_none_or(|directory| std::fs::remove_dir_all(directory).is_ok());
    Swept { endings, removed }
}

/// Ends this thread's part in the demo when a signal is already ending all of it.
pub(super) fn yield_to_interruption() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

fn see_off(child: &mut Child) -> Option<ExitStatus> {
    let ended = wait_for("a daemon to end", GOODBYE, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _killed = child.kill();
        let _reaped = child.wait();
    }
    ended.ok()
}

fn remains() -> MutexGuard<'static, Remains> {
    REMAINS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sweeps and exits on the signals by which a terminal or a supervisor ends a program. By handlers, not by a mask: a
/// mask would be handed down to the daemons.
fn watch_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let signals = runtime.block_on(async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.map(|kind| Ok((kind, signal(kind)?))).into_iter().collect::<Result<Vec<_>>>()
    });
    let [mut interrupt, mut terminate, mut hangup] =
        <[_; 3]>::try_from(signals.context("watching for Ctrl-C")?).expect("three signals were asked for");
    std::thread::spawn(move || {
        let kind = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.1.recv() => interrupt.0,
                _ = terminate.1.recv() => terminate.0,
                _ = hangup.1.recv() => hangup.0,
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
        sweep();
        // As a shell reports a program that a signal ended.
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(())
}

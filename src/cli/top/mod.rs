//! `underpass top`: what a running daemon says of its links, again and again, on a whole terminal.
//!
//! Owns the terminal and the waiting: for answers of the daemon, keys and signals. What is known is in [`model`], what is
//! looked at in [`view`], how it looks in [`draw`].

mod draw;
mod model;
mod view;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use self::model::Model;
use self::view::{Flow, View};
use super::arguments::DaemonArguments;
use super::{Exit, Failure};
use crate::control::api::StatusReport;
use crate::control::client::{self, ClientError};
use crate::dataplane::clock;

/// There is nothing to draw on.
#[derive(Debug, thiserror::Error)]
#[error(
    "top needs a terminal for its input and its output: `underpass status` prints the same once, with --json for programs"
)]
struct NoTerminal;

/// What the daemon has come to say.
type Answer = Result<StatusReport, ClientError>;

/// Shows the daemon that is meant, until the operator or a signal ends it.
pub fn run(arguments: &DaemonArguments) -> Result<(), Failure> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::new(Exit::Usage, NoTerminal));
    }
    let socket = arguments.socket()?;
    // What stands against it at the start is told as every other command tells it.
    let model = Model::new(clock::now(), client::status(&socket)?);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let shown = runtime.block_on(show(socket, model));
    // Not dropped, which would wait for an answer that is under way.
    runtime.shutdown_background();
    Ok(shown?)
}

async fn show(socket: PathBuf, mut model: Model) -> io::Result<()> {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let [mut terminate, mut interrupt, mut hangup] = [signal(kinds[0])?, signal(kinds[1])?, signal(kinds[2])?];
    let (answers, mut answered) = channel(1);
    tokio::spawn(ask(socket, answers));
    let mut screen = Screen::open()?;
    let mut view = View::default();
    let mut keys = EventStream::new();
    let mut seconds = interval(ASK_INTERVAL);
    loop {
        screen.terminal.draw(|frame| draw::draw(clock::now(), frame, &model, &mut view))?;
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if view.on_key(key) == Flow::Quit => return Ok(()),
                // Another size is found by drawing.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            },
            answer = next(&mut answered) => match answer {
                Ok(status) => model.on_report(clock::now(), status),
                Err(error) => model.on_failure(error.to_string()),
            },
            // How long there was no answer is to be seen.
            _ = seconds.tick() => {}
        }
    }
}

/// Asks once a second, also a daemon that is gone: it may come back.
async fn ask(socket: PathBuf, answers: Sender<Answer>) {
    let mut ticks = interval(ASK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is immediate, and has been asked.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let socket = socket.clone();
        let Ok(answer) = spawn_blocking(move || client::status(&socket)).await else { return };
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}

async fn next(answers: &mut Receiver<Answer>) -> Answer {
    match answers.recv().await {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

/// The terminal while it is ours. It is as before when this is dropped, and when the program panics.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> io::Result<Self> {
        // What was done before a failure is taken back.
        let terminal = ratatui::try_init().inspect_err(|_| drop(ratatui::try_restore()))?;
        Ok(Self { terminal })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = ratatui::try_restore();
    }
}

const ASK_INTERVAL: Duration = Duration::from_secs(1);

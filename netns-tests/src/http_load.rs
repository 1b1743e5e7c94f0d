//! Clients that ask a load balancer for one page after the other, of which every answer counts: for what users see of a
//! failure behind it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::host::Host;
use crate::http::Client;
use crate::wait;

/// Clients that ask until they are stopped.
pub struct HttpLoad {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Answers>>,
}

/// What became of all requests.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// How many were answered with 200.
    pub answered: usize,
    /// What was wrong with each of the others, and when that was, since the load began.
    pub errors: Vec<(Duration, String)>,
    /// The longest time that one took.
    pub slowest: Duration,
}

struct Shared {
    host: Host,
    server: SocketAddr,
    began: Instant,
    ends: AtomicBool,
    answered: AtomicUsize,
}

/// Between an answer and the next request. Without it, the machine would have time for nothing else.
const PAUSE: Duration = Duration::from_millis(10);

impl HttpLoad {
    /// So many clients on a host, each with a connection that it keeps.
    #[track_caller]
    pub fn start(host: &Host, server: SocketAddr, clients: usize) -> HttpLoad {
        let (ends, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { host: host.clone(), server, began: wait::now(), ends, answered });
        let client = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.ask_until_the_end())
        };
        HttpLoad { clients: (0..clients).map(client).collect(), shared }
    }

    /// Waits until each client could have had several answers since now.
    #[track_caller]
    pub fn wait_for_progress(&self) {
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let wanted = answered() + 4 * self.clients.len();
        wait::until("clients get answers", || answered() >= wanted);
    }

    /// Lets each client wait for its last answer.
    #[track_caller]
    pub fn stop(self) -> Answers {
        self.shared.ends.store(true, Ordering::Relaxed);
        let clients = self.clients.into_iter().map(|client| client.join().expect("a client's errors are its result"));
        clients.fold(Answers::default(), Answers::and)
    }
}

impl Shared {
    fn ask_until_the_end(&self) -> Answers {
        let (mut answers, mut connection) = (Answers::default(), None);
        while !self.ends.load(Ordering::Relaxed) {
            let asked = wait::now();
            match self.ask(&mut connection) {
                Ok(()) => {
                    answers.answered += 1;
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    connection = None;
                    answers.errors.push((self.began.elapsed(), format!("{error:#}")));
                }
            }
            answers.slowest = answers.slowest.max(asked.elapsed());
            wait::pass(PAUSE);
        }
        answers
    }

    fn ask(&self, connection: &mut Option<Client>) -> anyhow::Result<()> {
        let client = match connection {
            Some(client) => client,
            None => connection.insert(Client::connect(&self.host, self.server)?),
        };
        let response = client.get("/")?;
        ensure!(response.status == 200, "status {}", response.status);
        if response.header("connection") == Some("close") {
            *connection = None;
        }
        Ok(())
    }
}

impl Answers {
    fn and(mut self, others: Answers) -> Answers {
        self.answered += others.answered;
        self.errors.extend(others.errors);
        self.slowest = self.slowest.max(others.slowest);
        self
    }
}

//! The state of all links, asked of the data plane once for all who want to know it at the same time.
//!
//! Status, health checks and metrics are read from the same report, so that they agree. An answer is never older than its
//! question: who asks while a report is being made gets the next one. Where many ask, they wait a moment for each other, so
//! that hundreds of health checks twenty times a second cost the slow path little.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::api::StatusReport;
use crate::dataplane::clock;

/// Where to ask. Clones ask the same.
#[derive(Debug, Clone)]
pub struct Board {
    questions: UnboundedSender<Question>,
}

/// Who waits for a report.
type Question = oneshot::Sender<Option<Arc<StatusReport>>>;

impl Board {
    /// `make` makes one report, or none if the data plane does not answer. Must be called inside a tokio runtime.
    pub fn start<M, F>(make: M) -> Self
    where
        M: Fn() -> F + Send + 'static,
        F: Future<Output = Option<StatusReport>> + Send + 'static,
    {
        // Each client of a bounded number asks once at a time.
        let (questions, asked) = unbounded_channel();
        tokio::spawn(answer_all(asked, make));
        Self { questions }
    }

    /// The state of all links at a moment after this call. None if the data plane does not answer.
    pub async fn report(&self) -> Option<Arc<StatusReport>> {
        let (question, answer) = oneshot::channel();
        self.questions.send(question).ok()?;
        answer.await.ok()?
    }
}

/// Ends with the last [`Board`].
async fn answer_all<M, F>(mut asked: UnboundedReceiver<Question>, make: M)
where
    M: Fn() -> F,
    F: Future<Output = Option<StatusReport>>,
{
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, usize::MAX).await > 0 {
        let began = clock::now();
        let report = make().await.map(Arc::new);
        for question in waiting.drain(..) {
            // Who asked may have left.
            let _ = question.send(report.clone());
        }
        let took = clock::now().saturating_duration_since(began);
        tokio::time::sleep((took * PAUSES_PER_REPORT).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
    }
}

/// Reports take a tenth of the time at most, however many peers there are.
const PAUSES_PER_REPORT: u32 = 9;
/// A tenth of the shortest interval at which load balancers ask.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// What a check can wait for without being late.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::control::api::tests::status;

    /// A board whose reports are numbered, and how many it has made.
    fn numbered() -> (Board, Arc<AtomicU64>) {
        let made = Arc::new(AtomicU64::new(0));
        let counted = made.clone();
        let board = Board::start(move || {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                Some(StatusReport { unix_time: number, ..status() })
            }
        });
        (board, made)
    }

    #[tokio::test]
    async fn who_asks_at_the_same_time_gets_the_same_report() {
        let (board, made) = numbered();
        let reports = futures_util::future::join_all((0..1000).map(|_| board.report())).await;
        assert!(reports.iter().all(|report| report.as_ref().is_some_and(|report| report.unix_time == 0)));
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_answer_is_never_older_than_its_question() {
        let (board, made) = numbered();
        for _ in 0..5 {
            let before = made.load(Ordering::Relaxed);
            assert!(board.report().await.is_some_and(|report| report.unix_time >= before));
        }
    }

    #[tokio::test]
    async fn a_data_plane_that_does_not_answer_is_told() {
        let board = Board::start(|| async { None });
        assert_eq!(board.report().await, None);
    }
}

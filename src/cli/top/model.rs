//! What `underpass top` knows of a daemon: its newest report, and how fast the counters in it grow.
//!
//! No clock and no terminal of its own: each report comes with the time at which it was received.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::control::api::{LinkState, PeerReport, StatusReport};

/// Follows one daemon, also through its restarts.
#[derive(Debug)]
pub(super) struct Model {
    status: StatusReport,
    received_at: Instant,
    traffic: HashMap<String, Traffic>,
    growth: BTreeMap<String, Growth>,
    problem: Option<String>,
}

/// One link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link<'m> {
    /// What the daemon says of it.
    pub(super) peer: &'m PeerReport,
    /// None until two reports of the same daemon have told of it.
    pub(super) rate: Option<Rate>,
    /// Both directions together, in bytes per second, the newest last.
    pub(super) history: &'m VecDeque<f64>,
    /// Seconds in this state.
    pub(super) age: u64,
}

/// In bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rate {
    /// From the peer.
    pub(super) received: f64,
    /// To it.
    pub(super) sent: f64,
}

/// A reason for which something was refused just now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Refusal<'m> {
    /// As in the reports.
    pub(super) reason: &'m str,
    /// Since the daemon's start.
    pub(super) count: u64,
    /// Between the last two reports.
    pub(super) per_second: f64,
}

/// Why the newest report is old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silence<'m> {
    /// How old it is.
    pub(super) seconds: u64,
    /// What asking has come to; none while an answer is still waited for.
    pub(super) problem: Option<&'m str>,
}

#[derive(Debug, Default)]
struct Traffic {
    rate: Option<Rate>,
    history: VecDeque<f64>,
}

#[derive(Debug)]
struct Growth {
    per_second: f64,
    last: Instant,
}

impl Model {
    /// Of a daemon that has just told its state.
    pub(super) fn new(now: Instant, status: StatusReport) -> Self {
        let (traffic, growth) = (HashMap::new(), BTreeMap::new());
        Self { status, received_at: now, traffic, growth, problem: None }
    }

    /// Takes in what the daemon says.
    pub(super) fn on_report(&mut self, now: Instant, status: StatusReport) {
        let elapsed = now.saturating_duration_since(self.received_at).as_secs_f64();
        let before = std::mem::replace(&mut self.status, status);
        self.received_at = now;
        self.problem = None;
        let goes_on = is_same_daemon(&before, &self.status) && elapsed > 0.0;
        self.measure_traffic(goes_on.then_some(&before), elapsed);
        self.measure_growth(now, goes_on.then_some(&before), elapsed);
    }

    /// Takes in that the daemon could not be asked.
    pub(super) fn on_failure(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    /// The newest report.
    pub(super) fn status(&self) -> &StatusReport {
        &self.status
    }

    /// In the configuration's order.
    pub(super) fn links(&self) -> impl Iterator<Item = Link<'_>> {
        self.status.peers.iter().map(|peer| {
            let traffic = self.traffic.get(&peer.name);
            let age = (self.status.unix_time as f64 - peer.state_since).max(0.0) as u64;
            let history = traffic.map_or(const { &VecDeque::new() }, |traffic| &traffic.history);
            Link { peer, rate: traffic.and_then(|traffic| traffic.rate), history, age }
        })
    }

    /// How many links are in each state that there are any in, the best state first.
    pub(super) fn states(&self) -> Vec<(LinkState, usize)> {
        let count = |state| self.status.peers.iter().filter(|peer| peer.state == state).count();
        STATES.into_iter().map(|state| (state, count(state))).filter(|&(_, count)| count > 0).collect()
    }

    /// Of all links together.
    pub(super) fn total_rate(&self) -> Rate {
        let rates = self.links().filter_map(|link| link.rate);
        rates.fold(Rate::default(), |sum, rate| Rate {
            received: sum.received + rate.received,
            sent: sum.sent + rate.sent,
        })
    }

    /// What was refused in the last seconds, the most frequent first.
    pub(super) fn refusals(&self, now: Instant) -> Vec<Refusal<'_>> {
        let fresh = self.growth.iter().filter(|(_, growth)| now.saturating_duration_since(growth.last) < FRESH);
        let mut refusals: Vec<_> = fresh
            .map(|(reason, growth)| Refusal {
                reason,
                count: self.status.drops.get(reason).copied().unwrap_or_default(),
                per_second: growth.per_second,
            })
            .collect();
        refusals.sort_by(|a, b| b.per_second.total_cmp(&a.per_second).then(b.count.cmp(&a.count)));
        refusals
    }

    /// Set if the daemon can't be asked, or takes long to answer.
    pub(super) fn silence(&self, now: Instant) -> Option<Silence<'_>> {
        let age = now.saturating_duration_since(self.received_at);
        let problem = self.problem.as_deref();
        (problem.is_some() || age >= OVERDUE).then_some(Silence { seconds: age.as_secs(), problem })
    }

    fn measure_traffic(&mut self, before: Option<&StatusReport>, elapsed: f64) {
        let before: HashMap<&str, &PeerReport> =
            before.into_iter().flat_map(|status| &status.peers).map(|peer| (peer.name.as_str(), peer)).collect();
        let names: HashSet<&str> = self.status.peers.iter().map(|peer| peer.name.as_str()).collect();
        self.traffic.retain(|name, _| names.contains(name.as_str()));
        for peer in &self.status.peers {
            let traffic = self.traffic.entry(peer.name.clone()).or_default();
            traffic.rate = before.get(peer.name.as_str()).and_then(|before| rate(before, peer, elapsed));
            if let Some(rate) = traffic.rate {
                traffic.history.push_back(rate.received + rate.sent);
                let excess = traffic.history.len().saturating_sub(MAX_HISTORY);
                traffic.history.drain(..excess);
            }
        }
    }

    fn measure_growth(&mut self, now: Instant, before: Option<&StatusReport>, elapsed: f64) {
        self.growth.values_mut().for_each(|growth| growth.per_second = 0.0);
        let Some(before) = before else { return self.growth.clear() };
        for (reason, &count) in &self.status.drops {
            let grown = count.saturating_sub(before.drops.get(reason).copied().unwrap_or_default());
            if grown > 0 {
                self.growth.insert(reason.clone(), Growth { per_second: grown as f64 / elapsed, last: now });
            }
        }
    }
}

/// Counters begin anew with a daemon, which may have its predecessor's process.
fn is_same_daemon(before: &StatusReport, now: &StatusReport) -> bool {
    let [before, now] = [before, now].map(|status| &status.interface);
    before.pid == now.pid && before.uptime_seconds <= now.uptime_seconds
}

/// None if the counters have begun anew: another peer has the name.
fn rate(before: &PeerReport, now: &PeerReport, elapsed: f64) -> Option<Rate> {
    let per_second = |before: u64, now: u64| now.checked_sub(before).map(|bytes| bytes as f64 / elapsed);
    Some(Rate {
        received: per_second(before.received_bytes, now.received_bytes)?,
        sent: per_second(before.sent_bytes, now.sent_bytes)?,
    })
}

const STATES: [LinkState; 6] =
    [LinkState::Up, LinkState::Degraded, LinkState::Draining, LinkState::Down, LinkState::Idle, LinkState::Unknown];
/// As wide as graphs get.
const MAX_HISTORY: usize = 120;
/// How long a reason is shown after the last refusal, so that it can be read.
const FRESH: Duration = Duration::from_secs(10);
/// Three questions.
const OVERDUE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::tests::status;
    use crate::dataplane::clock;

    /// The usual report, so many seconds after the first, with so many bytes more of app1.
    fn later(seconds: u64, received: u64, sent: u64) -> StatusReport {
        let mut report = status();
        report.unix_time += seconds;
        report.interface.uptime_seconds += seconds;
        report.peers[0].received_bytes += received;
        report.peers[0].sent_bytes += sent;
        report
    }

    fn app1(model: &Model) -> Link<'_> {
        model.links().next().unwrap()
    }

    #[test]
    fn a_rate_is_what_was_added_between_two_reports() {
        let start = clock::now();
        let mut model = Model::new(start, status());
        assert_eq!((app1(&model).rate, app1(&model).age), (None, 11));
        model.on_report(start + Duration::from_millis(500), later(1, 1000, 0));
        model.on_report(start + Duration::from_millis(2500), later(3, 1000, 4000));
        assert_eq!(app1(&model).rate, Some(Rate { received: 0.0, sent: 2000.0 }));
        assert_eq!(app1(&model).history, &[2000.0, 2000.0]);
        assert_eq!(model.total_rate(), Rate { received: 0.0, sent: 2000.0 });
        assert_eq!(app1(&model).age, 14);
    }

    #[test]
    fn another_daemons_counters_are_not_compared() {
        let start = clock::now();
        for restarted in [
            // An exec in place keeps the process's number.
            |report: &mut StatusReport| report.interface.uptime_seconds = 0,
            |report: &mut StatusReport| report.interface.pid = 8,
            |report: &mut StatusReport| report.peers[0].received_bytes = 1,
        ] {
            let mut model = Model::new(start, status());
            model.on_report(start + Duration::from_secs(1), later(1, 1000, 0));
            let mut report = later(2, 9000, 0);
            restarted(&mut report);
            model.on_report(start + Duration::from_secs(2), report.clone());
            assert_eq!((app1(&model).rate, app1(&model).history.len()), (None, 1));
            report.peers[0].received_bytes += 10;
            model.on_report(start + Duration::from_secs(3), report);
            assert_eq!(app1(&model).rate.map(|rate| rate.received), Some(10.0));
        }
    }

    #[test]
    fn a_peer_that_is_removed_is_forgotten() {
        let start = clock::now();
        let mut model = Model::new(start, status());
        model.on_report(start + Duration::from_secs(1), later(1, 1000, 0));
        let mut without = later(2, 0, 0);
        without.peers.remove(0);
        model.on_report(start + Duration::from_secs(2), without);
        model.on_report(start + Duration::from_secs(3), later(3, 2000, 0));
        assert_eq!((app1(&model).rate, app1(&model).history.len()), (None, 0));
    }

    #[test]
    fn history_is_bounded() {
        let start = clock::now();
        let mut model = Model::new(start, status());
        for second in 1..500 {
            model.on_report(start + Duration::from_secs(second), later(second, second, 0));
        }
        assert_eq!(app1(&model).history.len(), MAX_HISTORY);
    }

    #[test]
    fn only_refusals_of_the_last_seconds_are_told() {
        let start = clock::now();
        let mut model = Model::new(start, status());
        assert_eq!(model.refusals(start), []);
        let mut report = later(2, 0, 0);
        report.drops.extend([("malformed".to_owned(), 7), ("replayed".to_owned(), 100)]);
        model.on_report(start + Duration::from_secs(2), report.clone());
        let refusals = model.refusals(start + Duration::from_secs(2));
        assert_eq!(
            refusals,
            [
                Refusal { reason: "replayed", count: 100, per_second: 50.0 },
                Refusal { reason: "malformed", count: 7, per_second: 2.0 }
            ]
        );
        report.unix_time += 1;
        model.on_report(start + Duration::from_secs(3), report);
        let refusals = model.refusals(start + Duration::from_secs(11));
        assert!(refusals.len() == 2 && refusals.iter().all(|refusal| refusal.per_second == 0.0));
        assert_eq!(model.refusals(start + Duration::from_secs(12)), []);
    }

    #[test]
    fn silence_is_told_until_there_is_an_answer() {
        let start = clock::now();
        let mut model = Model::new(start, status());
        assert_eq!(model.silence(start + Duration::from_secs(2)), None);
        let late = Silence { seconds: 3, problem: None };
        assert_eq!(model.silence(start + Duration::from_secs(3)), Some(late));
        model.on_failure("it is gone".into());
        assert_eq!(model.silence(start).and_then(|silence| silence.problem), Some("it is gone"));
        model.on_report(start + Duration::from_secs(4), later(4, 0, 0));
        assert_eq!(model.silence(start + Duration::from_secs(4)), None);
    }

    #[test]
    fn links_are_counted_by_state() {
        assert_eq!(Model::new(clock::now(), status()).states(), [(LinkState::Up, 1), (LinkState::Idle, 1)]);
    }
}

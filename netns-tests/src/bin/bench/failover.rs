//! How soon a load balancer knows that a backend is gone, or is back, and what its clients notice of it.
//!
//! A failure is caused again and again, and each time counts: what matters is the slowest time.

mod endpoint;
mod stage;

use std::thread;
use std::time::{Duration, Instant};

use netns_tests::http_load::{Answers, HttpLoad};
use netns_tests::random::Random;
use netns_tests::{underpass, wait};

use crate::contender::Kind;
use crate::measurement::{Figure, Measurement};
use crate::results::{Better, Outcome, Table};
use crate::{Arguments, Note, caught};
use stage::{APP, Front, Stage};

/// What these are called on the command line.
pub(crate) const TESTS: [&str; 5] = [UNPLUGGED, STOPPED, RESTARTED, ENDPOINT, LOSS];
const UNPLUGGED: &str = "failover-unplugged";
const STOPPED: &str = "failover-stopped";
const RESTARTED: &str = "failover-restarted";
const ENDPOINT: &str = "failover-endpoint";
const LOSS: &str = "failover-loss";

const CLIENTS: usize = 16;
/// How long clients go on asking once HAProxy knows.
const AFTERWARDS: Duration = Duration::from_millis(500);
const LOSSY_FOR: Duration = Duration::from_secs(60);

/// All tests, as far as they are chosen.
pub(crate) fn measure(arguments: &Arguments, chosen: &[&str], names: &[&'static str], note: Note) -> Vec<Table> {
    let table = |(name, title)| Table::new(name, title, Better::Less);
    let tables = [
        (UNPLUGGED, "A backend is cut off: time until HAProxy marks it down, ms"),
        (STOPPED, "A backend's daemon is stopped: time until HAProxy marks it down, ms"),
        (RESTARTED, "A backend's daemon is started: time until HAProxy marks it up, ms"),
        (ENDPOINT, "The preferred of two endpoints is cut off: longest silence of TCP, ms"),
        (LOSS, "Changes of state of two links in 60 s at 5 % loss each way"),
    ];
    let mut tables: Vec<_> = tables.map(table).into_iter().filter(|table| chosen.contains(&table.name)).collect();
    for table in &mut tables {
        let outcome = caught(|| match table.name {
            UNPLUGGED => unplug(table, names, arguments),
            STOPPED => stop(table, arguments.repetitions),
            RESTARTED => restart(table, arguments.repetitions),
            ENDPOINT => endpoint::cut(table, arguments.repetitions),
            _ => table.add(0, "underpass", Kind::Underpass, caught(lossy_minute)),
        });
        outcome.unwrap_or_else(|reason| note(table.name, reason));
    }
    tables
}

/// Those that underpass is compared with need seconds each time, and take part in as many repetitions as other tests have rounds.
fn unplug(table: &mut Table, names: &[&'static str], arguments: &Arguments) {
    let stage = Stage::start(names);
    let mut random = Random::new(1);
    for repetition in 0..arguments.repetitions {
        let takes_part = |front: &&Front| front.kind == Kind::Underpass || repetition < arguments.rounds;
        let fronts: Vec<&Front> = stage.fronts.iter().filter(takes_part).collect();
        let outcomes = unplug_once(&stage, &fronts, &mut random);
        for (front, outcome) in fronts.iter().zip(outcomes) {
            table.add(repetition, front.name, front.kind, outcome);
        }
    }
}

/// All these HAProxies at the same time.
fn unplug_once(stage: &Stage, fronts: &[&Front], random: &mut Random) -> Vec<Outcome> {
    fronts.iter().for_each(|front| front.wait_until_all_is_well());
    let loads: Vec<HttpLoad> = fronts.iter().map(|front| front.load(&stage.proxy)).collect();
    pass_some_time(random);
    let outage = stage.unplug();
    let at = wait::now();
    let outcomes = thread::scope(|scope| {
        let follow = |(front, load)| scope.spawn(move || caught(|| Front::follow_down(front, at, load)));
        let followers: Vec<_> = fronts.iter().copied().zip(loads).map(follow).collect();
        followers.into_iter().map(|follower| follower.join().expect("its panics are caught")).collect()
    });
    outage.heal();
    outcomes
}

fn stop(table: &mut Table, repetitions: usize) {
    let mut stage = Stage::start(&["underpass"]);
    let mut random = Random::new(2);
    for repetition in 0..repetitions {
        stage.fronts[0].wait_until_all_is_well();
        let load = stage.fronts[0].load(&stage.proxy);
        pass_some_time(&mut random);
        stage.stop_first();
        let at = wait::now();
        let outcome = caught(|| {
            let says_down = || underpass::agent_check(&stage.proxy, APP).is_some_and(|word| word.starts_with("down"));
            thread::scope(|scope| {
                let told = scope.spawn(|| wait::time_until(at, "underpass says that it is down", says_down));
                let measured = stage.fronts[0].follow_down(at, load);
                let told = told.join().expect("underpass says so");
                measured.with(Figure::Told, milliseconds(told))
            })
        });
        table.add(repetition, "underpass", Kind::Underpass, outcome);
        stage.start_first();
    }
}

fn restart(table: &mut Table, repetitions: usize) {
    let mut stage = Stage::start(&["underpass"]);
    let mut random = Random::new(3);
    for repetition in 0..repetitions {
        stage.fronts[0].wait_until_all_is_well();
        stage.stop_first();
        stage.fronts[0].wait_until_down(wait::now());
        let load = stage.fronts[0].load(&stage.proxy);
        pass_some_time(&mut random);
        let at = wait::now();
        stage.start_first();
        let outcome = caught(|| {
            let front = &stage.fronts[0];
            let time = wait::time_until(at, "HAProxy marks it up", || front.haproxy.server(APP)["status"] == "UP");
            front.judge(time, load)
        });
        table.add(repetition, "underpass", Kind::Underpass, outcome);
    }
}

/// Links are watched and carry requests, while packets are lost. What counts is what the daemons' logs say.
fn lossy_minute() -> Measurement {
    let mut stage = Stage::start(&["underpass"]);
    // A backend's side watches its link while data passes.
    let load = stage.fronts[0].load(&stage.proxy);
    pass_some_time(&mut Random::new(5));
    let before = changes_of_links(&mut stage);
    let outage = stage.lose(5);
    wait::pass(LOSSY_FOR);
    let changes = changes_of_links(&mut stage) - before;
    let answers = load.stop();
    outage.heal();
    let links = [APP, "app2"].map(|name| stage.proxy_side.status().peer(name));
    let [pings, lost] = ["pings", "pings_lost"].map(|field| links.iter().map(|link| link.number(field)).sum::<u64>());
    let measured = Measurement::new(changes as f64).with(Figure::Errors, answers.errors.len() as f64);
    measured.with(Figure::LostPercent, lost as f64 / pings as f64 * 100.0)
}

fn changes_of_links(stage: &mut Stage) -> usize {
    let daemons = [&mut stage.proxy_side].into_iter().chain(&mut stage.sides);
    let lines = |log: String| log.lines().filter(|line| is_change(line)).count();
    daemons.map(|daemon| lines(daemon.process().log())).sum()
}

fn is_change(line: &str) -> bool {
    ["link up", "link down", "link degraded", "link idle", "link draining"].iter().any(|change| line.contains(change))
}

/// So that no check is always at the same distance.
fn pass_some_time(random: &mut Random) {
    wait::pass(Duration::from_millis(500 + random.below(500) as u64));
}

impl Front {
    fn load(&self, proxy: &netns_tests::Host) -> HttpLoad {
        let load = HttpLoad::start(proxy, self.listen, CLIENTS);
        load.wait_for_progress();
        load
    }

    fn wait_until_down(&self, since: Instant) -> Duration {
        let is_down = || self.haproxy.server(APP)["status"].starts_with("DOWN");
        wait::time_until(since, "HAProxy marks it down", is_down)
    }

    /// How long after the failure HAProxy knew, and what its clients noticed until a while later.
    fn follow_down(&self, since: Instant, load: HttpLoad) -> Measurement {
        let time = self.wait_until_down(since);
        self.judge(time, load)
    }

    fn judge(&self, time: Duration, load: HttpLoad) -> Measurement {
        wait::pass(AFTERWARDS);
        let Answers { errors, slowest, .. } = load.stop();
        for (at, error) in &errors {
            eprintln!("{}: a client's error {at:?} after the load began: {error}", self.name);
        }
        let measured = Measurement::new(milliseconds(time)).with(Figure::Errors, errors.len() as f64);
        measured.with(Figure::SlowestRequest, milliseconds(slowest))
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

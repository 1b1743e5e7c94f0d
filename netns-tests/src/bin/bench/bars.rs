//! The bars: what underpass must reach in which test, and whether it did.
//!
//! The best userspace tunnel in bulk is the newest wireguard-go. Where the bench was not given one, in its place stands
//! quincy's figure of the same run, times what the two were measured to be of each other.

use serde_json::{Value, json};

use crate::hostile::HONEST as HONEST_PEER;
use crate::jumbo::BY_HAND;
use crate::load::Load;
use crate::measurement::Figure;
use crate::path_mtu::HONEST;
use crate::results::{Series, Table};
use crate::starting::{NEWEST_TLS, NEWEST_WIREGUARD, TLS};
use crate::statistics::{median, median_ratio};

/// One demand.
struct Bar {
    /// Of which test.
    test: &'static str,
    /// And on a machine with which other work.
    load: Load,
    /// Of what.
    demand: &'static str,
    /// Whose result.
    ours: &'static str,
    quantity: Quantity,
    against: Against,
    bound: Bound,
}

/// What is compared.
#[derive(Clone, Copy)]
enum Quantity {
    Value,
    Seen(Figure),
}

/// With what it is compared.
#[derive(Clone, Copy)]
enum Against {
    /// Nothing: the figure itself, the highest of all tests.
    Itself,
    Named(&'static str),
    /// The same, but no less than this: of next to nothing, nobody needs the double.
    NamedOr(&'static str, f64),
    /// Its own result of another test.
    ItselfIn(&'static str),
    /// The best of the tunnels that were measured.
    BestPeer,
    /// The same, or, without the newest wireguard-go, the stand-in: so many times quincy's.
    BestPeerOrQuincyTimes(f64),
    /// The best HAProxy that re-encrypts with resumed sessions.
    BestTls,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Against::{BestPeer, BestPeerOrQuincyTimes, BestTls, Itself, ItselfIn, Named, NamedOr};
use Bound::{AtLeast, AtMost};
use Load::{Idle, Nice0, Nice19};

/// Throughput of wireguard-go of 2025 by quincy's, measured side by side.
const THROUGHPUT: Against = BestPeerOrQuincyTimes(2.3);
/// Its processor time per byte by quincy's.
const CPU: Against = BestPeerOrQuincyTimes(7.4 / 14.4);

const ONE_PEER: Against = Named("underpass-1");

const fn bar(test: &'static str, demand: &'static str, against: Against, bound: Bound) -> Bar {
    Bar { test, load: Idle, demand, ours: "underpass", quantity: Quantity::Value, against, bound }
}

const fn under(load: Load, bar: Bar) -> Bar {
    Bar { load, ..bar }
}

const fn seen(figure: Figure, bar: Bar) -> Bar {
    Bar { quantity: Quantity::Seen(figure), ..bar }
}

const fn of(ours: &'static str, bar: Bar) -> Bar {
    Bar { ours, ..bar }
}

const BARS: &[Bar] = &[
    bar("tcp-1", "TCP, one flow, of the best tunnel", THROUGHPUT, AtLeast(3.0)),
    bar("tcp-1-reverse", "TCP, one flow, other way, of the best tunnel", THROUGHPUT, AtLeast(3.0)),
    bar("tcp-8", "TCP, 8 flows, of the best tunnel", THROUGHPUT, AtLeast(4.0)),
    under(Nice19, bar("tcp-1", "TCP, one flow, of the best tunnel", THROUGHPUT, AtLeast(3.0))),
    under(Nice19, bar("tcp-8", "TCP, 8 flows, of the best tunnel", THROUGHPUT, AtLeast(3.0))),
    under(Nice0, bar("tcp-1", "TCP, one flow, of the best tunnel", THROUGHPUT, AtLeast(3.0))),
    under(Nice0, bar("tcp-8", "TCP, 8 flows, of the best tunnel", THROUGHPUT, AtLeast(3.0))),
    // Of plain, both keep a share; ours is to be no smaller.
    under(Nice0, bar("tcp-1", "TCP, one flow, of TLS", Named("stunnel"), AtLeast(1.0))),
    under(Nice0, bar("tcp-8", "TCP, 8 flows, of TLS", Named("stunnel"), AtLeast(1.0))),
    bar("tcp-64", "TCP, 64 flows, of its 8 flows", ItselfIn("tcp-8"), AtLeast(0.9)),
    seen(
        Figure::Retransmits,
        bar("tcp-64", "TCP, 64 flows: retransmits, of plain's", NamedOr("plain", 50.0), AtMost(2.0)),
    ),
    bar("tcp-segmented", "Segmented wire, one flow, of plain", Named("plain"), AtLeast(0.6)),
    bar("tcp-merged", "Segmented wire with GRO, one flow, of plain", Named("plain"), AtLeast(0.6)),
    seen(Figure::CpuPerGigabyte, bar("tcp-1", "CPU per GB, of the best tunnel", CPU, AtMost(0.25))),
    bar("vxlan", "TCP in VXLAN, one flow, of the same without", ItselfIn("tcp-1"), AtLeast(0.6)),
    bar("udp-1200", "UDP, 1200 bytes, of the best tunnel", BestPeer, AtLeast(2.0)),
    bar("udp-64", "UDP, 64 bytes, of the best tunnel", BestPeer, AtLeast(1.8)),
    bar("udp-64-default", "UDP, 64 bytes into a default buffer, of the best tunnel", BestPeer, AtLeast(1.1)),
    bar("ping", "Ping, of the best tunnel", BestPeer, AtMost(1.0)),
    under(Nice0, seen(Figure::P99, bar("ping", "Ping: p99, of plain's", NamedOr("plain", 100.0), AtMost(3.0)))),
    bar("ping-load", "Ping under load, of the best tunnel", BestPeer, AtMost(1.0)),
    seen(Figure::Gigabits, bar("ping-load", "Ping under load: throughput, of the best tunnel", BestPeer, AtLeast(5.0))),
    bar("http-kept", "HTTP, kept, of HAProxy's TLS", BestTls, AtLeast(1.05)),
    under(Nice19, bar("http-kept", "HTTP, kept, of HAProxy's TLS", BestTls, AtLeast(1.0))),
    under(Nice0, bar("http-kept", "HTTP, kept, of HAProxy's TLS", BestTls, AtLeast(1.0))),
    bar("http-kept", "HTTP, kept, of plain", Named("plain"), AtLeast(0.85)),
    under(Nice19, bar("http-kept", "HTTP, kept, of plain", Named("plain"), AtLeast(0.8))),
    under(Nice0, bar("http-kept", "HTTP, kept, of plain", Named("plain"), AtLeast(0.75))),
    bar("http-kept", "HTTP, kept, of the best tunnel", BestPeer, AtLeast(1.35)),
    bar("http-rate", "HTTP, 5,000/s: p50, of HAProxy's TLS", BestTls, AtMost(1.0)),
    under(Nice19, bar("http-rate", "HTTP, 5,000/s: p50, of HAProxy's TLS", BestTls, AtMost(1.0))),
    under(Nice0, bar("http-rate", "HTTP, 5,000/s: p50, of HAProxy's TLS", BestTls, AtMost(1.0))),
    seen(Figure::P99, bar("http-rate", "HTTP, 5,000/s: p99, of plain", Named("plain"), AtMost(2.0))),
    under(Nice19, seen(Figure::P99, bar("http-rate", "HTTP, 5,000/s: p99, of plain", Named("plain"), AtMost(2.0)))),
    under(Nice0, seen(Figure::P99, bar("http-rate", "HTTP, 5,000/s: p99, of plain", Named("plain"), AtMost(2.0)))),
    bar("http-new", "HTTP, new connections, of HAProxy's TLS", BestTls, AtLeast(5.0)),
    bar("http-new", "HTTP, new connections, of plain", Named("plain"), AtLeast(0.82)),
    bar("http-1m", "HTTP, 1 MiB, of the best tunnel", BestPeer, AtLeast(3.5)),
    bar("http-1m", "HTTP, 1 MiB, of HAProxy's TLS", BestTls, AtLeast(1.0)),
    seen(Figure::CpuPerRequest, bar("http-kept", "CPU per request, of the best tunnel", BestPeer, AtMost(0.5))),
    of("underpass-200", bar("peers-bulk", "200 peers in turn, bulk, of 1", ONE_PEER, AtLeast(0.95))),
    of("underpass-1-of-200", bar("peers-http", "1 of 200 peers, HTTP, of 1", ONE_PEER, AtLeast(0.95))),
    bar("restart-killed", "Silence while a daemon is killed and restarted, ms", Itself, AtMost(300.0)),
    bar("restart-upgraded", "Silence while a daemon is upgraded, ms", Itself, AtMost(300.0)),
    bar("failover-unplugged", "Backend cut off: HAProxy marks it down, ms", Itself, AtMost(1000.0)),
    seen(Figure::Errors, bar("failover-unplugged", "Backend cut off: errors of clients", Itself, AtMost(0.0))),
    bar("failover-stopped", "Daemon stopped: HAProxy marks the backend down, ms", Itself, AtMost(100.0)),
    seen(Figure::Errors, bar("failover-stopped", "Daemon stopped: errors of clients", Itself, AtMost(0.0))),
    bar("failover-restarted", "Daemon started: HAProxy marks the backend up, ms", Itself, AtMost(1000.0)),
    seen(Figure::Errors, bar("failover-restarted", "Daemon started: errors of clients", Itself, AtMost(0.0))),
    bar("failover-endpoint", "Preferred endpoint cut off: TCP stands still, ms", Itself, AtMost(1000.0)),
    bar("failover-loss", "Changes of links in 60 s at 5 % loss", Itself, AtMost(0.0)),
    bar("path-mtu-bulk", "Path of 1280 without ICMP, of one with", Named(HONEST), AtLeast(0.8)),
    bar("path-mtu-bulk-reverse", "Path of 1280 without ICMP, other way, of one with", Named(HONEST), AtLeast(0.8)),
    bar("path-mtu-shrink", "Path shrinks: TCP stands still, ms", Itself, AtMost(2000.0)),
    bar("path-mtu-growth", "Path grows: found after, s", Itself, AtMost(60.0)),
    bar("tcp-jumbo", "Path of 9000 bytes, default MTU, of 8900 by hand", Named(BY_HAND), AtLeast(0.95)),
    bar("churn", "Churn: growth of the daemon, MiB", Itself, AtMost(2.0)),
    seen(Figure::GrownDescriptors, bar("churn", "Churn: growth, descriptors", Itself, AtMost(0.0))),
    seen(Figure::GrownThreads, bar("churn", "Churn: growth, threads", Itself, AtMost(0.0))),
    seen(Figure::Errors, bar("churn", "Churn: packets at the wrong peer", Itself, AtMost(0.0))),
    of("underpass-chacha", bar("tcp-1", "ChaCha20, one flow, of the best tunnel", THROUGHPUT, AtLeast(2.0))),
    seen(Figure::PeakMebibytes, bar("", "Memory of a daemon under load, MiB", Itself, AtMost(32.0))),
];

/// What is asked in every test of floods.
macro_rules! flood_bars {
    ($($test:literal: $what:literal),* $(,)?) => {
        &[$(
            bar($test, concat!($what, ", TCP of 1 Gb/s, of plain"), Named("plain"), AtLeast(0.9)),
            seen(Figure::Paired, bar($test, concat!($what, ": a new peer pairs, ms"), Itself, AtMost(3000.0))),
            seen(
                Figure::GrownMebibytes,
                bar($test, concat!($what, ": growth of the daemon, MiB"), Itself, AtMost(2.0)),
            ),
            seen(
                Figure::GrownDescriptors,
                bar($test, concat!($what, ": growth of the daemon, descriptors"), Itself, AtMost(0.0)),
            ),
        )*]
    };
}

const FLOOD_BARS: &[Bar] = flood_bars! {
    "flood-initiations": "Flood of initiations",
    "flood-mac1": "Flood, wrong mac1",
    "flood-garbage": "Flood of noise",
    "flood-replays": "Flood of replays",
    "flood-forgeries": "Flood of forgeries",
    "flood-half-open": "Half-open handshakes",
    "flood-proven": "Flood with cookies",
};

/// Bars beside each kind of hostile peer.
macro_rules! hostile_bars {
    ($($name:literal: $what:literal),* $(,)?) => {
        &[$(
            of($name, bar("hostile-tcp", concat!("TCP beside a peer with ", $what, ", of an honest one"), Named(HONEST_PEER), AtLeast(0.9))),
            of($name, bar("hostile-ping", concat!("Ping beside a peer with ", $what, ", of an honest one"), Named(HONEST_PEER), AtMost(2.0))),
            of(
                $name,
                seen(Figure::LostPercent, bar("hostile-ping", concat!("Pings lost beside a peer with ", $what, ", %"), Itself, AtMost(1.0))),
            ),
        )*]
    };
}

const HOSTILE_BARS: &[Bar] = hostile_bars! {
    "roaming": "an address for each datagram",
    "pings": "full datagrams of pings",
    "probes": "probes from everywhere",
    "tiny-frames": "tiny frames",
    "lanes": "63 lanes from everywhere",
    "controls": "full datagrams of control frames",
};

fn all_bars() -> impl Iterator<Item = &'static Bar> {
    BARS.iter().chain(FLOOD_BARS).chain(HOSTILE_BARS)
}

/// What became of a bar.
pub(crate) struct Verdict {
    demand: &'static str,
    test: &'static str,
    load: Load,
    bound: Bound,
    /// Whom it is compared with in the end.
    against: String,
    /// Nothing if something that it needs was not measured.
    measured: Option<f64>,
}

/// All of whose tests something was measured.
pub(crate) fn judge(tables: &[Table]) -> Vec<Verdict> {
    let asked = all_bars().filter(|bar| bar.test.is_empty() || tables.iter().any(|table| bar.is_of(table)));
    asked.map(|bar| bar.judge(tables)).collect()
}

impl Bar {
    fn is_of(&self, table: &Table) -> bool {
        table.name == self.test && table.load == self.load
    }

    fn judge(&self, tables: &[Table]) -> Verdict {
        let of_test = tables.iter().filter(|table| self.test.is_empty() || self.is_of(table));
        let found: Vec<_> = of_test.filter_map(|table| self.compare(table, tables)).collect();
        let (measured, against) = found.into_iter().max_by(|(a, _), (b, _)| a.total_cmp(b)).unzip();
        let Bar { demand, test, load, bound, .. } = *self;
        Verdict { demand, test, load, bound, measured, against: against.unwrap_or_default() }
    }

    /// The measured number, and whom it is compared with.
    fn compare(&self, table: &Table, tables: &[Table]) -> Option<(f64, String)> {
        let ours = table.named(self.ours)?;
        if let Itself = self.against {
            // What failed might have been higher.
            if !self.test.is_empty() && ours.failures().next().is_some() {
                return None;
            }
            let highest = self.quantity.of(ours).into_iter().flatten().fold(f64::NAN, f64::max);
            return (!highest.is_nan()).then(|| (highest, String::new()));
        }
        let Rival { series, factor, least, name } = self.rival(table, tables)?;
        let theirs: Vec<_> = self.quantity.of(series).into_iter().map(|value| Some(value?.max(least))).collect();
        Some((median_ratio(&self.quantity.of(ours), &theirs)? / factor, name))
    }

    fn rival<'a>(&self, table: &'a Table, tables: &'a [Table]) -> Option<Rival<'a>> {
        let rival = |series: &'a Series| Rival { series, factor: 1.0, least: 0.0, name: series.contender.to_owned() };
        let stand_in = match self.against {
            Itself => return None,
            Named(name) => return table.named(name).map(rival),
            NamedOr(name, least) => {
                let of_least = |series| Rival { least, name: format!("{name}, at least {least}"), ..rival(series) };
                return table.named(name).map(of_least);
            }
            ItselfIn(test) => {
                let other = tables.iter().find(|other| other.name == test && other.load == self.load)?;
                return other.named(self.ours).map(|series| Rival { name: test.to_owned(), ..rival(series) });
            }
            BestTls => {
                let sign = self.bound.sign();
                let best = [TLS, NEWEST_TLS].into_iter().filter_map(|name| table.named(name));
                return best
                    .max_by(|a, b| (sign * self.quantity.median(a)).total_cmp(&(sign * self.quantity.median(b))))
                    .map(rival);
            }
            BestPeer => 1.0,
            BestPeerOrQuincyTimes(_) if table.named(NEWEST_WIREGUARD).is_some() => 1.0,
            BestPeerOrQuincyTimes(factor) => factor,
        };
        let factor = |series: &Series| if series.contender == "quincy" { stand_in } else { 1.0 };
        let series = table.best_peer(|series| self.bound.sign() * factor(series) * self.quantity.median(series))?;
        let times = if factor(series) == 1.0 { String::new() } else { format!("{:.2} × ", factor(series)) };
        let name = format!("{times}{}", series.contender);
        Some(Rival { factor: factor(series), name, ..rival(series) })
    }
}

/// The rival that something is compared with.
struct Rival<'a> {
    series: &'a Series,
    /// By which its numbers are multiplied.
    factor: f64,
    /// A lower bound of its numbers.
    least: f64,
    /// As the table of bars calls it.
    name: String,
}

impl Quantity {
    fn of(self, series: &Series) -> Vec<Option<f64>> {
        match self {
            Quantity::Value => series.values(),
            Quantity::Seen(figure) => series.seen(figure),
        }
    }

    fn median(self, series: &Series) -> f64 {
        median(&self.of(series).into_iter().flatten().collect::<Vec<_>>())
    }
}

impl Bound {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            AtLeast(least) => value >= least,
            AtMost(most) => value <= most,
        }
    }

    /// Of two rivals, the one is harder to beat whose number times this is higher.
    fn sign(self) -> f64 {
        match self {
            AtLeast(_) => 1.0,
            AtMost(_) => -1.0,
        }
    }

    fn text(self) -> String {
        match self {
            AtLeast(least) => format!("≥ {least}"),
            AtMost(most) => format!("≤ {most}"),
        }
    }
}

impl Verdict {
    /// Bar, load, demand, measured, of whom, verdict.
    pub(crate) fn row(&self) -> [String; 6] {
        let measured = self.measured.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let outcome = self.measured.map_or("not measured", |value| verdict(self.bound.is_met_by(value)));
        let load = self.load.name().to_owned();
        [self.demand.to_owned(), load, self.bound.text(), measured, self.against.clone(), outcome.to_owned()]
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "test": self.test, "load": self.load.name(), "demand": self.demand, "bar": self.bound.text(), "against": self.against,
            "measured": self.measured, "met": self.measured.map(|value| self.bound.is_met_by(value)),
        })
    }
}

pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Kind;
    use crate::measurement::Measurement;
    use crate::results::Better;

    fn table(name: &'static str, values: &[(&'static str, Kind, f64)]) -> Table {
        let mut table = Table::new(name, "", Better::More);
        for (name, kind, value) in values {
            let measurement = Measurement::new(*value).with(Figure::PeakMebibytes, value * 10.0);
            table.series_of(name, *kind).rounds.push(Ok(measurement));
        }
        table
    }

    fn compare(bar: &Bar, values: &[(&'static str, Kind, f64)]) -> (Option<f64>, String) {
        let verdict = bar.judge(&[table("tcp-1", values)]);
        (verdict.measured, verdict.against)
    }

    const OURS: (&str, Kind, f64) = ("underpass", Kind::Underpass, 8.0);

    #[test]
    fn the_rival_is_the_best_peer_and_neither_plain_nor_tls() {
        let bar = bar("tcp-1", "", BestPeer, AtLeast(1.0));
        let others = [("plain", Kind::Plain, 100.0), ("stunnel", Kind::Tls, 50.0), ("slow", Kind::Peer, 1.0)];
        let (measured, against) = compare(&bar, &[&others[..], &[("fast", Kind::Peer, 2.0), OURS]].concat());
        assert_eq!((measured, against.as_str()), (Some(4.0), "fast"));
    }

    #[test]
    fn where_less_is_better_the_best_peer_has_the_least() {
        let bar = bar("tcp-1", "", BestPeer, AtMost(1.0));
        let (measured, against) = compare(&bar, &[OURS, ("slow", Kind::Peer, 32.0), ("fast", Kind::Peer, 16.0)]);
        assert_eq!((measured, against.as_str()), (Some(0.5), "fast"));
    }

    #[test]
    fn the_stand_in_counts_where_it_beats_the_measured_peers() {
        let bar = bar("tcp-1", "", BestPeerOrQuincyTimes(2.0), AtLeast(1.0));
        let quincy = ("quincy", Kind::Peer, 2.0);
        assert_eq!(compare(&bar, &[OURS, quincy, ("fast", Kind::Peer, 3.0)]), (Some(2.0), "2.00 × quincy".to_owned()));
        assert_eq!(compare(&bar, &[OURS, quincy, ("fast", Kind::Peer, 8.0)]), (Some(1.0), "fast".to_owned()));
    }

    #[test]
    fn without_the_newest_wireguard_there_is_a_stand_in_and_with_it_there_is_none() {
        let bar = bar("tcp-1", "", BestPeerOrQuincyTimes(2.0), AtLeast(1.0));
        let (quincy, newest) = (("quincy", Kind::Peer, 4.0), (NEWEST_WIREGUARD, Kind::Peer, 2.0));
        assert_eq!(compare(&bar, &[OURS, quincy]), (Some(1.0), "2.00 × quincy".to_owned()));
        assert_eq!(compare(&bar, &[OURS, quincy, newest]), (Some(2.0), "quincy".to_owned()));
    }

    #[test]
    fn of_two_load_balancers_the_better_one_counts() {
        let (old, new) = ((TLS, Kind::Tls, 2.0), (NEWEST_TLS, Kind::Tls, 4.0));
        let more = bar("tcp-1", "", BestTls, AtLeast(1.0));
        assert_eq!(compare(&more, &[OURS, old, new]), (Some(2.0), NEWEST_TLS.to_owned()));
        let less = bar("tcp-1", "", BestTls, AtMost(1.0));
        assert_eq!(compare(&less, &[OURS, old, new]), (Some(4.0), TLS.to_owned()));
    }

    #[test]
    fn of_less_than_the_least_nobody_needs_a_multiple() {
        let bar = bar("tcp-1", "", NamedOr("plain", 16.0), AtMost(2.0));
        assert_eq!(compare(&bar, &[OURS, ("plain", Kind::Plain, 0.0)]).0, Some(0.5));
        assert_eq!(compare(&bar, &[OURS, ("plain", Kind::Plain, 32.0)]).0, Some(0.25));
    }

    #[test]
    fn a_bar_looks_at_the_table_of_its_load_only() {
        let bar = under(Nice0, bar("tcp-1", "", Named("plain"), AtLeast(1.0)));
        let values = [OURS, ("plain", Kind::Plain, 4.0)];
        assert_eq!(bar.judge(&[table("tcp-1", &values)]).measured, None);
        assert_eq!(bar.judge(&[table("tcp-1", &values).under(Nice0)]).measured, Some(2.0));
    }

    #[test]
    fn a_bar_without_its_rival_is_not_measured_rather_than_met() {
        let bar = bar("tcp-1", "", Named("plain"), AtLeast(0.0));
        let verdict = bar.judge(&[table("tcp-1", &[OURS])]);
        assert_eq!(verdict.row()[5], "not measured");
    }

    #[test]
    fn memory_is_the_highest_of_all_tests() {
        let bar = seen(Figure::PeakMebibytes, bar("", "", Itself, AtMost(32.0)));
        let large = ("underpass", Kind::Underpass, 9.0);
        let verdict = bar.judge(&[table("tcp-1", &[OURS]), table("udp-64", &[large])]);
        assert_eq!((verdict.measured, verdict.row()[5].as_str()), (Some(90.0), "MISSED"));
    }

    #[test]
    fn the_highest_of_all_rounds_is_not_known_if_one_has_failed() {
        let bar = bar("tcp-1", "", Itself, AtMost(9.0));
        let mut tables = [table("tcp-1", &[OURS])];
        assert_eq!(bar.judge(&tables).measured, Some(8.0));
        tables[0].series[0].rounds.push(Err("broken".to_owned()));
        assert_eq!(bar.judge(&tables).row()[5], "not measured");
    }

    #[test]
    fn a_bar_is_met_at_its_bound() {
        assert!(AtLeast(3.5).is_met_by(3.5) && !AtLeast(3.5).is_met_by(3.49));
        assert!(AtMost(0.5).is_met_by(0.5) && !AtMost(0.5).is_met_by(0.51));
    }

    #[test]
    fn every_bar_names_a_test_that_exists() {
        let names = crate::all_tests();
        assert!(all_bars().all(|bar| bar.test.is_empty() || names.contains(&bar.test)));
    }
}

//! The bars: what underpass must reach in which test, and whether it did.
//!
//! The best userspace tunnel in bulk is a wireguard-go that no package registry has. In its place stands quincy's figure of
//! the same run, times what the two were measured to be of each other.

use serde_json::{Value, json};

use crate::hostile::HONEST as HONEST_PEER;
use crate::measurement::Figure;
use crate::path_mtu::HONEST;
use crate::results::{Series, Table};
use crate::statistics::{median, median_ratio};

/// One demand.
struct Bar {
    /// Of which test.
    test: &'static str,
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
    /// The best of the tunnels that were measured.
    BestPeer,
    /// The same, or the stand-in: so many times quincy's.
    BestPeerOrQuincyTimes(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Against::{BestPeer, BestPeerOrQuincyTimes, Itself, Named};
use Bound::{AtLeast, AtMost};

/// Throughput of wireguard-go of 2025 by quincy's, measured side by side.
const THROUGHPUT: Against = BestPeerOrQuincyTimes(1.9);
/// Its processor time per byte by quincy's.
const CPU: Against = BestPeerOrQuincyTimes(7.4 / 14.4);

const ONE_PEER: Against = Named("underpass-1");

const fn bar(test: &'static str, demand: &'static str, against: Against, bound: Bound) -> Bar {
    Bar { test, demand, ours: "underpass", quantity: Quantity::Value, against, bound }
}

const fn seen(figure: Figure, bar: Bar) -> Bar {
    Bar { quantity: Quantity::Seen(figure), ..bar }
}

const fn of(ours: &'static str, bar: Bar) -> Bar {
    Bar { ours, ..bar }
}

const BARS: &[Bar] = &[
    bar("tcp-1", "TCP, one flow, of the best tunnel", THROUGHPUT, AtLeast(3.5)),
    bar("tcp-1-reverse", "TCP, one flow, other way, of the best tunnel", THROUGHPUT, AtLeast(3.5)),
    bar("tcp-8", "TCP, 8 flows, of the best tunnel", THROUGHPUT, AtLeast(4.5)),
    bar("tcp-8", "TCP, 8 flows, of plain", Named("plain"), AtLeast(0.3)),
    bar("tcp-segmented", "Segmented wire, one flow, of plain", Named("plain"), AtLeast(0.6)),
    bar("tcp-merged", "Segmented wire with GRO, one flow, of plain", Named("plain"), AtLeast(0.6)),
    seen(Figure::CpuPerGigabyte, bar("tcp-1", "CPU per GB, of the best tunnel", CPU, AtMost(0.25))),
    bar("udp-1200", "UDP, 1200 bytes, of the best tunnel", BestPeer, AtLeast(2.0)),
    bar("udp-64", "UDP, 64 bytes, of the best tunnel", BestPeer, AtLeast(1.8)),
    bar("ping", "Ping, of the best tunnel", BestPeer, AtMost(1.0)),
    bar("ping-load", "Ping under load, of the best tunnel", BestPeer, AtMost(1.0)),
    bar("http-kept", "HTTP, kept, of HAProxy's TLS", Named("haproxy-tls"), AtLeast(1.1)),
    bar("http-kept", "HTTP, kept, of the best tunnel", BestPeer, AtLeast(1.35)),
    bar("http-kept", "HTTP, kept, of plain", Named("plain"), AtLeast(0.85)),
    bar("http-new", "HTTP, new connections, of HAProxy's TLS", Named("haproxy-tls"), AtLeast(7.0)),
    bar("http-new", "HTTP, new connections, of plain", Named("plain"), AtLeast(0.85)),
    bar("http-1m", "HTTP, 1 MiB, of the best tunnel", BestPeer, AtLeast(3.5)),
    bar("http-1m", "HTTP, 1 MiB, of HAProxy's TLS", Named("haproxy-tls"), AtLeast(0.8)),
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
    bound: Bound,
    /// Whom it is compared with in the end.
    against: String,
    /// Nothing if something that it needs was not measured.
    measured: Option<f64>,
}

/// All of whose tests something was measured.
pub(crate) fn judge(tables: &[Table]) -> Vec<Verdict> {
    let asked = all_bars().filter(|bar| bar.test.is_empty() || tables.iter().any(|table| table.name == bar.test));
    asked.map(|bar| bar.judge(tables)).collect()
}

impl Bar {
    fn judge(&self, tables: &[Table]) -> Verdict {
        let of_test = tables.iter().filter(|table| self.test.is_empty() || table.name == self.test);
        let found: Vec<_> = of_test.filter_map(|table| self.compare(table)).collect();
        let (measured, against) = found.into_iter().max_by(|(a, _), (b, _)| a.total_cmp(b)).unzip();
        let Bar { demand, test, bound, .. } = *self;
        Verdict { demand, test, bound, measured, against: against.unwrap_or_default() }
    }

    /// The measured number, and whom it is compared with.
    fn compare(&self, table: &Table) -> Option<(f64, String)> {
        let ours = table.named(self.ours)?;
        if let Itself = self.against {
            // What failed might have been higher.
            if !self.test.is_empty() && ours.failures().next().is_some() {
                return None;
            }
            let highest = self.quantity.of(ours).into_iter().flatten().fold(f64::NAN, f64::max);
            return (!highest.is_nan()).then(|| (highest, String::new()));
        }
        let (theirs, factor) = self.rival(table)?;
        let ratio = median_ratio(&self.quantity.of(ours), &self.quantity.of(theirs))? / factor;
        let times = if factor == 1.0 { String::new() } else { format!("{factor:.2} × ") };
        Some((ratio, format!("{times}{}", theirs.contender)))
    }

    /// Whom it is compared with, and by what that one's numbers are multiplied.
    fn rival<'a>(&self, table: &'a Table) -> Option<(&'a Series, f64)> {
        let stand_in = match self.against {
            Itself => return None,
            Named(name) => return Some((table.named(name)?, 1.0)),
            BestPeer => 1.0,
            BestPeerOrQuincyTimes(factor) => factor,
        };
        let factor = |series: &Series| if series.contender == "quincy" { stand_in } else { 1.0 };
        let sign = if matches!(self.bound, AtLeast(_)) { 1.0 } else { -1.0 };
        let best = table.best_peer(|series| sign * factor(series) * self.quantity.median(series))?;
        Some((best, factor(best)))
    }
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

    fn text(self) -> String {
        match self {
            AtLeast(least) => format!("≥ {least}"),
            AtMost(most) => format!("≤ {most}"),
        }
    }
}

impl Verdict {
    /// Bar, demand, measured, of whom, verdict.
    pub(crate) fn row(&self) -> [String; 5] {
        let measured = self.measured.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let outcome = self.measured.map_or("not measured", |value| verdict(self.bound.is_met_by(value)));
        [self.demand.to_owned(), self.bound.text(), measured, self.against.clone(), outcome.to_owned()]
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "test": self.test, "demand": self.demand, "bar": self.bound.text(), "against": self.against,
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
    fn a_bar_without_its_rival_is_not_measured_rather_than_met() {
        let bar = bar("tcp-1", "", Named("plain"), AtLeast(0.0));
        let verdict = bar.judge(&[table("tcp-1", &[OURS])]);
        assert_eq!(verdict.row()[4], "not measured");
    }

    #[test]
    fn memory_is_the_highest_of_all_tests() {
        let bar = seen(Figure::PeakMebibytes, bar("", "", Itself, AtMost(32.0)));
        let large = ("underpass", Kind::Underpass, 9.0);
        let verdict = bar.judge(&[table("tcp-1", &[OURS]), table("udp-64", &[large])]);
        assert_eq!((verdict.measured, verdict.row()[4].as_str()), (Some(90.0), "MISSED"));
    }

    #[test]
    fn the_highest_of_all_rounds_is_not_known_if_one_has_failed() {
        let bar = bar("tcp-1", "", Itself, AtMost(9.0));
        let mut tables = [table("tcp-1", &[OURS])];
        assert_eq!(bar.judge(&tables).measured, Some(8.0));
        tables[0].series[0].rounds.push(Err("broken".to_owned()));
        assert_eq!(bar.judge(&tables).row()[4], "not measured");
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

//! Prometheus' metrics. Their names and labels are stable: `docs/operations.md` lists them.
//!
//! Owns names, units and help texts. The numbers are those of the status report, read at the moment of the scrape; only the
//! histogram of round trips is kept here, since a report has no history.

use std::collections::BTreeSet;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::api::{GuardState, LinkState, PeerReport, StatusReport};
use super::report::{Identity, PeerNames};
use crate::proto::event::Event;

/// Of what [`encode`] makes.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// All metrics as text.
pub fn encode(report: Arc<StatusReport>, round_trips: &RoundTrips) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { report }));
    registry.register("underpass_link_rtt_seconds", "Round trips of pings", round_trips.family.clone());
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("a string takes all that is written");
    text
}

/// How long pings took, by link. Clones count together.
#[derive(Debug, Clone)]
pub struct RoundTrips {
    identity: watch::Receiver<Arc<Identity>>,
    names: PeerNames,
    family: Family<PeerLabel, Histogram, fn() -> Histogram>,
}

type PeerLabel = [(&'static str, String); 1];

impl RoundTrips {
    /// None yet. Peers are called as in the newest `identity`.
    pub fn new(mut identity: watch::Receiver<Arc<Identity>>) -> Self {
        let names = identity.borrow_and_update().peers.clone();
        // 0.1 ms, within a rack, to 3.3 s, beyond what counts as lost.
        let histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        Self { identity, names, family: Family::new_with_constructor(histogram) }
    }

    /// Counts an event, if it is a ping's answer.
    pub fn count(&mut self, event: &Event) {
        self.forget_removed();
        if let Event::RoundTrip { peer, round_trip } = event {
            let labels = [(PEER, self.names.of(peer))];
            self.family.get_or_create(&labels).observe(round_trip.as_secs_f64());
        }
    }

    /// Nobody is called so any more.
    fn forget_removed(&mut self) {
        if !self.identity.has_changed().unwrap_or(false) {
            return;
        }
        let names = self.identity.borrow_and_update().peers.clone();
        let before = mem::replace(&mut self.names, names);
        let now: BTreeSet<&str> = self.names.iter().collect();
        for name in before.iter().filter(|name| !now.contains(name)) {
            self.family.remove(&[(PEER, name.to_owned())]);
        }
    }
}

/// One moment, as metrics.
#[derive(Debug)]
struct Scrape {
    report: Arc<StatusReport>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.encode_identity(encoder)?;
        self.encode_states(encoder)?;
        self.encode_routes(encoder)?;
        self.encode_guard(encoder)?;
        self.encode_quality(encoder)?;
        self.encode_traffic(encoder)?;
        encode_process(encoder)
    }
}

impl Scrape {
    fn encode_identity(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let interface = &self.report.interface;
        let labels = [("version", interface.version.as_str())];
        info(encoder, "underpass_build", "The daemon's version.", &labels)?;
        let labels = [("interface", interface.name.as_str()), ("role", interface.role.as_str())];
        info(encoder, "underpass_interface", "The TUN device and the side of the links.", &labels)?;
        let help = "Longest packet that the interface takes.";
        optional_gauge(encoder, "underpass_interface_mtu_bytes", help, Some(u64::from(interface.mtu)))?;
        let help = "Threads that carry traffic.";
        let workers = interface.workers.as_ref();
        optional_gauge(encoder, "underpass_workers", help, workers.map(|workers| workers.number as u64))?;
        let help = "Lanes that workers serve: as many as workers there can be without a restart.";
        optional_gauge(encoder, "underpass_lanes", help, workers.map(|workers| workers.lanes as u64))?;
        let help = "When the file of the private key in use was written.";
        optional_gauge(
            encoder,
            "underpass_private_key_written_timestamp_seconds",
            help,
            interface.private_key_written,
        )?;
        let help = "Whether something keeps the machine's clock right, where the system says so.";
        let is_kept = interface.clock_synchronized.map(u64::from);
        optional_gauge(encoder, "underpass_clock_synchronized", help, is_kept)
    }

    fn encode_states(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let up = |peer: &PeerReport| Some(i64::from(carries_traffic(peer.state)));
        self.gauge(encoder, "underpass_link_up", "Whether the link carries traffic.", up)?;
        let help = "What the link is doing: 1 for the state it is in, 0 for every other.";
        let mut family = encoder.encode_descriptor("underpass_link_state", help, None, MetricType::Gauge)?;
        for peer in &self.report.peers {
            for state in STATES {
                let labels = [(PEER, peer.name.as_str()), ("state", state.as_str())];
                family.encode_family(&labels)?.encode_gauge(&i64::from(peer.state == state))?;
            }
        }
        let help = "Why the link is in its state: 1 for the reason, none of a link that is up.";
        let mut family = encoder.encode_descriptor("underpass_link_reason", help, None, MetricType::Gauge)?;
        for peer in &self.report.peers {
            let Some(reason) = &peer.reason else { continue };
            let labels = [(PEER, peer.name.as_str()), ("reason", reason.as_str())];
            family.encode_family(&labels)?.encode_gauge(&1_i64)?;
        }
        let help = "When the link came to be in its state.";
        self.gauge(encoder, "underpass_link_state_since_timestamp_seconds", help, |peer| Some(peer.state_since))
    }

    fn encode_routes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether packets for the peer, or for parts of its prefixes, do not go into the tunnel.";
        let diverted = |peer: &PeerReport| Some(i64::from(peer.route.is_some()));
        self.gauge(encoder, "underpass_link_route_diverted", help, diverted)?;
        let routes = &self.report.routes;
        let help = "Addresses, routes and settings of the daemon's own that were taken away and put back.";
        let mut repairs = encoder.encode_descriptor("underpass_route_repairs", help, None, MetricType::Counter)?;
        repairs.encode_counter::<NoLabelSet, _, f64>(&routes.repairs, None)?;
        let help = "Whether something of the daemon's own is missing and could not be put back.";
        let mut missing = encoder.encode_descriptor("underpass_routes_missing", help, None, MetricType::Gauge)?;
        missing.encode_gauge(&i64::from(routes.missing.is_some()))?;
        let help = "Networks that are refused though they are no longer configured.";
        let mut refused = encoder.encode_descriptor("underpass_refused_networks", help, None, MetricType::Gauge)?;
        refused.encode_gauge(&(i64::try_from(routes.refused.len()).unwrap_or(i64::MAX)))
    }

    fn encode_guard(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let guard = &self.report.guard;
        let help =
            "Whether the daemon has set the table that refuses tunnel addresses on other interfaces, if it is wanted.";
        optional_gauge(encoder, "underpass_guard_set", help, is_set(guard.state).map(u64::from))?;
        let help = "Times that this table was flushed or changed by somebody and put back.";
        let mut restored = encoder.encode_descriptor("underpass_guard_restored", help, None, MetricType::Counter)?;
        restored.encode_counter::<NoLabelSet, _, f64>(&guard.restored, None)
    }

    fn encode_quality(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let seconds = |microseconds: Option<u64>| microseconds.map(|time| Duration::from_micros(time).as_secs_f64());
        let help = "Smoothed round trip of pings, once one was answered.";
        self.gauge(encoder, "underpass_link_smoothed_rtt_seconds", help, |peer| seconds(peer.rtt_microseconds))?;
        let help = "How much the round trip of pings varies.";
        self.gauge(encoder, "underpass_link_rtt_variation_seconds", help, |peer| {
            seconds(peer.rtt_variation_microseconds)
        })?;
        let help = "Share of recent pings that were lost, 0 to 1.";
        self.gauge(encoder, "underpass_link_loss_ratio", help, |peer| Some(peer.loss))?;
        let help = "Longest packet that the path carries in one datagram, as far as is known.";
        self.gauge(encoder, "underpass_link_path_mtu_bytes", help, |peer| peer.path_mtu.map(f64::from))?;
        self.counter(encoder, "underpass_link_pings", "Pings sent to watch the link.", |peer| peer.pings)?;
        self.counter(encoder, "underpass_link_pings_lost", "Pings that were lost.", |peer| peer.pings_lost)
    }

    fn encode_traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "UDP payload received from the peer and authenticated.";
        self.counter(encoder, "underpass_link_received_bytes", help, |peer| peer.received_bytes)?;
        self.counter(encoder, "underpass_link_sent_bytes", "UDP payload sent to the peer.", |peer| peer.sent_bytes)?;
        self.counter(encoder, "underpass_link_handshakes", "Sessions that were agreed.", |peer| peer.handshakes)?;
        let help = "When the newest session was agreed, once one was.";
        self.gauge(encoder, "underpass_link_last_handshake_timestamp_seconds", help, |peer| peer.latest_handshake)?;
        let help = "Packets and datagrams that were refused, by reason.";
        let mut family = encoder.encode_descriptor("underpass_drops", help, None, MetricType::Counter)?;
        for (reason, count) in &self.report.drops {
            let labels = [("reason", reason.as_str())];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(count, None)?;
        }
        Ok(())
    }

    /// A number of each link that has one.
    fn gauge<N: EncodeGaugeValue>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&PeerReport) -> Option<N>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for peer in &self.report.peers {
            if let Some(value) = value(peer) {
                family.encode_family(&[(PEER, peer.name.as_str())])?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// A count of each link.
    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&PeerReport) -> u64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for peer in &self.report.peers {
            let labels = [(PEER, peer.name.as_str())];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value(peer), None)?;
        }
        Ok(())
    }
}

fn carries_traffic(state: LinkState) -> bool {
    match state {
        LinkState::Up | LinkState::Degraded | LinkState::Draining => true,
        LinkState::Down | LinkState::Idle | LinkState::Unknown => false,
    }
}

/// `None` where no table is wanted.
fn is_set(guard: GuardState) -> Option<bool> {
    match guard {
        GuardState::On => Some(true),
        GuardState::Unavailable => Some(false),
        GuardState::Off | GuardState::Unknown => None,
    }
}

fn info(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, labels: &impl EncodeLabelSet) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
}

/// A number of the daemon's, if it has one.
fn optional_gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: Option<u64>) -> fmt::Result {
    let Some(value) = value else { return Ok(()) };
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// What Prometheus' own clients tell of a process, under their names. What `/proc` does not give is left out.
fn encode_process(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Ok(process) = procfs::process::Process::myself() else { return Ok(()) };
    let mut gauge =
        |name, help, value: u64| encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value);
    if let Ok(open) = process.fd_count() {
        gauge("process_open_fds", "Open file descriptors.", open as u64)?;
    }
    let Ok(stat) = process.stat() else { return Ok(()) };
    gauge("process_resident_memory_bytes", "Memory in RAM.", stat.rss * procfs::page_size())?;
    gauge("process_virtual_memory_bytes", "Address space.", stat.vsize)?;
    gauge("process_threads", "Threads.", u64::try_from(stat.num_threads).unwrap_or_default())?;
    let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
    if let Ok(boot) = procfs::boot_time_secs() {
        let help = "When the process started.";
        let mut start = encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
        start.encode_gauge(&(boot as f64 + seconds(stat.starttime)))?;
    }
    let help = "Processor time used.";
    let mut cpu = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
    cpu.encode_counter::<NoLabelSet, _, f64>(&seconds(stat.utime + stat.stime), None)
}

const PEER: &str = "peer";
const STATES: [LinkState; 5] =
    [LinkState::Up, LinkState::Degraded, LinkState::Draining, LinkState::Down, LinkState::Idle];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::GuardReport;
    use crate::control::api::tests::status;
    use crate::control::report::tests::{identity, names};
    use crate::keys::{PrivateKey, PublicKey};

    fn key() -> PublicKey {
        PrivateKey::from_bytes([1; 32]).unwrap().public_key()
    }

    fn text() -> String {
        let (_identity, newest) = watch::channel(Arc::new(identity(PeerNames::default())));
        let mut round_trips = RoundTrips::new(newest);
        round_trips.count(&Event::RoundTrip { peer: key(), round_trip: Duration::from_micros(412) });
        encode(Arc::new(status()), &round_trips)
    }

    fn text_with_guard(state: GuardState, restored: u64) -> String {
        let (_identity, newest) = watch::channel(Arc::new(identity(PeerNames::default())));
        let guard = GuardReport { state, restored, ..GuardReport::default() };
        encode(Arc::new(StatusReport { guard, ..status() }), &RoundTrips::new(newest))
    }

    fn has(line: &str) {
        assert!(text().lines().any(|candidate| candidate == line), "no line {line}\n{}", text());
    }

    #[test]
    fn a_link_has_the_state_that_it_is_in_and_no_other() {
        has(r#"underpass_link_state{peer="app1",state="up"} 1"#);
        has(r#"underpass_link_state{peer="app1",state="down"} 0"#);
        has(r#"underpass_link_state{peer="app2",state="idle"} 1"#);
        has(r#"underpass_link_reason{peer="app2",reason="no-traffic"} 1"#);
        has(r#"underpass_link_up{peer="app1"} 1"#);
        has(r#"underpass_link_up{peer="app2"} 0"#);
        has(r#"underpass_link_route_diverted{peer="app1"} 0"#);
        has("underpass_route_repairs_total 0");
    }

    #[test]
    fn numbers_are_in_base_units_and_absent_where_there_is_none() {
        has(r#"underpass_link_smoothed_rtt_seconds{peer="app1"} 0.000412"#);
        assert!(!text().contains(r#"smoothed_rtt_seconds{peer="app2"}"#));
        has(r#"underpass_link_sent_bytes_total{peer="app1"} 3145728"#);
        has(r#"underpass_link_last_handshake_timestamp_seconds{peer="app1"} 1800000000"#);
        has(r#"underpass_drops_total{reason="malformed"} 3"#);
        has(r#"underpass_build_info{version="0.1.0"} 1"#);
        has("underpass_private_key_written_timestamp_seconds 1700000000");
        has("underpass_clock_synchronized 0");
        has("underpass_workers 2");
        has("underpass_lanes 4");
    }

    #[test]
    fn a_guard_that_is_not_wanted_is_neither_set_nor_missing() {
        let line = |state| {
            let text = text_with_guard(state, 0);
            text.lines().find(|line| line.starts_with("underpass_guard_set ")).map(str::to_owned)
        };
        assert_eq!(line(GuardState::On).as_deref(), Some("underpass_guard_set 1"));
        assert_eq!(line(GuardState::Unavailable).as_deref(), Some("underpass_guard_set 0"));
        assert_eq!([GuardState::Off, GuardState::Unknown].map(line), [None, None]);
        assert!(text_with_guard(GuardState::On, 3).contains("\nunderpass_guard_restored_total 3\n"));
    }

    #[test]
    fn round_trips_are_counted_in_buckets() {
        // A peer without a name has the start of its key.
        let peer = key().short();
        has(&format!("underpass_link_rtt_seconds_bucket{{peer=\"{peer}\",le=\"0.0004\"}} 0"));
        has(&format!("underpass_link_rtt_seconds_bucket{{peer=\"{peer}\",le=\"0.0008\"}} 1"));
        has(&format!("underpass_link_rtt_seconds_sum{{peer=\"{peer}\"}} 0.000412"));
    }

    #[test]
    fn a_peer_that_is_gone_has_no_round_trips() {
        let (identity_of, newest) = watch::channel(Arc::new(identity(names(&[("app1", key())]))));
        let mut round_trips = RoundTrips::new(newest);
        let event = Event::RoundTrip { peer: key(), round_trip: Duration::from_micros(412) };
        round_trips.count(&event);
        let text = |round_trips: &RoundTrips| encode(Arc::new(status()), round_trips);
        assert!(text(&round_trips).contains(r#"underpass_link_rtt_seconds_count{peer="app1"} 1"#));
        identity_of.send_replace(Arc::new(identity(names(&[("other", key())]))));
        round_trips.count(&event);
        assert!(!text(&round_trips).contains(r#"underpass_link_rtt_seconds_count{peer="app1"}"#));
        assert!(text(&round_trips).contains(r#"underpass_link_rtt_seconds_count{peer="other"} 1"#));
    }
}

//! Floods by an attacker with a core of his own. What they cost is measured by `make bench`; this is about what must never
//! happen.

use std::net::SocketAddr;
use std::time::Duration;

use netns_tests::churn::churn;
use netns_tests::pump::Pump;
use netns_tests::siege::{Attack, INSIDE, Siege};
use netns_tests::underpass::PORT;
use netns_tests::{Process, wait};

/// Far more than a busy machine of two cores, of which the attacker has one, needs.
const PATIENCE: Duration = Duration::from_secs(15);

/// The site of [`Siege`]: a connection goes on in both directions, the session is the same after as before, a peer that was
/// not there before pairs, and nothing is left of the attack but counts.
fn an_attack_changes_nothing(attack: Attack, reasons: &[&str]) {
    let siege = Siege::start("flood");
    let process: &Process = siege.backend_side.as_ref();
    let pump = Pump::start(&siege.proxy, &siege.backend, SocketAddr::from((INSIDE, 7000)), 1);
    pump.wait_for_progress();
    let link = || {
        let [there, back] = [siege.proxy_side.status().peer("backend"), siege.backend_side.status().peer("proxy")];
        [there, back].map(|peer| (peer.text("state"), peer.number("handshakes"), peer.endpoint()))
    };
    let refused = || {
        let status = siege.backend_side.status();
        reasons.iter().map(|reason| status.drops(reason)).sum::<u64>()
    };
    let (link_before, refused_before) = (link(), refused());
    let held_before = process.held_at_rest();

    let flood = siege.attack(attack, PORT);
    wait::until("the attack is refused and counted", || refused() >= refused_before + 500);
    pump.wait_for_progress();
    let paired = siege.newcomer_pairs();
    let sent = flood.stop();

    pump.wait_for_progress();
    let pumped = pump.stop();
    let held = process.held_at_rest();
    let grown = held.bytes.saturating_sub(held_before.bytes);
    eprintln!("{attack:?}: {sent} sent, paired after {paired:?}, {grown} bytes grown, {pumped:?}");
    assert!(paired < PATIENCE, "{paired:?}");
    assert!(grown < 4 << 20, "{grown} bytes more are resident");
    assert_eq!((held.descriptors, held.threads), (held_before.descriptors, held_before.threads));
    // Where pings were lost to it, it may be called degraded for a while.
    wait::until("the link is what it was, with the same session", || link() == link_before);
}

/// The site of [`Siege`].
#[test]
fn a_flood_of_initiations_with_the_right_mac1_leaves_links_as_they_are() {
    an_attack_changes_nothing(Attack::Initiations, &["cookie_demanded", "handshake_failed", "queue_full"]);
}

/// The site of [`Siege`].
#[test]
fn a_flood_of_initiations_with_a_wrong_mac1_leaves_links_as_they_are() {
    an_attack_changes_nothing(Attack::WrongMac1, &["invalid_mac1", "queue_full"]);
}

/// The site of [`Siege`].
#[test]
fn a_flood_of_noise_of_every_length_leaves_links_as_they_are() {
    an_attack_changes_nothing(Attack::Garbage, &["malformed", "queue_full"]);
}

/// The site of [`Siege`].
#[test]
fn a_flood_of_recorded_datagrams_leaves_links_as_they_are() {
    an_attack_changes_nothing(Attack::Replays, &["replayed", "too_old"]);
}

/// The site of [`Siege`].
#[test]
fn a_flood_of_datagrams_with_another_tag_leaves_links_as_they_are() {
    an_attack_changes_nothing(Attack::Forgeries, &["invalid_tag", "replayed", "too_old"]);
}

/// The site of [`Siege`].
#[test]
fn a_flood_of_handshakes_that_a_peer_begins_and_does_not_finish_leaves_links_as_they_are() {
    let reasons = ["initiation_too_soon", "cookie_demanded", "replayed_initiation", "stale_initiation"];
    an_attack_changes_nothing(Attack::HalfOpen, &reasons);
}

/// The site of [`Siege`].
#[test]
fn a_flood_of_initiations_with_cookies_from_a_hundred_addresses_leaves_links_as_they_are() {
    an_attack_changes_nothing(Attack::Proven, &["rate_limited", "unknown_peer"]);
}

/// The machines of [`Siege`]; `make bench` does the same for ten minutes.
#[test]
fn twenty_seconds_of_churn_leave_nothing_behind_and_no_packet_at_the_wrong_peer() {
    let churned = churn("churn", Duration::from_secs(20));
    let grown = [churned.growth(|held| held.bytes), churned.growth(|held| held.descriptors)];
    eprintln!("{} events, {} datagrams there and back, {grown:?}", churned.held.len(), churned.delivered);
    assert!(churned.held.len() >= 20, "only {} events", churned.held.len());
    assert!(churned.delivered > 1000, "only {} datagrams", churned.delivered);
    assert_eq!(churned.strays, 0);
    assert!(grown[0] < 4 << 20, "{} bytes", grown[0]);
    assert_eq!((grown[1], churned.growth(|held| held.threads)), (0, 0));
}

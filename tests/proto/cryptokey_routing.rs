use underpass::keys::PrivateKey;
use underpass::proto::constants::REJECT_AFTER_TIME;
use underpass::proto::error::DropReason;

use crate::pair::{Pair, Side, inner_packet, peer_config};

#[test]
fn a_source_outside_the_peers_allowed_ips_is_refused() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.send_packet(Side::One, inner_packet([10, 77, 0, 99], Side::Two.inner(), b"spoofed")).unwrap();
    pair.settle();
    assert!(pair.payloads(Side::Two).is_empty());
    assert_eq!(pair.two.status(pair.now).drops.of(DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_source_inside_another_peers_narrower_prefix_is_refused_until_it_is_removed() {
    let mut pair = Pair::with(|_| (), |one| one.allowed_ips = vec!["10.77.0.0/16".parse().unwrap()]);
    pair.connect(Side::One);
    let third = PrivateKey::from_bytes([7; 32]).unwrap().public_key();
    let mut narrower = peer_config(Side::One);
    narrower.public_key = third;
    narrower.allowed_ips = vec!["10.77.5.0/24".parse().unwrap()];
    let now = pair.now;
    pair.two.upsert_peer(now, narrower);
    let packet = |text: &[u8]| inner_packet([10, 77, 5, 1], Side::Two.inner(), text);
    pair.send_packet(Side::One, packet(b"refused")).unwrap();
    pair.settle();
    assert!(pair.payloads(Side::Two).is_empty());
    pair.two.remove_peer(&third);
    pair.send_packet(Side::One, packet(b"allowed")).unwrap();
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"allowed"]);
}

#[test]
fn an_authentic_packet_moves_the_endpoint_even_if_its_source_is_refused() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.addresses[Side::One as usize] = "198.51.100.1:1".parse().unwrap();
    pair.send_packet(Side::One, inner_packet([10, 77, 0, 99], Side::Two.inner(), b"spoofed")).unwrap();
    pair.settle();
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, "198.51.100.1:1".parse().unwrap());
}

#[test]
fn a_destination_of_no_peer_is_refused() {
    let mut pair = Pair::new();
    let refused = pair.send_packet(Side::One, inner_packet(Side::One.inner(), [10, 99, 0, 1], b"x"));
    assert_eq!(refused, Err(DropReason::NoPeerForDestination));
    assert_eq!(pair.send_packet(Side::One, vec![0x45, 0, 0]), Err(DropReason::MalformedPacket));
}

#[test]
fn a_removed_peer_is_forgotten_with_its_sessions() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.two.remove_peer(&Side::One.public_key());
    pair.send(Side::One, b"x");
    pair.settle();
    assert!(pair.payloads(Side::Two).is_empty());
    assert_eq!(pair.refused, [(Side::Two, DropReason::UnknownSession)]);
    assert!(pair.two.poll_timeout().is_none());
    assert_eq!(pair.two.footprint().session_indices, 0);
    pair.advance(REJECT_AFTER_TIME);
    pair.refused.clear();
    pair.send(Side::One, b"a new session");
    pair.settle();
    assert_eq!(pair.refused, [(Side::Two, DropReason::UnknownPeer)]);
}

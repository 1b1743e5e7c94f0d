//! What a packet costs beside many peers, each that has a session as likely as the others: everything between TUN and
//! socket but the system calls. And what a change of one peer costs.

use divan::{Bencher, black_box};
use underpass::packet::traffic_class::Ecn;
use underpass::proto::noise::Suite;

use crate::hub::{HUBS, Hub, datagram, endpoint, inner_address};

const LENGTH: usize = 1400;

/// Finds the peer, its session and where it is.
#[divan::bench(args = HUBS, sample_size = 1000)]
fn route(bencher: Bencher<'_, '_>, hub: (usize, usize)) {
    let hub = Hub::of(hub);
    bencher.with_inputs(hub.draws()).bench_local_values(|peer| hub.router.route(hub.now, inner_address(peer)).is_ok());
}

#[divan::bench(args = HUBS, sample_size = 1000)]
fn route_and_seal(bencher: Bencher<'_, '_>, hub: (usize, usize)) {
    let (hub, mut notices) = (Hub::of(hub), Vec::new());
    let mut datagram = datagram(0, 0, LENGTH);
    bencher.with_inputs(hub.draws()).bench_local_values(|peer| {
        let route = hub.router.route(hub.now, inner_address(peer)).unwrap();
        route.seal(hub.now, 0, black_box(&mut datagram), &mut notices).unwrap();
    });
}

#[divan::bench(args = HUBS, sample_size = 100)]
fn open_and_admit(bencher: Bencher<'_, '_>, hub: (usize, usize)) {
    let (hub, mut notices) = (Hub::of(hub), Vec::new());
    let mut draw = hub.draws();
    let datagrams = bencher.with_inputs(|| {
        let peer = draw();
        (peer, hub.datagram_of(peer, LENGTH))
    });
    datagrams.bench_local_refs(|(peer, datagram)| {
        let opened = hub.router.open(hub.now, endpoint(*peer), Ecn::NotEct, datagram, &mut notices).unwrap();
        let frame = opened.packets(&mut Vec::new()).next().unwrap().unwrap();
        hub.router.admit(&opened, frame, &mut None).unwrap().bytes().len()
    });
}

/// The slow path makes a new snapshot whenever a peer's session or endpoint changes.
#[divan::bench(args = HUBS)]
fn new_snapshot(bencher: Bencher<'_, '_>, (peers, active): (usize, usize)) {
    let mut hub = Hub::new(Suite::Aes256Gcm, peers, active);
    let key = hub.device.status(hub.now).peers[0].public_key;
    let mut there = false;
    bencher.bench_local(|| {
        there = !there;
        hub.device.set_endpoints(hub.now, &key, vec![endpoint(usize::from(there))]);
        hub.device.poll_router().unwrap()
    });
}

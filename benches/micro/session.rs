//! One session: sealing, opening and its replay window.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use underpass::packet::traffic_class::Ecn;
use underpass::proto::noise::Suite;
use underpass::proto::replay::ReplayWindow;

use crate::hub::{Hub, datagram, endpoint, inner_address};

/// Suites, and the length of a packet in bytes.
const CASES: [(Suite, usize); 4] =
    [(Suite::Aes256Gcm, 64), (Suite::Aes256Gcm, 1400), (Suite::ChaCha20Poly1305, 64), (Suite::ChaCha20Poly1305, 1400)];

#[divan::bench(args = CASES)]
fn seal(bencher: Bencher<'_, '_>, (suite, length): (Suite, usize)) {
    let hub = Hub::new(suite, 1, 1);
    let route = hub.router.route(hub.now, inner_address(0)).unwrap();
    let (mut datagram, mut notices) = (datagram(1, 0, length), Vec::new());
    bencher.counter(BytesCount::new(length)).bench_local(|| {
        route.seal(hub.now, 0, black_box(&mut datagram), &mut notices).unwrap();
    });
}

#[divan::bench(args = CASES)]
fn open(bencher: Bencher<'_, '_>, (suite, length): (Suite, usize)) {
    let hub = Hub::new(suite, 1, 1);
    let mut notices = Vec::new();
    let datagrams = bencher.counter(BytesCount::new(length)).with_inputs(|| hub.datagram_of(0, length));
    datagrams.bench_local_refs(|datagram| {
        hub.router.open(hub.now, endpoint(0), Ecn::NotEct, datagram, &mut notices).unwrap().plaintext.len()
    });
}

/// Counters in order, and such that every second is overtaken.
#[divan::bench(args = [0, 1])]
fn replay_window(bencher: Bencher<'_, '_>, overtaken: u64) {
    let (mut window, mut next) = (ReplayWindow::default(), 0u64);
    bencher.bench_local(|| {
        let counter = black_box(next ^ overtaken);
        next += 1;
        window.check(counter).unwrap();
        window.accept(counter)
    });
}

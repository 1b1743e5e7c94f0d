//! The steps of a handshake, each by the device that takes it: what one costs, and so how many a core makes in a second.

use std::time::Instant;

use divan::Bencher;
use underpass::packet::traffic_class::Ecn;
use underpass::proto::device::Device;
use underpass::proto::noise::Suite;

use crate::hub::{device, endpoint, now, peer};

/// Two devices on the way to a session, and what the next of them is to receive.
struct Meeting {
    now: Instant,
    initiator: Device,
    responder: Device,
    message: Vec<u8>,
}

/// The initiator's first step: an initiation.
#[divan::bench(args = Suite::ALL)]
fn initiate(bencher: Bencher<'_, '_>, suite: Suite) {
    bencher.with_inputs(|| Meeting::new(suite)).bench_local_refs(Meeting::initiate);
}

/// The responder's share: from the initiation to its response.
#[divan::bench(args = Suite::ALL)]
fn respond(bencher: Bencher<'_, '_>, suite: Suite) {
    let called = || {
        let mut meeting = Meeting::new(suite);
        meeting.initiate();
        meeting
    };
    bencher.with_inputs(called).bench_local_refs(Meeting::respond);
}

/// The initiator's second step: from the response to its first transport data.
#[divan::bench(args = Suite::ALL)]
fn finish(bencher: Bencher<'_, '_>, suite: Suite) {
    let answered = || {
        let mut meeting = Meeting::new(suite);
        meeting.initiate();
        meeting.respond();
        meeting
    };
    bencher.with_inputs(answered).bench_local_refs(Meeting::finish);
}

/// The responder's rest: the first transport data confirms the session.
#[divan::bench(args = Suite::ALL)]
fn confirm(bencher: Bencher<'_, '_>, suite: Suite) {
    let finished = || {
        let mut meeting = Meeting::new(suite);
        meeting.initiate();
        meeting.respond();
        meeting.finish();
        meeting
    };
    bencher.with_inputs(finished).bench_local_refs(Meeting::confirm);
}

impl Meeting {
    fn new(suite: Suite) -> Self {
        let now = now();
        let [mut initiator, mut responder] = [0, 1].map(|number| device(now, number, suite));
        initiator.upsert_peer(now, peer(1, Some(endpoint(1).remote)));
        responder.upsert_peer(now, peer(0, None));
        Self { now, initiator, responder, message: Vec::new() }
    }

    fn initiate(&mut self) {
        self.initiator.handle_timeout(self.now);
        self.message = self.initiator.poll_transmit().unwrap().payload;
    }

    fn respond(&mut self) {
        self.responder.handle_datagram(self.now, endpoint(0), Ecn::NotEct, &mut self.message).unwrap();
        self.message = self.responder.poll_transmit().unwrap().payload;
    }

    fn finish(&mut self) {
        self.initiator.handle_datagram(self.now, endpoint(1), Ecn::NotEct, &mut self.message).unwrap();
        self.message = self.initiator.poll_transmit().unwrap().payload;
    }

    fn confirm(&mut self) {
        self.responder.handle_datagram(self.now, endpoint(0), Ecn::NotEct, &mut self.message).unwrap();
        self.responder.poll_transmit().unwrap();
    }
}

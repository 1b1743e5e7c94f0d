//! Packets of one flow arrive in the order in which they were sent, whichever threads carry them.

use netns_tests::numbered::NumberedFlows;
use netns_tests::probe;
use netns_tests::underpass::{Config, Daemon};

use crate::ends::{BACKEND, Ends, PROXY};

/// The cable of [`Ends::wired`], with so many workers at both ends: eight flows of each family, both ways at once, each of
/// superpackets and single datagrams in turn.
fn no_flow_is_reordered(name: &str, workers: u8, prepare: impl Fn(&NumberedFlows)) {
    let ends = Ends::wired(name);
    let with_workers = |config: Config| config.set("workers", workers.to_string());
    let _backend = Daemon::start(&ends.backend, &with_workers(ends.backend_waiting()));
    let _proxy = Daemon::start(&ends.proxy, &with_workers(ends.proxy_calling("10.1.0.2:51900")));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    for (proxy, backend) in PROXY.into_iter().zip(BACKEND) {
        let flows = NumberedFlows::between((&ends.proxy, proxy), (&ends.backend, backend), 8);
        prepare(&flows);
        let arrivals = flows.exchange(400);
        assert_eq!(arrivals.len(), 16);
        assert!(arrivals.iter().all(|flow| flow.received > 1_000), "{arrivals:?}");
        assert!(arrivals.iter().all(|flow| flow.late == 0), "{arrivals:?}");
    }
}

/// The cable of [`Ends::wired`].
#[test]
fn one_worker_reorders_no_flow() {
    no_flow_is_reordered("order-one", 1, |_| ());
}

/// The cable of [`Ends::wired`]. Of each flow one packet has gone there and one has come back: the kernel has a flow leave by
/// the TUN queue that its packets came in by, once some have.
#[test]
fn two_workers_reorder_no_flow_that_was_answered() {
    no_flow_is_reordered("order-two", 2, NumberedFlows::begin);
}

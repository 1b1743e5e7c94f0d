//! Packets of one flow arrive in the order in which they were sent, from the first on, whichever threads carry them.

use netns_tests::numbered::NumberedFlows;
use netns_tests::probe;
use netns_tests::underpass::{Config, Daemon};

use crate::ends::{BACKEND, Ends, PROXY};

/// The cable of [`Ends::wired`], with so many workers at the proxy side and at the backend side: eight flows of each family,
/// both ways at once, each of superpackets and single datagrams in turn.
fn no_flow_is_reordered(name: &str, workers: [u8; 2]) {
    let ends = Ends::wired(name);
    let with_workers = |config: Config, workers: u8| config.set("workers", workers.to_string());
    let _backend = Daemon::start(&ends.backend, &with_workers(ends.backend_waiting(), workers[1]));
    let _proxy = Daemon::start(&ends.proxy, &with_workers(ends.proxy_calling("10.1.0.2:51900"), workers[0]));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    for (proxy, backend) in PROXY.into_iter().zip(BACKEND) {
        let flows = NumberedFlows::between((&ends.proxy, proxy), (&ends.backend, backend), 8);
        let arrivals = flows.exchange(400);
        assert_eq!(arrivals.len(), 16);
        assert!(arrivals.iter().all(|flow| flow.received > 1_000), "{arrivals:?}");
        assert!(arrivals.iter().all(|flow| flow.late == 0), "{arrivals:?}");
    }
}

/// The cable of [`Ends::wired`].
#[test]
fn one_worker_reorders_no_flow() {
    no_flow_is_reordered("order-one", [1, 1]);
}

/// The cable of [`Ends::wired`].
#[test]
fn two_workers_reorder_no_flow() {
    no_flow_is_reordered("order-two", [2, 2]);
}

/// The cable of [`Ends::wired`].
#[test]
fn sides_with_different_numbers_of_workers_reorder_no_flow() {
    for (name, workers) in [("order-one-two", [1, 2]), ("order-two-one", [2, 1]), ("order-three-two", [3, 2])] {
        no_flow_is_reordered(name, workers);
    }
}

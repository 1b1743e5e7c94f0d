//! Packets of one flow arrive in the order in which they were sent, from the first on, whichever threads carry them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use netns_tests::numbered::NumberedFlows;
use netns_tests::probe;
use netns_tests::underpass::{Config, Daemon, Status};

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

/// Set when it is dropped, also by a test that fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The status of a daemon after a reload with another number of `workers`.
#[track_caller]
fn after_reload(daemon: &Daemon, config: &Config, workers: &str) -> Status {
    let said = daemon.reload(&config.clone().set("workers", workers));
    assert!(said.contains("interface.workers") && !said.contains("needs restart"), "{said}");
    daemon.status().interface().part("workers")
}

/// The cable of [`Ends::wired`], with two lanes at each side: both change the number of their workers again and again by reloads,
/// while flows of both families go both ways.
#[test]
fn workers_that_come_and_go_lose_no_packet_and_reorder_none() {
    let ends = Ends::wired("order-changing");
    let configs = [ends.backend_waiting(), ends.proxy_calling("10.1.0.2:51900")];
    let start = |host, config: &Config| Daemon::start(host, &config.clone().set("workers", "2"));
    let daemons = [start(&ends.backend, &configs[0]), start(&ends.proxy, &configs[1])];
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let flows =
        [0, 1].map(|family| NumberedFlows::between((&ends.proxy, PROXY[family]), (&ends.backend, BACKEND[family]), 8));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&is_over);
        scope.spawn(|| {
            for flows in flows.iter().cycle().take_while(|_| !is_over.load(Ordering::Relaxed)) {
                flows.exchange_all(10).expect("each datagram arrives once, in order");
            }
        });
        for (workers, number) in [("1", 1), ("2", 2), ("1", 1), ("\"auto\"", 1), ("2", 2), ("\"auto\"", 2)].repeat(2) {
            for (daemon, config) in daemons.iter().zip(&configs) {
                let status = after_reload(daemon, config, workers);
                assert_eq!((status.number("lanes"), status.flag("chosen")), (2, workers == "\"auto\""));
                // What is chosen may have changed meanwhile.
                assert!(status.number("number") == number || status.flag("chosen"), "{workers}: {status:?}");
                assert!(!status.text("reason").is_empty());
            }
        }
    });
}

//! Tests in laboratories of network namespaces, with real load balancers, sniffers and attackers. They need root.
//!
//! One binary, so that it is linked once. `docs/testing.md` says what each part is for.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests")]

use netns_tests::ends;

mod audit;
mod auto_mtu;
mod busy;
mod carrier;
mod chaos;
mod demo;
mod doctor;
mod ecn;
mod exposed;
mod fail_closed;
mod faults;
mod floods;
mod forwarding;
mod guard;
mod guard_table;
mod health;
mod hostile;
mod laboratory;
mod lanes;
mod lifecycle;
mod load_balancer;
mod logs;
mod overlays;
mod path;
mod path_mtu;
mod prepared;
mod privileged;
mod reload;
mod reordering;
mod restart;
mod routes;
mod sandbox;
mod security;
mod service_unit;
mod top;
mod two_peers;
mod verify;

//! Starting, supervising, changing and stopping one daemon, and its control socket.
//!
//! Runs on a current-thread tokio runtime beside the data plane's threads and never touches a packet. It is the only
//! layer that knows both the configuration's names and the core's keys: it translates between the two.

pub mod api;
pub mod audit;
pub mod board;
pub mod client;
pub mod close;
pub mod daemon;
pub mod doctor;
pub mod drain;
pub mod event_queue;
pub mod followers;
pub mod forwarding;
pub mod handover;
pub mod health;
pub mod line_limit;
pub mod link_log;
pub mod metrics;
pub mod mtu;
pub mod netlink;
pub mod nftables;
pub mod open;
pub mod privileged;
pub mod reload;
pub mod remembered;
pub mod report;
pub mod resolver;
pub mod restart;
pub mod routes;
pub mod running;
pub mod sandbox;
pub mod signals;
pub mod socket;
pub mod systemd;
pub mod translate;
pub mod user;
pub mod verify;
pub mod watchdog;

//! Laboratories of network namespaces: hosts, links, NATs, attackers, load balancers and the daemons under test as types.
//!
//! A [`Lab`] owns everything that a test needs and takes it away again, also when the test panics or is killed: a
//! namespace lives as long as the thread that made it, and every program is tied to that thread. Nothing here has a name
//! outside its own namespaces, so tests run side by side and the whole suite runs twice at once.
//!
//! What fails, panics, and says which line of the test asked for it: a test reads as the story of what happens, without
//! error plumbing. Assertions are about packets, HTTP answers and the daemon's own statistics, never about internals.
//!
//! ```no_run
//! use netns_tests::{Lab, probe};
//!
//! let lab = Lab::new("two-hosts");
//! let (proxy, backend) = (lab.host("proxy"), lab.host("backend"));
//! lab.link(proxy.port("wan", ["192.0.2.1/24"]), backend.port("wan", ["192.0.2.2/24"]));
//! probe::ping(&proxy, "192.0.2.2").assert_all_answered();
//! ```

mod background;
pub mod capture;
pub mod certificates;
pub mod churn;
pub mod crafted;
pub mod dns;
pub mod ends;
pub mod flood;
pub mod frame;
pub mod haproxy;
pub mod http;
pub mod http_load;
pub mod http_rate;
pub mod insider;
pub mod narrows;
pub mod nat;
pub mod nginx;
pub mod numbered;
pub mod outage;
pub mod overlay;
pub mod packet_socket;
pub mod probe;
pub mod process;
pub mod pump;
pub mod quincy;
pub mod random;
pub mod relay;
pub mod round_trip;
pub mod service;
pub mod service_manager;
pub mod siege;
pub mod spoofer;
pub mod stunnel;
pub mod tcp_load;
pub mod terminal;
pub mod two_ways;
pub mod udp_load;
pub mod underpass;
pub mod wait;
pub mod websocket;
pub mod wireguard;

mod host;
mod lab;
mod link;
mod slot;

pub use host::Host;
pub use lab::Lab;
pub use link::{Port, Switch};
pub use process::{Command, Process};

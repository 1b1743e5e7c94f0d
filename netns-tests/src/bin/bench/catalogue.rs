//! What is measured: each test with its name, its unit and what it needs.

use netns_tests::udp_load::{Buffer, Shape};

use crate::contender::{Contender, Reach};
use crate::field::Wire;
use crate::measurement::Measurement;
use crate::results::Better;
use crate::site::{APP, Connections};
use crate::starting::CHACHA;
use crate::{Bench, bulk, http, latency, overlay};

/// One test.
pub(crate) struct Test {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// What it is, with its unit.
    pub(crate) title: &'static str,
    pub(crate) better: Better,
    pub(crate) wire: Wire,
    pub(crate) needs: Needs,
    /// Which of underpass's suites take part.
    pub(crate) suites: Suites,
    pub(crate) measure: fn(&Bench, &Contender) -> Measurement,
}

/// Which of underpass's suites take part in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suites {
    /// Bytes are many, so that the cipher matters.
    Both,
    /// Bytes are few: the other suite would only take time.
    AesOnly,
}

/// What a contender must carry to take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Packets,
    Connections,
    /// HTTP over kept connections.
    Http,
    /// HTTP over a new connection for each request.
    NewHttp,
}

impl Test {
    pub(crate) fn admits(&self, contender: &Contender) -> bool {
        let suite = self.suites == Suites::Both || contender.name != CHACHA;
        suite && self.needs.are_met_by(contender.reach)
    }
}

impl Needs {
    fn are_met_by(self, reach: Reach) -> bool {
        match self {
            Needs::Packets => matches!(reach, Reach::Packets(_)),
            Needs::Connections => matches!(reach, Reach::Packets(_) | Reach::Connections),
            Needs::Http => reach != Reach::Tls { resumed: false },
            Needs::NewHttp => true,
        }
    }
}

/// All of them, in the order in which they run.
pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "tcp-1",
        title: "TCP, one flow, proxy to backend, Gb/s",
        measure: |bench, contender| bulk::tcp(bench, contender, &[]),
        ..CONNECTIONS
    },
    Test {
        name: "tcp-1-reverse",
        title: "TCP, one flow, backend to proxy, Gb/s",
        measure: |bench, contender| bulk::tcp(bench, contender, &["-R"]),
        ..CONNECTIONS
    },
    Test {
        name: "tcp-8",
        title: "TCP, 8 flows, proxy to backend, Gb/s",
        measure: |bench, contender| bulk::tcp(bench, contender, &["-P", "8"]),
        ..CONNECTIONS
    },
    Test {
        name: "tcp-64",
        suites: Suites::AesOnly,
        title: "TCP, 64 flows, proxy to backend, Gb/s",
        measure: |bench, contender| bulk::tcp(bench, contender, &["-P", "64"]),
        ..CONNECTIONS
    },
    Test {
        name: "tcp-segmented",
        title: "TCP, one flow over a wire that passes packets one by one, Gb/s",
        wire: Wire::Segmented,
        measure: |bench, contender| bulk::tcp(bench, contender, &[]),
        ..CONNECTIONS
    },
    Test {
        name: "tcp-merged",
        title: "TCP, one flow over a wire that passes packets one by one, merged at each end (GRO), Gb/s",
        wire: Wire::Merged,
        measure: |bench, contender| bulk::tcp(bench, contender, &[]),
        ..CONNECTIONS
    },
    Test {
        name: "vxlan",
        title: "TCP, one flow in VXLAN inside, proxy to backend, Gb/s",
        measure: |bench, contender| overlay::vxlan(bench, contender, &[]),
        ..PACKETS
    },
    Test {
        name: "vxlan-reverse",
        title: "TCP, one flow in VXLAN inside, backend to proxy, Gb/s",
        measure: |bench, contender| overlay::vxlan(bench, contender, &["-R"]),
        ..PACKETS
    },
    Test {
        name: "udp-1200",
        title: "UDP, 1200 bytes each, received from a sender that never waits, Gb/s",
        measure: |bench, contender| bulk::udp_gigabits(bench, contender, Shape::Single(1200)),
        ..PACKETS
    },
    Test {
        name: "udp-64",
        suites: Suites::AesOnly,
        title: "UDP, 64 bytes each, received from a sender that never waits, thousand datagrams/s",
        measure: |bench, contender| bulk::udp_packets(bench, contender, Buffer::Large),
        ..PACKETS
    },
    Test {
        name: "udp-64-default",
        suites: Suites::AesOnly,
        title: "UDP, 64 bytes each, received into the kernel's default buffer from a sender that never waits, thousand datagrams/s",
        measure: |bench, contender| bulk::udp_packets(bench, contender, Buffer::Default),
        ..PACKETS
    },
    Test {
        name: "udp-gso",
        title: "UDP like QUIC, 40 datagrams of 1200 bytes in each send and GRO at the receiver, received, Gb/s",
        measure: |bench, contender| bulk::udp_gigabits(bench, contender, Shape::Segmented(1200, 40)),
        ..PACKETS
    },
    Test {
        name: "ping",
        suites: Suites::AesOnly,
        title: "Ping, nothing else to carry, a hundred a second, median, µs",
        better: Better::Less,
        measure: latency::ping_idle,
        ..PACKETS
    },
    Test {
        name: "ping-load",
        suites: Suites::AesOnly,
        title: "Ping under one bulk TCP flow, a hundred a second, median, µs",
        better: Better::Less,
        measure: latency::ping_under_load,
        ..PACKETS
    },
    Test {
        name: "tcp-rr",
        suites: Suites::AesOnly,
        title: "TCP, one byte there and back, median, µs",
        better: Better::Less,
        measure: latency::request_response,
        ..CONNECTIONS
    },
    Test {
        name: "http-kept",
        title: "HTTP, 1 KB, 64 clients over kept backend connections, requests/s",
        measure: |bench, contender| http::requests(bench, contender, Connections::Kept),
        ..HTTP
    },
    Test {
        name: "http-rate",
        suites: Suites::AesOnly,
        title: "HTTP, 1 KB, 5,000 requests a second over kept backend connections, median of the times, µs",
        better: Better::Less,
        measure: |bench, contender| http::at_a_rate(bench, contender, "/1k"),
        ..HTTP
    },
    Test {
        name: "http-app",
        suites: Suites::AesOnly,
        title: "HTTP, an app that needs 100 µs of a processor, 5,000 requests a second, median of the times, µs",
        better: Better::Less,
        measure: |bench, contender| http::at_a_rate(bench, contender, APP),
        ..HTTP
    },
    Test {
        name: "http-new",
        suites: Suites::AesOnly,
        title: "HTTP, 1 KB, 64 clients, a new backend connection for each request, requests/s",
        needs: Needs::NewHttp,
        measure: |bench, contender| http::requests(bench, contender, Connections::New),
        ..HTTP
    },
    Test { name: "http-1m", title: "HTTP, 1 MiB, 16 clients over kept backend connections, Gb/s", ..HTTP },
    Test {
        name: "http-mixed",
        suites: Suites::AesOnly,
        title: "HTTP, 1 KB (80 %), 16 KB (18 %) and 256 KB (2 %), 64 clients over kept backend connections, requests/s",
        measure: http::mixed,
        ..HTTP
    },
];

const CONNECTIONS: Test = Test { needs: Needs::Connections, ..HTTP };
const PACKETS: Test = Test { needs: Needs::Packets, ..HTTP };
const HTTP: Test = Test {
    name: "",
    title: "",
    better: Better::More,
    wire: Wire::Whole,
    needs: Needs::Http,
    suites: Suites::Both,
    measure: http::large_bodies,
};

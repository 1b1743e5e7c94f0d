//! What is measured: each test with its name, its unit and what it needs.

use crate::contender::{Contender, Reach};
use crate::field::Wire;
use crate::measurement::Measurement;
use crate::site::Connections;
use crate::{Bench, bulk, http, latency};

/// One test.
pub(crate) struct Test {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// What it is, with its unit.
    pub(crate) title: &'static str,
    pub(crate) better: Better,
    pub(crate) wire: Wire,
    pub(crate) needs: Needs,
    pub(crate) measure: fn(&Bench, &Contender) -> Measurement,
}

/// Which values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
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

impl Needs {
    pub(crate) fn are_met_by(self, reach: Reach) -> bool {
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
        ..BULK
    },
    Test {
        name: "ping",
        title: "Ping, idle, median, µs",
        better: Better::Less,
        needs: Needs::Packets,
        measure: latency::ping_idle,
        ..BULK
    },
    Test {
        name: "http-kept",
        title: "HTTP, 1 KB, 64 connections, kept, requests/s",
        needs: Needs::Http,
        measure: |bench, contender| http::requests(bench, contender, Connections::Kept),
        ..BULK
    },
    Test {
        name: "http-new",
        title: "HTTP, 1 KB, 64 clients, a new backend connection for each request, requests/s",
        needs: Needs::NewHttp,
        measure: |bench, contender| http::requests(bench, contender, Connections::New),
        ..BULK
    },
];

const BULK: Test = Test {
    name: "",
    title: "",
    better: Better::More,
    wire: Wire::Whole,
    needs: Needs::Connections,
    measure: |bench, contender| bulk::tcp(bench, contender, &[]),
};

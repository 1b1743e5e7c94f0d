//! Cost of an overlay network inside a contender: one TCP flow through VXLAN, as between two machines' pods.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use netns_tests::overlay::{Overlay, VXLAN};
use netns_tests::probe::{IPERF3_PORT, Iperf3};
use netns_tests::{Host, wait};

use crate::Bench;
use crate::contender::Contender;
use crate::measurement::{Figure, Measurement};
use crate::meter::Meter;

/// One TCP flow through VXLAN between the ends of a contender, with iperf3's options for its direction.
pub(crate) fn vxlan(bench: &Bench, contender: &Contender, options: &[&str]) -> Measurement {
    let (proxy, backend) = (&bench.field.proxy, &bench.field.backend);
    let remote = contender.address().expect("it carries packets").to_string();
    let way = Way::to(proxy, &remote);
    let overlay = Overlay {
        kind: VXLAN,
        mtu: way.mtu - HEADERS_LEN,
        outside: [&way.source, &remote],
        inside: [["10.99.0.1/24", "fd99::1/64"], ["10.99.0.2/24", "fd99::2/64"]],
    };
    overlay.connect([proxy, backend]);
    // underpass hears of the new device.
    wait::pass(Duration::from_millis(500));
    let meter = Meter::start(contender.processes());
    let seconds = bench.seconds.to_string();
    let server = Iperf3::behind(backend, SocketAddr::from((Ipv4Addr::new(10, 99, 0, 2), IPERF3_PORT)));
    let flow = server.send(proxy, &[&["-t", &seconds, "-C", "cubic"], options].concat());
    let usage = meter.read();
    overlay.remove([proxy, backend]);
    Measurement::new(flow.bits_per_second / 1e9)
        .with(Figure::Retransmits, flow.retransmits as f64 / f64::from(bench.seconds))
        .with_usage_per_gigabyte(usage, flow.bytes as f64)
}

/// How packets leave a machine for an address.
struct Way {
    source: String,
    mtu: u32,
}

impl Way {
    #[track_caller]
    fn to(host: &Host, address: &str) -> Way {
        let route = host.command("ip").args(["route", "get", address]).run();
        let behind = |word: &str| {
            let mut words = route.split_whitespace().skip_while(|found| *found != word);
            words.nth(1).unwrap_or_else(|| panic!("no {word} in {route}")).to_owned()
        };
        let link = host.command("ip").args(["link", "show", "dev", &behind("dev")]).run();
        let mtu = link.split_whitespace().skip_while(|word| *word != "mtu").nth(1).and_then(|word| word.parse().ok());
        Way { source: behind("src"), mtu: mtu.unwrap_or_else(|| panic!("no MTU in {link}")) }
    }
}

/// IPv4, UDP, VXLAN and Ethernet.
const HEADERS_LEN: u32 = 20 + 8 + 8 + 14;

//! Superpackets and small packets between TUN and socket.

use std::net::UdpSocket;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box_drop};
use underpass::dataplane::testing::{self, Sample, Transmitter, config, device, handshake};
use underpass::packet::ip::IpPacket;

/// What fits one send at the usual MTU: 60 KB.
const SEGMENT: usize = 1368;
const SEGMENTS: usize = 45;
const SMALL_PACKETS: usize = 64;

/// A superpacket into packets with headers of their own.
#[divan::bench]
fn segment(bencher: Bencher<'_, '_>) {
    let (mut read, mut packet) = (superpacket().read(), [0; 2000]);
    bencher.counter(ItemsCount::new(SEGMENTS)).bench_local(|| {
        testing::cut(&mut read, &mut packet, |flags, packet| black_box_drop((flags, packet))).unwrap();
    });
}

/// The packets of a superpacket into the parts of one write.
#[divan::bench]
fn train(bencher: Bencher<'_, '_>) {
    let (mut packets, mut packet) = (Vec::new(), [0; 2000]);
    testing::cut(&mut superpacket().read(), &mut packet, |_, packet| packets.push(packet.to_vec())).unwrap();
    bencher.counter(ItemsCount::new(SEGMENTS)).bench_local(|| {
        let packets = packets.iter().map(|packet| IpPacket::parse(packet).unwrap());
        testing::join(packets, |parts| black_box_drop(parts));
    });
}

/// Small packets of one drain into full datagrams, sealed, and sent with one system call to a socket that nobody reads.
#[divan::bench(args = [64, 300])]
fn pack(bencher: Bencher<'_, '_>, length: usize) {
    let (now, socket) = (crate::hub::now(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let [us, there] = ["127.0.0.1:1".parse().unwrap(), socket.local_addr().unwrap()];
    let (mut sender, mut receiver) = (device(now, 1), device(now, 2));
    sender.upsert_peer(now, config(2, Some(there), &["10.77.0.2/32"])).unwrap();
    receiver.upsert_peer(now, config(1, None, &["10.77.0.1/32"])).unwrap();
    handshake(now, &mut sender, there, &mut receiver, us);
    let (router, mut transmitter, mut notices) = (sender.poll_router().unwrap(), Transmitter::new(1420), Vec::new());
    let mut reads = vec![Sample::tcp_v4(length - 52, 0).read(); SMALL_PACKETS];
    bencher.counter(ItemsCount::new(SMALL_PACKETS)).bench_local(|| {
        transmitter.drain(now, &router, &mut reads, &mut notices);
    });
}

fn superpacket() -> Sample {
    Sample::tcp_v4(SEGMENTS * SEGMENT, SEGMENT)
}

use std::net::SocketAddr;

use super::super::clock::now;
use super::super::udp::tests::{bind, receive};
use super::super::udp::{RECEIVE_BUFFER_LEN, UdpSocket};
use super::*;
use crate::packet::traffic_class::{Ecn, TrafficClass};
use crate::proto::endpoint::Endpoint;

fn sender(socket: UdpSocket) -> Sender {
    Sender::new(Sockets::shared([socket]))
}

fn to(remote: SocketAddr) -> Way {
    Way::main(Endpoint::new(remote))
}

#[test]
fn a_batch_is_sent_and_received_with_its_stride() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let receiver = bind(address);
        let mut sender = sender(bind(address));
        let batch: Vec<u8> = (0..10_500u32).map(|i| (i % 251) as u8).collect();
        sender.send(now(), &to(receiver.local()), &batch, 1000).unwrap();
        let mut got = Vec::new();
        let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
        while got.len() < batch.len() {
            let received = receive(&receiver, &mut buffer);
            assert!(received.stride == 1000 || received.length == received.stride);
            assert_eq!(received.endpoint.remote, sender.sockets.listen[0].local());
            got.extend_from_slice(&buffer[..received.length]);
        }
        assert_eq!(got, batch);
    }
}

#[test]
fn what_the_ip_header_says_of_congestion_arrives_with_a_batch_and_with_one_datagram() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let receiver = bind(address);
        let mut sender = sender(bind(address));
        let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
        for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce, Ecn::NotEct] {
            let traffic_class = TrafficClass::default().with_dscp(46).with_ecn(ecn);
            let way = Way { traffic_class, ..to(receiver.local()) };
            sender.send(now(), &way, &[7; 3000], 1000).unwrap();
            sender.send_fragmentable(&way, &[8; 1500]).unwrap();
            let mut left = 4500;
            while left > 0 {
                let received = receive(&receiver, &mut buffer);
                assert_eq!(received.ecn, ecn);
                left -= received.length;
            }
        }
    }
}

#[test]
fn an_answer_leaves_from_the_address_that_was_contacted() {
    let server = bind("0.0.0.0:0");
    let port = server.local().port();
    let mut client = sender(bind("127.0.0.1:0"));
    let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
    let contacted = SocketAddr::new("127.0.0.5".parse().unwrap(), port);
    client.send(now(), &to(contacted), b"hello", 5).unwrap();
    let received = receive(&server, &mut buffer);
    assert_eq!(received.endpoint.local, Some(contacted.ip()));
    assert_eq!(received.endpoint.interface, 0);
    sender(server).send(now(), &Way::main(received.endpoint), b"answer", 6).unwrap();
    assert_eq!(receive(&client.sockets.listen[0], &mut buffer).endpoint.remote, contacted);
}

#[test]
fn a_source_address_that_has_gone_is_replaced() {
    for (address, gone) in [("127.0.0.1:0", "192.0.2.1"), ("[::1]:0", "2001:db8::1")] {
        let receiver = bind(address);
        let unspecified = if receiver.local().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let mut sender = sender(bind(unspecified));
        let endpoint = Endpoint { local: Some(gone.parse().unwrap()), ..Endpoint::new(receiver.local()) };
        let way = Way::main(endpoint);
        sender.send(now(), &way, b"still here", 10).unwrap();
        let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
        assert_eq!(receive(&receiver, &mut buffer).endpoint.remote.ip(), receiver.local().ip());
    }
}

#[test]
fn a_source_address_that_has_gone_does_not_end_segmentation() {
    let receiver = bind("127.0.0.1:0");
    let mut sender = sender(bind("0.0.0.0:0"));
    let endpoint = Endpoint { local: Some("192.0.2.1".parse().unwrap()), ..Endpoint::new(receiver.local()) };
    let way = Way::main(endpoint);
    sender.send(now(), &way, &[7; 3000], 1000).unwrap();
    assert!(sender.refusals.is_empty());
}

#[test]
fn a_refused_segmented_send_goes_out_as_single_datagrams_and_is_tried_again_later() {
    let receiver = bind("127.0.0.1:0");
    let way = to(receiver.local());
    let mut sender = sender(bind("127.0.0.1:0"));
    let start = now();
    // More segments than any kernel takes: EINVAL, like a device that can't.
    let batch = vec![9; 200];
    sender.send(start, &way, &batch, 1).unwrap();
    assert_eq!(sender.refusals.len(), 1);
    let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
    let mut got = 0;
    while got < batch.len() {
        got += receive(&receiver, &mut buffer).length;
    }
    assert!(is_refused(&mut sender.refusals, start + SEGMENTATION_RETRY_AFTER / 2, way.endpoint.remote.ip()));
    assert!(!is_refused(&mut sender.refusals, start, "127.0.0.9".parse().unwrap()), "other destinations still batch");
    assert!(!is_refused(&mut sender.refusals, start + SEGMENTATION_RETRY_AFTER, way.endpoint.remote.ip()));
    assert!(sender.refusals.is_empty());
}

#[test]
fn a_closed_port_is_not_fatal() {
    let closed = bind("127.0.0.1:0").local();
    let mut sender = sender(bind("127.0.0.1:0"));
    for _ in 0..3 {
        let _ = sender.send(now(), &to(closed), b"anyone?", 7);
        assert_eq!(sender.sockets.listen[0].receive(&mut [0; 100]).unwrap(), None);
    }
    let receiver = bind("127.0.0.1:0");
    sender.send(now(), &to(receiver.local()), b"next", 4).unwrap();
    assert_eq!(receive(&receiver, &mut [0; 100]).length, 4);
}

#[test]
fn a_datagram_larger_than_the_receive_buffer_neither_panics_nor_stops_the_worker() {
    let receiver = bind("127.0.0.1:0");
    let mut sender = sender(bind("127.0.0.1:0"));
    let way = to(receiver.local());
    sender.send(now(), &way, &[1; 2000], 2000).unwrap();
    sender.send(now(), &way, &[2; 50], 50).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(receive(&receiver, &mut buffer).length, 0, "too long");
    assert_eq!(receive(&receiver, &mut buffer).length, 50);
}

#[test]
fn a_datagram_that_no_packet_can_hold_is_counted() {
    let mut sender = sender(bind("127.0.0.1:0"));
    let way = to(sender.sockets.listen[0].local());
    assert_eq!(sender.send(now(), &way, &vec![0; 65_508], 65_508), Err(Unsent(1)));
    let v6 = to("[::1]:9".parse().unwrap());
    assert_eq!(sender.send(now(), &v6, &[0; 30], 10), Err(Unsent(3)), "no socket of that family");
}

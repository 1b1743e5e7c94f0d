use std::fs::File;
use std::net::{TcpListener, UdpSocket as StdSocket};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use super::super::sockets::{self, Sockets};
use super::super::tun::{DeviceMode, Offload, TunQueue};
use super::super::udp::RECEIVE_BUFFER_LEN;
use super::super::worker_policy::WorkerCount;
use super::*;
use crate::keys::PrivateKey;
use crate::packet::traffic_class::TrafficClass;
use crate::proto::device::DeviceConfig;
use crate::proto::endpoint::Endpoint;
use crate::proto::interface_mtu::MtuRange;
use crate::proto::noise::Suite;

fn config(listen: &[&str]) -> DataplaneConfig {
    DataplaneConfig {
        interface_name: "unused".into(),
        mtu: MtuRange::fixed(1420),
        mode: DeviceMode::Auto,
        listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
        ipv6_optional: true,
        fwmark: None,
        lanes: 1,
        workers: WorkerCount::Auto,
        pin_workers: false,
        busy_poll: true,
        device: DeviceConfig {
            private_key: PrivateKey::from_bytes([1; 32]).unwrap(),
            previous_private_key: None,
            suite: Suite::Aes256Gcm,
            send_lanes: 1,
            lane_paths: true,
            mtu: None,
        },
        peers: Vec::new(),
        privileges: None,
    }
}

/// With a TUN of so many queues, which are sockets here.
fn choice(queues: usize) -> Choice {
    let queue = || Arc::new(TunQueue::of_socket(UnixDatagram::pair().unwrap().0, Offload::TcpAndUdp));
    let tun = Tun { queues: (0..queues).map(|_| queue()).collect(), index: 0, is_prepared: false };
    Choice { inheritance: Inheritance { tun: Some(tun), ..Inheritance::default() }, refused: Vec::new() }
}

/// What a data plane of this configuration binds, as it hands it on.
fn handed_on(config: &DataplaneConfig) -> Vec<(Role, OwnedFd)> {
    let bound = sockets::bind(config, Vec::new()).unwrap();
    let descriptors = (0..).zip(&bound).flat_map(|(lane, sockets)| sockets.descriptors(lane));
    descriptors.map(|(role, descriptor)| (role, descriptor.try_clone_to_owned().unwrap())).collect()
}

fn reasons(choice: &Choice) -> Vec<(&str, &Unfit)> {
    choice.refused.iter().map(|refused| (refused.name.as_str(), &refused.reason)).collect()
}

#[test]
fn a_name_says_what_a_descriptor_is_for() {
    for role in [Role::Tun(0), Role::Listen(7), Role::Handshakes, Role::Lane(255)] {
        assert_eq!(role.to_string().parse(), Ok(role));
    }
    for name in ["", "tun", "tun-", "tun-256", "tun-x", "tap-0", "stored", "listen-0-1"] {
        assert_eq!(name.parse::<Role>(), Err(UnknownRole), "{name}");
    }
}

#[test]
fn sockets_are_kept_with_what_is_queued_in_them() {
    let mut config = config(&["127.0.0.1:0"]);
    config.lanes = 2;
    let before = handed_on(&config);
    let roles: Vec<Role> = before.iter().map(|(role, _)| *role).collect();
    assert_eq!(roles, [Role::Listen(0), Role::Handshakes, Role::Lane(1), Role::Listen(1)]);
    let address = StdSocket::from(before[0].1.try_clone().unwrap()).local_addr().unwrap();
    // To lane 0 and to lane 1, as the program that steers them reads it.
    let sender = StdSocket::bind("127.0.0.1:0").unwrap();
    for lane in [0, 1] {
        sender.send_to(&[4, lane], address).unwrap();
    }

    config.listen = vec![address];
    let mut choice = choice(2);
    choice.choose_sockets(&config, before);
    assert_eq!(reasons(&choice), []);
    let kept: Vec<Sockets> = sockets::bind(&config, choice.inheritance.sockets).unwrap();
    let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
    for (lane, sockets) in kept.iter().enumerate() {
        let received = sockets.listen[0].receive(&mut buffer).unwrap().unwrap();
        assert_eq!((received.length, &buffer[..2]), (2, &[4, lane as u8][..]));
        assert_eq!(received.endpoint.remote, sender.local_addr().unwrap());
    }
    assert_eq!(kept[0].of_lane(1).len(), 1);
    kept[0].of_lane(1)[0].send(&Endpoint::new(sender.local_addr().unwrap()), TrafficClass::default(), b"x", 1).unwrap();
}

#[test]
fn what_an_address_lacks_or_does_not_want_is_refused() {
    let mut config = config(&["127.0.0.1:0"]);
    config.lanes = 2;
    let mut incomplete = handed_on(&config);
    incomplete.pop();
    let mut lacking = choice(2);
    lacking.choose_sockets(&config, incomplete);
    assert!(lacking.inheritance.sockets.is_empty());
    assert!(matches!(
        reasons(&lacking)[..],
        [
            ("listen-0", Unfit::OtherAddress(_)),
            ("handshakes", Unfit::OtherAddress(_)),
            ("lane-1", Unfit::OtherAddress(_))
        ]
    ));

    let elsewhere = handed_on(&DataplaneConfig { listen: vec!["127.0.0.2:0".parse().unwrap()], ..config.clone() });
    let mut unwanted = choice(2);
    unwanted.choose_sockets(&config, elsewhere);
    assert_eq!(unwanted.refused.len(), 4);
    assert!(unwanted.refused[0].reason.to_string().starts_with("it is bound to 127.0.0.2:"));
}

#[test]
fn sockets_for_another_number_of_lanes_are_refused() {
    let config = config(&["127.0.0.1:0"]);
    let shared = handed_on(&DataplaneConfig { lanes: 2, ..config.clone() });
    let mut choice = choice(1);
    choice.choose_sockets(&config, shared);
    assert!(choice.inheritance.sockets.is_empty());
    let is_elsewhere = |(_, reason): &(&str, &Unfit)| matches!(reason, Unfit::OtherAddress(_));
    assert!(reasons(&choice).len() == 4 && reasons(&choice).iter().all(is_elsewhere), "{choice:?}");
}

#[test]
fn a_strangers_descriptor_is_refused_by_name() {
    let config = config(&["127.0.0.1:0"]);
    let inherited = |name: &str, descriptor: OwnedFd| Inherited { name: name.into(), descriptor };
    let file = || OwnedFd::from(File::open("/dev/null").unwrap());
    let given = vec![inherited("tun-0", file()), inherited("stored", file()), inherited("listen-0", file())];
    let (kept, refused) = Inheritance::choose(&config, given);
    assert!(!kept.has_interface() && kept.sockets.is_empty());
    let refused: Vec<_> = refused.iter().map(|refused| (refused.name.as_str(), refused.reason.clone())).collect();
    assert_eq!(refused, [("stored", Unfit::UnknownName), ("tun-0", Unfit::NotTun), ("listen-0", Unfit::WithoutTun)]);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut choice = choice(1);
    choice.choose_sockets(&config, vec![(Role::Listen(0), file()), (Role::Listen(0), listener.into())]);
    assert_eq!(reasons(&choice), [("listen-0", &Unfit::NotUdp), ("listen-0", &Unfit::NotUdp)]);
}

#[test]
fn queues_must_be_all_there_and_each_once() {
    let config = config(&[]);
    let file = || OwnedFd::from(File::open("/dev/null").unwrap());
    let mut choice = Choice::default();
    choice.choose_tun(&config, vec![(0, file()), (2, file()), (0, file())]);
    assert_eq!(
        reasons(&choice),
        [("tun-0", &Unfit::Twice), ("tun-0", &Unfit::OtherDevice), ("tun-2", &Unfit::OtherDevice)]
    );
}

#[test]
fn what_this_process_has_opened_is_not_taken() {
    let own = File::open("/dev/null").unwrap();
    assert!(Inherited::take(own.as_raw_fd(), "tun-0".into()).is_none());
    assert!(Inherited::take(2, "tun-0".into()).is_none());
    assert!(Inherited::take(-1, "tun-0".into()).is_none());
    assert!(Inherited::take(RawFd::MAX, "tun-0".into()).is_none());
    // As an earlier process would have left it.
    fcntl(own.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let number = std::os::fd::IntoRawFd::into_raw_fd(own);
    let inherited = Inherited::take(number, "tun-0".into()).unwrap();
    assert!(Inherited::take(number, "tun-0".into()).is_none(), "it has one owner");
    drop(inherited);
}

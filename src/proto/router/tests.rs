use std::sync::Arc;
use std::time::Duration;

use crate::keys::PrivateKey;
use crate::proto::device::{Device, DeviceConfig};
use crate::proto::endpoint::Endpoint;
use crate::proto::noise::Suite;
use crate::proto::peer::PeerConfig;
use crate::proto::peer_table::PeerId;
use crate::proto::randomness::Entropy;
use crate::proto::tests::start;

fn key(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes([byte; 32]).unwrap()
}

fn device() -> Device {
    let config = DeviceConfig {
        private_key: key(9),
        previous_private_key: None,
        suite: Suite::Aes256Gcm,
        send_lanes: 1,
        lane_paths: false,
        mtu: None,
    };
    let mut device = Device::new(start(), Duration::ZERO, config, Entropy::seeded([1; 32]));
    for byte in [1, 2, 3] {
        device.upsert_peer(start(), peer(byte)).unwrap();
    }
    device
}

fn peer(byte: u8) -> PeerConfig {
    PeerConfig { endpoints: vec![endpoint(byte)], ..PeerConfig::new(key(byte).public_key()) }
}

fn endpoint(byte: u8) -> Endpoint {
    Endpoint::new(([192, 0, 2, byte], 51900).into())
}

#[test]
fn a_new_snapshot_shares_all_but_the_peer_that_has_changed() {
    let mut device = device();
    let before = device.router();
    device.set_endpoints(start(), &key(2).public_key(), vec![endpoint(20)]);
    let after = device.router();
    let is_shared = |peer: u32| {
        let index = PeerId::from_index(peer).index();
        Arc::ptr_eq(&before.peers[index], &after.peers[index])
    };
    assert_eq!([0, 1, 2].map(is_shared), [true, false, true]);
    assert!(Arc::ptr_eq(&before.sessions, &after.sessions));
    assert_eq!(after.peers[1].endpoint, Some(endpoint(20)));
}

#[test]
fn a_peer_that_is_no_more_leads_nowhere_and_one_in_its_place_has_a_share_of_its_own() {
    let mut device = device();
    let before = device.router();
    device.remove_peer(&key(2).public_key());
    assert_eq!(device.router().peers[1].endpoint, None);
    let id = device.upsert_peer(start(), peer(4)).unwrap();
    let after = device.router();
    assert_eq!((id.index(), after.peers[1].endpoint), (1, Some(endpoint(4))));
    assert!(!Arc::ptr_eq(&before.peers[1].share, &after.peers[1].share));
    assert!(!Arc::ptr_eq(&after.peers[0].share, &after.peers[1].share));
}

//! Peers by number, by key and by session index.

use std::collections::BTreeMap;

use crate::keys::PublicKey;

use super::peer::Peer;
use super::randomness::Randomness;

/// A peer's number in one device: small, and used again after the peer is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(u32);

impl PeerId {
    /// As a position in a slice.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    #[cfg(test)]
    pub(crate) fn from_index(index: u32) -> Self {
        Self(index)
    }
}

/// Owns the peers of a device.
#[derive(Default)]
pub(super) struct PeerTable {
    peers: Vec<Option<Peer>>,
    free: Vec<PeerId>,
    by_key: BTreeMap<PublicKey, PeerId>,
    by_index: BTreeMap<u32, PeerId>,
}

impl PeerTable {
    /// Adds a peer, without a key yet.
    pub(super) fn insert(&mut self, peer: Peer) -> PeerId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.peers.push(None);
            PeerId(u32::try_from(self.peers.len() - 1).expect("four billion peers do not fit into memory"))
        });
        self.peers[id.index()] = Some(peer);
        id
    }

    /// Removes a peer, whose keys and session indices were released.
    pub(super) fn remove(&mut self, id: PeerId) {
        if self.peers[id.index()].take().is_some() {
            self.free.push(id);
        }
    }

    /// Makes `key` lead to `id`.
    pub(super) fn add_key(&mut self, key: PublicKey, id: PeerId) {
        self.by_key.insert(key, id);
    }

    /// Makes `key` lead nowhere.
    pub(super) fn release_key(&mut self, key: &PublicKey) {
        self.by_key.remove(key);
    }

    pub(super) fn by_key(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    pub(super) fn by_index(&self, index: u32) -> Option<PeerId> {
        self.by_index.get(&index).copied()
    }

    /// Gives `id` a session index that nobody has: unpredictable, so that strangers cannot aim at sessions.
    pub(super) fn allocate_index(&mut self, id: PeerId, randomness: &mut Randomness) -> u32 {
        loop {
            let index = randomness.u32();
            if let std::collections::btree_map::Entry::Vacant(entry) = self.by_index.entry(index) {
                entry.insert(id);
                return index;
            }
        }
    }

    pub(super) fn release_index(&mut self, index: u32) {
        self.by_index.remove(&index);
    }

    /// How many peers there are.
    pub(super) fn len(&self) -> usize {
        self.peers.len() - self.free.len()
    }

    /// How many session indices are given out.
    pub(super) fn indices(&self) -> usize {
        self.by_index.len()
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.index())?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.index())?.as_mut()
    }

    /// All peers in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        (0..).map(PeerId).zip(&self.peers).filter_map(|(id, peer)| Some((id, peer.as_ref()?)))
    }

    /// One place for each number, also of removed peers.
    pub(super) fn slots(&self) -> impl ExactSizeIterator<Item = Option<&Peer>> {
        self.peers.iter().map(Option::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::PeerConfig;
    use super::super::share::Share;
    use super::super::tests::start;
    use super::*;
    use crate::keys::PrivateKey;

    fn key(byte: u8) -> PublicKey {
        PrivateKey::from_bytes([byte; 32]).unwrap().public_key()
    }

    fn peer(public_key: PublicKey) -> Peer {
        let config = PeerConfig::new(public_key);
        let share = Share::new(start(), &[0; 32]);
        Peer::new(start(), config, None, share.into())
    }

    #[test]
    fn the_number_of_a_removed_peer_is_given_out_again() {
        let mut peers = PeerTable::default();
        let ids = [1, 2, 3].map(|byte| peers.insert(peer(key(byte))));
        peers.remove(ids[1]);
        peers.remove(ids[1]);
        assert_eq!(peers.len(), 2);
        assert!(peers.get(ids[1]).is_none() && peers.get_mut(ids[1]).is_none());
        assert_eq!(peers.iter().map(|(id, _)| id).collect::<Vec<_>>(), [ids[0], ids[2]]);
        assert_eq!(peers.insert(peer(key(4))), ids[1]);
        assert_eq!((peers.len(), peers.slots().len()), (3, 3));
        assert_eq!(peers.get(ids[1]).unwrap().name(), key(4));
    }

    #[test]
    fn keys_and_indices_lead_to_their_peers_until_they_are_released() {
        let mut peers = PeerTable::default();
        let mut randomness = Randomness::new([1; 32]);
        let ids = [1, 2].map(|byte| peers.insert(peer(key(byte))));
        for (id, byte) in ids.into_iter().zip([1, 2]) {
            peers.add_key(key(byte), id);
        }
        let indices = ids.map(|id| peers.allocate_index(id, &mut randomness));
        assert_eq!([1, 2].map(|byte| peers.by_key(&key(byte))), ids.map(Some));
        assert_eq!((indices.map(|index| peers.by_index(index)), peers.indices()), (ids.map(Some), 2));
        peers.release_key(&key(1));
        peers.release_index(indices[0]);
        assert_eq!([1, 2].map(|byte| peers.by_key(&key(byte))), [None, Some(ids[1])]);
        assert_eq!((indices.map(|index| peers.by_index(index)), peers.indices()), ([None, Some(ids[1])], 1));
    }
}

//! Keys that a new configuration replaces at once, so that machines that still use or know the former one are cut off.
//!
//! Owns the sentences about it. They come when it is too late to refuse, and while sessions hide it still.

use super::{Config, Peer};

impl Config {
    /// One sentence for each key of `old` that is no longer accepted, though another machine may still use it, with what to
    /// write instead.
    pub fn cut_off_since(&self, old: &Self) -> Vec<String> {
        let by_name = |peer: &Peer| old.peers.iter().find(|before| before.name == peer.name);
        let peers = self.peers.iter().filter_map(|peer| replaced_key(by_name(peer)?, peer));
        self.own_key_replaced(old).into_iter().chain(peers).collect()
    }

    fn own_key_replaced(&self, old: &Self) -> Option<String> {
        let (before, now) = (&old.interface, &self.interface);
        let [former, present] = [before, now].map(|interface| interface.private_key.public_key());
        let is_accepted = |key: &crate::keys::PrivateKey| key.public_key() == former;
        if former == present || now.previous_private_key.as_ref().is_some_and(is_accepted) {
            return None;
        }
        let file = if before.private_key_file == now.private_key_file {
            "the file of the key before".to_owned()
        } else {
            format!("\"{}\"", before.private_key_file.display())
        };
        Some(format!(
            "interface.private_key_file: the key before, of the public key {former}, is no longer accepted: peers that do not \
             know {present} yet are refused from the next handshake on, at the latest in three minutes; until all know it, \
             write previous_private_key_file = {file} and reload"
        ))
    }
}

fn replaced_key(before: &Peer, now: &Peer) -> Option<String> {
    let is_announced = before.next_public_key == Some(now.public_key);
    let is_accepted = [Some(now.public_key), now.next_public_key].contains(&Some(before.public_key));
    if is_announced || is_accepted {
        return None;
    }
    let (name, former, present) = (&now.name, before.public_key, now.public_key);
    Some(format!(
        "{name}: its public key before is refused from now on; unless {name} uses the new one already, write \
         public_key = \"{former}\" and next_public_key = \"{present}\" until it does, and reload"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::parse::tests::{minimal, parse};
    use crate::keys::PrivateKey;

    fn key(number: u8) -> String {
        PrivateKey::from_bytes([number; 32]).unwrap().public_key().to_string()
    }

    fn said(old: &str, new: &str) -> Vec<String> {
        parse(new).unwrap().cut_off_since(&parse(old).unwrap())
    }

    #[test]
    fn a_key_of_this_machine_that_is_switched_without_the_one_before_is_pointed_out() {
        let switched = minimal().replace("\"1.key\"", "\"3.key\"");
        let said_of = said(&minimal(), &switched);
        assert_eq!(said_of.len(), 1);
        assert!(said_of[0].contains("previous_private_key_file = \"/etc/underpass/1.key\""), "{said_of:?}");
        assert!(said_of[0].contains(&key(1)) && said_of[0].contains(&key(3)));
        let kept = switched.replace("\"3.key\"", "\"3.key\"\nprevious_private_key_file = \"1.key\"");
        assert!(said(&minimal(), &kept).is_empty());
        assert!(said(&kept, &switched).is_empty(), "the last step of changing keys");
    }

    #[test]
    fn a_key_of_a_peer_that_was_not_announced_is_pointed_out() {
        let switched = minimal().replace(&key(2), &key(4));
        let said_of = said(&minimal(), &switched);
        assert_eq!(said_of.len(), 1);
        let remedy = format!("public_key = \"{}\" and next_public_key = \"{}\"", key(2), key(4));
        assert!(said_of[0].starts_with("app1: ") && said_of[0].contains(&remedy), "{said_of:?}");
        let with_next = |text: &str, number| format!("{text}next_public_key = \"{}\"\n", key(number));
        assert!(said(&minimal(), &with_next(&minimal(), 4)).is_empty());
        assert!(said(&with_next(&minimal(), 4), &switched).is_empty(), "it was announced");
        assert!(said(&minimal(), &with_next(&switched, 2)).is_empty(), "both are accepted");
        assert!(said(&minimal(), &switched.replace("app1", "app2")).is_empty(), "another peer");
    }
}

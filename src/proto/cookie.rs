//! The two MACs at the end of handshake messages, and the cookies behind the second.
//!
//! mac1 proves that the sender knows our public key: strangers get silence at the price of one hash. mac2 is demanded
//! under load and proves that the sender receives at the address and port it sends from. As in WireGuard (paper §5.4.4,
//! §5.4.7), with labels of our own. These primitives are the same in both suites: they come before the suite is read.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::keys::PublicKey;
use crate::packet::message::{COOKIE_LEN, COOKIE_NONCE_LEN, CookieReply, MAC_LEN, TAG_LEN};

use super::constants::{COOKIE_LIFETIME, COOKIE_SECRET_LIFETIME};
use super::randomness::Randomness;

const MAC1_LABEL: &[u8] = b"underpass v1 mac1";
const COOKIE_LABEL: &[u8] = b"underpass v1 cookie";

type Mac = [u8; MAC_LEN];

/// The keys that follow from a receiver's public key. Not secret from anyone who knows it.
#[derive(Clone)]
pub struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    /// For messages to the holder of `receiver`.
    pub fn new(receiver: &PublicKey) -> Self {
        let hash = |label: &[u8]| Blake2s256::new().chain(label).chain(receiver.as_bytes()).finalize().into();
        Self { mac1: hash(MAC1_LABEL), cookie: hash(COOKIE_LABEL) }
    }

    /// Writes mac1, and mac2 if there is a cookie (else zeros), into the last 32 bytes of a handshake message.
    /// Returns mac1, to which a cookie reply is bound.
    pub fn write(&self, message: &mut [u8], cookie: Option<&[u8; COOKIE_LEN]>) -> Mac {
        let (body, macs) = message.split_at_mut(message.len() - 2 * MAC_LEN);
        let mac1 = mac(&self.mac1, &[body]);
        macs[..MAC_LEN].copy_from_slice(&mac1);
        let mac2 = cookie.map_or([0; MAC_LEN], |cookie| mac(cookie, &[body, &mac1]));
        macs[MAC_LEN..].copy_from_slice(&mac2);
        mac1
    }

    /// Whether a handshake message's mac1 was made by someone who knows the receiver's public key.
    pub fn verify_mac1(&self, message: &[u8]) -> bool {
        let (body, mac1, _) = split(message);
        mac(&self.mac1, &[body]).ct_eq(mac1).into()
    }

    /// Opens a cookie reply to the message whose mac1 was `mac1`.
    pub fn open_cookie(&self, reply: &CookieReply<'_>, mac1: &Mac) -> Option<[u8; COOKIE_LEN]> {
        XChaCha20Poly1305::new(&self.cookie.into())
            .decrypt(XNonce::from_slice(reply.nonce()), Payload { msg: reply.sealed_cookie(), aad: mac1 })
            .ok()?
            .try_into()
            .ok()
    }

    fn seal_cookie(&self, cookie: &Mac, nonce: &[u8; COOKIE_NONCE_LEN], mac1: &[u8]) -> [u8; COOKIE_LEN + TAG_LEN] {
        XChaCha20Poly1305::new(&self.cookie.into())
            .encrypt(XNonce::from_slice(nonce), Payload { msg: cookie, aad: mac1 })
            .ok()
            .and_then(|sealed| sealed.try_into().ok())
            .expect("sealing sixteen bytes gives sixteen and a tag")
    }
}

/// The receiver's side: makes and verifies cookies with a secret that it forgets every two minutes. The first use makes
/// the first secret.
#[derive(Default)]
pub struct CookieChecker {
    secret: Zeroizing<[u8; 32]>,
    secret_made_at: Option<Instant>,
}

impl CookieChecker {
    /// Whether a handshake message's mac2 was made with the cookie of the address and port it comes from.
    pub fn verify_mac2(&mut self, now: Instant, from: SocketAddr, message: &[u8], randomness: &mut Randomness) -> bool {
        let (body, mac1, mac2) = split(message);
        // Who has no cookie says so: most of a flood is refused without another hash of the whole message.
        if *mac2 == [0; MAC_LEN] {
            return false;
        }
        let cookie = self.cookie(now, from, randomness);
        mac(&cookie, &[body, mac1]).ct_eq(mac2).into()
    }

    /// The answer to a handshake message that lacks its cookie.
    pub fn reply(
        &mut self,
        now: Instant,
        from: SocketAddr,
        receiver: &MacKeys,
        sender_index: u32,
        message: &[u8],
        randomness: &mut Randomness,
    ) -> Vec<u8> {
        let cookie = self.cookie(now, from, randomness);
        let nonce = randomness.array();
        let (_, mac1, _) = split(message);
        CookieReply::encode(sender_index, &nonce, &receiver.seal_cookie(&cookie, &nonce, mac1)).to_vec()
    }

    fn cookie(&mut self, now: Instant, from: SocketAddr, randomness: &mut Randomness) -> Mac {
        let fresh = |made_at| now.saturating_duration_since(made_at) < COOKIE_SECRET_LIFETIME;
        if !self.secret_made_at.is_some_and(fresh) {
            self.secret = randomness.array();
            self.secret_made_at = Some(now);
        }
        let port = from.port().to_le_bytes();
        match from.ip() {
            IpAddr::V4(address) => mac(&*self.secret, &[&address.octets(), &port]),
            IpAddr::V6(address) => mac(&*self.secret, &[&address.octets(), &port]),
        }
    }
}

/// The sender's side: the cookie that one peer gave us, and the mac1 that a reply must be bound to.
#[derive(Default)]
pub struct CookieJar {
    cookie: Option<([u8; COOKIE_LEN], Instant)>,
    last_mac1: Option<Mac>,
}

impl CookieJar {
    /// Whether the peer has demanded one lately: it lives, and works on handshakes.
    pub fn is_demanded(&self, now: Instant) -> bool {
        self.fresh(now).is_some()
    }

    fn fresh(&self, now: Instant) -> Option<&[u8; COOKIE_LEN]> {
        let is_fresh = |made_at| now.saturating_duration_since(made_at) < COOKIE_LIFETIME;
        self.cookie.as_ref().filter(|(_, made_at)| is_fresh(*made_at)).map(|(cookie, _)| cookie)
    }

    /// Closes a handshake message with both MACs.
    pub fn write_macs(&mut self, now: Instant, receiver: &MacKeys, message: &mut [u8]) {
        self.last_mac1 = Some(receiver.write(message, self.fresh(now)));
    }

    /// Takes a cookie reply to the last message; `None` if it is not one. Each message takes at most one.
    pub fn consume_reply(&mut self, now: Instant, receiver: &MacKeys, reply: &CookieReply<'_>) -> Option<()> {
        let cookie = receiver.open_cookie(reply, self.last_mac1.as_ref()?)?;
        self.cookie = Some((cookie, now));
        self.last_mac1 = None;
        Some(())
    }
}

fn split(message: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (rest, mac2) = message.split_at(message.len() - MAC_LEN);
    let (body, mac1) = rest.split_at(rest.len() - MAC_LEN);
    (body, mac1, mac2)
}

/// Keyed BLAKE2s with 16 bytes of output (RFC 7693).
fn mac(key: &[u8], parts: &[&[u8]]) -> Mac {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("BLAKE2s takes keys of up to 32 bytes");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize_fixed().into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::start;
    use super::*;
    use crate::keys::PrivateKey;
    use crate::packet::message::{INITIATION_LEN, Message};

    struct Setup {
        now: Instant,
        receiver: MacKeys,
        checker: CookieChecker,
        jar: CookieJar,
        randomness: Randomness,
        message: Vec<u8>,
    }

    const FROM: &str = "192.0.2.1:1000";

    fn setup() -> Setup {
        let now = start();
        Setup {
            now,
            receiver: MacKeys::new(&PrivateKey::from_bytes([1; 32]).unwrap().public_key()),
            checker: CookieChecker::default(),
            jar: CookieJar::default(),
            randomness: Randomness::new([1; 32]),
            message: vec![5; INITIATION_LEN],
        }
    }

    impl Setup {
        fn write(&mut self, now: Instant) {
            self.jar.write_macs(now, &self.receiver, &mut self.message);
        }

        fn verify(&mut self, now: Instant, from: &str) -> bool {
            self.checker.verify_mac2(now, from.parse().unwrap(), &self.message, &mut self.randomness)
        }

        fn reply(&mut self, now: Instant, from: &str) -> Vec<u8> {
            let from = from.parse().unwrap();
            self.checker.reply(now, from, &self.receiver, 7, &self.message, &mut self.randomness)
        }

        fn consume(&mut self, now: Instant, reply: &[u8]) -> Option<()> {
            let Ok(Message::CookieReply(reply)) = Message::parse(reply) else { panic!("not a cookie reply") };
            assert_eq!(reply.receiver_index(), 7);
            self.jar.consume_reply(now, &self.receiver, &reply)
        }
    }

    #[test]
    fn mac1_is_made_with_the_receivers_key_only() {
        let mut setup = setup();
        setup.write(setup.now);
        assert!(setup.receiver.verify_mac1(&setup.message));
        assert!(!MacKeys::new(&PrivateKey::from_bytes([2; 32]).unwrap().public_key()).verify_mac1(&setup.message));
        setup.message[3] ^= 1;
        assert!(!setup.receiver.verify_mac1(&setup.message));
    }

    #[test]
    fn a_cookie_is_bound_to_address_and_port_and_ends_with_its_secret() {
        let mut setup = setup();
        let now = setup.now;
        setup.write(now);
        assert!(!setup.verify(now, FROM));
        let reply = setup.reply(now, FROM);
        setup.consume(now, &reply).unwrap();
        setup.write(now);
        assert!(setup.verify(now, FROM));
        assert!(!setup.verify(now, "192.0.2.1:1001"));
        assert!(!setup.verify(now, "192.0.2.2:1000"));
        assert!(setup.verify(now + COOKIE_SECRET_LIFETIME - Duration::from_secs(1), FROM));
        assert!(!setup.verify(now + COOKIE_SECRET_LIFETIME, FROM));
    }

    #[test]
    fn an_old_cookie_is_not_sent() {
        let mut setup = setup();
        let now = setup.now;
        setup.write(now);
        let reply = setup.reply(now, FROM);
        setup.consume(now, &reply).unwrap();
        setup.write(now + COOKIE_LIFETIME);
        assert_eq!(setup.message[INITIATION_LEN - MAC_LEN..], [0; MAC_LEN]);
    }

    #[test]
    fn a_reply_is_taken_once_and_only_for_the_last_message() {
        let mut setup = setup();
        let now = setup.now;
        setup.write(now);
        let old = setup.reply(now, FROM);
        setup.message[0] ^= 1;
        setup.write(now);
        assert!(setup.consume(now, &old).is_none());
        let mut reply = setup.reply(now, FROM);
        reply[40] ^= 1;
        assert!(setup.consume(now, &reply).is_none());
        reply[40] ^= 1;
        assert!(setup.consume(now, &reply).is_some());
        assert!(setup.consume(now, &reply).is_none());
    }
}

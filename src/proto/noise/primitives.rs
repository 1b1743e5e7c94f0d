//! The primitives that `snow` runs the handshake with, instead of its own.
//!
//! It knows nothing of patterns or messages.

use blake2::Blake2s256;
use blake2::digest::Digest as _;
use ring::digest::{Context, SHA256};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use x25519_dalek::StaticSecret;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::keys::KEY_LEN;
use crate::packet::message::{DH_LEN, TAG_LEN};
use crate::proto::aead::AeadKey;
use crate::proto::wiped::Wiped;

use super::Suite;

/// Gives snow its primitives: ring's ciphers and SHA-256, dalek's X25519 with the check for a zero result, BLAKE2s, and
/// one ephemeral key's worth of randomness that was drawn before. All of them leave zeros behind, unlike snow's own.
pub(super) struct Resolver {
    pub(super) ephemeral: Zeroizing<[u8; DH_LEN]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(OneEphemeral(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<X25519>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        match choice {
            HashChoice::SHA256 => Some(Box::<Sha256Hash>::default()),
            HashChoice::Blake2s => Some(Box::<Blake2sHash>::default()),
            _ => None,
        }
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        let suite = match choice {
            CipherChoice::AESGCM => Suite::Aes256Gcm,
            CipherChoice::ChaChaPoly => Suite::ChaCha20Poly1305,
        };
        Some(Box::new(SuiteCipher { suite, key: None }))
    }
}

struct OneEphemeral(Option<Zeroizing<[u8; DH_LEN]>>);

impl Random for OneEphemeral {
    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.take().filter(|bytes| bytes.len() == destination.len()).ok_or(snow::Error::Rng)?;
        destination.copy_from_slice(bytes.as_slice());
        Ok(())
    }
}

#[derive(Default, ZeroizeOnDrop)]
struct X25519 {
    private: [u8; DH_LEN],
    #[zeroize(skip)]
    public: [u8; DH_LEN],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        DH_LEN
    }

    fn priv_len(&self) -> usize {
        DH_LEN
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        self.public = x25519_dalek::PublicKey::from(&StaticSecret::from(self.private)).to_bytes();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = Zeroizing::new([0; DH_LEN]);
        rng.try_fill_bytes(private.as_mut_slice())?;
        self.set(private.as_slice());
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public: [u8; DH_LEN] = public[..DH_LEN].try_into().map_err(|_| snow::Error::Dh)?;
        let shared = StaticSecret::from(self.private).diffie_hellman(&public.into());
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        out[..DH_LEN].copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

struct SuiteCipher {
    suite: Suite,
    key: Option<AeadKey>,
}

impl SuiteCipher {
    fn key(&self) -> &AeadKey {
        self.key.as_ref().expect("snow sets a key before it uses one")
    }
}

impl Cipher for SuiteCipher {
    fn name(&self) -> &'static str {
        match self.suite {
            Suite::Aes256Gcm => "AESGCM",
            Suite::ChaCha20Poly1305 => "ChaChaPoly",
        }
    }

    fn set(&mut self, key: &[u8; KEY_LEN]) {
        self.key = Some(AeadKey::new(self.suite, key));
    }

    fn encrypt(&self, nonce: u64, associated: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (body, rest) = out.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        rest[..TAG_LEN].copy_from_slice(&self.key().seal(nonce, associated, body));
        plaintext.len() + TAG_LEN
    }

    fn decrypt(&self, nonce: u64, associated: &[u8], ciphertext: &[u8], out: &mut [u8]) -> Result<usize, snow::Error> {
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let plaintext = self.key().open(nonce, associated, &mut buffer).map_err(|_| snow::Error::Decrypt)?;
        out[..plaintext.len()].copy_from_slice(plaintext);
        Ok(plaintext.len())
    }
}

#[derive(Default)]
struct Blake2sHash(Wiped<Blake2s256>);

impl Hash for Blake2sHash {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        *self.0 = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        self.0.finalize_into_reset((&mut out[..32]).into());
    }
}

struct Sha256Hash(Wiped<Context>);

impl Default for Sha256Hash {
    fn default() -> Self {
        Self(Wiped::new(Context::new(&SHA256)))
    }
}

impl Hash for Sha256Hash {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        *self.0 = Context::new(&SHA256);
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let context = std::mem::replace(&mut *self.0, Context::new(&SHA256));
        out[..32].copy_from_slice(context.finish().as_ref());
    }
}

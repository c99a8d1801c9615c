//! Cryptographic primitives for snow: X25519 and the AEADs by aws-lc-rs,
//! BLAKE2s by the `blake2` crate. The ephemeral key comes from bytes the
//! caller drew, the static key from a handle parsed once; neither is copied
//! through snow's buffers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{
    AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use aws_lc_rs::agreement;
use blake2::{Blake2s256, Digest};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

const TAG_LEN: usize = 16;

/// By public key; `None` until the result was needed.
type SharedSecrets = HashMap<[u8; 32], Option<Zeroizing<[u8; 32]>>>;

/// An X25519 key pair ready for use. aws-lc-rs wipes the secret when dropped.
pub(super) struct KeyPair {
    secret: agreement::PrivateKey,
    pub(super) public: [u8; 32],
    /// Results with the static keys of peers, which come up in each of their
    /// handshakes: computed once, a quarter of an answer's cost saved.
    shared: Mutex<SharedSecrets>,
}

impl KeyPair {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        let secret = agreement::PrivateKey::from_private_key(&agreement::X25519, secret)
            .expect("any 32 bytes are an X25519 secret key");
        let public = secret
            .compute_public_key()
            .ok()
            .and_then(|key| key.as_ref().try_into().ok())
            .expect("an X25519 public key has 32 bytes");
        Self { secret, public, shared: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, SharedSecrets> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the result with `public` once it was needed.
    pub(super) fn remember(&self, public: &[u8; 32]) {
        self.lock().entry(*public).or_default();
    }

    /// Wipes it.
    pub(super) fn forget(&self, public: &[u8; 32]) {
        self.lock().remove(public);
    }

    fn agree(&self, public: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, snow::Error> {
        let known = self.lock().get(public).cloned();
        if let Some(Some(shared)) = known {
            return Ok(shared);
        }
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, public);
        let shared = agreement::agree(&self.secret, peer, snow::Error::Dh, |shared| {
            <[u8; 32]>::try_from(shared).map(Zeroizing::new).map_err(|_| snow::Error::Dh)
        })?;
        if known.is_some() {
            self.lock().insert(*public, Some(shared.clone()));
        }
        Ok(shared)
    }
}

/// What one handshake takes its primitives from.
pub(super) struct Resolver {
    /// Our static key; initiators of Noise_NK have none.
    pub(super) local: Option<Arc<KeyPair>>,
    /// The ephemeral secret.
    pub(super) ephemeral: Zeroizing<[u8; 32]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Drawn(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519)
            .then(|| Box::new(X25519 { local: self.local.clone(), key: None }) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::Blake2s)
            .then(|| Box::new(Blake2s(Blake2s256::new())) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        let aes = matches!(choice, CipherChoice::AESGCM);
        if !aes && !matches!(choice, CipherChoice::ChaChaPoly) {
            return None;
        }
        Some(Box::new(Aead { aes, key: None }))
    }
}

/// Gives the drawn bytes out once; a second demand fails instead of repeating
/// an ephemeral key.
struct Drawn(Option<Zeroizing<[u8; 32]>>);

impl Random for Drawn {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.take().ok_or(snow::Error::Rng)?;
        if dest.len() != bytes.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(&bytes[..]);
        Ok(())
    }
}

/// snow calls `set` on the static key's object only and `generate` on the
/// ephemeral one's only, so `set` means "be the static key" whatever the bytes.
struct X25519 {
    local: Option<Arc<KeyPair>>,
    key: Option<Arc<KeyPair>>,
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }
    fn pub_len(&self) -> usize {
        32
    }
    fn priv_len(&self) -> usize {
        32
    }
    fn set(&mut self, _: &[u8]) {
        self.key = self.local.clone();
    }
    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut secret = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut secret[..])?;
        self.key = Some(Arc::new(KeyPair::new(&secret)));
        Ok(())
    }
    fn pubkey(&self) -> &[u8] {
        self.key.as_ref().map_or(&[0; 32], |key| &key.public)
    }
    fn privkey(&self) -> &[u8] {
        // Only snow's `generate_keypair`, which is not used here, would ask.
        &[0; 32]
    }
    /// Fails on an all-zero result (a low-order point), as RFC 7748 section 6.1
    /// advises and WireGuard does.
    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let key = self.key.as_ref().ok_or(snow::Error::Dh)?;
        let public = pubkey.first_chunk().ok_or(snow::Error::Dh)?;
        let out = out.first_chunk_mut().ok_or(snow::Error::Dh)?;
        *out = *key.agree(public)?;
        Ok(())
    }
}

struct Aead {
    aes: bool,
    key: Option<LessSafeKey>,
}

impl Aead {
    /// Noise section 12: 4 zero bytes, then the counter, little-endian for
    /// ChaChaPoly and big-endian for AESGCM.
    fn nonce(&self, counter: u64) -> Nonce {
        let mut bytes = [0; NONCE_LEN];
        bytes[4..].copy_from_slice(&if self.aes {
            counter.to_be_bytes()
        } else {
            counter.to_le_bytes()
        });
        Nonce::assume_unique_for_key(bytes)
    }

    fn key(&self) -> &LessSafeKey {
        self.key.as_ref().expect("snow sets a key before it uses one")
    }
}

impl Cipher for Aead {
    fn name(&self) -> &'static str {
        if self.aes { "AESGCM" } else { "ChaChaPoly" }
    }
    fn set(&mut self, key: &[u8; 32]) {
        let algorithm = if self.aes { &AES_256_GCM } else { &CHACHA20_POLY1305 };
        self.key = Some(LessSafeKey::new(
            UnboundKey::new(algorithm, key).expect("both AEADs take 32-byte keys"),
        ));
    }
    fn encrypt(&self, counter: u64, ad: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let end = plaintext.len() + TAG_LEN;
        out[..plaintext.len()].copy_from_slice(plaintext);
        let tag = self
            .key()
            .seal_in_place_separate_tag(
                self.nonce(counter),
                Aad::from(ad),
                &mut out[..plaintext.len()],
            )
            .expect("handshake fields are far below the AEAD's length limit");
        out[plaintext.len()..end].copy_from_slice(tag.as_ref());
        end
    }
    fn decrypt(
        &self,
        counter: u64,
        ad: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let len = ciphertext.len().checked_sub(TAG_LEN).ok_or(snow::Error::Decrypt)?;
        let (text, tag) = ciphertext.split_at(len);
        let out = out.get_mut(..len).ok_or(snow::Error::Decrypt)?;
        self.key()
            .open_separate_gather(self.nonce(counter), Aad::from(ad), text, tag, out)
            .map_err(|_| snow::Error::Decrypt)?;
        Ok(len)
    }
}

struct Blake2s(Blake2s256);

impl Hash for Blake2s {
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
        self.0 = Blake2s256::new();
    }
    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }
    fn result(&mut self, out: &mut [u8]) {
        let state = std::mem::replace(&mut self.0, Blake2s256::new());
        out[..32].copy_from_slice(&state.finalize());
    }
}

#[cfg(test)]
mod tests {
    //! Published vectors for exactly the two patterns in use, from the
    //! cacophony test suite (<https://github.com/haskell-cryptography/cacophony>,
    //! public domain), run through this resolver.

    use super::*;
    use data_encoding::HEXLOWER;

    struct Vector {
        name: &'static str,
        prologue: &'static str,
        psk: &'static str,
        init_ephemeral: &'static str,
        init_static: &'static str,
        resp_ephemeral: &'static str,
        resp_static: &'static str,
        handshake_hash: &'static str,
        /// Payload and ciphertext of each message, alternating initiator and
        /// responder; the first two are the handshake.
        messages: &'static [(&'static str, &'static str)],
    }

    include!("cacophony_vectors.rs");

    fn hex(text: &str) -> Vec<u8> {
        HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    fn key(text: &str) -> [u8; 32] {
        hex(text).try_into().unwrap()
    }

    fn builder<'a>(vector: &Vector, local: &str, ephemeral: &str) -> snow::Builder<'a> {
        snow::Builder::with_resolver(
            vector.name.parse().unwrap(),
            Box::new(Resolver {
                local: Some(Arc::new(KeyPair::new(&key(local)))),
                ephemeral: Zeroizing::new(key(ephemeral)),
            }),
        )
        .local_private_key(&[0; 32])
        .unwrap()
    }

    #[test]
    fn the_published_noise_vectors_hold() {
        for vector in VECTORS {
            let prologue = hex(vector.prologue);
            let psk = key(vector.psk);
            let remote = KeyPair::new(&key(vector.resp_static)).public;
            let mut initiator = builder(vector, vector.init_static, vector.init_ephemeral)
                .prologue(&prologue)
                .unwrap()
                .psk(2, &psk)
                .unwrap()
                .remote_public_key(&remote)
                .unwrap()
                .build_initiator()
                .unwrap();
            let mut responder = builder(vector, vector.resp_static, vector.resp_ephemeral)
                .prologue(&prologue)
                .unwrap()
                .build_responder()
                .unwrap();
            responder.set_psk(2, &psk).unwrap();
            let mut wire = [0; 256];
            let mut text = [0; 256];
            for (i, (payload, ciphertext)) in vector.messages[..2].iter().enumerate() {
                let (from, to) = if i == 0 {
                    (&mut initiator, &mut responder)
                } else {
                    (&mut responder, &mut initiator)
                };
                let n = from.write_message(&hex(payload), &mut wire).unwrap();
                assert_eq!(HEXLOWER.encode(&wire[..n]), *ciphertext, "{} {i}", vector.name);
                let n = to.read_message(&wire[..n], &mut text).unwrap();
                assert_eq!(HEXLOWER.encode(&text[..n]), *payload);
            }
            assert_eq!(HEXLOWER.encode(initiator.get_handshake_hash()), vector.handshake_hash);
            // The transport messages, sealed by the keys of the raw split as
            // link sessions use them.
            let (to_responder, to_initiator) = initiator.dangerously_get_raw_split();
            for (i, (payload, ciphertext)) in vector.messages[2..].iter().enumerate() {
                let mut aead = Aead { aes: vector.name.contains("AESGCM"), key: None };
                aead.set(if i % 2 == 0 { &to_responder } else { &to_initiator });
                let n = aead.encrypt(i as u64 / 2, &[], &hex(payload), &mut wire);
                assert_eq!(HEXLOWER.encode(&wire[..n]), *ciphertext);
            }
        }
    }

    #[test]
    fn an_ephemeral_key_is_given_out_once() {
        let mut drawn = Drawn(Some(Zeroizing::new([7; 32])));
        let mut out = [0; 32];
        assert!(drawn.try_fill_bytes(&mut out).is_ok());
        assert!(drawn.try_fill_bytes(&mut out).is_err());
    }

    #[test]
    fn remembered_results_are_the_computed_ones_and_no_others_are_kept() {
        let (ours, theirs) = (KeyPair::new(&[9; 32]), KeyPair::new(&[3; 32]));
        let expected = theirs.agree(&ours.public).unwrap();
        assert_eq!(ours.agree(&theirs.public).unwrap(), expected);
        assert!(ours.lock().is_empty());
        ours.remember(&theirs.public);
        for _ in 0..3 {
            assert_eq!(ours.agree(&theirs.public).unwrap(), expected);
        }
        assert_eq!(ours.lock().get(&theirs.public), Some(&Some(expected)));
        ours.forget(&theirs.public);
        assert!(ours.lock().is_empty());
    }

    #[test]
    fn low_order_points_are_refused() {
        let local = Arc::new(KeyPair::new(&[9; 32]));
        let dh = X25519 { local: Some(local.clone()), key: Some(local) };
        let mut one = [0; 32];
        one[0] = 1;
        let mut out = [0; 56];
        assert!(dh.dh(&[0; 56], &mut out).is_err());
        assert!(dh.dh(&one, &mut out).is_err());
        assert!(dh.dh(&KeyPair::new(&[3; 32]).public, &mut out).is_ok());
    }
}

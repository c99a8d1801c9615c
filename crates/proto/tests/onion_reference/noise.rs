//! `Noise_NK_25519_*_BLAKE2s` from the Noise specification, for what section 20
//! of `docs/protocol.md` makes of it.

use aes_gcm::aead::{AeadInPlace, KeyInit as _};
use blake2::{Blake2s256, Digest as _};
use warren_types::Suite;
use x25519_dalek::{PublicKey, StaticSecret};

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Blake2s256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// RFC 2104, blocks of 64 bytes.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(key).for_each(|(a, b)| *a ^= b);
        block
    };
    let inner = hash(&[&pad(0x36)[..], &parts.concat()]);
    hash(&[&pad(0x5c), &inner])
}

/// Noise section 4.3, two outputs.
fn hkdf(ck: &[u8; 32], input: &[u8]) -> ([u8; 32], [u8; 32]) {
    let temp = hmac(ck, &[input]);
    let first = hmac(&temp, &[&[1]]);
    (first, hmac(&temp, &[&first, &[2]]))
}

struct State {
    suite: Suite,
    ck: [u8; 32],
    h: [u8; 32],
    key: [u8; 32],
}

impl State {
    fn mix_hash(&mut self, data: &[u8]) {
        self.h = hash(&[&self.h, data]);
    }

    fn mix_key(&mut self, secret: &StaticSecret, public: &PublicKey) {
        (self.ck, self.key) = hkdf(&self.ck, secret.diffie_hellman(public).as_bytes());
    }

    /// Each key seals one payload, so the nonce is always that of counter 0.
    fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut text = payload.to_vec();
        let (key, nonce) = (self.key, [0; 12]);
        let tag = match self.suite {
            Suite::Aes256Gcm => aes_gcm::Aes256Gcm::new(&key.into()).encrypt_in_place_detached(
                &nonce.into(),
                &self.h,
                &mut text,
            ),
            Suite::ChaCha20Poly1305 => chacha20poly1305::ChaCha20Poly1305::new(&key.into())
                .encrypt_in_place_detached(&nonce.into(), &self.h, &mut text),
        };
        text.extend(tag.unwrap());
        self.mix_hash(&text);
        text
    }
}

/// A whole handshake.
pub(crate) struct Handshake {
    pub(crate) first: Vec<u8>,
    pub(crate) second: Vec<u8>,
    pub(crate) hash: [u8; 32],
    /// The initiator's key of Split(), then the responder's.
    pub(crate) keys: [u8; 64],
}

pub(crate) fn nk(
    suite: Suite,
    onion_secret: [u8; 32],
    client_ephemeral: [u8; 32],
    hop_ephemeral: [u8; 32],
    payloads: [&[u8]; 2],
) -> Handshake {
    let name = match suite {
        Suite::Aes256Gcm => "Noise_NK_25519_AESGCM_BLAKE2s",
        Suite::ChaCha20Poly1305 => "Noise_NK_25519_ChaChaPoly_BLAKE2s",
    };
    let mut h = [0; 32];
    if name.len() <= 32 {
        h[..name.len()].copy_from_slice(name.as_bytes());
    } else {
        h = hash(&[name.as_bytes()]);
    }
    let mut state = State { suite, ck: h, h, key: [0; 32] };
    let onion = StaticSecret::from(onion_secret);
    let (client, hop) = (StaticSecret::from(client_ephemeral), StaticSecret::from(hop_ephemeral));
    let [onion_public, client_public, hop_public] = [&onion, &client, &hop].map(PublicKey::from);
    state.mix_hash(b"Warren v1 circuit");
    state.mix_hash(onion_public.as_bytes());
    // -> e, es
    state.mix_hash(client_public.as_bytes());
    state.mix_key(&client, &onion_public);
    let first = [&client_public.as_bytes()[..], &state.seal(payloads[0])].concat();
    // <- e, ee
    state.mix_hash(hop_public.as_bytes());
    state.mix_key(&hop, &client_public);
    let second = [&hop_public.as_bytes()[..], &state.seal(payloads[1])].concat();
    let (ours, theirs) = hkdf(&state.ck, b"");
    let keys = [ours, theirs].concat().try_into().unwrap();
    Handshake { first, second, hash: state.h, keys }
}

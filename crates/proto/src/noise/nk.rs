//! `Noise_NK` over X25519 and BLAKE2s: one message each way, in which the
//! initiator knows the responder's static key and says nothing of itself. For
//! circuits (`crate::onion::handshake`).
//!
//! The results are raw: the handshake's hash and both keys of Split(), for the
//! caller to derive its own from.

use std::sync::OnceLock;

use rand_core::CryptoRng;
use snow::HandshakeState;
use snow::params::NoiseParams;
use warren_types::Suite;
use zeroize::Zeroizing;

use super::handshake::{HandshakeError, StaticKey};
use super::resolver::Resolver;

/// Bytes a message adds to its payload: an ephemeral key and a tag.
pub const OVERHEAD: usize = 32 + 16;

const PROLOGUE: &[u8] = b"Warren v1 circuit";

/// What both ends know after the handshake.
pub struct Shared {
    /// Noise's handshake hash h.
    pub hash: [u8; 32],
    /// The two keys of Split(), initiator's first.
    pub keys: Zeroizing<[u8; 64]>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared(redacted)")
    }
}

fn params(suite: Suite) -> NoiseParams {
    static PARSED: [OnceLock<NoiseParams>; 2] = [OnceLock::new(), OnceLock::new()];
    let name = match suite {
        Suite::Aes256Gcm => "Noise_NK_25519_AESGCM_BLAKE2s",
        Suite::ChaCha20Poly1305 => "Noise_NK_25519_ChaChaPoly_BLAKE2s",
    };
    PARSED[suite as usize].get_or_init(|| name.parse().expect("both names are Noise names")).clone()
}

fn builder<'a>(
    suite: Suite,
    local: Option<&StaticKey>,
    rng: &mut dyn CryptoRng,
) -> snow::Builder<'a> {
    let mut ephemeral = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut ephemeral[..]);
    let resolver = Resolver { local: local.map(StaticKey::pair), ephemeral };
    snow::Builder::with_resolver(params(suite), Box::new(resolver))
        .prologue(PROLOGUE)
        .expect("it is set once")
}

fn shared(state: &mut HandshakeState) -> Shared {
    let (first, second) = state.dangerously_get_raw_split();
    let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
    let mut keys = Zeroizing::new([0; 64]);
    keys[..32].copy_from_slice(&first[..]);
    keys[32..].copy_from_slice(&second[..]);
    let mut hash = [0; 32];
    hash.copy_from_slice(state.get_handshake_hash());
    Shared { hash, keys }
}

/// A handshake that waits for its answer.
pub struct Initiator(Box<HandshakeState>);

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Initiator(redacted)")
    }
}

impl Initiator {
    /// The first message, to the owner of `responder`, with `payload`.
    ///
    /// # Errors
    /// [`HandshakeError::NotAuthentic`] when `responder` is a low-order point.
    pub fn start(
        suite: Suite,
        responder: &[u8; 32],
        payload: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let mut state = builder(suite, None, rng)
            .remote_public_key(responder)
            .and_then(snow::Builder::build_initiator)
            .map_err(|_| HandshakeError::NotAuthentic)?;
        let mut message = vec![0; payload.len() + OVERHEAD];
        state.write_message(payload, &mut message).map_err(|_| HandshakeError::NotAuthentic)?;
        Ok((Self(Box::new(state)), message))
    }

    /// Reads the answer: its payload and what is shared.
    ///
    /// # Errors
    /// [`HandshakeError`]; the handshake is over then.
    pub fn finish(mut self, message: &[u8]) -> Result<(Vec<u8>, Shared), HandshakeError> {
        let len = message.len().checked_sub(OVERHEAD).ok_or(HandshakeError::Malformed)?;
        let mut payload = vec![0; len];
        self.0.read_message(message, &mut payload).map_err(|_| HandshakeError::NotAuthentic)?;
        Ok((payload, shared(&mut self.0)))
    }
}

/// Answers a first message. `answer` makes the payload of the second from that
/// of the first; `None` from it refuses.
///
/// # Errors
/// [`HandshakeError`]: not made for `key`, altered, or refused.
pub fn respond(
    suite: Suite,
    key: &StaticKey,
    message: &[u8],
    answer: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    rng: &mut dyn CryptoRng,
) -> Result<(Vec<u8>, Shared), HandshakeError> {
    let len = message.len().checked_sub(OVERHEAD).ok_or(HandshakeError::Malformed)?;
    let mut state = builder(suite, Some(key), rng)
        .local_private_key(&[0; 32])
        .and_then(snow::Builder::build_responder)
        .map_err(|_| HandshakeError::NotAuthentic)?;
    let mut payload = vec![0; len];
    state.read_message(message, &mut payload).map_err(|_| HandshakeError::NotAuthentic)?;
    let payload = answer(&payload).ok_or(HandshakeError::Malformed)?;
    let mut message = vec![0; payload.len() + OVERHEAD];
    state.write_message(&payload, &mut message).map_err(|_| HandshakeError::NotAuthentic)?;
    Ok((message, shared(&mut state)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rng::TestRng;

    #[test]
    fn both_ends_share_the_same_and_only_with_the_right_key() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let mut rng = TestRng::new(3);
            let key = StaticKey::from_bytes(&[7; 32]);
            let (initiator, first) =
                Initiator::start(suite, &key.public().0, b"question", &mut rng).unwrap();
            assert_eq!(first.len(), 8 + OVERHEAD);
            let (second, ours) =
                respond(suite, &key, &first, |said| Some([said, b"!"].concat()), &mut rng).unwrap();
            let (said, theirs) = initiator.finish(&second).unwrap();
            assert_eq!(said, b"question!");
            assert_eq!((ours.hash, &ours.keys[..]), (theirs.hash, &theirs.keys[..]));
            let other = StaticKey::from_bytes(&[8; 32]);
            for i in 0..first.len() {
                let mut bad = first.clone();
                bad[i] ^= 1;
                assert!(respond(suite, &key, &bad, |_| Some(Vec::new()), &mut rng).is_err());
            }
            assert!(respond(suite, &other, &first, |_| Some(Vec::new()), &mut rng).is_err());
            assert!(respond(suite, &key, &first[..47], |_| Some(Vec::new()), &mut rng).is_err());
        }
    }
}

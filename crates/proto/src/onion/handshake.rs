//! The handshake of one hop: `Noise_NK`, in whose payloads an ephemeral
//! ML-KEM-768 key goes out and a ciphertext comes back. Keys follow from both,
//! so a circuit stays secret unless X25519 and ML-KEM are both broken, and stays
//! so when the hop's onion key is taken later.
//!
//! In: the hop's onion key, an RNG for X25519. The KEM's randomness is the
//! library's own: it takes none from outside. Deliberately not here: who extends
//! to whom ([`super::relay`], [`super::client`]).

use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use rand_core::CryptoRng;
use warren_types::Suite;
use zeroize::Zeroizing;

use super::keys::HopSecrets;
use crate::noise::nk::{self, Shared};
use crate::noise::{HandshakeError, StaticKey};

const ENCAPSULATION_KEY: usize = 1184;
const CIPHERTEXT: usize = 1088;
/// Bytes of the first message.
pub const FIRST_LEN: usize = ENCAPSULATION_KEY + nk::OVERHEAD;
/// Bytes of the second message.
pub const SECOND_LEN: usize = CIPHERTEXT + nk::OVERHEAD;
/// Bytes of the onion key that tell which of a hop's keys is meant.
pub const HINT_LEN: usize = 4;

/// What both ends have of one hop.
#[derive(Debug)]
pub struct Agreed {
    /// The keys.
    pub secrets: HopSecrets,
    /// The handshake's hash: names the circuit in proofs.
    pub hash: [u8; 32],
}

fn agree(suite: Suite, shared: &Shared, kem: &[u8]) -> Result<Agreed, HandshakeError> {
    let mut all = Zeroizing::new([0; 96]);
    all[..64].copy_from_slice(&shared.keys[..]);
    if kem.len() != 32 {
        return Err(HandshakeError::Malformed);
    }
    all[64..].copy_from_slice(kem);
    Ok(Agreed { secrets: HopSecrets::derive(suite, &shared.hash, &all), hash: shared.hash })
}

/// A client's handshake with one hop, on its way.
pub struct Pending {
    suite: Suite,
    noise: nk::Initiator,
    kem: DecapsulationKey,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending({}, redacted)", self.suite)
    }
}

impl Pending {
    /// The first message to the hop with `onion_key`.
    ///
    /// # Errors
    /// The key is a low-order point, or the library cannot make a KEM key.
    pub fn start(
        suite: Suite,
        onion_key: &[u8; 32],
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let kem =
            DecapsulationKey::generate(&ML_KEM_768).map_err(|_| HandshakeError::NotAuthentic)?;
        let public = kem
            .encapsulation_key()
            .and_then(|key| key.key_bytes().map(|bytes| bytes.as_ref().to_vec()))
            .map_err(|_| HandshakeError::NotAuthentic)?;
        let (noise, first) = nk::Initiator::start(suite, onion_key, &public, rng)?;
        Ok((Self { suite, noise, kem }, first))
    }

    /// Reads the second message.
    ///
    /// # Errors
    /// It is not the hop's.
    pub fn finish(self, second: &[u8]) -> Result<Agreed, HandshakeError> {
        let second = second.get(..SECOND_LEN).ok_or(HandshakeError::Malformed)?;
        let (ciphertext, shared) = self.noise.finish(second)?;
        let secret = self
            .kem
            .decapsulate(Ciphertext::from(&ciphertext[..]))
            .map_err(|_| HandshakeError::NotAuthentic)?;
        agree(self.suite, &shared, secret.as_ref())
    }
}

/// What tells a hop which of its keys a first message is for.
pub fn hint(onion_key: &[u8; 32]) -> [u8; HINT_LEN] {
    *onion_key.first_chunk().expect("32 bytes")
}

/// A hop's answer to a first message.
///
/// # Errors
/// It was not made for `key`, or its KEM key is none.
pub fn respond(
    suite: Suite,
    key: &StaticKey,
    first: &[u8],
    rng: &mut dyn CryptoRng,
) -> Result<(Vec<u8>, Agreed), HandshakeError> {
    let first = first.get(..FIRST_LEN).ok_or(HandshakeError::Malformed)?;
    let mut secret = Zeroizing::new(Vec::new());
    let answer = |public: &[u8]| {
        let key = EncapsulationKey::new(&ML_KEM_768, public).ok()?;
        let (ciphertext, shared) = key.encapsulate().ok()?;
        secret.extend_from_slice(shared.as_ref());
        Some(ciphertext.as_ref().to_vec())
    };
    let (second, shared) = nk::respond(suite, key, first, answer, rng)?;
    Ok((second, agree(suite, &shared, &secret)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rng::TestRng;

    #[test]
    fn client_and_hop_agree() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let mut rng = TestRng::new(5);
            let key = StaticKey::from_bytes(&[3; 32]);
            let (pending, first) = Pending::start(suite, &key.public().0, &mut rng).unwrap();
            assert_eq!(first.len(), FIRST_LEN);
            let (second, hop) = respond(suite, &key, &first, &mut rng).unwrap();
            assert_eq!(second.len(), SECOND_LEN);
            let client = pending.finish(&second).unwrap();
            assert_eq!(client.hash, hop.hash);
            assert_eq!(client.secrets.forward_chain, hop.secrets.forward_chain);
            assert_eq!(client.secrets.backward_prefix, hop.secrets.backward_prefix);
            assert_ne!(client.secrets.forward_chain, client.secrets.backward_chain);
            let other = StaticKey::from_bytes(&[4; 32]);
            assert!(respond(suite, &other, &first, &mut rng).is_err());
            assert!(respond(suite, &key, &first[1..], &mut rng).is_err());
            let (pending, _) = Pending::start(suite, &key.public().0, &mut rng).unwrap();
            assert!(pending.finish(&second).is_err(), "an answer to another question");
        }
    }

    /// FIPS 203 section 7.2: coefficients are below 3329.
    #[test]
    fn a_kem_key_that_is_none_is_refused() {
        let (mut rng, key) = (TestRng::new(6), StaticKey::from_bytes(&[3; 32]));
        let mut answer = |payload: &[u8]| {
            let suite = Suite::Aes256Gcm;
            let start = nk::Initiator::start(suite, &key.public().0, payload, &mut rng);
            respond(suite, &key, &start.unwrap().1, &mut rng)
        };
        assert!(answer(&[0; ENCAPSULATION_KEY]).is_ok());
        let mut bad = [0; ENCAPSULATION_KEY];
        bad[..2].copy_from_slice(&3329u16.to_le_bytes());
        assert!(answer(&bad).is_err());
        assert!(answer(&[0xff; ENCAPSULATION_KEY]).is_err());
        assert!(answer(&[0; ENCAPSULATION_KEY - 1]).is_err());
    }
}

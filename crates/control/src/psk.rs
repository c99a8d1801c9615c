//! Authentication by one pre-shared key.
//!
//! In: the 256-bit key, and the TLS exporter value of the connection to prove
//! it on. Out: a proof in two messages, `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`
//! with the exporter as prologue, so that a proof is worth nothing on any other
//! connection; and a MAC for descriptors, so that a node relayed by others is
//! known to hold the key too. Invariants: the key itself is never sent; keys for
//! different uses are derived apart (HKDF-SHA256, RFC 5869). Deliberately not
//! here: passwords. The key must be 256 random bits.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac;
use rand_core::CryptoRng;
use snow::{Builder, HandshakeState};
use warren_types::{NetworkId, PresharedKey};
use zeroize::Zeroizing;

use crate::noise::Resolver;

/// The Noise protocol of the proof.
pub const PSK_PROTOCOL: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Length of each of the two proof messages: an ephemeral key and a tag, bytes.
pub const PROOF_LEN: usize = 48;
/// TLS exporter label (RFC 8446 section 7.5) of the prologue, 32 bytes.
pub const PSK_EXPORTER_LABEL: &[u8] = b"EXPORTER-warren-psk-proof";

/// The peer did not prove the pre-shared key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PskError {
    /// Wrong key, altered bytes, or a proof made for another connection.
    #[error("the pre-shared key does not match")]
    Mismatch,
    /// The local cryptographic library failed.
    #[error("the proof could not be computed")]
    Local,
}

/// Keys derived from the pre-shared key.
#[derive(Clone)]
pub struct PskKeys {
    noise: Zeroizing<[u8; 32]>,
    mac: Zeroizing<[u8; 32]>,
    network: NetworkId,
}

impl std::fmt::Debug for PskKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PskKeys({:?}, keys redacted)", self.network)
    }
}

struct Len<const N: usize>;

impl<const N: usize> KeyType for Len<N> {
    fn len(&self) -> usize {
        N
    }
}

impl PskKeys {
    /// Derives all keys: HKDF-SHA256 with salt `Warren v1 psk` and info
    /// `network id` (16 bytes), `noise` (32) and `descriptor mac` (32).
    pub fn derive(psk: &PresharedKey) -> Self {
        let prk = Salt::new(HKDF_SHA256, b"Warren v1 psk").extract(psk.expose());
        fn fill<const N: usize>(prk: &aws_lc_rs::hkdf::Prk, info: &str, out: &mut [u8; N]) {
            // Fails only for outputs above 8160 bytes (RFC 5869 section 2.3).
            let result = prk.expand(&[info.as_bytes()], Len::<N>).and_then(|okm| okm.fill(out));
            debug_assert!(result.is_ok(), "HKDF output length is in range");
        }
        let mut network = [0_u8; 16];
        let mut noise = Zeroizing::new([0_u8; 32]);
        let mut mac = Zeroizing::new([0_u8; 32]);
        fill(&prk, "network id", &mut network);
        fill(&prk, "noise", &mut noise);
        fill(&prk, "descriptor mac", &mut mac);
        Self { noise, mac, network: NetworkId(network) }
    }

    /// The network that this key admits to.
    pub fn network_id(&self) -> NetworkId {
        self.network
    }

    /// HMAC-SHA256 of a descriptor's body.
    pub fn descriptor_mac(&self, body: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, self.mac.as_slice()), body);
        let mut out = [0; 32];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// True when `mac` is [`PskKeys::descriptor_mac`] of `body`; constant time.
    pub fn check_descriptor_mac(&self, body: &[u8], mac: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.mac.as_slice());
        hmac::verify(&key, body, mac).is_ok()
    }

    fn builder(
        &self,
        exporter: &[u8; 32],
        initiator: bool,
        rng: &mut impl CryptoRng,
    ) -> Result<HandshakeState, PskError> {
        let mut ephemeral = Zeroizing::new([0_u8; 32]);
        rng.fill_bytes(ephemeral.as_mut_slice());
        let params = PSK_PROTOCOL.parse().map_err(|_| PskError::Local)?;
        let builder = Builder::with_resolver(params, Box::new(Resolver { ephemeral }))
            .psk(0, &self.noise)
            .and_then(|b| b.prologue(exporter))
            .map_err(|_| PskError::Local)?;
        let state = if initiator { builder.build_initiator() } else { builder.build_responder() };
        state.map_err(|_| PskError::Local)
    }

    /// Starts a proof on the connection whose exporter value is given (by the
    /// side that dialed). Returns the state and the first message.
    ///
    /// # Errors
    /// Only for local failures.
    pub fn initiate(
        &self,
        exporter: &[u8; 32],
        rng: &mut impl CryptoRng,
    ) -> Result<(PskProver, Vec<u8>), PskError> {
        let mut state = self.builder(exporter, true, rng)?;
        let mut message = vec![0_u8; PROOF_LEN];
        let len = state.write_message(&[], &mut message).map_err(|_| PskError::Local)?;
        message.truncate(len);
        Ok((PskProver(state), message))
    }

    /// Answers a first message (by the side that was dialed). An answer proves
    /// our key; that there is one means the peer proved its own.
    ///
    /// # Errors
    /// When the peer has another key.
    pub fn respond(
        &self,
        exporter: &[u8; 32],
        message: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, PskError> {
        let mut state = self.builder(exporter, false, rng)?;
        read_exact(&mut state, message)?;
        let mut answer = vec![0_u8; PROOF_LEN];
        let len = state.write_message(&[], &mut answer).map_err(|_| PskError::Local)?;
        answer.truncate(len);
        Ok(answer)
    }
}

fn read_exact(state: &mut HandshakeState, message: &[u8]) -> Result<(), PskError> {
    if message.len() != PROOF_LEN {
        return Err(PskError::Mismatch);
    }
    match state.read_message(message, &mut [0_u8; PROOF_LEN]) {
        Ok(0) => Ok(()),
        _ => Err(PskError::Mismatch),
    }
}

/// The dialing side between its message and the answer.
pub struct PskProver(HandshakeState);

impl std::fmt::Debug for PskProver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PskProver(redacted)")
    }
}

impl PskProver {
    /// Checks the answer.
    ///
    /// # Errors
    /// When the peer has another key.
    pub fn finish(mut self, answer: &[u8]) -> Result<(), PskError> {
        read_exact(&mut self.0, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;

    fn keys(byte: u8) -> PskKeys {
        PskKeys::derive(&PresharedKey::from_bytes([byte; 32]))
    }

    #[test]
    fn both_sides_prove_the_same_key() {
        let (mut r1, mut r2) = (TestRng::new(1), TestRng::new(2));
        let (prover, first) = keys(1).initiate(&[9; 32], &mut r1).unwrap();
        let answer = keys(1).respond(&[9; 32], &first, &mut r2).unwrap();
        assert_eq!((first.len(), answer.len()), (PROOF_LEN, PROOF_LEN));
        assert_eq!(prover.finish(&answer), Ok(()));
    }

    #[test]
    fn wrong_key_other_connection_and_altered_bytes_fail() {
        let (mut r1, mut r2) = (TestRng::new(1), TestRng::new(2));
        let (_, first) = keys(1).initiate(&[9; 32], &mut r1).unwrap();
        assert_eq!(keys(2).respond(&[9; 32], &first, &mut r2), Err(PskError::Mismatch));
        assert_eq!(
            keys(1).respond(&[8; 32], &first, &mut r2),
            Err(PskError::Mismatch),
            "a proof does not carry over to another connection"
        );
        for at in 0..first.len() {
            let mut bad = first.clone();
            bad[at] ^= 0x10;
            assert!(keys(1).respond(&[9; 32], &bad, &mut r2).is_err(), "byte {at}");
        }
        assert!(keys(1).respond(&[9; 32], &[], &mut r2).is_err());
        // A dialer is not satisfied by its own message, or by another key.
        let (prover, first) = keys(1).initiate(&[9; 32], &mut r1).unwrap();
        assert!(prover.finish(&first).is_err());
    }

    #[test]
    fn descriptor_macs() {
        let mac = keys(1).descriptor_mac(b"body");
        assert!(keys(1).check_descriptor_mac(b"body", &mac));
        assert!(!keys(2).check_descriptor_mac(b"body", &mac));
        assert!(!keys(1).check_descriptor_mac(b"bodz", &mac));
        assert!(!keys(1).check_descriptor_mac(b"body", &mac[..31]));
        assert_ne!(keys(1).network_id(), keys(2).network_id());
        assert!(!format!("{:?}", keys(1)).contains("noise"));
    }
}

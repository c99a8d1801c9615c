//! Ed25519 keys: a node's identity, and the signing key of a network's CA.
//!
//! In: 32 random bytes or a PKCS #8 file. Out: a [`NodeId`], signatures under a
//! domain label, and what `rcgen` needs to build certificates. Invariants: the
//! secret is zeroised on drop and never printed; every signature of ours covers
//! `LABEL || 0x00 || body`, so bytes signed for one purpose mean nothing for
//! another. Deliberately not here: files, randomness, policy.

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rand_core::CryptoRng;
use warren_types::NodeId;
use zeroize::Zeroizing;

/// Length of an Ed25519 signature, bytes (RFC 8032 section 5.1.6).
pub const SIGNATURE_LEN: usize = 64;

/// A key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a PKCS #8 document of an Ed25519 key.
    #[error("not an Ed25519 private key in PKCS #8 form")]
    NotPkcs8,
    /// The cryptographic library refused the key.
    #[error("the cryptographic library refused the key")]
    Refused,
}

/// An Ed25519 key pair: who a node is, or who a network's CA is.
pub struct IdentityKey {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; 32]>,
    id: NodeId,
}

impl std::fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityKey({:?}, secret redacted)", self.id)
    }
}

impl IdentityKey {
    /// A fresh key from `rng`.
    ///
    /// # Errors
    /// Only if the cryptographic library cannot work at all.
    pub fn generate(rng: &mut impl CryptoRng) -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0_u8; 32]);
        rng.fill_bytes(seed.as_mut_slice());
        Self::from_seed(&seed)
    }

    /// The key whose RFC 8032 secret is `seed`.
    ///
    /// # Errors
    /// Only if the cryptographic library cannot work at all.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| IdentityError::Refused)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| IdentityError::Refused)?;
        Ok(Self { pair, seed: Zeroizing::new(*seed), id: NodeId(public) })
    }

    /// Parses a PKCS #8 document (RFC 5958, version 1 or 2).
    ///
    /// # Errors
    /// When the bytes are anything else than one Ed25519 private key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_pkcs8(der)
            .or_else(|_| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der));
        let pair = pair.map_err(|_| IdentityError::NotPkcs8)?;
        let seed = pair.seed().map_err(|_| IdentityError::NotPkcs8)?;
        let seed = seed.as_be_bytes().map_err(|_| IdentityError::NotPkcs8)?;
        let bytes: &[u8; 32] = seed.as_ref().try_into().map_err(|_| IdentityError::NotPkcs8)?;
        Self::from_seed(bytes)
    }

    /// PKCS #8 version 1 (RFC 8410 section 7): 48 bytes, secret.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        const PREFIX: [u8; 16] = [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        let mut out = Zeroizing::new(Vec::with_capacity(48));
        out.extend_from_slice(&PREFIX);
        out.extend_from_slice(self.seed.as_slice());
        out
    }

    /// The public half.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Signs `label || 0x00 || body`.
    pub fn sign(&self, label: &str, body: &[u8]) -> [u8; SIGNATURE_LEN] {
        let signature = self.pair.sign(&labelled(label, body));
        let mut out = [0; SIGNATURE_LEN];
        out.copy_from_slice(signature.as_ref());
        out
    }
}

fn labelled(label: &str, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(label.len() + 1 + body.len());
    message.extend_from_slice(label.as_bytes());
    message.push(0);
    message.extend_from_slice(body);
    message
}

/// True when `signature` is `id`'s over `label || 0x00 || body`. Non-canonical
/// signatures (S not below the group order) are refused, as RFC 8032 demands.
pub fn verify(id: NodeId, label: &str, body: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, id.0).verify(&labelled(label, body), signature).is_ok()
}

/// Like [`verify`] for bytes without a label (the signed part of a certificate).
pub(crate) fn verify_bytes(id: NodeId, bytes: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, id.0).verify(bytes, signature).is_ok()
}

impl rcgen::PublicKeyData for IdentityKey {
    fn der_bytes(&self) -> &[u8] {
        &self.id.0
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for IdentityKey {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.pair.sign(msg).as_ref().to_vec())
    }
}

/// A public key that a certificate is issued for.
pub(crate) struct SubjectKey(pub(crate) NodeId);

impl rcgen::PublicKeyData for SubjectKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;

    #[test]
    fn pkcs8_round_trip_keeps_the_identity() {
        let key = IdentityKey::generate(&mut TestRng::new(1)).unwrap();
        let again = IdentityKey::from_pkcs8(&key.to_pkcs8()).unwrap();
        assert_eq!(key.id(), again.id());
        assert_eq!(key.sign("a", b"b"), again.sign("a", b"b"));
        assert!(!format!("{key:?}").contains("seed"));
    }

    /// RFC 8032 section 7.1, test 1: the key pair.
    #[test]
    fn rfc8032_public_key() {
        let seed = data_encoding::HEXLOWER
            .decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
            .unwrap();
        let key = IdentityKey::from_seed(seed.as_slice().try_into().unwrap()).unwrap();
        assert_eq!(
            data_encoding::HEXLOWER.encode(&key.id().0),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }

    #[test]
    fn altered_documents_are_refused() {
        let key = IdentityKey::generate(&mut TestRng::new(2)).unwrap();
        let good = key.to_pkcs8();
        assert!(IdentityKey::from_pkcs8(&good[..47]).is_err());
        let mut other_curve = good.to_vec();
        other_curve[11] ^= 1;
        assert!(IdentityKey::from_pkcs8(&other_curve).is_err());
        assert!(IdentityKey::from_pkcs8(b"").is_err());
    }

    #[test]
    fn a_signature_is_bound_to_its_label_and_is_not_malleable() {
        let key = IdentityKey::generate(&mut TestRng::new(3)).unwrap();
        let signature = key.sign("one", b"body");
        assert!(verify(key.id(), "one", b"body", &signature));
        assert!(!verify(key.id(), "two", b"body", &signature));
        assert!(!verify(key.id(), "one", b"bodz", &signature));
        // S + L is the same scalar modulo the group order: a second encoding
        // of the same signature, which must not verify.
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut twin = signature;
        let mut carry = 0_u16;
        for (byte, add) in twin[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        assert_ne!(twin, signature);
        assert!(!verify(key.id(), "one", b"body", &twin));
    }
}

//! Revocations: signed by the CA, spread before everything else, final.
//!
//! In: records from the network. Out: a set of revoked node keys. Invariants: a
//! record that the CA did not sign has no effect; a revoked key never comes
//! back (the node makes a new key and joins again); a record is kept as long as
//! any certificate of the key can be valid. Revocation is by key, not
//! by certificate or signature bytes, so no other encoding of the same
//! certificate gets past it. Deliberately not here: spreading.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use warren_types::{NetworkId, NodeId};

use crate::cbor;
use crate::identity::{self, IdentityKey, SIGNATURE_LEN};

const LABEL: &str = "Warren v1 revocation";

/// Most revocations a node keeps. A CA that signs more is renewed instead.
pub const MAX_REVOCATIONS: usize = 10_000;

/// A revoked key gets no new certificate, so its last one has ended after this
/// many seconds and the record is no longer needed: the life of a certificate
/// and a day for clocks.
pub const REVOCATION_LIFE: u64 = crate::ca::NODE_CERTIFICATE_LIFE + 86_400;

/// True when a record made at `at` is no longer needed at `now`.
pub fn is_over(at: u64, now: u64) -> bool {
    now > at.saturating_add(REVOCATION_LIFE)
}

/// What the CA signs: this key is no member any more.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RevocationBody {
    /// The network.
    #[cbor(n(0), with = "cbor::network_id")]
    pub network: NetworkId,
    /// The revoked node.
    #[cbor(n(1), with = "cbor::node_id")]
    pub node: NodeId,
    /// When, seconds since 1970.
    #[n(2)]
    pub at: u64,
}

/// A revocation as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedRevocation {
    /// CBOR of a [`RevocationBody`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// The CA's signature over `Warren v1 revocation` || 0x00 || body.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; SIGNATURE_LEN],
}

/// A revocation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// The body does not parse.
    #[error("the revocation is malformed")]
    Malformed,
    /// Signed by another key than the CA's.
    #[error("the revocation is not signed by this network's CA")]
    BadSignature,
    /// For another network.
    #[error("the revocation is for another network")]
    WrongNetwork,
    /// So old that the node's certificate has ended too.
    #[error("the revocation is so old that it is no longer needed")]
    Over,
    /// More than [`MAX_REVOCATIONS`].
    #[error("too many revocations")]
    Full,
}

impl SignedRevocation {
    /// Signs the revocation of `node` with the CA's key.
    pub fn sign(ca: &IdentityKey, network: NetworkId, node: NodeId, now: u64) -> Self {
        let body = cbor::to_vec(&RevocationBody { network, node, at: now });
        let signature = ca.sign(LABEL, &body);
        Self { body, signature }
    }

    /// Whom it revokes and when, unchecked.
    ///
    /// # Errors
    /// When the body does not parse.
    pub fn peek(&self) -> Result<RevocationBody, RevocationError> {
        cbor::from_slice(&self.body).map_err(|_| RevocationError::Malformed)
    }

    /// The bytes that travel: a CBOR array of body and signature.
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// The reverse of [`SignedRevocation::to_bytes`]; nothing is checked.
    ///
    /// # Errors
    /// When the bytes are anything else than one revocation.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RevocationError> {
        cbor::from_slice(bytes).map_err(|_| RevocationError::Malformed)
    }

    /// Checks signature and network.
    ///
    /// # Errors
    /// Which check failed.
    pub fn verify(
        &self,
        ca: NodeId,
        network: NetworkId,
    ) -> Result<RevocationBody, RevocationError> {
        if !identity::verify(ca, LABEL, &self.body, &self.signature) {
            return Err(RevocationError::BadSignature);
        }
        let body = self.peek()?;
        if body.network == network { Ok(body) } else { Err(RevocationError::WrongNetwork) }
    }
}

/// All revocations a node knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationList(BTreeMap<NodeId, (u64, SignedRevocation)>);

impl RevocationList {
    /// True when `node` was revoked.
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.contains_key(&node)
    }

    /// Adds a record after checking it. `Some(node)` when it is new.
    ///
    /// # Errors
    /// When the record is not the CA's, or there are too many.
    pub fn insert(
        &mut self,
        record: SignedRevocation,
        ca: NodeId,
        network: NetworkId,
        now: u64,
    ) -> Result<Option<NodeId>, RevocationError> {
        let body = record.verify(ca, network)?;
        if is_over(body.at, now) {
            return Err(RevocationError::Over);
        }
        if self.0.contains_key(&body.node) {
            return Ok(None);
        }
        if self.0.len() >= MAX_REVOCATIONS {
            return Err(RevocationError::Full);
        }
        self.0.insert(body.node, (body.at, record));
        Ok(Some(body.node))
    }

    /// Every record, to be sent to a peer or stored.
    pub fn records(&self) -> impl Iterator<Item = &SignedRevocation> {
        self.0.values().map(|(_, record)| record)
    }

    /// Drops records that are no longer needed.
    pub fn forget_old(&mut self, now: u64) {
        self.0.retain(|_, (at, _)| !is_over(*at, now));
    }

    /// Number of revoked nodes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when nothing was revoked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;

    #[test]
    fn only_the_ca_revokes_and_only_once() {
        let ca = IdentityKey::generate(&mut TestRng::new(1)).unwrap();
        let other = IdentityKey::generate(&mut TestRng::new(2)).unwrap();
        let (network, node) = (NetworkId([1; 16]), NodeId([4; 32]));
        let mut list = RevocationList::default();
        let forged = SignedRevocation::sign(&other, network, node, 5);
        assert_eq!(list.insert(forged, ca.id(), network, 6), Err(RevocationError::BadSignature));
        let good = SignedRevocation::sign(&ca, network, node, 5);
        assert_eq!(
            list.insert(good.clone(), ca.id(), NetworkId([2; 16]), 6),
            Err(RevocationError::WrongNetwork)
        );
        assert_eq!(list.insert(good.clone(), ca.id(), network, 6), Ok(Some(node)));
        assert_eq!(list.insert(good.clone(), ca.id(), network, 6), Ok(None));
        let mut later = list.clone();
        later.forget_old(5 + REVOCATION_LIFE);
        assert_eq!(later.len(), 1);
        later.forget_old(6 + REVOCATION_LIFE);
        assert!(later.is_empty());
        assert_eq!(
            later.insert(good.clone(), ca.id(), network, 6 + REVOCATION_LIFE),
            Err(RevocationError::Over)
        );
        assert!(list.contains(node) && !list.contains(NodeId([5; 32])));
        for at in 0..good.body.len() {
            let mut bad = good.clone();
            bad.body[at] ^= 1;
            assert!(bad.verify(ca.id(), network).is_err());
        }
    }
}

//! Revocations: signed by an authority of the network, spread before everything
//! else, final.
//!
//! In: records from the network. Out: a set of revoked keys: nodes', and those
//! of delegated authorities. Invariants: a record has effect only when a root
//! that is trusted, or an authority under one, signed it; only a root revokes an
//! authority; a revoked key never comes back (the node makes a new key and joins
//! again); a record is kept as long as any certificate of the key can be valid.
//! Of two records about one key that of the later root counts, since it outlives
//! the other's; a root's counts more than a delegated authority's. Revocation is
//! by key, not by certificate or signature bytes, so no other encoding of the
//! same certificate gets past it. Deliberately not here: spreading.

use std::collections::BTreeMap;

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use warren_types::{NetworkId, NodeId};

use crate::ca::Authority;
use crate::cbor;
use crate::identity::{self, SIGNATURE_LEN};
use crate::trust::{MAX_EPOCHS, Trust};
use crate::verify::verify_authority;

const LABEL: &str = "Warren v1 revocation";

/// Most revocations a node keeps. A CA that signs more is renewed instead.
pub const MAX_REVOCATIONS: usize = 10_000;

/// A revoked key gets no new certificate, so its last one has ended after this
/// many seconds and the record is no longer needed: the life of a certificate
/// and a day for clocks.
pub const REVOCATION_LIFE: u64 = crate::ca::NODE_CERTIFICATE_LIFE + 86_400;
/// As [`REVOCATION_LIFE`], for the key of an authority.
pub const AUTHORITY_REVOCATION_LIFE: u64 = crate::ca::AUTHORITY_CERTIFICATE_LIFE + 86_400;
/// Nodes that a revoked authority had admitted, and that a member knows already,
/// are served for this long, seconds, so that they can fetch a certificate from
/// another admin. Nothing that the authority issues later is.
pub const AUTHORITY_GRACE: u64 = 86_400;

/// True when a record made at `at` about a node is no longer needed at `now`.
pub fn is_over(at: u64, now: u64) -> bool {
    now > at.saturating_add(REVOCATION_LIFE)
}

/// What an authority signs: this key is no member's any more.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RevocationBody {
    /// The network.
    #[cbor(n(0), with = "cbor::network_id")]
    pub network: NetworkId,
    /// The revoked key: a node's, or an authority's.
    #[cbor(n(1), with = "cbor::node_id")]
    pub node: NodeId,
    /// When, seconds since 1970.
    #[n(2)]
    pub at: u64,
    /// The key the node goes on with, when this one was rotated.
    #[n(3)]
    successor: Option<ByteArray<32>>,
    /// True when the key is a delegated authority's.
    #[n(4)]
    authority: Option<bool>,
    /// How much the record counts: 0 when a delegated authority signed it, else
    /// one more than the number of rotations of the CA before the root that did.
    #[n(5)]
    pub rank: u64,
}

impl RevocationBody {
    /// `node` is no member any more.
    pub fn of(network: NetworkId, node: NodeId, at: u64) -> Self {
        Self { network, node, at, successor: None, authority: None, rank: 0 }
    }

    /// `node` goes on as `successor`.
    pub fn superseded(network: NetworkId, node: NodeId, successor: NodeId, at: u64) -> Self {
        Self { successor: Some(successor.0.into()), ..Self::of(network, node, at) }
    }

    /// The authority with this key issues nothing any more.
    pub fn of_authority(network: NetworkId, key: NodeId, at: u64) -> Self {
        Self { authority: Some(true), ..Self::of(network, key, at) }
    }

    /// The key the node goes on with.
    pub fn successor(&self) -> Option<NodeId> {
        self.successor.map(|key| NodeId(key.into()))
    }

    /// True when the key is a delegated authority's.
    pub fn is_authority(&self) -> bool {
        self.authority == Some(true)
    }

    /// When the record is no longer needed, seconds since 1970.
    pub fn ends(&self) -> u64 {
        let life = if self.is_authority() { AUTHORITY_REVOCATION_LIFE } else { REVOCATION_LIFE };
        self.at.saturating_add(life)
    }

    /// Greater for a record that counts more: that of a later root, or else made
    /// later. Smaller than any present time in milliseconds.
    pub fn sequence(&self) -> u64 {
        (self.rank.min(MAX_EPOCHS as u64 + 1) << 35) | self.at.min((1 << 35) - 1)
    }

    fn is_over(&self, now: u64) -> bool {
        now > self.ends()
    }
}

/// A revocation as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedRevocation {
    /// CBOR of a [`RevocationBody`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// The authority's signature over `Warren v1 revocation` || 0x00 || body.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; SIGNATURE_LEN],
    /// The certificate of the delegated authority that signed; empty for a root.
    #[cbor(n(2), with = "cbor::chain")]
    pub chain: Vec<Vec<u8>>,
}

/// A revocation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// The body does not parse.
    #[error("the revocation is malformed")]
    Malformed,
    /// Not signed by who it says.
    #[error("the revocation's signature is wrong")]
    BadSignature,
    /// Signed by a root or an authority that is not known, or does not count.
    #[error("the revocation is not signed by an authority of this network that counts now")]
    UnknownSigner,
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
    /// Signs a revocation as `authority`.
    pub fn sign(authority: &Authority, trust: &Trust, body: &RevocationBody) -> Self {
        let rank = match authority.is_root() {
            true => 1 + trust.rank(authority.key().id()).unwrap_or(0),
            false => 0,
        };
        let body = cbor::to_vec(&RevocationBody { rank, ..body.clone() });
        let signature = authority.key().sign(LABEL, &body);
        Self { body, signature, chain: authority.above() }
    }

    /// Whom it revokes and when, unchecked.
    ///
    /// # Errors
    /// When the body does not parse.
    pub fn peek(&self) -> Result<RevocationBody, RevocationError> {
        cbor::from_slice(&self.body).map_err(|_| RevocationError::Malformed)
    }

    /// The bytes that travel: a CBOR array of body, signature and chain.
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

    fn signed_by(&self, key: NodeId) -> bool {
        identity::verify(key, LABEL, &self.body, &self.signature)
    }

    /// Checks signer and network. `stored`: it comes from our own disk, where
    /// it was checked when it came; the signer may have ended since.
    fn verify(
        &self,
        trust: &Trust,
        revoked: &RevocationList,
        now: u64,
        stored: bool,
    ) -> Result<RevocationBody, RevocationError> {
        let body = self.peek()?;
        let counts = |root: NodeId| stored || trust.is_root_key(root, now);
        let rank = match self.chain.as_slice() {
            [] => {
                let root = trust.all().find(|root| counts(root.key) && self.signed_by(root.key));
                let root = root.ok_or(RevocationError::UnknownSigner)?;
                1 + trust.rank(root.key).unwrap_or(0)
            }
            [certificate] => {
                let authority = verify_authority(certificate, trust)
                    .map_err(|_| RevocationError::UnknownSigner)?;
                if !self.signed_by(authority.key) {
                    return Err(RevocationError::BadSignature);
                }
                // In force when it signed; it may have ended since.
                let valid = authority.not_before <= body.at && body.at <= authority.not_after;
                let counts = stored || (counts(authority.root) && !revoked.contains(authority.key));
                if body.is_authority() || !valid || !counts {
                    return Err(RevocationError::UnknownSigner);
                }
                0
            }
            _ => return Err(RevocationError::Malformed),
        };
        if body.network != trust.network_id {
            Err(RevocationError::WrongNetwork)
        } else if body.rank != rank {
            Err(RevocationError::Malformed)
        } else {
            Ok(body)
        }
    }
}

/// What a record changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// The key was not revoked before.
    New(RevocationBody),
    /// It was, by a record that counts less: to be passed on.
    Stronger,
    /// Nothing.
    Known,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    body: RevocationBody,
    record: SignedRevocation,
}

/// All revocations a node knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationList(BTreeMap<NodeId, Kept>);

impl RevocationList {
    /// True when `key` was revoked.
    pub fn contains(&self, key: NodeId) -> bool {
        self.0.contains_key(&key)
    }

    /// What was said of a revoked key.
    pub fn get(&self, key: NodeId) -> Option<&RevocationBody> {
        self.0.get(&key).map(|kept| &kept.body)
    }

    /// Adds a record after checking it.
    ///
    /// # Errors
    /// When nobody who may signed the record, or there are too many.
    pub fn insert(
        &mut self,
        record: SignedRevocation,
        trust: &Trust,
        now: u64,
    ) -> Result<Revoked, RevocationError> {
        self.add(record, trust, now, false)
    }

    /// Adds a record from our own disk: what was in force when it was written
    /// stays so, even if who signed it has ended since.
    ///
    /// # Errors
    /// As [`RevocationList::insert`].
    pub fn insert_stored(
        &mut self,
        record: SignedRevocation,
        trust: &Trust,
        now: u64,
    ) -> Result<Revoked, RevocationError> {
        self.add(record, trust, now, true)
    }

    fn add(
        &mut self,
        record: SignedRevocation,
        trust: &Trust,
        now: u64,
        stored: bool,
    ) -> Result<Revoked, RevocationError> {
        let body = record.verify(trust, self, now, stored)?;
        if body.is_over(now) {
            return Err(RevocationError::Over);
        }
        let (key, len) = (body.node, self.0.len());
        match self.0.get(&key) {
            Some(kept) if kept.body.sequence() >= body.sequence() => return Ok(Revoked::Known),
            None if len >= MAX_REVOCATIONS => return Err(RevocationError::Full),
            _ => {}
        }
        let former = self.0.insert(key, Kept { body: body.clone(), record });
        Ok(if former.is_some() { Revoked::Stronger } else { Revoked::New(body) })
    }

    /// Every record, to be sent to a peer or stored. Authorities come last: what
    /// they revoked while they counted is told before they are.
    pub fn records(&self) -> impl Iterator<Item = &SignedRevocation> {
        let of = |authority: bool| {
            self.0.values().filter(move |kept| kept.body.is_authority() == authority)
        };
        of(false).chain(of(true)).map(|kept| &kept.record)
    }

    /// What counts less than a record of `root` would: a holder of that root
    /// signs these again, so that they outlive who signed them.
    pub fn weaker_than(&self, trust: &Trust, root: NodeId) -> Vec<RevocationBody> {
        let rank = 1 + trust.rank(root).unwrap_or(0);
        let weaker = self.0.values().filter(|kept| kept.body.rank < rank);
        weaker.map(|kept| kept.body.clone()).collect()
    }

    /// Drops records that are no longer needed.
    pub fn forget_old(&mut self, now: u64) {
        self.0.retain(|_, kept| !kept.body.is_over(now));
    }

    /// Number of revoked keys.
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
    use crate::identity::IdentityKey;
    use crate::testing::TestRng;
    use crate::trust::TrustChain;

    const NOW: u64 = 1_800_000_000;
    const NET: NetworkId = NetworkId([1; 16]);
    const NODE: NodeId = NodeId([4; 32]);

    fn root(seed: u64) -> Authority {
        let mut rng = TestRng::new(seed);
        let key = IdentityKey::generate(&mut rng).unwrap();
        Authority::create(key, &"home".parse().unwrap(), NOW, &mut rng).unwrap()
    }

    fn trust(root: &Authority) -> Trust {
        Trust::new(root.certificate().to_vec(), "home".parse().unwrap(), NET).unwrap()
    }

    fn delegated(root: &Authority, seed: u64) -> Authority {
        let mut rng = TestRng::new(seed);
        let key = IdentityKey::generate(&mut rng).unwrap();
        let name = "b".parse().unwrap();
        let der = root.delegate(&name, key.id(), NET, NOW, 10_000, &mut rng).unwrap();
        Authority::load_delegated(key, der, &"home".parse().unwrap()).unwrap()
    }

    fn ranked(rank: u64) -> RevocationBody {
        RevocationBody { rank, ..of(NODE) }
    }

    fn of(node: NodeId) -> RevocationBody {
        RevocationBody::of(NET, node, NOW)
    }

    #[test]
    fn only_the_ca_revokes_and_only_once() {
        let (ca, other) = (root(1), root(2));
        let trust = trust(&ca);
        let mut list = RevocationList::default();
        let forged = SignedRevocation::sign(&other, &trust, &of(NODE));
        assert_eq!(list.insert(forged, &trust, NOW), Err(RevocationError::UnknownSigner));
        let elsewhere = RevocationBody { network: NetworkId([2; 16]), ..of(NODE) };
        let elsewhere = SignedRevocation::sign(&ca, &trust, &elsewhere);
        assert_eq!(list.insert(elsewhere, &trust, NOW), Err(RevocationError::WrongNetwork));
        let good = SignedRevocation::sign(&ca, &trust, &of(NODE));
        assert_eq!(list.insert(good.clone(), &trust, NOW), Ok(Revoked::New(ranked(1))));
        assert_eq!(list.insert(good.clone(), &trust, NOW), Ok(Revoked::Known));
        let mut later = list.clone();
        later.forget_old(NOW + REVOCATION_LIFE);
        assert_eq!(later.len(), 1);
        let end = NOW + REVOCATION_LIFE + 1;
        later.forget_old(end);
        assert!(later.is_empty());
        assert_eq!(later.insert(good.clone(), &trust, end), Err(RevocationError::Over));
        assert!(list.contains(NODE) && !list.contains(NodeId([5; 32])));
        for at in 0..good.body.len() {
            let mut bad = good.clone();
            bad.body[at] ^= 1;
            assert!(RevocationList::default().insert(bad, &trust, NOW).is_err());
        }
    }

    #[test]
    fn a_delegated_authority_revokes_nodes_until_it_is_revoked() {
        let ca = root(1);
        let trust = trust(&ca);
        let middle = delegated(&ca, 5);
        let mut list = RevocationList::default();
        let record = SignedRevocation::sign(&middle, &trust, &of(NODE));
        assert_eq!(record.chain.len(), 1);
        let bare = SignedRevocation { chain: vec![], ..record.clone() };
        assert_eq!(list.insert(bare, &trust, NOW), Err(RevocationError::UnknownSigner));
        assert_eq!(list.insert(record.clone(), &trust, NOW), Ok(Revoked::New(of(NODE))));
        // Not another authority, and not when it was none.
        let rival = RevocationBody::of_authority(NET, ca.key().id(), NOW);
        let rival = SignedRevocation::sign(&middle, &trust, &rival);
        assert_eq!(list.insert(rival, &trust, NOW), Err(RevocationError::UnknownSigner));
        let late = RevocationBody { at: NOW + 10_001, ..of(NodeId([6; 32])) };
        let late = SignedRevocation::sign(&middle, &trust, &late);
        assert_eq!(list.insert(late, &trust, NOW), Err(RevocationError::UnknownSigner));
        // The root says the same: that counts more.
        assert_eq!(list.weaker_than(&trust, ca.key().id()), [of(NODE)]);
        let again = SignedRevocation::sign(&ca, &trust, &of(NODE));
        assert_eq!(list.insert(again, &trust, NOW), Ok(Revoked::Stronger));
        assert!(list.weaker_than(&trust, ca.key().id()).is_empty());
        assert_eq!(list.insert(record, &trust, NOW), Ok(Revoked::Known));
        // Its end.
        let end = RevocationBody::of_authority(NET, middle.key().id(), NOW);
        list.insert(SignedRevocation::sign(&ca, &trust, &end), &trust, NOW).unwrap();
        let more = SignedRevocation::sign(&middle, &trust, &of(NodeId([7; 32])));
        assert_eq!(list.insert(more.clone(), &trust, NOW), Err(RevocationError::UnknownSigner));
        assert!(list.insert_stored(more, &trust, NOW).is_ok(), "what is on disk stays");
    }

    #[test]
    fn a_root_that_is_not_trusted_any_more_revokes_nobody() {
        let (old, new) = (root(1), root(2));
        let mut trust = trust(&old);
        let record = trust.succeed(old.key(), new.certificate(), NOW, 100);
        trust.apply(&TrustChain(vec![record]), NOW).unwrap();
        let mut list = RevocationList::default();
        let signed = SignedRevocation::sign(&old, &trust, &of(NODE));
        let late = NOW + 100;
        assert_eq!(list.insert(signed.clone(), &trust, late), Err(RevocationError::UnknownSigner));
        assert_eq!(list.insert(signed, &trust, NOW + 99), Ok(Revoked::New(ranked(1))));
        assert_eq!(list.weaker_than(&trust, new.key().id()), [ranked(1)]);
        let again = SignedRevocation::sign(&new, &trust, &of(NODE));
        assert_eq!(list.insert(again, &trust, late), Ok(Revoked::Stronger));
    }
}

//! Which roots a network trusts, over the rotations of its CA.
//!
//! In: the founding root, and trust records: each names the next root and is
//! signed by the one before it. Out: the current root, and those that are still
//! trusted because their overlap has not ended. Invariants: every root follows
//! from the founding one by signatures, so whoever knows any of them can check
//! all later ones, however long it was away; the network's identifier comes
//! from the founding root and never changes; of two successors of one root every
//! node keeps the same one (the smaller hash) and trusts the other until its
//! overlap ends. Deliberately not here: spreading, keys, files.

use minicbor::{Decode, Encode};
use warren_types::{NetworkId, NetworkName, NodeId};

use crate::cbor;
use crate::descriptor::MAX_SKEW;
use crate::identity::{self, IdentityKey, SIGNATURE_LEN};
use crate::network::fingerprint;
use crate::verify::{self, CertificateError};

const LABEL: &str = "Warren v1 trust";

/// Most rotations of a network's CA: all records travel together, in one record
/// of the gossip.
pub const MAX_EPOCHS: usize = 32;
/// How long the old root stays trusted beside the new one, seconds, unless the
/// operator says otherwise: 30 days, so that a node may be away that long and
/// notice nothing.
pub const DEFAULT_OVERLAP: u64 = 30 * 86_400;
/// Longest overlap, seconds: the life of a node certificate.
pub const MAX_OVERLAP: u64 = crate::ca::NODE_CERTIFICATE_LIFE;
/// Roots of rotations that lost against another, at most.
const MAX_SIDES: usize = 8;

/// What the old root signs: this is the next one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TrustBody {
    /// The network.
    #[cbor(n(0), with = "cbor::network_id")]
    pub network: NetworkId,
    /// 1 for the first rotation, and so on.
    #[n(1)]
    pub epoch: u64,
    /// The new root certificate, DER.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
    /// SHA-256 of the old root certificate.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub previous: [u8; 32],
    /// When, seconds since 1970.
    #[n(4)]
    pub at: u64,
    /// How long the old root stays trusted after that, seconds.
    #[n(5)]
    pub overlap: u64,
}

/// A trust record as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedTrust {
    /// CBOR of a [`TrustBody`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// The old root's signature over `Warren v1 trust` || 0x00 || body. The new
    /// root's is in its own certificate.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; SIGNATURE_LEN],
}

/// All records of a network in order, as they are sent and stored: useless one
/// by one, small together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustChain(pub Vec<SignedTrust>);

impl<C> Encode<C> for TrustChain {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(self.0.len() as u64)?;
        self.0.iter().try_for_each(|record| record.encode(e, ctx))
    }
}

impl<'b, C> Decode<'b, C> for TrustChain {
    fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        let n = d.array()?.filter(|n| *n <= MAX_EPOCHS as u64);
        let n = n.ok_or_else(|| {
            minicbor::decode::Error::message("too many trust records, or no length")
        })?;
        (0..n).map(|_| SignedTrust::decode(d, ctx)).collect::<Result<_, _>>().map(Self)
    }
}

impl TrustChain {
    /// The bytes that are gossiped and stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// Reads them.
    ///
    /// # Errors
    /// When they are anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TrustError> {
        cbor::from_slice(bytes).map_err(|_| TrustError::Malformed)
    }

    /// When the last root ends, seconds since 1970; `None` without records, or
    /// when they do not parse.
    pub fn ends(&self) -> Option<u64> {
        let certificate = self.0.last()?.parse().ok()?.certificate;
        verify::validity(&certificate).ok().map(|(_, end)| end)
    }

    /// A number that grows with every rotation, and of two chains of one length
    /// is greater for the one that wins.
    pub fn sequence(&self) -> u64 {
        let Some(last) = self.0.last() else { return 0 };
        let hash = last.hash();
        let low = u32::MAX - u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        ((self.0.len() as u64) << 32) | u64::from(low)
    }
}

/// A trust record was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Does not parse, or its root is no root.
    #[error("the trust record is malformed")]
    Malformed,
    /// Not signed by the root before it.
    #[error("the trust record is not signed by the root it follows")]
    BadSignature,
    /// For another network.
    #[error("the trust record is for another network")]
    WrongNetwork,
    /// It follows a root that is not known here.
    #[error("the trust record does not follow from the roots known here")]
    Gap,
    /// Its root was succeeded already, and the overlap has ended.
    #[error("the root that signed the trust record is not trusted any more")]
    Closed,
    /// Made ahead of our clock.
    #[error("the trust record is from the future: the clock here or at its maker is wrong")]
    FromTheFuture,
    /// More than [`MAX_EPOCHS`].
    #[error("too many trust records")]
    Full,
    /// There is no CA.
    #[error("this network has no certificates")]
    NoCertificates,
}

impl SignedTrust {
    /// Signs `body` with the root before it.
    pub fn sign(previous: &IdentityKey, body: &TrustBody) -> Self {
        let body = cbor::to_vec(body);
        let signature = previous.sign(LABEL, &body);
        Self { body, signature }
    }

    fn hash(&self) -> [u8; 32] {
        fingerprint(&self.body)
    }

    fn parse(&self) -> Result<TrustBody, TrustError> {
        cbor::from_slice(&self.body).map_err(|_| TrustError::Malformed)
    }
}

/// One root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: NodeId,
    /// End of its certificate, seconds since 1970.
    pub not_after: u64,
    /// Seconds since 1970 at which it stops being trusted: the end of the
    /// overlap, or [`u64::MAX`] for the current one.
    pub until: u64,
}

impl Root {
    fn new(certificate: Vec<u8>) -> Result<Self, CertificateError> {
        let (key, not_after) = verify::check_root(&certificate)?;
        Ok(Self { certificate, key, not_after, until: u64::MAX })
    }
}

/// What a network trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The network's name, part of every SPIFFE name.
    pub network: NetworkName,
    /// The network's identifier, from which addresses come.
    pub network_id: NetworkId,
    /// By epoch, the founding root first; never empty.
    line: Vec<Root>,
    /// `records[n]` leads from `line[n]` to `line[n + 1]`.
    records: Vec<SignedTrust>,
    /// Roots of rotations that lost.
    sides: Vec<Root>,
}

impl Trust {
    /// Trusts `certificate` as the founding root of a network.
    ///
    /// # Errors
    /// When it is not a root certificate with an Ed25519 key.
    pub fn new(
        certificate: Vec<u8>,
        network: NetworkName,
        network_id: NetworkId,
    ) -> Result<Self, CertificateError> {
        let root = Root::new(certificate)?;
        Ok(Self { network, network_id, line: vec![root], records: vec![], sides: vec![] })
    }

    /// The root that signs from now on.
    pub fn current(&self) -> &Root {
        // `line` starts with one root and is never cut to none.
        self.line.last().unwrap_or_else(|| unreachable!("a network has a founding root"))
    }

    /// The first root.
    pub fn founding(&self) -> &Root {
        &self.line[0]
    }

    /// How often the CA was rotated.
    pub fn epoch(&self) -> u64 {
        self.records.len() as u64
    }

    /// Every root there ever was, the current one first.
    pub fn all(&self) -> impl Iterator<Item = &Root> {
        self.line.iter().rev().chain(&self.sides)
    }

    /// The roots that are trusted at `now`.
    pub fn roots(&self, now: u64) -> impl Iterator<Item = &Root> {
        self.all().filter(move |root| now < root.until)
    }

    /// True when `key` is a root's that is trusted at `now`.
    pub fn is_root_key(&self, key: NodeId, now: u64) -> bool {
        self.roots(now).any(|root| root.key == key)
    }

    /// When the root with this key stops being trusted, seconds since 1970;
    /// zero when there is none.
    pub fn ends(&self, key: NodeId) -> u64 {
        self.all().find(|root| root.key == key).map_or(0, |root| root.until.min(root.not_after))
    }

    /// How late in the line of roots the one with this key is.
    pub fn rank(&self, key: NodeId) -> Option<u64> {
        self.line.iter().position(|root| root.key == key).map(|at| at as u64)
    }

    /// All records, to be sent or stored.
    pub fn chain(&self) -> TrustChain {
        TrustChain(self.records.clone())
    }

    /// The record by which `old`, the current root, hands over to a new one.
    pub fn succeed(&self, old: &IdentityKey, new: &[u8], now: u64, overlap: u64) -> SignedTrust {
        let body = TrustBody {
            network: self.network_id,
            epoch: self.epoch() + 1,
            certificate: new.to_vec(),
            previous: fingerprint(&self.current().certificate),
            at: now,
            overlap: overlap.min(MAX_OVERLAP),
        };
        SignedTrust::sign(old, &body)
    }

    /// Takes in records in their order. True when any of them was news.
    ///
    /// # Errors
    /// The first that is refused; those before it are taken in.
    pub fn apply(&mut self, chain: &TrustChain, now: u64) -> Result<bool, TrustError> {
        let mut news = false;
        for record in &chain.0 {
            news |= self.apply_one(record, now)?;
        }
        Ok(news)
    }

    fn apply_one(&mut self, record: &SignedTrust, now: u64) -> Result<bool, TrustError> {
        if self.records.contains(record) {
            return Ok(false);
        }
        let body = record.parse()?;
        if body.network != self.network_id {
            return Err(TrustError::WrongNetwork);
        }
        // Epoch 1 follows the founding root, `line[0]`.
        let at = usize::try_from(body.epoch).ok().and_then(|epoch| epoch.checked_sub(1));
        let at = at.filter(|at| *at < self.line.len()).ok_or(TrustError::Gap)?;
        let before = &self.line[at];
        if fingerprint(&before.certificate) != body.previous {
            return Err(TrustError::Gap);
        }
        if !identity::verify(before.key, LABEL, &record.body, &record.signature) {
            return Err(TrustError::BadSignature);
        }
        if at >= MAX_EPOCHS {
            return Err(TrustError::Full);
        }
        if body.at > now.saturating_add(MAX_SKEW) {
            return Err(TrustError::FromTheFuture);
        }
        if body.overlap > MAX_OVERLAP {
            return Err(TrustError::Malformed);
        }
        let mut root = Root::new(body.certificate.clone()).map_err(|_| TrustError::Malformed)?;
        if self.all().any(|known| known.key == root.key) {
            // A key comes once: its end would otherwise have two values.
            return Err(TrustError::Malformed);
        }
        let end = body.at.saturating_add(body.overlap);
        if let Some(rival) = self.records.get(at) {
            if now >= before.until {
                return Err(TrustError::Closed);
            }
            if record.hash() >= rival.hash() {
                root.until = end.max(before.until);
                return Ok(self.set_aside(root));
            }
            let until = end.max(before.until);
            for mut lost in self.line.split_off(at + 1) {
                lost.until = lost.until.min(until);
                self.set_aside(lost);
            }
            self.records.truncate(at);
        }
        self.line[at].until = end;
        self.records.push(record.clone());
        self.line.push(root);
        Ok(true)
    }

    fn set_aside(&mut self, root: Root) -> bool {
        let known = self.sides.iter().any(|side| side.key == root.key);
        let room = self.sides.len() < MAX_SIDES;
        if room && !known {
            self.sides.push(root);
        }
        room && !known
    }
}

#[cfg(test)]
mod tests;

//! What is gossiped: a signed body, and about whom, which kind, how new.
//!
//! Invariants: tag and hash follow from the other fields; two records are the
//! same exactly when their hashes are. The header is what the record's body
//! says; a verifier refuses a record whose header says otherwise.

use std::sync::Arc;

use blake2::{Blake2s256, Digest};

/// How far ahead of our clock a record may have been made, seconds; as for
/// descriptors.
pub const MAX_SKEW: u64 = 7800;

/// Greatest sequence.
const MAX_SEQUENCE: u64 = (1 << 48) - 1;

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Milliseconds since any fixed moment; never goes back.
    pub ms: u64,
    /// Seconds since 1970, by our clock.
    pub unix: u64,
}

/// What a record is about, in the order of priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A node is no member any more.
    Revocation,
    /// A change of whom to trust: the CA's keys and delegates.
    Trust,
    /// What a node says about itself.
    Descriptor,
    /// Whom a node reaches directly, and how well.
    LinkState,
    /// A subnet may be reached through a node.
    RouteApproval,
}

impl Kind {
    /// All kinds, by number.
    pub const ALL: [Self; 5] =
        [Self::Revocation, Self::Trust, Self::Descriptor, Self::LinkState, Self::RouteApproval];

    /// The kind with a number on the wire.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// True for kinds that everybody must have at once.
    pub const fn is_urgent(self) -> bool {
        matches!(self, Self::Revocation | Self::Trust)
    }

    /// Largest body, bytes.
    pub const fn max_body(self) -> usize {
        match self {
            Self::Revocation => 1024,
            Self::Trust => 20 * 1024,
            // A descriptor's body has at most 48 KiB, and a signature.
            Self::Descriptor => 49 * 1024,
            Self::LinkState | Self::RouteApproval => 4096,
        }
    }

    /// Most records of this kind that a node keeps.
    pub const fn max_records(self) -> usize {
        match self {
            Self::Trust => 256,
            Self::Revocation | Self::RouteApproval => 10_000,
            Self::Descriptor | Self::LinkState => 20_000,
        }
    }
}

/// Names a subject and a kind in 8 bytes: 61 bits of a hash, then the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

impl Tag {
    /// The tag of a subject's record of a kind.
    pub fn new(kind: Kind, subject: &[u8; 32]) -> Self {
        let hash = Blake2s256::new()
            .chain_update(b"Warren v1 tag")
            .chain_update([kind.number()])
            .chain_update(subject)
            .finalize();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash[..8]);
        Self(u64::from_be_bytes(bytes) & !7 | u64::from(kind.number()))
    }

    /// The kind; `None` for one this version does not know.
    pub fn kind(self) -> Option<Kind> {
        Kind::from_number((self.0 & 7) as u8)
    }

    /// The part of the order by which records are compared, 0 to 255.
    pub(crate) fn bucket(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

/// A record. Cheap to share; never changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    kind: Kind,
    subject: [u8; 32],
    sequence: u64,
    expires: u64,
    tag: Tag,
    hash: u128,
    body: Box<[u8]>,
}

impl Record {
    /// A record with the given header and signed body. `sequence` grows with
    /// each record of the subject: milliseconds since 1970, or one more than the
    /// last. `expires`: seconds since 1970. `None` when the body exceeds
    /// [`Kind::max_body`].
    pub fn new(
        kind: Kind,
        subject: [u8; 32],
        sequence: u64,
        expires: u64,
        body: &[u8],
    ) -> Option<Arc<Self>> {
        if body.len() > kind.max_body() {
            return None;
        }
        let hash = Blake2s256::new()
            .chain_update(b"Warren v1 record")
            .chain_update([kind.number()])
            .chain_update(subject)
            .chain_update(sequence.to_be_bytes())
            .chain_update(expires.to_be_bytes())
            .chain_update(body)
            .finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        let (tag, hash) = (Tag::new(kind, &subject), u128::from_be_bytes(bytes));
        Some(Arc::new(Self { kind, subject, sequence, expires, tag, hash, body: body.into() }))
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whom it is about, as the kind defines it: mostly a node id.
    pub fn subject(&self) -> &[u8; 32] {
        &self.subject
    }

    /// Grows with each record of the subject and kind.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Its end, seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.expires
    }

    /// The signed bytes.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Subject and kind in short.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The first 128 bits of the hash of everything.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// How new it is, in 8 bytes: the sequence, which has 48 bits (enough for
    /// milliseconds until the year 10889), and the first 16 bits of the hash.
    pub fn version(&self) -> u64 {
        self.sequence.min(MAX_SEQUENCE) << 16 | (self.hash >> 112) as u64
    }

    /// True when this one replaces `other`, of the same subject and kind.
    pub(crate) fn beats(&self, other: &Self) -> bool {
        (self.sequence, self.hash) > (other.sequence, other.hash)
    }

    /// True when a sequence is further ahead of our clock than clocks may
    /// differ: accepted, it could not be replaced for as long.
    pub(crate) fn too_far_ahead(sequence: u64, unix: u64) -> bool {
        sequence > unix.saturating_add(MAX_SKEW).saturating_mul(1000).min(MAX_SEQUENCE)
    }

    /// Memory it takes, bytes.
    pub(crate) fn memory(&self) -> usize {
        // Two counters of the `Arc` before it.
        size_of::<Self>() + self.body.len() + 2 * size_of::<usize>()
    }
}

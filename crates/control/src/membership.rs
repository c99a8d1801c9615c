//! Who is a member: the one place where the three ways to authenticate differ.
//!
//! In: the certificate chain that TLS delivered, or a descriptor's body. Out: a
//! member's identity, or the failing check. Invariant: whatever the mode, the
//! answer binds a [`NodeId`] whose possession TLS (or the descriptor's
//! signature) proves. With a pre-shared key the identity alone admits nobody:
//! the caller must also run the proof (`psk`) or check the descriptor's MAC.

use std::collections::BTreeMap;

use warren_types::{NodeId, NodeName};

use crate::network::AuthKind;
use crate::psk::PskKeys;
use crate::revocation::RevocationList;
use crate::trust::Trust;
use crate::verify::{self, CertificateError, CertifiedNode};

/// How this node recognises members.
#[derive(Debug, Clone)]
pub enum Membership {
    /// Certificates under the network's roots.
    Certificate(Trust),
    /// Keys pinned in the configuration, with the names they must use.
    Key(BTreeMap<NodeId, NodeName>),
    /// Whoever holds the pre-shared key.
    Psk(PskKeys),
}

/// A peer as TLS shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerIdentity {
    /// Certified by the CA.
    Certified(CertifiedNode),
    /// Pinned in our configuration.
    Pinned(NodeId, NodeName),
    /// Known by key only; must still prove the pre-shared key.
    Unproven(NodeId),
}

impl PeerIdentity {
    /// The key that TLS proved.
    pub fn id(&self) -> NodeId {
        match self {
            Self::Certified(node) => node.id,
            Self::Pinned(id, _) | Self::Unproven(id) => *id,
        }
    }
}

/// Why a peer is no member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Its certificate was refused.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Its key is not pinned here.
    #[error("the public key {0} is not pinned in this node's configuration")]
    NotPinned(NodeId),
    /// It was revoked.
    #[error("the node {0} was revoked")]
    Revoked(NodeId),
    /// The node has rotated its key; this is the former one.
    #[error("the key {former} is a former one of the node {now}")]
    Superseded {
        /// The key shown.
        former: NodeId,
        /// The key the node has now.
        now: NodeId,
    },
}

impl Membership {
    /// Which of the three ways this is.
    pub fn kind(&self) -> AuthKind {
        match self {
            Self::Certificate(_) => AuthKind::Certificate,
            Self::Key(_) => AuthKind::Key,
            Self::Psk(_) => AuthKind::Psk,
        }
    }

    /// What is trusted, where there are certificates.
    pub fn trust(&self) -> Option<&Trust> {
        match self {
            Self::Certificate(trust) => Some(trust),
            Self::Key(_) | Self::Psk(_) => None,
        }
    }

    /// Checks the chain that TLS delivered (leaf first).
    ///
    /// # Errors
    /// The first check that failed.
    pub fn check_chain(
        &self,
        chain: &[Vec<u8>],
        revoked: &RevocationList,
        now: u64,
    ) -> Result<PeerIdentity, MembershipError> {
        if let Self::Certificate(trust) = self {
            let node = verify::verify_chain(chain, trust, revoked, now)?;
            return Ok(PeerIdentity::Certified(node));
        }
        let leaf = chain.first().ok_or(CertificateError::Missing)?;
        let id = verify::subject_key(leaf)?;
        match self {
            Self::Key(pinned) => match pinned.get(&id) {
                Some(name) => Ok(PeerIdentity::Pinned(id, name.clone())),
                None => Err(MembershipError::NotPinned(id)),
            },
            _ => Ok(PeerIdentity::Unproven(id)),
        }
    }
}

//! The certificate authority, keys, leaving and revoking.

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// `POST /v1/ca`: what the certificate authority is asked for. The answer is a
/// [`CaReply`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum CaRequest {
    /// Who may admit others.
    List,
    /// Let a node admit others.
    Delegate {
        /// Its name.
        name: String,
    },
    /// Do not let it any more.
    Undelegate {
        /// Its name.
        name: String,
    },
    /// Replace the root.
    Rotate {
        /// Seconds for which the old one stays trusted.
        overlap_s: u64,
    },
    /// The root's key, encrypted.
    Export {
        /// With this.
        passphrase: String,
    },
    /// Remove the root's key from this node.
    Remove,
    /// Take the root's key in.
    Import {
        /// As exported.
        file: String,
        /// With this.
        passphrase: String,
    },
}

impl std::fmt::Debug for CaRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self {
            Self::List => "List",
            Self::Delegate { name } => return write!(f, "Delegate({name:?})"),
            Self::Undelegate { name } => return write!(f, "Undelegate({name:?})"),
            Self::Rotate { overlap_s } => return write!(f, "Rotate({overlap_s})"),
            Self::Export { .. } => "Export (redacted)",
            Self::Remove => "Remove",
            Self::Import { .. } => "Import (redacted)",
        };
        f.write_str(what)
    }
}

/// Answer to [`CaRequest`]: only what was asked for is there.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct CaReply {
    /// Who may admit others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<AuthorityEntry>,
    /// Rotations of the CA so far.
    pub epoch: u64,
    /// The encrypted key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl std::fmt::Debug for CaReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CaReply {{ authorities: {:?}, epoch: {} }}", self.authorities, self.epoch)
    }
}

/// One who may admit others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityEntry {
    /// The node.
    pub name: String,
    /// True when it holds the root's key.
    pub root: bool,
    /// The authority's key.
    pub key: Option<NodeId>,
    /// Seconds until its certificate ends.
    pub expires_s: Option<i64>,
    /// True when it was revoked.
    pub revoked: bool,
}

/// Which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// The node's identity.
    NodeKey,
    /// The static key of its links.
    LinkKey,
    /// The keys of all sessions.
    SessionKeys,
    /// Its certificate.
    Certificate,
}

/// `POST /v1/rotate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RotateRequest {
    /// What to replace.
    pub what: KeyKind,
}

/// `POST /v1/leave`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LeaveRequest {
    /// Even if nobody is left then who can admit others, or who holds the root.
    #[serde(default)]
    pub force: bool,
}

/// `POST /v1/revoke`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RevokeRequest {
    /// Name of the node to expel.
    pub name: String,
}

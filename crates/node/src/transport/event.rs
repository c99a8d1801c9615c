//! What the control transport tells the daemon.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;
use warren_control::descriptor::DescriptorError;
use warren_control::directory::{ApplyError, DirectoryChange, NodeView};
use warren_control::link_state::LinkStateBody;
use warren_control::membership::MembershipError;
use warren_control::psk::PskError;
use warren_control::route_approval::{ApprovalBody, SignedApproval};
use warren_control::token::TokenError;
use warren_types::{NodeId, NodeName, PresharedKey};

use super::frame::FrameError;

/// Why a connection was refused. For the operator's log only: the peer is told
/// the same for every reason.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RefuseReason {
    /// Certificate or pinned key.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Pre-shared key.
    #[error(transparent)]
    Psk(#[from] PskError),
    /// Its own descriptor.
    #[error("{0}")]
    Descriptor(#[from] ApplyError),
    /// Another node answered than the one that was dialed.
    #[error("the node {found} answered where {wanted} was expected")]
    WrongNode {
        /// Who was dialed.
        wanted: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// It showed our own key.
    #[error("it is this node itself, or a copy of its state directory")]
    Ourselves,
    /// The message was not one that may come now, or malformed.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// It took too long.
    #[error("it did not finish the handshake in time")]
    Timeout,
    /// It speaks another version.
    #[error("it speaks version {0} of the control protocol, we speak 1")]
    Version(u8),
    /// Its invite token.
    #[error("admission refused: {0}")]
    Token(#[from] TokenError),
    /// A joiner with a genuine token could not be admitted.
    #[error("admission refused: {0}")]
    Admission(String),
    /// It failed in TLS.
    #[error("the TLS handshake failed: {0}")]
    Tls(String),
    /// The node has left the network.
    #[error("the node left the network")]
    HasLeft,
    /// It was cut off for what it sent.
    #[error("it sent forged records or floods within the last ten minutes and has to stay away")]
    Barred,
    /// Too many members are connected.
    #[error("too many members are connected to this node; another one will take it")]
    Busy,
}

impl From<FrameError> for RefuseReason {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<DescriptorError> for RefuseReason {
    fn from(error: DescriptorError) -> Self {
        Self::Descriptor(error.into())
    }
}

/// A control connection came up.
#[derive(Debug)]
pub struct PeerConnected {
    /// The peer.
    pub node: NodeId,
    /// What is known about it, conflicts resolved.
    pub view: Arc<NodeView>,
    /// Its underlay address: also where its link packets go.
    pub remote: SocketAddr,
    /// The link's pre-shared key. The peer has the same one.
    pub psk: PresharedKey,
    /// True when we dialed. Then the peer has the key already and we start the
    /// link handshake; else we only install the key and wait.
    pub dialer: bool,
    /// True when `psk` comes from a post-quantum key exchange.
    pub post_quantum: bool,
    /// Our own underlay address as the peer sees it.
    pub observed: SocketAddr,
    /// The peer's program and version.
    pub software: String,
    /// How far the peer's clock is ahead of ours, seconds.
    pub clock_ahead_s: i64,
    /// To be dropped (or answered) once the key is installed: the peer is told
    /// to go ahead only then, or after two seconds.
    pub installed: oneshot::Sender<()>,
}

/// What happened.
#[derive(Debug)]
pub enum ControlEvent {
    /// A control connection came up (or was replaced by a better one).
    PeerConnected(Box<PeerConnected>),
    /// A control connection ended; the transport dials again by itself.
    PeerLost {
        /// The peer.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// Why, for people.
        reason: String,
    },
    /// Whom the transport stays connected to without any traffic: links to them
    /// are to be held, for the network hangs together by them.
    Neighbours(BTreeSet<NodeId>),
    /// What another member says of its direct links, checked.
    LinkState(Box<LinkStateBody>),
    /// An admin decided about a subnet route; checked.
    RouteDecided(Box<(ApprovalBody, SignedApproval)>),
    /// Members came, changed or went.
    DirectoryChanged(Vec<DirectoryChange>),
    /// We admitted a node.
    NodeAdmitted {
        /// The node.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// Where it came from.
        remote: SocketAddr,
    },
    /// We refused a connection or a joiner.
    Refused {
        /// Where it came from.
        remote: SocketAddr,
        /// Which check failed.
        reason: RefuseReason,
    },
    /// A peer could not be reached; will be tried again.
    DialFailed {
        /// The node, when known.
        node: Option<NodeId>,
        /// Where we tried.
        endpoints: Vec<SocketAddr>,
        /// Why.
        reason: String,
        /// True when it answered and refused us: its log says why.
        refused: bool,
        /// Failures in a row.
        attempt: u32,
    },
    /// Our own key was rotated.
    IdentityRotated {
        /// The key before.
        former: NodeId,
        /// The key from now on.
        id: NodeId,
    },
    /// Our addresses are others now: two admins had given the old one at once.
    Readdressed {
        /// All addresses from now on.
        addresses: Vec<std::net::IpAddr>,
    },
    /// The network has another root.
    TrustChanged {
        /// Rotations so far.
        epoch: u64,
        /// When the last of the former roots stops counting, seconds since 1970.
        until: Option<u64>,
    },
    /// We delegated an authority.
    Delegated {
        /// To whom.
        name: NodeName,
    },
    /// An authority was delegated to us: we may admit others now.
    AuthorityGained {
        /// Its end, seconds since 1970; it is renewed before.
        not_after: u64,
    },
    /// Our authority was revoked: we may not admit others any more.
    AuthorityLost,
    /// Our certificate was renewed.
    CertificateRenewed {
        /// Its end, seconds since 1970.
        not_after: u64,
    },
    /// Our certificate is due but could not be renewed yet.
    RenewalFailed {
        /// Its end, seconds since 1970.
        not_after: u64,
        /// Why, with the remedy.
        reason: String,
    },
    /// We renewed another node's certificate.
    RenewedFor {
        /// The node.
        node: NodeId,
    },
    /// We were revoked: nobody talks to us any more.
    Revoked,
    /// State could not be written; the daemon goes on with what it has.
    NotSaved {
        /// Why, with the remedy.
        reason: String,
    },
}

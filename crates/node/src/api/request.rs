//! Requests of the local API as values for the daemon's loop, each with the
//! channel its answer goes to.

use tokio::sync::oneshot;
use warren_proto::selection::Explanation;
use warren_types::NodeName;
use warren_types::api::{
    AddClientReply, AddClientRequest, CaReply, CaRequest, ClientEntry, ConnectRequest, InviteReply,
    InviteRequest, KeyKind, OnionReport, PathProof, PathReport, ProfileChange, Profiles,
    RoleChange, RolesReport, RouteReply, RouteRequest, Status, SubnetRoute,
};

use crate::uapi;

/// Where the answer goes. A dropped sender becomes status 503.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// One request to the daemon's loop. Answering may take up to 30 s; the
/// client then gets status 504.
#[derive(Debug)]
pub enum ApiRequest {
    /// State of node, network and peers.
    Status(Reply<Status>),
    /// Make a join code.
    Invite(InviteRequest, Reply<InviteReply>),
    /// List stock WireGuard clients.
    ListClients(Reply<Vec<ClientEntry>>),
    /// Add one; the name is a valid label, uniqueness is the loop's to check.
    AddClient(AddClientRequest, Reply<AddClientReply>),
    /// Remove one.
    RemoveClient(NodeName, Reply<()>),
    /// Expel a node of this name.
    Revoke(NodeName, Reply<()>),
    /// How a peer is reached, and why so.
    ExplainPath(NodeName, Reply<PathReport>),
    /// List subnet routes.
    ListRoutes(Reply<Vec<SubnetRoute>>),
    /// Change them.
    ChangeRoutes(RouteRequest, Reply<RouteReply>),
    /// What this node does for onion paths.
    Roles(Reply<RolesReport>),
    /// Change it.
    ChangeRoles(Box<RoleChange>, Reply<RolesReport>),
    /// How onion paths stand.
    Onion(Reply<OnionReport>),
    /// Begin a session through an exit, or go on with other wishes.
    Connect(Box<ConnectRequest>, Reply<OnionReport>),
    /// List the profiles.
    Profiles(Reply<Profiles>),
    /// Change one.
    ChangeProfile(Box<ProfileChange>, Reply<Profiles>),
    /// End it.
    Disconnect(Reply<()>),
    /// Take other circuits.
    RotatePath(Reply<()>),
    /// Have all hops prove that they carry the active circuit.
    ProvePath(Reply<PathProof>),
    /// Why the path was chosen: everything that went into it.
    ExplainOnion(Reply<Box<Explanation>>),
    /// Something about the certificate authority.
    Ca(CaRequest, Reply<CaReply>),
    /// Replace a key.
    Rotate(KeyKind, Reply<()>),
    /// Leave the network: tell the others, remove the state, then end. `true`:
    /// even as the last admin.
    Leave(bool, Reply<()>),
    /// End the daemon; the state stays.
    Shutdown(Reply<()>),
    /// Snapshot for metrics.
    Metrics(oneshot::Sender<Box<crate::metrics::Snapshot>>),
    /// Snapshot for WireGuard's userspace API (`wg show`).
    Wireguard(oneshot::Sender<uapi::Snapshot>),
}

/// Why the daemon's loop refuses a request. The text is one sentence with its
/// remedy: it is shown to the operator as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request makes no sense (400).
    #[error("{0}")]
    Invalid(String),
    /// This node may not do that, such as admit without being admin (403).
    #[error("{0}")]
    NotAllowed(String),
    /// Nothing has that name (404).
    #[error("{0}")]
    NotFound(String),
    /// The name is taken, or the state does not allow it now (409).
    #[error("{0}")]
    Conflict(String),
    /// The daemon failed to do it, such as a full disk (500).
    #[error("{0}")]
    Failed(String),
}

impl ApiError {
    /// HTTP status of the answer.
    pub(super) fn status(&self) -> hyper::StatusCode {
        use hyper::StatusCode;
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::NotAllowed(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

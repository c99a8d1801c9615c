//! Data of the local API, as JSON over HTTP on the daemon's Unix socket.
//! Field names are stable: scripts depend on them. All times are seconds or
//! milliseconds as the name says; all counters are since the daemon started.

mod authority;
mod onion;
mod paths;
mod roles;
mod status;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::LinkPublicKey;

pub use self::authority::*;
pub use self::onion::*;
pub use self::paths::*;
pub use self::roles::*;
pub use self::status::*;

/// `POST /v1/invites`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InviteRequest {
    /// Seconds the code is valid.
    pub expires_s: u64,
    /// How many nodes may join with it.
    pub uses: u32,
}

/// Answer to [`InviteRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InviteReply {
    /// The code for `warren join`.
    pub code: String,
    /// Seconds the code is valid.
    pub expires_s: u64,
    /// How many nodes may join with it.
    pub uses: u32,
}

/// `POST /v1/wg/clients`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddClientRequest {
    /// Name of the client, unique in the network.
    pub name: String,
    /// `HOST:PORT` to write as the client's endpoint instead of the detected one.
    pub endpoint: Option<String>,
}

/// Answer to [`AddClientRequest`]: holds the client's secret keys.
#[derive(Clone, Serialize, Deserialize)]
pub struct AddClientReply {
    /// Name of the client.
    pub name: String,
    /// A `wg-quick` configuration file.
    pub config: String,
}

impl std::fmt::Debug for AddClientReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AddClientReply {{ name: {:?}, config: (redacted) }}", self.name)
    }
}

/// `GET /v1/events`: one JSON object a line, newest last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Seconds since the Unix epoch.
    pub at: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened, in the past tense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The daemon serves: interface up, socket bound.
    Started {
        /// This node's name.
        name: String,
        /// Its overlay addresses.
        addresses: Vec<IpAddr>,
    },
    /// A node was admitted to the network (by us).
    NodeAdmitted {
        /// Its name.
        name: String,
    },
    /// A node became known.
    PeerDiscovered {
        /// Its name.
        name: String,
    },
    /// A link came up or changed its path.
    PathPromoted {
        /// The peer's name.
        name: String,
        /// `direct`, `via NAME[, NAME]` or `tcp`.
        path: String,
        /// Underlay address in use; over other nodes the peer's mesh address.
        endpoint: SocketAddr,
        /// Round-trip time inside the tunnel, milliseconds, if measured.
        rtt_ms: Option<f64>,
        /// Why it was taken; absent for a link that just came up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Which node a subnet is reached through has changed.
    RouteChanged {
        /// The prefix.
        prefix: String,
        /// The node it is reached through; absent: none any more.
        via: Option<String>,
    },
    /// A peer stopped answering.
    PeerUnreachable {
        /// The peer's name.
        name: String,
    },
    /// A peer left or was revoked.
    PeerRemoved {
        /// The peer's name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A key was replaced by a new one; what it carries goes on.
    KeyRotated {
        /// Whose: a node's name, or the network's.
        name: String,
        /// Which: `node key`, `link key` or `network CA`.
        what: String,
    },
    /// A node may, or may not any more, admit others.
    AuthorityChanged {
        /// The node's name.
        name: String,
        /// What changed.
        change: String,
    },
    /// What this node does for onion paths was changed.
    RolesChanged {
        /// The roles now: `entry,relay,exit` or `none`.
        roles: String,
        /// It takes no new sessions.
        draining: bool,
    },
    /// Traffic leaves through an exit from now on.
    OnionConnected {
        /// The hops, from the entry.
        path: Vec<String>,
        /// Whose path, if it is that of a user name; absent for the node's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// It takes another circuit; connections through it go on.
    OnionMoved {
        /// The hops before.
        from: Vec<String>,
        /// The hops now.
        to: Vec<String>,
        /// Why.
        reason: String,
        /// How long nothing had come back, ms.
        silent_ms: u64,
        /// Whose path, if it is that of a user name; absent for the node's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// No circuit is left: nothing leaves until there is one.
    OnionInterrupted {
        /// Why.
        reason: String,
        /// Whose path, if it is that of a user name; absent for the node's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// The exit is gone: connections through it are reset, new ones take another.
    OnionExitLost {
        /// The exit.
        exit: String,
        /// Whose path, if it is that of a user name; absent for the node's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// A node did not do its part of a circuit.
    OnionHopFailed {
        /// The node.
        name: String,
        /// Why.
        reason: String,
        /// The circuit was complete before.
        was_up: bool,
    },
    /// Traffic leaves as it did before.
    OnionDisconnected {},
    /// A connection attempt was refused; the remote side learns nothing.
    Refused {
        /// Underlay address it came from.
        remote: SocketAddr,
        /// Which check failed.
        reason: String,
    },
}

impl Event {
    /// As it may be logged: that it is about a user name, but not which.
    #[must_use]
    pub fn for_log(mut self) -> Self {
        if let Self::OnionConnected { user, .. }
        | Self::OnionMoved { user, .. }
        | Self::OnionInterrupted { user, .. }
        | Self::OnionExitLost { user, .. } = &mut self
            && user.is_some()
        {
            *user = Some(String::new());
        }
        self
    }
}

/// Body of every API error: HTTP status says the class.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorReply {
    /// One sentence: what is wrong and what to do about it.
    pub error: String,
}

/// One entry of `GET /v1/wg/clients`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientEntry {
    /// Name of the client.
    pub name: String,
    /// Its public key.
    pub public_key: LinkPublicKey,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
}

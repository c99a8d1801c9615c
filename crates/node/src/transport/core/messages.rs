//! What the core is told and asked, and what it tells sessions.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use quinn::Connection;
use tokio::sync::{mpsc, oneshot};
use warren_control::descriptor::ClientRecord;
use warren_control::identity::IdentityKey;
use warren_control::onion::OnionSection;
use warren_control::wire::{Hello, JoinRequest, Message, TrustReply};
use warren_types::{LinkPublicKey, NodeId, NodeName, PresharedKey};

use super::links::LinkSummary;
use crate::transport::Looping;
use crate::transport::admin::{AdminError, JoinAnswer};
use crate::transport::event::RefuseReason;
use crate::transport::session::Failure;

/// Whom to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Target {
    Node(NodeId),
    Endpoint(SocketAddr),
}

/// What to send on a connection.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Frames(Vec<Arc<[u8]>>),
    Finish(oneshot::Sender<()>),
}

/// The core's answer to a hello.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Go on; the link's key is installed when this resolves.
    Keep(oneshot::Receiver<()>),
    Duplicate,
    /// Our own key changed since the handshake: dial again.
    Again,
    Refused(RefuseReason),
}

/// What this node says about itself; the transport adds the rest and signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnDescriptor {
    /// Our name, as certified or pinned.
    pub name: NodeName,
    /// Our link key.
    pub link_key: LinkPublicKey,
    /// Our overlay addresses, as certified or derived from our key.
    pub addresses: Vec<std::net::IpAddr>,
    /// Our WireGuard clients.
    pub clients: Vec<ClientRecord>,
    /// Where we can be reached, best first; at most 16 are published.
    pub endpoints: Vec<SocketAddr>,
    /// Prefixes behind us that we offer.
    pub routes: Vec<IpNet>,
    /// TCP port on the same addresses where we offer tunnels, if we do.
    pub tcp_port: Option<u16>,
    /// What we do for onion paths, where we have a role.
    pub onion: Option<Box<OnionSection>>,
}

/// One control connection, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The peer.
    pub node: NodeId,
    /// Its underlay address.
    pub remote: SocketAddr,
    /// Round-trip time.
    pub rtt: Duration,
    /// True when we dialed.
    pub dialer: bool,
}

#[derive(Debug)]
pub(crate) enum Command {
    Connect(Target),
    SetOwn(Box<OwnDescriptor>),
    /// Addresses from the local network, not to be believed.
    Seen {
        node: Option<NodeId>,
        addresses: Vec<SocketAddr>,
    },
    /// Who is reached over others, and the mesh address for it.
    SetDetours(HashMap<NodeId, SocketAddr>),
    /// Where nobody is to be dialed.
    SetLooping(Looping),
    PublishLinks(LinkSummary),
    DecideRoute {
        router: Ipv6Addr,
        prefix: IpNet,
        approved: bool,
        reply: oneshot::Sender<Result<(), AdminError>>,
    },
    Invite {
        life: u64,
        uses: u32,
        reply: oneshot::Sender<Result<(String, u64), AdminError>>,
    },
    Revoke {
        name: NodeName,
        reply: oneshot::Sender<Result<NodeId, AdminError>>,
    },
    Connections(oneshot::Sender<Vec<ConnectionInfo>>),
    Renew,
    /// The link with this node is direct.
    Straighten(NodeId),
    /// What only authorities, or changes of our own keys, are about.
    Authority(AuthorityCommand),
    /// `true`: leave the network for good.
    Stop {
        leave: bool,
        reply: oneshot::Sender<()>,
    },
}

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, AdminError>>;

/// A root's key with its certificate and the records that lead to it.
#[derive(Debug)]
pub struct RootKey {
    /// The key.
    pub key: IdentityKey,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
}

/// One authority of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityInfo {
    /// The node that holds it.
    pub node: NodeName,
    /// True for the root.
    pub root: bool,
    /// The authority's key.
    pub key: Option<NodeId>,
    /// End of its certificate, seconds since 1970.
    pub not_after: Option<u64>,
    /// True when it was revoked.
    pub revoked: bool,
}

#[derive(Debug)]
pub(crate) enum AuthorityCommand {
    Delegate { name: NodeName, reply: Answer<()> },
    Undelegate { name: NodeName, reply: Answer<()> },
    Rotate { overlap: u64, reply: Answer<u64> },
    Export(Answer<RootKey>),
    RemoveRoot(Answer<()>),
    Import { root: Box<RootKey>, reply: Answer<()> },
    List(oneshot::Sender<Vec<AuthorityInfo>>),
    RotateIdentity(Answer<NodeId>),
}

#[derive(Debug)]
pub(crate) enum Input {
    Hello {
        /// Who we were when the connection was made.
        own: NodeId,
        node: NodeId,
        hello: Box<Hello>,
        psk: PresharedKey,
        target: Option<Target>,
        connection: Connection,
        outgoing: mpsc::Sender<Outgoing>,
        reply: oneshot::Sender<Verdict>,
    },
    Ready {
        node: NodeId,
        stable: usize,
        installed: oneshot::Sender<()>,
    },
    Message {
        node: NodeId,
        stable: usize,
        message: Message,
    },
    Closed {
        node: NodeId,
        stable: usize,
        reason: String,
    },
    Dialed {
        target: Target,
        endpoints: Vec<SocketAddr>,
        failure: Option<Failure>,
    },
    Refused {
        remote: SocketAddr,
        reason: RefuseReason,
    },
    Join {
        node: NodeId,
        remote: SocketAddr,
        request: JoinRequest,
        reply: oneshot::Sender<JoinAnswer>,
    },
    /// Somebody who may have been away asks for roots.
    CatchUp {
        chain: Vec<Vec<u8>>,
        reply: oneshot::Sender<Vec<Message>>,
    },
    /// What we learnt by asking.
    CaughtUp {
        reply: TrustReply,
        chain: Option<Vec<Vec<u8>>>,
    },
    /// A peer there shows a root that we do not know, or trust no more.
    UnknownRoot {
        addresses: Vec<SocketAddr>,
    },
    Command(Command),
}

//! Data of the local API, as JSON over HTTP on the daemon's Unix socket.
//! Field names are stable: scripts depend on them. All times are seconds or
//! milliseconds as the name says; all counters are since the daemon started.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{LinkPublicKey, NetworkId, NodeId, Suite};

/// `GET /v1/status`, printed by `warren status --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node: NodeStatus,
    /// The network it belongs to.
    pub network: NetworkStatus,
    /// Every other known node and WireGuard client.
    pub peers: Vec<PeerStatus>,
    /// Packets dropped by reason (only reasons that occurred).
    pub drops: BTreeMap<String, u64>,
    /// Things the operator should know (certificate near its end, no endpoint…).
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Names of members as DNS.
    #[serde(default)]
    pub names: NamesStatus,
    /// Discovery on the local network.
    #[serde(default)]
    pub lan: LanStatus,
    /// What the router does for this node.
    #[serde(default)]
    pub port_mapping: PortMappingStatus,
}

/// How names of members are served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesStatus {
    /// What follows a member's name: `NETWORK.warren`.
    pub domain: String,
    /// Addresses of this node that answer on port 53.
    pub servers: Vec<IpAddr>,
    /// How far names work on this machine.
    pub state: NamesState,
    /// What to do so that they work for all programs; absent when they do.
    pub hint: Option<String>,
}

/// How a router was asked for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortMappingProtocol {
    /// Port Control Protocol (RFC 6887).
    Pcp,
    /// NAT Port Mapping Protocol (RFC 6886).
    #[serde(rename = "nat-pmp")]
    NatPmp,
    /// UPnP's Internet Gateway Device.
    Upnp,
}

impl std::fmt::Display for PortMappingProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// Discovery on the local network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanStatus {
    /// This node announces itself and looks for others.
    pub on: bool,
    /// Announcements of the network's other nodes so far.
    pub seen: u64,
    /// Why it is off although it was wanted.
    pub reason: Option<String>,
}

/// Whether a router forwards a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortMappingState {
    /// Not wanted: `port_mapping = false`, or `endpoints` are set.
    #[default]
    Off,
    /// No router gives one.
    None,
    /// A router does.
    Mapped,
}

/// What a router does for a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappingStatus {
    /// Whether it forwards a port.
    pub state: PortMappingState,
    /// How it was asked.
    pub protocol: Option<PortMappingProtocol>,
    /// Where it takes packets for this node.
    pub external: Option<SocketAddr>,
    /// The router.
    pub gateway: Option<IpAddr>,
    /// Why there is none.
    pub reason: Option<String>,
}

/// How far names of members work on a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamesState {
    /// Not wanted: `dns = false`.
    #[default]
    Off,
    /// Port 53 could not be had.
    Failed,
    /// This node answers; programs must be told to ask it.
    Served,
    /// Programs resolve the names by way of systemd-resolved.
    Resolved,
}

/// The answering node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name, unique in the network.
    pub name: String,
    /// Ed25519 identity.
    pub id: NodeId,
    /// X25519 key of its links, as `wg` prints keys.
    pub public_key: LinkPublicKey,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// UDP address the daemon listens on.
    pub listen: SocketAddr,
    /// TUN interface.
    pub interface: String,
    /// MTU of the interface, bytes.
    pub mtu: u32,
    /// Data-path mode: the offloads in use, e.g. `tun(vnet_hdr,tso,uso) udp(gso,gro) workers=1`.
    pub mode: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Version of the binary.
    pub version: String,
    /// Seconds until the node's certificate ends; absent without certificates.
    pub certificate_expires_s: Option<i64>,
    /// Bytes passed on between other members since the start.
    #[serde(default)]
    pub relayed_bytes: u64,
}

/// The network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Name chosen by the founder.
    pub name: String,
    /// Identifier.
    pub id: NetworkId,
    /// Suite of links between members.
    pub suite: Suite,
    /// How members are admitted: `certificate`, `key` or `psk`.
    pub auth: String,
    /// Overlay prefixes.
    pub prefixes: Vec<String>,
    /// True when this node can admit others.
    pub admin: bool,
}

/// What a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    /// A member node that runs Warren.
    Node,
    /// A stock WireGuard client of this node.
    Wireguard,
}

/// One peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Name, unique in the network.
    pub name: String,
    /// Member node or WireGuard client.
    pub kind: PeerKind,
    /// Ed25519 identity; absent for WireGuard clients.
    pub id: Option<NodeId>,
    /// X25519 link key.
    pub public_key: LinkPublicKey,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its packets go now.
    pub endpoint: Option<SocketAddr>,
    /// `direct`, `via NAME[, NAME]`, `tcp` (over TLS, where UDP is blocked),
    /// `connecting` or `none`.
    pub path: String,
    /// Round-trip time inside the tunnel, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Share of packets from the peer lost lately, 0 to 1.
    pub loss: Option<f64>,
    /// Largest inner packet the path carries, bytes.
    pub path_mtu: u32,
    /// Seconds since the last completed handshake.
    pub handshake_age_s: Option<u64>,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Suite of the link.
    pub suite: Suite,
    /// True when the link's keys include a post-quantum secret.
    pub post_quantum: bool,
}

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
    /// A connection attempt was refused; the remote side learns nothing.
    Refused {
        /// Underlay address it came from.
        remote: SocketAddr,
        /// Which check failed.
        reason: String,
    },
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

/// `GET /v1/paths/NAME`: how a peer is reached and why so, printed by
/// `warren path explain --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    /// The peer.
    pub name: String,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// As `peers[].path` of the status.
    pub path: String,
    /// Why the path in use was taken, if it ever changed.
    pub reason: Option<String>,
    /// Seconds since then.
    pub since_s: Option<u64>,
    /// True while a control connection is up.
    pub connected: bool,
    /// Every address known for it, the one in use first.
    pub paths: Vec<PathEntry>,
    /// Ways over other nodes, the one that would be used first.
    pub routes: Vec<RouteEntry>,
    /// Why there is no way over others, when there is none.
    pub no_route: Option<String>,
    /// Nodes with a link to it that do not relay.
    pub unwilling: Vec<String>,
    /// What stands between this node and the others.
    pub nat: Vec<NatReport>,
}

/// One path of a [`PathReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathEntry {
    /// Remote address; of `relay` the peer's mesh address.
    pub address: SocketAddr,
    /// `direct`, `relay` or `tcp`.
    pub kind: String,
    /// Data goes here.
    pub active: bool,
    /// `untried`, `probing`, `valid`, `suspect` or `dead`.
    pub state: String,
    /// Round-trip time, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Share of probes lost lately, 0 to 1.
    pub loss: Option<f64>,
    /// What paths are compared by, milliseconds; smaller is better.
    pub cost_ms: Option<f64>,
    /// Why it is or is not in use.
    pub why: String,
}

/// One way over other nodes of a [`PathReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// The relays in order.
    pub via: Vec<String>,
    /// It is the one that datagrams over others take.
    pub chosen: bool,
    /// Round-trip time as its links' ends report it, milliseconds.
    pub rtt_ms: f64,
    /// Share of packets lost as they report it, 0 to 1.
    pub loss: f64,
    /// What routes are compared by, milliseconds; smaller is better.
    pub cost_ms: f64,
    /// Why it is or is not chosen.
    pub why: String,
}

/// The NAT before this node, for one address family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatReport {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// `unknown`, `none`, `endpoint-independent` or `address-dependent`.
    pub kind: String,
    /// Addresses others see us at, beside those of our interfaces.
    pub seen_as: Vec<SocketAddr>,
}

/// One entry of `GET /v1/routes`: a subnet behind a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubnetRoute {
    /// The prefix.
    pub prefix: String,
    /// The node that offers it.
    pub node: String,
    /// True when this node is the one.
    pub own: bool,
    /// What an admin decided; absent: nothing yet.
    pub approved: Option<bool>,
    /// True when this node sends traffic for the prefix there.
    pub used: bool,
    /// Why not, or what is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What to do about subnet routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteAction {
    /// Offer prefixes behind this node.
    Advertise,
    /// Offer them no more.
    Withdraw,
    /// Let everybody use a prefix behind a node.
    Approve,
    /// The opposite.
    Deny,
}

/// `POST /v1/routes`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RouteRequest {
    /// What to do.
    pub action: RouteAction,
    /// Whose prefixes, to approve or deny; absent: this node's.
    #[serde(default)]
    pub node: Option<String>,
    /// The prefixes, such as `192.168.7.0/24`; empty with `withdraw`: all.
    pub prefixes: Vec<String>,
}

/// Answer to [`RouteRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RouteReply {
    /// What the operator should know or do next, one sentence each.
    pub hints: Vec<String>,
}

//! How peers and networks behind them are reached.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

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
    /// The way of that connection: `direct`, `relay` or `tcp`.
    #[serde(default)]
    pub connected_by: Option<String>,
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

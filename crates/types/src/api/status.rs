//! What a daemon says of itself and its peers: `GET /v1/status`.

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
    /// What it does for onion paths.
    #[serde(default)]
    pub onion: super::RolesReport,
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
    /// Share of packets lost lately on the way to the peer, 0 to 1.
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
    /// What it does for onion paths; absent where it has no role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onion: Option<super::PeerRoles>,
}

//! Onion paths over the local API: connecting, and how it goes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{NodeId, NodeName, Place};

fn three() -> u8 {
    3
}

fn auto() -> String {
    "auto".to_owned()
}

/// Body of `POST /v1/onion/connect`: what `warren connect` says. Words are those
/// of the command line, because names are only known to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    /// `auto`, a country, a region, `nearest:PLACE`, `random` or a node's name.
    #[serde(default = "auto")]
    pub exit: String,
    /// Hops, 1 to 4.
    #[serde(default = "three")]
    pub hops: u8,
    /// A country or a node's name, instead of the pinned guards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Nodes' names, countries, or `family:NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<String>,
    /// No two hops in one country.
    #[serde(default)]
    pub distinct_countries: bool,
    /// Nothing leaves but through the tunnel, with or without the daemon.
    #[serde(default)]
    pub kill_switch: bool,
    /// Local networks stay reachable beside the tunnel.
    #[serde(default)]
    pub lan: bool,
    /// Only these go into the tunnel: prefixes, `user:NUMBER`, `cgroup:PATH`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// All but these do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// The system's resolver is left alone.
    #[serde(default)]
    pub keep_dns: bool,
    /// Nothing of the machine is led into the tunnel: paths are for the proxies
    /// of userspace mode.
    #[serde(default)]
    pub proxy_only: bool,
}

impl Default for ConnectRequest {
    fn default() -> Self {
        Self {
            exit: auto(),
            hops: three(),
            entry: None,
            avoid: Vec::new(),
            distinct_countries: false,
            kill_switch: false,
            lan: false,
            include: Vec::new(),
            exclude: Vec::new(),
            keep_dns: false,
            proxy_only: false,
        }
    }
}

/// Named wishes: `GET /v1/onion/profiles`.
pub type Profiles = std::collections::BTreeMap<NodeName, ConnectRequest>;

/// Body of `POST /v1/onion/profiles`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileChange {
    /// The profile.
    pub name: NodeName,
    /// What it says from now on; absent: it is removed.
    #[serde(default)]
    pub request: Option<ConnectRequest>,
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnionState {
    /// No session is wanted.
    Off,
    /// The first path is being built.
    Connecting,
    /// Packets leave through the exit.
    Connected,
    /// The path is gone and another is being built; nothing leaves meanwhile.
    Interrupted,
}

/// How well a hop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should.
    Green,
    /// Slower or lossier than it was, or than is good.
    Yellow,
    /// It does not answer, or loses much.
    Red,
    /// Not measured yet.
    Unknown,
}

/// One hop of a circuit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnionHop {
    /// The node.
    pub name: String,
    /// Its key.
    pub id: Option<NodeId>,
    /// Where it says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// From us to it and back, inside the circuit, milliseconds.
    pub rtt_ms: Option<f64>,
    /// What it adds to the hop before it, milliseconds.
    pub added_ms: Option<f64>,
    /// Share of echoes lost lately, 0 to 1.
    pub loss: f64,
    /// What it says it gives to paths, bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// Since it started, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<u64>,
    /// All of it as a colour.
    pub health: Health,
    /// Why it is not green.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// One circuit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnionCircuit {
    /// Tells circuits of one daemon apart.
    pub serial: u64,
    /// `building`, `ready`, `standby`, `active`, `suspect` or `retiring`.
    pub phase: String,
    /// `active`, `standby` or `spare`: what it was built for.
    pub purpose: String,
    /// Its age, seconds.
    pub age_s: u64,
    /// Its hops, from the entry.
    pub hops: Vec<OnionHop>,
    /// Cells sent and received.
    pub tx_cells: u64,
    /// See `tx_cells`.
    pub rx_cells: u64,
}

/// What passes through this node for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayReport {
    /// Circuits now.
    pub circuits: usize,
    /// Sessions now, at an exit.
    pub sessions: usize,
    /// Circuit handshakes answered.
    pub handshakes: u64,
    /// Circuits, extensions and sessions refused.
    pub refused: u64,
    /// Cells passed on away from clients.
    pub forward_cells: u64,
    /// Cells passed on towards clients.
    pub backward_cells: u64,
    /// Cells taken or made as a circuit's last hop.
    pub ended_cells: u64,
}

/// The session of one user name that programs gave to the proxies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IsolatedReport {
    /// The user name; what is no UTF-8 in it is replaced.
    pub user: String,
    /// Where it stands.
    pub state: OnionState,
    /// Why there is no path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The exit's name.
    pub exit: Option<String>,
    /// The exit reaches IPv6 destinations.
    pub ipv6: bool,
    /// Circuits, the active one first.
    pub circuits: Vec<OnionCircuit>,
    /// Inner bytes of the session.
    pub tx_bytes: u64,
    /// See `tx_bytes`.
    pub rx_bytes: u64,
    /// Since it was last used, seconds.
    pub idle_s: u64,
}

/// Answer of `GET /v1/onion`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnionReport {
    /// Where the session stands.
    pub state: OnionState,
    /// What was asked for.
    pub request: Option<ConnectRequest>,
    /// Why there is no path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The exit's name.
    pub exit: Option<String>,
    /// Where the exit says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_place: Option<Place>,
    /// The exit reaches IPv6 destinations.
    pub ipv6: bool,
    /// Circuits, the active one first.
    pub circuits: Vec<OnionCircuit>,
    /// Predicted time to the exit and back when the path was chosen, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_ms: Option<f64>,
    /// Inner bytes and packets of the session.
    pub tx_bytes: u64,
    /// See `tx_bytes`.
    pub rx_bytes: u64,
    /// See `tx_bytes`.
    pub tx_packets: u64,
    /// See `tx_bytes`.
    pub rx_packets: u64,
    /// Texts that came over two circuits, of which one was dropped.
    pub duplicates: u64,
    /// The addresses applications have inside the tunnel.
    pub inner: Vec<IpAddr>,
    /// The kill switch is on.
    pub kill_switch: bool,
    /// Sessions beside this one, each of one user name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolated: Vec<IsolatedReport>,
    /// How many there can be.
    #[serde(default)]
    pub most_isolated: usize,
    /// What passes through this node for others.
    pub relay: RelayReport,
}

/// One hop's part of a proof of path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopProof {
    /// The node's name.
    pub name: String,
    /// Its key, with which it signed.
    pub id: NodeId,
    /// Its descriptor, signed by the same key: CBOR, base64.
    pub descriptor: String,
    /// The circuit's name at this hop: its handshake's hash, hex.
    pub circuit: String,
    /// The node after it, as relay frames name nodes; zeros at the end. Hex.
    pub next: String,
    /// Its own such name, hex.
    pub node: String,
    /// When it signed, seconds since 1970.
    pub time: u64,
    /// The signature, hex.
    pub signature: String,
}

/// Answer of `POST /v1/onion/verify`, and what `warren path verify FILE` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathProof {
    /// The network's id.
    pub network: String,
    /// What was to be signed, hex.
    pub nonce: String,
    /// The hops, from the entry; fewer than the path has where one did not
    /// answer.
    pub hops: Vec<HopProof>,
    /// Hops of the path.
    pub length: usize,
}

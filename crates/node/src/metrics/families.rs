//! From a [`Snapshot`] to families of metrics: names, kinds, labels, values.
//! Pure; the text is made elsewhere.

use std::collections::BTreeMap;

use warren_types::DropReason;
use warren_types::api::{Health, OnionReport, OnionState, PeerKind, PeerStatus, Status};

use super::{MOVES, Snapshot};

/// Which way a metric goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only up, until the daemon starts again.
    Counter,
    /// Up and down.
    Gauge,
    /// Always 1: its labels are what it says.
    Info,
}

/// One metric, as `docs/metrics.md` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Name without unit and without the suffix of its kind.
    pub stem: &'static str,
    /// Base unit, the end of the name; empty where there is none.
    pub unit: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, one sentence without a full stop.
    pub help: &'static str,
}

impl Family {
    /// The name of its samples, as one asks Prometheus for it.
    pub fn name(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!("_{}", self.unit) };
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Gauge => "",
            Kind::Info => "_info",
        };
        format!("{}{unit}{suffix}", self.stem)
    }
}

/// A value: what is counted stays a whole number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// Counted.
    Count(u64),
    /// Measured.
    Measure(f64),
}

/// One time series: its labels' values, in the order of the family's, and its
/// value.
pub type Sample = (Vec<String>, Value);

macro_rules! families {
    ($($id:ident: $stem:literal, $unit:literal, $kind:ident, [$($label:literal),*], $help:literal;)+) => {
        $(const $id: Family = Family {
            stem: $stem, unit: $unit, kind: Kind::$kind, labels: &[$($label),*], help: $help,
        };)+
        /// Every metric there is.
        pub const ALL: &[Family] = &[$($id),+];
    };
}

families! {
    BUILD: "warren_build", "", Info, ["version"], "The version that runs";
    NODE: "warren_node", "", Info, ["node", "network", "suite", "auth"], "This node and its network";
    UPTIME: "warren_uptime", "seconds", Gauge, [], "Time since the daemon started";
    WARNINGS: "warren_warnings", "", Gauge, [], "Things that warren status warns of now";
    CPU: "process_cpu", "seconds", Counter, [], "User and system CPU time of the daemon";
    RESIDENT: "process_resident_memory", "bytes", Gauge, [], "Resident memory of the daemon";
    CERTIFICATE: "warren_certificate_expiry_timestamp", "seconds", Gauge, [], "When the certificate of this node ends, since 1970";

    MEMBERS: "warren_network_members", "", Gauge, [], "Members of the network that are known, this node included";
    PEERS_UP: "warren_peers_up", "", Gauge, ["path"], "Members with a session, by the way their packets take";
    CLIENTS: "warren_wireguard_clients", "", Gauge, [], "Stock WireGuard clients of this node";
    CLIENTS_UP: "warren_wireguard_clients_up", "", Gauge, [], "Those of them with a session";
    DROPPED: "warren_dropped_packets", "", Counter, ["reason"], "Packets that this node dropped";
    RELAYED_PACKETS: "warren_relayed_packets", "", Counter, [], "Frames passed on between other members";
    RELAYED_BYTES: "warren_relayed", "bytes", Counter, [], "Bytes of those frames";

    PEER: "warren_peer", "", Info, ["peer", "path"], "A member with a session, and the way its packets take";
    PEER_RX: "warren_peer_receive", "bytes", Counter, ["peer"], "Bytes of inner packets received from a member";
    PEER_TX: "warren_peer_transmit", "bytes", Counter, ["peer"], "Bytes of inner packets sent to a member";
    PEER_RTT: "warren_peer_round_trip", "seconds", Gauge, ["peer"], "Smoothed round-trip time inside the tunnel to a member";
    PEER_LOSS: "warren_peer_loss", "ratio", Gauge, ["peer"], "Share of packets lost lately on the way to a member";
    PEER_HANDSHAKE: "warren_peer_handshake_age", "seconds", Gauge, ["peer"], "Time since the last completed handshake with a member";

    WANTED: "warren_onion_client_wanted", "", Gauge, [], "1 while an onion session is wanted";
    CONNECTED: "warren_onion_client_connected", "", Gauge, [], "1 while packets leave through an exit";
    CIRCUITS: "warren_onion_client_circuits", "", Gauge, ["phase"], "Circuits of the onion session, by their phase";
    ISOLATED: "warren_onion_client_isolated_sessions", "", Gauge, [], "Further onion sessions, one for each user name given to the proxies";
    CHANGES: "warren_onion_client_path_changes", "", Counter, ["reason"], "Moves of the onion session to another circuit";
    INTERRUPTIONS: "warren_onion_client_interruptions", "", Counter, [], "Times that no circuit of the onion session was left";
    EXITS_LOST: "warren_onion_client_exits_lost", "", Counter, [], "Times that the exit was lost, and connections through it";
    CLIENT_RX: "warren_onion_client_receive", "bytes", Counter, [], "Inner bytes received by the onion session";
    CLIENT_TX: "warren_onion_client_transmit", "bytes", Counter, [], "Inner bytes sent by the onion session";
    CLIENT_RX_PACKETS: "warren_onion_client_receive_packets", "", Counter, [], "Inner packets received by the onion session";
    CLIENT_TX_PACKETS: "warren_onion_client_transmit_packets", "", Counter, [], "Inner packets sent by the onion session";
    HOP_RTT: "warren_onion_hop_round_trip", "seconds", Gauge, ["hop"], "Round-trip time to a hop of the active circuit, inside it";
    HOP_LOSS: "warren_onion_hop_loss", "ratio", Gauge, ["hop"], "Share of echoes of a hop of the active circuit lost lately";
    HOP_HEALTH: "warren_onion_hop_health", "", Gauge, ["hop", "health"], "1 for the health that a hop of the active circuit has";
    KILL_SWITCH: "warren_kill_switch_active", "", Gauge, [], "1 while the kill switch is on";

    ROLE: "warren_onion_node_role", "", Gauge, ["role"], "1 for each role this node has in onion paths";
    DRAINING: "warren_onion_node_draining", "", Gauge, [], "1 while this node takes no new sessions";
    NODE_CIRCUITS: "warren_onion_node_circuits", "", Gauge, [], "Circuits of others through this node";
    NODE_SESSIONS: "warren_onion_node_sessions", "", Gauge, [], "Sessions of others that leave here";
    HANDSHAKES: "warren_onion_node_handshakes", "", Counter, [], "Circuit handshakes answered";
    REFUSED: "warren_onion_node_refused", "", Counter, [], "Circuits, extensions and sessions refused";
    CELLS: "warren_onion_node_cells", "", Counter, ["direction"], "Cells passed on away from clients and towards them, and cells of which this node was the last hop";
}

const PATHS: [&str; 3] = ["direct", "relay", "tcp"];
const PHASES: [&str; 6] = ["building", "ready", "standby", "active", "suspect", "retiring"];
const HEALTHS: [(&str, Health); 4] = [
    ("green", Health::Green),
    ("yellow", Health::Yellow),
    ("red", Health::Red),
    ("unknown", Health::Unknown),
];

/// The way of a peer with a session, from the words of the status.
fn way(path: &str) -> Option<&'static str> {
    match path {
        "direct" => Some("direct"),
        "tcp" => Some("tcp"),
        via if via.starts_with("via ") => Some("relay"),
        _ => None,
    }
}

/// Collects samples by family.
#[derive(Default)]
struct Samples(BTreeMap<&'static str, Vec<Sample>>);

impl Samples {
    fn put(&mut self, family: &Family, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.stem);
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        self.0.entry(family.stem).or_default().push((labels, value));
    }
    fn count(&mut self, family: &Family, labels: &[&str], value: u64) {
        self.put(family, labels, Value::Count(value));
    }
    fn measure(&mut self, family: &Family, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.put(family, labels, Value::Measure(value));
        }
    }
}

/// All families that have something to say, each with its samples.
pub fn collect(snapshot: &Snapshot) -> Vec<(Family, Vec<Sample>)> {
    let mut out = Samples::default();
    daemon(snapshot, &mut out);
    network(snapshot, &mut out);
    // What passes through an onion node could else be joined with its links.
    if snapshot.status.node.onion.settings.roles.is_empty() {
        for peer in members(&snapshot.status) {
            link(peer, &mut out);
        }
    }
    client(snapshot, &mut out);
    onion_node(snapshot, &mut out);
    ALL.iter().filter_map(|family| Some((*family, out.0.remove(family.stem)?))).collect()
}

fn members(status: &Status) -> impl Iterator<Item = &PeerStatus> {
    status.peers.iter().filter(|peer| peer.kind == PeerKind::Node && way(&peer.path).is_some())
}

fn daemon(snapshot: &Snapshot, out: &mut Samples) {
    let (node, network) = (&snapshot.status.node, &snapshot.status.network);
    out.count(&BUILD, &[&node.version], 1);
    let suite = network.suite.to_string();
    out.count(&NODE, &[&node.name, &network.name, &suite, &network.auth], 1);
    out.count(&UPTIME, &[], node.uptime_s);
    out.count(&WARNINGS, &[], snapshot.status.warnings.len() as u64);
    out.measure(&CPU, &[], snapshot.cpu.map(|cpu| cpu.as_secs_f64()));
    if let Some(resident) = snapshot.resident {
        out.count(&RESIDENT, &[], resident);
    }
    if let Some(end) = snapshot.certificate_end_s {
        out.count(&CERTIFICATE, &[], end);
    }
}

fn network(snapshot: &Snapshot, out: &mut Samples) {
    let status = &snapshot.status;
    out.count(&MEMBERS, &[], snapshot.members as u64);
    for path in PATHS {
        let up = members(status).filter(|peer| way(&peer.path) == Some(path)).count();
        out.count(&PEERS_UP, &[path], up as u64);
    }
    out.count(&CLIENTS, &[], snapshot.clients as u64);
    let clients = status.peers.iter().filter(|peer| peer.kind == PeerKind::Wireguard);
    let up = clients.filter(|peer| way(&peer.path).is_some()).count();
    out.count(&CLIENTS_UP, &[], up as u64);
    // All reasons from the start: a rate over a series that appears with its
    // first packet would miss that packet.
    let mut dropped: BTreeMap<&str, u64> =
        DropReason::ALL.iter().map(|reason| (reason.label(), 0)).collect();
    dropped.extend(status.drops.iter().map(|(reason, count)| (reason.as_str(), *count)));
    for (reason, count) in dropped {
        out.count(&DROPPED, &[reason], count);
    }
    out.count(&RELAYED_PACKETS, &[], snapshot.relayed_frames);
    out.count(&RELAYED_BYTES, &[], status.node.relayed_bytes);
}

fn link(peer: &PeerStatus, out: &mut Samples) {
    let name = peer.name.as_str();
    out.count(&PEER, &[name, way(&peer.path).unwrap_or_default()], 1);
    out.count(&PEER_RX, &[name], peer.rx_bytes);
    out.count(&PEER_TX, &[name], peer.tx_bytes);
    out.measure(&PEER_RTT, &[name], peer.rtt_ms.map(|ms| ms / 1e3));
    out.measure(&PEER_LOSS, &[name], peer.loss);
    if let Some(age) = peer.handshake_age_s {
        out.count(&PEER_HANDSHAKE, &[name], age);
    }
}

fn client(snapshot: &Snapshot, out: &mut Samples) {
    let (onion, happened) = (&snapshot.onion, &snapshot.happened);
    out.count(&WANTED, &[], u64::from(onion.state != OnionState::Off));
    out.count(&CONNECTED, &[], u64::from(onion.state == OnionState::Connected));
    for phase in PHASES {
        let count = onion.circuits.iter().filter(|circuit| circuit.phase == phase).count();
        out.count(&CIRCUITS, &[phase], count as u64);
    }
    out.count(&ISOLATED, &[], onion.isolated.len() as u64);
    for (reason, count) in MOVES.iter().zip(happened.moves) {
        out.count(&CHANGES, &[reason], count);
    }
    out.count(&INTERRUPTIONS, &[], happened.interruptions);
    out.count(&EXITS_LOST, &[], happened.exits_lost);
    out.count(&CLIENT_RX, &[], onion.rx_bytes);
    out.count(&CLIENT_TX, &[], onion.tx_bytes);
    out.count(&CLIENT_RX_PACKETS, &[], onion.rx_packets);
    out.count(&CLIENT_TX_PACKETS, &[], onion.tx_packets);
    hops(onion, out);
    out.count(&KILL_SWITCH, &[], u64::from(onion.kill_switch));
}

/// Hops by their place on the path: who they are is nobody's business.
fn hops(onion: &OnionReport, out: &mut Samples) {
    let Some(active) = onion.circuits.iter().find(|circuit| circuit.phase == "active") else {
        return;
    };
    for (place, hop) in (1..).zip(&active.hops) {
        let place: &str = &u32::to_string(&place);
        out.measure(&HOP_RTT, &[place], hop.rtt_ms.map(|ms| ms / 1e3));
        out.measure(&HOP_LOSS, &[place], Some(hop.loss));
        for (label, health) in HEALTHS {
            out.count(&HOP_HEALTH, &[place, label], u64::from(hop.health == health));
        }
    }
}

fn onion_node(snapshot: &Snapshot, out: &mut Samples) {
    use warren_types::Role;
    let (roles, relay) = (&snapshot.status.node.onion, &snapshot.onion.relay);
    for (label, role) in [("entry", Role::Entry), ("relay", Role::Relay), ("exit", Role::Exit)] {
        out.count(&ROLE, &[label], u64::from(roles.settings.roles.has(role)));
    }
    out.count(&DRAINING, &[], u64::from(roles.draining));
    out.count(&NODE_CIRCUITS, &[], relay.circuits as u64);
    out.count(&NODE_SESSIONS, &[], relay.sessions as u64);
    out.count(&HANDSHAKES, &[], relay.handshakes);
    out.count(&REFUSED, &[], relay.refused);
    out.count(&CELLS, &["forward"], relay.forward_cells);
    out.count(&CELLS, &["backward"], relay.backward_cells);
    out.count(&CELLS, &["ended"], relay.ended_cells);
}

//! Answers of a daemon, for the tests of `warren top`.

use std::time::Duration;

use warren_types::api::{
    Event, EventRecord, Health, NodeStatus, OnionCircuit, OnionHop, OnionReport, OnionState,
    PeerKind, PeerStatus, RelayReport, RolesReport, Status,
};
use warren_types::{LinkPublicKey, NodeId, Suite};

use super::super::status::tests::example;
use super::model::Snapshot;

pub(super) fn peer(name: &str, rtt_ms: Option<f64>, tx_bytes: u64, rx_bytes: u64) -> PeerStatus {
    PeerStatus {
        name: name.into(),
        kind: PeerKind::Node,
        id: Some(NodeId([4; 32])),
        public_key: LinkPublicKey([5; 32]),
        addresses: vec!["100.64.0.2".parse().unwrap()],
        endpoint: None,
        path: if rtt_ms.is_some() { "direct" } else { "connecting" }.into(),
        rtt_ms,
        loss: rtt_ms.map(|_| 0.012),
        path_mtu: 1420,
        handshake_age_s: rtt_ms.map(|_| 12),
        rx_bytes,
        tx_bytes,
        suite: Suite::Aes256Gcm,
        post_quantum: true,
        onion: None,
    }
}

/// An answer at `at` seconds.
pub(super) fn answer(at: f64, peers: Vec<PeerStatus>) -> Snapshot {
    let example = example();
    let node = NodeStatus {
        certificate_expires_s: None,
        relayed_bytes: 0,
        onion: RolesReport::default(),
        ..example.node
    };
    let status = Status { node, peers, warnings: vec![], ..example };
    Snapshot { status, onion: no_path(), at: Duration::from_secs_f64(at) }
}

fn no_path() -> OnionReport {
    OnionReport {
        state: OnionState::Off,
        request: None,
        problem: None,
        exit: None,
        exit_place: None,
        ipv6: false,
        circuits: vec![],
        predicted_ms: None,
        tx_bytes: 0,
        rx_bytes: 0,
        tx_packets: 0,
        rx_packets: 0,
        duplicates: 0,
        inner: vec![],
        kill_switch: false,
        isolated: vec![],
        most_isolated: 0,
        relay: RelayReport::default(),
    }
}

fn hop(name: &str, place: &str, rtt_ms: f64, added_ms: f64) -> OnionHop {
    OnionHop {
        name: name.into(),
        id: None,
        place: Some(place.parse().unwrap()),
        rtt_ms: Some(rtt_ms),
        added_ms: Some(added_ms),
        loss: 0.0,
        bandwidth: Some(500_000_000),
        uptime_s: Some(7300),
        health: Health::Green,
        why: None,
    }
}

fn circuit(serial: u64, phase: &str, hops: Vec<OnionHop>) -> OnionCircuit {
    OnionCircuit {
        serial,
        phase: phase.into(),
        purpose: phase.into(),
        age_s: 40,
        hops,
        tx_cells: 0,
        rx_cells: 0,
    }
}

/// A path whose second hop is slow, and one that stands by.
pub(super) fn path() -> OnionReport {
    let mut slow = hop("sg-2", "sg-sin", 182.0, 140.0);
    (slow.health, slow.loss) = (Health::Yellow, 0.021);
    slow.why = Some("140 ms slower than it was".into());
    OnionReport {
        state: OnionState::Connected,
        exit: Some("jp-1".into()),
        exit_place: Some("jp-nrt".parse().unwrap()),
        circuits: vec![
            circuit(
                1,
                "active",
                vec![hop("de-1", "de-fra", 9.5, 9.5), slow, hop("jp-1", "jp-nrt", 250.0, 68.0)],
            ),
            circuit(
                2,
                "standby",
                vec![hop("nl-1", "nl-ams", 12.0, 12.0), hop("jp-2", "jp", 231.0, 219.0)],
            ),
        ],
        predicted_ms: Some(110.0),
        kill_switch: true,
        ..no_path()
    }
}

pub(super) fn event(at: f64, name: &str) -> EventRecord {
    EventRecord { at, event: Event::NodeAdmitted { name: name.into() } }
}

pub(super) fn moved(at: f64) -> EventRecord {
    EventRecord {
        at,
        event: Event::OnionMoved {
            from: vec!["a".into(), "b".into()],
            to: vec!["c".into(), "d".into()],
            reason: "b loses packets".into(),
            silent_ms: 210,
            user: None,
        },
    }
}

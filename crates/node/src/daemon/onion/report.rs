//! `GET /v1/onion`: the session, its circuits, and how well each hop does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use warren_control::directory::NodeView;
use warren_proto::onion::client::{CircuitView, Client, HopView, Phase, Purpose};
use warren_proto::onion::session::{CLIENT_V4, CLIENT_V6};
use warren_proto::selection::Outcome;
use warren_types::api::{
    Health, IsolatedReport, OnionCircuit, OnionHop, OnionReport, OnionState, RelayReport,
};

use super::super::{Daemon, unix_now};
use super::isolated::Isolated;
use crate::host::kill_switch;
use crate::userspace::isolation::MAX_ISOLATED;

/// A hop on the way to which this share was lost is yellow, and red; less than
/// what makes traffic leave, so that the reason for that shows,
const LOSSY: (f32, f32) = (0.015, 0.12);
/// as is one that adds so much more than it did at its best, ms: a part of it
/// and at least so much.
const SLOWER: (f64, f64) = (0.5, 25.0);
const MUCH_SLOWER: (f64, f64) = (2.0, 100.0);
/// One that was not heard of for so long is red, ms; echoes of an idle path are
/// seldom.
const SILENT_MS: u64 = 3_000;
const SILENT_IDLE_MS: u64 = 12_000;

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Building => "building",
        Phase::Ready => "ready",
        Phase::Standby => "standby",
        Phase::Active => "active",
        Phase::Suspect => "suspect",
        Phase::Retiring => "retiring",
    }
}

fn purpose(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Active => "active",
        Purpose::Standby => "standby",
        Purpose::Spare => "spare",
    }
}

fn millis(us: u32) -> f64 {
    f64::from(us) / 1e3
}

/// How a hop does, and why not well. `added` is what it adds to the hop before
/// it now, and did at its best, ms.
fn health(hop: &HopView, added: Option<(f64, f64)>, silent_ms: u64) -> (Health, Option<String>) {
    if hop.silent_ms.is_some_and(|silent| silent > silent_ms) {
        let seconds = hop.silent_ms.unwrap_or(0) as f64 / 1e3;
        return (Health::Red, Some(format!("silent for {seconds:.0} s")));
    }
    let Some((now, best)) = added else { return (Health::Unknown, None) };
    let over = |(share, least): (f64, f64)| now - best > (best * share).max(least);
    let loss = f64::from(hop.loss) * 100.0;
    let slower = || Some(format!("adds {:.0} ms more than at its best", now - best));
    if hop.loss >= LOSSY.1 {
        (Health::Red, Some(format!("loses {loss:.0} %")))
    } else if over(MUCH_SLOWER) {
        (Health::Red, slower())
    } else if hop.loss >= LOSSY.0 {
        (Health::Yellow, Some(format!("loses {loss:.0} %")))
    } else if over(SLOWER) {
        (Health::Yellow, slower())
    } else {
        (Health::Green, None)
    }
}

/// Where a client's session stands.
fn state(client: &Client) -> OnionState {
    match (client.is_on(), client.is_connected()) {
        (_, true) => OnionState::Connected,
        (true, false) if client.was_connected() => OnionState::Interrupted,
        (true, false) => OnionState::Connecting,
        (false, _) => OnionState::Off,
    }
}

impl Daemon {
    /// What the local API tells of onion paths.
    pub(in super::super) fn onion_report(&self) -> OnionReport {
        let now_us = self.now_us();
        let client = &self.onion.client;
        let views = client.circuits(now_us);
        let state = match state(client) {
            OnionState::Off if self.onion.request.is_some() => OnionState::Connecting,
            state => state,
        };
        let stream = client.session().map(|session| &session.stream);
        let count = |get: fn(&warren_proto::onion::session::Stream) -> u64| stream.map_or(0, get);
        let exit_view = self.exit_of(&views);
        let predicted = match self.onion.explanation.as_ref().map(|known| &known.outcome) {
            Some(Outcome::Chosen(choice)) => Some(millis(choice.predicted.rtt_us)),
            _ => None,
        };
        let cells = &self.onion.tables.onion.cells;
        let relay = self.onion.relay.stats();
        OnionReport {
            state,
            request: self.onion.request.clone(),
            problem: self.onion.problem.clone(),
            exit: exit_view.map(|view| view.name.to_string()),
            exit_place: exit_view.and_then(|view| view.onion()?.place.clone()),
            ipv6: self.onion.ipv6,
            circuits: views.iter().map(|view| self.circuit(client, view)).collect(),
            predicted_ms: predicted.filter(|_| client.is_on()),
            tx_bytes: count(|s| s.tx_bytes.load(Ordering::Relaxed)),
            rx_bytes: count(|s| s.rx_bytes.load(Ordering::Relaxed)),
            tx_packets: count(|s| s.tx_packets.load(Ordering::Relaxed)),
            rx_packets: count(|s| s.rx_packets.load(Ordering::Relaxed)),
            duplicates: count(|s| s.duplicates.load(Ordering::Relaxed)),
            inner: vec![CLIENT_V4.into(), CLIENT_V6.into()],
            kill_switch: kill_switch::remembered(&self.config.state_dir)
                .is_ok_and(|plan| plan.is_some()),
            isolated: self.onion.isolated.values().map(|one| self.isolated_report(one)).collect(),
            most_isolated: MAX_ISOLATED,
            relay: RelayReport {
                circuits: relay.circuits,
                sessions: relay.sessions,
                handshakes: relay.handshakes,
                refused: relay.refused,
                forward_cells: cells.forward.load(Ordering::Relaxed),
                backward_cells: cells.backward.load(Ordering::Relaxed),
                ended_cells: cells.ended.load(Ordering::Relaxed),
            },
        }
    }

    /// The exit of the active circuit, which is the first.
    fn exit_of(&self, views: &[CircuitView]) -> Option<&Arc<NodeView>> {
        let active = views.first().filter(|view| view.phase == Phase::Active)?;
        self.mesh.view(self.suffix_node(&active.hops.last()?.node)?)
    }

    fn isolated_report(&self, one: &Isolated) -> IsolatedReport {
        let views = one.client.circuits(self.now_us());
        let stream = one.client.session().map(|session| &session.stream);
        IsolatedReport {
            user: one.user.shown(),
            state: state(&one.client),
            problem: one.problem.clone(),
            exit: self.exit_of(&views).map(|view| view.name.to_string()),
            ipv6: one.ipv6,
            circuits: views.iter().map(|view| self.circuit(&one.client, view)).collect(),
            tx_bytes: stream.map_or(0, |s| s.tx_bytes.load(Ordering::Relaxed)),
            rx_bytes: stream.map_or(0, |s| s.rx_bytes.load(Ordering::Relaxed)),
            idle_s: one.idle_ms(self.now_ms()) / 1000,
        }
    }

    fn circuit(&self, client: &Client, view: &CircuitView) -> OnionCircuit {
        let used = client.session().is_some_and(|session| {
            let last = session.stream.last_tx_ms.load(Ordering::Relaxed);
            self.now_ms().saturating_sub(last) < 2_000
        });
        let patience = if view.phase == Phase::Active && used { SILENT_MS } else { SILENT_IDLE_MS };
        let (mut before, mut best_before) = (Some(0), Some(0));
        // Who is behind a silent hop cannot be heard.
        let mut unheard = false;
        let mut hops = Vec::new();
        for hop in &view.hops {
            let step =
                |now: Option<u32>, before: Option<u32>| Some(millis(now?.saturating_sub(before?)));
            let added = step(hop.rtt_us, before);
            let best = step(hop.least_us, best_before);
            let (health, why) = match unheard {
                true => (Health::Unknown, None),
                false => health(hop, added.zip(best), patience),
            };
            unheard |= hop.silent_ms.is_some_and(|silent| silent > patience);
            (before, best_before) = (hop.rtt_us, hop.least_us);
            let id = self.suffix_node(&hop.node);
            let onion = id.and_then(|id| self.mesh.view(id)).and_then(|view| view.onion());
            hops.push(OnionHop {
                name: self.suffix_name(&hop.node),
                id,
                place: onion.and_then(|onion| onion.place.clone()),
                rtt_ms: hop.rtt_us.map(millis),
                added_ms: added,
                loss: f64::from(hop.loss),
                bandwidth: onion.and_then(|onion| onion.bandwidth).map(|b| b.bits_per_second()),
                uptime_s: onion.map(|onion| onion.uptime(unix_now().as_secs())),
                health,
                why,
            });
        }
        OnionCircuit {
            serial: view.serial,
            phase: phase(view.phase).to_owned(),
            purpose: purpose(view.purpose).to_owned(),
            age_s: view.age_ms / 1000,
            hops,
            tx_cells: view.cells.0,
            rx_cells: view.cells.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(loss: f32, silent_ms: u64) -> HopView {
        HopView {
            node: [1; 10],
            rtt_us: Some(20_000),
            least_us: Some(20_000),
            loss,
            silent_ms: Some(silent_ms),
            hash: [0; 32],
        }
    }

    #[test]
    fn colours_follow_the_thresholds() {
        let of = |hop: &HopView, now, best| health(hop, Some((now, best)), SILENT_MS).0;
        let well = hop(0.0, 100);
        assert_eq!(of(&well, 20.0, 20.0), Health::Green);
        assert_eq!(of(&well, 44.0, 20.0), Health::Green);
        assert_eq!(of(&well, 46.0, 20.0), Health::Yellow);
        assert_eq!(of(&well, 170.0, 20.0), Health::Red);
        assert_eq!(of(&hop(0.05, 100), 20.0, 20.0), Health::Yellow);
        assert_eq!(of(&hop(0.2, 100), 20.0, 20.0), Health::Red);
        assert_eq!(of(&hop(0.0, 3_001), 20.0, 20.0), Health::Red);
        assert_eq!(health(&well, None, SILENT_MS).0, Health::Unknown);
    }
}

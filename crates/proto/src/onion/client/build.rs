//! Building a circuit: a handshake with the entry, then one through each hop
//! with the next. Messages may be lost, so each is repeated until it is
//! answered; hops know repetitions.

use std::sync::Arc;

use rand_core::CryptoRng;

use super::super::cell::{CircuitId, Kind, plain};
use super::super::circuit::{ClientCircuit, Neighbour};
use super::super::handshake::{Pending, hint};
use super::super::payload::{Reason, Request};
use super::super::relay::{Neighbours, read_created};
use super::super::tables::Entry;
use super::Hop;
use super::watch::Watch;
use super::{
    CircuitView, Client, ClientEvent, HopView, LIFE_MS, MoveReason, Phase, Purpose, Running, ms,
};
use crate::link::peer::PeerLink;

/// First repetition, ms; then twice as long, and so on.
const REPEAT_MS: u64 = 400;
/// A hop that does not answer for this long fails the circuit, ms.
const GIVE_UP_MS: u64 = 4_000;
/// An exit to which so many paths failed one after the other is given up.
const EXIT_ATTEMPTS: u32 = 2;

/// A circuit on its way.
pub(super) struct Building {
    path: Vec<Hop>,
    purpose: Purpose,
    entry: Arc<PeerLink>,
    ours: CircuitId,
    circuit: Option<Arc<ClientCircuit>>,
    hashes: Vec<[u8; 32]>,
    /// Time from question to answer of each hop so far, microseconds.
    took_us: Vec<u32>,
    pending: Option<Pending>,
    first: Vec<u8>,
    asked_us: u64,
    repeat_ms: u64,
    step: u64,
    began_ms: u64,
}

impl Building {
    pub(super) fn ours(&self) -> CircuitId {
        self.ours
    }

    pub(super) fn entry(&self) -> &Arc<PeerLink> {
        &self.entry
    }

    pub(super) fn purpose(&self) -> Purpose {
        self.purpose
    }

    pub(super) fn view(&self, serial: u64, now: u64) -> CircuitView {
        let hop = |(i, hop): (usize, &Hop)| HopView {
            node: hop.node,
            rtt_us: self.took_us.get(i).copied(),
            least_us: None,
            loss: 0.0,
            silent_ms: None,
            hash: self.hashes.get(i).copied().unwrap_or_default(),
        };
        CircuitView {
            serial,
            phase: Phase::Building,
            purpose: self.purpose,
            hops: self.path.iter().enumerate().map(hop).collect(),
            age_ms: now.saturating_sub(self.began_ms),
            cells: (0, 0),
        }
    }

    /// The question that waits for an answer, as a cell.
    fn question(&self, now: u64) -> Vec<u8> {
        let next = &self.path[self.hashes.len()];
        let hint = hint(&next.onion_key);
        match &self.circuit {
            None => {
                let content = [&hint[..], &self.first].concat();
                plain(Kind::Create, self.ours, &content)
            }
            Some(circuit) => {
                let request = Request::Extend { next: next.node, hint, first: self.first.clone() };
                circuit.say(circuit.hops() - 1, &request.encode(), now)
            }
        }
    }
}

impl Client {
    /// Builds a circuit over `path` (1 to [`super::super::cell::MAX_HOPS`] hops,
    /// the entry first). False when the entry is no neighbour or a key is bad.
    pub fn build(
        &mut self,
        path: Vec<Hop>,
        purpose: Purpose,
        around: &dyn Neighbours,
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let fits = (1..=super::super::cell::MAX_HOPS).contains(&path.len());
        let entry = path.first().and_then(|hop| around.by_suffix(&hop.node));
        let (Some(entry), true, Some(_)) = (entry, fits, &self.session) else { return false };
        let started = Pending::start(self.suite, &path[0].onion_key, rng);
        let Ok((pending, first)) = started else { return false };
        let serial = self.tables.new_serial();
        let ours = self.new_id(rng);
        let building = Building {
            path,
            purpose,
            entry,
            ours,
            circuit: None,
            hashes: Vec::new(),
            took_us: Vec::new(),
            pending: Some(pending),
            first,
            asked_us: now_us,
            repeat_ms: ms(now_us) + REPEAT_MS,
            step: REPEAT_MS,
            began_ms: ms(now_us),
        };
        self.transmits.push_back((building.entry.clone(), building.question(ms(now_us))));
        self.building.insert(serial, building);
        true
    }

    pub(super) fn created(
        &mut self,
        peer: &Arc<PeerLink>,
        id: CircuitId,
        content: &[u8],
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let found = self
            .building
            .iter_mut()
            .find(|(_, building)| building.ours == id && Arc::ptr_eq(&building.entry, peer));
        let Some((serial, building)) = found else { return false };
        let serial = *serial;
        let (None, Some((theirs, second))) = (&building.circuit, read_created(content)) else {
            return true;
        };
        // A forged answer must not cost the true one: neighbours authenticate,
        // so there is none, and a bad one ends the attempt.
        let Some(Ok(agreed)) = building.pending.take().map(|pending| pending.finish(second)) else {
            self.build_failed(serial, 0, Reason::Handshake, now_us, rng);
            return true;
        };
        let entry = Neighbour { peer: peer.clone(), theirs, ours: id };
        let circuit = ClientCircuit::new(serial, entry, &agreed.secrets, ms(now_us));
        let circuit = Arc::new(circuit.in_compartment(self.compartment));
        self.tables.insert(id, Entry::Client(circuit.clone()));
        building.circuit = Some(circuit);
        self.hop_done(serial, agreed.hash, now_us, rng);
        true
    }

    pub(super) fn extended(
        &mut self,
        serial: u64,
        hop: usize,
        second: &[u8],
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let Some(building) = self.building.get_mut(&serial) else { return };
        if hop + 1 != building.hashes.len() {
            // An answer to a question that was repeated.
            return;
        }
        let Some(Ok(agreed)) = building.pending.take().map(|pending| pending.finish(second)) else {
            return self.build_failed(serial, hop + 1, Reason::Handshake, now_us, rng);
        };
        if let Some(circuit) = &building.circuit {
            circuit.extend(&agreed.secrets);
        }
        self.hop_done(serial, agreed.hash, now_us, rng);
    }

    fn hop_done(&mut self, serial: u64, hash: [u8; 32], now_us: u64, rng: &mut dyn CryptoRng) {
        let Some(building) = self.building.get_mut(&serial) else { return };
        building.hashes.push(hash);
        building.took_us.push(now_us.saturating_sub(building.asked_us).min(60_000_000) as u32);
        let Some(next) = building.path.get(building.hashes.len()) else {
            return self.complete(serial, now_us, rng);
        };
        match Pending::start(self.suite, &next.onion_key, rng) {
            Ok((pending, first)) => {
                (building.pending, building.first) = (Some(pending), first);
                building.asked_us = now_us;
                building.step = REPEAT_MS;
                building.repeat_ms = ms(now_us) + REPEAT_MS;
                let cell = building.question(ms(now_us));
                self.transmits.push_back((building.entry.clone(), cell));
            }
            Err(_) => {
                let behind = building.hashes.len();
                self.build_failed(serial, behind, Reason::Handshake, now_us, rng);
            }
        }
    }

    fn complete(&mut self, serial: u64, now_us: u64, rng: &mut dyn CryptoRng) {
        let Some(building) = self.building.remove(&serial) else { return };
        let Some(circuit) = building.circuit else { return };
        let now = ms(now_us);
        let jitter = LIFE_MS * 4 / 5 + rng.next_u64() % (LIFE_MS * 2 / 5);
        let exit = building.path[building.path.len() - 1].node;
        let running = Running {
            watch: Watch::new(&building.took_us, now_us),
            circuit: circuit.clone(),
            path: building.path,
            hashes: building.hashes,
            purpose: building.purpose,
            phase: Phase::Ready,
            linking: None,
            born_ms: now,
            dies_ms: now + jitter,
            since_ms: now,
        };
        self.running.push(running);
        let index = self.running.len() - 1;
        let same_exit = self.exit.is_none_or(|known| known == exit);
        if building.purpose == Purpose::Spare || !same_exit {
            self.running[index].purpose = Purpose::Spare;
            return self.want(now_us);
        }
        self.exit = Some(exit);
        self.exit_failures = 0;
        self.link(index, now_us);
        if self.position(Phase::Active).is_none() {
            self.activate(index, now_us);
        }
        self.want(now_us);
    }

    /// Links a complete circuit to the session. What follows at once in the same
    /// circuit arrives after it, as a rule.
    pub(super) fn link(&mut self, index: usize, now_us: u64) {
        let Some((_, secret)) = &self.session else { return };
        let running = &mut self.running[index];
        running.linking = Some(ms(now_us));
        let hop = running.path.len() - 1;
        let cell =
            running.circuit.say(hop, &Request::Link { secret: *secret }.encode(), ms(now_us));
        self.transmits.push_back((running.circuit.entry.peer.clone(), cell));
    }

    pub(super) fn tick_building(
        &mut self,
        around: &dyn Neighbours,
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let now = ms(now_us);
        let mut failed = Vec::new();
        for (serial, building) in &mut self.building {
            // A link that was made anew is another object.
            let gone = around
                .by_suffix(&building.path[0].node)
                .is_none_or(|peer| !Arc::ptr_eq(&peer, &building.entry));
            if gone || now >= ms(building.asked_us) + GIVE_UP_MS {
                failed.push((*serial, building.hashes.len()));
            } else if now >= building.repeat_ms {
                building.step *= 2;
                building.repeat_ms = now + building.step;
                let cell = building.question(now);
                self.transmits.push_back((building.entry.clone(), cell));
            }
        }
        for (serial, behind) in failed {
            self.build_failed(serial, behind, Reason::Unreachable, now_us, rng);
        }
    }

    pub(super) fn build_failed(
        &mut self,
        serial: u64,
        behind: usize,
        reason: Reason,
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let Some(building) = self.building.get(&serial) else { return };
        let node = building.path.get(behind).map_or(building.path[0].node, |hop| hop.node);
        let purpose = building.purpose;
        self.avoid(node, now_us);
        self.events.push_back(ClientEvent::Failed { serial, node, reason, was_up: false });
        self.give_up_building(serial);
        if self.exit == Some(node) {
            if purpose == Purpose::Standby {
                // The exit takes no second circuit; the first may still be well.
                return;
            }
            self.exit_failures += 1;
            if self.exit_failures >= EXIT_ATTEMPTS {
                self.move_on(node, now_us, rng);
            }
        }
        // Another path at once, unless they fail one after the other.
        if self.asked.get(&purpose).is_some_and(|asked| ms(now_us) >= asked + 100) {
            self.asked.remove(&purpose);
        }
        self.want(now_us);
    }

    pub(super) fn give_up_building(&mut self, serial: u64) {
        let Some(building) = self.building.remove(&serial) else { return };
        self.tables.remove(building.ours);
        if let Some(circuit) = building.circuit {
            let entry = &circuit.entry;
            let cell = plain(Kind::Destroy, entry.theirs, &[Reason::Finished as u8]);
            self.transmits.push_back((entry.peer.clone(), cell));
        }
    }

    /// The session's packets go over this circuit from now on.
    pub(super) fn activate(&mut self, index: usize, now_us: u64) {
        let Some((session, _)) = &self.session else { return };
        let running = &mut self.running[index];
        running.phase = Phase::Active;
        running.since_ms = ms(now_us);
        session.active.store(Some(running.circuit.clone()));
    }

    /// Moves the session off its active circuit, to the best standby; without
    /// one it is interrupted.
    pub(super) fn leave(&mut self, index: usize, reason: MoveReason, now_us: u64) {
        let now = ms(now_us);
        let from = self.running[index].circuit.serial;
        let silent_ms = self.running[index].silent_ms(now);
        // Whatever node is the trouble, it may be on others as well.
        let doubt = matches!(reason, MoveReason::Silent | MoveReason::Ended);
        let next = self.best_standby(index, doubt, now_us);
        let Some((session, _)) = &self.session else { return };
        let old = self.running[index].circuit.clone();
        let phase = match reason {
            MoveReason::Silent => Phase::Suspect,
            MoveReason::Slower | MoveReason::Lossy => Phase::Standby,
            _ => Phase::Retiring,
        };
        let Some(next) = next else {
            if reason == MoveReason::Ended {
                session.active.store(None);
                self.running[index].phase = Phase::Retiring;
                self.events.push_back(ClientEvent::Interrupted);
            }
            return;
        };
        let left = &mut self.running[index];
        (left.phase, left.since_ms) = (phase, now);
        if phase == Phase::Standby {
            left.watch.shun(now);
        }
        if matches!(reason, MoveReason::Silent | MoveReason::Lossy) {
            // In doubt, both.
            session.also.store(Some(old));
        }
        self.activate(next, now_us);
        let to = self.running[next].circuit.serial;
        self.claim(next, now_us);
        self.events.push_back(ClientEvent::Moved { from, to, reason, silent_ms });
    }

    /// Tells the exit to answer over this circuit.
    pub(super) fn claim(&mut self, index: usize, now_us: u64) {
        let Some((session, _)) = &self.session else { return };
        let sequence = session.stream.next_sequence();
        let running = &mut self.running[index];
        let hop = running.path.len() - 1;
        let cell = running.watch.ask(&running.circuit, hop, Some(sequence), false, now_us);
        self.transmits.push_back((running.circuit.entry.peer.clone(), cell));
    }
}

//! The slow path of our own circuits: builds them, links them to the session,
//! watches them and moves the session between them.
//!
//! In: paths the caller chose, cells and answers, the time, an RNG. Out: cells
//! ([`Client::poll_transmit`]), events ([`Client::poll_event`]), among them what
//! paths it wants, and what workers read: the session's active circuit.
//!
//! Invariants: a session has at most one active circuit, and packets leave over
//! it or not at all; circuits are built before others are given up; a circuit
//! is used for data only when all its hops proved to have their onion keys.
//!
//! Deliberately not here: which nodes are on a path ([`crate`]'s caller chooses
//! with what it knows of them), routes, DNS and kill switch of the host.

mod build;
mod judge;
mod share;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand_core::CryptoRng;
use warren_types::Suite;

use super::cell::{CircuitId, HEADER_LEN, Kind, parse, plain};
use super::circuit::ClientCircuit;
use super::compartment::Compartment;
use super::payload::{Answer, Reason, Request};
use super::relay::Neighbours;
use super::session::ClientSession;
use super::tables::OnionTables;
use crate::link::peer::PeerLink;
use crate::link::relay::NodeSuffix;
use build::Building;
use watch::Watch;

/// Life of a circuit, ms: ten minutes, and up to a fifth more or less.
const LIFE_MS: u64 = 600_000;
/// How long before its end a successor is wanted, ms.
const SUCCESSOR_MS: u64 = 30_000;
/// How long a circuit that was replaced still takes what is under way, ms.
const RETIRE_MS: u64 = 10_000;
/// How long to wait before a path is asked for again, ms.
const ASK_MS: u64 = 1_000;
/// The same for a standby over other nodes than the active circuit's, while
/// there is one that shares some.
const IMPROVE_MS: u64 = 5_000;

/// One hop of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The node.
    pub node: NodeSuffix,
    /// Its onion key.
    pub onion_key: [u8; 32],
}

/// What a circuit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Traffic, at once.
    Active,
    /// The session's second circuit, to the same exit over other nodes.
    Standby,
    /// To another exit, in case this one dies.
    Spare,
}

/// What a circuit does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Hop after hop.
    Building,
    /// Complete, not linked to the session.
    Ready,
    /// Linked, not used.
    Standby,
    /// Used.
    Active,
    /// Was active and fell silent.
    Suspect,
    /// Replaced; takes what is still under way.
    Retiring,
}

/// Why the session moved to another circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveReason {
    /// Nothing came back any more.
    Silent,
    /// A hop said that the circuit ended.
    Ended,
    /// Its time was longer than the standby's.
    Slower,
    /// It lost cells.
    Lossy,
    /// Its life ended, or somebody asked for it.
    Rotation,
}

/// Something the caller is to know or do.
#[derive(Debug)]
pub enum ClientEvent {
    /// A path is wanted; answer with [`Client::build`], or ask again later.
    NeedPath {
        /// What for.
        purpose: Purpose,
        /// The exit it must have: that of the session.
        exit: Option<NodeSuffix>,
        /// Nodes that failed lately.
        failed: Vec<NodeSuffix>,
        /// Nodes of other circuits, which should not go down together with it.
        used: Vec<NodeSuffix>,
        /// Rather none than one over used nodes: there is such a one already.
        strict: bool,
    },
    /// The session has a circuit.
    Connected {
        /// The circuit.
        serial: u64,
        /// The exit reaches IPv6 destinations.
        ipv6: bool,
    },
    /// The session goes over another circuit now.
    Moved {
        /// Before.
        from: u64,
        /// Now.
        to: u64,
        /// Why.
        reason: MoveReason,
        /// How long nothing had come back, ms.
        silent_ms: u64,
    },
    /// The session has no circuit: nothing can leave.
    Interrupted,
    /// The exit is gone, and the session with it; a new one begins elsewhere.
    ExitLost {
        /// The exit.
        exit: NodeSuffix,
    },
    /// A circuit could not be built, or ended.
    Failed {
        /// The circuit.
        serial: u64,
        /// The node that did not answer, refused or was behind the end.
        node: NodeSuffix,
        /// Why.
        reason: Reason,
        /// It was complete before.
        was_up: bool,
    },
    /// A hop's proof.
    Proof {
        /// The circuit.
        serial: u64,
        /// The hop, from 0.
        hop: usize,
        /// When it was signed, seconds since 1970.
        time: u64,
        /// The node after it, it says.
        next: NodeSuffix,
        /// Over label, hash, nonce, time and next.
        signature: [u8; 64],
    },
}

/// One hop as [`Client::circuits`] shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct HopView {
    /// The node.
    pub node: NodeSuffix,
    /// Time to it and back, microseconds.
    pub rtt_us: Option<u32>,
    /// The shortest such time so far.
    pub least_us: Option<u32>,
    /// Share of what the hop before it sent on (cells, or echoes when there are
    /// few) that was lost before it lately, 0 to 1.
    pub loss: f32,
    /// Since it last answered, ms.
    pub silent_ms: Option<u64>,
    /// The handshake's hash, by which its proofs name the circuit.
    pub hash: [u8; 32],
}

/// One circuit as [`Client::circuits`] shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitView {
    /// Tells circuits apart.
    pub serial: u64,
    /// What it does.
    pub phase: Phase,
    /// What it was built for.
    pub purpose: Purpose,
    /// Its hops, from the entry.
    pub hops: Vec<HopView>,
    /// Its age, ms.
    pub age_ms: u64,
    /// Cells sent and received.
    pub cells: (u64, u64),
}

/// A complete circuit.
struct Running {
    circuit: Arc<ClientCircuit>,
    path: Vec<Hop>,
    hashes: Vec<[u8; 32]>,
    purpose: Purpose,
    phase: Phase,
    /// When the last link request was sent; `None` once it was answered.
    linking: Option<u64>,
    born_ms: u64,
    dies_ms: u64,
    /// When the phase began.
    since_ms: u64,
    watch: Watch,
}

/// See the module's description.
pub struct Client {
    suite: Suite,
    tables: Arc<OnionTables>,
    compartment: Compartment,
    building: HashMap<u64, Building>,
    running: Vec<Running>,
    session: Option<(Arc<ClientSession>, [u8; 32])>,
    exit: Option<NodeSuffix>,
    connected: bool,
    /// Attempts to reach the session's exit that failed one after the other.
    exit_failures: u32,
    /// When a path was last asked for, and one that shares fewer nodes.
    asked: HashMap<Purpose, u64>,
    improved_ms: u64,
    /// Nodes that failed, until when they are avoided, ms.
    avoided: HashMap<NodeSuffix, u64>,
    spares: usize,
    ticked_ms: u64,
    transmits: VecDeque<(Arc<PeerLink>, Vec<u8>)>,
    events: VecDeque<ClientEvent>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({} circuits, {} more begun)", self.running.len(), self.building.len())
    }
}

/// Time on the engine's clock in ms.
fn ms(now_us: u64) -> u64 {
    now_us / 1000 + 1
}

impl Client {
    /// Without a session; its session will be this node's first.
    pub fn new(suite: Suite, tables: Arc<OnionTables>) -> Self {
        Self::in_compartment(suite, tables, Compartment::DEFAULT)
    }

    /// As [`Client::new`], beside others with the same tables: with a session
    /// and circuits of its own.
    pub fn in_compartment(
        suite: Suite,
        tables: Arc<OnionTables>,
        compartment: Compartment,
    ) -> Self {
        Self {
            suite,
            tables,
            compartment,
            building: HashMap::new(),
            running: Vec::new(),
            session: None,
            exit: None,
            connected: false,
            exit_failures: 0,
            asked: HashMap::new(),
            improved_ms: 0,
            avoided: HashMap::new(),
            spares: 1,
            ticked_ms: 0,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Begins a session: paths are asked for from now on. `spares` circuits to
    /// other exits are kept.
    pub fn connect(&mut self, spares: usize, now_us: u64, rng: &mut dyn CryptoRng) {
        if self.session.is_some() {
            return;
        }
        self.spares = spares;
        self.new_session(rng);
        self.want(now_us);
    }

    fn new_session(&mut self, rng: &mut dyn CryptoRng) {
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let session = Arc::new(ClientSession::default());
        self.tables.set_own_session(self.compartment, Some(session.clone()));
        self.session = Some((session, secret));
        self.exit = None;
        self.connected = false;
    }

    /// Ends the session and all circuits.
    pub fn disconnect(&mut self, now_us: u64) {
        if let Some((session, _)) = self.session.take() {
            let active = session.active.swap(None);
            if let Some(active) = active {
                let hop = active.hops().saturating_sub(1);
                let cell = active.say(hop, &Request::Close.encode(), ms(now_us));
                self.transmits.push_back((active.entry.peer.clone(), cell));
            }
        }
        self.tables.set_own_session(self.compartment, None);
        for serial in self.building.keys().copied().collect::<Vec<_>>() {
            self.give_up_building(serial);
        }
        for i in (0..self.running.len()).rev() {
            self.destroy(i, Reason::Finished);
        }
        self.exit = None;
        self.connected = false;
        self.asked.clear();
        self.avoided.clear();
    }

    /// True between connect and disconnect.
    pub fn is_on(&self) -> bool {
        self.session.is_some()
    }

    /// True when packets can leave.
    pub fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(|(session, _)| session.active.load().is_some())
    }

    /// True when the session had a circuit, though it may be gone.
    pub fn was_connected(&self) -> bool {
        self.connected
    }

    /// The session's counters.
    pub fn session(&self) -> Option<&Arc<ClientSession>> {
        self.session.as_ref().map(|(session, _)| session)
    }

    /// The next cell to send, and to whom.
    pub fn poll_transmit(&mut self) -> Option<(Arc<PeerLink>, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// All circuits, the active one first.
    pub fn circuits(&self, now_us: u64) -> Vec<CircuitView> {
        let now = ms(now_us);
        let mut all: Vec<_> = self
            .running
            .iter()
            .map(|running| CircuitView {
                serial: running.circuit.serial,
                phase: running.phase,
                purpose: running.purpose,
                hops: running.view(now),
                age_ms: now.saturating_sub(running.born_ms),
                cells: (
                    running.circuit.tx_cells.load(Ordering::Relaxed),
                    running.circuit.rx_cells.load(Ordering::Relaxed),
                ),
            })
            .chain(self.building.iter().map(|(serial, building)| building.view(*serial, now)))
            .collect();
        all.sort_by_key(|view| (view.phase != Phase::Active, view.serial));
        all
    }

    /// Asks every hop of the active circuit for a proof over `nonce`.
    pub fn prove(&mut self, nonce: [u8; 32], now_us: u64) -> bool {
        let Some(active) = self.running.iter().find(|running| running.phase == Phase::Active)
        else {
            return false;
        };
        for hop in 0..active.path.len() {
            let cell = active.circuit.say(hop, &Request::Prove { nonce }.encode(), ms(now_us));
            self.transmits.push_back((active.circuit.entry.peer.clone(), cell));
        }
        true
    }

    /// Wants new circuits; the session moves to them when they are there.
    pub fn rotate(&mut self, now_us: u64) {
        let now = ms(now_us);
        for running in &mut self.running {
            running.dies_ms = running.dies_ms.min(now);
        }
        self.asked.clear();
        self.want(now_us);
    }

    fn new_id(&self, rng: &mut dyn CryptoRng) -> CircuitId {
        loop {
            let id = CircuitId::new(rng.next_u32());
            let taken = self.building.values().any(|building| building.ours() == id);
            if !taken && self.tables.circuit(id).is_none() {
                return id;
            }
        }
    }

    /// Takes a cell without layers; false when it is about none of ours.
    pub fn handle_cell(
        &mut self,
        peer: &Arc<PeerLink>,
        cell: &[u8],
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let Some((kind, id)) = parse(cell) else { return true };
        let content = &cell[HEADER_LEN..];
        match kind {
            Kind::Created => self.created(peer, id, content, now_us, rng),
            Kind::Destroy => self.destroyed(peer, id, content, now_us, rng),
            _ => false,
        }
    }

    fn destroyed(
        &mut self,
        peer: &Arc<PeerLink>,
        id: CircuitId,
        content: &[u8],
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let reason = super::payload::reason_of(content);
        let begun = self
            .building
            .iter()
            .find(|(_, building)| building.ours() == id && Arc::ptr_eq(building.entry(), peer));
        if let Some(serial) = begun.map(|(serial, _)| *serial) {
            self.build_failed(serial, 0, reason, now_us, rng);
            return true;
        }
        let index = self.running.iter().position(|running| {
            running.circuit.entry.ours == id && Arc::ptr_eq(&running.circuit.entry.peer, peer)
        });
        if let Some(index) = index {
            self.ended(index, 0, reason, now_us, rng);
        }
        index.is_some()
    }

    /// What hop `hop` of `circuit` says.
    pub fn handle_answer(
        &mut self,
        circuit: &Arc<ClientCircuit>,
        hop: usize,
        text: &[u8],
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let Some(answer) = Answer::parse(text) else { return };
        let serial = circuit.serial;
        if self.building.contains_key(&serial) {
            match answer {
                Answer::Extended { second } => self.extended(serial, hop, &second, now_us, rng),
                Answer::Ended { reason } => self.build_failed(serial, hop + 1, reason, now_us, rng),
                Answer::Draining => self.build_failed(serial, hop, Reason::Draining, now_us, rng),
                _ => {}
            }
            return;
        }
        let Some(index) = self.running.iter().position(|running| running.circuit.serial == serial)
        else {
            return;
        };
        let last = hop + 1 == self.running[index].path.len();
        match answer {
            Answer::EchoReply { token, received, sent, .. } => {
                let running = &mut self.running[index];
                let took_us = running.watch.answered(hop, token, (sent, received), now_us);
                if let (Some(took_us), Some((session, _)), true, Phase::Active) =
                    (took_us, &self.session, last, running.phase)
                {
                    let bytes = [&session.stream.tx_bytes, &session.stream.rx_bytes]
                        .map(|bytes| bytes.load(Ordering::Relaxed));
                    session.queue.sample(serial, took_us, bytes, ms(now_us));
                }
                self.revived(index, hop, now_us);
            }
            // It has forgotten the session, which cannot go on: numbers and
            // connections are lost. A new one begins, over new circuits.
            Answer::Linked { new: true, .. } if last && self.connected => {
                let exit = self.running[index].path[hop].node;
                self.begin_anew(exit, rng);
                self.want(now_us);
            }
            Answer::Linked { ipv6, .. } if last => self.linked(index, ipv6, now_us),
            Answer::Ended { reason } => {
                // At the last hop: it refuses the session.
                let behind = if last { hop } else { hop + 1 };
                let node = self.running[index].path[hop].node;
                self.ended(index, behind, reason, now_us, rng);
                // It is no exit any more. Only its own word counts: others on the
                // path are not to choose where it ends.
                if last && reason == Reason::Role && self.exit == Some(node) {
                    self.move_on(node, now_us, rng);
                    self.want(now_us);
                }
            }
            Answer::Draining => self.draining(index, hop, now_us),
            Answer::Proof { time, next, signature } => {
                self.events.push_back(ClientEvent::Proof { serial, hop, time, next, signature });
            }
            _ => {}
        }
    }

    fn linked(&mut self, index: usize, ipv6: bool, now_us: u64) {
        let running = &mut self.running[index];
        running.linking = None;
        let serial = running.circuit.serial;
        if running.phase == Phase::Ready {
            running.phase = Phase::Standby;
            running.since_ms = ms(now_us);
        }
        if !self.connected {
            self.connected = true;
            self.events.push_back(ClientEvent::Connected { serial, ipv6 });
        }
        self.want(now_us);
    }

    /// A circuit ended behind hop `behind - 1`, or that node refused.
    fn ended(
        &mut self,
        index: usize,
        behind: usize,
        reason: Reason,
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let running = &self.running[index];
        let serial = running.circuit.serial;
        let node = running.path.get(behind).map_or(running.path[0].node, |hop| hop.node);
        self.avoid(node, now_us);
        self.events.push_back(ClientEvent::Failed { serial, node, reason, was_up: true });
        if self.running[index].phase == Phase::Active {
            self.leave(index, MoveReason::Ended, now_us);
        }
        if let Some(index) = self.running.iter().position(|r| r.circuit.serial == serial) {
            self.destroy(index, Reason::Finished);
        }
        if !self.connected && self.exit == Some(node) {
            // It does not take the session.
            self.move_on(node, now_us, rng);
        }
        self.want(now_us);
    }

    /// The exit is given up: the session goes on at the spare one, or where the
    /// next path leads.
    fn move_on(&mut self, exit: NodeSuffix, now_us: u64, rng: &mut dyn CryptoRng) {
        /// How long an exit that failed is avoided, ms.
        const GONE_MS: u64 = 60_000;
        self.begin_anew(exit, rng);
        self.avoided.insert(exit, ms(now_us) + GONE_MS);
        if let Some(spare) = self.spare(ms(now_us)) {
            let running = &mut self.running[spare];
            running.purpose = Purpose::Active;
            self.exit = running.path.last().map(|hop| hop.node);
            self.link(spare, now_us);
            self.activate(spare, now_us);
        }
    }

    /// The session at `exit` is over; another takes its place.
    fn begin_anew(&mut self, exit: NodeSuffix, rng: &mut dyn CryptoRng) {
        if self.connected {
            self.events.push_back(ClientEvent::ExitLost { exit });
        }
        self.exit_failures = 0;
        for index in (0..self.running.len()).rev() {
            if self.running[index].phase != Phase::Ready {
                self.destroy(index, Reason::Finished);
            }
        }
        self.new_session(rng);
        self.asked.clear();
    }

    fn draining(&mut self, index: usize, hop: usize, now_us: u64) {
        let running = &mut self.running[index];
        let node = running.path[hop].node;
        let last = hop + 1 == running.path.len();
        running.dies_ms = running.dies_ms.min(ms(now_us));
        self.avoid(node, now_us);
        if last && self.exit == Some(node) {
            // The session stays until its flows end: new circuits to this exit
            // are refused, so what is there is kept to its natural end.
            self.running[index].dies_ms = ms(now_us) + LIFE_MS;
        }
        self.want(now_us);
    }

    fn avoid(&mut self, node: NodeSuffix, now_us: u64) {
        /// Long enough to be noticed by others, ms.
        const AVOID_MS: u64 = 15_000;
        if self.exit != Some(node) {
            self.avoided.insert(node, ms(now_us) + AVOID_MS);
        }
    }

    fn destroy(&mut self, index: usize, reason: Reason) {
        let running = self.running.remove(index);
        let entry = &running.circuit.entry;
        self.tables.remove(entry.ours);
        if let Some((session, _)) = &self.session {
            for slot in [&session.active, &session.also] {
                let it = slot.load_full();
                if it.is_some_and(|circuit| Arc::ptr_eq(&circuit, &running.circuit)) {
                    slot.store(None);
                }
            }
        }
        let cell = plain(Kind::Destroy, entry.theirs, &[reason as u8]);
        self.transmits.push_back((entry.peer.clone(), cell));
    }

    fn position(&self, phase: Phase) -> Option<usize> {
        self.running.iter().position(|running| running.phase == phase)
    }

    /// Asks for the paths that are missing.
    fn want(&mut self, now_us: u64) {
        if self.session.is_none() {
            return;
        }
        let now = ms(now_us);
        self.avoided.retain(|_, until| *until > now);
        let lasting = |running: &&Running| running.dies_ms > now + SUCCESSOR_MS;
        let has =
            |phase: Phase| self.running.iter().filter(lasting).filter(|r| r.phase == phase).count();
        let begun = |purpose: Purpose| {
            self.building.values().filter(|building| building.purpose() == purpose).count()
        };
        let active = self.position(Phase::Active);
        let mut wanted = None;
        let lasts = has(Phase::Active) > 0;
        let standbys = || self.running.iter().filter(lasting).filter(|r| r.phase == Phase::Standby);
        let linked = standbys().filter(|r| r.watch.is_trusted(now)).count()
            + self.running.iter().filter(|r| r.linking.is_some()).count();
        let alone = active.is_some_and(|active| {
            let active = &self.running[active];
            standbys().all(|standby| standby.shares_with(active))
        });
        let mut strict = false;
        if active.is_none() && begun(Purpose::Active) + begun(Purpose::Standby) == 0 {
            wanted = Some(Purpose::Active);
        } else if active.is_some() && self.connected {
            // A successor is a standby that outlives the active one.
            let enough = if lasts { 1 } else { 2 };
            if linked + begun(Purpose::Standby) < enough {
                wanted = Some(Purpose::Standby);
            } else if alone
                && begun(Purpose::Standby) == 0
                && now >= self.improved_ms + IMPROVE_MS
                && self.running.iter().all(|r| r.linking.is_none())
            {
                (wanted, strict) = (Some(Purpose::Standby), true);
                self.improved_ms = now;
            } else if has(Phase::Ready) + begun(Purpose::Spare) < self.spares {
                wanted = Some(Purpose::Spare);
            }
        }
        let Some(purpose) = wanted else { return };
        let asked = self.asked.get(&purpose).copied().unwrap_or(0);
        if asked != 0 && now < asked + ASK_MS {
            return;
        }
        self.asked.insert(purpose, now);
        let exit = if purpose == Purpose::Spare { None } else { self.exit };
        let mut failed: Vec<_> = self.avoided.keys().copied().collect();
        if purpose == Purpose::Spare {
            failed.extend(self.exit);
        }
        // Disjoint from what it stands in for, but for the exit.
        let mut used = Vec::new();
        let others = self.running.iter().filter(|running| match running.phase {
            Phase::Active | Phase::Standby | Phase::Suspect => purpose != Purpose::Active,
            _ => false,
        });
        for running in others {
            let keep = if purpose == Purpose::Spare { 0 } else { 1 };
            let nodes = running.path.iter().take(running.path.len().saturating_sub(keep));
            used.extend(nodes.map(|hop| hop.node));
        }
        for list in [&mut failed, &mut used] {
            list.sort_unstable();
            list.dedup();
            list.retain(|node| Some(*node) != exit);
        }
        self.events.push_back(ClientEvent::NeedPath { purpose, exit, failed, used, strict });
    }

    /// When [`Self::handle_timeout`] is due, microseconds; `None` when off.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.session.as_ref()?;
        let busy = !self.building.is_empty()
            || self.running.iter().any(|running| running.phase == Phase::Suspect)
            || self.in_use(self.ticked_ms);
        let step = if busy { 10 } else { 100 };
        Some((self.ticked_ms + step).saturating_sub(1) * 1000)
    }

    /// Probes, judges, repeats, gives up.
    pub fn handle_timeout(
        &mut self,
        around: &dyn Neighbours,
        now_us: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let now = ms(now_us);
        if self.session.is_none() || now <= self.ticked_ms {
            return;
        }
        self.ticked_ms = now;
        self.tick_building(around, now_us, rng);
        self.tick_running(now_us, rng);
        self.want(now_us);
    }
}

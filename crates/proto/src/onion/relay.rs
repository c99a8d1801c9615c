//! The slow path of circuits that others build through this node: handshakes,
//! extensions, sessions, ends.
//!
//! In: cells without layers, requests of clients, the time, an RNG, and who the
//! node's neighbours are. Out: cells to send ([`Relay::poll_transmit`]), events,
//! and entries in [`OnionTables`] for workers. Invariants: bounded in every
//! direction (circuits, sessions, handshakes a second in all and for each
//! neighbour, whose links are authenticated, so that a flood has a name);
//! nothing is kept of a circuit that ended; nothing is logged of one but
//! counters.
//!
//! Deliberately not here: cells with layers (the workers'), NAT and exit policy
//! (the host's).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand_core::CryptoRng;
use warren_types::Suite;

use super::cell::{CircuitId, HEADER_LEN, Kind, parse, plain};
use super::circuit::{HopCircuit, Neighbour};
use super::handshake::{self, FIRST_LEN, HINT_LEN};
use super::payload::{Answer, Reason, Request, reason_of};
use super::session::{ExitSession, Lease, MAX_SESSIONS};
use super::tables::{Entry, OnionTables};
use crate::link::peer::PeerLink;
use crate::link::relay::NodeSuffix;
use crate::noise::StaticKey;

/// Most circuits through one node.
pub const MAX_CIRCUITS: usize = 20_000;
/// A circuit without any cell ends after this long, ms. Clients send echoes.
const IDLE_MS: u64 = 180_000;
/// A circuit without cells for this long gives back what it can make again, ms.
const COOL_MS: u64 = 10_000;
/// How long the next node may take to answer, ms.
const EXTEND_MS: u64 = 5_000;
/// A session without circuits is kept for this long, ms.
const SESSION_MS: u64 = 120_000;
/// How often all circuits are looked at, ms.
const SWEEP_MS: u64 = 1_000;
/// Handshakes a second: in all, and for one neighbour.
const HANDSHAKES: u32 = 2_000;
const HANDSHAKES_EACH: u32 = 400;

/// What this node does for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Duties {
    /// Clients may begin circuits here.
    pub entry: bool,
    /// Circuits may pass.
    pub relay: bool,
    /// Sessions may leave the network here.
    pub exit: bool,
    /// Nothing new.
    pub draining: bool,
    /// The exit reaches IPv6 destinations.
    pub ipv6: bool,
}

/// What a node knows of those around it.
pub trait Neighbours {
    /// The link to the node named so.
    fn by_suffix(&self, node: &NodeSuffix) -> Option<Arc<PeerLink>>;
    /// True when the peer is a node of the onion network, not only a client.
    fn has_role(&self, peer: &PeerLink) -> bool;
}

/// Something the daemon is to know.
#[derive(Debug)]
pub enum RelayEvent {
    /// A client wants a proof: sign and give it to [`Relay::prove`].
    Prove {
        /// Its circuit.
        circuit: Arc<HopCircuit>,
        /// Of the request.
        nonce: [u8; 32],
    },
}

/// Figures for `warren status` and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Circuits now.
    pub circuits: usize,
    /// Sessions now.
    pub sessions: usize,
    /// Handshakes answered since the start.
    pub handshakes: u64,
    /// Circuits, extensions and sessions refused.
    pub refused: u64,
}

struct Extending {
    /// Our number on the link to the next node.
    ours: CircuitId,
    peer: Arc<PeerLink>,
    until_ms: u64,
}

struct Passing {
    circuit: Arc<HopCircuit>,
    /// The created cell, in case it was lost.
    created: Option<Vec<u8>>,
    extending: Option<Extending>,
    /// First message of the extension, and the answer, in case it was lost.
    extended: Option<(Vec<u8>, Option<Vec<u8>>)>,
    session: Option<[u8; 32]>,
    began_ms: u64,
}

struct Session {
    exit: Arc<ExitSession>,
    circuits: HashSet<CircuitId>,
    empty_since: Option<u64>,
}

#[derive(Default)]
struct Meter {
    second: u64,
    total: u32,
    each: HashMap<usize, u32>,
}

impl Meter {
    fn allow(&mut self, peer: &Arc<PeerLink>, now_ms: u64) -> bool {
        if self.second != now_ms / 1000 {
            self.second = now_ms / 1000;
            self.total = 0;
            self.each.clear();
        }
        let each = self.each.entry(Arc::as_ptr(peer) as usize).or_default();
        if self.total >= HANDSHAKES || *each >= HANDSHAKES_EACH {
            return false;
        }
        *each += 1;
        self.total += 1;
        true
    }
}

/// See the module's description.
pub struct Relay {
    suite: Suite,
    tables: Arc<OnionTables>,
    duties: Duties,
    keys: Vec<StaticKey>,
    circuits: HashMap<CircuitId, Passing>,
    /// Our number on the link to the next node, to the circuit.
    extending: HashMap<CircuitId, CircuitId>,
    /// The neighbour's number with the neighbour, to the circuit: a repeated
    /// create is answered again.
    begun: HashMap<(usize, CircuitId), CircuitId>,
    sessions: HashMap<[u8; 32], Session>,
    next_lease: u16,
    meter: Meter,
    transmits: VecDeque<(Arc<PeerLink>, Vec<u8>)>,
    events: VecDeque<RelayEvent>,
    swept_ms: u64,
    stats: RelayStats,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Relay({} circuits, {} sessions)", self.circuits.len(), self.sessions.len())
    }
}

impl Relay {
    /// A node without duties.
    pub fn new(suite: Suite, tables: Arc<OnionTables>) -> Self {
        Self {
            suite,
            tables,
            duties: Duties::default(),
            keys: Vec::new(),
            circuits: HashMap::new(),
            extending: HashMap::new(),
            begun: HashMap::new(),
            sessions: HashMap::new(),
            next_lease: 0,
            meter: Meter::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            swept_ms: 0,
            stats: RelayStats::default(),
        }
    }

    /// Sets what the node does. Circuits there are stay, and their clients are
    /// told when draining begins; but sessions of an exit that is none any more
    /// end, since nothing leaves from it.
    pub fn set_duties(&mut self, duties: Duties, now_ms: u64) {
        if duties.draining && !self.duties.draining {
            for passing in self.circuits.values() {
                let cell = passing.circuit.say(&Answer::Draining.encode(), now_ms);
                self.transmits.push_back((passing.circuit.previous.peer.clone(), cell));
            }
        }
        if self.duties.exit && !duties.exit {
            for passing in self.circuits.values().filter(|passing| passing.session.is_some()) {
                let ended = Answer::Ended { reason: Reason::Role };
                let cell = passing.circuit.say(&ended.encode(), now_ms);
                self.transmits.push_back((passing.circuit.previous.peer.clone(), cell));
            }
            for secret in self.sessions.keys().copied().collect::<Vec<_>>() {
                self.end_session(&secret);
            }
        }
        self.duties = duties;
    }

    /// What the node does.
    pub fn duties(&self) -> Duties {
        self.duties
    }

    /// Sets the onion keys that are valid now, the newest first.
    pub fn set_keys(&mut self, keys: Vec<StaticKey>) {
        self.keys = keys;
    }

    /// Figures.
    pub fn stats(&self) -> RelayStats {
        RelayStats { circuits: self.circuits.len(), sessions: self.sessions.len(), ..self.stats }
    }

    /// The next cell to send, and to whom.
    pub fn poll_transmit(&mut self) -> Option<(Arc<PeerLink>, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due, ms; `None` without circuits.
    pub fn poll_timeout(&self) -> Option<u64> {
        let idle = self.circuits.is_empty() && self.sessions.is_empty();
        (!idle).then_some(self.swept_ms + SWEEP_MS)
    }

    fn new_id(&self, rng: &mut dyn CryptoRng) -> CircuitId {
        loop {
            let id = CircuitId::new(rng.next_u32());
            let taken = self.circuits.contains_key(&id) || self.extending.contains_key(&id);
            if !taken && self.tables.circuit(id).is_none() {
                return id;
            }
        }
    }

    fn refuse(&mut self, peer: &Arc<PeerLink>, theirs: CircuitId, reason: Reason) {
        self.stats.refused += 1;
        let cell = plain(Kind::Destroy, theirs, &[reason as u8]);
        self.transmits.push_back((peer.clone(), cell));
    }

    /// Takes a cell without layers from `peer`; false when it is about none of
    /// our circuits (it may be one of our client's).
    pub fn handle_cell(
        &mut self,
        peer: &Arc<PeerLink>,
        cell: &[u8],
        around: &dyn Neighbours,
        now_ms: u64,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let Some((kind, id)) = parse(cell) else { return true };
        let content = &cell[HEADER_LEN..];
        match kind {
            Kind::Create => self.create(peer, id, content, around, now_ms, rng),
            Kind::Created => return self.created(peer, id, content, now_ms),
            Kind::Destroy => return self.destroyed(peer, id, reason_of(content), now_ms),
            Kind::Forward | Kind::Backward => {}
        }
        true
    }

    fn create(
        &mut self,
        peer: &Arc<PeerLink>,
        theirs: CircuitId,
        content: &[u8],
        around: &dyn Neighbours,
        now_ms: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let begun = (Arc::as_ptr(peer) as usize, theirs);
        if let Some(known) = self.begun.get(&begun).and_then(|id| self.circuits.get(id)) {
            if let Some(created) = &known.created {
                self.transmits.push_back((peer.clone(), created.clone()));
            }
            return;
        }
        let Duties { entry, relay, exit, draining, .. } = self.duties;
        // A path of one hop begins and ends at an exit.
        let welcome = entry || exit || (relay && around.has_role(peer));
        let refusal = if draining {
            Some(Reason::Draining)
        } else if !welcome {
            Some(Reason::Role)
        } else if self.circuits.len() >= MAX_CIRCUITS || !self.meter.allow(peer, now_ms) {
            Some(Reason::Busy)
        } else {
            None
        };
        if let Some(reason) = refusal {
            return self.refuse(peer, theirs, reason);
        }
        let (Some(hint), Some(first)) =
            (content.first_chunk::<HINT_LEN>(), content.get(HINT_LEN..HINT_LEN + FIRST_LEN))
        else {
            return self.refuse(peer, theirs, Reason::Protocol);
        };
        let key = self.keys.iter().find(|key| handshake::hint(&key.public().0) == *hint);
        let answered = key.and_then(|key| handshake::respond(self.suite, key, first, rng).ok());
        let Some((second, agreed)) = answered else {
            return self.refuse(peer, theirs, Reason::Handshake);
        };
        let ours = self.new_id(rng);
        let previous = Neighbour { peer: peer.clone(), theirs, ours };
        let circuit = Arc::new(HopCircuit::new(previous, agreed.secrets, agreed.hash, now_ms));
        self.tables.insert(ours, Entry::Hop(circuit.clone()));
        let created = plain(Kind::Created, theirs, &created_content(ours, &second));
        self.transmits.push_back((peer.clone(), created.clone()));
        self.stats.handshakes += 1;
        self.begun.insert(begun, ours);
        let passing = Passing {
            circuit,
            created: Some(created),
            extending: None,
            extended: None,
            session: None,
            began_ms: now_ms,
        };
        self.circuits.insert(ours, passing);
    }

    fn created(
        &mut self,
        peer: &Arc<PeerLink>,
        ours: CircuitId,
        content: &[u8],
        now_ms: u64,
    ) -> bool {
        let Some(id) = self.extending.get(&ours).copied() else { return false };
        let Some(passing) = self.circuits.get_mut(&id) else { return true };
        let awaited = passing
            .extending
            .as_ref()
            .is_some_and(|extending| Arc::ptr_eq(&extending.peer, peer) && extending.ours == ours);
        let Some((theirs, second)) = read_created(content) else { return true };
        if !awaited {
            return true;
        }
        passing.extending = None;
        let circuit = passing.circuit.clone();
        let next = Neighbour { peer: peer.clone(), theirs, ours };
        circuit.next.store(Some(Arc::new(next)));
        self.tables.insert(ours, Entry::HopBack(circuit.clone()));
        if let Some((_, kept)) = &mut passing.extended {
            *kept = Some(second.to_vec());
        }
        self.say(&circuit, &Answer::Extended { second: second.to_vec() }, now_ms);
        true
    }

    /// Takes a created cell that is about none of ours, nor of our client's: what
    /// was given up meanwhile. The circuit is ended there, rather than left to
    /// its idle limit.
    pub fn refuse_created(&mut self, peer: &Arc<PeerLink>, cell: &[u8]) {
        let Some((Kind::Created, ours)) = parse(cell) else { return };
        // A repetition of one that was answered already is no stranger.
        if self.tables.circuit(ours).is_some() {
            return;
        }
        if let Some((theirs, _)) = read_created(&cell[HEADER_LEN..]) {
            let cell = plain(Kind::Destroy, theirs, &[Reason::Finished as u8]);
            self.transmits.push_back((peer.clone(), cell));
        }
    }

    fn say(&mut self, circuit: &HopCircuit, answer: &Answer, now_ms: u64) {
        let cell = circuit.say(&answer.encode(), now_ms);
        self.transmits.push_back((circuit.previous.peer.clone(), cell));
    }

    fn destroyed(
        &mut self,
        peer: &Arc<PeerLink>,
        ours: CircuitId,
        reason: Reason,
        now_ms: u64,
    ) -> bool {
        if let Some(passing) = self.circuits.get(&ours) {
            if Arc::ptr_eq(&passing.circuit.previous.peer, peer) {
                self.end(ours, reason, false, now_ms);
            }
            return true;
        }
        let Some(id) = self.extending.get(&ours).copied() else { return false };
        let Some(passing) = self.circuits.get(&id) else { return true };
        let from_next = match (&passing.extending, passing.circuit.next.load().as_ref()) {
            (Some(extending), _) => Arc::ptr_eq(&extending.peer, peer),
            (None, Some(next)) => Arc::ptr_eq(&next.peer, peer),
            (None, None) => false,
        };
        if from_next {
            self.cut(id, reason, now_ms);
        }
        true
    }

    /// What lies behind us is gone: the client is told.
    fn cut(&mut self, id: CircuitId, reason: Reason, now_ms: u64) {
        let Some(passing) = self.circuits.get_mut(&id) else { return };
        let circuit = passing.circuit.clone();
        passing.extended = None;
        let extending = passing.extending.take().map(|extending| extending.ours);
        let next = circuit.next.swap(None).map(|next| next.ours);
        for ours in extending.into_iter().chain(next) {
            self.extending.remove(&ours);
            self.tables.remove(ours);
        }
        self.say(&circuit, &Answer::Ended { reason }, now_ms);
    }

    /// Ends a circuit; neighbours are told, the one towards the client only
    /// with `back`.
    fn end(&mut self, id: CircuitId, reason: Reason, back: bool, now_ms: u64) {
        let Some(passing) = self.circuits.remove(&id) else { return };
        let circuit = passing.circuit;
        self.tables.remove(id);
        let previous = &circuit.previous;
        self.begun.remove(&(Arc::as_ptr(&previous.peer) as usize, previous.theirs));
        if back {
            let cell = plain(Kind::Destroy, previous.theirs, &[reason as u8]);
            self.transmits.push_back((previous.peer.clone(), cell));
        }
        if let Some(extending) = passing.extending {
            self.extending.remove(&extending.ours);
        }
        if let Some(next) = circuit.next.swap(None) {
            self.extending.remove(&next.ours);
            self.tables.remove(next.ours);
            // Not the reason: it would be a word from hop to hop.
            let cell = plain(Kind::Destroy, next.theirs, &[Reason::Finished as u8]);
            self.transmits.push_back((next.peer.clone(), cell));
        }
        circuit.session.store(None);
        if let Some(secret) = passing.session
            && let Some(session) = self.sessions.get_mut(&secret)
        {
            session.circuits.remove(&id);
            let active = session.exit.active.load_full();
            if active.is_some_and(|active| Arc::ptr_eq(&active, &circuit)) {
                let other = session.circuits.iter().find_map(|id| self.circuits.get(id));
                session.exit.active.store(other.map(|passing| passing.circuit.clone()));
            }
            if session.circuits.is_empty() {
                session.empty_since = Some(now_ms);
            }
        }
    }

    /// What a client says to us as a hop.
    pub fn handle_request(
        &mut self,
        circuit: &Arc<HopCircuit>,
        text: &[u8],
        around: &dyn Neighbours,
        now_ms: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let id = circuit.previous.ours;
        let known = self.circuits.get(&id);
        if !known.is_some_and(|passing| Arc::ptr_eq(&passing.circuit, circuit)) {
            return;
        }
        match Request::parse(text) {
            Some(Request::Extend { next, hint, first }) => {
                self.extend(id, next, hint, first, around, now_ms, rng);
            }
            Some(Request::Link { secret }) => self.link(id, secret, now_ms),
            Some(Request::Close) => self.close(id),
            // Signing costs like a handshake: one limit for both.
            Some(Request::Prove { nonce }) if self.meter.allow(&circuit.previous.peer, now_ms) => {
                self.events.push_back(RelayEvent::Prove { circuit: circuit.clone(), nonce });
            }
            // Workers answer echoes.
            Some(Request::Prove { .. } | Request::Echo { .. }) | None => {}
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one request")]
    fn extend(
        &mut self,
        id: CircuitId,
        next: NodeSuffix,
        hint: [u8; HINT_LEN],
        first: Vec<u8>,
        around: &dyn Neighbours,
        now_ms: u64,
        rng: &mut dyn CryptoRng,
    ) {
        let Some(passing) = self.circuits.get(&id) else { return };
        let circuit = passing.circuit.clone();
        if let Some((asked, answer)) = &passing.extended
            && *asked == first
        {
            // Our answer was lost, or is still to come.
            if let Some(second) = answer.clone() {
                self.say(&circuit, &Answer::Extended { second }, now_ms);
            } else if let Some(extending) = &passing.extending {
                let content = [&hint[..], &first].concat();
                let cell = plain(Kind::Create, extending.ours, &content);
                self.transmits.push_back((extending.peer.clone(), cell));
            }
            return;
        }
        let busy = passing.extending.is_some()
            || circuit.next.load().is_some()
            || passing.session.is_some();
        let peer = around.by_suffix(&next);
        let reason = if busy {
            Some(Reason::Protocol)
        } else if !(self.duties.relay || self.duties.entry) {
            Some(Reason::Role)
        } else if peer.as_ref().is_none_or(|peer| Arc::ptr_eq(peer, &circuit.previous.peer)) {
            Some(Reason::Unreachable)
        } else {
            None
        };
        let (Some(peer), None) = (peer, reason) else {
            self.stats.refused += 1;
            let reason = reason.unwrap_or(Reason::Unreachable);
            return self.say(&circuit, &Answer::Ended { reason }, now_ms);
        };
        let ours = self.new_id(rng);
        self.extending.insert(ours, id);
        let content = [&hint[..], &first].concat();
        self.transmits.push_back((peer.clone(), plain(Kind::Create, ours, &content)));
        if let Some(passing) = self.circuits.get_mut(&id) {
            passing.extending = Some(Extending { ours, peer, until_ms: now_ms + EXTEND_MS });
            passing.extended = Some((first, None));
        }
    }

    fn link(&mut self, id: CircuitId, secret: [u8; 32], now_ms: u64) {
        let Some(passing) = self.circuits.get(&id) else { return };
        let circuit = passing.circuit.clone();
        let new = !self.sessions.contains_key(&secret);
        let other = passing.session.is_some_and(|known| known != secret);
        let reason = if !self.duties.exit {
            Some(Reason::Role)
        } else if other || circuit.next.load().is_some() {
            Some(Reason::Protocol)
        } else if new && self.duties.draining {
            Some(Reason::Draining)
        } else {
            None
        };
        let lease = if new && reason.is_none() { self.free_lease() } else { None };
        let reason = reason.or((new && lease.is_none()).then_some(Reason::Busy));
        if let Some(reason) = reason {
            self.stats.refused += 1;
            return self.say(&circuit, &Answer::Ended { reason }, now_ms);
        }
        if let Some(lease) = lease {
            let exit = Arc::new(ExitSession::new(lease));
            self.tables.set_session(lease, Some(exit.clone()));
            let session = Session { exit, circuits: HashSet::new(), empty_since: None };
            self.sessions.insert(secret, session);
        }
        if let Some(session) = self.sessions.get_mut(&secret) {
            session.circuits.insert(id);
            session.empty_since = None;
            if session.exit.active.load().is_none() {
                session.exit.active.store(Some(circuit.clone()));
            }
            circuit.session.store(Some(session.exit.clone()));
        }
        if let Some(passing) = self.circuits.get_mut(&id) {
            passing.session = Some(secret);
        }
        self.say(&circuit, &Answer::Linked { new, ipv6: self.duties.ipv6 }, now_ms);
    }

    fn free_lease(&mut self) -> Option<Lease> {
        for _ in 0..MAX_SESSIONS {
            self.next_lease = self.next_lease.wrapping_add(1);
            if let Some(lease) = Lease::new(self.next_lease)
                && self.tables.session(lease).is_none()
            {
                return Some(lease);
            }
        }
        None
    }

    fn close(&mut self, id: CircuitId) {
        if let Some(secret) = self.circuits.get(&id).and_then(|passing| passing.session) {
            self.end_session(&secret);
        }
    }

    fn end_session(&mut self, secret: &[u8; 32]) {
        let Some(session) = self.sessions.remove(secret) else { return };
        self.tables.set_session(session.exit.lease, None);
        session.exit.active.store(None);
        for id in session.circuits {
            if let Some(passing) = self.circuits.get_mut(&id) {
                passing.session = None;
                passing.circuit.session.store(None);
            }
        }
    }

    /// Sends a proof that the daemon signed.
    pub fn prove(
        &mut self,
        circuit: &Arc<HopCircuit>,
        time: u64,
        signature: [u8; 64],
        now_ms: u64,
    ) {
        let next = next_of(circuit);
        self.say(circuit, &Answer::Proof { time, next, signature }, now_ms);
    }

    /// Ends what fell silent or took too long.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        if now_ms < self.swept_ms + SWEEP_MS {
            return;
        }
        self.swept_ms = now_ms;
        let (mut ended, mut cut) = (Vec::new(), Vec::new());
        for (id, passing) in &mut self.circuits {
            let idle = now_ms.saturating_sub(passing.circuit.last_ms.load(Ordering::Relaxed));
            if now_ms.saturating_sub(passing.began_ms) > COOL_MS {
                passing.created = None;
                if passing.extending.is_none() {
                    passing.extended = None;
                }
            }
            if idle >= IDLE_MS {
                ended.push(*id);
            } else if passing.extending.as_ref().is_some_and(|e| e.until_ms <= now_ms) {
                cut.push(*id);
            } else if idle >= COOL_MS {
                passing.circuit.cool();
            }
        }
        for id in ended {
            self.end(id, Reason::Finished, true, now_ms);
        }
        for id in cut {
            self.cut(id, Reason::Unreachable, now_ms);
        }
        let over: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| {
                session.empty_since.is_some_and(|since| now_ms >= since + SESSION_MS)
            })
            .map(|(secret, _)| *secret)
            .collect();
        over.iter().for_each(|secret| self.end_session(secret));
    }

    /// Ends everything: the node stops.
    pub fn shut_down(&mut self, now_ms: u64) {
        for id in self.circuits.keys().copied().collect::<Vec<_>>() {
            self.end(id, Reason::Finished, true, now_ms);
        }
        for secret in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.end_session(&secret);
        }
    }
}

/// The node after us on a circuit, as proofs name it.
pub fn next_of(circuit: &HopCircuit) -> NodeSuffix {
    let next = circuit.next.load();
    let node = next.as_ref().and_then(|next| next.peer.node());
    node.map(crate::link::relay::suffix).unwrap_or_default()
}

/// The content of a created cell: the number we chose, and the second message.
fn created_content(ours: CircuitId, second: &[u8]) -> Vec<u8> {
    [&ours.get().to_le_bytes()[..3], second].concat()
}

/// Reads the content of a created cell.
pub(super) fn read_created(content: &[u8]) -> Option<(CircuitId, &[u8])> {
    let (id, rest) = content.split_first_chunk::<3>()?;
    let [a, b, c] = *id;
    let second = rest.get(..handshake::SECOND_LEN)?;
    Some((CircuitId::new(u32::from_le_bytes([a, b, c, 0])), second))
}

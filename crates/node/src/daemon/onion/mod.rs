//! Onion paths in the daemon: what others build through this node, and our own.
//!
//! In: cells and texts that workers hand over, requests of the local API, the
//! directory. Out: cells (through the engine, so that they wait for a session
//! where there is none yet), events, and the state of the machine (`host`).
//! Invariants: when a session is wanted, the machine's traffic is led into the
//! tunnel before the first circuit is there and until the operator ends it, so
//! nothing takes another way meanwhile; a node serves as an exit only while its
//! address translation is in force.
//! Deliberately not here: the protocol (`proto::onion`), which nodes make a path
//! (`proto::selection`), rules and routes of the machine (`host`).

mod choose;
mod connect;
mod isolated;
mod proof;
mod report;
mod userspace;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_proto::link::peer::PeerLink;
use warren_proto::link::relay::{NodeSuffix, suffix};
use warren_proto::link::tables::{Routes, Tables};
use warren_proto::noise::StaticKey;
use warren_proto::onion::circuit::{ClientCircuit, HopCircuit};
use warren_proto::onion::client::{Client, ClientEvent, MoveReason};
use warren_proto::onion::compartment::Compartment;
use warren_proto::onion::payload::Reason;
use warren_proto::onion::relay::{Duties, Neighbours, Relay, RelayEvent};
use warren_proto::selection::{Constraints, Explanation, GuardState};
use warren_types::api::{ConnectRequest, Event};
use warren_types::{NodeId, Role, Suite};

use super::Daemon;
use super::mesh::Mesh;
use crate::host::plan::PolicyRule;
use crate::random::OsRandom;

/// What this node has to do with onion paths.
pub(super) struct Onion {
    suite: Suite,
    tables: Arc<Tables>,
    relay: Relay,
    /// Of the node's own session.
    client: Client,
    /// Those of user names.
    isolated: BTreeMap<Compartment, isolated::Isolated>,
    last_compartment: u16,
    request: Option<ConnectRequest>,
    constraints: Constraints,
    guards: GuardState,
    explanation: Option<Explanation>,
    problem: Option<String>,
    ipv6: bool,
    /// The mesh's networks when the machine's traffic was last led past them.
    led_beside: Vec<IpNet>,
    /// The names on each circuit, for what is told after it is gone.
    names: HashMap<(Compartment, u64), Vec<String>>,
    /// Exits and relays that failed lately, and when.
    failures: HashMap<NodeId, Instant>,
    exit_policy: Option<Vec<PolicyRule>>,
    /// The exit of userspace mode.
    socket_exit: Option<userspace::SocketExit>,
    proving: Option<proof::Proving>,
}

impl std::fmt::Debug for Onion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Onion({:?}, {:?})", self.relay, self.client)
    }
}

impl Onion {
    pub(super) fn new(suite: Suite, tables: Arc<Tables>) -> Self {
        let onion = tables.onion.clone();
        Self {
            suite,
            tables,
            relay: Relay::new(suite, onion.clone()),
            client: Client::new(suite, onion),
            isolated: BTreeMap::new(),
            last_compartment: 0,
            request: None,
            constraints: Constraints::default(),
            guards: GuardState::default(),
            explanation: None,
            problem: None,
            ipv6: false,
            led_beside: Vec::new(),
            names: HashMap::new(),
            failures: HashMap::new(),
            exit_policy: None,
            socket_exit: None,
            proving: None,
        }
    }

    fn routes(&self) -> Arc<Routes> {
        self.tables.routes.load_full()
    }

    /// All clients there are.
    fn clients(&self) -> impl Iterator<Item = (Compartment, &Client)> {
        let isolated = self.isolated.iter().map(|(at, one)| (*at, &one.client));
        std::iter::once((Compartment::DEFAULT, &self.client)).chain(isolated)
    }

    fn clients_mut(&mut self) -> impl Iterator<Item = (Compartment, &mut Client)> {
        let isolated = self.isolated.iter_mut().map(|(at, one)| (*at, &mut one.client));
        std::iter::once((Compartment::DEFAULT, &mut self.client)).chain(isolated)
    }

    fn client_in(&mut self, compartment: Compartment) -> Option<&mut Client> {
        self.clients_mut().find(|(at, _)| *at == compartment).map(|(_, client)| client)
    }
}

/// Who is around, as circuits ask.
struct Around<'a> {
    routes: Arc<Routes>,
    mesh: &'a Mesh,
}

impl Neighbours for Around<'_> {
    fn by_suffix(&self, node: &NodeSuffix) -> Option<Arc<PeerLink>> {
        self.routes.node(node).cloned()
    }

    fn has_role(&self, peer: &PeerLink) -> bool {
        let id = self.mesh.node_of(&peer.key());
        id.and_then(|id| self.mesh.view(id)).is_some_and(|view| view.onion().is_some())
    }
}

impl Daemon {
    /// Microseconds on the clock shared with the workers.
    fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    fn now_ms(&self) -> u64 {
        self.now_us() / 1000 + 1
    }

    /// A circuit begins or ends.
    pub(super) fn onion_cell(&mut self, peer: &Arc<PeerLink>, cell: &[u8]) {
        let (now_us, now_ms) = (self.now_us(), self.now_ms());
        let around = Around { routes: self.onion.routes(), mesh: &self.mesh };
        let rng = &mut OsRandom;
        if !self.onion.relay.handle_cell(peer, cell, &around, now_ms, rng)
            && !self.onion.clients_mut().any(|(_, one)| one.handle_cell(peer, cell, now_us, rng))
        {
            self.onion.relay.refuse_created(peer, cell);
        }
        self.flush_onion();
    }

    /// What a client says to us as a hop.
    pub(super) fn onion_request(&mut self, circuit: &Arc<HopCircuit>, text: &[u8]) {
        let now_ms = self.now_ms();
        let around = Around { routes: self.onion.routes(), mesh: &self.mesh };
        self.onion.relay.handle_request(circuit, text, &around, now_ms, &mut OsRandom);
        self.flush_onion();
    }

    /// What a hop of ours says.
    pub(super) fn onion_answer(&mut self, circuit: &Arc<ClientCircuit>, hop: usize, text: &[u8]) {
        let now_us = self.now_us();
        if let Some(client) = self.onion.client_in(circuit.compartment) {
            client.handle_answer(circuit, hop, text, now_us, &mut OsRandom);
        }
        self.flush_onion();
    }

    /// When circuits want to be looked at.
    pub(super) fn onion_due(&self) -> Option<Instant> {
        let relay = self.onion.relay.poll_timeout().map(|ms| ms * 1000);
        let clients = self.onion.clients().filter_map(|(_, client)| client.poll_timeout());
        let due = clients.chain(relay).min();
        let due = due.map(|us| self.epoch + Duration::from_micros(us));
        let proof = self.onion.proving.as_ref().map(|proving| proving.until);
        [due, proof].into_iter().flatten().min()
    }

    /// They are due.
    pub(super) fn tick_onion(&mut self) {
        let (now_us, now_ms) = (self.now_us(), self.now_ms());
        self.onion.relay.handle_timeout(now_ms);
        let around = Around { routes: self.onion.routes(), mesh: &self.mesh };
        for (_, client) in self.onion.clients_mut() {
            client.handle_timeout(&around, now_us, &mut OsRandom);
        }
        self.finish_proof(false);
        self.flush_onion();
    }

    /// Sends and tells what circuits want sent and told.
    pub(super) fn flush_onion(&mut self) {
        loop {
            while let Some((peer, cell)) = self.onion.relay.poll_transmit() {
                self.send_cell(&peer, cell);
            }
            self.flush_clients();
            if let Some(event) = self.onion.relay.poll_event() {
                self.relay_event(event);
                continue;
            }
            let event = self
                .onion
                .clients_mut()
                .find_map(|(compartment, client)| Some((compartment, client.poll_event()?)));
            match event {
                Some((Compartment::DEFAULT, event)) => self.client_event(event),
                Some((compartment, event)) => self.isolated_event(compartment, event),
                None => break,
            }
        }
    }

    fn flush_clients(&mut self) {
        let next = |onion: &mut Onion| onion.clients_mut().find_map(|(_, one)| one.poll_transmit());
        while let Some((peer, cell)) = next(&mut self.onion) {
            self.send_cell(&peer, cell);
        }
    }

    fn send_cell(&mut self, peer: &Arc<PeerLink>, cell: Vec<u8>) {
        if peer.send.load().is_none() {
            self.dial(&peer.key());
        }
        self.engine.handle_staged(peer, [cell], self.now(), &mut OsRandom);
    }

    fn relay_event(&mut self, event: RelayEvent) {
        match event {
            RelayEvent::Prove { circuit, nonce } => self.sign_proof(&circuit, nonce),
        }
    }

    fn client_event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::NeedPath { purpose, exit, failed, used, strict } => {
                self.choose_path(Compartment::DEFAULT, purpose, exit, &failed, &used, strict);
            }
            ClientEvent::Connected { serial, ipv6 } => {
                self.onion.ipv6 = ipv6;
                self.onion.problem = None;
                self.readdress_paths();
                let path = self.circuit_names(Compartment::DEFAULT, serial);
                tracing::info!(hops = path.len(), "onion path is up");
                self.events.publish(Event::OnionConnected { path, user: None });
            }
            ClientEvent::Moved { from, to, reason, silent_ms } => {
                self.onion.problem = None;
                super::metrics::moved(&mut self.happened, reason);
                self.tell_moved(Compartment::DEFAULT, (from, to), reason, silent_ms);
            }
            ClientEvent::Interrupted => {
                self.happened.interruptions += 1;
                self.tell_interrupted(None);
            }
            ClientEvent::ExitLost { exit } => {
                self.happened.exits_lost += 1;
                // Not before the new session is there: a program that connects again
                // at once is not held up.
                self.end_connections();
                self.reset_paths();
                self.readdress_paths();
                let exit = self.suffix_name(&exit);
                self.events.publish(Event::OnionExitLost { exit, user: None });
            }
            ClientEvent::Failed { node, reason, was_up, .. } => {
                self.hop_failed(&node, reason, was_up);
            }
            ClientEvent::Proof { serial, hop, time, next, signature } => {
                self.take_proof(serial, hop, time, next, &signature);
            }
        }
    }

    /// A circuit, whichever session's, could not be built or ended at `node`.
    fn hop_failed(&mut self, node: &NodeSuffix, reason: Reason, was_up: bool) {
        if let Some(id) = self.suffix_node(node) {
            self.onion.failures.insert(id, Instant::now());
        }
        let name = self.suffix_name(node);
        let reason = reason.label().to_owned();
        tracing::debug!(%reason, was_up, "a circuit failed");
        self.events.publish(Event::OnionHopFailed { name, reason, was_up });
    }

    /// The member that relay frames and circuits name so.
    fn suffix_node(&self, node: &NodeSuffix) -> Option<NodeId> {
        let own = self.onion.routes().own_suffix()?;
        if own == *node {
            return Some(self.id);
        }
        let link = self.onion.routes().node(node)?.clone();
        self.mesh.node_of(&link.key())
    }

    fn suffix_name(&self, node: &NodeSuffix) -> String {
        self.suffix_node(node)
            .and_then(|id| self.mesh.view(id))
            .map_or_else(|| "a node that left".to_owned(), |view| view.name.to_string())
    }

    fn suffix_of(&self, id: NodeId) -> Option<NodeSuffix> {
        self.mesh.place(id).map(|place: Ipv6Addr| suffix(place))
    }

    fn tell_moved(
        &mut self,
        at: Compartment,
        (from, to): (u64, u64),
        reason: MoveReason,
        silent_ms: u64,
    ) {
        let (from, to) = (self.circuit_names(at, from), self.circuit_names(at, to));
        let (reason, user) = (move_reason(reason).to_owned(), self.user_of(at));
        self.events.publish(Event::OnionMoved { from, to, reason, silent_ms, user });
    }

    fn tell_interrupted(&self, user: Option<String>) {
        let reason = "the last circuit is gone; another is being built".to_owned();
        self.events.publish(Event::OnionInterrupted { reason, user });
    }

    /// The names on a circuit, also after it is gone.
    fn circuit_names(&mut self, at: Compartment, serial: u64) -> Vec<String> {
        let now_us = self.now_us();
        let views = self.onion.client_in(at).map_or_else(Vec::new, |one| one.circuits(now_us));
        for view in &views {
            if !self.onion.names.contains_key(&(at, view.serial)) {
                let names = view.hops.iter().map(|hop| self.suffix_name(&hop.node)).collect();
                self.onion.names.insert((at, view.serial), names);
            }
        }
        let oldest = views.iter().map(|view| view.serial).min().unwrap_or(serial).min(serial);
        let names = self.onion.names.get(&(at, serial)).cloned().unwrap_or_default();
        self.onion.names.retain(|(of, known), _| *of != at || *known + 16 >= oldest);
        names
    }

    /// Puts into force what the operator wants this node to do for others.
    pub(super) fn apply_duties(&mut self) {
        let report = self.roles_report();
        let roles = report.settings.roles;
        let exit = roles.has(Role::Exit) && self.keep_exit(true);
        if !roles.has(Role::Exit) {
            self.keep_exit(false);
        }
        let duties = Duties {
            entry: roles.has(Role::Entry),
            relay: roles.has(Role::Relay),
            exit,
            draining: report.draining,
            ipv6: exit && connect::has_ipv6_route(),
        };
        let keys =
            self.onion_keys().map(|pair| StaticKey::from_bytes(pair.secret.expose())).collect();
        self.onion.relay.set_keys(keys);
        let now_ms = self.now_ms();
        self.onion.relay.set_duties(duties, now_ms);
        self.flush_onion();
    }

    /// Circuits and sessions end with us.
    pub(super) fn end_onion(&mut self) {
        let (now_us, now_ms) = (self.now_us(), self.now_ms());
        self.end_isolated();
        self.onion.client.disconnect(now_us);
        self.onion.relay.shut_down(now_ms);
        self.flush_clients();
        while let Some((peer, cell)) = self.onion.relay.poll_transmit() {
            self.send_cell(&peer, cell);
        }
    }
}

fn move_reason(reason: MoveReason) -> &'static str {
    match reason {
        MoveReason::Silent => "nothing came back",
        MoveReason::Ended => "a node ended the circuit",
        MoveReason::Slower => "the other circuit is faster",
        MoveReason::Lossy => "it lost packets",
        MoveReason::Rotation => "planned rotation",
    }
}

//! The one task that decides: who is connected, what everybody is told, whom to
//! dial next.
//!
//! In: what sessions, dialers and the handle report ([`Input`]). Out: events for
//! the daemon, frames for sessions, dial attempts. Invariants: it never waits
//! for anything but its input and its next due time, so one slow peer or disk
//! holds up nobody's handshake; of two connections between a pair both sides
//! keep the same one. Deliberately not here: streams and cryptography.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Connection, Endpoint};
use tokio::sync::{mpsc, oneshot};
use warren_control::descriptor::{
    ClientRecord, DESCRIPTOR_LIFE, DescriptorBody, MAX_ENDPOINTS, SignedDescriptor,
};
use warren_control::directory::{ApplyError, DirectoryChange, RemovalReason};
use warren_control::membership::Membership;
use warren_control::network::NetworkParameters;
use warren_control::revocation::SignedRevocation;
use warren_control::verify::verify_chain;
use warren_control::wire::{Digest, DigestEntry, Hello, JoinRequest, MAX_DIGEST, Message};
use warren_types::{LinkPublicKey, NodeId, NodeName, PresharedKey};

use super::admin::{Admin, AdminError, JoinAnswer, Persist};
use super::dial::{self, Schedule, jitter};
use super::event::{ControlEvent, PeerConnected, RefuseReason};
use super::frame::frame;
use super::session::{self, CLOSE_DONE, CLOSE_DUPLICATE, CLOSE_REFUSED, Failure};
use super::shared::{Shared, remote};
use super::tls;

/// Up to this many members everybody connects to everybody.
pub const FULL_MESH: usize = 32;
/// Above it, to this many neighbours on the ring of ids, and on demand.
pub const NEIGHBOURS: usize = 8;
/// Between writes of the directory to disk.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// Refusals reported per [`REFUSAL_WINDOW`]; a flood must not fill the log.
const REFUSALS: u32 = 20;
const REFUSAL_WINDOW: Duration = Duration::from_secs(10);

/// Whom to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Target {
    Node(NodeId),
    Endpoint(SocketAddr),
}

/// What to send on a connection.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Frames(Vec<Arc<[u8]>>),
    Finish(oneshot::Sender<()>),
}

/// The core's answer to a hello.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Go on; the link's key is installed when this resolves.
    Keep(oneshot::Receiver<()>),
    Duplicate,
    Refused(RefuseReason),
}

/// What this node says about itself; the transport adds the rest and signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnDescriptor {
    /// Our name, as certified or pinned.
    pub name: NodeName,
    /// Our link key.
    pub link_key: LinkPublicKey,
    /// Our overlay addresses, as certified or derived from our key.
    pub addresses: Vec<std::net::IpAddr>,
    /// Our WireGuard clients.
    pub clients: Vec<ClientRecord>,
    /// Where we can be reached, best first; at most 16 are published.
    pub endpoints: Vec<SocketAddr>,
}

/// One control connection, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The peer.
    pub node: NodeId,
    /// Its underlay address.
    pub remote: SocketAddr,
    /// Round-trip time.
    pub rtt: Duration,
    /// True when we dialed.
    pub dialer: bool,
}

#[derive(Debug)]
pub(crate) enum Command {
    Connect(Target),
    SetOwn(Box<OwnDescriptor>),
    Invite {
        life: u64,
        uses: u32,
        reply: oneshot::Sender<Result<(String, u64), AdminError>>,
    },
    Revoke {
        name: NodeName,
        reply: oneshot::Sender<Result<NodeId, AdminError>>,
    },
    Connections(oneshot::Sender<Vec<ConnectionInfo>>),
    Renew,
    /// `true`: leave the network for good.
    Stop {
        leave: bool,
        reply: oneshot::Sender<()>,
    },
}

#[derive(Debug)]
pub(crate) enum Input {
    Hello {
        node: NodeId,
        hello: Box<Hello>,
        psk: PresharedKey,
        target: Option<Target>,
        connection: Connection,
        outgoing: mpsc::Sender<Outgoing>,
        reply: oneshot::Sender<Verdict>,
    },
    Ready {
        node: NodeId,
        stable: usize,
        installed: oneshot::Sender<()>,
    },
    Message {
        node: NodeId,
        stable: usize,
        message: Message,
    },
    Closed {
        node: NodeId,
        stable: usize,
        reason: String,
    },
    Dialed {
        target: Target,
        endpoints: Vec<SocketAddr>,
        failure: Option<Failure>,
    },
    Refused {
        remote: SocketAddr,
        reason: RefuseReason,
    },
    Join {
        node: NodeId,
        remote: SocketAddr,
        request: JoinRequest,
        reply: oneshot::Sender<JoinAnswer>,
    },
    Command(Command),
}

struct Peer {
    connection: Connection,
    outgoing: mpsc::Sender<Outgoing>,
    hello: Box<Hello>,
    psk: PresharedKey,
    target: Option<Target>,
    /// The name by which the daemon was told of it.
    announced: Option<NodeName>,
    /// Messages may be sent.
    ready: bool,
}

impl Peer {
    fn dialer(&self) -> bool {
        self.target.is_some()
    }

    fn push(&self, frames: Vec<Arc<[u8]>>) {
        if self.ready && self.outgoing.try_send(Outgoing::Frames(frames)).is_err() {
            // It does not take what we send: start over, with a full exchange.
            self.connection.close(CLOSE_DONE, b"");
        }
    }
}

pub(crate) struct Parts {
    pub(crate) network: NetworkParameters,
    pub(crate) own: OwnDescriptor,
    pub(crate) sequence: u64,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) admin: Option<Admin>,
    pub(crate) persist: Arc<dyn Persist>,
    pub(crate) bootstrap: Vec<(Option<NodeId>, SocketAddr)>,
    pub(crate) events: mpsc::UnboundedSender<ControlEvent>,
    pub(crate) endpoint: Endpoint,
    pub(crate) client: ClientConfig,
}

pub(crate) struct Core {
    shared: Arc<Shared>,
    parts: Parts,
    peers: HashMap<NodeId, Peer>,
    schedule: BTreeMap<Target, Schedule>,
    /// Where a node was reached last, or is said to be by the configuration.
    hints: HashMap<NodeId, BTreeSet<SocketAddr>>,
    /// Who answered at a bootstrap address.
    answered: HashMap<SocketAddr, NodeId>,
    on_demand: BTreeSet<NodeId>,
    started: Instant,
    stale: bool,
    unsaved: Option<Instant>,
    chores: Instant,
    own_issued: u64,
    renewal: Option<Instant>,
    digest_turn: usize,
    refusals: (Instant, u32),
}

impl Core {
    pub(crate) fn new(shared: Arc<Shared>, parts: Parts) -> Self {
        let now = Instant::now();
        let mut core = Self {
            shared,
            parts,
            peers: HashMap::new(),
            schedule: BTreeMap::new(),
            hints: HashMap::new(),
            answered: HashMap::new(),
            on_demand: BTreeSet::new(),
            started: now,
            stale: true,
            unsaved: None,
            chores: now,
            own_issued: 0,
            renewal: None,
            digest_turn: 0,
            refusals: (now, 0),
        };
        for (node, address) in std::mem::take(&mut core.parts.bootstrap) {
            match node {
                Some(node) => {
                    core.hints.entry(node).or_default().insert(address);
                    core.on_demand.insert(node);
                }
                None => {
                    core.schedule.insert(Target::Endpoint(address), Schedule::at(now));
                }
            }
        }
        core
    }

    pub(crate) async fn run(mut self, mut input: mpsc::Receiver<Input>) {
        loop {
            let due = tokio::time::Instant::from_std(self.next_due());
            tokio::select! {
                next = input.recv() => match next {
                    Some(Input::Command(Command::Stop { leave, reply })) => {
                        self.stop(leave).await;
                        let _ = reply.send(());
                        return;
                    }
                    Some(next) => self.handle(next),
                    None => return,
                },
                () = tokio::time::sleep_until(due) => {}
            }
            self.do_chores();
            self.dial_due();
        }
    }

    fn emit(&self, event: ControlEvent) {
        // The daemon dropped its receiver only when it stops.
        let _ = self.parts.events.send(event);
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Hello { node, hello, psk, target, connection, outgoing, reply } => {
                let peer = Peer {
                    connection,
                    outgoing,
                    hello,
                    psk,
                    target,
                    announced: None,
                    ready: false,
                };
                let verdict = self.on_hello(node, peer);
                let _ = reply.send(verdict);
            }
            Input::Ready { node, stable, installed } => self.on_ready(node, stable, installed),
            Input::Message { node, stable, message } => self.on_message(node, stable, message),
            Input::Closed { node, stable, reason } => self.on_closed(node, stable, reason),
            Input::Dialed { target, endpoints, failure } => {
                self.on_dialed(target, endpoints, failure);
            }
            Input::Refused { remote, reason } => self.refused(remote, reason),
            Input::Join { node, remote, request, reply } => {
                let answer = self.on_join(node, remote, &request);
                let _ = reply.send(answer);
            }
            Input::Command(command) => self.on_command(command),
        }
    }

    fn refused(&mut self, remote: SocketAddr, reason: RefuseReason) {
        let now = Instant::now();
        if now.duration_since(self.refusals.0) > REFUSAL_WINDOW {
            self.refusals = (now, 0);
        }
        self.refusals.1 += 1;
        if self.refusals.1 <= REFUSALS {
            self.emit(ControlEvent::Refused { remote, reason });
        }
    }

    // ---- connections -----------------------------------------------------

    fn on_hello(&mut self, node: NodeId, peer: Peer) -> Verdict {
        let now = self.shared.now();
        let applied = self.shared.directory().apply(&peer.hello.descriptor, now);
        match applied {
            Ok(changes) => self.spread(changes, &peer.hello.descriptor, Some(node)),
            Err(error) => return Verdict::Refused(error.into()),
        }
        if self.shared.directory().get(node).is_none() {
            return Verdict::Refused(RefuseReason::HasLeft);
        }
        if let Some(Target::Endpoint(address)) = peer.target {
            self.answered.insert(address, node);
        }
        if let Some(old) = self.peers.get(&node) {
            let restarted = old.hello.instance != peer.hello.instance;
            let dialed_by = |p: &Peer| if p.dialer() { self.shared.id() } else { node };
            let smaller = self.shared.id().min(node);
            // The one dialed by the smaller id stays; of two dialed by the same
            // side the newer, since that side had lost the older.
            let newer_stays = restarted || dialed_by(&peer) == smaller || dialed_by(old) != smaller;
            if !newer_stays {
                return Verdict::Duplicate;
            }
            old.connection.close(CLOSE_DUPLICATE, b"");
            if let Some(target) = old.target {
                self.release(target);
            }
        }
        if peer.dialer() {
            self.hints.entry(node).or_default().insert(remote(&peer.connection));
        }
        if let Some(target) = peer.target {
            self.occupy(target);
        }
        let dialer = peer.dialer();
        let (tell, installed) = oneshot::channel();
        self.peers.insert(node, peer);
        if dialer {
            drop(tell);
        } else {
            self.announce(node, tell);
        }
        Verdict::Keep(installed)
    }

    fn announce(&mut self, node: NodeId, installed: oneshot::Sender<()>) {
        let view = self.shared.directory().get(node).cloned();
        let now = self.shared.now();
        let (Some(view), Some(peer)) = (view, self.peers.get_mut(&node)) else { return };
        peer.announced = Some(view.name.clone());
        let ahead = i64::try_from(peer.hello.time.abs_diff(now)).unwrap_or(i64::MAX);
        let event = PeerConnected {
            node,
            view,
            remote: remote(&peer.connection),
            psk: peer.psk.clone(),
            dialer: peer.dialer(),
            post_quantum: true,
            observed: super::socket::canonical(peer.hello.observed),
            software: peer.hello.software.clone(),
            clock_ahead_s: if peer.hello.time < now { -ahead } else { ahead },
            installed,
        };
        self.emit(ControlEvent::PeerConnected(Box::new(event)));
    }

    fn current(&mut self, node: NodeId, stable: usize) -> Option<&mut Peer> {
        self.peers.get_mut(&node).filter(|p| p.connection.stable_id() == stable)
    }

    fn on_ready(&mut self, node: NodeId, stable: usize, installed: oneshot::Sender<()>) {
        let Some(peer) = self.current(node, stable) else { return };
        peer.ready = true;
        if peer.announced.is_none() {
            self.announce(node, installed);
        }
        // Revocations first, then what we know, so that the peer can send what
        // we lack.
        let (mut frames, digests) = {
            let directory = self.shared.directory();
            let revocations: Vec<_> = directory
                .revocations()
                .records()
                .map(|r| frame(&Message::Revocation(r.clone())))
                .collect();
            (revocations, digest(&directory))
        };
        frames.extend(digests);
        if let Some(peer) = self.peers.get(&node) {
            peer.push(frames);
        }
    }

    fn on_closed(&mut self, node: NodeId, stable: usize, reason: String) {
        if self.current(node, stable).is_none() {
            return;
        }
        let Some(peer) = self.peers.remove(&node) else { return };
        if let Some(target) = peer.target {
            self.release(target);
        }
        self.stale = true;
        let now = Instant::now();
        let (own, timing) = (self.shared.id(), self.shared.timing);
        if let Some(schedule) = self.schedule.get_mut(&Target::Node(node)) {
            schedule.lost(now, &timing);
            if own > node {
                schedule.next += timing.courtesy;
            }
        }
        if let Some(name) = peer.announced {
            self.emit(ControlEvent::PeerLost { node, name, reason });
        }
    }

    fn on_message(&mut self, node: NodeId, stable: usize, message: Message) {
        if self.current(node, stable).is_none() {
            return;
        }
        match message {
            Message::Descriptor(descriptor) => self.on_descriptor(node, &descriptor),
            Message::Revocation(record) => self.on_revocation(node, record),
            Message::Digest(digest) => self.on_digest(node, &digest),
            Message::RenewRequest => self.on_renew_request(node),
            Message::RenewReply(chain) => self.on_renewed(chain),
            Message::Unknown(number) => {
                tracing::debug!(number, "skipped a control message of a later version");
            }
            Message::PskProof(_)
            | Message::Hello(_)
            | Message::Ready
            | Message::JoinRequest(_)
            | Message::JoinAccepted(_)
            | Message::JoinRefused(_) => {
                if let Some(peer) = self.peers.get(&node) {
                    let at = remote(&peer.connection);
                    peer.connection.close(CLOSE_REFUSED, b"");
                    let reason = "a message of the first exchange came later".to_owned();
                    self.refused(at, RefuseReason::Protocol(reason));
                }
            }
        }
    }

    // ---- directory ---------------------------------------------------------

    fn on_descriptor(&mut self, from: NodeId, descriptor: &SignedDescriptor) {
        let now = self.shared.now();
        let applied = self.shared.directory().apply(descriptor, now);
        match applied {
            Ok(changes) => {
                let news = changes.is_some();
                self.spread(changes, descriptor, Some(from));
                let about_us = descriptor.peek().ok();
                if news
                    && let Some((id, sequence)) = about_us
                    && id == self.shared.id()
                    && sequence > self.parts.sequence
                {
                    // Signed by us in an earlier life (our clock or our state
                    // went back): what we say now must win.
                    self.parts.sequence = sequence;
                    self.publish();
                }
            }
            Err(ApplyError::Descriptor(error)) => {
                // Third parties' descriptors may be old or revoked here; that
                // is no fault of the peer that passed them on.
                tracing::debug!(%error, "descriptor not taken in");
            }
            Err(error) => {
                if let Some(peer) = self.peers.get(&from) {
                    let at = remote(&peer.connection);
                    self.refused(at, error.into());
                }
            }
        }
    }

    fn on_revocation(&mut self, from: NodeId, record: SignedRevocation) {
        let applied = self.shared.directory().revoke(record.clone(), self.shared.now());
        match applied {
            Ok(Some(changes)) => self.revoked(&record, changes, Some(from)),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a revocation was not taken in"),
        }
    }

    /// Spreads a new revocation and parts from the node.
    fn revoked(
        &mut self,
        record: &SignedRevocation,
        changes: Vec<DirectoryChange>,
        from: Option<NodeId>,
    ) {
        let message = frame(&Message::Revocation(record.clone()));
        for (node, peer) in &self.peers {
            if Some(*node) != from {
                peer.push(vec![message.clone()]);
            }
        }
        self.changed(changes);
        if self.shared.directory().revocations().contains(self.shared.id()) {
            self.emit(ControlEvent::Revoked);
        }
    }

    /// Reports changes and passes the descriptor on.
    fn spread(
        &mut self,
        changes: Option<Vec<DirectoryChange>>,
        descriptor: &SignedDescriptor,
        from: Option<NodeId>,
    ) {
        let Some(changes) = changes else { return };
        let message = frame(&Message::Descriptor(descriptor.clone()));
        for (node, peer) in &self.peers {
            if Some(*node) != from {
                peer.push(vec![message.clone()]);
            }
        }
        self.changed(changes);
    }

    fn changed(&mut self, changes: Vec<DirectoryChange>) {
        self.stale = true;
        self.unsaved.get_or_insert_with(Instant::now);
        let mut left = Vec::new();
        for change in &changes {
            let DirectoryChange::Removed { view, reason } = change else { continue };
            let node = view.id();
            self.hints.remove(&node);
            self.on_demand.remove(&node);
            if *reason == RemovalReason::Left {
                left.push(node);
            }
            if let Some(peer) = self.peers.get(&node) {
                let (connection, outgoing) = (peer.connection.clone(), peer.outgoing.clone());
                let code = if *reason == RemovalReason::Left { CLOSE_DONE } else { CLOSE_REFUSED };
                // What was queued before (its own revocation, say) goes first.
                tokio::spawn(async move {
                    let (done, finished) = oneshot::channel();
                    if outgoing.try_send(Outgoing::Finish(done)).is_ok() {
                        let _ = finished.await;
                    }
                    connection.close(code, b"");
                });
            }
        }
        if !changes.is_empty() {
            self.emit(ControlEvent::DirectoryChanged(changes));
        }
        for node in left {
            self.expel(node);
        }
    }

    /// A member left: as an admin, end its membership for good, so that a copy
    /// of its key is worth nothing.
    fn expel(&mut self, node: NodeId) {
        let Some(admin) = &mut self.parts.admin else { return };
        let (network, now) = (self.parts.network.id, self.shared.now());
        match admin.expel(node, network, now, self.parts.persist.as_ref()) {
            Ok(record) => {
                let applied = self.shared.directory().revoke(record.clone(), now);
                match applied {
                    Ok(changes) => self.revoked(&record, changes.unwrap_or_default(), None),
                    Err(error) => tracing::warn!(%error, "a node that left was not revoked"),
                }
            }
            Err(reason) => self.emit(ControlEvent::NotSaved { reason }),
        }
    }

    fn on_digest(&mut self, node: NodeId, digest: &Digest) {
        let known: HashMap<NodeId, u64> =
            digest.entries.iter().map(|e| (e.node, e.sequence)).collect();
        let frames: Vec<_> = {
            let directory = self.shared.directory();
            directory
                .descriptors()
                .filter(|d| {
                    let id = d.body.node;
                    let covered = id > digest.after && id <= digest.until;
                    covered && known.get(&id).is_none_or(|s| *s < d.body.sequence)
                })
                .map(|d| frame(&Message::Descriptor(d.signed.as_ref().clone())))
                .collect()
        };
        if let Some(peer) = self.peers.get(&node).filter(|_| !frames.is_empty()) {
            peer.push(frames);
        }
    }

    /// Signs and spreads what we say about ourselves.
    pub(crate) fn publish(&mut self) {
        let now = self.shared.now();
        let body = self.own_body(now, false);
        self.parts.sequence = body.sequence;
        self.own_issued = now;
        let signed = body.sign(&self.shared.key, self.shared.directory().membership());
        let applied = self.shared.directory().apply(&signed, now);
        self.shared.set_own(signed.clone());
        match applied {
            Ok(changes) => self.spread(changes, &signed, None),
            // Peers will say the same; the operator must know why.
            Err(error) => tracing::error!(%error, "our own descriptor is not acceptable"),
        }
    }

    fn own_body(&self, now: u64, left: bool) -> DescriptorBody {
        let own = &self.parts.own;
        let mut endpoints = own.endpoints.clone();
        endpoints.retain(|e| e.port() != 0 && !e.ip().is_unspecified());
        endpoints.truncate(MAX_ENDPOINTS);
        DescriptorBody {
            network: self.parts.network.id,
            node: self.shared.id(),
            name: own.name.clone(),
            link_key: own.link_key,
            addresses: own.addresses.clone(),
            clients: own.clients.clone(),
            endpoints,
            sequence: (self.parts.sequence + 1).max(now.saturating_mul(1000)),
            issued: now,
            expires: now.saturating_add(DESCRIPTOR_LIFE),
            chain: self.parts.chain.clone(),
            left,
            admin: self.parts.admin.is_some(),
        }
    }

    // ---- admission and renewal ---------------------------------------------

    fn on_join(&mut self, node: NodeId, remote: SocketAddr, request: &JoinRequest) -> JoinAnswer {
        let now = self.shared.now();
        let own = self.shared.own();
        let Some(admin) = &mut self.parts.admin else { return JoinAnswer::Silent };
        let (answer, refusal) = {
            let directory = self.shared.directory();
            let persist = self.parts.persist.as_ref();
            admin.admit(&self.parts.network, node, request, &own, &directory, now, persist)
        };
        if let Some(reason) = refusal {
            self.refused(remote, reason);
        } else {
            let name = request.name.clone();
            self.emit(ControlEvent::NodeAdmitted { node, name, remote });
        }
        answer
    }

    fn on_renew_request(&mut self, node: NodeId) {
        let Some(admin) = &self.parts.admin else { return };
        let renewed = {
            let directory = self.shared.directory();
            admin.renew(node, &directory, self.shared.now())
        };
        match renewed {
            Ok(chain) => {
                if let Some(peer) = self.peers.get(&node) {
                    peer.push(vec![frame(&Message::RenewReply(chain))]);
                }
                self.emit(ControlEvent::RenewedFor { node });
            }
            Err(reason) => tracing::warn!(%node, reason, "a certificate was not renewed"),
        }
    }

    /// Validity of our certificate, when we have one.
    fn validity(&self) -> Option<(u64, u64)> {
        let directory = self.shared.directory();
        let Membership::Certificate(root) = directory.membership() else { return None };
        let now = self.shared.now();
        match verify_chain(&self.parts.chain, root, directory.revocations(), now) {
            Ok(node) => Some((node.not_before, node.not_after)),
            Err(warren_control::verify::CertificateError::Expired { not_after, .. }) => {
                Some((0, not_after))
            }
            Err(_) => None,
        }
    }

    fn check_renewal(&mut self, force: bool) {
        let Some((not_before, not_after)) = self.validity() else { return };
        let now = self.shared.now();
        let due = not_before + (not_after - not_before) / 3 * 2;
        if !force && now < due {
            return;
        }
        if let Some(admin) = &self.parts.admin {
            let renewed = {
                let directory = self.shared.directory();
                admin.renew(self.shared.id(), &directory, now)
            };
            match renewed {
                Ok(chain) => self.on_renewed(chain),
                Err(reason) => self.emit(ControlEvent::RenewalFailed { not_after, reason }),
            }
            return;
        }
        let asked = {
            let directory = self.shared.directory();
            let is_admin =
                |node: &NodeId| directory.get(*node).is_some_and(|v| v.descriptor.body.admin);
            self.peers.iter().find(|(node, peer)| peer.ready && is_admin(node))
        };
        match asked {
            Some((_, peer)) => peer.push(vec![frame(&Message::RenewRequest)]),
            None if now >= not_after => {
                let reason =
                    "it has expired: run `warren leave`, then join again with a fresh code";
                self.emit(ControlEvent::RenewalFailed { not_after, reason: reason.into() });
            }
            None => {
                let reason = "no admin is connected; start the machine that created the network, \
                              or join again with a fresh code before the certificate ends";
                self.emit(ControlEvent::RenewalFailed { not_after, reason: reason.into() });
            }
        }
    }

    fn on_renewed(&mut self, chain: Vec<Vec<u8>>) {
        let now = self.shared.now();
        let checked = {
            let directory = self.shared.directory();
            let Membership::Certificate(root) = directory.membership() else { return };
            verify_chain(&chain, root, directory.revocations(), now)
                .map(|node| (node, root.certificate.clone()))
        };
        let not_after = self.validity().map_or(0, |(_, end)| end);
        let failed = |reason: String| ControlEvent::RenewalFailed { not_after, reason };
        let (node, root) = match checked {
            Ok(checked) => checked,
            Err(error) => return self.emit(failed(error.to_string())),
        };
        let ours = node.id == self.shared.id()
            && node.name == self.parts.own.name
            && self.parts.own.addresses.iter().all(|a| node.addresses.contains(a));
        if !ours || node.not_after <= not_after {
            return self.emit(failed("the admin sent a certificate that is not better".into()));
        }
        if let Err(reason) = self.parts.persist.save_certificate(&chain) {
            return self.emit(failed(reason));
        }
        let shown: Vec<_> = chain.iter().cloned().chain([root]).collect();
        let (key, timing) = (self.shared.key.clone(), self.shared.timing);
        let configs = tls::client(&key, &shown, warren_control::wire::ALPN_CONTROL, &timing)
            .and_then(|client| {
                let admits = self.parts.admin.is_some();
                tls::server(&key, &shown, admits, &timing).map(|server| (client, server))
            });
        match configs {
            Ok((client, server)) => {
                self.parts.client = client;
                self.parts.endpoint.set_server_config(Some(server));
            }
            Err(error) => return self.emit(failed(error.to_string())),
        }
        // Connections that are up stay up: the new certificate serves from the
        // next one on, and the new descriptor shows it to everybody.
        self.parts.chain = chain;
        self.emit(ControlEvent::CertificateRenewed { not_after: node.not_after });
        self.publish();
    }

    // ---- commands ------------------------------------------------------------

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect(target) => {
                if let Target::Node(node) = target {
                    self.on_demand.insert(node);
                    self.stale = true;
                }
                let now = Instant::now();
                let schedule = self.schedule.entry(target).or_insert_with(|| Schedule::at(now));
                if !schedule.busy {
                    schedule.next = now;
                }
            }
            Command::SetOwn(own) => {
                if self.parts.own != *own {
                    self.parts.own = *own;
                    self.publish();
                }
            }
            Command::Invite { life, uses, reply } => {
                let endpoints = self.own_body(self.shared.now(), false).endpoints;
                let now = self.shared.now();
                let result = match &mut self.parts.admin {
                    None => Err(AdminError::NotAdmin),
                    Some(admin) => admin
                        .invite(
                            &self.parts.network,
                            &endpoints,
                            life,
                            uses,
                            now,
                            self.parts.persist.as_ref(),
                        )
                        .map(|code| (code.encode(), code.expires)),
                };
                let _ = reply.send(result);
            }
            Command::Revoke { name, reply } => {
                let _ = reply.send(self.revoke(&name));
            }
            Command::Connections(reply) => {
                let mut list: Vec<_> = self
                    .peers
                    .iter()
                    .filter(|(_, p)| p.announced.is_some())
                    .map(|(node, p)| ConnectionInfo {
                        node: *node,
                        remote: remote(&p.connection),
                        rtt: p.connection.rtt(),
                        dialer: p.dialer(),
                    })
                    .collect();
                list.sort_by_key(|c| c.node);
                let _ = reply.send(list);
            }
            Command::Renew => self.check_renewal(true),
            // Handled by the loop, which then ends.
            Command::Stop { .. } => {}
        }
    }

    fn revoke(&mut self, name: &NodeName) -> Result<NodeId, AdminError> {
        let admin = self.parts.admin.as_mut().ok_or(AdminError::NotAdmin)?;
        let now = self.shared.now();
        let (node, record) = {
            let directory = self.shared.directory();
            let persist = self.parts.persist.as_ref();
            admin.revoke(name, self.shared.id(), &directory, now, persist)?
        };
        let applied = self.shared.directory().revoke(record.clone(), self.shared.now());
        match applied {
            Ok(changes) => {
                self.revoked(&record, changes.unwrap_or_default(), None);
                // This must survive a crash right after the command.
                self.save_directory();
                Ok(node)
            }
            Err(error) => Err(AdminError::Failed(error.to_string())),
        }
    }

    async fn stop(&mut self, leave: bool) {
        if leave {
            let now = self.shared.now();
            let body = self.own_body(now, true);
            let signed = body.sign(&self.shared.key, self.shared.directory().membership());
            let goodbye = frame(&Message::Descriptor(signed));
            for peer in self.peers.values() {
                peer.push(vec![goodbye.clone()]);
            }
        }
        let mut waiting = Vec::new();
        for peer in self.peers.values().filter(|p| p.ready) {
            let (done, finished) = oneshot::channel();
            if peer.outgoing.try_send(Outgoing::Finish(done)).is_ok() {
                waiting.push(finished);
            }
        }
        let all = async {
            for finished in waiting {
                let _ = finished.await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), all).await;
        if !leave {
            self.save_directory();
        }
        self.parts.endpoint.close(CLOSE_DONE, b"");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.parts.endpoint.wait_idle()).await;
    }

    // ---- time ------------------------------------------------------------------

    fn next_due(&self) -> Instant {
        let dial = self.schedule.values().filter(|s| !s.busy).map(|s| s.next).min();
        let save = self.unsaved.map(|t| t + SAVE_EVERY);
        [Some(self.chores), dial, save].into_iter().flatten().min().unwrap_or(self.chores)
    }

    fn do_chores(&mut self) {
        let now = Instant::now();
        if self.unsaved.is_some_and(|t| now >= t + SAVE_EVERY) {
            self.save_directory();
        }
        if now < self.chores {
            return;
        }
        self.chores = now + self.shared.timing.housekeeping;
        let clock = self.shared.now();
        let expired = self.shared.directory().expire(clock);
        if !expired.is_empty() {
            self.changed(expired);
        }
        if clock >= self.own_issued + DESCRIPTOR_LIFE / 3 {
            self.publish();
        }
        let wait = self.shared.timing.housekeeping * 10;
        if self.renewal.is_none_or(|t| now >= t + wait) || self.renewal_is_urgent() {
            self.renewal = Some(now);
            self.check_renewal(false);
        }
        // Repairs what pushing may have missed, one peer at a time.
        let ready: Vec<_> = self.peers.values().filter(|p| p.ready).collect();
        if !ready.is_empty() {
            self.digest_turn = self.digest_turn.wrapping_add(1);
            let peer = ready[self.digest_turn % ready.len()];
            peer.push(digest(&self.shared.directory()));
        }
    }

    /// Within the last tenth of its life, renewal is tried at every chance.
    fn renewal_is_urgent(&self) -> bool {
        self.validity().is_some_and(|(not_before, not_after)| {
            self.shared.now() >= not_after - (not_after - not_before) / 10
        })
    }

    fn save_directory(&mut self) {
        self.unsaved = None;
        let (descriptors, revocations) = {
            let directory = self.shared.directory();
            let descriptors: Vec<_> = directory.descriptors().map(|d| d.signed.clone()).collect();
            let revocations: Vec<_> = directory.revocations().records().cloned().collect();
            (descriptors, revocations)
        };
        if let Err(reason) = self.parts.persist.save_directory(&descriptors, &revocations) {
            self.emit(ControlEvent::NotSaved { reason });
        }
    }

    // ---- dialing -----------------------------------------------------------------

    fn occupy(&mut self, target: Target) {
        let now = Instant::now();
        let schedule = self.schedule.entry(target).or_insert_with(|| Schedule::at(now));
        schedule.busy = true;
        schedule.failures = 0;
    }

    fn release(&mut self, target: Target) {
        let timing = self.shared.timing;
        if let Some(schedule) = self.schedule.get_mut(&target) {
            schedule.lost(Instant::now(), &timing);
        }
    }

    /// Whom we want to be connected to.
    fn wanted(&self) -> BTreeSet<NodeId> {
        let directory = self.shared.directory();
        let own = self.shared.id();
        let all: Vec<NodeId> = directory.views().map(|v| v.id()).filter(|id| *id != own).collect();
        let mut wanted: BTreeSet<NodeId> = if all.len() <= FULL_MESH {
            all.iter().copied().collect()
        } else {
            neighbours(own, &all).collect()
        };
        wanted.extend(self.on_demand.iter().copied().filter(|id| {
            all.binary_search(id).is_ok() || matches!(directory.membership(), Membership::Key(_))
        }));
        wanted
    }

    fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        let mut list: Vec<SocketAddr> =
            self.hints.get(&node).map(|h| h.iter().copied().collect()).unwrap_or_default();
        if let Some(view) = self.shared.directory().get(node) {
            list.extend(view.descriptor.body.endpoints.iter().copied());
        }
        let mut seen = BTreeSet::new();
        list.retain(|a| seen.insert(*a));
        list.truncate(MAX_ENDPOINTS);
        list
    }

    fn dial_due(&mut self) {
        let now = Instant::now();
        if std::mem::take(&mut self.stale) {
            let wanted = self.wanted();
            let fresh = now.duration_since(self.started) < Duration::from_secs(5);
            let (own, timing) = (self.shared.id(), self.shared.timing);
            for node in &wanted {
                self.schedule.entry(Target::Node(*node)).or_insert_with(|| {
                    // Who has just started dials at once; of a pair that has
                    // been up, the larger id lets the smaller go first.
                    let wait = if fresh {
                        Duration::ZERO
                    } else if own < *node {
                        jitter(timing.courtesy / 3)
                    } else {
                        timing.courtesy + jitter(timing.courtesy)
                    };
                    Schedule::at(now + wait)
                });
            }
            self.schedule.retain(|target, schedule| match target {
                Target::Node(node) => schedule.busy || wanted.contains(node),
                Target::Endpoint(_) => true,
            });
        }
        let due: Vec<Target> = self
            .schedule
            .iter()
            .filter(|(_, s)| !s.busy && s.next <= now)
            .map(|(target, _)| *target)
            .collect();
        for target in due {
            self.dial(target, now);
        }
    }

    /// True when the node behind a bootstrap address is connected, or about to
    /// be under its own name.
    fn serves(&self, address: SocketAddr) -> bool {
        let answered = self.answered.get(&address);
        if answered.is_some_and(|node| self.peers.contains_key(node)) {
            return true;
        }
        let busy = |(target, schedule): (&Target, &Schedule)| match target {
            Target::Node(node) => schedule.busy.then_some(*node),
            Target::Endpoint(_) => None,
        };
        let dialing: Vec<NodeId> = self.schedule.iter().filter_map(busy).collect();
        self.peers.values().any(|p| remote(&p.connection) == address)
            || dialing
                .iter()
                .chain(self.peers.keys())
                .any(|node| self.addresses(*node).contains(&address))
    }

    fn dial(&mut self, target: Target, now: Instant) {
        let timing = self.shared.timing;
        let (expected, addresses) = match target {
            Target::Node(node) => (Some(node), self.addresses(node)),
            Target::Endpoint(address) => (None, vec![address]),
        };
        let connected = match target {
            Target::Node(node) => self.peers.contains_key(&node),
            Target::Endpoint(address) => self.serves(address),
        };
        let Some(schedule) = self.schedule.get_mut(&target) else { return };
        if connected || addresses.is_empty() {
            // Another connection serves, or will. Losing it sets a new time.
            let serves = matches!(target, Target::Node(_)) || !connected;
            let wait = if serves { timing.retry_max } else { timing.handshake };
            schedule.next = now + jitter(wait);
            return;
        }
        schedule.busy = true;
        let (shared, endpoint, config) =
            (self.shared.clone(), self.parts.endpoint.clone(), self.parts.client.clone());
        tokio::spawn(async move {
            let checker = shared.clone();
            let check = move |connection: &Connection| {
                checker.authenticate(connection, expected).map_err(Failure::Refused)
            };
            let won = dial::race(&endpoint, &config, &addresses, timing.handshake, check).await;
            let failure = match won {
                Ok((connection, identity)) => {
                    session::run(shared.clone(), connection, Some(target), identity, None)
                        .await
                        .err()
                }
                Err(failures) => Some(most_telling(failures)),
            };
            let input = Input::Dialed { target, endpoints: addresses, failure };
            let _ = shared.input.send(input).await;
        });
    }

    /// A dialing task ended: it failed, or its connection was up and is gone.
    fn on_dialed(&mut self, target: Target, endpoints: Vec<SocketAddr>, failure: Option<Failure>) {
        let (now, timing) = (Instant::now(), self.shared.timing);
        let held = self.peers.values().any(|p| p.target == Some(target));
        let Some(schedule) = self.schedule.get_mut(&target) else { return };
        if held {
            return;
        }
        let (reason, refused) = match failure {
            None => {
                schedule.busy = false;
                return;
            }
            Some(Failure::Duplicate(node)) => {
                schedule.lost(now, &timing);
                schedule.next = now + jitter(timing.courtesy);
                if let Target::Endpoint(address) = target {
                    self.answered.insert(address, node);
                }
                return;
            }
            Some(Failure::Refused(RefuseReason::Ourselves)) => {
                // One of our own addresses, as given for somebody: not again soon.
                schedule.failed(now, &timing, true);
                schedule.next = now + timing.retry_max;
                return;
            }
            Some(Failure::Refused(reason)) => {
                schedule.failed(now, &timing, true);
                let remote = endpoints.first().copied();
                if let Some(remote) = remote {
                    self.refused(remote, reason);
                }
                return;
            }
            Some(Failure::Ended { reason, refused }) => (reason, refused),
        };
        schedule.failed(now, &timing, refused);
        let attempt = schedule.failures;
        let node = match target {
            Target::Node(node) => Some(node),
            Target::Endpoint(_) => None,
        };
        if node.is_some_and(|n| self.peers.contains_key(&n)) {
            return;
        }
        self.emit(ControlEvent::DialFailed { node, endpoints, reason, refused, attempt });
    }
}

/// The failure that tells the operator most: our refusal, the peer's, then
/// anything else.
fn most_telling(failures: Vec<(SocketAddr, Failure)>) -> Failure {
    let rank = |f: &Failure| match f {
        Failure::Refused(RefuseReason::Ourselves) => 1,
        Failure::Refused(_) => 4,
        Failure::Ended { refused: true, .. } => 3,
        Failure::Duplicate(_) => 2,
        Failure::Ended { .. } => 0,
    };
    failures
        .into_iter()
        .map(|(_, f)| f)
        .max_by_key(rank)
        .unwrap_or(Failure::Ended { reason: "no address is known".into(), refused: false })
}

/// Half of the neighbours follow on the ring of ids, which keeps it connected;
/// the others are spread over it, which keeps it short.
fn neighbours(own: NodeId, sorted: &[NodeId]) -> impl Iterator<Item = NodeId> + '_ {
    let start = sorted.partition_point(|id| *id < own);
    let len = sorted.len();
    let near = (0..NEIGHBOURS / 2).map(move |n| start + n);
    let far = (1..=NEIGHBOURS / 2).map(move |n| start + (len >> n).max(NEIGHBOURS));
    near.chain(far).map(move |n| sorted[n % len])
}

/// What we know, in parts that cover the ids in order.
fn digest(directory: &warren_control::directory::Directory) -> Vec<Arc<[u8]>> {
    let entries: Vec<DigestEntry> = directory
        .descriptors()
        .map(|d| DigestEntry { node: d.body.node, sequence: d.body.sequence })
        .collect();
    let mut after = NodeId([0; 32]);
    let mut parts = Vec::new();
    let mut chunks = entries.chunks(MAX_DIGEST).peekable();
    while let Some(part) = chunks.next() {
        let until = match (chunks.peek(), part.last()) {
            (Some(_), Some(last)) => last.node,
            _ => NodeId([0xff; 32]),
        };
        parts.push(frame(&Message::Digest(Digest { entries: part.to_vec(), after, until })));
        after = until;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_distinct_and_form_a_ring() {
        let sorted: Vec<NodeId> = (0..100_u8).map(|n| NodeId([n; 32])).collect();
        let chosen: BTreeSet<NodeId> = neighbours(NodeId([40; 32]), &sorted[..]).collect();
        assert_eq!(chosen.len(), NEIGHBOURS);
        let own = NodeId([99; 32]);
        let others: Vec<NodeId> = sorted.iter().copied().filter(|id| *id != own).collect();
        assert!(neighbours(own, &others).any(|id| id == NodeId([0; 32])), "wraps around");
    }
}

//! The one task that decides: who is connected, what everybody is told, whom to
//! dial next.
//!
//! In: what sessions, dialers and the handle report ([`Input`]). Out: events for
//! the daemon, frames for sessions, dial attempts. Invariants: it never waits
//! for anything but its input and its next due time, so one slow peer or disk
//! holds up nobody's handshake; of two connections between a pair both sides
//! keep the same one. Deliberately not here: streams and cryptography.

mod approvals;
mod authority;
mod connections;
mod dialing;
mod gossip;
mod links;
mod messages;
mod renewal;
mod sightings;
mod succession;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Endpoint};
use tokio::sync::{mpsc, oneshot};
use warren_control::descriptor::DESCRIPTOR_LIFE;
use warren_control::network::NetworkParameters;
use warren_control::revocation::SignedRevocation;
use warren_control::route_approval::SignedApproval;
use warren_control::verify::CertifiedNode;
use warren_control::wire::Message;
use warren_discovery::gossip::{Gossip, Time};
use warren_discovery::neighbours::Choice;
use warren_types::{NodeId, NodeName};

use self::authority::Authorities;
use self::connections::Peer;
pub use self::links::LinkSummary;
pub(crate) use self::messages::AuthorityCommand;
pub use self::messages::{AuthorityInfo, ConnectionInfo, OwnDescriptor, RootKey};
pub(crate) use self::messages::{Command, Input, Outgoing, Target, Verdict};
pub(crate) use self::renewal::read_chain;
use self::succession::Succession;
use super::admin::{Admin, AdminError, Persist};
use super::dial::Schedule;
use super::event::{ControlEvent, RefuseReason};
use super::looping::Looping;
use super::session::{CLOSE_DONE, CLOSE_REFUSED};
use super::shared::{Shared, remote};
use super::tunnel::Tunnels;
use crate::random::OsRandom;
use rand_core::RngCore;

/// Most connections with members; beyond, nobody new gets one unless we want it.
pub const MAX_CONNECTIONS: usize = 512;
/// Dial attempts under way at a time: a node that learns of many members at
/// once neither floods the network nor starves its own handshakes.
const DIALS: usize = 6;
/// Between writes of the directory to disk, at least.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// And for each node known: the whole is written, so large ones are seldom.
const SAVE_PER_NODE: Duration = Duration::from_millis(20);
/// Refusals reported per [`REFUSAL_WINDOW`]; a flood must not fill the log.
const REFUSALS: u32 = 20;
const REFUSAL_WINDOW: Duration = Duration::from_secs(10);

pub(crate) struct Parts {
    pub(crate) network: NetworkParameters,
    pub(crate) own: OwnDescriptor,
    pub(crate) sequence: u64,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) admin: Option<Admin>,
    pub(crate) persist: Arc<dyn Persist>,
    pub(crate) bootstrap: Vec<(Option<NodeId>, SocketAddr)>,
    pub(crate) approvals: Vec<SignedApproval>,
    pub(crate) events: mpsc::UnboundedSender<ControlEvent>,
    pub(crate) endpoint: Endpoint,
    pub(crate) client: ClientConfig,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) tcp_fallback: bool,
    /// What TLS shows: the chain and the root.
    pub(crate) shown: Vec<Vec<u8>>,
    /// What the chain says.
    pub(crate) certified: Option<CertifiedNode>,
    /// Life of the certificates we issue if we get to be an admin, seconds.
    pub(crate) certificate_life: u64,
}

pub(crate) struct Core {
    shared: Arc<Shared>,
    parts: Parts,
    peers: HashMap<NodeId, Peer>,
    schedule: BTreeMap<Target, Schedule>,
    /// Attempts that have come to nothing and no end yet.
    attempts: BTreeSet<Target>,
    /// Where a node was reached last, or is said to be by the configuration.
    hints: HashMap<NodeId, BTreeSet<SocketAddr>>,
    /// Where members were seen on the local network.
    seen: HashMap<NodeId, Vec<SocketAddr>>,
    /// The same of nodes we do not know.
    seen_unknown: BTreeSet<SocketAddr>,
    /// Who answered at a bootstrap address.
    answered: HashMap<SocketAddr, NodeId>,
    on_demand: BTreeSet<NodeId>,
    /// Who can be reached over others, and how that is written.
    detours: HashMap<NodeId, SocketAddr>,
    /// Addresses that the kernel sends into the tunnel: nobody is dialed there.
    looping: Looping,
    /// Attempts that want to be told when a detour appears.
    late: HashMap<NodeId, oneshot::Sender<SocketAddr>>,
    /// Whom we stay connected to without any traffic, as told last.
    neighbours: BTreeSet<NodeId>,
    started: Instant,
    stale: bool,
    unsaved: Option<Instant>,
    chores: Instant,
    own_issued: u64,
    gossip: Gossip,
    /// Whom to be connected to for the network's sake.
    choice: Choice,
    /// Cut off for what they sent, until then.
    barred: HashMap<NodeId, Instant>,
    /// Could not be reached; others are our neighbours instead until then.
    unreachable: HashMap<NodeId, Instant>,
    /// When the certificate is looked at next.
    renewal: Instant,
    /// Attempts to renew that came to nothing, in a row.
    renewal_turn: usize,
    /// Delegations and catching up, as far as they are under way.
    authorities: Authorities,
    /// Changes of keys, ours and others'.
    succession: Succession,
    refusals: (Instant, u32),
}

impl Core {
    pub(crate) fn new(shared: Arc<Shared>, parts: Parts) -> Self {
        let now = Instant::now();
        let time = Time { ms: 0, unix: shared.now() };
        let gossip = Gossip::new(shared.id(), OsRandom.next_u64(), time);
        let mut core = Self {
            shared,
            parts,
            peers: HashMap::new(),
            schedule: BTreeMap::new(),
            attempts: BTreeSet::new(),
            hints: HashMap::new(),
            seen: HashMap::new(),
            seen_unknown: BTreeSet::new(),
            answered: HashMap::new(),
            on_demand: BTreeSet::new(),
            detours: HashMap::new(),
            looping: Looping::default(),
            late: HashMap::new(),
            neighbours: BTreeSet::new(),
            started: now,
            stale: true,
            unsaved: None,
            chores: now,
            own_issued: 0,
            gossip,
            choice: Choice::default(),
            barred: HashMap::new(),
            unreachable: HashMap::new(),
            renewal: now,
            renewal_turn: 0,
            authorities: Authorities::default(),
            succession: Succession::default(),
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
        core.restore_gossip();
        let approvals = std::mem::take(&mut core.parts.approvals);
        core.restore_approvals(approvals);
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
            self.gossip_chores();
            self.dial_due();
        }
    }

    fn emit(&self, event: ControlEvent) {
        // The daemon dropped its receiver only when it stops.
        let _ = self.parts.events.send(event);
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Hello { own, reply, .. } if own != self.shared.id() => {
                let _ = reply.send(Verdict::Again);
            }
            Input::Hello { own: _, node, hello, psk, target, connection, outgoing, reply } => {
                let target = target.map(|target| self.present_target(target));
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
            Input::CatchUp { chain, reply } => {
                let _ = reply.send(self.on_catch_up(&chain));
            }
            Input::CaughtUp { reply, chain } => self.on_caught_up(&reply, chain),
            Input::UnknownRoot { addresses } => self.catch_up(addresses),
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

    fn on_message(&mut self, node: NodeId, stable: usize, message: Message) {
        let node = self.present(node);
        if self.current(node, stable).is_none() {
            return;
        }
        match message {
            Message::Gossip(bytes) => self.on_gossip(node, &bytes),
            Message::RenewRequest => self.on_renew_request(node),
            Message::RenewReply(chain) => self.on_renewed(chain),
            Message::Trust(chain) => self.on_trust(&chain),
            Message::AuthorityOffer => self.on_authority_offer(node),
            Message::AuthorityRequest(request) => self.on_authority_request(node, &request),
            Message::Authority(certificate) => self.on_authority(certificate),
            Message::RotateRequest(request) => self.on_rotate_request(node, &request),
            Message::RotateReply(chain) => self.on_rotate_reply(chain),
            Message::Unknown(number) => {
                tracing::debug!(number, "skipped a control message of a later version");
            }
            Message::PskProof(_)
            | Message::TrustRequest
            | Message::TrustReply(_)
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
                    // Somebody waits for it: not behind attempts of the
                    // background.
                    self.dial(target, now);
                }
            }
            Command::SetDetours(detours) => self.set_detours(detours),
            Command::Seen { node, addresses } => self.on_seen(node, addresses),
            Command::SetLooping(looping) => self.looping = looping,
            Command::PublishLinks(summary) => self.publish_links(&summary),
            Command::DecideRoute { router, prefix, approved, reply } => {
                let _ = reply.send(self.decide_route(router, prefix, approved));
            }
            Command::SetOwn(own) => {
                if self.parts.own != *own {
                    self.parts.own = *own;
                    self.publish();
                }
            }
            Command::Invite { life, uses, reply } => {
                let endpoints = self.own_body(self.shared.now(), false).endpoints;
                let tcp = self.own_tcp();
                let now = self.shared.now();
                let directory = self.shared.directory();
                let trust = directory.membership().trust();
                let result = match (&mut self.parts.admin, trust) {
                    (None, _) | (_, None) => Err(AdminError::NotAdmin),
                    (Some(admin), Some(trust)) => admin
                        .invite(
                            &self.parts.network,
                            trust,
                            &endpoints,
                            &tcp,
                            life,
                            uses,
                            now,
                            self.parts.persist.as_ref(),
                        )
                        .map(|code| (code.encode(), code.expires)),
                };
                drop(directory);
                let _ = reply.send(result);
            }
            Command::Authority(command) => self.on_authority_command(command),
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
            Command::Straighten(node) => self.straighten(node),
            // Handled by the loop, which then ends.
            Command::Stop { .. } => {}
        }
    }

    fn revoke(&mut self, name: &NodeName) -> Result<NodeId, AdminError> {
        let admin = self.parts.admin.as_mut().ok_or(AdminError::NotAdmin)?;
        let now = self.shared.now();
        let (node, records) = {
            let directory = self.shared.directory();
            let persist = self.parts.persist.as_ref();
            admin.revoke(name, self.shared.id(), &directory, now, persist)?
        };
        self.revoke_by(records)?;
        Ok(node)
    }

    /// Takes in and spreads what we revoke.
    fn revoke_by(&mut self, records: Vec<SignedRevocation>) -> Result<(), AdminError> {
        for record in records {
            let applied = self.shared.directory().revoke(record.clone(), self.shared.now());
            let changes = applied.map_err(|e| AdminError::Failed(e.to_string()))?;
            self.revoked(&record, changes.unwrap_or_default());
        }
        // This must survive a crash right after the command.
        self.save_directory();
        Ok(())
    }

    async fn stop(&mut self, leave: bool) {
        if leave {
            let now = self.shared.now();
            let body = self.own_body(now, true);
            let signed = body.sign(&self.shared.key(), self.shared.directory().membership());
            let now = self.time();
            if let Some(record) = gossip::descriptor_record(&signed) {
                self.gossip.publish(record, None, now);
                self.send_gossip();
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
        let _ =
            tokio::time::timeout(Duration::from_millis(300), self.parts.endpoint.wait_idle()).await;
    }

    // ---- time ------------------------------------------------------------------

    fn next_due(&self) -> Instant {
        // With all attempts under way, the end of one is the next occasion.
        let room = self.attempts.len() < DIALS;
        let dial = self.schedule.values().filter(|s| room && !s.busy).map(|s| s.next).min();
        let save = self.unsaved.map(|t| t + self.save_every());
        let renewal = self.renewal_due();
        [Some(self.chores), Some(self.gossip_due()), dial, save, renewal]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.chores)
    }

    fn do_chores(&mut self) {
        let now = Instant::now();
        if self.unsaved.is_some_and(|t| now >= t + self.save_every()) {
            self.save_directory();
        }
        if now >= self.renewal && self.renewal_is_wanted() {
            self.check_renewal(false);
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
        self.look_after_authority();
        self.end_waiting();
        self.barred.retain(|_, until| now < *until);
        self.unreachable.retain(|_, until| now < *until);
    }

    fn save_every(&self) -> Duration {
        SAVE_EVERY + SAVE_PER_NODE * u32::try_from(self.gossip.len()).unwrap_or(u32::MAX)
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
}

//! Whom to dial, and when.
//!
//! Invariants: one attempt per peer at a time; a peer that is connected is not
//! dialed; in large networks every node has few neighbours, and the neighbours
//! keep the network in one piece. Deliberately not here: the attempt itself
//! (`dial`).

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::sync::oneshot;
use warren_control::address::is_underlay;
use warren_control::descriptor::MAX_ENDPOINTS;
use warren_control::membership::Membership;
use warren_discovery::neighbours;
use warren_types::{NodeId, mesh_node};

use super::{Core, DIALS, Input, Target};
use crate::transport::catch_up;
use crate::transport::dial::{self, Candidates, Schedule, jitter};
use crate::transport::event::{ControlEvent, RefuseReason};
use crate::transport::session::{self, Failure};
use crate::transport::shared::remote;

/// How long a member that could not be reached is not chosen as a neighbour,
/// unless it reaches us.
const UNREACHABLE: Duration = Duration::from_secs(300);

impl Core {
    pub(super) fn occupy(&mut self, target: Target) {
        let now = Instant::now();
        let schedule = self.schedule.entry(target).or_insert_with(|| Schedule::at(now));
        schedule.busy = true;
        schedule.failures = 0;
    }

    pub(super) fn release(&mut self, target: Target) {
        let timing = self.shared.timing;
        if let Some(schedule) = self.schedule.get_mut(&target) {
            schedule.lost(Instant::now(), &timing);
        }
    }

    /// Whom we want to be connected to: neighbours, and with them those we
    /// connect to for the traffic there is. Chooses neighbours anew.
    pub(super) fn wanted(&mut self) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let own = self.shared.id();
        let (all, pinned): (Vec<NodeId>, bool) = {
            let directory = self.shared.directory();
            let others = directory.views().map(|v| v.id()).filter(|id| *id != own);
            (others.collect(), matches!(directory.membership(), Membership::Key(_)))
        };
        let dead = |node: NodeId| self.unreachable.contains_key(&node) || self.is_barred(node);
        let choice = neighbours::choose(own, &all, dead);
        let mut neighbours: BTreeSet<NodeId> = choice.all().collect();
        neighbours.retain(|node| !self.is_barred(*node));
        let mut wanted = neighbours.clone();
        let known = |id: &NodeId| pinned || all.binary_search(id).is_ok();
        wanted.extend(self.on_demand.iter().copied().filter(known));
        wanted.retain(|node| !self.is_barred(*node));
        if choice != self.choice {
            self.gossip.prefer(|node| choice.contains(node));
            self.choice = choice;
        }
        (neighbours, wanted)
    }

    /// Takes over who can be reached over others. Whoever could not be reached
    /// so far is tried at once.
    pub(super) fn set_detours(&mut self, detours: HashMap<NodeId, SocketAddr>) {
        let now = Instant::now();
        for (node, address) in &detours {
            if self.detours.contains_key(node) || self.peers.contains_key(node) {
                continue;
            }
            if let Some(waiting) = self.late.remove(node) {
                // The attempt may just have ended; then it is tried again.
                let _ended = waiting.send(*address);
            }
            if let Some(schedule) = self.schedule.get_mut(&Target::Node(*node))
                && !schedule.busy
                && schedule.failures > 0
            {
                schedule.next = now;
            }
        }
        self.detours = detours;
    }

    pub(super) fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        let mut list: Vec<SocketAddr> = self.seen.get(&node).cloned().unwrap_or_default();
        list.extend(self.hints.get(&node).into_iter().flatten());
        if let Some(view) = self.shared.directory().get(node) {
            list.extend(view.descriptor.body.endpoints.iter().copied());
        }
        let mut seen = BTreeSet::new();
        list.retain(|a| seen.insert(*a) && !self.is_ours(a) && self.may_dial(*a));
        list.truncate(MAX_ENDPOINTS);
        list
    }

    /// Addresses to dial: where the node may be itself, and the way over
    /// others from the second place on, so that it serves as soon as the best
    /// direct one does not.
    fn candidates(&self, node: NodeId) -> Vec<SocketAddr> {
        let mut list = self.addresses(node);
        if let Some(detour) = self.detours.get(&node) {
            list.insert(list.len().min(1), *detour);
        }
        list
    }

    /// Others may say anything of where a node is. On a machine whose own
    /// endpoint is loopback (a test of several nodes on one), loopback is fine.
    pub(super) fn may_dial(&self, address: SocketAddr) -> bool {
        let local = address.ip().to_canonical().is_loopback()
            && self.parts.own.endpoints.iter().any(|e| e.ip().is_loopback());
        local || is_underlay(self.parts.network.id, address) && !self.looping.contains(address.ip())
    }

    /// TCP addresses where `node` offers tunnels.
    fn tcp_addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        if !self.parts.tcp_fallback {
            return Vec::new();
        }
        let member = self.shared.directory().get(node).cloned();
        let named = member.iter().flat_map(|v| v.descriptor.body.tcp.iter().copied());
        named.filter(|a| self.may_dial(*a) && !self.is_ours(a)).take(MAX_ENDPOINTS).collect()
    }

    /// The link with `node` is direct, but our connection to it may still lead
    /// through a tunnel, or over others, who are kept busy by it: a direct one
    /// takes its place, if one can be made.
    pub(super) fn straighten(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        let at = remote(&peer.connection);
        let tunnelled = self.parts.tunnels.contains(at);
        let detour = tunnelled || mesh_node(at).is_some();
        let Some(target) = peer.target.filter(|_| detour) else { return };
        if tunnelled {
            self.parts.tunnels.udp_works();
        }
        let addresses = self.addresses(node);
        if !addresses.is_empty() && self.attempts.len() < DIALS && self.attempts.insert(target) {
            // Nobody waits for it, so no detour is to be told to it.
            let (_, late) = oneshot::channel();
            self.attempt(target, Some(node), addresses, Vec::new(), late);
        }
    }

    pub(super) fn dial_due(&mut self) {
        let now = Instant::now();
        if std::mem::take(&mut self.stale) {
            let (neighbours, wanted) = self.wanted();
            if neighbours != self.neighbours {
                self.emit(ControlEvent::Neighbours(neighbours.clone()));
                self.neighbours = neighbours;
            }
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
        let mut due: Vec<(Instant, Target)> = self
            .schedule
            .iter()
            .filter(|(_, s)| !s.busy && s.next <= now)
            .map(|(target, s)| (s.next, *target))
            .collect();
        due.sort();
        for (_, target) in due {
            if self.attempts.len() >= DIALS {
                break;
            }
            self.dial(target, now);
        }
    }

    /// Private addresses occur twice in the world (container bridges, say): where
    /// one is our own, dialing it would only reach ourselves.
    pub(super) fn is_ours(&self, address: &SocketAddr) -> bool {
        self.parts.own.endpoints.contains(address)
    }

    /// True when the node behind a bootstrap address is connected, or about to
    /// be under its own name.
    pub(super) fn serves(&self, address: SocketAddr) -> bool {
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

    pub(super) fn dial(&mut self, target: Target, now: Instant) {
        let timing = self.shared.timing;
        let (expected, addresses) = match target {
            Target::Node(node) => (Some(node), self.candidates(node)),
            Target::Endpoint(address) if self.is_ours(&address) => (None, Vec::new()),
            Target::Endpoint(address) => (None, vec![address]),
        };
        let tcp = expected.map(|node| self.tcp_addresses(node)).unwrap_or_default();
        let connected = match target {
            Target::Node(node) => self.peers.contains_key(&node),
            Target::Endpoint(address) => self.serves(address),
        };
        let Some(schedule) = self.schedule.get_mut(&target) else { return };
        if connected || (addresses.is_empty() && tcp.is_empty()) {
            // Another connection serves, or will. Losing it sets a new time.
            let serves = matches!(target, Target::Node(_)) || !connected;
            let wait = if serves { timing.retry_max } else { timing.handshake };
            schedule.next = now + jitter(wait);
            return;
        }
        schedule.busy = true;
        self.attempts.insert(target);
        let (tell, late) = oneshot::channel();
        if let Some(node) = expected.filter(|node| !self.detours.contains_key(node)) {
            self.late.insert(node, tell);
        }
        self.attempt(target, expected, addresses, tcp, late);
    }

    /// Connects to a node, or to whoever is at a bootstrap address.
    fn attempt(
        &self,
        target: Target,
        expected: Option<NodeId>,
        addresses: Vec<SocketAddr>,
        tcp: Vec<SocketAddr>,
        late: oneshot::Receiver<SocketAddr>,
    ) {
        let timing = self.shared.timing;
        let candidates =
            Candidates { udp: addresses.clone(), tcp, tunnels: self.parts.tunnels.clone() };
        let (shared, endpoint, config) =
            (self.shared.clone(), self.parts.endpoint.clone(), self.parts.client.clone());
        let own = shared.id();
        tokio::spawn(async move {
            let checker = shared.clone();
            let check = move |connection: &Connection| {
                checker.authenticate(connection, expected).map_err(Failure::Refused)
            };
            let won =
                dial::race(&endpoint, &config, &candidates, late, timing.handshake, check).await;
            let failure = match won {
                Ok((connection, identity)) => {
                    session::run(shared.clone(), connection, Some(target), own, identity, None)
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
    pub(super) fn on_dialed(
        &mut self,
        target: Target,
        endpoints: Vec<SocketAddr>,
        failure: Option<Failure>,
    ) {
        let (now, timing) = (Instant::now(), self.shared.timing);
        self.attempts.remove(&target);
        if let Target::Node(node) = target {
            self.late.remove(&node);
        }
        let sighted = self.was_seen_unknown(target);
        let target = self.present_target(target);
        self.attempts.remove(&target);
        if let Some(Failure::Refused(reason)) = &failure
            && catch_up::is_unknown_root(reason)
        {
            self.catch_up(endpoints.clone());
        } else if let Some(Failure::Ended { refused: true, .. }) = &failure {
            // Perhaps because it does not trust our root any more.
            self.catch_up(endpoints.clone());
        }
        let held = self.peers.values().any(|p| p.target == Some(target));
        let Some(schedule) = self.schedule.get_mut(&target) else { return };
        if held {
            return;
        }
        if sighted && failure.is_some() {
            self.schedule.remove(&target);
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
        if let Target::Node(node) = target {
            // Others take its place among our neighbours.
            self.stale |= self.unreachable.insert(node, now + UNREACHABLE).is_none();
        }
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

//! The daemon: ties the engine, the workers, the control transport, the local
//! API and the operating system together in one loop.
//!
//! In: a [`Start`](crate::start::Start), packets (through the workers), control events, API
//! requests. Out: a TUN interface that reaches the network's members, and
//! events. Invariants: everything slow runs in this one task on one thread, so
//! there are no locks; traffic never passes through it (the workers carry it);
//! whatever was opened is released when it ends, however it ends.
//! Deliberately not here: protocol rules (`warren-proto`, `warren-control`).

mod authority;
mod candidates;
mod clients;
mod explain;
mod host;
mod interface;
mod launch;
mod membership;
mod mesh;
mod metrics;
mod names;
mod onion;
mod reflexive;
mod requests;
mod roles;
mod rotation;
mod routes;
mod routing;
mod startup;
mod status;
mod subnets;
mod surroundings;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use tokio::sync::mpsc;
use warren_control::address::is_underlay;
use warren_control::directory::{DirectoryChange, NodeView};
use warren_proto::engine::{Engine, LinkEvent, LinkState, Now, PathKind, Refusal, Transmit};
use warren_proto::link::event::ToEngine;
use warren_types::api::Event;
use warren_types::{DropCounters, DropReason, LinkPublicKey, NodeId};

use crate::api::{ApiRequest, EventLog};
use crate::random::OsRandom;
use crate::start::Ended;
use crate::store::{Member, Store};
use crate::transport::{ControlEvent, ControlHandle, PeerConnected};
use crate::userspace::Userspace;
use crate::userspace::isolation::Wanted;
use crate::workers::{DatagramSender, Workers};
use mesh::{Mesh, Owner};

/// Events of the workers taken in one turn, before anything else gets a turn.
const TURN: usize = 64;
/// How often endpoints, certificates and the like are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often decisions about subnet routes are looked at.
const ROUTES_EVERY: Duration = Duration::from_secs(30);

/// Clocks of members further apart than this are worth a line in the log, s.
const CLOCK_WARNING_S: i64 = 60;

/// Wall-clock time since the Unix epoch.
fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Queues that end in the loop.
struct Inbox {
    handshakes: mpsc::Receiver<ToEngine>,
    links: mpsc::Receiver<ToEngine>,
    control: mpsc::UnboundedReceiver<ControlEvent>,
    requests: mpsc::Receiver<ApiRequest>,
    isolation: mpsc::Receiver<Wanted>,
    around: surroundings::News,
}

/// One running node.
struct Daemon {
    store: Arc<Store>,
    config: crate::config::Config,
    id: NodeId,
    member: Member,
    prefixes: Vec<IpNet>,
    interface: String,
    listen: SocketAddr,
    /// Our own: as configured, else of our interfaces.
    endpoints: Vec<SocketAddr>,
    /// Where tunnels over TCP are offered, if they are.
    tcp_port: Option<u16>,
    /// Where others were told to reach us.
    told: Vec<SocketAddr>,
    mtu: u32,
    epoch: Instant,
    engine: Engine,
    workers: Workers,
    /// The stack, in userspace mode.
    userspace: Option<Userspace>,
    sender: DatagramSender,
    drops: Arc<DropCounters>,
    mesh: Mesh,
    names: names::Names,
    surroundings: surroundings::Surroundings,
    /// Changes this machine for us; none without the privilege.
    host: Option<crate::host::Companion>,
    routing: routing::Routing,
    reflexive: reflexive::Reflexive,
    subnets: subnets::Subnets,
    roles: roles::OnionRoles,
    onion: onion::Onion,
    /// For metrics.
    happened: crate::metrics::Happened,
    /// Why each peer's path was taken last, and when.
    path_reasons: HashMap<LinkPublicKey, (String, Instant)>,
    control: ControlHandle,
    events: EventLog,
    /// When decisions about subnet routes were looked at.
    routes_kept: Instant,
    /// The control transport does not know yet what leads into the tunnel.
    looping_untold: bool,
    /// Lasting warnings for `warren status`, by topic.
    notices: BTreeMap<&'static str, String>,
    /// Why the loop should end.
    ending: Option<Ending>,
}

/// How a daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// State stays.
    Stop,
    /// State is removed.
    Leave,
}

pub use launch::run;

impl Daemon {
    fn now(&self) -> Now {
        Now { instant: Instant::now(), unix: unix_now() }
    }

    /// The loop.
    async fn serve(
        mut self,
        mut inbox: Inbox,
        mut stop: tokio::sync::oneshot::Receiver<()>,
    ) -> Ended {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut routing = tokio::time::interval(routing::TICK);
        routing.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.ending.is_none() {
            self.flush();
            let deadline = self.engine.poll_timeout().map(|(at, _)| at);
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let circuits = self.onion_due();
            let circuits_due = async {
                match circuits {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let reroute = self.routing.due();
            let rerouting = async {
                match reroute {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut stop => self.ending = Some(Ending::Stop),
                Some(event) = inbox.control.recv() => {
                    self.handle_control(event);
                    // Tables are made anew once a turn, whatever it changed.
                    for _ in 1..TURN {
                        let Ok(event) = inbox.control.try_recv() else { break };
                        self.handle_control(event);
                    }
                }
                Some(event) = inbox.links.recv() => {
                    self.handle_worker(event, 0);
                    for _ in 1..TURN {
                        let Ok(event) = inbox.links.try_recv() else { break };
                        self.handle_worker(event, 0);
                    }
                }
                Some(request) = inbox.requests.recv() => self.handle_request(request).await,
                Some(wanted) = inbox.isolation.recv() => self.isolate(wanted),
                () = timer => self.engine.handle_timeout(self.now(), &mut OsRandom),
                () = circuits_due => self.tick_onion(),
                () = rerouting => self.routing_due(),
                _ = routing.tick() => self.tick_routing(),
                _ = housekeeping.tick() => self.keep_house().await,
                Some(report) = inbox.around.reports.recv() => self.router_says(report),
                Some(sighting) = inbox.around.sightings.recv() => self.seen(sighting),
                // Last: strangers can fill this one.
                Some(event) = inbox.handshakes.recv() => {
                    let queued = inbox.handshakes.len();
                    self.handle_worker(event, queued);
                }
                else => break,
            }
        }
        self.end().await
    }

    /// Sends what the engine wants sent, tells what happened.
    fn flush(&mut self) {
        while let Some(transmit) = self.engine.poll_transmit() {
            self.send(&transmit);
        }
        while let Some(event) = self.engine.poll_event() {
            self.handle_link(event);
        }
    }

    fn send(&self, transmit: &Transmit) {
        let result = if transmit.dont_fragment {
            self.sender.send(&warren_os::udp::Transmit {
                to: transmit.to,
                data: &transmit.data,
                segment: transmit.data.len(),
                tos: 0,
            })
        } else {
            self.sender.send_fragmentable(transmit.to, &transmit.data)
        };
        if let Err(error) = result {
            self.drops.count(DropReason::SendFailed);
            tracing::debug!(%error, "datagram not sent");
        }
    }

    fn handle_worker(&mut self, event: ToEngine, queued: usize) {
        let now = self.now();
        let rng = &mut OsRandom;
        match event {
            ToEngine::Handshake { from, data } => {
                self.engine.handle_handshake(from, &data, queued, now, rng);
            }
            ToEngine::LinkFrame { peer, from, data } => {
                self.engine.handle_link_frame(&peer, from, &data, now, rng);
            }
            ToEngine::Staged { peer, packets } => {
                self.dial(&peer.key());
                self.engine.handle_staged(&peer, packets, now, rng);
            }
            ToEngine::Confirmed { session } => self.engine.handle_confirmed(&session, now, rng),
            ToEngine::Roamed { peer, to } => self.engine.handle_roamed(&peer, to, now, rng),
            ToEngine::Cell { peer, data } => self.onion_cell(&peer, &data),
            ToEngine::OnionRequest { circuit, text } => self.onion_request(&circuit, &text),
            ToEngine::OnionAnswer { circuit, hop, text } => {
                self.onion_answer(&circuit, hop, &text);
            }
            // The control transport has its own queue.
            ToEngine::Quic { .. } => {}
        }
    }

    /// Traffic wants a member we have no control connection with.
    fn dial(&self, key: &LinkPublicKey) {
        if let Some(Owner::Node(id)) = self.mesh.owner(key)
            && !self.mesh.is_connected(*id)
        {
            let (control, id) = (self.control.clone(), *id);
            tokio::spawn(async move { control.connect(id).await });
        }
    }

    fn handle_link(&mut self, event: LinkEvent) {
        tracing::debug!(?event, "link");
        if let LinkEvent::SessionEstablished { peer, .. } = &event
            && let Some(id) = self.mesh.settled(peer)
        {
            self.update_peer(id);
        }
        match &event {
            LinkEvent::SessionEstablished { peer, .. } | LinkEvent::RttMeasured { peer, .. } => {
                self.link_up(*peer);
                self.router_changed(peer);
            }
            LinkEvent::PathSuspected { peer } | LinkEvent::PeerUnreachable { peer } => {
                self.link_silent(*peer);
                self.router_changed(peer);
            }
            LinkEvent::EndpointChanged { .. } => self.look_at_links(),
            LinkEvent::PathChanged { peer, .. } => {
                self.look_at_links();
                self.router_changed(peer);
            }
            _ => {}
        }
        match event {
            LinkEvent::SessionEstablished {
                peer, endpoint: Some(endpoint), rekey: false, ..
            } => {
                // Of members the round trip is measured next, and told with it.
                if matches!(self.mesh.owner(&peer), Some(Owner::Client(_))) {
                    self.promoted(&peer, endpoint, None, None);
                }
            }
            LinkEvent::RttMeasured { peer, rtt } => {
                let endpoint =
                    self.engine.link(&peer).and_then(|l| l.endpoint.load().as_deref().copied());
                if let Some(endpoint) = endpoint {
                    self.promoted(&peer, endpoint, Some(rtt.as_secs_f64() * 1e3), None);
                }
            }
            LinkEvent::EndpointChanged { peer, to } => self.promoted(&peer, to, None, None),
            LinkEvent::PathChanged { peer, to, reason, .. } => {
                tracing::info!(peer = self.mesh.name_of(&peer), %to, %reason, "path changed");
                let rtt = self.engine.stats(&peer, self.now()).and_then(|stats| stats.rtt);
                let rtt = rtt.map(|rtt| rtt.as_secs_f64() * 1e3);
                let reason = reason.to_string();
                self.path_reasons.insert(peer, (reason.clone(), Instant::now()));
                self.promoted(&peer, to, rtt, Some(reason));
            }
            LinkEvent::ObservedAddress { peer, address, .. } => {
                if let Some(id) = self.mesh.node_of(&peer) {
                    self.observed(id, address);
                }
            }
            LinkEvent::PeerUnreachable { peer } => {
                if let Some(name) = self.mesh.name_of(&peer) {
                    self.events.publish(Event::PeerUnreachable { name });
                }
            }
            // Impatience, not hostility: it tries again.
            LinkEvent::Refused { from, reason: reason @ Refusal::TooFast, .. } => {
                tracing::debug!(%from, %reason, "link handshake refused");
            }
            LinkEvent::Refused { from, reason, .. } => {
                tracing::warn!(%from, %reason, "link handshake refused");
                self.events.publish(Event::Refused { remote: from, reason: reason.to_string() });
            }
            LinkEvent::PathMtuChanged { peer, mtu } => {
                tracing::info!(peer = self.mesh.name_of(&peer), mtu, "path MTU changed");
            }
            LinkEvent::SessionEstablished { .. }
            | LinkEvent::PathSuspected { .. }
            | LinkEvent::HandshakeAbandoned { .. } => {}
        }
    }

    fn promoted(
        &self,
        peer: &LinkPublicKey,
        endpoint: SocketAddr,
        rtt_ms: Option<f64>,
        reason: Option<String>,
    ) {
        if let Some(Owner::Node(id)) = self.mesh.owner(peer)
            && PathKind::of(endpoint) == PathKind::Direct
        {
            // Not told now: then by `straighten_connections`.
            let _told = self.control.straighten(*id);
        }
        if let Some(name) = self.mesh.name_of(peer) {
            let path = self.path_name(endpoint);
            self.events.publish(Event::PathPromoted { name, path, endpoint, rtt_ms, reason });
        }
    }
}

impl Daemon {
    fn handle_control(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::PeerConnected(peer) => self.peer_connected(*peer),
            ControlEvent::PeerLost { node, name, reason } => {
                tracing::info!(%name, %reason, "control connection lost");
                self.mesh.disconnected(node);
                self.update_peer(node);
            }
            ControlEvent::Neighbours(neighbours) => {
                for id in self.mesh.set_neighbours(neighbours) {
                    self.update_peer(id);
                }
            }
            ControlEvent::LinkState(body) => self.take_link_state(&body),
            ControlEvent::RouteDecided(decided) => {
                let (body, signed) = *decided;
                self.take_decision(&body, signed);
            }
            ControlEvent::DirectoryChanged(changes) => {
                for change in changes {
                    self.handle_change(change);
                }
            }
            ControlEvent::NodeAdmitted { name, remote, .. } => {
                tracing::info!(%name, %remote, "node admitted");
                self.events.publish(Event::NodeAdmitted { name: name.to_string() });
            }
            ControlEvent::Refused { remote, reason } => {
                tracing::warn!(%remote, %reason, "control connection refused");
                self.events.publish(Event::Refused { remote, reason: reason.to_string() });
            }
            ControlEvent::DialFailed { node, endpoints, reason, refused, attempt } => {
                let name = node.and_then(|id| self.mesh.view(id)).map(|v| v.name.to_string());
                if refused && attempt <= 1 {
                    tracing::warn!(name, ?endpoints, %reason, "the other side refused the control connection; its log says why");
                } else {
                    tracing::info!(name, ?endpoints, %reason, attempt, "cannot connect");
                }
            }
            ControlEvent::CertificateRenewed { not_after } => {
                tracing::info!(not_after, "certificate renewed");
                self.notices.remove("renewal");
            }
            ControlEvent::RenewalFailed { not_after, reason } => {
                tracing::warn!(not_after, %reason, "certificate not renewed");
                self.notices
                    .insert("renewal", format!("the certificate could not be renewed: {reason}"));
            }
            ControlEvent::RenewedFor { node } => {
                let name = self.mesh.view(node).map(|v| v.name.to_string());
                tracing::info!(name, "renewed a member's certificate");
            }
            ControlEvent::Revoked => {
                tracing::error!("this node was revoked: nobody talks to it any more");
                self.notices.insert(
                    "revoked",
                    "this node was revoked: `warren leave`, then join afresh with a new code"
                        .to_owned(),
                );
            }
            ControlEvent::NotSaved { reason } => {
                tracing::error!(%reason, "state not saved");
                self.notices.insert("state", reason);
            }
            ControlEvent::IdentityRotated { .. }
            | ControlEvent::Readdressed { .. }
            | ControlEvent::TrustChanged { .. }
            | ControlEvent::Delegated { .. }
            | ControlEvent::AuthorityGained { .. }
            | ControlEvent::AuthorityLost => self.handle_rotation(event),
        }
    }

    fn peer_connected(&mut self, peer: PeerConnected) {
        let id = peer.node;
        tracing::debug!(name = %peer.view.name, remote = %peer.remote, dialer = peer.dialer, "control connection");
        self.learn(peer.view.clone());
        self.observed(id, peer.observed);
        if peer.clock_ahead_s.abs() > CLOCK_WARNING_S {
            tracing::warn!(name = %peer.view.name, seconds = peer.clock_ahead_s, "a member's clock differs from ours");
        }
        // The address first, then the key: the key starts the handshake, and
        // one sent to an older address would only be in the way. A link that
        // works stays where it is: it may have roamed since.
        let key = peer.view.descriptor.body.link_key;
        let up = self.engine.stats(&key, self.now()).is_some_and(|s| s.state == LinkState::Up);
        if !peer.dialer {
            // The dialer starts the link, and its handshake tells its address. One
            // of ours would meet a peer that does not use the key yet.
            self.engine.install_psk(&key, peer.psk.clone());
        } else if !up {
            self.engine.set_endpoint(&key, peer.remote, self.now(), &mut OsRandom);
        }
        self.mesh.connected(id, peer.remote, peer.psk, peer.post_quantum, peer.dialer);
        self.update_peer(id);
        // The peer may go ahead only now that we know the key.
        let _peer_waits_no_more = peer.installed.send(());
    }

    fn handle_change(&mut self, change: DirectoryChange) {
        match change {
            DirectoryChange::Added(view) | DirectoryChange::Updated(view) => self.learn(view),
            DirectoryChange::Removed { view, reason } => {
                self.names.forget(view.id());
                if let Some(key) = self.mesh.forget(view.id()) {
                    self.engine.remove_peer(&key);
                    self.path_reasons.remove(&key);
                    self.forget_routes(mesh::place(&view), &key);
                    self.take_offers(view.id());
                    self.events.publish(Event::PeerRemoved {
                        name: view.name.to_string(),
                        reason: reason.as_str().to_owned(),
                    });
                }
            }
            DirectoryChange::Succeeded { former, view } => self.succeed(&former, view),
            DirectoryChange::Conflict { claim, winner, loser } => {
                self.conflict(&claim, winner, loser);
            }
        }
    }

    fn learn(&mut self, view: Arc<NodeView>) {
        let (id, name) = (view.id(), view.name.to_string());
        self.names.learn(&view);
        let Some((old_key, new)) = self.mesh.learn(view) else { return };
        if let Some(key) = old_key {
            self.move_link(&key, id);
        }
        self.update_peer(id);
        self.detour_for(id);
        self.take_offers(id);
        if new {
            self.events.publish(Event::PeerDiscovered { name });
        }
    }

    fn update_peer(&mut self, id: NodeId) {
        if let Some(config) = self.mesh.node_peer(id) {
            self.engine.upsert_peer(config, self.now(), &mut OsRandom);
            self.update_candidates(id);
        }
    }

    /// Where a member may be reached has changed.
    fn update_candidates(&mut self, id: NodeId) {
        let Some((key, mut candidates)) = self.mesh.candidates(id) else { return };
        candidates.extend(self.routing.detours.get(&id));
        self.engine.set_candidates(&key, candidates, self.now(), &mut OsRandom);
    }

    /// A peer sees us at `address`.
    fn observed(&mut self, by: NodeId, address: SocketAddr) {
        let network = self.member.network.id;
        if is_underlay(network, address) && self.reflexive.note(by, address, Instant::now()) {
            tracing::debug!(%address, "a peer sees this node there");
            self.refresh_endpoints();
        }
    }

    /// What changes without anybody telling us: our own addresses.
    async fn keep_house(&mut self) {
        if self.config.endpoints.is_empty() {
            let own = startup::local_endpoints(self.listen, &self.interface);
            if own != self.endpoints && !own.is_empty() {
                tracing::info!(endpoints = ?own, "this machine's addresses changed");
                self.endpoints = own;
            }
        }
        self.refresh_endpoints();
        self.keep_onion_keys();
        self.keep_session();
        self.keep_isolated();
        self.keep_led();
        self.keep_machine();
        self.keep_gate();
        self.straighten_connections();
        if self.routes_kept.elapsed() >= ROUTES_EVERY {
            self.routes_kept = Instant::now();
            self.keep_routes().await;
        }
    }

    /// Tells the others where we are, if that changed: our own addresses, and
    /// with them those that others see.
    fn refresh_endpoints(&mut self) {
        let told = self.told_endpoints();
        self.engine.set_own_candidates(told.iter().copied(), self.now(), &mut OsRandom);
        if told != self.told {
            tracing::debug!(endpoints = ?told, "where this node is reached");
            self.told = told;
            self.announce();
        }
    }

    /// Where others are told to reach us.
    fn told_endpoints(&self) -> Vec<SocketAddr> {
        let mut told = self.endpoints.clone();
        if self.config.endpoints.is_empty() {
            // After our own: neighbours reach those sooner.
            told.extend(self.surroundings.external());
            told.extend(self.reflexive.advertised(&self.endpoints, Instant::now()));
        }
        let mut seen = BTreeSet::new();
        told.retain(|endpoint| seen.insert(*endpoint));
        told
    }

    async fn end(mut self) -> Ended {
        self.end_onion();
        self.flush();
        let leave = self.ending == Some(Ending::Leave);
        let control = async {
            if leave {
                self.control.leave().await;
            } else {
                self.control.shutdown().await;
            }
        };
        tokio::join!(control, self.surroundings.end());
        // Puts back what was changed on this machine, while the interface is
        // still there.
        drop(self.host);
        drop(self.userspace);
        drop(self.workers);
        if leave { self.store.wipe() } else { Ok(()) }
    }
}

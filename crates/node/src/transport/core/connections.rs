//! Which connections there are: one for each member, from its first message to
//! its end.
//!
//! In: what sessions report of their beginning and end. Out: verdicts for them,
//! events for the daemon. Invariants: of two connections between a pair both
//! sides keep the same one; a peer is announced when its link can be used, and
//! its loss only if it was announced. Deliberately not here: what is said over
//! a connection, and who is dialled.

use std::sync::Arc;
use std::time::Instant;

use quinn::Connection;
use tokio::sync::{mpsc, oneshot};
use warren_control::wire::{Hello, Message};
use warren_types::{NodeId, NodeName, PresharedKey, mesh_node};

use super::{Core, MAX_CONNECTIONS, Outgoing, Target, Verdict};
use crate::transport::event::{ControlEvent, PeerConnected, RefuseReason};
use crate::transport::frame::frame;
use crate::transport::session::{CLOSE_DONE, CLOSE_DUPLICATE};
use crate::transport::shared::remote;
use crate::transport::socket;

/// A member that is connected.
pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) outgoing: mpsc::Sender<Outgoing>,
    pub(super) hello: Box<Hello>,
    pub(super) psk: PresharedKey,
    pub(super) target: Option<Target>,
    /// The name by which the daemon was told of it.
    pub(super) announced: Option<NodeName>,
    /// Messages may be sent.
    pub(super) ready: bool,
}

impl Peer {
    pub(super) fn dialer(&self) -> bool {
        self.target.is_some()
    }

    pub(super) fn push(&self, frames: Vec<Arc<[u8]>>) {
        if self.ready {
            self.queue(frames);
        }
    }

    /// Like [`Peer::push`], also while the first exchange lasts: it goes out
    /// right after it.
    pub(super) fn queue(&self, frames: Vec<Arc<[u8]>>) {
        if self.outgoing.try_send(Outgoing::Frames(frames)).is_err() {
            // It does not take what we send: start over, with a full exchange.
            self.connection.close(CLOSE_DONE, b"");
        }
    }
}

impl Core {
    pub(super) fn on_hello(&mut self, node: NodeId, peer: Peer) -> Verdict {
        if self.is_barred(node) {
            return Verdict::Refused(RefuseReason::Barred);
        }
        let known = self.peers.contains_key(&node) || self.choice.contains(node);
        if self.peers.len() >= MAX_CONNECTIONS && !known && !peer.dialer() {
            return Verdict::Refused(RefuseReason::Busy);
        }
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
            let address = remote(&peer.connection);
            self.parts.tunnels.reached(address);
            // The way into a tunnel is gone when the tunnel is; detours are the
            // daemon's to tell.
            if !self.parts.tunnels.contains(address) && mesh_node(address).is_none() {
                self.hints.entry(node).or_default().insert(address);
            }
        }
        if let Some(target) = peer.target {
            self.attempts.remove(&target);
            self.occupy(target);
        }
        let dialer = peer.dialer();
        let (tell, installed) = oneshot::channel();
        let time = self.time();
        self.gossip.neighbour_down(node, time);
        self.send_gossip();
        self.stale |= self.unreachable.remove(&node).is_some();
        self.peers.insert(node, peer);
        if dialer {
            drop(tell);
        } else {
            self.announce(node, tell);
        }
        Verdict::Keep(installed)
    }

    pub(super) fn announce(&mut self, node: NodeId, installed: oneshot::Sender<()>) {
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
            observed: socket::canonical(peer.hello.observed),
            software: peer.hello.software.clone(),
            clock_ahead_s: if peer.hello.time < now { -ahead } else { ahead },
            installed,
        };
        self.emit(ControlEvent::PeerConnected(Box::new(event)));
    }

    pub(super) fn current(&mut self, node: NodeId, stable: usize) -> Option<&mut Peer> {
        let node = self.present(node);
        self.peers.get_mut(&node).filter(|p| p.connection.stable_id() == stable)
    }

    pub(super) fn on_ready(&mut self, node: NodeId, stable: usize, installed: oneshot::Sender<()>) {
        let node = self.present(node);
        let Some(peer) = self.current(node, stable) else { return };
        peer.ready = true;
        if peer.announced.is_none() {
            self.announce(node, installed);
        }
        // Roots go first, since they sign the rest; then revocations, then what
        // each lacks.
        let trust = self.shared.directory().membership().trust().map(|trust| trust.chain());
        if let Some(chain) = trust.filter(|chain| !chain.0.is_empty())
            && let Some(peer) = self.peers.get(&node)
        {
            peer.push(vec![frame(&Message::Trust(chain))]);
        }
        let (preferred, now) = (self.choice.contains(node), self.time());
        self.gossip.neighbour_up(node, preferred, now);
        self.send_gossip();
    }

    pub(super) fn on_closed(&mut self, node: NodeId, stable: usize, reason: String) {
        let node = self.present(node);
        if self.current(node, stable).is_none() {
            return;
        }
        let Some(peer) = self.peers.remove(&node) else { return };
        let time = self.time();
        self.gossip.neighbour_down(node, time);
        self.send_gossip();
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
}

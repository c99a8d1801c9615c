//! Nodes that go on under another key: we, and others.
//!
//! The connection that is up stays, authenticated by the former key; so do the
//! link and its traffic, which know nothing of it. Invariants: a new key is on
//! disk, with its certificate, before anybody hears of it; the former one is
//! revoked by the admin that certified the new one, when the new one was seen in
//! use. Deliberately not here: who may have a certificate (`admin`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_control::identity::IdentityKey;
use warren_control::membership::PeerIdentity;
use warren_control::wire::{Message, RotateRequest};
use warren_types::NodeId;

use super::messages::Answer;
use super::{Core, Target};
use crate::random::OsRandom;
use crate::transport::admin::AdminError;
use crate::transport::event::ControlEvent;
use crate::transport::frame::frame;

/// How long an admin may take to certify a new key.
const PATIENCE: Duration = Duration::from_secs(15);
/// Former keys remembered, for connections that were made with them.
const MAX_FORMER: usize = 10_000;

/// A rotation of our own key that waits for its certificate.
struct Waiting {
    key: IdentityKey,
    since: Instant,
    asked: NodeId,
    reply: Answer<NodeId>,
}

/// Changes of keys under way.
#[derive(Default)]
pub(super) struct Succession {
    /// The key that a node has instead of a former one.
    present: HashMap<NodeId, NodeId>,
    waiting: Option<Waiting>,
}

impl Core {
    /// The key by which a node goes now.
    pub(super) fn present(&self, node: NodeId) -> NodeId {
        let mut node = node;
        // No longer than the number of changes: they cannot form a ring, since
        // generations grow.
        for _ in 0..self.succession.present.len() {
            match self.succession.present.get(&node) {
                Some(next) => node = *next,
                None => break,
            }
        }
        node
    }

    pub(super) fn present_target(&self, target: Target) -> Target {
        match target {
            Target::Node(node) => Target::Node(self.present(node)),
            Target::Endpoint(_) => target,
        }
    }

    /// Another node goes on under another key: what we have of it as well.
    pub(super) fn follow(&mut self, former: NodeId, present: NodeId) {
        if former == self.shared.id() || present == self.shared.id() {
            return;
        }
        if self.succession.present.len() >= MAX_FORMER {
            self.succession.present.clear();
        }
        self.succession.present.insert(former, present);
        if let Some(mut peer) = self.peers.remove(&former) {
            if peer.target == Some(Target::Node(former)) {
                peer.target = Some(Target::Node(present));
            }
            let ready = peer.ready;
            self.peers.entry(present).or_insert(peer);
            let now = self.time();
            self.gossip.neighbour_down(former, now);
            if ready {
                let preferred = self.choice.contains(present) || self.choice.contains(former);
                self.gossip.neighbour_up(present, preferred, now);
                self.send_gossip();
            }
        }
        if let Some(hints) = self.hints.remove(&former) {
            self.hints.entry(present).or_default().extend(hints);
        }
        if self.on_demand.remove(&former) {
            self.on_demand.insert(present);
        }
        if let Some(schedule) = self.schedule.remove(&Target::Node(former)) {
            self.schedule.entry(Target::Node(present)).or_insert(schedule);
        }
        if self.attempts.remove(&Target::Node(former)) {
            self.attempts.insert(Target::Node(present));
        }
        for node in self.answered.values_mut().filter(|node| **node == former) {
            *node = present;
        }
    }

    /// As the admin that certified the new key: the former one is of no use to
    /// anybody from here on.
    pub(super) fn retire(&mut self, former: NodeId, present: NodeId) {
        let Some(admin) = &mut self.parts.admin else { return };
        let now = self.shared.now();
        let retired = {
            let directory = self.shared.directory();
            let Some(trust) = directory.membership().trust() else { return };
            admin.retire(former, present, trust, now, self.parts.persist.as_ref())
        };
        match retired {
            Ok(Some(record)) => {
                if let Err(error) = self.revoke_by(vec![record]) {
                    tracing::warn!(%error, "a former key was not revoked");
                }
            }
            Ok(None) => {}
            Err(reason) => self.emit(ControlEvent::NotSaved { reason }),
        }
    }

    /// Starts to rotate our own key.
    pub(super) fn rotate_identity(&mut self, reply: Answer<NodeId>) {
        let certified = self.shared.directory().membership().trust().is_some();
        if !certified {
            let mode = self.shared.directory().membership().kind().as_str();
            let _ = reply.send(Err(AdminError::NoCertificates(mode)));
            return;
        }
        let key = match IdentityKey::generate(&mut OsRandom) {
            Ok(key) => key,
            Err(error) => {
                let _ = reply.send(Err(AdminError::Failed(error.to_string())));
                return;
            }
        };
        let request = RotateRequest::sign(self.parts.network.id, &self.shared.key(), &key);
        let now = self.shared.now();
        let own = {
            let directory = self.shared.directory();
            let persist = self.parts.persist.as_ref();
            let counts = |admin: &crate::transport::admin::Admin| {
                let trust = directory.membership().trust();
                trust.is_some_and(|trust| admin.counts(trust, directory.revocations(), now))
            };
            let admin = self.parts.admin.as_mut().filter(|admin| counts(admin));
            admin.map(|admin| admin.rotate(&request, &directory, now, persist))
        };
        match own {
            Some(Ok(chain)) => {
                let _ = reply.send(self.become_key(key, chain));
            }
            Some(Err(reason)) => {
                let _ = reply.send(Err(AdminError::Failed(reason)));
            }
            None => {
                let Some(asked) = self.choose_admin(0) else {
                    let _ = reply.send(Err(AdminError::NoAdmin));
                    return;
                };
                if let Some(peer) = self.peers.get(&asked) {
                    peer.push(vec![frame(&Message::RotateRequest(Box::new(request)))]);
                }
                let since = Instant::now();
                self.succession.waiting = Some(Waiting { key, since, asked, reply });
            }
        }
    }

    pub(super) fn on_rotate_request(&mut self, node: NodeId, request: &RotateRequest) {
        // The connection may have been made with an even older key.
        if self.present(request.old) != node && request.old != node {
            tracing::warn!(%node, "asked to certify a key for another node");
            return;
        }
        let now = self.shared.now();
        let rotated = {
            let Some(admin) = &mut self.parts.admin else { return };
            let directory = self.shared.directory();
            admin.rotate(request, &directory, now, self.parts.persist.as_ref())
        };
        match rotated {
            Ok(chain) => {
                if let Some(peer) = self.peers.get(&node) {
                    peer.push(vec![frame(&Message::RotateReply(chain))]);
                }
                self.emit(ControlEvent::RenewedFor { node });
            }
            Err(reason) => tracing::warn!(%node, reason, "a new key was not certified"),
        }
    }

    pub(super) fn on_rotate_reply(&mut self, chain: Vec<Vec<u8>>) {
        let Some(waiting) = self.succession.waiting.take() else { return };
        let Waiting { key, reply, .. } = waiting;
        let _ = reply.send(self.become_key(key, chain));
    }

    /// Goes on under `key`.
    fn become_key(&mut self, key: IdentityKey, chain: Vec<Vec<u8>>) -> Result<NodeId, AdminError> {
        let failed = |reason: String| AdminError::Failed(reason);
        let present = self.certified().ok_or(AdminError::NotAdmin)?;
        let checked = self.shared.directory().check_chain(&chain, self.shared.now());
        let node = match checked {
            Ok(PeerIdentity::Certified(node)) => node,
            Ok(_) => return Err(AdminError::NotAdmin),
            Err(error) => return Err(failed(error.to_string())),
        };
        let ours = node.id == key.id()
            && node.name == present.name
            && node.origin.id == present.origin.id
            && node.origin.generation > present.origin.generation
            && self.parts.own.addresses.iter().all(|a| node.addresses.contains(a));
        if !ours {
            return Err(failed("the admin sent another certificate than was asked for".into()));
        }
        self.parts.persist.save_identity(&key, &chain).map_err(failed)?;
        let former = self.shared.id();
        let id = key.id();
        self.shared.set_key(Arc::new(key));
        self.use_chain(chain).map_err(|e| failed(e.to_string()))?;
        self.emit(ControlEvent::IdentityRotated { former, id });
        self.publish();
        Ok(id)
    }

    /// Ends what waited too long for others.
    pub(super) fn end_waiting(&mut self) {
        let late = |since: Instant| since.elapsed() >= PATIENCE;
        if let Some(waiting) = self.succession.waiting.take_if(|w| late(w.since)) {
            let name = self.shared.directory().get(waiting.asked).map(|v| v.name.to_string());
            let who = name.unwrap_or_else(|| "the admin".into());
            let _ = waiting.reply.send(Err(AdminError::NoAnswer(who)));
        }
        self.end_offers(late);
    }
}

//! What members tell each other: descriptors, revocations, digests, and our own
//! descriptor.
//!
//! Invariants: news goes to every connected peer but the one it came from, once;
//! a third party's bad descriptor is not held against the peer that passed it
//! on. Deliberately not here: what a descriptor may say (`warren-control`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;
use warren_control::descriptor::{
    DESCRIPTOR_LIFE, DescriptorBody, MAX_ENDPOINTS, SignedDescriptor,
};
use warren_control::directory::{ApplyError, Directory, DirectoryChange, RemovalReason};
use warren_control::revocation::SignedRevocation;
use warren_control::wire::{Digest, DigestEntry, MAX_DIGEST, Message};
use warren_types::NodeId;

use super::{Core, Outgoing};
use crate::transport::event::ControlEvent;
use crate::transport::frame::frame;
use crate::transport::session::{CLOSE_DONE, CLOSE_REFUSED};
use crate::transport::shared::remote;

/// How long a peer that is no member any more may take to read why.
const PARTING: Duration = Duration::from_secs(1);

impl Core {
    pub(super) fn on_descriptor(&mut self, from: NodeId, descriptor: &SignedDescriptor) {
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

    pub(super) fn on_revocation(&mut self, from: NodeId, record: SignedRevocation) {
        let applied = self.shared.directory().revoke(record.clone(), self.shared.now());
        match applied {
            Ok(Some(changes)) => self.revoked(&record, changes, Some(from)),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a revocation was not taken in"),
        }
    }

    /// Spreads a new revocation and parts from the node.
    pub(super) fn revoked(
        &mut self,
        record: &SignedRevocation,
        changes: Vec<DirectoryChange>,
        from: Option<NodeId>,
    ) {
        let message = frame(&Message::Revocation(record.clone()));
        for (node, peer) in &self.peers {
            if Some(*node) != from {
                peer.queue(vec![message.clone()]);
            }
        }
        self.changed(changes);
        if self.shared.directory().revocations().contains(self.shared.id()) {
            self.emit(ControlEvent::Revoked);
        }
    }

    /// Reports changes and passes the descriptor on.
    pub(super) fn spread(
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

    pub(super) fn changed(&mut self, changes: Vec<DirectoryChange>) {
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
                        let _ = timeout(PARTING, finished).await;
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
    pub(super) fn expel(&mut self, node: NodeId) {
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

    pub(super) fn on_digest(&mut self, node: NodeId, digest: &Digest) {
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

    pub(super) fn own_body(&self, now: u64, left: bool) -> DescriptorBody {
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
            routes: own.routes.clone(),
        }
    }
}

/// What we know, in parts that cover the ids in order.
pub(super) fn digest(directory: &Directory) -> Vec<Arc<[u8]>> {
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

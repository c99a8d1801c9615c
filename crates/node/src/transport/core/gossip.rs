//! Gossip between members: the glue between connections, the state machine of
//! `warren-discovery`, and what verifies each kind of record.
//!
//! Invariants: a record is taken in here exactly when gossip keeps it; what a
//! change causes (closing a revoked node's connection, say) comes after the news
//! of it is on its way. Deliberately not here: who is told what and when
//! (`warren-discovery`), what a record may say (`warren-control`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;
use warren_control::descriptor::{
    DESCRIPTOR_LIFE, DescriptorBody, DescriptorError, MAX_ENDPOINTS, SignedDescriptor,
};
use warren_control::directory::{ApplyError, DirectoryChange, RemovalReason};
use warren_control::revocation::{RevocationError, SignedRevocation};
use warren_control::trust::{Trust, TrustChain, TrustError};
use warren_control::wire::Message;
use warren_discovery::gossip::{self, Event, Kind, Record, Time, Verdict, Verifier};
use warren_types::{NetworkId, NodeId};

use super::{Core, Outgoing, approvals, links};
use crate::transport::event::{ControlEvent, RefuseReason};
use crate::transport::frame::frame;
use crate::transport::session::{CLOSE_DONE, CLOSE_REFUSED};
use crate::transport::shared::{Shared, remote};

/// How long a peer that is no member any more may take to read why.
const PARTING: Duration = Duration::from_secs(1);
/// How long a peer that was cut off has to stay away.
const BARRED: Duration = Duration::from_secs(600);

/// A descriptor as gossip carries it. `None` when it does not parse.
pub(super) fn descriptor_record(signed: &SignedDescriptor) -> Option<Arc<Record>> {
    let (node, sequence, expires) = signed.header().ok()?;
    Record::new(Kind::Descriptor, node.0, sequence, expires, &signed.to_bytes())
}

/// A revocation as gossip carries it. `None` when it does not parse.
pub(super) fn revocation_record(signed: &SignedRevocation) -> Option<Arc<Record>> {
    let body = signed.peek().ok()?;
    Record::new(Kind::Revocation, body.node.0, body.sequence(), body.ends(), &signed.to_bytes())
}

/// All records of the network's roots as gossip carries them: one record, since
/// they are of use together only.
pub(super) fn trust_record(network: NetworkId, chain: &TrustChain) -> Option<Arc<Record>> {
    let mut subject = [0; 32];
    subject[..16].copy_from_slice(&network.0);
    let ends = chain.ends()?;
    Record::new(Kind::Trust, subject, chain.sequence(), ends, &chain.to_bytes())
}

/// Verifies records by taking them in, and remembers what that changed.
struct Intake<'a> {
    shared: &'a Shared,
    changes: Vec<DirectoryChange>,
    /// The sequence of a descriptor of our own that we did not know.
    ours: Option<u64>,
    /// What else the daemon is to be told.
    events: Vec<ControlEvent>,
    revoked: Vec<NodeId>,
    /// The network has other roots.
    trust: bool,
}

impl Verifier for Intake<'_> {
    fn verify(&mut self, record: &Record, now: Time) -> Verdict {
        match record.kind() {
            Kind::Revocation => self.revocation(record, now.unix),
            Kind::Descriptor => self.descriptor(record, now.unix),
            Kind::LinkState => match links::check(self.shared, record, now.unix) {
                Ok(body) => {
                    self.events.push(ControlEvent::LinkState(Box::new(body)));
                    Verdict::Accept
                }
                Err(verdict) => verdict,
            },
            Kind::RouteApproval => {
                let directory = self.shared.directory();
                match approvals::check(&directory, record, now.unix) {
                    Ok(decided) => {
                        self.events.push(ControlEvent::RouteDecided(Box::new(decided)));
                        Verdict::Accept
                    }
                    Err(verdict) => verdict,
                }
            }
            Kind::Trust => self.trust(record, now.unix),
        }
    }
}

impl Intake<'_> {
    fn descriptor(&mut self, record: &Record, now: u64) -> Verdict {
        let Ok(signed) = SignedDescriptor::from_bytes(record.body()) else {
            return Verdict::Forged;
        };
        if descriptor_record(&signed).as_deref() != Some(record) {
            return Verdict::Forged;
        }
        match self.shared.directory().apply_chosen(&signed, now) {
            Ok(changes) => {
                self.changes.extend(changes.unwrap_or_default());
                if record.subject() == &self.shared.id().0 {
                    self.ours = Some(record.sequence());
                }
                Verdict::Accept
            }
            Err(ApplyError::Descriptor(
                DescriptorError::BadSignature
                | DescriptorError::BadMac
                | DescriptorError::WrongNetwork,
            )) => Verdict::Forged,
            // The peer may know other clocks, limits, pins or revocations.
            Err(error) => {
                tracing::debug!(%error, "a descriptor was not taken in");
                Verdict::Ignore
            }
        }
    }

    fn revocation(&mut self, record: &Record, now: u64) -> Verdict {
        let Ok(signed) = SignedRevocation::from_bytes(record.body()) else {
            return Verdict::Forged;
        };
        if revocation_record(&signed).as_deref() != Some(record) {
            return Verdict::Forged;
        }
        match self.shared.directory().revoke(signed, now) {
            Ok(changes) => {
                if changes.is_some() {
                    self.revoked.push(NodeId(*record.subject()));
                }
                self.changes.extend(changes.unwrap_or_default());
                Verdict::Accept
            }
            Err(error @ (RevocationError::Over | RevocationError::Full)) => {
                tracing::debug!(%error, "a revocation was not taken in");
                Verdict::Ignore
            }
            // The peer may know a root that we do not know yet, or still know
            // one or an authority that has ended here.
            Err(error @ RevocationError::UnknownSigner) => {
                tracing::info!(%error, "a revocation was not taken in");
                Verdict::Ignore
            }
            Err(error) => {
                tracing::warn!(%error, "a revocation was not taken in");
                Verdict::Forged
            }
        }
    }
}

impl Intake<'_> {
    fn trust(&mut self, record: &Record, now: u64) -> Verdict {
        let Ok(chain) = TrustChain::from_bytes(record.body()) else { return Verdict::Forged };
        let mut directory = self.shared.directory();
        if trust_record(directory.network(), &chain).as_deref() != Some(record) {
            return Verdict::Forged;
        }
        match directory.apply_trust(&chain, now) {
            Ok(news) => {
                self.trust |= news;
                Verdict::Accept
            }
            Err(
                error @ (TrustError::Malformed
                | TrustError::BadSignature
                | TrustError::WrongNetwork),
            ) => {
                tracing::warn!(%error, "a change of roots was not taken in");
                Verdict::Forged
            }
            Err(error) => {
                tracing::warn!(%error, "a change of roots was not taken in");
                Verdict::Ignore
            }
        }
    }
}

impl Core {
    pub(super) fn time(&self) -> Time {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Time { ms, unix: self.shared.now() }
    }

    /// When gossip has something to do.
    pub(super) fn gossip_due(&self) -> Instant {
        self.started + Duration::from_millis(self.gossip.poll_timeout())
    }

    pub(super) fn gossip_chores(&mut self) {
        let now = self.time();
        if self.gossip.poll_timeout() <= now.ms {
            self.gossip.handle_timeout(now);
            self.send_gossip();
        }
    }

    /// Takes what is known already into gossip.
    pub(super) fn restore_gossip(&mut self) {
        let directory = self.shared.directory();
        let descriptors = directory.descriptors().filter_map(|d| descriptor_record(&d.signed));
        let revocations = directory.revocations().records().filter_map(revocation_record);
        let trust = directory.membership().trust().map(Trust::chain);
        let trust = trust.and_then(|chain| trust_record(directory.network(), &chain));
        for record in descriptors.chain(revocations).chain(trust) {
            self.gossip.restore(record);
        }
    }

    pub(super) fn on_gossip(&mut self, from: NodeId, bytes: &[u8]) {
        let now = self.time();
        let mut intake = Intake {
            shared: &self.shared,
            changes: Vec::new(),
            ours: None,
            revoked: vec![],
            trust: false,
            events: Vec::new(),
        };
        match gossip::Message::decode(bytes) {
            Ok(gossip::Message::Records(mut records)) => {
                // Roots sign the rest.
                records.sort_by_key(|record| record.kind() != Kind::Trust);
                let message = gossip::Message::Records(records);
                self.gossip.handle_message(from, message, now, &mut intake);
            }
            Ok(message) => self.gossip.handle_message(from, message, now, &mut intake),
            Err(error) => {
                tracing::debug!(%error, node = %from, "a gossip message does not parse");
                self.gossip.malformed(from, now);
            }
        }
        let Intake { changes, ours, revoked, trust, events, .. } = intake;
        self.send_gossip();
        if trust {
            self.trust_changed();
        }
        if !changes.is_empty() || !revoked.is_empty() {
            self.changed(changes);
        }
        // After the members they are about.
        for event in events {
            self.emit(event);
        }
        if !revoked.is_empty() {
            for key in revoked {
                self.note_revocation(key);
            }
            self.strengthen();
        }
        if let Some(sequence) = ours.filter(|s| *s > self.parts.sequence) {
            // Signed by us in an earlier life (our clock or our state went
            // back): what we say now must win.
            self.parts.sequence = sequence;
            self.publish();
        }
    }

    /// Hands what gossip wants to say to the connections.
    pub(super) fn send_gossip(&mut self) {
        let mut batch: Option<(NodeId, Vec<Arc<[u8]>>)> = None;
        while let Some((to, message)) = self.gossip.poll_transmit() {
            let bytes = frame(&Message::Gossip(message.encode()));
            match &mut batch {
                Some((node, frames)) if *node == to => frames.push(bytes),
                _ => {
                    self.push_frames(batch.take());
                    batch = Some((to, vec![bytes]));
                }
            }
        }
        self.push_frames(batch);
        while let Some(event) = self.gossip.poll_event() {
            let Event::CutOff { node, cause } = event;
            self.barred.insert(node, Instant::now() + BARRED);
            self.stale = true;
            if let Some(peer) = self.peers.get(&node) {
                let at = remote(&peer.connection);
                peer.connection.close(CLOSE_REFUSED, b"");
                self.refused(at, RefuseReason::Protocol(cause.as_str().into()));
            }
        }
    }

    fn push_frames(&self, batch: Option<(NodeId, Vec<Arc<[u8]>>)>) {
        if let Some((node, frames)) = batch
            && let Some(peer) = self.peers.get(&node)
        {
            peer.push(frames);
        }
    }

    /// True for a peer that was cut off and may not come back yet.
    pub(super) fn is_barred(&self, node: NodeId) -> bool {
        self.barred.get(&node).is_some_and(|until| Instant::now() < *until)
    }

    /// Spreads a new revocation and parts from the node.
    pub(super) fn revoked(&mut self, revocation: &SignedRevocation, changes: Vec<DirectoryChange>) {
        let now = self.time();
        if let Some(record) = revocation_record(revocation) {
            self.gossip.publish(record, None, now);
            self.send_gossip();
        }
        self.changed(changes);
        if let Ok(body) = revocation.peek() {
            self.note_revocation(body.node);
        }
    }

    /// Reports changes and passes the descriptor on; `from` as in gossip.
    pub(super) fn spread(
        &mut self,
        changes: Option<Vec<DirectoryChange>>,
        descriptor: &SignedDescriptor,
        from: Option<NodeId>,
    ) {
        let Some(changes) = changes else { return };
        let now = self.time();
        if let Some(record) = descriptor_record(descriptor) {
            self.gossip.publish(record, from, now);
            self.send_gossip();
        }
        self.changed(changes);
    }

    pub(super) fn changed(&mut self, changes: Vec<DirectoryChange>) {
        self.stale = true;
        self.unsaved.get_or_insert_with(Instant::now);
        let mut left = Vec::new();
        let mut succeeded = Vec::new();
        for change in &changes {
            let (view, reason) = match change {
                DirectoryChange::Removed { view, reason } => (view, reason),
                DirectoryChange::Succeeded { former, view } => {
                    let now = self.time();
                    self.gossip.forget(Kind::Descriptor, &former.id().0, now);
                    self.gossip.forget(Kind::LinkState, &former.id().0, now);
                    succeeded.push((former.id(), view.id()));
                    continue;
                }
                DirectoryChange::Conflict { loser, .. } if *loser == self.shared.id() => {
                    // Another address may be had.
                    self.renewal = Instant::now();
                    continue;
                }
                _ => continue,
            };
            let node = view.id();
            self.hints.remove(&node);
            self.on_demand.remove(&node);
            if *reason != RemovalReason::Left {
                // A tombstone stays, others have nothing more to say.
                let now = self.time();
                self.gossip.forget(Kind::Descriptor, &node.0, now);
            }
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
        for (former, present) in &succeeded {
            self.follow(*former, *present);
        }
        if !changes.is_empty() {
            self.emit(ControlEvent::DirectoryChanged(changes));
        }
        for node in left {
            self.expel(node);
        }
        for (former, present) in succeeded {
            self.retire(former, present);
        }
    }

    /// A member left: as an admin, end its membership for good, so that a copy
    /// of its key is worth nothing.
    pub(super) fn expel(&mut self, node: NodeId) {
        let Some(admin) = &mut self.parts.admin else { return };
        let now = self.shared.now();
        let expelled = {
            let directory = self.shared.directory();
            let Some(trust) = directory.membership().trust() else { return };
            admin.expel(node, trust, now, self.parts.persist.as_ref())
        };
        match expelled {
            Ok(record) => {
                if let Err(error) = self.revoke_by(vec![record]) {
                    tracing::warn!(%error, "a node that left was not revoked");
                }
            }
            Err(reason) => self.emit(ControlEvent::NotSaved { reason }),
        }
    }

    /// Signs and spreads what we say about ourselves.
    pub(crate) fn publish(&mut self) {
        let now = self.shared.now();
        let body = self.own_body(now, false);
        self.parts.sequence = body.sequence;
        self.own_issued = now;
        let signed = body.sign(&self.shared.key(), self.shared.directory().membership());
        let applied = self.shared.directory().apply(&signed, now);
        self.shared.set_own(signed.clone());
        match applied {
            Ok(changes) => self.spread(changes, &signed, None),
            // Peers will say the same; the operator must know why.
            Err(error) => tracing::error!(%error, "our own descriptor is not acceptable"),
        }
    }

    /// Where we offer tunnels over TCP: our addresses with that port.
    pub(super) fn own_tcp(&self) -> Vec<SocketAddr> {
        let Some(port) = self.parts.own.tcp_port else { return Vec::new() };
        let mut list: Vec<SocketAddr> = Vec::new();
        for endpoint in &self.parts.own.endpoints {
            let address = SocketAddr::new(endpoint.ip(), port);
            if !endpoint.ip().is_unspecified() && !list.contains(&address) {
                list.push(address);
            }
        }
        list.truncate(MAX_ENDPOINTS);
        list
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
            tcp: self.own_tcp(),
            keys: self.key_notes(),
            onion: if left { None } else { own.onion.clone() },
        }
    }
}

//! Who may admit, and under which root: delegation, rotation of the CA, and
//! catching up with it.
//!
//! Invariants: the key of a delegated authority is made where it is used and
//! never sent; a node takes an authority only for a key it made itself; a new
//! root counts once it is on disk; what a change of roots makes necessary (new
//! certificates, new authorities) follows by itself. Deliberately not here:
//! certificates and records themselves (`admin`, `warren-control`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_control::ca::Authority;
use warren_control::descriptor::KeyNotes;
use warren_control::identity::IdentityKey;
use warren_control::trust::TrustChain;
use warren_control::verify::{validity, verify_authority};
use warren_control::wire::{ALPN_TRUST, AuthorityRequest, Message, TrustReply};
use warren_types::{NodeId, NodeName};

use super::Core;
use super::gossip::trust_record;
use super::messages::{Answer, AuthorityCommand, AuthorityInfo, RootKey};
use crate::random::OsRandom;
use crate::transport::admin::{Admin, AdminError, trust_reply};
use crate::transport::catch_up;
use crate::transport::dial::Candidates;
use crate::transport::event::ControlEvent;
use crate::transport::frame::frame;
use crate::transport::tls;

/// Between attempts to learn of other roots.
const CATCH_UP_EVERY: Duration = Duration::from_secs(3);

/// What is under way.
#[derive(Default)]
pub(super) struct Authorities {
    /// The key we made for an authority that we were offered.
    pending: Option<IdentityKey>,
    /// Nodes to which we offered an authority.
    offers: HashMap<NodeId, (Instant, Answer<()>)>,
    /// When we asked for other roots last.
    caught_up: Option<Instant>,
    /// When we asked for a new certificate of our authority last.
    asked: Option<Instant>,
}

fn failed(error: impl std::fmt::Display) -> AdminError {
    AdminError::Failed(error.to_string())
}

impl Core {
    pub(super) fn on_authority_command(&mut self, command: AuthorityCommand) {
        match command {
            AuthorityCommand::Delegate { name, reply } => self.offer(&name, reply),
            AuthorityCommand::Undelegate { name, reply } => {
                let _ = reply.send(self.undelegate(&name));
            }
            AuthorityCommand::Rotate { overlap, reply } => {
                let _ = reply.send(self.rotate_root(overlap));
            }
            AuthorityCommand::Export(reply) => {
                let _ = reply.send(self.export_root());
            }
            AuthorityCommand::RemoveRoot(reply) => {
                let _ = reply.send(self.remove_root());
            }
            AuthorityCommand::Import { root, reply } => {
                let _ = reply.send(self.import_root(*root));
            }
            AuthorityCommand::List(reply) => {
                let _ = reply.send(self.list_authorities());
            }
            AuthorityCommand::RotateIdentity(reply) => self.rotate_identity(reply),
        }
    }

    /// What our descriptor says of our keys.
    pub(super) fn key_notes(&self) -> Option<KeyNotes> {
        let directory = self.shared.directory();
        let trust = directory.membership().trust();
        let mut notes = KeyNotes::default();
        if let Some(trust) = trust {
            notes.epoch = Some(trust.epoch());
            if let Some(admin) = &self.parts.admin {
                if admin.authority.is_root() {
                    notes.root = Some(admin.holds_root(trust));
                } else {
                    let authority = &admin.authority;
                    notes.set_authority(Some((authority.key().id(), authority.not_after())));
                }
            }
        }
        (notes != KeyNotes::default()).then_some(notes)
    }

    // ---- roots -----------------------------------------------------------------

    /// Records of roots came in.
    pub(super) fn on_trust(&mut self, chain: &TrustChain) {
        let now = self.shared.now();
        let applied = self.shared.directory().apply_trust(chain, now);
        match applied {
            Ok(true) => self.trust_changed(),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "a change of roots was not taken in"),
        }
    }

    /// Keeps and spreads what changed, and does what follows from it.
    pub(super) fn trust_changed(&mut self) {
        let (chain, epoch, until) = {
            let directory = self.shared.directory();
            let Some(trust) = directory.membership().trust() else { return };
            let until = trust.all().map(|root| root.until).filter(|until| *until != u64::MAX);
            (trust.chain(), trust.epoch(), until.max())
        };
        if let Err(reason) = self.parts.persist.save_trust(&chain) {
            self.emit(ControlEvent::NotSaved { reason });
        }
        if let Some(record) = trust_record(self.parts.network.id, &chain) {
            let now = self.time();
            self.gossip.publish(record, None, now);
            self.send_gossip();
        }
        // The root that TLS shows to joiners is another one now.
        if let Err(error) = self.use_chain(self.parts.chain.clone()) {
            tracing::error!(%error, "the new root cannot be shown");
        }
        self.renew_soon();
        self.authorities.asked = None;
        self.emit(ControlEvent::TrustChanged { epoch, until });
        self.strengthen();
        self.publish();
    }

    fn rotate_root(&mut self, overlap: u64) -> Result<u64, AdminError> {
        let now = self.shared.now();
        let chain = {
            let admin = self.parts.admin.as_mut().ok_or(AdminError::NotRoot)?;
            let directory = self.shared.directory();
            let trust = directory.membership().trust().ok_or(AdminError::NotRoot)?;
            admin.rotate_root(trust, overlap, now, self.parts.persist.as_ref())?
        };
        self.shared.directory().apply_trust(&chain, now).map_err(failed)?;
        self.trust_changed();
        self.check_renewal(true);
        self.renew_delegations();
        Ok(chain.0.len() as u64)
    }

    /// Signs again, as the root's holder, what lesser signers revoked.
    pub(super) fn strengthen(&mut self) {
        let records = match &self.parts.admin {
            Some(admin) => admin.strengthen(&self.shared.directory()),
            None => return,
        };
        if records.is_empty() {
            return;
        }
        if let Err(error) = self.revoke_by(records) {
            tracing::warn!(%error, "revocations were not signed again");
        }
    }

    /// Something was revoked: perhaps we, or who certified us.
    pub(super) fn note_revocation(&mut self, key: NodeId) {
        if key == self.shared.id() {
            self.emit(ControlEvent::Revoked);
        }
        let ours = self.parts.admin.as_ref().is_some_and(|a| a.authority.key().id() == key);
        if ours {
            self.lose_authority();
        }
        if self.certified().is_some_and(|node| node.authority == Some(key)) {
            self.renew_soon();
        }
    }

    fn lose_authority(&mut self) {
        self.parts.admin = None;
        self.shared.admin.store(false, std::sync::atomic::Ordering::Relaxed);
        if let Err(error) = self.use_chain(self.parts.chain.clone()) {
            tracing::error!(%error, "the end of our authority cannot be shown");
        }
        self.emit(ControlEvent::AuthorityLost);
        self.publish();
    }

    // ---- catching up -------------------------------------------------------------

    /// Asks at some addresses for roots that we do not know, and a certificate
    /// under them.
    pub(super) fn catch_up(&mut self, addresses: Vec<SocketAddr>) {
        let due = self.authorities.caught_up.is_none_or(|at| at.elapsed() >= CATCH_UP_EVERY);
        let certified = self.shared.directory().membership().trust().is_some();
        if !due || !certified || addresses.is_empty() {
            return;
        }
        self.authorities.caught_up = Some(Instant::now());
        let (key, timing) = (self.shared.key(), self.shared.timing);
        match tls::client(&key, &self.parts.shown, ALPN_TRUST, &timing) {
            Ok(config) => {
                let (shared, endpoint) = (self.shared.clone(), self.parts.endpoint.clone());
                let tunnels = self.parts.tunnels.clone();
                let candidates = Candidates { udp: addresses, tcp: Vec::new(), tunnels };
                tokio::spawn(catch_up::ask(shared, endpoint, config, candidates));
            }
            Err(error) => tracing::error!(%error, "cannot ask for the network's roots"),
        }
    }

    /// Somebody asks: the roots, and a certificate if it is one of us that was
    /// away.
    pub(super) fn on_catch_up(&mut self, chain: &[Vec<u8>]) -> Vec<Message> {
        let now = self.shared.now();
        let (reply, outdated) = {
            let directory = self.shared.directory();
            let Some(trust) = directory.membership().trust() else { return Vec::new() };
            let node = directory.check_outdated(chain, now).ok();
            let outdated = node.filter(|_| directory.check_chain(chain, now).is_err());
            (trust_reply(trust), outdated)
        };
        let mut messages = vec![Message::TrustReply(reply)];
        if let (Some(node), Some(admin)) = (outdated, &mut self.parts.admin) {
            let renewed = {
                let directory = self.shared.directory();
                admin.renew(node.id, &directory, now, self.parts.persist.as_ref())
            };
            match renewed {
                Ok(chain) => {
                    messages.push(Message::RenewReply(chain));
                    self.emit(ControlEvent::RenewedFor { node: node.id });
                }
                Err(reason) => {
                    tracing::warn!(name = %node.name, reason, "an outdated certificate was not renewed");
                }
            }
        }
        messages
    }

    pub(super) fn on_caught_up(&mut self, reply: &TrustReply, chain: Option<Vec<Vec<u8>>>) {
        self.on_trust(&reply.chain);
        if let Some(chain) = chain
            && self.renewal_is_wanted()
        {
            self.on_renewed(chain);
        }
        // Whoever refused us may serve us now.
        let now = Instant::now();
        for schedule in self.schedule.values_mut().filter(|s| !s.busy) {
            schedule.next = schedule.next.min(now + Duration::from_millis(100));
        }
    }

    // ---- delegation ----------------------------------------------------------------

    fn offer(&mut self, name: &NodeName, reply: Answer<()>) {
        let node = {
            let directory = self.shared.directory();
            let holds = directory.membership().trust().is_some_and(|trust| {
                self.parts.admin.as_ref().is_some_and(|admin| admin.holds_root(trust))
            });
            if !holds {
                drop(directory);
                let _ = reply.send(Err(AdminError::NotRoot));
                return;
            }
            directory.by_name(name).map(|view| view.id())
        };
        let Some(node) = node.filter(|node| *node != self.shared.id()) else {
            let _ = reply.send(Err(AdminError::UnknownName(name.clone())));
            return;
        };
        match self.peers.get(&node).filter(|peer| peer.ready) {
            Some(peer) => {
                peer.push(vec![frame(&Message::AuthorityOffer)]);
                self.authorities.offers.insert(node, (Instant::now(), reply));
            }
            None => {
                let _ = reply.send(Err(AdminError::NotConnected(name.clone())));
            }
        }
    }

    pub(super) fn end_offers(&mut self, late: impl Fn(Instant) -> bool) {
        let ended: Vec<NodeId> = self
            .authorities
            .offers
            .iter()
            .filter(|(_, (since, _))| late(*since))
            .map(|(node, _)| *node)
            .collect();
        for node in ended {
            let name = self.shared.directory().get(node).map(|v| v.name.to_string());
            if let Some((_, reply)) = self.authorities.offers.remove(&node) {
                let who = name.unwrap_or_else(|| "the node".into());
                let _ = reply.send(Err(AdminError::NoAnswer(who)));
            }
        }
    }

    /// We are offered an authority: make a key for it, here.
    pub(super) fn on_authority_offer(&mut self, node: NodeId) {
        if self.shared.directory().membership().trust().is_none() {
            return;
        }
        let request = {
            let own = self.parts.admin.as_ref().map(|admin| admin.authority.key());
            let key = match (own, &mut self.authorities.pending) {
                (Some(key), _) => key,
                (None, Some(key)) => key,
                (None, slot @ None) => match IdentityKey::generate(&mut OsRandom) {
                    Ok(key) => slot.insert(key),
                    Err(_) => return,
                },
            };
            AuthorityRequest::sign(self.parts.network.id, self.shared.id(), key)
        };
        if let Some(peer) = self.peers.get(&node) {
            peer.push(vec![frame(&Message::AuthorityRequest(request))]);
        }
    }

    /// A node made the key, or wants a new certificate for it.
    pub(super) fn on_authority_request(&mut self, node: NodeId, request: &AuthorityRequest) {
        let offered = self.authorities.offers.remove(&node).map(|(_, reply)| reply);
        let done = self.delegate(node, request, offered.is_some());
        match (done, offered) {
            (Ok(name), reply) => {
                tracing::info!(%name, "delegated an authority");
                self.emit(ControlEvent::Delegated { name });
                if let Some(reply) = reply {
                    let _ = reply.send(Ok(()));
                }
            }
            (Err(error), Some(reply)) => {
                let _ = reply.send(Err(error));
            }
            (Err(error), None) => tracing::debug!(%node, %error, "no authority was delegated"),
        }
    }

    fn delegate(
        &mut self,
        node: NodeId,
        request: &AuthorityRequest,
        offered: bool,
    ) -> Result<NodeName, AdminError> {
        let now = self.shared.now();
        let admin = self.parts.admin.as_mut().ok_or(AdminError::NotRoot)?;
        let directory = self.shared.directory();
        let trust = directory.membership().trust().ok_or(AdminError::NotRoot)?;
        if !request.is_genuine(self.parts.network.id, node) {
            return Err(AdminError::Failed("the node does not hold the key it shows".into()));
        }
        // The certified name, which no conflict alters.
        let view = directory.get(node);
        let name = view.map(|v| v.descriptor.body.name.clone()).ok_or(AdminError::NotRoot)?;
        let revoked = directory.revocations().contains(request.key);
        if revoked || !(offered || admin.has_delegated(&name, request.key)) {
            return Err(AdminError::Failed("nobody offered it an authority".into()));
        }
        let persist = self.parts.persist.as_ref();
        let certificate = admin.delegate(&name, request.key, trust, now, persist)?;
        drop(directory);
        if let Some(peer) = self.peers.get(&node) {
            peer.push(vec![frame(&Message::Authority(certificate))]);
        }
        Ok(name)
    }

    /// The certificate of our authority came.
    pub(super) fn on_authority(&mut self, certificate: Vec<u8>) {
        if let Err(error) = self.take_authority(certificate) {
            tracing::warn!(%error, "an authority was not taken");
        }
    }

    fn take_authority(&mut self, certificate: Vec<u8>) -> Result<(), AdminError> {
        let now = self.shared.now();
        let info = {
            let directory = self.shared.directory();
            let trust = directory.membership().trust().ok_or(AdminError::NotAdmin)?;
            let info = verify_authority(&certificate, trust).map_err(failed)?;
            if !trust.is_root_key(info.root, now)
                || now >= info.not_after
                || directory.revocations().contains(info.key)
                || info.name != self.parts.own.name
            {
                return Err(failed("it does not count"));
            }
            info
        };
        let present = self.parts.admin.as_ref().map(|admin| &admin.authority);
        let key = match (present, &self.authorities.pending) {
            (Some(authority), _) if authority.is_root() => {
                return Err(failed("this node holds the root"));
            }
            (Some(authority), _) if authority.key().id() == info.key => authority.key(),
            (None, Some(key)) if key.id() == info.key => key,
            _ => return Err(failed("it is for a key that was not made here")),
        };
        let key = IdentityKey::from_pkcs8(&key.to_pkcs8()).map_err(failed)?;
        let network = &self.parts.network.name;
        let authority = Authority::load_delegated(key, certificate, network).map_err(failed)?;
        self.parts.persist.save_authority(&authority).map_err(AdminError::Failed)?;
        let gained = self.parts.admin.is_none();
        match &mut self.parts.admin {
            Some(admin) => admin.authority = authority,
            None => {
                self.parts.admin = Some(Admin {
                    authority,
                    certificate_life: self.parts.certificate_life,
                    invites: Default::default(),
                    registry: Default::default(),
                });
            }
        }
        self.authorities.pending = None;
        self.shared.admin.store(true, std::sync::atomic::Ordering::Relaxed);
        self.use_chain(self.parts.chain.clone()).map_err(failed)?;
        if gained {
            self.emit(ControlEvent::AuthorityGained { not_after: info.not_after });
        }
        self.publish();
        Ok(())
    }

    /// As the root's holder after a rotation: connected authorities get their
    /// certificate under the new root at once; others ask when they hear of it.
    fn renew_delegations(&mut self) {
        let now = self.shared.now();
        let delegated: Vec<(NodeId, NodeName, NodeId)> = {
            let Some(admin) = &self.parts.admin else { return };
            let directory = self.shared.directory();
            let node_of = |name: &NodeName| directory.by_name(name).map(|view| view.id());
            let delegations = admin.registry.delegations().iter();
            delegations.filter_map(|d| Some((node_of(&d.name)?, d.name.clone(), d.key))).collect()
        };
        for (node, name, key) in delegated {
            let Some(peer) = self.peers.get(&node).filter(|peer| peer.ready) else { continue };
            let Some(admin) = &mut self.parts.admin else { return };
            let directory = self.shared.directory();
            let Some(trust) = directory.membership().trust() else { return };
            let persist = self.parts.persist.as_ref();
            match admin.delegate(&name, key, trust, now, persist) {
                Ok(certificate) => peer.push(vec![frame(&Message::Authority(certificate))]),
                Err(error) => tracing::warn!(%name, %error, "an authority was not renewed"),
            }
        }
    }

    /// Our authority needs a new certificate when its root was replaced, and at
    /// two thirds of its life.
    pub(super) fn look_after_authority(&mut self) {
        let now = self.shared.now();
        let wanted = {
            let Some(admin) = self.parts.admin.as_ref().filter(|a| !a.authority.is_root()) else {
                return;
            };
            let directory = self.shared.directory();
            let Some(trust) = directory.membership().trust() else { return };
            let root = verify_authority(admin.authority.certificate(), trust).map(|info| info.root);
            let behind = root.is_ok_and(|root| root != trust.current().key);
            let due = validity(admin.authority.certificate())
                .is_ok_and(|(start, end)| now >= start + end.saturating_sub(start) / 3 * 2);
            behind || due
        };
        let every = self.shared.timing.housekeeping;
        if !wanted || self.authorities.asked.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        self.authorities.asked = Some(Instant::now());
        let holder = {
            let directory = self.shared.directory();
            let holds = |node: &NodeId| {
                let keys = directory.get(*node).and_then(|v| v.descriptor.body.keys.clone());
                keys.is_some_and(|keys| keys.root == Some(true))
            };
            self.peers.iter().find(|(node, peer)| peer.ready && holds(node)).map(|(node, _)| *node)
        };
        if let Some(node) = holder {
            self.on_authority_offer(node);
        }
    }

    fn undelegate(&mut self, name: &NodeName) -> Result<(), AdminError> {
        let now = self.shared.now();
        let records = {
            let admin = self.parts.admin.as_mut().ok_or(AdminError::NotRoot)?;
            let directory = self.shared.directory();
            admin.undelegate(name, &directory, now, self.parts.persist.as_ref())?
        };
        // What it revoked before must outlive it.
        self.strengthen();
        self.revoke_by(records)
    }

    // ---- the root's key --------------------------------------------------------------

    fn export_root(&self) -> Result<RootKey, AdminError> {
        let admin = self.parts.admin.as_ref().filter(|admin| admin.authority.is_root());
        let authority = &admin.ok_or(AdminError::NotRoot)?.authority;
        let key = IdentityKey::from_pkcs8(&authority.key().to_pkcs8()).map_err(failed)?;
        Ok(RootKey { key, certificate: authority.certificate().to_vec() })
    }

    fn remove_root(&mut self) -> Result<(), AdminError> {
        let now = self.shared.now();
        {
            let name = self.parts.own.name.clone();
            let admin = self.parts.admin.as_mut().ok_or(AdminError::NotRoot)?;
            let directory = self.shared.directory();
            let trust = directory.membership().trust().ok_or(AdminError::NotRoot)?;
            admin.remove_root(&name, trust, now, self.parts.persist.as_ref())?;
        }
        self.publish();
        Ok(())
    }

    fn import_root(&mut self, root: RootKey) -> Result<(), AdminError> {
        let network = &self.parts.network.name;
        let authority = Authority::load(root.key, root.certificate, network).map_err(failed)?;
        {
            let directory = self.shared.directory();
            let trust = directory.membership().trust().ok_or(AdminError::NotRoot)?;
            let current = trust.current();
            if current.key != authority.key().id() || current.certificate != authority.certificate()
            {
                return Err(failed(
                    "the file holds another root than the one this network has now: export it \
                     again where the CA was rotated last",
                ));
            }
            let chain = trust.chain();
            let saved = self.parts.persist.save_root(Some(&authority), &chain);
            saved.map_err(AdminError::Failed)?;
        }
        match &mut self.parts.admin {
            Some(admin) => admin.authority = authority,
            None => {
                self.parts.admin = Some(Admin {
                    authority,
                    certificate_life: self.parts.certificate_life,
                    invites: Default::default(),
                    registry: Default::default(),
                });
            }
        }
        self.shared.admin.store(true, std::sync::atomic::Ordering::Relaxed);
        self.use_chain(self.parts.chain.clone()).map_err(failed)?;
        self.strengthen();
        self.publish();
        Ok(())
    }

    fn list_authorities(&self) -> Vec<AuthorityInfo> {
        let directory = self.shared.directory();
        let Some(trust) = directory.membership().trust() else { return Vec::new() };
        let current = trust.current();
        let mut list = Vec::new();
        for view in directory.views().filter(|view| view.descriptor.body.admin) {
            let keys = view.descriptor.body.keys.clone().unwrap_or_default();
            let root = keys.root == Some(true);
            let key = if root { Some(current.key) } else { keys.authority() };
            list.push(AuthorityInfo {
                node: view.name.clone(),
                root,
                key,
                not_after: if root { Some(current.not_after) } else { keys.authority_ends },
                revoked: key.is_some_and(|key| directory.revocations().contains(key)),
            });
        }
        // Delegated from here, and not (or no longer) seen.
        let delegations = self.parts.admin.iter().flat_map(|a| a.registry.delegations());
        for delegation in delegations {
            if !list.iter().any(|info| info.key == Some(delegation.key)) {
                list.push(AuthorityInfo {
                    node: delegation.name.clone(),
                    root: false,
                    key: Some(delegation.key),
                    not_after: Some(delegation.not_after),
                    revoked: directory.revocations().contains(delegation.key),
                });
            }
        }
        list
    }
}

//! Certificates over time: joiners get their first, members their next, we ours.
//!
//! A certificate is renewed at two thirds of its life, and at once when its root
//! was replaced or the authority that issued it revoked. Invariants: a renewed
//! certificate is checked and on disk before it is used; connections that are up
//! stay up; of many nodes not all ask at once. Deliberately not here: who may
//! have which name (`admin`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_control::ca::BACKDATE;
use warren_control::directory::Directory;
use warren_control::membership::{Membership, PeerIdentity};
use warren_control::verify::{CertifiedNode, Leniency, validity, verify_leniently};
use warren_control::wire::{ALPN_CONTROL, JoinRequest, Message};
use warren_types::NodeId;

use super::Core;
use crate::transport::admin::JoinAnswer;
use crate::transport::dial::jitter;
use crate::transport::event::ControlEvent;
use crate::transport::frame::frame;
use crate::transport::tls::{self, TlsError};

/// Per member of the network: how far apart the requests of all are that must
/// renew at once, so that a few admins can answer them.
const SPREAD: Duration = Duration::from_millis(20);
/// The longest wait that follows from it.
const LONGEST_SPREAD: Duration = Duration::from_secs(600);

impl Core {
    pub(super) fn on_join(
        &mut self,
        node: NodeId,
        remote: SocketAddr,
        request: &JoinRequest,
    ) -> JoinAnswer {
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

    pub(super) fn on_renew_request(&mut self, node: NodeId) {
        let renewed = {
            let Some(admin) = &mut self.parts.admin else { return };
            let directory = self.shared.directory();
            admin.renew(node, &directory, self.shared.now(), self.parts.persist.as_ref())
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

    /// What our certificate says, when we have one; it may have ended.
    pub(super) fn certified(&self) -> Option<CertifiedNode> {
        let node = self.parts.certified.clone()?;
        let directory = self.shared.directory();
        let not_after = node.not_after.min(directory.membership().trust()?.ends(node.root));
        Some(CertifiedNode { not_after, ..node })
    }

    /// True when we need another certificate, whether or not one can be had.
    pub(super) fn renewal_is_wanted(&self) -> bool {
        let Some(node) = self.certified() else { return false };
        let directory = self.shared.directory();
        let Some(trust) = directory.membership().trust() else { return false };
        let issued = (node.not_before + BACKDATE).min(node.not_after);
        let due = issued + (node.not_after - issued) * 2 / 3;
        let revoked = node.authority.is_some_and(|key| directory.revocations().contains(key));
        self.shared.now() >= due
            || trust.rank(node.root) != Some(trust.epoch())
            || revoked
            || self.lacks_address(&directory)
    }

    /// When to look for another certificate next.
    pub(super) fn renewal_due(&self) -> Option<Instant> {
        if self.renewal_is_wanted() {
            return Some(self.renewal);
        }
        let node = self.certified()?;
        let issued = (node.not_before + BACKDATE).min(node.not_after);
        let due = issued + (node.not_after - issued) * 2 / 3;
        let wait = due.saturating_sub(self.shared.now()).min(86_400);
        Some(self.renewal.max(Instant::now() + Duration::from_secs(wait)))
    }

    /// True when another node has the IPv4 address that we were given too.
    fn lacks_address(&self, directory: &Directory) -> bool {
        let view = directory.get(self.shared.id());
        view.is_some_and(|v| {
            v.descriptor.body.addresses.iter().any(|a| a.is_ipv4() && !v.addresses.contains(a))
        })
    }

    /// Looks for a new certificate soon: not all members at the same moment.
    pub(super) fn renew_soon(&mut self) {
        let members = u32::try_from(self.shared.directory().views().count()).unwrap_or(u32::MAX);
        let spread = SPREAD.saturating_mul(members).min(LONGEST_SPREAD);
        self.renewal = Instant::now() + jitter(spread);
        self.renewal_turn = 0;
    }

    pub(super) fn check_renewal(&mut self, force: bool) {
        let Some(certified) = self.certified() else { return };
        let (now, not_after) = (self.shared.now(), certified.not_after);
        if !force && !self.renewal_is_wanted() {
            return;
        }
        // Sooner when little time is left.
        let left = Duration::from_secs(not_after.saturating_sub(now));
        let every = self.shared.timing.housekeeping.min((left / 4).max(Duration::from_secs(1)));
        let life = not_after.saturating_sub(certified.not_before + BACKDATE);
        let urgent = now >= not_after.saturating_sub(life / 10) || self.renewal_turn < 5;
        self.renewal =
            Instant::now() + jitter(if urgent { every } else { (every * 10).min(left / 4) });
        self.renewal_turn += 1;
        let own = {
            let directory = self.shared.directory();
            let persist = self.parts.persist.as_ref();
            // An authority of our own, unless it ends as well.
            let counts = |admin: &crate::transport::admin::Admin| {
                let trust = directory.membership().trust();
                trust.is_some_and(|trust| admin.counts(trust, directory.revocations(), now))
            };
            match self.parts.admin.as_mut().filter(|admin| counts(admin)) {
                Some(admin) => Some(admin.renew(self.shared.id(), &directory, now, persist)),
                None => None,
            }
        };
        match own {
            Some(Ok(chain)) => return self.on_renewed(chain),
            Some(Err(reason)) => {
                return self.emit(ControlEvent::RenewalFailed { not_after, reason });
            }
            None => {}
        }
        let asked = self.choose_admin(self.renewal_turn);
        match asked {
            Some(node) => {
                if let Some(peer) = self.peers.get(&node) {
                    peer.push(vec![frame(&Message::RenewRequest)]);
                }
            }
            None if now >= not_after => {
                let reason =
                    "it has expired: run `warren leave`, then join again with a fresh code";
                self.emit(ControlEvent::RenewalFailed { not_after, reason: reason.into() });
            }
            None => {
                self.call_admins();
                let reason = "no admin is connected (`warren ca list` names them); start one, or \
                              join again with a fresh code before the certificate ends";
                self.emit(ControlEvent::RenewalFailed { not_after, reason: reason.into() });
            }
        }
    }

    /// An admin to ask: one that knows the present root before others, another
    /// one each turn.
    pub(super) fn choose_admin(&self, turn: usize) -> Option<NodeId> {
        let directory = self.shared.directory();
        let epoch = directory.membership().trust()?.epoch();
        let own = self.shared.id();
        let mut admins: Vec<(bool, NodeId)> = self
            .peers
            .iter()
            .filter(|(node, peer)| peer.ready && **node != own)
            .filter_map(|(node, _)| {
                let body = &directory.get(*node)?.descriptor.body;
                let known = body.keys.as_ref().and_then(|k| k.epoch).unwrap_or(0);
                let ended = body.keys.as_ref().and_then(|k| k.authority());
                let ended = ended.is_some_and(|key| directory.revocations().contains(key));
                (body.admin && !ended).then_some((known < epoch, *node))
            })
            .collect();
        admins.sort();
        let best = admins.iter().take_while(|(behind, _)| *behind == admins[0].0).count();
        // Those that are behind when those that are not did not help.
        let choice = if turn > 2 { admins.len() } else { best };
        admins.get(turn % choice.max(1)).map(|(_, node)| *node)
    }

    /// No admin is connected: connect to one.
    fn call_admins(&mut self) {
        let admins: Vec<NodeId> = {
            let directory = self.shared.directory();
            let own = self.shared.id();
            let admins = directory.views().filter(|v| v.descriptor.body.admin);
            admins.map(|v| v.id()).filter(|id| *id != own).take(4).collect()
        };
        self.on_demand.extend(admins);
        self.stale = true;
    }

    pub(super) fn on_renewed(&mut self, chain: Vec<Vec<u8>>) {
        let now = self.shared.now();
        let Some(present) = self.certified() else { return };
        let failed =
            |reason: String| ControlEvent::RenewalFailed { not_after: present.not_after, reason };
        let checked = self.shared.directory().check_chain(&chain, now);
        let node = match checked {
            Ok(PeerIdentity::Certified(node)) => node,
            Ok(_) => return,
            Err(error) => return self.emit(failed(error.to_string())),
        };
        let (better, moved) = {
            let directory = self.shared.directory();
            let Membership::Certificate(trust) = directory.membership() else { return };
            let revoked = present.authority.is_some_and(|k| directory.revocations().contains(k));
            let moved = node.addresses != present.addresses;
            let may_move = self.lacks_address(&directory);
            let better = trust.rank(node.root) > trust.rank(present.root)
                || (node.not_after.min(trust.ends(node.root)) >= present.not_after)
                || revoked;
            (better || (moved && may_move), moved && may_move)
        };
        let ours = node.id == self.shared.id()
            && node.name == self.parts.own.name
            && (moved || self.parts.own.addresses.iter().all(|a| node.addresses.contains(a)));
        if !ours || !better {
            return self.emit(failed(
                "the admin sent a certificate that ends earlier, or is not ours".into(),
            ));
        }
        if let Err(reason) = self.parts.persist.save_certificate(&chain) {
            return self.emit(failed(reason));
        }
        if let Err(error) = self.use_chain(chain) {
            return self.emit(failed(error.to_string()));
        }
        self.renewal_turn = 0;
        if moved {
            self.parts.own.addresses = node.addresses.clone();
            self.emit(ControlEvent::Readdressed { addresses: node.addresses });
        }
        self.emit(ControlEvent::CertificateRenewed { not_after: node.not_after });
        self.publish();
    }

    /// Connections that are up stay up: the chain serves from the next one on,
    /// and the next descriptor shows it to everybody.
    pub(super) fn use_chain(&mut self, chain: Vec<Vec<u8>>) -> Result<(), TlsError> {
        let mut shown = chain.clone();
        if let Some(trust) = self.shared.directory().membership().trust() {
            shown.push(trust.current().certificate.clone());
        }
        let (key, timing) = (self.shared.key(), self.shared.timing);
        let client = tls::client(&key, &shown, ALPN_CONTROL, &timing)?;
        let server = tls::server(&key, &shown, self.parts.admin.is_some(), &timing)?;
        self.parts.client = client;
        self.parts.endpoint.set_server_config(Some(server));
        self.parts.shown = shown;
        self.parts.certified = read_chain(&chain, &self.shared.directory());
        self.parts.chain = chain;
        Ok(())
    }
}

/// What a chain says, whether or not it counts now.
pub(crate) fn read_chain(chain: &[Vec<u8>], directory: &Directory) -> Option<CertifiedNode> {
    let trust = directory.membership().trust()?;
    let lenient = Leniency { former_roots: true, revoked_authority: true };
    // At a time when it was valid.
    let (start, _) = validity(chain.first()?).ok()?;
    let start = chain.get(1).and_then(|c| validity(c).ok()).map_or(start, |v| start.max(v.0));
    verify_leniently(chain, trust, &Default::default(), start, lenient).ok()
}

//! Certificates over time: joiners get their first, members their next, we ours.
//!
//! Invariants: a renewed certificate is checked and on disk before it is used;
//! connections that are up stay up. Deliberately not here: who may have which
//! name (`admin`).

use std::net::SocketAddr;

use warren_control::membership::Membership;
use warren_control::verify::{CertificateError, verify_chain};
use warren_control::wire::{ALPN_CONTROL, JoinRequest, Message};
use warren_types::NodeId;

use super::Core;
use crate::transport::admin::JoinAnswer;
use crate::transport::event::ControlEvent;
use crate::transport::frame::frame;
use crate::transport::tls;

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
    pub(super) fn validity(&self) -> Option<(u64, u64)> {
        let directory = self.shared.directory();
        let Membership::Certificate(root) = directory.membership() else { return None };
        let now = self.shared.now();
        match verify_chain(&self.parts.chain, root, directory.revocations(), now) {
            Ok(node) => Some((node.not_before, node.not_after)),
            Err(CertificateError::Expired { not_after, .. }) => Some((0, not_after)),
            Err(_) => None,
        }
    }

    pub(super) fn check_renewal(&mut self, force: bool) {
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

    pub(super) fn on_renewed(&mut self, chain: Vec<Vec<u8>>) {
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
        let configs = tls::client(&key, &shown, ALPN_CONTROL, &timing).and_then(|client| {
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
}

//! Changes of keys, roots and authorities, as far as the daemon is concerned.
//!
//! Invariants: a member that goes on under another key keeps its link, its
//! sessions and its flows; whatever needs the operator stays in the status until
//! it is done. Deliberately not here: who decides (`transport/core`).

use std::sync::Arc;

use warren_control::directory::{Claim, NodeView};
use warren_types::NodeId;
use warren_types::api::Event;

use super::Daemon;
use super::authority::LINK_KEY_OVERLAP;
use crate::random::OsRandom;
use crate::transport::ControlEvent;

impl Daemon {
    pub(super) fn handle_rotation(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::IdentityRotated { former, id } => {
                tracing::info!(%former, %id, "this node goes on under a new key");
                self.id = id;
                self.mesh.set_own(id);
                self.names.set_own_id(id);
                self.surroundings.set_own_id(id);
                let name = self.member.name.to_string();
                self.events.publish(Event::KeyRotated { name, what: "node key".into() });
            }
            ControlEvent::Readdressed { addresses } => self.readdressed(addresses),
            ControlEvent::TrustChanged { epoch, until } => {
                tracing::info!(epoch, until, "the network's CA was rotated");
                let name = self.member.network.name.to_string();
                self.events.publish(Event::KeyRotated { name, what: "network CA".into() });
                self.notices.remove("root");
            }
            ControlEvent::Delegated { name } => {
                tracing::info!(%name, "delegated an authority");
                self.events.publish(Event::AuthorityChanged {
                    name: name.to_string(),
                    change: "may admit others".into(),
                });
            }
            ControlEvent::AuthorityGained { not_after } => {
                tracing::info!(not_after, "an authority was delegated to this node");
                self.events.publish(Event::AuthorityChanged {
                    name: self.member.name.to_string(),
                    change: "may admit others".into(),
                });
            }
            ControlEvent::AuthorityLost => {
                tracing::warn!(
                    "this node's authority was revoked: it cannot admit others any more"
                );
                if let Err(error) = self.store.remove_authority() {
                    tracing::warn!(%error, "the revoked authority stays on disk; it is worth nothing");
                }
                self.events.publish(Event::AuthorityChanged {
                    name: self.member.name.to_string(),
                    change: "may not admit others any more".into(),
                });
            }
            _ => {}
        }
    }

    /// Another admin had given our address to a node that keeps it.
    fn readdressed(&mut self, addresses: Vec<std::net::IpAddr>) {
        tracing::warn!(?addresses, "this node has another address from now on");
        self.member.addresses.clone_from(&addresses);
        if let Err(error) = self.store.save_member(&self.member) {
            self.notices.insert("state", error.to_string());
        }
        let new = addresses.iter().find(|a| a.is_ipv4()).map(ToString::to_string);
        self.notices.remove("conflict");
        // The interface was set up before privileges were dropped.
        self.notices.insert(
            "address",
            format!(
                "two admins gave this node's IPv4 address at once, and the other node keeps it; \
                 this node's is {} from now on: `warren down`, then `warren up`, to use it (IPv6 \
                 works meanwhile)",
                new.unwrap_or_default()
            ),
        );
    }

    /// A member goes on under another key.
    pub(super) fn succeed(&mut self, former: &NodeView, view: Arc<NodeView>) {
        let (old, id, name) = (former.id(), view.id(), view.name.to_string());
        tracing::info!(%name, former = %old, %id, "a member goes on under a new key");
        self.names.forget(old);
        self.names.learn(&view);
        match self.mesh.succeed(old, view.clone()) {
            Some(changed) => {
                if let Some(key) = changed {
                    self.move_link(&key, id);
                }
                self.update_peer(id);
                self.detour_for(id);
                self.events.publish(Event::KeyRotated { name, what: "node key".into() });
            }
            None => self.learn(view),
        }
    }

    /// A member has another link key.
    pub(super) fn move_link(&mut self, old: &warren_types::LinkPublicKey, id: NodeId) {
        let key = self.mesh.view(id).map(|view| view.descriptor.body.link_key);
        let moved = key.is_some_and(|new| {
            self.engine.rekey_peer(old, new, LINK_KEY_OVERLAP, self.now(), &mut OsRandom)
        });
        if !moved {
            self.engine.remove_peer(old);
        }
        if let Some(config) = self.mesh.node_peer(id) {
            self.engine.upsert_peer(config, self.now(), &mut OsRandom);
        }
    }

    /// Two members claim the same thing.
    pub(super) fn conflict(&mut self, claim: &Claim, winner: NodeId, loser: NodeId) {
        tracing::warn!(?claim, %winner, %loser, "two members claim the same thing");
        if loser != self.id {
            return;
        }
        let text = match claim {
            Claim::Name(name) => format!(
                "two admins admitted a node named `{name}` at once; the other keeps the name, and \
                 this node goes by `{name}-{}` for others: to have a name of its own, run `warren \
                 leave` and join again with --name",
                self.id.short()
            ),
            Claim::Address(address) => format!(
                "{address} is another node's too, and that one keeps it: an admin gives this node \
                 a new one as soon as one is connected"
            ),
            Claim::LinkKey(_) => return,
        };
        self.notices.insert("conflict", text);
    }
}

//! Static keys that change while links stay up: a peer's, our own, or both at
//! once. Sessions outlive the keys they were agreed with; what has to be
//! arranged is that handshakes go on in between.
//!
//! During an overlap both keys of a peer are accepted, and handshakes to both of
//! ours. A handshake we start is tried with the new key of the peer, then in
//! turn with the others, until one pair has worked; with our own new key first
//! only if the peer has used it, so that who has not heard of it is not asked in
//! vain. Who may change a key is for the control plane to say.

use std::time::Duration;

use rand_core::CryptoRng;
use warren_types::LinkPublicKey;

use super::event::Now;
use super::peer::Peer;
use super::{Core, Engine};
use crate::noise::mac::CookieIssuer;
use crate::noise::{MacKey, StaticKey, Tai64n, mac1_ok};

/// Former static keys of our own that are still answered for.
const MAX_FORMER: usize = 2;

/// A former static key of our own.
#[derive(Debug)]
pub(super) struct FormerKey {
    key: StaticKey,
    mac_key: MacKey,
    cookies: CookieIssuer,
    until_ms: u64,
}

/// A former static key of a peer.
#[derive(Debug)]
pub(super) struct OtherKey {
    pub(super) key: LinkPublicKey,
    /// Greatest timestamp taken under it.
    newest: Tai64n,
    until_ms: u64,
    /// A handshake worked with the new one: this is only accepted any more.
    done: bool,
}

impl Engine {
    /// The peer with the key `old` has the key `new` from now on; its sessions,
    /// prefixes, figures and [`PeerLink`](crate::link::peer::PeerLink) stay. For
    /// `overlap` its handshakes with the old key are taken as well. If the link
    /// is in use a handshake with the new key starts at once. False, and nothing
    /// happens, when there is no such peer or `new` is one already.
    pub fn rekey_peer(
        &mut self,
        old: &LinkPublicKey,
        new: LinkPublicKey,
        overlap: Duration,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        if self.peers.contains_key(&new) {
            return false;
        }
        let Some(mut peer) = self.peers.remove(old) else {
            return false;
        };
        if let Some((deadline, _)) = peer.deadline.take() {
            self.core.timers.remove(&(deadline, *old));
        }
        self.core.indices.values_mut().filter(|key| *key == old).for_each(|key| *key = new);
        let newest = match &peer.other_key {
            // Back to the key before.
            Some(other) if other.key == new => other.newest,
            _ => Tai64n::default(),
        };
        let newest = std::mem::replace(&mut peer.newest_initiation, newest);
        let until_ms = self.core.ms(now.instant) + overlap.as_millis() as u64;
        let other = OtherKey { key: *old, newest, until_ms, done: false };
        if let Some(older) = peer.other_key.replace(other) {
            self.aliases.remove(&older.key);
            self.core.forget_everywhere(&older.key);
        }
        self.core.config.key.remember(&new);
        peer.config.key = new;
        peer.link.set_key(new);
        self.aliases.insert(*old, new);
        self.peers.insert(new, peer);
        self.with_peer(&new, |peer, core| {
            if peer.in_use() {
                peer.restart_handshake(core, now, rng);
            }
            peer.service(core, now, rng);
        });
        true
    }

    /// Our own static key is `new` from now on. For `overlap`, handshakes to the
    /// old one are answered as before. No handshake is started: peers do, once
    /// they learn of the key; meanwhile ours go on with the old one.
    pub fn rotate_static_key(&mut self, new: StaticKey, overlap: Duration, now: Now) {
        let now_ms = self.core.ms(now.instant);
        let core = &mut self.core;
        if new.public() == core.public {
            return;
        }
        for (key, peer) in &self.peers {
            new.remember(key);
            if let Some(other) = &peer.other_key {
                new.remember(&other.key);
            }
        }
        let public = new.public();
        let former = FormerKey {
            key: std::mem::replace(&mut core.config.key, new),
            mac_key: std::mem::replace(&mut core.mac_key, MacKey::for_receiver(&public)),
            cookies: std::mem::replace(&mut core.cookies, CookieIssuer::new(&public)),
            until_ms: now_ms + overlap.as_millis() as u64,
        };
        core.public = public;
        core.former.retain(|former| now_ms < former.until_ms && former.key.public() != public);
        core.former.insert(0, former);
        core.former.truncate(MAX_FORMER);
        let macs = core.former.iter().map(|former| former.mac_key).chain([core.mac_key]);
        core.tables.set_other_mac_keys(macs.collect());
    }

    /// Makes new session keys for every link in use, now. Sessions made before
    /// are received on until they expire.
    pub fn renew_sessions(&mut self, now: Now, rng: &mut dyn CryptoRng) {
        let keys: Vec<LinkPublicKey> = self.peers.keys().copied().collect();
        for key in keys {
            self.with_peer(&key, |peer, core| {
                if peer.in_use() {
                    peer.restart_handshake(core, now, rng);
                }
                peer.service(core, now, rng);
            });
        }
    }

    /// The key under which the peer that has, or had, the key `key` is kept.
    pub(super) fn current_key(&self, key: &LinkPublicKey, now_ms: u64) -> LinkPublicKey {
        let alias = self.aliases.get(key).filter(|current| {
            let other = self.peers.get(current).and_then(|peer| peer.other_key.as_ref());
            other.is_some_and(|other| now_ms < other.until_ms)
        });
        *alias.unwrap_or(key)
    }
}

impl Core {
    /// Our key a handshake message is for, by its mac1.
    pub(super) fn own_key_for(&self, datagram: &[u8], now_ms: u64) -> Option<StaticKey> {
        if mac1_ok(&self.mac_key, datagram) {
            return Some(self.config.key.clone());
        }
        let mut valid = self.former.iter().filter(|former| now_ms < former.until_ms);
        valid.find(|former| mac1_ok(&former.mac_key, datagram)).map(|former| former.key.clone())
    }

    /// The issuer of cookies in the name of `own`.
    pub(super) fn cookies_of(&mut self, own: &StaticKey) -> &mut CookieIssuer {
        let public = own.public();
        match self.former.iter_mut().find(|former| former.key.public() == public) {
            Some(former) if public != self.public => &mut former.cookies,
            _ => &mut self.cookies,
        }
    }

    pub(super) fn forget_everywhere(&self, key: &LinkPublicKey) {
        self.config.key.forget(key);
        self.former.iter().for_each(|former| former.key.forget(key));
    }
}

impl Peer {
    /// The newest timestamp taken under the peer's static key `remote`.
    pub(super) fn newest(&mut self, remote: &LinkPublicKey) -> &mut Tai64n {
        match &mut self.other_key {
            Some(other) if other.key == *remote => &mut other.newest,
            _ => &mut self.newest_initiation,
        }
    }

    /// Its static key, and the one before.
    pub(super) fn keys(&self) -> [Option<LinkPublicKey>; 2] {
        [Some(self.config.key), self.other_key.as_ref().map(|other| other.key)]
    }

    /// Our key and the peer's for the next initiation.
    pub(super) fn keys_to_try(&self, core: &Core, now_ms: u64) -> (StaticKey, LinkPublicKey) {
        let former = core.former.iter().find(|former| now_ms < former.until_ms);
        let mut own = vec![core.config.key.clone()];
        if self.knows_own != Some(core.public)
            && let Some(former) = former
        {
            own.insert(0, former.key.clone());
        }
        let mut remote = vec![self.config.key];
        if let Some(other) = &self.other_key
            && !other.done
            && now_ms < other.until_ms
        {
            remote.push(other.key);
        }
        let nth = self.active.as_ref().map_or(0, |active| active.initiations) as usize;
        let nth = nth.saturating_sub(1);
        // The peer's keys change fastest: one pair of the first two is likely.
        let pick_remote = remote[nth % remote.len()];
        let pick_own = own[(nth / remote.len()) % own.len()].clone();
        (pick_own, pick_remote)
    }

    /// A handshake between our key `own` and the peer's `remote` worked.
    pub(super) fn worked_with(&mut self, own: LinkPublicKey, remote: LinkPublicKey) {
        self.knows_own = Some(own);
        if remote == self.config.key
            && let Some(other) = &mut self.other_key
        {
            other.done = true;
        }
    }
}

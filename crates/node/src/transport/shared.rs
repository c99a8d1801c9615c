//! What the tasks of the control transport share.
//!
//! Invariant: no lock is held across an await, and none but that of the key is
//! taken inside another.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use quinn::Connection;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use warren_control::descriptor::SignedDescriptor;
use warren_control::directory::Directory;
use warren_control::identity::IdentityKey;
use warren_control::membership::PeerIdentity;
use warren_types::NodeId;

use super::core::Input;
use super::event::RefuseReason;
use super::socket::canonical;
use super::tls::Timing;

/// Seconds since 1970; a parameter so that tests can move it.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> Clock {
    let since = || SystemTime::now().duration_since(UNIX_EPOCH);
    Arc::new(move || since().map_or(0, |d| d.as_secs()))
}

pub(crate) struct Shared {
    key: Mutex<Arc<IdentityKey>>,
    /// True while this node holds an authority.
    pub(crate) admin: AtomicBool,
    pub(crate) instance: u64,
    pub(crate) clock: Clock,
    pub(crate) timing: Timing,
    pub(crate) input: mpsc::Sender<Input>,
    directory: Mutex<Directory>,
    own: Mutex<SignedDescriptor>,
    pub(crate) gate: Arc<Gate>,
}

impl Shared {
    pub(crate) fn new(
        key: Arc<IdentityKey>,
        instance: u64,
        clock: Clock,
        timing: Timing,
        input: mpsc::Sender<Input>,
        directory: Directory,
        own: SignedDescriptor,
    ) -> Self {
        Self {
            key: Mutex::new(key),
            admin: AtomicBool::new(false),
            instance,
            clock,
            timing,
            input,
            directory: Mutex::new(directory),
            own: Mutex::new(own),
            gate: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Our identity key: another one after it was rotated.
    pub(crate) fn key(&self) -> Arc<IdentityKey> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_key(&self, key: Arc<IdentityKey>) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }

    pub(crate) fn id(&self) -> NodeId {
        self.key().id()
    }

    pub(crate) fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn own(&self) -> SignedDescriptor {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_own(&self, descriptor: SignedDescriptor) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = descriptor;
    }

    /// The check that every connection passes right after TLS, in both
    /// directions: is the key that TLS proved a member's, and the one we want?
    pub(crate) fn authenticate(
        &self,
        connection: &Connection,
        expected: Option<NodeId>,
    ) -> Result<PeerIdentity, RefuseReason> {
        let chain = peer_chain(connection);
        let identity = self.directory().check_chain(&chain, self.now())?;
        let found = identity.id();
        if found == self.id() {
            return Err(RefuseReason::Ourselves);
        }
        match expected {
            Some(wanted) if wanted != found && !self.is_successor(wanted, &identity) => {
                Err(RefuseReason::WrongNode { wanted, found })
            }
            _ => Ok(identity),
        }
    }

    /// True when the peer is the node we know by `wanted`, under a later key.
    fn is_successor(&self, wanted: NodeId, found: &PeerIdentity) -> bool {
        let PeerIdentity::Certified(found) = found else { return false };
        let known = self.directory().get(wanted).cloned();
        let origin = known.and_then(|view| Some(view.descriptor.certified.as_ref()?.origin));
        origin.is_some_and(|o| o.id == found.origin.id && o.generation < found.origin.generation)
    }
}

/// The certificates the peer showed, leaf first.
pub(crate) fn peer_chain(connection: &Connection) -> Vec<Vec<u8>> {
    connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|chain| chain.iter().map(|c| c.to_vec()).collect())
        .unwrap_or_default()
}

/// The protocol that TLS agreed on.
pub(crate) fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    connection
        .handshake_data()
        .and_then(|any| any.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
        .and_then(|data| data.protocol)
}

pub(crate) fn remote(connection: &Connection) -> SocketAddr {
    canonical(connection.remote_address())
}

/// Bounds connections that have not authenticated yet, in all and per address.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    active: Mutex<HashMap<IpAddr, u32>>,
}

/// Above this many, a source must prove its address first (QUIC Retry).
const RETRY_ABOVE: u32 = 16;
/// Above this many, nobody gets in.
const MOST: u32 = 128;
/// Most from one address.
const MOST_PER_ADDRESS: u32 = 32;

/// What to do with a new connection attempt.
pub(crate) enum Admission {
    Enter(Permit),
    Retry,
    Refuse,
}

/// Counts as one until dropped.
pub(crate) struct Permit {
    gate: Arc<Gate>,
    from: IpAddr,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `validated`: the source has answered a Retry, so its address is real.
    pub(crate) fn enter(self: &Arc<Self>, from: IpAddr, validated: bool) -> Admission {
        let mut active = self.lock();
        let all: u32 = active.values().sum();
        let mine = active.get(&from).copied().unwrap_or(0);
        if !validated && all >= RETRY_ABOVE {
            return Admission::Retry;
        }
        if all >= MOST || mine >= MOST_PER_ADDRESS {
            return Admission::Refuse;
        }
        *active.entry(from).or_default() += 1;
        Admission::Enter(Permit { gate: self.clone(), from })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut active = self.gate.lock();
        if let Some(count) = active.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                active.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_asks_for_proof_then_refuses() {
        let gate = Arc::new(Gate::default());
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut tickets = Vec::new();
        for n in 0..RETRY_ABOVE {
            match gate.enter(from(n as u8), false) {
                Admission::Enter(ticket) => tickets.push(ticket),
                _ => panic!("refused at {n}"),
            }
        }
        assert!(matches!(gate.enter(from(99), false), Admission::Retry));
        for _ in 0..MOST_PER_ADDRESS {
            match gate.enter(from(200), true) {
                Admission::Enter(ticket) => tickets.push(ticket),
                _ => panic!("refused"),
            }
        }
        assert!(matches!(gate.enter(from(200), true), Admission::Refuse));
        assert!(matches!(gate.enter(from(201), true), Admission::Enter(_)));
        drop(tickets);
        assert!(gate.lock().is_empty());
    }
}

//! What workers look circuits and sessions up in. The slow path writes, seldom
//! and a few entries at a time; workers read once per run of cells.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwapOption;

use super::cell::CircuitId;
use super::circuit::{ClientCircuit, HopCircuit};
use super::compartment::Compartment;
use super::session::{ClientSession, ExitSession, Lease};

/// Whose circuit a number of ours stands for.
#[derive(Debug, Clone)]
pub enum Entry {
    /// One that passes or ends here: cells of the neighbour towards the client.
    Hop(Arc<HopCircuit>),
    /// The same, for cells of the neighbour away from it.
    HopBack(Arc<HopCircuit>),
    /// One of our own.
    Client(Arc<ClientCircuit>),
}

const SHARDS: usize = 64;
type Shard = RwLock<HashMap<CircuitId, Entry>>;

/// Cells since the start.
#[derive(Debug, Default)]
pub struct CellCounters {
    /// Passed on away from clients.
    pub forward: AtomicU64,
    /// Passed on towards clients.
    pub backward: AtomicU64,
    /// Taken or made as the last hop.
    pub ended: AtomicU64,
}

/// See the module's description.
#[derive(Debug)]
pub struct OnionTables {
    shards: Vec<Shard>,
    leases: RwLock<HashMap<Lease, Arc<ExitSession>>>,
    /// Our own first session, for packets that no peer is the owner of.
    pub client: ArcSwapOption<ClientSession>,
    /// Our others.
    isolated: RwLock<HashMap<Compartment, Arc<ClientSession>>>,
    serials: AtomicU64,
    /// Counters.
    pub cells: CellCounters,
}

impl Default for OnionTables {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            leases: RwLock::default(),
            client: ArcSwapOption::empty(),
            isolated: RwLock::default(),
            serials: AtomicU64::new(1),
            cells: CellCounters::default(),
        }
    }
}

impl OnionTables {
    fn shard(&self, id: CircuitId) -> &Shard {
        &self.shards[id.get() as usize % SHARDS]
    }

    /// The circuit behind one of our numbers.
    pub fn circuit(&self, id: CircuitId) -> Option<Entry> {
        let shard = self.shard(id).read().unwrap_or_else(PoisonError::into_inner);
        shard.get(&id).cloned()
    }

    /// False when the number is in use.
    pub fn insert(&self, id: CircuitId, entry: Entry) -> bool {
        let mut shard = self.shard(id).write().unwrap_or_else(PoisonError::into_inner);
        let vacant = !shard.contains_key(&id);
        if vacant {
            shard.insert(id, entry);
        }
        vacant
    }

    /// Forgets a number.
    pub fn remove(&self, id: CircuitId) {
        let mut shard = self.shard(id).write().unwrap_or_else(PoisonError::into_inner);
        shard.remove(&id);
    }

    /// The session that has a lease.
    pub fn session(&self, lease: Lease) -> Option<Arc<ExitSession>> {
        self.leases.read().unwrap_or_else(PoisonError::into_inner).get(&lease).cloned()
    }

    /// Adds a session, or takes one away.
    pub fn set_session(&self, lease: Lease, session: Option<Arc<ExitSession>>) {
        let mut leases = self.leases.write().unwrap_or_else(PoisonError::into_inner);
        match session {
            Some(session) => leases.insert(lease, session),
            None => leases.remove(&lease),
        };
    }

    /// Our own session in a compartment.
    #[inline]
    pub fn own_session(&self, compartment: Compartment) -> Option<Arc<ClientSession>> {
        if compartment == Compartment::DEFAULT {
            return self.client.load_full();
        }
        let isolated = self.isolated.read().unwrap_or_else(PoisonError::into_inner);
        isolated.get(&compartment).cloned()
    }

    /// Replaces it, or takes it away.
    pub fn set_own_session(&self, compartment: Compartment, session: Option<Arc<ClientSession>>) {
        if compartment == Compartment::DEFAULT {
            return self.client.store(session);
        }
        let mut isolated = self.isolated.write().unwrap_or_else(PoisonError::into_inner);
        match session {
            Some(session) => isolated.insert(compartment, session),
            None => isolated.remove(&compartment),
        };
    }

    /// A number for a circuit of ours, whichever session it is for.
    pub(crate) fn new_serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds to a counter.
    pub(crate) fn count(counter: &AtomicU64, cells: u64) {
        counter.fetch_add(cells, Ordering::Relaxed);
    }
}

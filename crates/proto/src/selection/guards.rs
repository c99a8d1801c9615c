//! Guards: the few entries that all paths begin with for months.
//!
//! Who picks a new entry for every path meets a bad one sooner or later; who
//! keeps two for long either has met one or has not. In: the candidates, the
//! clock, a random generator. Out: two guards and a reserve, plain data that the
//! caller stores. Invariants: a guard stays for 60 to 120 days, drawn when it
//! was pinned, also while it is down for up to a week, so that nobody can make us
//! take others by knocking ours out; the reserve serves only while both guards
//! do not; guards are of different families and networks. Deliberately not
//! here: finding out that one is down.

use std::collections::BTreeMap;

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use warren_types::{NodeId, NodeName};

use super::candidate::{Candidate, Own};
use super::constraints::Constraints;
use super::draw::{Draws, Seed};
use super::filter::{Position, Rule, judge};
use super::pool::{Pool, weights};
use super::search::Conflicts;

/// Guards in use at a time.
pub(super) const PRIMARY: usize = 2;
/// With the reserve.
const PINNED: usize = 3;
/// Shortest and longest time that a guard is kept, seconds.
const KEEP_S: (u64, u64) = (60 * 86_400, 120 * 86_400);
/// A guard that cannot be used for this long is replaced, seconds.
const GIVE_UP_S: u64 = 7 * 86_400;
/// And one that is no member any more for this long: it left or was revoked,
/// while a directory that is being filled has everybody much sooner.
const FORGET_S: u64 = 3600;

/// One pinned entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Its key.
    pub id: NodeId,
    /// Its name when it was pinned.
    pub name: NodeName,
    /// When it was pinned, seconds since 1970.
    pub since: u64,
    /// When it is replaced, seconds since 1970.
    pub until: u64,
    /// Since when it cannot be used, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_since: Option<u64>,
}

/// The pinned entries: up to two guards, then a reserve.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardState {
    guards: Vec<Guard>,
}

impl GuardState {
    /// All of them: two guards, then the reserve.
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// True when the node is one of them.
    pub fn holds(&self, id: NodeId) -> bool {
        self.guards.iter().any(|guard| guard.id == id)
    }

    /// True when it is a guard and not the reserve.
    pub(super) fn is_primary(&self, id: NodeId) -> bool {
        self.guards.iter().take(PRIMARY).any(|guard| guard.id == id)
    }

    /// Replaces guards whose time is over or that are gone, and pins what is
    /// missing. `now`: seconds since 1970. True when anything changed: then
    /// store it.
    pub fn maintain(
        &mut self,
        own: &Own,
        candidates: &[Candidate],
        now: u64,
        rng: &mut impl CryptoRng,
    ) -> bool {
        if candidates.is_empty() {
            // A directory that is not loaded yet says nothing about guards.
            return false;
        }
        let before = self.clone();
        let constraints = Constraints::default();
        let known: BTreeMap<NodeId, usize> =
            candidates.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
        let judged = |at: usize| judge(&candidates[at], Position::Entry, own, &constraints, None);
        self.guards.retain_mut(|guard| {
            let refusals = known.get(&guard.id).map(|at| judged(*at));
            guard.down_since = match refusals {
                Some(refusals) if refusals.is_empty() => None,
                _ => guard.down_since.or(Some(now)),
            };
            let down_s = guard.down_since.map_or(0, |at| now.saturating_sub(at));
            let lost = match refusals {
                // For good, and nobody else can cause it.
                Some(refusals) => {
                    let never = [Rule::Own, Rule::NoRole, Rule::OwnFamily];
                    refusals.iter().any(|rule| never.contains(&rule)) || down_s >= GIVE_UP_S
                }
                None => down_s >= FORGET_S,
            };
            // A clock that was set back must not keep a guard for ever.
            !lost && now < guard.until && guard.since <= now.saturating_add(KEEP_S.0)
        });
        if self.guards.len() < PINNED {
            let usable: Vec<usize> =
                (0..candidates.len()).filter(|at| judged(*at).is_empty()).collect();
            let pinned = self.guards.iter().filter_map(|guard| known.get(&guard.id).copied());
            let all = usable.iter().copied().chain(pinned);
            let conflicts = Conflicts::new(candidates, all, &constraints, None);
            let pool = Pool::new(usable, &weights(candidates));
            let mut draws = Draws::new(Seed::generate(rng));
            while self.guards.len() < PINNED {
                let held: Vec<usize> =
                    self.guards.iter().filter_map(|guard| known.get(&guard.id).copied()).collect();
                let apart = |at| held.iter().all(|other| conflicts.fit(at, *other));
                let Some(at) = pool.draw(&mut draws, apart) else { break };
                let keep = (KEEP_S.1 - KEEP_S.0) as f64 * draws.unit();
                self.guards.push(Guard {
                    id: candidates[at].id,
                    name: candidates[at].name.clone(),
                    since: now,
                    until: now.saturating_add(KEEP_S.0 + keep as u64),
                    down_since: None,
                });
            }
        }
        *self != before
    }
}

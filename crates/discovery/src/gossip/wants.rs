//! Records that were offered and are not here yet: who has them, whom we asked.
//!
//! Invariants: one neighbour at a time is asked for a record; a want without
//! offers is dropped; the number of wants and of offers of each is bounded.

use std::collections::{BTreeMap, VecDeque};

use warren_types::NodeId;

use super::record::Tag;

/// Most wants at a time. What is offered beyond is found again by comparison.
const MAX_WANTS: usize = 2048;
/// Most neighbours remembered for one record.
const MAX_OFFERS: usize = 4;
/// How long a neighbour has to deliver, milliseconds.
pub(crate) const PATIENCE_MS: u64 = 3000;

#[derive(Debug, Default)]
struct Want {
    /// Who offers it, and which version.
    offers: Vec<(NodeId, u64)>,
    /// Who was asked, and until when it may take.
    asked: Option<(NodeId, u64)>,
}

#[derive(Debug, Default)]
pub(crate) struct Wants {
    wants: BTreeMap<Tag, Want>,
    /// In the order of time.
    deadlines: VecDeque<(u64, Tag, NodeId)>,
}

impl Wants {
    pub(crate) fn len(&self) -> usize {
        self.wants.len()
    }

    /// True when nothing more can be wanted.
    pub(crate) fn is_full(&self) -> bool {
        self.wants.len() >= MAX_WANTS
    }

    /// Notes an offer. True when it is to be queued for asking.
    pub(crate) fn offer(&mut self, from: NodeId, tag: Tag, version: u64) -> bool {
        if self.is_full() && !self.wants.contains_key(&tag) {
            return false;
        }
        let want = self.wants.entry(tag).or_default();
        if let Some(known) = want.offers.iter_mut().find(|(n, _)| *n == from) {
            known.1 = known.1.max(version);
            return false;
        }
        if want.offers.len() >= MAX_OFFERS {
            return false;
        }
        want.offers.push((from, version));
        want.asked.is_none()
    }

    /// True when `from` is to be asked for `tag` now; noted as asked then.
    pub(crate) fn ask(&mut self, from: NodeId, tag: Tag, known: Option<u64>, now_ms: u64) -> bool {
        let Some(want) = self.wants.get_mut(&tag) else { return false };
        want.offers.retain(|(_, version)| Some(*version) > known);
        if want.offers.is_empty() && want.asked.is_none() {
            self.wants.remove(&tag);
            return false;
        }
        if want.asked.is_some() || !want.offers.iter().any(|(n, _)| *n == from) {
            return false;
        }
        want.asked = Some((from, now_ms + PATIENCE_MS));
        self.deadlines.push_back((now_ms + PATIENCE_MS, tag, from));
        true
    }

    /// True when `from` was asked for it and is not late.
    pub(crate) fn is_asked(&self, from: NodeId, tag: Tag) -> bool {
        self.wants.get(&tag).and_then(|w| w.asked).is_some_and(|(n, _)| n == from)
    }

    /// `from` sent something or nothing: its offer is settled. Returns who is
    /// to be asked next, if a better version than `known` is still offered.
    pub(crate) fn settle(&mut self, from: NodeId, tag: Tag, known: Option<u64>) -> Option<NodeId> {
        let want = self.wants.get_mut(&tag)?;
        want.offers.retain(|(n, version)| *n != from && Some(*version) > known);
        if want.asked.is_some_and(|(n, _)| n == from) {
            want.asked = None;
        }
        if want.asked.is_some() {
            return None;
        }
        let next = want.offers.iter().max_by_key(|(_, version)| *version).map(|(n, _)| *n);
        if next.is_none() {
            self.wants.remove(&tag);
        }
        next
    }

    /// Everybody who offers it.
    pub(crate) fn offerers(&self, tag: Tag) -> Vec<NodeId> {
        self.wants.get(&tag).map_or_else(Vec::new, |w| w.offers.iter().map(|(n, _)| *n).collect())
    }

    /// The next request that was not answered in time.
    pub(crate) fn overdue(&mut self, now_ms: u64) -> Option<(NodeId, Tag)> {
        while let Some((deadline, tag, from)) = self.deadlines.front().copied() {
            let current = self.wants.get(&tag).and_then(|w| w.asked) == Some((from, deadline));
            if current && deadline > now_ms {
                return None;
            }
            self.deadlines.pop_front();
            if current {
                return Some((from, tag));
            }
        }
        None
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.front().map(|(deadline, _, _)| *deadline)
    }

    /// Records offered by a neighbour that is gone.
    pub(crate) fn offered_by(&self, node: NodeId) -> Vec<Tag> {
        let theirs = |w: &Want| w.offers.iter().any(|(n, _)| *n == node);
        self.wants.iter().filter(|(_, w)| theirs(w)).map(|(tag, _)| *tag).collect()
    }

    pub(crate) fn memory(&self) -> usize {
        let offers: usize = self.wants.values().map(|w| w.offers.capacity()).sum();
        self.wants.len() * (size_of::<(Tag, Want)>() + 8)
            + offers * size_of::<(NodeId, u64)>()
            + self.deadlines.capacity() * size_of::<(u64, Tag, NodeId)>()
    }
}

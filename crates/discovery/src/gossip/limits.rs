//! How much a neighbour may send and ask for, and how often a member may change
//! what it says.
//!
//! Invariant: a limit takes constant memory. Honest nodes stay far below; what
//! exceeds a limit is dropped and comes again by repair, when there is room.

use std::collections::HashMap;

use super::record::Tag;

/// Why a neighbour is to be parted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It sent records whose signature or form is wrong.
    Forged,
    /// It sent messages that do not parse.
    Malformed,
    /// It sent or asked for far more than any honest node.
    Flooding,
}

impl Cause {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forged => "it sent forged records",
            Self::Malformed => "it sent malformed messages",
            Self::Flooding => "it sent or asked for far more than allowed",
        }
    }
}

/// What happened so far, for status and simulations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records taken in from others.
    pub accepted: u64,
    /// Records that were not newer than what was known; not verified.
    pub stale: u64,
    /// Records refused though an honest neighbour may have sent them.
    pub ignored: u64,
    /// Records no honest neighbour would have sent.
    pub forged: u64,
    /// Messages or records dropped for a limit.
    pub limited: u64,
    /// Records asked for and not delivered in time.
    pub unanswered: u64,
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    left: i64,
    most: i64,
    per_second: i64,
    /// Milliseconds.
    at: u64,
}

impl Allowance {
    pub(crate) fn new(most: u32, per_second: u32, now_ms: u64) -> Self {
        let most = i64::from(most);
        Self { left: most, most, per_second: per_second.into(), at: now_ms }
    }

    fn refill(&mut self, now_ms: u64) {
        let passed = i64::try_from(now_ms.saturating_sub(self.at)).unwrap_or(i64::MAX);
        let more = passed.saturating_mul(self.per_second) / 1000;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.most);
            self.at = now_ms;
        }
    }

    /// Takes `n` if anything is left, going below zero for the last one.
    pub(crate) fn take(&mut self, n: usize, now_ms: u64) -> bool {
        self.refill(now_ms);
        let fits = self.left > 0;
        if fits {
            self.left -= i64::try_from(n).unwrap_or(i64::MAX / 2);
        }
        fits
    }

    /// When something is left, milliseconds.
    pub(crate) fn ready_at(&self) -> u64 {
        let missing = u64::try_from(1 - self.left).unwrap_or(0).saturating_mul(1000);
        self.at + missing / u64::try_from(self.per_second).unwrap_or(1).max(1) + 1
    }
}

/// Changes of one record at once, without a limit.
const BURST: u32 = 10;
/// Afterwards one in this many milliseconds at least,
const PER_CHANGE_MS: u64 = 5000;
/// and in this many for each record known: members who say something new all
/// the time shall not cost more in large networks.
const PER_CHANGE_AND_RECORD_MS: u64 = 10;
/// Members whose changes are counted at a time.
const MAX_COUNTED: usize = 20_000;

/// How often each member's records change: changes that count, and since when.
#[derive(Debug, Default)]
pub(crate) struct Changes(HashMap<Tag, (u32, u64)>);

fn per_change(records: usize) -> u64 {
    PER_CHANGE_MS.max(records as u64 * PER_CHANGE_AND_RECORD_MS)
}

impl Changes {
    /// Changes of `tag` that count, brought up to date.
    fn count(&self, tag: Tag, records: usize, now_ms: u64) -> (u32, u64) {
        let Some((used, at)) = self.0.get(&tag).copied() else { return (0, now_ms) };
        let back = now_ms.saturating_sub(at) / per_change(records);
        let used = used.saturating_sub(u32::try_from(back).unwrap_or(u32::MAX));
        (used, at + back * per_change(records))
    }

    /// True when the member may change this record now; `records` is how many
    /// are known in all.
    pub(crate) fn may(&self, tag: Tag, records: usize, now_ms: u64) -> bool {
        self.count(tag, records, now_ms).0 < BURST
    }

    pub(crate) fn note(&mut self, tag: Tag, records: usize, now_ms: u64) {
        if self.0.len() >= MAX_COUNTED {
            self.forget(records, now_ms);
        }
        if self.0.len() < MAX_COUNTED || self.0.contains_key(&tag) {
            let (used, at) = self.count(tag, records, now_ms);
            self.0.insert(tag, (used + 1, if used == 0 { now_ms } else { at }));
        }
    }

    /// Drops counts that are back at nothing.
    pub(crate) fn forget(&mut self, records: usize, now_ms: u64) {
        self.0.retain(|_, (used, at)| {
            now_ms.saturating_sub(*at) < u64::from(*used) * per_change(records)
        });
        if self.0.is_empty() {
            self.0.shrink_to_fit();
        }
    }

    pub(crate) fn memory(&self) -> usize {
        self.0.capacity() * (size_of::<(Tag, (u32, u64))>() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_refills_to_its_limit() {
        let mut allowance = Allowance::new(100, 10, 0);
        assert!(allowance.take(150, 0));
        assert!(!allowance.take(1, 4000));
        assert!(allowance.ready_at() >= 5000);
        assert!(allowance.take(1, 6100));
        assert!(allowance.take(100, 1_000_000));
        assert!(!allowance.take(1, 1_000_000));
    }

    #[test]
    fn a_member_may_change_often_for_a_short_time_only() {
        let tag = Tag(8);
        let mut changes = Changes::default();
        let mut taken = 0;
        for ms in (0..100_000).step_by(100) {
            if changes.may(tag, 5, ms) {
                changes.note(tag, 5, ms);
                taken += 1;
            }
        }
        assert!((28..=31).contains(&taken), "{taken}");
        assert!(changes.may(Tag(16), 5, 0));
        changes.forget(5, 100_000);
        assert_eq!(changes.0.len(), 1);
        changes.forget(5, 1_000_000);
        assert!(changes.0.is_empty());
    }
}

//! One simulated node: its gossip, its connections, what was counted.

use std::collections::BTreeMap;

use warren_discovery::gossip::{Gossip, Record, Time, Verdict, Verifier};
use warren_discovery::neighbours::Choice;

use super::members::{Meaning, Members};

/// Which members a node knows, by index.
#[derive(Clone, Default)]
pub(crate) struct Known(Vec<u64>);

impl Known {
    pub(crate) fn new(members: usize) -> Self {
        Self(vec![0; members.div_ceil(64)])
    }

    pub(crate) fn set(&mut self, who: usize, known: bool) {
        let bit = 1 << (who % 64);
        if known {
            self.0[who / 64] |= bit;
        } else {
            self.0[who / 64] &= !bit;
        }
    }

    pub(crate) fn has(&self, who: usize) -> bool {
        self.0[who / 64] & 1 << (who % 64) != 0
    }

    /// True when everybody of `others` is known.
    pub(crate) fn covers(&self, others: &Self) -> bool {
        self.0.iter().zip(&others.0).all(|(ours, theirs)| theirs & !ours == 0)
    }

    /// In the order of indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits & 1 << bit != 0).map(move |bit| word * 64 + bit)
        })
    }
}

/// Attempts to connect to one other node.
#[derive(Clone, Copy, Default)]
pub(crate) struct Dial {
    pub(crate) busy: bool,
    pub(crate) failures: u32,
    /// The next attempt, milliseconds.
    pub(crate) next: u64,
}

/// What a hostile node does; each does one thing, so that each is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vice {
    /// Others' records with bytes changed; records of others signed by itself;
    /// its own from the far future.
    Forging,
    /// Old genuine records, and those of members that left.
    Replaying,
    /// Revocations of others, signed by itself.
    Accusing,
    /// Messages that are too large or no messages.
    Oversized,
    /// Announces what it does not have, and delivers nothing.
    Silent,
    /// Changes its own descriptor ten times a second.
    Restless,
}

impl Vice {
    pub(crate) const ALL: [Self; 6] = [
        Self::Forging,
        Self::Replaying,
        Self::Accusing,
        Self::Oversized,
        Self::Silent,
        Self::Restless,
    ];
}

/// Bytes and messages of one node within a span of time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) messages: u64,
    /// Part of `sent` that are records themselves.
    pub(crate) records: u64,
}

/// A node that is or was up.
pub(crate) struct Node {
    pub(crate) gossip: Gossip,
    pub(crate) up: bool,
    pub(crate) vice: Option<Vice>,
    /// Which part of a divided network it is in.
    pub(crate) side: bool,
    pub(crate) known: Known,
    pub(crate) links: BTreeMap<usize, ()>,
    pub(crate) dials: BTreeMap<usize, Dial>,
    /// Who has to stay away, and until when.
    pub(crate) barred: BTreeMap<usize, u64>,
    pub(crate) choice: Choice,
    pub(crate) stale: bool,
    pub(crate) chosen_at: u64,
    /// When its gossip is due, as far as an event for it is under way.
    pub(crate) wake: u64,
    /// When it looks after its connections next.
    pub(crate) care: u64,
    pub(crate) started: u64,
    /// When it told of its links, milliseconds; before the start for some.
    pub(crate) told_links: i64,
    pub(crate) links_changed: bool,
    pub(crate) traffic: Traffic,
}

impl Node {
    pub(crate) fn new(gossip: Gossip, members: usize, now: Time) -> Self {
        Self {
            gossip,
            up: true,
            vice: None,
            side: false,
            known: Known::new(members),
            links: BTreeMap::new(),
            dials: BTreeMap::new(),
            barred: BTreeMap::new(),
            choice: Choice::default(),
            stale: true,
            chosen_at: 0,
            wake: u64::MAX,
            care: u64::MAX,
            started: now.ms,
            told_links: now.ms as i64,
            links_changed: true,
            traffic: Traffic::default(),
        }
    }
}

/// The verifier of one node: the common check, and what this node knows.
pub(crate) struct Intake<'a> {
    pub(crate) members: &'a mut Members,
    pub(crate) known: &'a mut Known,
    pub(crate) revoked: Vec<usize>,
    pub(crate) changed: bool,
}

impl Verifier for Intake<'_> {
    fn verify(&mut self, record: &Record, now: Time) -> Verdict {
        let (verdict, meaning) = self.members.check(record, now);
        if verdict == Verdict::Accept {
            match meaning {
                Meaning::Descriptor(who, left) => {
                    self.changed |= self.known.has(who) == left;
                    self.known.set(who, !left);
                }
                Meaning::Revocation(who) => {
                    self.changed = true;
                    self.known.set(who, false);
                    self.revoked.push(who);
                }
                Meaning::Other => {}
            }
        }
        verdict
    }
}

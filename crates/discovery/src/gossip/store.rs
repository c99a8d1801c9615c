//! The records a node holds, with sums over ranges of them.
//!
//! Invariants: one record per tag; each bucket is in the order of tags; a
//! bucket's sum is the sum of its records' hashes modulo 2^128; records and
//! their memory are bounded. An insider who can make very many records of its
//! own could search for sets whose sums agree: those would not be repaired
//! between two nodes, which harms nobody's records but its own.

use std::collections::HashMap;
use std::sync::Arc;

use super::message::{Item, Range, Sum};
use super::record::{Kind, MAX_SKEW, Record, Tag};

/// Most ended records whose versions are remembered.
const MAX_ENDED: usize = 20_000;

#[derive(Debug, Default)]
struct Bucket {
    /// With the tag beside it: looking for one reads few cache lines.
    records: Vec<(Tag, Arc<Record>)>,
    sum: u128,
}

/// A set has no buckets until its first record.
#[derive(Debug, Default)]
struct Set(Vec<Bucket>);

impl Set {
    fn bucket(&self, at: u8) -> Option<&Bucket> {
        self.0.get(usize::from(at))
    }

    fn buckets(&self, range: Range) -> &[Bucket] {
        if self.0.is_empty() { &[] } else { &self.0[range.buckets()] }
    }
}

/// What a tag's last record said, when it ended or was taken away.
#[derive(Debug, Clone, Copy)]
struct Ended {
    version: u64,
    /// Seconds since 1970; not remembered longer.
    until: u64,
}

/// All records.
#[derive(Debug)]
pub(crate) struct Store {
    sets: [Set; 2],
    counts: [usize; Kind::ALL.len()],
    memory: usize,
    max_memory: usize,
    /// No record ends before.
    earliest: u64,
    ended: HashMap<Tag, Ended>,
}

impl Store {
    pub(crate) fn new(max_memory: usize) -> Self {
        Self {
            sets: [Set::default(), Set::default()],
            counts: [0; Kind::ALL.len()],
            memory: 0,
            max_memory,
            earliest: u64::MAX,
            ended: HashMap::new(),
        }
    }

    fn set_of(tag: Tag) -> usize {
        usize::from(!tag.kind().is_some_and(Kind::is_urgent))
    }

    pub(crate) fn get(&self, tag: Tag) -> Option<&Arc<Record>> {
        let bucket = self.sets[Self::set_of(tag)].bucket(tag.bucket())?;
        let at = bucket.records.binary_search_by_key(&tag, |(tag, _)| *tag).ok()?;
        bucket.records.get(at).map(|(_, record)| record)
    }

    /// A record of this tag and of at most this version is no news; `None`
    /// when any is.
    pub(crate) fn known(&self, tag: Tag) -> Option<u64> {
        let held = self.get(tag).map(|r| r.version());
        if self.ended.is_empty() {
            return held;
        }
        held.max(self.ended.get(&tag).map(|e| e.version))
    }

    /// True when `record` would replace what is here.
    pub(crate) fn is_news(&self, record: &Record) -> bool {
        let ended = self.ended.get(&record.tag()).is_some_and(|e| e.version >= record.version());
        !ended && self.get(record.tag()).is_none_or(|held| record.beats(held))
    }

    /// True when neither the number of records of the kind nor memory forbids
    /// to take this one in.
    pub(crate) fn has_room(&self, record: &Record) -> bool {
        let old = self.get(record.tag()).map_or(0, |old| old.memory());
        let count = self.counts[usize::from(record.kind().number())];
        self.memory - old + record.memory() <= self.max_memory
            && (old > 0 || count < record.kind().max_records())
    }

    /// Puts a record in the place of any other with its tag.
    pub(crate) fn insert(&mut self, record: Arc<Record>) {
        let (tag, kind) = (record.tag(), record.kind());
        self.remove(tag);
        self.ended.remove(&tag);
        self.earliest = self.earliest.min(record.expires());
        self.counts[usize::from(kind.number())] += 1;
        self.memory += record.memory();
        let set = &mut self.sets[Self::set_of(tag)].0;
        if set.is_empty() {
            set.resize_with(256, Bucket::default);
        }
        let bucket = &mut set[usize::from(tag.bucket())];
        bucket.sum = bucket.sum.wrapping_add(record.hash());
        let at = bucket.records.partition_point(|(other, _)| *other < tag);
        bucket.records.insert(at, (tag, record));
    }

    fn remove(&mut self, tag: Tag) -> Option<Arc<Record>> {
        let bucket = self.sets[Self::set_of(tag)].0.get_mut(usize::from(tag.bucket()))?;
        let at = bucket.records.binary_search_by_key(&tag, |(tag, _)| *tag).ok()?;
        let (_, record) = bucket.records.remove(at);
        bucket.sum = bucket.sum.wrapping_sub(record.hash());
        self.counts[usize::from(record.kind().number())] -= 1;
        self.memory -= record.memory();
        Some(record)
    }

    /// Takes a record away and remembers its version, so that neither it nor
    /// an older one comes back before its end.
    pub(crate) fn end(&mut self, tag: Tag, unix: u64) {
        let Some(record) = self.remove(tag) else { return };
        if self.ended.len() >= MAX_ENDED {
            self.ended.retain(|_, e| e.until > unix);
        }
        if self.ended.len() < MAX_ENDED {
            let until = record.expires().max(unix).saturating_add(2 * MAX_SKEW);
            self.ended.insert(tag, Ended { version: record.version(), until });
        }
    }

    /// Takes away what has ended.
    pub(crate) fn expire(&mut self, unix: u64) {
        if unix < self.earliest {
            return;
        }
        self.ended.retain(|_, e| e.until > unix);
        let over: Vec<Tag> = self.all().filter(|r| r.expires() <= unix).map(|r| r.tag()).collect();
        for tag in over {
            self.end(tag, unix);
        }
        self.earliest = self.all().map(|r| r.expires()).min().unwrap_or(u64::MAX);
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.sets.iter().flat_map(|s| &s.0).flat_map(|b| &b.records).map(|(_, record)| record)
    }

    /// The records of a range, in the order of tags.
    pub(crate) fn range(&self, range: Range) -> impl Iterator<Item = &Arc<Record>> {
        let buckets = self.sets[usize::from(range.set)].buckets(range);
        buckets.iter().flat_map(|b| &b.records).map(|(_, record)| record)
    }

    pub(crate) fn items(&self, range: Range) -> Vec<Item> {
        self.range(range).map(|r| Item { tag: r.tag(), version: r.version() }).collect()
    }

    pub(crate) fn count(&self, range: Range) -> usize {
        self.sets[usize::from(range.set)].buckets(range).iter().map(|b| b.records.len()).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.counts.iter().sum()
    }

    pub(crate) fn sum(&self, range: Range) -> Sum {
        let buckets = self.sets[usize::from(range.set)].buckets(range);
        let sum = buckets.iter().fold(0_u128, |sum, b| sum.wrapping_add(b.sum));
        Sum { range, sum: (sum >> 64) as u64 ^ sum as u64 }
    }

    /// Memory of records and of what leads to them, bytes.
    pub(crate) fn memory(&self) -> usize {
        let lists = |s: &Set| {
            let slots: usize = s.0.iter().map(|b| b.records.capacity()).sum();
            s.0.capacity() * size_of::<Bucket>() + slots * size_of::<(Tag, Arc<Record>)>()
        };
        self.memory
            + self.sets.iter().map(lists).sum::<usize>()
            + self.ended.capacity() * (size_of::<(Tag, Ended)>() + 1)
    }
}

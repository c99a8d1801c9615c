//! Repair: two neighbours compare what they have, and fetch what they lack.
//!
//! Sums over everything first; where they differ, over sixteenths, then 256ths;
//! then the list of one part, to which the other side answers with what it has
//! newer or beyond and asks for what it lacks. The records themselves take the
//! same way as news: announced, asked for, sent. Invariants: an exchange between
//! neighbours that agree is one message of some 30 bytes; each answer is charged
//! to the allowance of the one who caused it; a node that has much on its way
//! already puts comparisons off, so that a newcomer does not load its lists from
//! all neighbours at once.

use warren_types::NodeId;

use super::limits::Cause;
use super::machine::Gossip;
use super::message::{Item, MAX_ITEMS, Message, Range, Sum};
use super::neighbour::Neighbour;
use super::record::Time;

/// With more records on their way, comparisons wait,
const BUSY: usize = 128;
/// until there are this few.
const CALM: usize = 32;
/// Up to this many records of a range are listed without going deeper.
const LIST_AT_ONCE: usize = 32;

impl Gossip {
    /// Sends the sums over everything to a neighbour.
    pub(super) fn compare_with(&mut self, node: NodeId) {
        let sums = [0, 1].map(|set| self.store.sum(Range::all(set)));
        self.send(node, Message::Sums(sums.to_vec()));
    }

    /// The same, or later, when much is on its way already.
    pub(super) fn compare_when_calm(&mut self, node: NodeId) {
        if self.wants.len() <= BUSY {
            self.compare_with(node);
        } else if let Some(neighbour) = self.neighbours.get_mut(&node) {
            neighbour.behind = true;
        }
    }

    pub(super) fn on_sums(&mut self, from: NodeId, sums: &[Sum], now: Time) {
        if !self.may_talk(from, sums.len(), now) {
            return;
        }
        let differ = sums.iter().filter(|s| self.store.sum(s.range) != **s).map(|s| s.range);
        let differ: Vec<Range> = differ.collect();
        if differ.is_empty() {
            return;
        }
        if self.wants.len() > BUSY {
            if let Some(neighbour) = self.neighbours.get_mut(&from) {
                neighbour.behind = true;
            }
            return;
        }
        let mut deeper = Vec::new();
        for range in differ {
            if range.level >= 2 || self.store.count(range) <= LIST_AT_ONCE {
                let mut items = self.store.items(range);
                items.truncate(MAX_ITEMS);
                self.reply(from, Message::List { range, items }, now);
            } else {
                deeper.extend(range.parts().map(|part| self.store.sum(part)));
            }
        }
        for part in deeper.chunks(MAX_ITEMS) {
            self.reply(from, Message::Sums(part.to_vec()), now);
        }
    }

    pub(super) fn on_list(&mut self, from: NodeId, range: Range, items: &[Item], now: Time) {
        if !self.may_talk(from, items.len(), now) {
            return;
        }
        let ordered = items.is_sorted_by(|a, b| a.tag < b.tag);
        if !ordered || items.iter().any(|item| !range.contains(item.tag)) {
            self.fault(from, Cause::Malformed, now);
            return;
        }
        let newer = |ours: &Item| {
            let theirs = items.binary_search_by_key(&ours.tag, |item| item.tag);
            theirs.ok().and_then(|at| items.get(at)).is_none_or(|it| it.version < ours.version)
        };
        let mut beyond = self.store.items(range);
        beyond.retain(newer);
        for item in items {
            self.offer(from, *item, now);
        }
        for part in beyond.chunks(MAX_ITEMS) {
            self.reply(from, Message::Announce(part.to_vec()), now);
        }
    }

    /// Resumes a comparison that was put off.
    pub(super) fn catch_up(&mut self, now: Time) {
        if self.wants.len() >= CALM {
            return;
        }
        let ready = |n: &Neighbour| n.behind && !n.is_muted(now.ms);
        let behind = self.neighbours.iter_mut().find(|(_, n)| ready(n));
        if let Some((node, neighbour)) = behind {
            neighbour.behind = false;
            let node = *node;
            self.compare_with(node);
        }
    }
}

//! A few nodes, a clock, and messages that take their time; every message goes
//! through its bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use warren_types::NodeId;

use super::limits::Cause;
use super::*;

const UNIX: u64 = 1_800_000_000;
const LATENCY: u64 = 30;

fn id(n: u8) -> NodeId {
    NodeId([n; 32])
}

/// Bodies say themselves what they are; `heard` counts verifications.
#[derive(Default)]
struct Judge {
    heard: u64,
}

impl Verifier for Judge {
    fn verify(&mut self, record: &Record, _: Time) -> Verdict {
        self.heard += 1;
        match record.body().first() {
            Some(b'g') => Verdict::Accept,
            Some(b'i') => Verdict::Ignore,
            _ => Verdict::Forged,
        }
    }
}

fn record_of(kind: Kind, n: u8, sequence: u64, body: &[u8]) -> Arc<Record> {
    Record::new(kind, id(n).0, sequence, UNIX + 86_400, body).unwrap()
}

fn record(n: u8, sequence: u64) -> Arc<Record> {
    record_of(Kind::Descriptor, n, sequence, b"genuine")
}

struct World {
    ms: u64,
    nodes: BTreeMap<NodeId, (Gossip, Judge)>,
    wire: BTreeMap<(u64, u64), (NodeId, NodeId, Vec<u8>)>,
    links: BTreeSet<(NodeId, NodeId)>,
    sent: u64,
    bytes: u64,
    cut: Vec<(NodeId, NodeId, Cause)>,
}

impl World {
    fn new(nodes: u8) -> Self {
        let now = Time { ms: 0, unix: UNIX };
        let node = |n: u8| (id(n), (Gossip::new(id(n), n.into(), now), Judge::default()));
        Self {
            ms: 0,
            nodes: (1..=nodes).map(node).collect(),
            wire: BTreeMap::new(),
            links: BTreeSet::new(),
            sent: 0,
            bytes: 0,
            cut: Vec::new(),
        }
    }

    fn now(&self) -> Time {
        Time { ms: self.ms, unix: UNIX + self.ms / 1000 }
    }

    fn of(&mut self, n: u8) -> &mut Gossip {
        &mut self.nodes.get_mut(&id(n)).unwrap().0
    }

    fn link(&mut self, a: u8, b: u8) {
        let now = self.now();
        for (x, y) in [(a, b), (b, a)] {
            self.links.insert((id(x), id(y)));
            self.of(x).neighbour_up(id(y), true, now);
        }
    }

    fn unlink(&mut self, a: u8, b: u8) {
        let now = self.now();
        for (x, y) in [(a, b), (b, a)] {
            self.links.remove(&(id(x), id(y)));
            self.of(x).neighbour_down(id(y), now);
        }
    }

    /// Everybody with everybody.
    fn mesh(nodes: u8) -> Self {
        let mut world = Self::new(nodes);
        for a in 1..=nodes {
            for b in a + 1..=nodes {
                world.link(a, b);
            }
        }
        world
    }

    fn publish(&mut self, n: u8, record: Arc<Record>) {
        let now = self.now();
        assert!(self.of(n).publish(record, None, now));
    }

    fn inject(&mut self, from: u8, to: u8, message: &Message) {
        self.sent += 1;
        let key = (self.ms + LATENCY, self.sent);
        self.wire.insert(key, (id(from), id(to), message.encode()));
    }

    fn run(&mut self, ms: u64) {
        let end = self.ms + ms;
        loop {
            for (node, (gossip, _)) in &mut self.nodes {
                while let Some((to, message)) = gossip.poll_transmit() {
                    let bytes = message.encode();
                    assert!(bytes.len() <= message.encoded_len().min(MAX_MESSAGE), "{message:?}");
                    self.sent += 1;
                    self.bytes += bytes.len() as u64;
                    self.wire.insert((self.ms + LATENCY, self.sent), (*node, to, bytes));
                }
                while let Some(Event::CutOff { node: whom, cause }) = gossip.poll_event() {
                    self.cut.push((*node, whom, cause));
                }
            }
            let due = self.nodes.values().map(|(g, _)| g.poll_timeout()).min().unwrap();
            let arrives = self.wire.keys().next().map_or(u64::MAX, |(at, _)| *at);
            let next = due.min(arrives).max(self.ms);
            if next > end {
                self.ms = end;
                return;
            }
            self.ms = next;
            let now = self.now();
            while let Some(entry) = self.wire.first_entry()
                && entry.key().0 <= next
            {
                let (from, to, bytes) = entry.remove();
                if self.links.contains(&(from, to))
                    && let Some((gossip, judge)) = self.nodes.get_mut(&to)
                {
                    match Message::decode(&bytes) {
                        Ok(message) => gossip.handle_message(from, message, now, judge),
                        Err(_) => gossip.malformed(from, now),
                    }
                }
            }
            for (gossip, _) in self.nodes.values_mut() {
                if gossip.poll_timeout() <= next {
                    gossip.handle_timeout(now);
                    assert!(gossip.poll_timeout() > next, "it would be called for ever");
                }
            }
        }
    }

    fn all_have(&self, record: &Arc<Record>) -> bool {
        self.nodes.values().all(|(g, _)| g.get(record.kind(), record.subject()) == Some(record))
    }

    fn all_agree(&self) -> bool {
        let contents = |g: &Gossip| g.records().cloned().collect::<Vec<_>>();
        let first = contents(&self.nodes.values().next().unwrap().0);
        self.nodes.values().all(|(g, _)| contents(g) == first)
    }
}

#[test]
fn news_reaches_all_over_a_chain_and_each_verifies_it_once() {
    let mut world = World::new(8);
    for n in 1..8 {
        world.link(n, n + 1);
    }
    world.run(1000);
    world.publish(1, record(1, 5));
    world.run(3000);
    assert!(world.all_have(&record(1, 5)));
    world.publish(1, record(1, 6));
    world.run(3000);
    assert!(world.all_have(&record(1, 6)));
    assert!(world.nodes.values().skip(1).all(|(_, judge)| judge.heard == 2));
}

#[test]
fn revocations_do_not_wait_for_batches() {
    let mut world = World::new(8);
    for n in 1..8 {
        world.link(n, n + 1);
    }
    world.run(1000);
    let revocation = record_of(Kind::Revocation, 9, 5, b"genuine");
    world.publish(1, revocation.clone());
    world.run(7 * LATENCY);
    assert!(world.all_have(&revocation));
}

#[test]
fn a_newcomer_gets_everything_and_agreement_costs_little() {
    let mut world = World::new(3);
    for n in 10..250 {
        world.of(1).restore(record(n, 7));
        world.of(1).restore(record_of(Kind::LinkState, n, 7, b"genuine"));
    }
    for n in 10..200 {
        world.of(1).restore(record_of(Kind::Revocation, n, 7, b"genuine"));
    }
    world.link(1, 2);
    world.run(5000);
    assert!(world.all_agree() || world.of(3).is_empty());
    assert_eq!(world.of(2).len(), 240 * 2 + 190);
    world.link(2, 3);
    world.run(5000);
    assert!(world.all_agree());
    let before = world.bytes;
    world.run(600_000);
    let comparisons = 3 * 600 / 30;
    assert!(world.bytes - before < comparisons * 60, "{}", world.bytes - before);
}

#[test]
fn a_newcomer_with_many_neighbours_loads_each_record_once() {
    let mut world = World::new(6);
    for n in 10..250 {
        for holder in 2..=6 {
            world.of(holder).restore(record_of(Kind::Descriptor, n, 7, &[b'g'; 1000]));
        }
    }
    for holder in 2..=6 {
        world.link(1, holder);
    }
    world.run(20_000);
    assert!(world.all_agree());
    assert!(world.bytes < 240 * 1060 * 3 / 2, "{}", world.bytes);
}

#[test]
fn halves_that_both_changed_agree_again() {
    let mut world = World::mesh(6);
    for n in 1..=6 {
        world.publish(n, record(n, 10));
    }
    world.run(2000);
    assert!(world.all_agree());
    for a in 1..=3 {
        for b in 4..=6 {
            world.unlink(a, b);
        }
    }
    world.publish(1, record(1, 11));
    world.publish(5, record(5, 12));
    // Seen by one half each; the later one stays.
    world.publish(2, record(77, 20));
    world.publish(6, record(77, 21));
    world.run(2000);
    assert!(!world.all_agree());
    world.link(3, 4);
    world.run(3000);
    assert!(world.all_agree());
    assert!(world.all_have(&record(77, 21)) && world.all_have(&record(1, 11)));
}

#[test]
fn of_two_records_with_one_sequence_everybody_keeps_the_same() {
    let mut world = World::new(4);
    let (a, b) =
        (record_of(Kind::Descriptor, 9, 5, b"g1"), record_of(Kind::Descriptor, 9, 5, b"g2"));
    world.of(1).restore(a.clone());
    world.of(4).restore(b.clone());
    for n in 1..4 {
        world.link(n, n + 1);
    }
    world.run(200_000);
    assert!(world.all_have(if a.hash() > b.hash() { &a } else { &b }));
}

#[test]
fn forgers_are_cut_off_and_relays_of_odd_records_are_not() {
    let mut world = World::mesh(3);
    world.publish(1, record(1, 10));
    world.run(1000);
    for n in 0..20 {
        // Older than known, from the far future, over, not acceptable here.
        let far = (UNIX + 2 * MAX_SKEW) * 1000;
        let list = vec![
            record(1, u64::from(n % 10)),
            record(n + 10, far),
            Record::new(Kind::Descriptor, id(n + 10).0, 4, UNIX - 1, b"g").unwrap(),
            record_of(Kind::Descriptor, n + 40, 7, b"ignored"),
        ];
        world.inject(2, 1, &Message::Records(list));
        world.run(50);
    }
    assert_eq!(world.cut, []);
    assert!(world.all_agree());
    for n in 0..5 {
        world.inject(2, 1, &Message::Records(vec![record_of(Kind::Descriptor, n, 99, b"x")]));
    }
    world.run(100);
    assert_eq!(world.cut, [(id(1), id(2), Cause::Forged)]);
    assert_eq!(world.of(1).counters().forged, 4);
    assert!(world.all_have(&record(1, 10)));
}

#[test]
fn a_forged_newer_record_does_not_keep_the_genuine_one_out() {
    let mut world = World::mesh(3);
    world.publish(1, record(1, 10));
    world.run(1000);
    // 2 claims to have what 1 will publish soon, and sends rubbish.
    world.inject(2, 3, &Message::Records(vec![record_of(Kind::Descriptor, 1, 11, b"x")]));
    world.run(100);
    world.publish(1, record(1, 11));
    world.run(1000);
    assert!(world.all_have(&record(1, 11)));
}

#[test]
fn who_announces_and_does_not_deliver_costs_seconds_only() {
    let mut world = World::mesh(3);
    world.run(100);
    let item = Item { tag: record(9, 8).tag(), version: u64::MAX >> 16 << 16 };
    world.inject(2, 3, &Message::Announce(vec![item]));
    let honest = record(9, 8);
    let item = Item { tag: honest.tag(), version: honest.version() };
    world.inject(2, 3, &Message::Announce(vec![item]));
    world.run(100);
    world.of(1).restore(honest.clone());
    world.inject(1, 3, &Message::Announce(vec![item]));
    world.run(5000);
    assert_eq!(world.of(3).get(Kind::Descriptor, &id(9).0), Some(&honest));
    assert_eq!(world.of(3).counters().unanswered, 1);
}

/// A newcomer between an honest neighbour and one that promises thousands of
/// records there are not: it loads the genuine ones all the same.
#[test]
fn who_promises_thousands_is_not_asked_for_long() {
    let mut world = World::new(3);
    for n in 0..200 {
        let genuine = record_of(Kind::Descriptor, n, 7, b"genuine");
        world.of(1).restore(genuine);
    }
    let invented: Vec<Item> = (0..2000u32)
        .map(|n| {
            let mut subject = [0xee; 32];
            subject[..4].copy_from_slice(&n.to_be_bytes());
            Item { tag: Tag::new(Kind::Descriptor, &subject), version: 9 << 16 }
        })
        .collect();
    world.link(2, 3);
    for part in invented.chunks(MAX_ITEMS) {
        world.inject(2, 3, &Message::Announce(part.to_vec()));
    }
    world.run(100);
    world.link(1, 3);
    world.run(8_000);
    assert_eq!(world.of(3).len(), 200, "loaded while one promised");
    assert!(world.of(3).counters().unanswered < 200, "{:?}", world.of(3).counters());
    // What it truly has counts again after a while.
    let late = record_of(Kind::Descriptor, 201, 8, b"genuine");
    world.of(2).restore(late.clone());
    world.run(150_000);
    assert_eq!(world.of(3).get(Kind::Descriptor, &id(201).0), Some(&late));
}

#[test]
fn what_has_ended_does_not_come_back() {
    let mut world = World::mesh(2);
    let short = Record::new(Kind::Descriptor, id(9).0, 5, UNIX + 60, b"gone soon").unwrap();
    world.publish(1, short.clone());
    let revoked = record(8, 5);
    world.publish(1, revoked.clone());
    world.run(1000);
    assert!(world.all_have(&short));
    let now = world.now();
    world.of(2).forget(Kind::Descriptor, &id(8).0, now);
    world.inject(1, 2, &Message::Records(vec![revoked]));
    world.run(120_000);
    assert!(world.nodes.values().all(|(g, _)| g.get(Kind::Descriptor, &id(9).0).is_none()));
    assert!(world.of(2).get(Kind::Descriptor, &id(8).0).is_none());
    let older = Record::new(Kind::Descriptor, id(9).0, 4, UNIX + 86_400, b"genuine").unwrap();
    world.inject(1, 2, &Message::Records(vec![older]));
    world.run(1000);
    assert!(world.of(2).get(Kind::Descriptor, &id(9).0).is_none());
    let newer = record(9, 6);
    world.publish(1, newer.clone());
    world.run(1000);
    assert!(world.all_have(&newer));
}

#[test]
fn a_member_that_changes_too_often_is_heard_less_and_its_last_word_in_the_end() {
    let mut world = World::mesh(4);
    for sequence in 1..=200 {
        world.publish(1, record(1, sequence));
        world.run(100);
    }
    assert!(world.nodes[&id(2)].1.heard < 30, "{}", world.nodes[&id(2)].1.heard);
    world.run(180_000);
    assert!(world.all_have(&record(1, 200)));
    assert_eq!(world.cut, []);
}

#[test]
fn floods_are_dropped_and_then_cut_off() {
    let mut world = World::mesh(2);
    world.run(100);
    let all = Range::all(1);
    for n in 0..1200 {
        let items = (0..2000)
            .map(|i| Item { tag: Tag((n * 2000 + i) << 3 | 2), version: 1 << 16 })
            .collect();
        world.inject(1, 2, &Message::List { range: all, items });
    }
    world.run(LATENCY);
    assert_eq!(world.cut, [(id(2), id(1), Cause::Flooding)]);
    assert!(world.of(2).memory() < 8 << 20, "{}", world.of(2).memory());
}

#[test]
fn a_lost_neighbour_is_replaced_as_a_source() {
    let mut world = World::new(3);
    for n in 10..250 {
        for holder in 2..=3 {
            world.of(holder).restore(record(n, 7));
        }
    }
    world.link(1, 2);
    world.link(1, 3);
    world.run(LATENCY * 6);
    world.unlink(1, 2);
    world.run(40_000);
    assert_eq!(world.of(1).len(), 240);
}

fn samples() -> Vec<Message> {
    let item = Item { tag: record(1, 2).tag(), version: record(1, 2).version() };
    let range = Range { set: 1, level: 2, prefix: 0xab };
    vec![
        Message::Announce(vec![item; 3]),
        Message::Want(vec![item.tag; 2]),
        Message::Records(vec![record(1, 2), record_of(Kind::LinkState, 3, u64::MAX, b"")]),
        Message::Sums(vec![Sum { range, sum: 7 }, Sum { range: Range::all(0), sum: u64::MAX }]),
        Message::List { range, items: vec![item] },
        Message::List { range: Range::all(1), items: vec![] },
        Message::Unknown(200),
    ]
}

#[test]
fn messages_round_trip_and_cut_ones_are_refused() {
    for message in samples() {
        let bytes = message.encode();
        assert!(bytes.len() <= message.encoded_len());
        assert_eq!(Message::decode(&bytes).as_ref(), Ok(&message));
        for end in 0..bytes.len() {
            assert!(Message::decode(&bytes[..end]).is_err(), "{message:?} cut at {end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Message::decode(&longer).is_err());
    }
    let large = vec![b'g'; Kind::Descriptor.max_body()];
    let largest = Message::Records(vec![record_of(Kind::Descriptor, 1, 1, &large)]);
    assert!(largest.encode().len() <= MAX_MESSAGE);
    assert!(Record::new(Kind::LinkState, [0; 32], 1, 1, &[0; 4097]).is_none());
}

#[test]
fn wrong_ranges_and_sizes_are_refused() {
    let list = |range: [u8; 3]| [&[0x83, 4, 0x43][..], &range, &[0x40]].concat();
    assert!(Message::decode(&list([1, 2, 0xff])).is_ok());
    for range in [[2, 0, 0], [0, 3, 0], [0, 0, 1], [1, 1, 1]] {
        assert!(Message::decode(&list(range)).is_err(), "{range:?}");
    }
    assert!(Message::decode(&[0x82, 1, 0x47, 0, 0, 0, 0, 0, 0, 0]).is_err());
    // An array that claims 2^32 records.
    assert!(Message::decode(&[0x82, 2, 0x9a, 0xff, 0xff, 0xff, 0xff]).is_err());
    // A kind of a later version is skipped.
    let mut bytes = Message::Records(vec![record(1, 2)]).encode();
    bytes[4] = 9;
    assert_eq!(Message::decode(&bytes), Ok(Message::Records(vec![])));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::decode(&bytes);
    }

    #[test]
    fn altered_messages_do_no_harm(
        which in 0_usize..7, at in any::<u16>(), to in any::<u8>(),
    ) {
        let mut bytes = samples()[which].encode();
        let at = usize::from(at) % bytes.len();
        bytes[at] = to;
        if let Ok(message) = Message::decode(&bytes) {
            let mut world = World::mesh(2);
            world.inject(1, 2, &message);
            world.run(1000);
        }
    }

    #[test]
    fn whatever_the_order_all_agree(
        published in proptest::collection::vec((1_u8..6, 10_u8..16, 1_u64..9), 1..40),
        cut in proptest::collection::vec((1_u8..6, 1_u8..6, any::<bool>()), 0..12),
    ) {
        let mut world = World::mesh(5);
        let mut cuts = cut.into_iter();
        for (node, subject, sequence) in published {
            let now = world.now();
            world.of(node).publish(record(subject, sequence), None, now);
            world.run(37);
            if let Some((a, b, up)) = cuts.next() && a != b {
                if up { world.link(a, b) } else { world.unlink(a, b) }
            }
        }
        for n in 1..5 {
            world.link(n, n + 1);
        }
        world.run(200_000);
        prop_assert!(world.all_agree());
    }
}

//! The virtual clock, the wire, and what nodes do by themselves.
//!
//! Messages between two nodes take 10 to 150 ms one way, depending on the pair,
//! and arrive in order. A connection takes one and a half round trips to
//! make; a dead peer is noticed after 10 s, as by the daemon; an attempt at one
//! ends after 6 s. Each message is counted with the bytes of its frame and of
//! the QUIC, UDP and IP headers of the datagrams it takes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use warren_discovery::gossip::{
    Event as GossipEvent, Gossip, Kind, Message, Record, Time, Verdict, Verifier, link_state_pause,
};
use warren_discovery::neighbours;
use warren_types::NodeId;

use super::members::Members;
use super::node::{Dial, Intake, Known, Node, Traffic, Vice};
use super::random::Random;

/// Seconds since 1970 at the start.
pub(crate) const UNIX: u64 = 1_800_000_000;
/// A dead peer is noticed after this time, milliseconds.
const IDLE: u64 = 10_000;
const DIAL_TIMEOUT: u64 = 6000;
const RETRY_MAX: u64 = 30_000;
const UNREACHABLE: u64 = 300_000;
const BARRED: u64 = 600_000;
/// Attempts at a time, as in the daemon.
const DIALS: usize = 6;
/// Length and number of the frame, and its byte string's head.
const FRAME: u64 = 4 + 6;
/// IP, UDP and QUIC's short header, tag and stream frame.
const DATAGRAM: u64 = 40 + 8 + 18 + 16 + 6;
const DATAGRAM_ROOM: u64 = 1200;

pub(crate) enum Payload {
    Message(Message),
    Bytes(Vec<u8>),
}

enum Event {
    Deliver { from: usize, to: usize, payload: Payload },
    Wake(usize),
    Care(usize),
    Dialed { from: usize, to: usize, failed: bool },
    Lost { node: usize, other: usize },
}

pub(crate) struct World {
    pub(crate) ms: u64,
    pub(crate) members: Members,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) random: Random,
    events: BTreeMap<u64, Vec<Event>>,
    by_id: HashMap<NodeId, usize>,
    pub(crate) divided: bool,
    /// Every message goes through its bytes.
    pub(crate) through_bytes: bool,
    /// Before, choices are made anew every 2 s, later every 10 s.
    pub(crate) hurry_until: u64,
    pub(crate) cut_offs: [u64; 2],
    pub(crate) handled: u64,
    pub(crate) link_states: bool,
}

impl World {
    pub(crate) fn new(members: Members, random: Random, through_bytes: bool) -> Self {
        let by_id = members.list.iter().enumerate().map(|(n, m)| (m.id, n)).collect();
        let nodes = members.list.iter().map(|_| None).collect();
        Self {
            ms: 0,
            members,
            nodes,
            random,
            events: BTreeMap::new(),
            by_id,
            divided: false,
            through_bytes,
            hurry_until: 60_000,
            cut_offs: [0; 2],
            handled: 0,
            link_states: true,
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time { ms: self.ms, unix: UNIX + self.ms / 1000 }
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.events.entry(ms.max(self.ms)).or_default().push(event);
    }

    pub(crate) fn up(&self, who: usize) -> Option<&Node> {
        self.nodes[who].as_ref().filter(|n| n.up)
    }

    pub(crate) fn up_mut(&mut self, who: usize) -> Option<&mut Node> {
        self.nodes[who].as_mut().filter(|n| n.up)
    }

    /// Indices of nodes that are up; honest ones only, or hostile ones only.
    pub(crate) fn all_up(&self, honest: bool) -> Vec<usize> {
        let wanted = |n: &Node| n.up && n.vice.is_none() == honest;
        (0..self.nodes.len()).filter(|i| self.nodes[*i].as_ref().is_some_and(wanted)).collect()
    }

    fn latency(a: usize, b: usize) -> u64 {
        let mut pair = Random((a.min(b) as u64) << 32 | a.max(b) as u64);
        10 + pair.below(140) as u64
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        match (self.up(a), self.up(b)) {
            (Some(x), Some(y)) => !self.divided || x.side == y.side,
            _ => false,
        }
    }

    // ---- nodes come and go ---------------------------------------------

    /// Starts a node that knows some records; it dials the nodes they are of.
    pub(crate) fn start(&mut self, who: usize, vice: Option<Vice>, knows: &[Arc<Record>]) {
        let now = self.now();
        let gossip = Gossip::new(self.members.list[who].id, self.random.next(), now);
        let mut node = Node::new(gossip, self.members.list.len(), now);
        node.vice = vice;
        node.side = self.random.chance(0.5);
        let pause = 1000 * link_state_pause(self.members.list.len()) as usize;
        node.told_links -= self.random.below(pause) as i64;
        for record in knows {
            let mut intake = Intake {
                members: &mut self.members,
                known: &mut node.known,
                revoked: Vec::new(),
                changed: false,
            };
            let verdict = intake.verify(record, now);
            if verdict == Verdict::Accept {
                node.gossip.restore(record.clone());
            }
        }
        let knows_itself = node.known.has(who);
        self.nodes[who] = Some(node);
        if !knows_itself {
            self.publish(who, false);
        }
        self.care_at(who, self.ms);
    }

    /// Publishes a new descriptor.
    pub(crate) fn publish(&mut self, who: usize, left: bool) {
        let now = self.now();
        let record = self.members.descriptor(who, now, left);
        self.tell(who, record);
    }

    pub(crate) fn tell(&mut self, who: usize, record: Arc<Record>) {
        let now = self.now();
        if let Some(node) = self.up_mut(who) {
            if record.subject() == &node.gossip.own().0 {
                node.known.set(who, true);
            }
            node.gossip.publish(record, None, now);
        }
        self.after(who);
    }

    /// A node goes: with a word to its peers, or without.
    pub(crate) fn stop(&mut self, who: usize, leaves: bool) {
        if leaves {
            self.publish(who, true);
        }
        let Some(node) = self.up_mut(who) else { return };
        node.up = false;
        let links: Vec<usize> = std::mem::take(&mut node.links).into_keys().collect();
        node.dials.clear();
        for other in links {
            let wait = if leaves { 2 * Self::latency(who, other) } else { IDLE };
            self.at(self.ms + wait, Event::Lost { node: other, other: who });
        }
        let now = self.now();
        let neighbours: Vec<NodeId> = self.members.list.iter().map(|m| m.id).collect();
        if let Some(node) = self.nodes[who].as_mut() {
            for id in neighbours {
                node.gossip.neighbour_down(id, now);
            }
            while node.gossip.poll_transmit().is_some() {}
        }
    }

    /// A crashed node starts again with what it had.
    pub(crate) fn restart(&mut self, who: usize) {
        let Some(node) = self.nodes[who].take() else { return };
        let knows: Vec<_> = node.gossip.records().cloned().collect();
        self.start(who, node.vice, &knows);
        self.publish(who, false);
        if let Some(again) = self.nodes[who].as_mut() {
            again.traffic = node.traffic;
            again.side = node.side;
        }
    }

    /// Cuts the network into two halves, or joins them.
    pub(crate) fn divide(&mut self, divided: bool) {
        self.divided = divided;
        if !divided {
            return;
        }
        let mut lost = Vec::new();
        for (who, node) in self.nodes.iter().enumerate() {
            let Some(node) = node.as_ref().filter(|n| n.up) else { continue };
            let gone = |other: &&usize| self.up(**other).is_none_or(|o| o.side != node.side);
            lost.extend(node.links.keys().filter(gone).map(|other| (who, *other)));
        }
        for (node, other) in lost {
            self.at(self.ms + IDLE, Event::Lost { node, other });
        }
    }

    // ---- connections ------------------------------------------------------

    fn care_at(&mut self, who: usize, ms: u64) {
        if let Some(node) = self.nodes[who].as_mut()
            && ms < node.care
        {
            node.care = ms;
            self.at(ms, Event::Care(who));
        }
    }

    /// Chooses neighbours and dials those that are missing.
    fn care(&mut self, who: usize) {
        let (now, hurry) = (self.ms, self.ms < self.hurry_until);
        let Some(node) = self.nodes[who].as_mut().filter(|n| n.care <= now) else { return };
        node.care = u64::MAX;
        if !node.up {
            return;
        }
        let spacing = if hurry { 2000 } else { 10_000 };
        if node.stale && (now >= node.chosen_at + spacing || node.links.len() < 4) {
            node.stale = false;
            node.chosen_at = now;
            let list: Vec<NodeId> = node
                .known
                .iter()
                .filter(|other| *other != who)
                .map(|other| self.members.list[other].id)
                .collect();
            let (by_id, dials, links) = (&self.by_id, &node.dials, &node.links);
            let dead = |id: NodeId| {
                let other = by_id[&id];
                let failed = dials.get(&other).is_some_and(|d| d.failures > 0);
                failed && !links.contains_key(&other)
            };
            let own = self.members.list[who].id;
            let choice = neighbours::choose(own, &list, dead);
            node.gossip.prefer(|id| choice.contains(id));
            node.choice = choice;
            // As the daemon forgets who could not be reached after a while.
            node.dials.retain(|_, d| d.busy || now < d.next + UNREACHABLE);
        }
        let wanted: Vec<usize> = node.choice.all().map(|id| self.by_id[&id]).collect();
        let mut missing = false;
        let mut attempts = Vec::new();
        let mut under_way = node.dials.values().filter(|d| d.busy).count();
        let strangers = node.vice.is_some() && node.links.len() < 8;
        let some: Vec<usize> = if strangers { node.known.iter().collect() } else { Vec::new() };
        let stranger = (!some.is_empty()).then(|| some[self.random.below(some.len())]);
        for other in wanted.into_iter().chain(stranger) {
            let barred = node.barred.get(&other).is_some_and(|until| now < *until);
            if node.links.contains_key(&other) || other == who || barred {
                continue;
            }
            missing = true;
            let dial = node.dials.entry(other).or_default();
            if !dial.busy && dial.next <= now && under_way < DIALS {
                dial.busy = true;
                under_way += 1;
                attempts.push(other);
            }
        }
        let again = missing || node.stale || strangers;
        for other in attempts {
            let works = self.reaches(who, other)
                && self
                    .up(other)
                    .is_some_and(|o| o.barred.get(&who).is_none_or(|until| now >= *until));
            let wait = if works { 3 * Self::latency(who, other) } else { DIAL_TIMEOUT };
            self.at(now + wait, Event::Dialed { from: who, to: other, failed: !works });
        }
        if again {
            self.care_at(who, now + 1000);
        }
    }

    fn dialed(&mut self, from: usize, to: usize, failed: bool) {
        let now = self.now();
        let failed = failed || !self.reaches(from, to);
        let Some(node) = self.up_mut(from) else { return };
        if failed {
            let dial = node.dials.entry(to).or_default();
            let wait = (1000_u64 << dial.failures.min(10)).min(RETRY_MAX);
            *dial = Dial { busy: false, failures: dial.failures + 1, next: now.ms + wait };
            node.stale = true;
            self.care_at(from, now.ms + 100);
            return;
        }
        node.dials.remove(&to);
        if node.links.contains_key(&to) {
            return;
        }
        for (a, b) in [(from, to), (to, from)] {
            let id = self.members.list[b].id;
            if let Some(node) = self.up_mut(a) {
                node.links.insert(b, ());
                node.dials.remove(&b);
                node.links_changed = true;
                let preferred = node.choice.contains(id);
                node.gossip.neighbour_up(id, preferred, now);
            }
        }
        // Each said its descriptor when they met.
        for (a, b) in [(from, to), (to, from)] {
            let own = self.members.list[b].id;
            let hello = self.up(b).and_then(|n| n.gossip.get(Kind::Descriptor, &own.0).cloned());
            if let Some(record) = hello {
                self.deliver(b, a, Payload::Message(Message::Records(vec![record])));
            }
        }
        self.after(from);
        self.after(to);
    }

    fn lost(&mut self, node: usize, other: usize) {
        let now = self.now();
        let id = self.members.list[other].id;
        let Some(it) = self.up_mut(node) else { return };
        if it.links.remove(&other).is_none() {
            return;
        }
        it.links_changed = true;
        it.gossip.neighbour_down(id, now);
        let dial = it.dials.entry(other).or_default();
        dial.next = now.ms + 250;
        it.stale = true;
        self.care_at(node, now.ms + 250);
        self.after(node);
    }

    fn part(&mut self, node: usize, other: usize) {
        let wait = Self::latency(node, other);
        if let Some(it) = self.nodes[node].as_mut() {
            it.links.remove(&other);
            it.stale = true;
        }
        self.at(self.ms + wait, Event::Lost { node: other, other: node });
        self.care_at(node, self.ms + 100);
    }

    // ---- messages -----------------------------------------------------------

    /// Counts a message and puts it on the wire.
    pub(crate) fn send(&mut self, from: usize, to: usize, payload: Payload) {
        let (len, records) = match &payload {
            Payload::Message(message) => {
                let len = message.encoded_len() as u64;
                (len, if matches!(message, Message::Records(_)) { len } else { 0 })
            }
            Payload::Bytes(bytes) => (bytes.len() as u64, 0),
        };
        let len = len + FRAME;
        let wire = len + len.div_ceil(DATAGRAM_ROOM) * DATAGRAM;
        if let Some(node) = self.nodes[from].as_mut() {
            node.traffic.sent += wire;
            node.traffic.records += records;
            node.traffic.messages += 1;
        }
        let payload = match payload {
            Payload::Message(message) if self.through_bytes => Payload::Bytes(message.encode()),
            other => other,
        };
        let at = self.ms + Self::latency(from, to);
        self.at(at, Event::Deliver { from, to, payload });
    }

    fn deliver(&mut self, from: usize, to: usize, payload: Payload) {
        if !self.reaches(from, to) {
            return;
        }
        let now = self.now();
        let id = self.members.list[from].id;
        let Some(node) = self.nodes[to].as_mut() else { return };
        if !node.links.contains_key(&from) {
            return;
        }
        self.handled += 1;
        let message = match payload {
            Payload::Message(message) => Ok(message),
            Payload::Bytes(bytes) => Message::decode(&bytes),
        };
        if let Ok(message) = &message {
            let len = message.encoded_len() as u64 + FRAME;
            node.traffic.received += len + len.div_ceil(DATAGRAM_ROOM) * DATAGRAM;
        }
        let mut intake = Intake {
            members: &mut self.members,
            known: &mut node.known,
            revoked: Vec::new(),
            changed: false,
        };
        match message {
            Ok(message) => node.gossip.handle_message(id, message, now, &mut intake),
            Err(_) => node.gossip.malformed(id, now),
        }
        let (revoked, changed) = (intake.revoked, intake.changed);
        for who in revoked {
            let gone = self.members.list[who].id;
            let Some(node) = self.nodes[to].as_mut() else { return };
            node.gossip.forget(Kind::Descriptor, &gone.0, now);
            node.gossip.forget(Kind::LinkState, &gone.0, now);
            node.barred.insert(who, u64::MAX);
            if node.links.contains_key(&who) {
                node.gossip.neighbour_down(gone, now);
                self.part(to, who);
            }
        }
        if changed && let Some(node) = self.nodes[to].as_mut() {
            node.stale = true;
            let at = if self.ms < self.hurry_until || node.links.len() < 4 {
                now.ms
            } else {
                node.chosen_at + 10_000
            };
            self.care_at(to, at.max(now.ms + 50));
        }
        self.after(to);
    }

    /// Takes a node's output to the wire and notes when it is due.
    fn after(&mut self, who: usize) {
        loop {
            let Some(node) = self.nodes[who].as_mut() else { return };
            let Some((to, message)) = node.gossip.poll_transmit() else { break };
            let mute = node.vice == Some(Vice::Silent) && matches!(message, Message::Records(_));
            let to = self.by_id[&to];
            if !mute {
                self.send(who, to, Payload::Message(message));
            }
        }
        loop {
            let until = self.ms + BARRED;
            let Some(node) = self.nodes[who].as_mut() else { return };
            let Some(GossipEvent::CutOff { node: whom, .. }) = node.gossip.poll_event() else {
                break;
            };
            let other = self.by_id[&whom];
            let honest = self.nodes[other].as_ref().is_some_and(|n| n.vice.is_none());
            let node_is_honest = self.nodes[who].as_ref().is_some_and(|n| n.vice.is_none());
            if node_is_honest {
                self.cut_offs[usize::from(honest)] += 1;
            }
            if let Some(node) = self.nodes[who].as_mut() {
                node.barred.insert(other, until);
            }
            self.part(who, other);
        }
        let Some(node) = self.nodes[who].as_mut() else { return };
        let due = node.gossip.poll_timeout().max(self.ms + 1);
        if node.up && due < node.wake {
            node.wake = due;
            self.at(due, Event::Wake(who));
        }
    }

    fn wake(&mut self, who: usize) {
        let now = self.now();
        // An earlier one may have been made since; this one is of no use then.
        let Some(node) = self.nodes[who].as_mut().filter(|n| n.wake <= now.ms) else { return };
        node.wake = u64::MAX;
        if !node.up {
            return;
        }
        if node.gossip.poll_timeout() <= now.ms {
            node.gossip.handle_timeout(now);
        }
        self.after(who);
    }

    /// What nodes say about their links: when those changed, as often as the
    /// size of the network allows.
    fn tell_links(&mut self) {
        let now = self.now();
        for who in 0..self.nodes.len() {
            let Some(node) = self.up_mut(who) else { continue };
            let members = node.gossip.len() / 2;
            let pause = 1000 * link_state_pause(members) as i64;
            if node.links_changed && now.ms as i64 >= node.told_links + pause {
                node.told_links = now.ms as i64;
                // Round trips wander, so there is always something to say.
                node.links_changed = true;
                let links: Vec<usize> = node.links.keys().copied().collect();
                let record = self.members.link_state(who, &links, now);
                self.tell(who, record);
            }
        }
    }

    // ---- time -----------------------------------------------------------------

    /// Runs to a moment, in milliseconds.
    pub(crate) fn run_to(&mut self, end: u64) {
        while let Some(entry) = self.events.first_entry() {
            let at = *entry.key();
            if at > end {
                break;
            }
            let second = self.ms / 1000;
            self.ms = at;
            let list = entry.remove();
            for event in list {
                match event {
                    Event::Deliver { from, to, payload } => self.deliver(from, to, payload),
                    Event::Wake(who) => self.wake(who),
                    Event::Care(who) => self.care(who),
                    Event::Dialed { from, to, failed } => self.dialed(from, to, failed),
                    Event::Lost { node, other } => self.lost(node, other),
                }
            }
            if self.ms / 1000 != second && self.link_states {
                self.tell_links();
            }
        }
        self.ms = end;
    }

    /// Forgets what was counted.
    pub(crate) fn reset_traffic(&mut self) {
        for node in self.nodes.iter_mut().flatten() {
            node.traffic = Traffic::default();
        }
    }

    /// Everybody honest that is up, and on `side` if given.
    pub(crate) fn honest(&self, side: Option<bool>) -> Known {
        let mut set = Known::new(self.nodes.len());
        for who in self.all_up(true) {
            let here = side.is_none_or(|s| self.nodes[who].as_ref().is_some_and(|n| n.side == s));
            set.set(who, here);
        }
        set
    }
}

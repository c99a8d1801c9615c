//! The state machine: what comes in, what goes out, and when.
//!
//! Order of use: any of the `handle_…`, `publish`, `neighbour_…` functions, then
//! [`Gossip::poll_transmit`] and [`Gossip::poll_event`] until they are empty,
//! then [`Gossip::poll_timeout`] tells when to call [`Gossip::handle_timeout`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use warren_types::NodeId;

use super::limits::{Cause, Changes, Counters};
use super::message::{FULL, Item, MAX_ITEMS, Message, Range};
use super::neighbour::Neighbour;
use super::record::{Kind, Record, Tag, Time};
use super::store::Store;
use super::wants::Wants;

/// Records a neighbour is asked for at a time.
const WINDOW: usize = 96;
/// Neighbours that are told of news of others, beyond the preferred ones.
const MAX_ACTIVE: usize = 12;
/// How long news waits for more of it, milliseconds, when it is quiet,
const BATCH_MS: u64 = 100;
/// and between two announcements, which is also how long link states wait.
const BUSY_BATCH_MS: u64 = 1000;
/// Between comparisons with one neighbour after the other, milliseconds, on
/// average.
const REPAIR_MS: u64 = 30_000;
/// Up to this many urgent records are sent to a new neighbour unasked.
const URGENT_AT_ONCE: usize = 32;
/// Bytes of records and what leads to them.
const MAX_MEMORY: usize = 64 * 1024 * 1024;

/// Tells whether records are genuine.
pub trait Verifier {
    /// Checks a record that is newer than what is known, and takes it in
    /// elsewhere if it is genuine. The header must be what the body says.
    fn verify(&mut self, record: &Record, now: Time) -> Verdict;
}

/// What a [`Verifier`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Genuine: keep it and pass it on.
    Accept,
    /// Not acceptable here and now, though an honest neighbour may have
    /// accepted it (its clock differs, it does not know of a revocation yet).
    Ignore,
    /// No honest node passes it on: the signature or the form is wrong.
    Forged,
}

/// What the owner of the machine has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Close the connection to this neighbour and let it wait before the next.
    /// It is no neighbour any more.
    CutOff {
        /// The neighbour.
        node: NodeId,
        /// What it did.
        cause: Cause,
    },
}

/// News that waits to be announced: its version, and who knows it.
type News = BTreeMap<Tag, (u64, Vec<NodeId>)>;

/// The gossip of one node.
#[derive(Debug)]
pub struct Gossip {
    own: NodeId,
    pub(super) store: Store,
    pub(super) neighbours: BTreeMap<NodeId, Neighbour>,
    pub(super) wants: Wants,
    news: News,
    /// When it is announced, and when that was done last.
    news_due: Option<u64>,
    announced: u64,
    changes: Changes,
    out: VecDeque<(NodeId, Message)>,
    events: VecDeque<Event>,
    next_repair: u64,
    next_tidy: u64,
    random: u64,
    pub(super) counters: Counters,
}

impl Gossip {
    /// A node without records and neighbours. `seed`: any random number.
    pub fn new(own: NodeId, seed: u64, now: Time) -> Self {
        let mut gossip = Self {
            own,
            store: Store::new(MAX_MEMORY),
            neighbours: BTreeMap::new(),
            wants: Wants::default(),
            news: News::new(),
            news_due: None,
            announced: 0,
            changes: Changes::default(),
            out: VecDeque::new(),
            events: VecDeque::new(),
            next_repair: 0,
            next_tidy: now.ms + REPAIR_MS,
            random: seed,
            counters: Counters::default(),
        };
        gossip.next_repair = now.ms + gossip.between_repairs();
        gossip
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): for jitter and choice, no secrets.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn between_repairs(&mut self) -> u64 {
        REPAIR_MS / 2 + self.random() % REPAIR_MS
    }

    // ---- records ---------------------------------------------------------

    /// Takes back a record from disk: verified, told to nobody.
    pub fn restore(&mut self, record: Arc<Record>) {
        if self.store.is_news(&record) && self.store.has_room(&record) {
            self.store.insert(record);
        }
    }

    /// Spreads a record that was verified elsewhere: our own (`from` is `None`),
    /// or one that came outside of gossip. False when it is not news.
    pub fn publish(&mut self, record: Arc<Record>, from: Option<NodeId>, now: Time) -> bool {
        let news = self.store.is_news(&record) && self.store.has_room(&record);
        if news {
            self.accept(record, from, now);
        }
        news
    }

    /// Takes a record away (its subject was revoked, say) and does not take it
    /// or an older one back.
    pub fn forget(&mut self, kind: Kind, subject: &[u8; 32], now: Time) {
        self.store.end(Tag::new(kind, subject), now.unix);
    }

    /// Whose gossip this is.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// One record.
    pub fn get(&self, kind: Kind, subject: &[u8; 32]) -> Option<&Arc<Record>> {
        self.store.get(Tag::new(kind, subject))
    }

    /// All records, in no order that means anything.
    pub fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.store.all()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// True without any record.
    pub fn is_empty(&self) -> bool {
        self.store.len() == 0
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Memory of records and of all other state, bytes.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.store.memory()
            + self.wants.memory()
            + self.changes.memory()
            + self.news.len() * (size_of::<(Tag, (u64, Vec<NodeId>))>() + 64)
            + self.neighbours.values().map(Neighbour::memory).sum::<usize>()
    }

    // ---- neighbours ------------------------------------------------------

    /// A connection to `node` is up. `preferred`: the choice of neighbours
    /// wants it; others are told less once there are many.
    pub fn neighbour_up(&mut self, node: NodeId, preferred: bool, now: Time) {
        self.neighbour_down(node, now);
        self.neighbours.insert(node, Neighbour::new(preferred, now.ms));
        self.choose_active();
        let urgent: Vec<_> = self.store.range(Range::all(0)).cloned().collect();
        if !urgent.is_empty() && urgent.len() <= URGENT_AT_ONCE {
            self.send_records(node, urgent);
        }
        // One side is enough: who is asked answers where its sums differ.
        if self.own < node {
            self.compare_when_calm(node);
        }
    }

    /// The choice of neighbours changed.
    pub fn prefer(&mut self, wanted: impl Fn(NodeId) -> bool) {
        for (node, neighbour) in &mut self.neighbours {
            neighbour.preferred = wanted(*node);
        }
        self.choose_active();
    }

    /// The connection to `node` is gone.
    pub fn neighbour_down(&mut self, node: NodeId, now: Time) {
        if self.neighbours.remove(&node).is_none() {
            return;
        }
        self.choose_active();
        self.out.retain(|(to, _)| *to != node);
        self.ask_others(node, now);
    }

    /// What `node` offered is asked of others who offer it, or wanted no more.
    fn ask_others(&mut self, node: NodeId, now: Time) {
        let mut again = Vec::new();
        for tag in self.wants.offered_by(node) {
            if let Some(next) = self.wants.settle(node, tag, self.store.known(tag)) {
                self.requeue(next, tag);
                again.push(next);
            }
        }
        again.sort_unstable();
        again.dedup();
        for node in again {
            self.ask(node, now);
        }
    }

    fn choose_active(&mut self) {
        let mut room = MAX_ACTIVE;
        for neighbour in self.neighbours.values_mut() {
            neighbour.active = neighbour.preferred || room > 0;
            if neighbour.active {
                room = room.saturating_sub(1);
            }
        }
    }

    /// A neighbour sent something that does not parse.
    pub fn malformed(&mut self, from: NodeId, now: Time) {
        self.fault(from, Cause::Malformed, now);
    }

    pub(super) fn fault(&mut self, from: NodeId, cause: Cause, now: Time) {
        let Some(neighbour) = self.neighbours.get_mut(&from) else { return };
        if let Err(cause) = neighbour.fault(cause, now.ms) {
            self.cut_off(from, cause, now);
        }
    }

    fn exceeded(&mut self, from: NodeId, now: Time) {
        self.counters.limited += 1;
        let Some(neighbour) = self.neighbours.get_mut(&from) else { return };
        if let Err(cause) = neighbour.exceeded(now.ms) {
            self.cut_off(from, cause, now);
        }
    }

    fn cut_off(&mut self, node: NodeId, cause: Cause, now: Time) {
        self.neighbour_down(node, now);
        self.events.push_back(Event::CutOff { node, cause });
    }

    // ---- input -----------------------------------------------------------

    /// Takes in a message.
    pub fn handle_message(
        &mut self,
        from: NodeId,
        message: Message,
        now: Time,
        verifier: &mut impl Verifier,
    ) {
        match message {
            Message::Announce(items) => self.on_announce(from, &items, now),
            Message::Want(tags) => self.on_want(from, tags, now),
            Message::Records(records) => self.on_records(from, records, now, verifier),
            Message::Sums(sums) => self.on_sums(from, &sums, now),
            Message::List { range, items } => self.on_list(from, range, &items, now),
            Message::Unknown(_) => {}
        }
        self.ask(from, now);
        self.catch_up(now);
    }

    /// False when `from` is no neighbour or has said too much; counted then.
    pub(super) fn may_talk(&mut self, from: NodeId, items: usize, now: Time) -> bool {
        let Some(neighbour) = self.neighbours.get_mut(&from) else { return false };
        let may = neighbour.talk.take(items + 1, now.ms);
        if !may {
            self.exceeded(from, now);
        }
        may
    }

    /// Sends something a neighbour caused, if its allowance permits.
    pub(super) fn reply(&mut self, to: NodeId, message: Message, now: Time) {
        let Some(neighbour) = self.neighbours.get_mut(&to) else { return };
        if neighbour.serve.take(message.encoded_len(), now.ms) {
            self.out.push_back((to, message));
        } else {
            self.exceeded(to, now);
        }
    }

    pub(super) fn send(&mut self, to: NodeId, message: Message) {
        self.out.push_back((to, message));
    }

    fn on_announce(&mut self, from: NodeId, items: &[Item], now: Time) {
        if self.may_talk(from, items.len(), now) {
            for item in items {
                self.offer(from, *item, now);
            }
        }
    }

    /// A neighbour has a record.
    pub(super) fn offer(&mut self, from: NodeId, item: Item, now: Time) {
        let Item { tag, version } = item;
        if self.store.known(tag) >= Some(version) {
            self.is_known_by(tag, version, from);
            return;
        }
        let Some(kind) = tag.kind() else { return };
        let limited = !kind.is_urgent() && !self.changes.may(tag, self.store.len(), now.ms);
        if limited || Record::too_far_ahead(version >> 16, now.unix) {
            return;
        }
        let Some(neighbour) = self.neighbours.get_mut(&from) else { return };
        if neighbour.is_muted(now.ms) {
            neighbour.behind = true;
            return;
        }
        neighbour.behind |= self.wants.is_full();
        if !neighbour.was_refused(tag, version, now.ms)
            && self.wants.offer(from, tag, version)
            && !neighbour.offered(tag)
        {
            self.wants.settle(from, tag, Some(version));
        }
    }

    /// `node` need not be told.
    fn is_known_by(&mut self, tag: Tag, version: u64, node: NodeId) {
        if let Some((ours, known_by)) = self.news.get_mut(&tag)
            && *ours <= version
            && !known_by.contains(&node)
        {
            known_by.push(node);
        }
    }

    /// Asks a neighbour for what it offered, as far as its window goes.
    fn ask(&mut self, node: NodeId, now: Time) {
        let Some(neighbour) = self.neighbours.get_mut(&node) else { return };
        let mut tags = Vec::new();
        while neighbour.asked < WINDOW
            && let Some(tag) = neighbour.queue.pop_front()
        {
            if self.wants.ask(node, tag, self.store.known(tag), now.ms) {
                neighbour.asked += 1;
                tags.push(tag);
            }
        }
        if !tags.is_empty() {
            self.send(node, Message::Want(tags));
        }
    }

    fn requeue(&mut self, node: NodeId, tag: Tag) {
        if let Some(neighbour) = self.neighbours.get_mut(&node) {
            neighbour.queue.push_front(tag);
        }
    }

    fn on_want(&mut self, from: NodeId, tags: Vec<Tag>, now: Time) {
        for tag in tags {
            let Some(neighbour) = self.neighbours.get_mut(&from) else { return };
            if !neighbour.owe(tag) {
                self.exceeded(from, now);
            }
        }
        self.serve(from, now);
    }

    /// Sends what a neighbour asked for, as far as its allowance goes.
    fn serve(&mut self, node: NodeId, now: Time) {
        let Some(neighbour) = self.neighbours.get_mut(&node) else { return };
        let mut records = Vec::new();
        while let Some(tag) = neighbour.owed.front().copied() {
            let record = self.store.get(tag).cloned();
            if let Some(record) = &record
                && !neighbour.serve.take(record.body().len() + 60, now.ms)
            {
                break;
            }
            neighbour.owed.pop_front();
            records.extend(record);
        }
        self.send_records(node, records);
    }

    fn send_records(&mut self, to: NodeId, records: Vec<Arc<Record>>) {
        let (mut part, mut size) = (Vec::new(), 0);
        for record in records {
            size += record.body().len() + 60;
            part.push(record);
            if size >= FULL {
                self.send(to, Message::Records(std::mem::take(&mut part)));
                size = 0;
            }
        }
        if !part.is_empty() {
            self.send(to, Message::Records(part));
        }
    }

    fn on_records(
        &mut self,
        from: NodeId,
        records: Vec<Arc<Record>>,
        now: Time,
        verifier: &mut impl Verifier,
    ) {
        for record in records {
            let tag = record.tag();
            let Some(neighbour) = self.neighbours.get_mut(&from) else { return };
            if self.wants.is_asked(from, tag) {
                neighbour.asked = neighbour.asked.saturating_sub(1);
                neighbour.delivered();
            } else if !neighbour.push.take(record.memory(), now.ms) {
                self.exceeded(from, now);
                continue;
            }
            self.consider(from, record, now, verifier);
            // A better one may be offered by somebody else.
            if let Some(next) = self.wants.settle(from, tag, self.store.known(tag)) {
                self.requeue(next, tag);
                self.ask(next, now);
            }
        }
    }

    fn consider(
        &mut self,
        from: NodeId,
        record: Arc<Record>,
        now: Time,
        verifier: &mut impl Verifier,
    ) {
        let (tag, version) = (record.tag(), record.version());
        if !self.store.is_news(&record) {
            self.counters.stale += 1;
            self.is_known_by(tag, version, from);
            return;
        }
        let own = record.subject() == &self.own.0;
        let urgent = record.kind().is_urgent();
        if !own && !urgent && !self.changes.may(tag, self.store.len(), now.ms) {
            if record.subject() == &from.0 {
                // It knows better than to say that much of itself.
                self.exceeded(from, now);
            } else {
                self.counters.limited += 1;
            }
            return;
        }
        let acceptable = !Record::too_far_ahead(record.sequence(), now.unix)
            && record.expires() > now.unix
            && self.store.has_room(&record);
        let verdict = if acceptable { verifier.verify(&record, now) } else { Verdict::Ignore };
        match verdict {
            Verdict::Accept => {
                self.counters.accepted += 1;
                self.accept(record, Some(from), now);
            }
            Verdict::Ignore => {
                self.counters.ignored += 1;
                if let Some(neighbour) = self.neighbours.get_mut(&from) {
                    neighbour.refuse(tag, version, now.ms);
                }
            }
            Verdict::Forged => {
                self.counters.forged += 1;
                if let Some(neighbour) = self.neighbours.get_mut(&from) {
                    neighbour.refuse(tag, version, now.ms);
                }
                self.fault(from, Cause::Forged, now);
            }
        }
    }

    /// Keeps a genuine, newer record and tells others.
    fn accept(&mut self, record: Arc<Record>, from: Option<NodeId>, now: Time) {
        let (tag, kind, version) = (record.tag(), record.kind(), record.version());
        self.store.insert(record.clone());
        if from.is_some() && !kind.is_urgent() {
            self.changes.note(tag, self.store.len(), now.ms);
        }
        let mut known_by = self.wants.offerers(tag);
        known_by.extend(from);
        self.news.remove(&tag);
        if kind.is_urgent() || from.is_none() {
            let all = kind != Kind::LinkState;
            let tell =
                |(node, n): &(&NodeId, &Neighbour)| (all || n.active) && !known_by.contains(node);
            let list: Vec<_> = self.neighbours.iter().filter(tell).map(|(n, _)| *n).collect();
            for node in list {
                self.send(node, Message::Records(vec![record.clone()]));
            }
            return;
        }
        let wait = if kind == Kind::LinkState { BUSY_BATCH_MS } else { BATCH_MS };
        let due = (now.ms + wait).max(self.announced + BUSY_BATCH_MS);
        self.news_due = Some(self.news_due.map_or(due, |other| other.min(due)));
        self.news.insert(tag, (version, known_by));
    }

    /// Announces the news there is.
    fn announce(&mut self, now: Time) {
        self.news_due = None;
        self.announced = now.ms;
        let news = std::mem::take(&mut self.news);
        let active: Vec<_> =
            self.neighbours.iter().filter(|(_, n)| n.active).map(|(node, _)| *node).collect();
        for node in active {
            let items: Vec<Item> = news
                .iter()
                .filter(|(_, (_, known_by))| !known_by.contains(&node))
                .map(|(tag, (version, _))| Item { tag: *tag, version: *version })
                .collect();
            for part in items.chunks(MAX_ITEMS) {
                self.send(node, Message::Announce(part.to_vec()));
            }
        }
    }

    // ---- time and output -------------------------------------------------

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.news_due.is_some_and(|due| due <= now.ms) {
            self.announce(now);
        }
        while let Some((node, tag)) = self.wants.overdue(now.ms) {
            self.counters.unanswered += 1;
            if let Some(neighbour) = self.neighbours.get_mut(&node) {
                neighbour.asked = neighbour.asked.saturating_sub(1);
                if neighbour.let_down(now.ms) {
                    neighbour.asked = 0;
                    self.ask_others(node, now);
                    continue;
                }
            }
            if let Some(next) = self.wants.settle(node, tag, self.store.known(tag)) {
                self.requeue(next, tag);
                self.ask(next, now);
            }
            self.ask(node, now);
        }
        let waiting: Vec<_> =
            self.neighbours.iter().filter(|(_, n)| !n.owed.is_empty()).map(|(n, _)| *n).collect();
        for node in waiting {
            self.serve(node, now);
        }
        self.store.expire(now.unix);
        if now.ms >= self.next_repair {
            self.next_repair = now.ms + self.between_repairs();
            let turn = self.random() as usize % self.neighbours.len().max(1);
            if let Some(node) = self.neighbours.keys().nth(turn).copied() {
                self.compare_when_calm(node);
            }
        }
        if now.ms >= self.next_tidy {
            self.next_tidy = now.ms + REPAIR_MS;
            self.changes.forget(self.store.len(), now.ms);
        }
        self.catch_up(now);
    }

    /// The next message, and to whom.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Message)> {
        self.out.pop_front()
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Gossip::handle_timeout`] is due, in the milliseconds of
    /// [`Time::ms`]. May be early.
    pub fn poll_timeout(&self) -> u64 {
        let served = self.neighbours.values().filter(|n| !n.owed.is_empty());
        let serve = served.map(|n| n.serve.ready_at()).min();
        [self.news_due, self.wants.next_deadline(), serve]
            .into_iter()
            .flatten()
            .fold(self.next_repair.min(self.next_tidy), u64::min)
    }
}

//! A network of engines in memory on a virtual clock: lossy, slow, reordering
//! and duplicating as asked, and the same on every run with the same seed. Each
//! node has a stand-in for the workers that seals, opens, checks the replay
//! window and tells the engine what workers tell it.

#![allow(dead_code, reason = "each test binary uses a part of the harness")]
#![allow(
    clippy::disallowed_methods,
    reason = "the simulation starts at some Instant and may take its seed from the environment"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use warren_proto::engine::{Engine, EngineConfig, LinkEvent, Now, PeerConfig, PeerStats, Transmit};
use warren_proto::link::frame::{Tally, is_frame};
use warren_proto::link::peer::PeerLink;
use warren_proto::link::session::{HEADER_LEN, Header, OVERHEAD};
use warren_proto::link::tables::Tables;
use warren_proto::noise::{StaticKey, mac1_ok};
use warren_types::{DropCounters, DropReason, LinkPublicKey, LinkSecretKey, PresharedKey, Suite};

#[path = "../../src/test_rng.rs"]
mod test_rng;
pub(crate) use test_rng::TestRng;

/// The seed of a randomised test: from `WARREN_TEST_SEED`, else the clock;
/// printed, so that a failure can be repeated.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("WARREN_TEST_SEED") {
        Ok(text) => text.parse().expect("WARREN_TEST_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_nanos() as u64
        }
    };
    println!("WARREN_TEST_SEED={seed}");
    seed
}

/// What the network does to datagrams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Share lost, 0 to 1.
    pub(crate) loss: f64,
    /// Share delivered twice.
    pub(crate) duplicate: f64,
    pub(crate) delay: Duration,
    /// Added to the delay at random, so datagrams overtake one another.
    pub(crate) jitter: Duration,
    /// Largest UDP payload that passes with DF set.
    pub(crate) payload_limit: usize,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            delay: Duration::from_millis(5),
            jitter: Duration::ZERO,
            payload_limit: 65_507,
        }
    }
}

/// A datagram under way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) data: Vec<u8>,
}

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) tables: Arc<Tables>,
    pub(crate) drops: Arc<DropCounters>,
    pub(crate) address: SocketAddr,
    pub(crate) key: LinkPublicKey,
    /// Wall clock minus the world's.
    pub(crate) clock_skew_s: i64,
    pub(crate) inbox: Vec<Vec<u8>>,
    pub(crate) events: Vec<(Duration, LinkEvent)>,
    /// Datagrams sent, frames of the engine and traffic alike.
    pub(crate) sent: u64,
    pub(crate) timeouts: u64,
    rng: TestRng,
}

/// Says which datagrams vanish.
pub(crate) type Censor = Box<dyn FnMut(&Datagram) -> bool>;

pub(crate) struct World {
    pub(crate) weather: Weather,
    /// Handshake messages said to be waiting behind each one that arrives.
    pub(crate) queued: usize,
    pub(crate) nodes: Vec<Node>,
    pub(crate) epoch: Instant,
    pub(crate) now: Duration,
    /// Copies of all datagrams sent, if wanted.
    pub(crate) tape: Option<Vec<Datagram>>,
    /// Says which datagrams are to vanish.
    pub(crate) censor: Option<Censor>,
    flying: BinaryHeap<Reverse<(Duration, u64, Datagram)>>,
    order: u64,
    pub(crate) rng: TestRng,
}

pub(crate) fn secret(n: u8) -> LinkSecretKey {
    LinkSecretKey::from_bytes([n; 32])
}

pub(crate) fn public(n: u8) -> LinkPublicKey {
    StaticKey::new(&secret(n)).public()
}

pub(crate) fn peer_config(key: LinkPublicKey, suite: Suite) -> PeerConfig {
    PeerConfig {
        key,
        suite,
        is_warren: true,
        psk: None,
        psk_required: false,
        endpoint: None,
        allowed: Vec::new(),
        persistent_keepalive: None,
        hold: false,
    }
}

impl World {
    /// `n` nodes that do not know each other.
    pub(crate) fn new(n: u8, seed: u64) -> Self {
        let epoch = Instant::now();
        let mut world = Self {
            weather: Weather::default(),
            queued: 0,
            nodes: Vec::new(),
            epoch,
            now: Duration::ZERO,
            tape: None,
            censor: None,
            flying: BinaryHeap::new(),
            order: 0,
            rng: TestRng::new(seed),
        };
        for i in 0..n {
            let node = world.make_node(i, seed);
            world.nodes.push(node);
        }
        world
    }

    fn make_node(&self, i: u8, seed: u64) -> Node {
        let key = StaticKey::new(&secret(i + 1));
        let tables = Arc::new(Tables::default());
        let drops = Arc::new(DropCounters::default());
        let config = EngineConfig::new(key.clone(), Vec::new(), 1420, drops.clone());
        Node {
            engine: Engine::new(config, tables.clone(), self.epoch),
            tables,
            drops,
            address: SocketAddr::new([192, 0, 2, i + 1].into(), 51820),
            key: key.public(),
            clock_skew_s: 0,
            inbox: Vec::new(),
            events: Vec::new(),
            sent: 0,
            timeouts: 0,
            rng: TestRng::new(seed ^ u64::from(i + 1) << 32 ^ self.now.as_nanos() as u64),
        }
    }

    /// Node `i` loses all state, as after a crash; it must be told its peers
    /// again.
    pub(crate) fn restart(&mut self, i: usize, seed: u64) {
        let mut node = self.make_node(i as u8, seed);
        node.clock_skew_s = self.nodes[i].clock_skew_s;
        node.address = self.nodes[i].address;
        self.nodes[i] = node;
    }

    pub(crate) fn now_for(&self, i: usize) -> Now {
        let unix = 1_800_000_000 + self.now.as_secs() as i64 + self.nodes[i].clock_skew_s;
        Now {
            instant: self.epoch + self.now,
            unix: Duration::new(unix as u64, self.now.subsec_nanos()),
        }
    }

    /// Makes `b` a peer of `a`; `change` adapts the usual configuration.
    pub(crate) fn introduce(
        &mut self,
        a: usize,
        b: usize,
        suite: Suite,
        change: impl Fn(&mut PeerConfig),
    ) {
        let mut config = peer_config(self.nodes[b].key, suite);
        config.endpoint = Some(self.nodes[b].address);
        change(&mut config);
        let now = self.now_for(a);
        let Node { engine, rng, .. } = &mut self.nodes[a];
        engine.upsert_peer(config, now, rng);
        self.drain(a);
    }

    /// Both ways.
    pub(crate) fn pair(&mut self, suite: Suite) {
        self.introduce(0, 1, suite, |_| {});
        self.introduce(1, 0, suite, |_| {});
    }

    pub(crate) fn link(&self, a: usize, b: usize) -> Arc<PeerLink> {
        self.nodes[a].engine.link(&self.nodes[b].key).expect("introduced").clone()
    }

    pub(crate) fn stats(&self, a: usize, b: usize) -> PeerStats {
        self.nodes[a].engine.stats(&self.nodes[b].key, self.now_for(a)).expect("introduced")
    }

    /// Calls into node `i`'s engine and sends what it answers.
    pub(crate) fn with<T>(
        &mut self,
        i: usize,
        work: impl FnOnce(&mut Engine, Now, &mut TestRng) -> T,
    ) -> T {
        let now = self.now_for(i);
        let Node { engine, rng, .. } = &mut self.nodes[i];
        let result = work(engine, now, rng);
        self.drain(i);
        result
    }

    /// What a worker of `a` does with a packet for `b`.
    pub(crate) fn send(&mut self, a: usize, b: usize, packet: Vec<u8>) {
        let link = self.link(a, b);
        let now = self.now_for(a);
        let node = &mut self.nodes[a];
        let now_ms = node.engine.now_ms(now.instant);
        let session = link.send.load_full().filter(|s| now_ms < s.created_ms + 180_000);
        let endpoint = link.endpoint.load().as_deref().copied();
        if let (Some(session), Some(to)) = (session, endpoint)
            && let Some(counter) = session.reserve(1)
        {
            let len = packet.len();
            let mut message = vec![0; OVERHEAD + len];
            message[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&packet);
            session.seal(&mut message, 0, counter);
            link.note_sent(1, len as u64, now_ms);
            let transmit = Transmit { to, data: message, dont_fragment: true };
            return self.fly(a, transmit);
        }
        link.handshake_wanted.store(true, Ordering::Relaxed);
        self.with(a, |engine, now, rng| engine.handle_staged(&link, [packet], now, rng));
    }

    fn drain(&mut self, i: usize) {
        while let Some(transmit) = self.nodes[i].engine.poll_transmit() {
            self.fly(i, transmit);
        }
        let now = self.now;
        let node = &mut self.nodes[i];
        while let Some(event) = node.engine.poll_event() {
            node.events.push((now, event));
        }
    }

    fn fly(&mut self, i: usize, transmit: Transmit) {
        self.nodes[i].sent += 1;
        let from = self.nodes[i].address;
        let datagram = Datagram { from, to: transmit.to, data: transmit.data };
        if let Some(tape) = &mut self.tape {
            tape.push(datagram.clone());
        }
        if self.censor.as_mut().is_some_and(|censor| censor(&datagram)) {
            return;
        }
        if transmit.dont_fragment && datagram.data.len() > self.weather.payload_limit {
            return;
        }
        let copies = 1 + u32::from(self.chance(self.weather.duplicate));
        for _ in 0..copies {
            if !self.chance(self.weather.loss) {
                self.inject(datagram.clone());
            }
        }
    }

    /// Lets a datagram arrive after the usual delay.
    pub(crate) fn inject(&mut self, datagram: Datagram) {
        let jitter = self.weather.jitter.mul_f64(self.share());
        self.order += 1;
        let at = self.now + self.weather.delay + jitter;
        self.flying.push(Reverse((at, self.order, datagram)));
    }

    fn share(&mut self) -> f64 {
        use rand_core::RngCore;
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.share() < share
    }

    /// What a worker of the addressed node does with a datagram.
    fn arrive(&mut self, datagram: Datagram) {
        let Some(i) = self.nodes.iter().position(|node| node.address == datagram.to) else {
            return;
        };
        match datagram.data.first() {
            Some(4 | 0x14) => self.open(i, &datagram),
            Some(1..=3 | 0x11..=0x13) => {
                let node = &self.nodes[i];
                let ours = mac1_ok(&node.engine.mac_key(), &datagram.data)
                    || node.tables.other_mac1_ok(&datagram.data);
                if !ours {
                    return self.nodes[i].drops.count(DropReason::BadMac);
                }
                let queued = self.queued;
                self.with(i, |engine, now, rng| {
                    engine.handle_handshake(datagram.from, &datagram.data, queued, now, rng);
                });
            }
            _ => self.nodes[i].drops.count(DropReason::UnknownType),
        }
    }

    fn open(&mut self, i: usize, datagram: &Datagram) {
        let now_ms = self.nodes[i].engine.now_ms(self.epoch + self.now);
        let node = &mut self.nodes[i];
        let drop_for = |reason| node.drops.count(reason);
        let Some(header) = Header::parse(&datagram.data) else {
            return drop_for(DropReason::Malformed);
        };
        let session = node.tables.session(header.receiver).filter(|s| s.suite() == header.suite);
        let Some(session) = session else {
            return drop_for(DropReason::UnknownSession);
        };
        if now_ms >= session.created_ms + 180_000 {
            return drop_for(DropReason::SessionExpired);
        }
        if !session.replay.lock().unwrap().would_accept(header.counter) {
            return drop_for(DropReason::Replay);
        }
        let mut plain = vec![0; datagram.data.len() - OVERHEAD];
        if session.open_into(&header, &datagram.data, &mut plain).is_err() {
            return drop_for(DropReason::BadTag);
        }
        assert!(session.replay.lock().unwrap().accept(header.counter));
        let link = session.peer.clone();
        link.last_rx_ms.store(now_ms, Ordering::Relaxed);
        if !session.confirmed.swap(true, Ordering::Relaxed) {
            self.with(i, |engine, now, rng| engine.handle_confirmed(&session, now, rng));
        }
        link.note_tally(Tally::of(&plain));
        if link.heard_from(datagram.from) {
            let to = datagram.from;
            self.with(i, |engine, now, rng| engine.handle_roamed(&link, to, now, rng));
        }
        if plain.is_empty() {
            return;
        }
        if is_frame(&plain) {
            let from = datagram.from;
            self.with(i, |engine, now, rng| {
                engine.handle_link_frame(&link, from, &plain, now, rng);
            });
            return;
        }
        link.note_received(plain.len() as u64, now_ms);
        self.nodes[i].inbox.push(plain);
    }

    /// Does the next thing that is due before `until`; false when nothing is.
    fn step(&mut self, until: Duration) -> bool {
        let arrival = self.flying.peek().map(|Reverse((at, _, _))| *at);
        let epoch = self.epoch;
        let timer = (0..self.nodes.len())
            .filter_map(|i| {
                let (at, _) = self.nodes[i].engine.poll_timeout()?;
                Some((at.saturating_duration_since(epoch), i))
            })
            .min();
        let next = match (arrival, timer) {
            (None, None) => return false,
            (Some(at), None) => at,
            (None, Some((at, _))) => at,
            (Some(a), Some((t, _))) => a.min(t),
        };
        if next > until {
            return false;
        }
        self.now = self.now.max(next);
        if arrival.is_some_and(|at| at <= next) {
            if let Some(Reverse((_, _, datagram))) = self.flying.pop() {
                self.arrive(datagram);
            }
        } else if let Some((_, i)) = timer {
            self.nodes[i].timeouts += 1;
            self.with(i, |engine, now, rng| engine.handle_timeout(now, rng));
        }
        true
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Lets time pass until `done`, at most `limit`; gives the time it took.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let start = self.now;
        loop {
            if done(self) {
                return Some(self.now - start);
            }
            if !self.step(start + limit) {
                self.now = start + limit;
                return done(self).then_some(limit);
            }
        }
    }

    pub(crate) fn happened(&self, i: usize, which: impl Fn(&LinkEvent) -> bool) -> usize {
        self.nodes[i].events.iter().filter(|(_, event)| which(event)).count()
    }

    pub(crate) fn sessions(&self, i: usize) -> usize {
        self.happened(i, |event| matches!(event, LinkEvent::SessionEstablished { .. }))
    }
}

/// An inner packet that looks like IPv4 and carries a number.
pub(crate) fn packet(n: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x45; len.max(8)];
    bytes[4..8].copy_from_slice(&n.to_le_bytes());
    bytes
}

pub(crate) fn number(packet: &[u8]) -> u32 {
    u32::from_le_bytes(packet[4..8].try_into().unwrap())
}

pub(crate) fn psk(n: u8) -> Option<PresharedKey> {
    Some(PresharedKey::from_bytes([n; 32]))
}

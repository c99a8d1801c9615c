//! Keeps the queue before a path's narrowest link short while something waits
//! for it: active queue management (RFC 7567) by the client alone.
//!
//! In: round trips to the exit, and every inner packet either way. Out: which
//! packets their senders are to be slowed down by, with a mark (RFC 3168) or by
//! their loss. The law is that of CoDel (RFC 8289) for a queue that stands
//! somewhere else: its delay is what echoes to the exit take longer than they
//! could. Invariants: nothing is slowed down while nothing interactive goes on
//! beside it, nor ever what is interactive itself, or an acknowledgement; no hop
//! is told anything. Deliberately not here: a queue, pacing, and which hop is slow.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::packet::ip::{Ip, PROTO_TCP, Transport};

/// Packets up to this size wait for somebody, larger ones come in numbers,
/// bytes.
const SMALL: usize = 400;
/// For so long after an interactive packet delay matters, ms.
const MATTERS_MS: u64 = 3_000;
/// They have to come for so long while something flows, ms: the few by which a
/// download is asked for are nobody who waits beside it, and slowed down in its
/// first seconds it would need many more to find its rate.
const SERIES_MS: u64 = 1_000;
/// A standing delay of more than this is too much (target), us: more than the
/// jitter of busy machines and of radio links, and so much that a sender who
/// slows down does not leave the link idle for long.
const TARGET_US: u64 = 20_000;
/// It stands after a round trip and this time (interval), ms: an echo later.
const INTERVAL_MS: u64 = 100;
/// So many times the target is too much at once: a sender that still doubles its
/// rate would fill any queue meanwhile.
const GROSS: u64 = 2;
/// The law's count grows with each packet up to this, and falls by so much with
/// each echo that is fast enough: where many share a link it stays high.
const MOST: u32 = 64;
const RELIEF: u32 = 3;
/// The least round trip is looked for in the last one to two of these, ms.
const WINDOW_MS: u64 = 15_000;
/// Without a sample in this time nothing is known, ms.
const STALE_MS: u64 = 1_500;
/// A way with less than one byte in so many of both is not what fills queues.
const MINOR: u64 = 4;
/// That is looked at over so long, ms.
const WEIGH_MS: u64 = 90;
/// Fewer bytes a second fill no queue worth mentioning.
const LITTLE: u64 = 60_000;

/// What a packet is to those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits: small, or said to be (DSCP).
    Interactive,
    /// Acknowledgements: never touched, and no sign of anybody who waits.
    Silent,
    /// Large ones.
    Bulk,
    /// Those who say so (RFC 8622, or CS1).
    Background,
}

impl Class {
    /// The class of a parsed packet, by its DSCP (RFC 4594), else by its size.
    #[inline]
    pub fn of(ip: &Ip, packet: &[u8]) -> Self {
        match ip.tos(packet) >> 2 {
            1 | 8 => return Self::Background,
            // AF41 to AF43, CS4, CS5, voice, EF, network control.
            32 | 34 | 36 | 38 | 40 | 44 | 46 | 48 | 56 => return Self::Interactive,
            _ => {}
        }
        if ip.total_len > SMALL {
            return Self::Bulk;
        }
        match ip.tcp_or_udp(packet) {
            Some(Transport::Tcp { header }) if ip.transport + header == ip.total_len => {
                Self::Silent
            }
            // Parts of one: not worth a look.
            None if ip.protocol == PROTO_TCP => Self::Silent,
            _ => Self::Interactive,
        }
    }
}

/// Where packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    /// Away from the client.
    Exit,
    /// To it.
    Client,
}

/// The law for one way.
#[derive(Debug, Default)]
struct Law {
    /// It carries enough to be the cause.
    heavy: AtomicBool,
    interval_ms: AtomicU64,
    next_ms: AtomicU64,
    count: AtomicU32,
}

#[derive(Debug, Default)]
struct Delay {
    /// Which circuit's.
    serial: u64,
    /// The least round trips of this window and the one before, and when this
    /// one began.
    least_us: [u64; 2],
    window_ms: u64,
    /// Since when it has been too much.
    above_ms: Option<u64>,
    /// Bytes both ways when last weighed, and when that was.
    bytes: [u64; 2],
    weighed_ms: u64,
}

/// See the module's description. Times are ms on the engine's clock.
#[derive(Debug, Default)]
pub struct QueueControl {
    /// The last interactive packet while something flowed, and the first of a
    /// series without long pauses.
    interactive_ms: AtomicU64,
    series_ms: AtomicU64,
    flowing: AtomicBool,
    /// Until when the delay is known to be too much; 0 when it is not.
    congested_ms: AtomicU64,
    delay: Mutex<Delay>,
    laws: [Law; 2],
}

impl QueueControl {
    /// True when delay matters and enough flows for it to grow: samples are
    /// wanted often.
    pub fn is_needed(&self, now_ms: u64) -> bool {
        let last = self.interactive_ms.load(Ordering::Relaxed);
        self.flowing.load(Ordering::Relaxed)
            && last != 0
            && now_ms < last + MATTERS_MS
            && last >= self.series_ms.load(Ordering::Relaxed) + SERIES_MS
    }

    /// An interactive packet passes.
    fn waited_for(&self, now_ms: u64) {
        let last = self.interactive_ms.load(Ordering::Relaxed);
        if last == now_ms || !self.flowing.load(Ordering::Relaxed) {
            return;
        }
        if last == 0 || now_ms >= last + MATTERS_MS {
            self.series_ms.store(now_ms, Ordering::Relaxed);
        }
        self.interactive_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Takes a round trip to the exit over circuit `serial`, and the bytes of the
    /// session so far, away from the client and to it.
    pub fn sample(&self, serial: u64, rtt_us: u64, bytes: [u64; 2], now_ms: u64) {
        let mut delay = self.delay.lock().unwrap_or_else(PoisonError::into_inner);
        if delay.serial != serial {
            let least_us = [u64::MAX; 2];
            *delay = Delay { serial, least_us, window_ms: now_ms, ..Delay::default() };
        }
        if now_ms >= delay.window_ms + WINDOW_MS {
            delay.least_us = [u64::MAX, delay.least_us[0]];
            delay.window_ms = now_ms;
        }
        delay.least_us[0] = delay.least_us[0].min(rtt_us);
        let least_us = delay.least_us[0].min(delay.least_us[1]);
        self.weigh(&mut delay, bytes, now_ms);

        // What is lost before the queue is missed only when those behind it have
        // passed the queue.
        let interval_ms = INTERVAL_MS + least_us / 1000;
        for (law, ms) in self.laws.iter().zip([INTERVAL_MS + rtt_us / 1000, interval_ms]) {
            law.interval_ms.store(ms, Ordering::Relaxed);
        }
        let excess_us = rtt_us - least_us;
        if excess_us <= TARGET_US {
            delay.above_ms = None;
            self.laws.iter().for_each(Law::relieve);
            return self.congested_ms.store(0, Ordering::Relaxed);
        }
        let since = *delay.above_ms.get_or_insert(now_ms);
        if excess_us > GROSS * TARGET_US || now_ms >= since + interval_ms {
            self.congested_ms.store(now_ms + STALE_MS, Ordering::Relaxed);
        }
    }

    /// Which ways carry enough to be the cause.
    fn weigh(&self, delay: &mut Delay, bytes: [u64; 2], now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(delay.weighed_ms);
        if passed_ms < WEIGH_MS {
            return;
        }
        let moved: [u64; 2] = std::array::from_fn(|i| bytes[i].saturating_sub(delay.bytes[i]));
        let all: u64 = moved.iter().sum();
        // The first sample of a circuit has nothing to compare with.
        let first = delay.weighed_ms == 0;
        (delay.bytes, delay.weighed_ms) = (bytes, now_ms);
        self.flowing.store(!first && all * 1000 / passed_ms >= LITTLE, Ordering::Relaxed);
        for (law, moved) in self.laws.iter().zip(moved) {
            law.heavy.store(!first && moved * MINOR >= all, Ordering::Relaxed);
        }
    }

    /// Looks at a packet of a class; true when its sender is to be slowed down.
    #[inline]
    pub fn slows(&self, toward: Toward, class: Class, now_ms: u64) -> bool {
        match class {
            Class::Interactive => {
                self.waited_for(now_ms);
                false
            }
            Class::Silent => false,
            Class::Bulk | Class::Background => {
                now_ms < self.congested_ms.load(Ordering::Relaxed)
                    && self.is_needed(now_ms)
                    && self.laws[toward as usize].turn(class, now_ms)
            }
        }
    }
}

impl Law {
    /// Whether it is this packet's turn.
    fn turn(&self, class: Class, now_ms: u64) -> bool {
        if !self.heavy.load(Ordering::Relaxed) {
            return false;
        }
        let interval_ms = self.interval_ms.load(Ordering::Relaxed);
        let next = self.next_ms.load(Ordering::Relaxed);
        // What says that it can wait comes first.
        let early_ms = if class == Class::Background { interval_ms / 4 } else { 0 };
        if now_ms + early_ms < next {
            return false;
        }
        let count = self.count.load(Ordering::Relaxed).saturating_add(1).min(MOST);
        let pause = interval_ms as f64 / f64::from(count).sqrt();
        let then = now_ms + pause as u64;
        // One of the threads.
        let won = self.next_ms.compare_exchange(next, then, Ordering::Relaxed, Ordering::Relaxed);
        if won.is_ok() {
            self.count.store(count, Ordering::Relaxed);
        }
        won.is_ok()
    }

    fn relieve(&self) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count.saturating_sub(RELIEF), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::segment::tests::{tcp_packet, udp_packet};

    fn class(packet: &[u8]) -> Class {
        Class::of(&Ip::parse(packet).unwrap(), packet)
    }

    #[test]
    fn classes_follow_dscp_then_size() {
        for v6 in [false, true] {
            assert_eq!(class(&tcp_packet(v6, 1, 0x10, b"", 0)), Class::Silent);
            assert_eq!(class(&tcp_packet(v6, 1, 0x18, b"key stroke", 0)), Class::Interactive);
            assert_eq!(class(&tcp_packet(v6, 1, 0x18, &[0; 1200], 0)), Class::Bulk);
            assert_eq!(class(&udp_packet(v6, &[0; 100])), Class::Interactive);
            for (dscp, expected) in [
                (46, Class::Interactive),
                (34, Class::Interactive),
                (1, Class::Background),
                (8, Class::Background),
                (10, Class::Bulk),
            ] {
                let large = tcp_packet(v6, 1, 0x10, &[0; 1200], dscp << 2 | 2);
                assert_eq!(class(&large), expected, "DSCP {dscp}");
            }
        }
    }

    /// A session that moves `bytes` of either way a second, with echoes that take
    /// `rtt_ms` every 50 ms; which of its bulk packets, one each ms, are slowed.
    struct Flow {
        queue: QueueControl,
        bytes: [u64; 2],
        now_ms: u64,
    }

    impl Flow {
        fn new() -> Self {
            let mut flow = Self { queue: QueueControl::default(), bytes: [0; 2], now_ms: 1_000 };
            flow.run([100_000, 2_000_000], 40, true, 1_500);
            flow
        }

        fn run(
            &mut self,
            bytes: [u64; 2],
            rtt_ms: u64,
            waited_for: bool,
            for_ms: u64,
        ) -> [Vec<u64>; 2] {
            let mut slowed: [Vec<u64>; 2] = Default::default();
            let start = self.now_ms;
            while self.now_ms < start + for_ms {
                self.now_ms += 1;
                for (sum, bytes) in self.bytes.iter_mut().zip(bytes) {
                    *sum += bytes / 1000;
                }
                if waited_for && self.now_ms.is_multiple_of(100) {
                    assert!(!self.queue.slows(Toward::Client, Class::Interactive, self.now_ms));
                }
                if self.now_ms.is_multiple_of(50) {
                    self.queue.sample(1, rtt_ms * 1000, self.bytes, self.now_ms);
                }
                for (toward, slowed) in [Toward::Exit, Toward::Client].into_iter().zip(&mut slowed)
                {
                    assert!(!self.queue.slows(toward, Class::Silent, self.now_ms));
                    if self.queue.slows(toward, Class::Bulk, self.now_ms) {
                        slowed.push(self.now_ms - start);
                    }
                }
            }
            slowed
        }
    }

    const DOWN: [u64; 2] = [100_000, 2_000_000];

    #[test]
    fn a_standing_delay_slows_the_way_that_is_full_more_and_more() {
        let mut flow = Flow::new();
        let [up, down] = flow.run(DOWN, 70, true, 3_000);
        assert_eq!(up, [] as [u64; 0], "acknowledgements' way is not the cause");
        assert!((140..=240).contains(&down[0]), "after an interval: {down:?}");
        let pauses: Vec<_> = down.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses[0] >= 99 && pauses.windows(2).all(|pair| pair[1] <= pair[0]), "{pauses:?}");
        assert!(*pauses.last().unwrap() < 40, "{pauses:?}");
        let [_, down] = flow.run(DOWN, 45, true, 3_000);
        assert!(down.len() <= 3, "it is over: {down:?}");
        // Either way may be it.
        let [up, down] = flow.run([2_000_000, 100_000], 70, true, 1_000);
        assert!(!up.is_empty() && down.len() <= 1, "{up:?} {down:?}");
    }

    #[test]
    fn a_gross_delay_is_not_waited_with() {
        let mut flow = Flow::new();
        let [_, down] = flow.run(DOWN, 120, true, 500);
        assert!(down[0] <= 51, "{down:?}");
    }

    #[test]
    fn nothing_is_slowed_while_nobody_waits() {
        let mut flow = Flow::new();
        flow.run(DOWN, 40, false, 3_000);
        assert!(flow.run(DOWN, 200, false, 5_000).concat().is_empty());
        assert!(!flow.queue.is_needed(flow.now_ms));
        // Nor for what is no queue: a longer way becomes the usual one.
        flow.run(DOWN, 200, true, 31_000);
        assert!(flow.run(DOWN, 200, true, 5_000).concat().is_empty());
    }

    #[test]
    fn asking_for_a_download_is_nobody_who_waits_beside_it() {
        let mut flow = Flow { queue: QueueControl::default(), bytes: [0; 2], now_ms: 1_000 };
        flow.run([1_000, 1_000], 40, true, 2_000);
        flow.run(DOWN, 40, true, 600);
        assert!(flow.run(DOWN, 200, false, 5_000).concat().is_empty());
        flow.run(DOWN, 40, true, 1_500);
        assert!(!flow.run(DOWN, 200, true, 500).concat().is_empty(), "now somebody does");
    }

    #[test]
    fn a_trickle_is_let_be() {
        let mut flow = Flow::new();
        flow.run([10_000, 30_000], 40, true, 500);
        assert!(flow.run([10_000, 30_000], 90, true, 1_000).concat().is_empty());
        assert!(!flow.queue.is_needed(flow.now_ms));
    }

    #[test]
    fn what_can_wait_comes_first() {
        let mut flow = Flow::new();
        flow.run(DOWN, 70, true, 400);
        let mut turns = [0; 2];
        for _ in 0..2_000 {
            flow.now_ms += 1;
            flow.queue.slows(Toward::Client, Class::Interactive, flow.now_ms);
            if flow.now_ms.is_multiple_of(50) {
                flow.bytes[1] += 100_000;
                flow.queue.sample(1, 70_000, flow.bytes, flow.now_ms);
            }
            for (class, turns) in [Class::Background, Class::Bulk].into_iter().zip(&mut turns) {
                *turns += u32::from(flow.queue.slows(Toward::Client, class, flow.now_ms));
            }
        }
        assert!(turns[0] > 10 && turns[1] == 0, "{turns:?}");
    }
}

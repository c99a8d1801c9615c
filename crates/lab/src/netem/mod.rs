//! The network emulator's core: one direction of a link as a state machine on
//! a clock the caller owns.
//!
//! In: packets with their length and the time they are handed over. Out: the
//! same packets, at the time and in the order the link delivers them, without
//! those it loses and with those it doubles. For one seed and one sequence of
//! calls the outcome is always the same.
//!
//! Invariants: a packet never leaves before its time; packets that are not
//! picked for reordering keep their order, whatever the jitter; a packet that
//! waits is not affected by a later change of the profile, except that a cut
//! link delivers nothing.
//!
//! Deliberately not here: threads, sockets, what a packet is (see
//! [`crate::wan`]).

mod profile;
mod rng;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

pub use profile::{Profile, ProfileError};
pub use rng::Dice;

/// What became of a packet handed to [`Netem::handle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On its way.
    Queued,
    /// On its way, twice.
    Duplicated,
    /// On its way, to be overtaken.
    Reordered,
    /// Lost by chance.
    Lost,
    /// Dropped because the queue before the rate limit is full.
    QueueFull,
    /// Dropped because it is longer than the link's MTU.
    TooBig,
    /// Dropped because the link is cut.
    Cut,
}

/// Counts of packets by what became of them, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets handed over.
    pub offered: u64,
    /// Packets delivered, doubles included.
    pub delivered: u64,
    /// Bytes delivered, doubles included.
    pub delivered_bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped at a full queue.
    pub queue_full: u64,
    /// Longer than the MTU.
    pub too_big: u64,
    /// Came while the link was cut, or were on the way when it was.
    pub cut: u64,
    /// Arrived twice.
    pub duplicated: u64,
    /// Picked to be overtaken.
    pub reordered: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Netem<T> {
    profile: Profile,
    dice: Dice,
    /// Packets in order of handing over, with never decreasing times.
    line: VecDeque<Waiting<T>>,
    /// Packets to be overtaken.
    late: BinaryHeap<Reverse<Waiting<T>>>,
    sequence: u64,
    /// When the last packet in line leaves.
    line_end: Option<Instant>,
    /// When the rate limit lets the next packet start.
    wire_free: Option<Instant>,
    counters: Counters,
}

#[derive(Debug)]
struct Waiting<T> {
    at: Instant,
    sequence: u64,
    length: usize,
    packet: T,
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl<T> Eq for Waiting<T> {}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl<T: Clone> Netem<T> {
    /// An idle link whose chances follow from `seed`.
    ///
    /// # Errors
    /// When the profile is impossible.
    pub fn new(profile: Profile, seed: u64) -> Result<Self, ProfileError> {
        profile.check()?;
        Ok(Self {
            profile,
            dice: Dice::new(seed),
            line: VecDeque::new(),
            late: BinaryHeap::new(),
            sequence: 0,
            line_end: None,
            wire_free: None,
            counters: Counters::default(),
        })
    }

    /// The profile in force.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Packets on the way.
    pub fn len(&self) -> usize {
        self.line.len() + self.late.len()
    }

    /// True when nothing is on the way.
    pub fn is_empty(&self) -> bool {
        self.line.is_empty() && self.late.is_empty()
    }

    /// Changes the link for packets handed over from now on. Cutting it loses
    /// what is on the way.
    ///
    /// # Errors
    /// When the profile is impossible; the old one stays in force.
    pub fn set_profile(&mut self, profile: Profile) -> Result<(), ProfileError> {
        profile.check()?;
        if profile.cut {
            self.counters.cut += self.len() as u64;
            self.line.clear();
            self.late.clear();
            self.line_end = None;
            self.wire_free = None;
        }
        if profile.rate.is_none() {
            self.wire_free = None;
        }
        self.profile = profile;
        Ok(())
    }

    /// Hands over a packet of `length` bytes at the time `now`, which must not
    /// run backwards from call to call.
    pub fn handle(&mut self, packet: T, length: usize, now: Instant) -> Verdict {
        self.counters.offered += 1;
        let (verdict, swing) = self.judge(length, now);
        match verdict {
            Verdict::Cut => self.counters.cut += 1,
            Verdict::TooBig => self.counters.too_big += 1,
            Verdict::Lost => self.counters.lost += 1,
            Verdict::QueueFull => self.counters.queue_full += 1,
            Verdict::Queued => {
                let at = self.time_of_arrival(length, now, swing);
                self.push(packet, length, at);
            }
            Verdict::Duplicated => {
                self.counters.duplicated += 1;
                let at = self.time_of_arrival(length, now, swing);
                self.push(packet.clone(), length, at);
                // The double is made inside the network, so it takes no part
                // in the rate limit at its entry.
                self.push(packet, length, at);
            }
            Verdict::Reordered => {
                self.counters.reordered += 1;
                let at = self.time_of_arrival(length, now, swing) + self.profile.reorder_by;
                self.sequence += 1;
                let sequence = self.sequence;
                self.late.push(Reverse(Waiting { at, sequence, length, packet }));
            }
        }
        verdict
    }

    /// A packet whose time has come, if any; call until none is left.
    pub fn poll(&mut self, now: Instant) -> Option<T> {
        let in_line = self.line.front().map(|waiting| waiting.at);
        let late = self.late.peek().map(|Reverse(waiting)| waiting.at);
        let take_late = match (in_line, late) {
            (None, None) => return None,
            (Some(_), None) => false,
            (None, Some(_)) => true,
            (Some(line), Some(late)) => late < line,
        };
        if (if take_late { late } else { in_line }).is_none_or(|at| at > now) {
            return None;
        }
        let waiting = if take_late {
            self.late.pop().map(|Reverse(waiting)| waiting)
        } else {
            self.line.pop_front()
        }?;
        self.counters.delivered += 1;
        self.counters.delivered_bytes += waiting.length as u64;
        Some(waiting.packet)
    }

    /// When [`Netem::poll`] has something next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let in_line = self.line.front().map(|waiting| waiting.at);
        let late = self.late.peek().map(|Reverse(waiting)| waiting.at);
        in_line.into_iter().chain(late).min()
    }

    /// The packet's fate and its place in the jitter, 0 to 1. Every packet costs
    /// the same throws, so the fates of later packets do not depend on what
    /// became of earlier ones.
    fn judge(&mut self, length: usize, now: Instant) -> (Verdict, f64) {
        let profile = self.profile;
        let lost = self.dice.happens(profile.loss);
        let reordered = self.dice.happens(profile.reorder);
        let duplicated = self.dice.happens(profile.duplicate);
        let swing = self.dice.unit();
        let verdict = if profile.cut {
            Verdict::Cut
        } else if profile.mtu.is_some_and(|mtu| length > usize::from(mtu)) {
            Verdict::TooBig
        } else if self.queued_bytes(now) + length > profile.queue && profile.rate.is_some() {
            Verdict::QueueFull
        } else if lost {
            Verdict::Lost
        } else if reordered {
            Verdict::Reordered
        } else if duplicated {
            Verdict::Duplicated
        } else {
            Verdict::Queued
        };
        (verdict, swing)
    }

    /// Bytes that still wait for the wire.
    fn queued_bytes(&self, now: Instant) -> usize {
        let (Some(rate), Some(free)) = (self.profile.rate, self.wire_free) else { return 0 };
        let wait = free.saturating_duration_since(now);
        (wait.as_secs_f64() * rate as f64 / 8.0) as usize
    }

    fn time_of_arrival(&mut self, length: usize, now: Instant, swing: f64) -> Instant {
        let mut at = now;
        if let Some(rate) = self.profile.rate {
            let start = self.wire_free.map_or(now, |free| free.max(now));
            at = start + Duration::from_secs_f64(length as f64 * 8.0 / rate as f64);
            self.wire_free = Some(at);
        }
        at += self.profile.delay;
        if !self.profile.jitter.is_zero() {
            let swing = self.profile.jitter.mul_f64(2.0 * swing);
            at = (at + swing).checked_sub(self.profile.jitter).unwrap_or(now).max(now);
        }
        at
    }

    fn push(&mut self, packet: T, length: usize, at: Instant) {
        // Whoever is in line waits for those in front.
        let at = self.line_end.map_or(at, |end| end.max(at));
        self.line_end = Some(at);
        self.sequence += 1;
        self.line.push_back(Waiting { at, sequence: self.sequence, length, packet });
    }
}

#[cfg(test)]
mod tests;

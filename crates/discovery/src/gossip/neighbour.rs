//! What is kept about one neighbour.
//!
//! Invariant: every list here is bounded, whatever the neighbour sends.

use std::collections::VecDeque;

use super::limits::{Allowance, Cause};
use super::record::Tag;

/// Bytes a neighbour may have on request at once: a directory of 5,000 nodes.
const SERVE: u32 = 16 * 1024 * 1024;
/// And per second afterwards.
const SERVE_RATE: u32 = 16 * 1024;
/// Bytes of records it may send unasked at once, and per second.
const PUSH: u32 = 1024 * 1024;
const PUSH_RATE: u32 = 32 * 1024;
/// Items of lists it may send at once, and per second.
const TALK: u32 = 1_000_000;
const TALK_RATE: u32 = 500;
/// Drops for these limits after which it is cut off, and how many per second
/// are forgiven.
const EXCESS: u32 = 500;
const EXCESS_RATE: u32 = 1;
/// What it asked for and waits for its allowance.
const MAX_OWED: usize = 2048;
/// What it offered and we have not asked for yet.
const MAX_QUEUE: usize = 8192;
/// What it offered and was refused.
const MAX_REFUSED: usize = 128;
/// How long that is remembered, milliseconds.
const REFUSED_MS: u64 = 300_000;
/// Forged records after which it is cut off; one a minute is forgiven.
const MAX_FAULTS: u32 = 4;
const FAULT_MS: u64 = 60_000;

/// Requests in a row that it leaves unanswered before nothing more is asked of
/// it for a while: half of what it may be asked at once.
const UNANSWERED: u32 = 48;
/// That while, milliseconds.
const MUTE_MS: u64 = 60_000;

#[derive(Debug)]
pub(crate) struct Neighbour {
    /// The choice of neighbours wants it.
    pub(crate) preferred: bool,
    /// It is told of news of others.
    pub(crate) active: bool,
    /// Its sums differ from ours, which waits until less is on its way.
    pub(crate) behind: bool,
    /// What it offered.
    pub(crate) queue: VecDeque<Tag>,
    /// How many records it was asked for and has not sent.
    pub(crate) asked: usize,
    /// What it asked for.
    pub(crate) owed: VecDeque<Tag>,
    pub(crate) serve: Allowance,
    pub(crate) push: Allowance,
    pub(crate) talk: Allowance,
    excess: Allowance,
    refused: VecDeque<(Tag, u64, u64)>,
    faults: u32,
    faults_at: u64,
    /// Requests left unanswered since it last delivered something.
    unanswered: u32,
    /// Its offers do not count before this, milliseconds.
    muted_until: u64,
}

impl Neighbour {
    pub(crate) fn new(preferred: bool, now_ms: u64) -> Self {
        Self {
            preferred,
            active: preferred,
            behind: false,
            queue: VecDeque::new(),
            asked: 0,
            owed: VecDeque::new(),
            serve: Allowance::new(SERVE, SERVE_RATE, now_ms),
            push: Allowance::new(PUSH, PUSH_RATE, now_ms),
            talk: Allowance::new(TALK, TALK_RATE, now_ms),
            excess: Allowance::new(EXCESS, EXCESS_RATE, now_ms),
            refused: VecDeque::new(),
            faults: 0,
            faults_at: now_ms,
            unanswered: 0,
            muted_until: 0,
        }
    }

    /// It delivered what it was asked for.
    pub(crate) fn delivered(&mut self) {
        self.unanswered = 0;
    }

    /// It did not. True when its offers are not to count for a while: it may
    /// promise what does not exist, to keep us busy.
    pub(crate) fn let_down(&mut self, now_ms: u64) -> bool {
        self.unanswered += 1;
        let muted = self.unanswered >= UNANSWERED;
        if muted {
            self.unanswered = 0;
            self.muted_until = now_ms + MUTE_MS;
            self.behind = true;
            self.queue.clear();
        }
        muted
    }

    pub(crate) fn is_muted(&self, now_ms: u64) -> bool {
        now_ms < self.muted_until
    }

    /// Counts something dropped for a limit.
    pub(crate) fn exceeded(&mut self, now_ms: u64) -> Result<(), Cause> {
        if self.excess.take(1, now_ms) { Ok(()) } else { Err(Cause::Flooding) }
    }

    /// Counts something no honest node sends.
    pub(crate) fn fault(&mut self, cause: Cause, now_ms: u64) -> Result<(), Cause> {
        let forgiven = now_ms.saturating_sub(self.faults_at) / FAULT_MS;
        if forgiven > 0 {
            self.faults = self.faults.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
            self.faults_at = now_ms;
        }
        self.faults += 1;
        if self.faults >= MAX_FAULTS { Err(cause) } else { Ok(()) }
    }

    /// Notes that it is to be asked for `tag`; false when too much waits.
    pub(crate) fn offered(&mut self, tag: Tag) -> bool {
        if self.queue.len() >= MAX_QUEUE {
            return false;
        }
        if tag.kind().is_some_and(super::Kind::is_urgent) {
            self.queue.push_front(tag);
        } else {
            self.queue.push_back(tag);
        }
        true
    }

    /// False when it asks for more than may wait.
    pub(crate) fn owe(&mut self, tag: Tag) -> bool {
        let room = self.owed.len() < MAX_OWED;
        if room {
            self.owed.push_back(tag);
        }
        room
    }

    /// Remembers that what it offered was refused, so that it is not asked for
    /// again. Only of this neighbour: another may have a genuine record of the
    /// same version.
    pub(crate) fn refuse(&mut self, tag: Tag, version: u64, now_ms: u64) {
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back((tag, version, now_ms + REFUSED_MS));
    }

    pub(crate) fn was_refused(&self, tag: Tag, version: u64, now_ms: u64) -> bool {
        self.refused.iter().any(|(t, v, until)| *t == tag && *v == version && *until > now_ms)
    }

    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>()
            + (self.queue.capacity() + self.owed.capacity()) * size_of::<Tag>()
            + self.refused.capacity() * size_of::<(Tag, u64, u64)>()
    }
}

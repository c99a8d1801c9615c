//! From a circuit handshake to the keys of one hop, and on from epoch to epoch.
//!
//! In: the handshake's hash, its two Noise keys and the ML-KEM secret. Out: one
//! set of secrets, the same at client and hop. Each direction's AEAD key is
//! replaced every [`EPOCH_CELLS`] cells, or after [`EPOCH_MS`], by HKDF from a
//! chain that does not run backwards; the epoch is part of each cell's counter,
//! so both ends agree without a message. A receiver keeps the epoch before for
//! [`PREVIOUS_MS`]. Invariants: keys are wiped when dropped and never printed;
//! what an idle circuit does not need is not held expanded.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use warren_types::Suite;
use zeroize::Zeroizing;

use crate::link::replay::ReplayWindow;

use super::primitive::{Aead, BadTag, KEY_LEN, Key, Prf, TAG_LEN};

/// Cells under one AEAD key.
pub const EPOCH_CELLS: u64 = 1 << 20;
/// Life of an AEAD key at its sender, ms.
pub const EPOCH_MS: u64 = 120_000;
/// How long a receiver still opens cells of the epoch before, ms.
pub const PREVIOUS_MS: u64 = 5_000;
/// Epochs a cell may be ahead of the receiver's.
const MAX_AHEAD: u64 = 8;

const COUNTER_BITS: u32 = 39;
const COUNTER_MASK: u64 = (1 << COUNTER_BITS) - 1;
const HERE: u64 = 1 << COUNTER_BITS;

struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(prk: &Prk, label: &str, out: &mut [u8]) {
    prk.expand(&[b"Warren v1 circuit ", label.as_bytes()], Len(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("a few bytes are far below HKDF's limit");
}

fn expand_key(prk: &Prk, label: &str) -> Key {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    expand(prk, label, &mut key[..]);
    key
}

/// All that client and hop share after a handshake.
#[derive(Clone)]
pub struct HopSecrets {
    pub(super) suite: Suite,
    pub(super) forward_chain: Key,
    pub(super) backward_chain: Key,
    pub(super) forward_mask: Key,
    pub(super) backward_mask: Key,
    pub(super) fill: Key,
    pub(super) stream: Key,
    pub(super) stream_mask: Key,
    pub(super) forward_prefix: u32,
    pub(super) backward_prefix: u32,
}

impl std::fmt::Debug for HopSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HopSecrets({}, redacted)", self.suite)
    }
}

impl HopSecrets {
    /// `hash` is the handshake's hash h; `secrets` are the two keys of Noise's
    /// Split() and the ML-KEM-768 shared secret, in this order.
    pub fn derive(suite: Suite, hash: &[u8], secrets: &[u8; 96]) -> Self {
        let prk = Salt::new(HKDF_SHA256, hash).extract(secrets);
        let mut prefixes = [0; 6];
        expand(&prk, "prefixes", &mut prefixes);
        let [a, b, c, d, e, f] = prefixes;
        Self {
            suite,
            forward_chain: expand_key(&prk, "forward chain"),
            backward_chain: expand_key(&prk, "backward chain"),
            forward_mask: expand_key(&prk, "forward mask"),
            backward_mask: expand_key(&prk, "backward mask"),
            fill: expand_key(&prk, "fill"),
            stream: expand_key(&prk, "stream"),
            stream_mask: expand_key(&prk, "stream mask"),
            forward_prefix: u32::from_le_bytes([a, b, c, 0]),
            backward_prefix: u32::from_le_bytes([d, e, f, 0]),
        }
    }
}

/// A cell's counter: `prefix 24 | here 1 | number 39`, from the top. The prefix
/// is a secret of the two ends, by which a cell is recognised before it is
/// opened; `here` says that the cell ends at this hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counter {
    pub(super) here: bool,
    pub(super) number: u64,
}

impl Counter {
    #[inline]
    pub(super) fn pack(self, prefix: u32) -> u64 {
        let here = if self.here { HERE } else { 0 };
        u64::from(prefix) << (COUNTER_BITS + 1) | here | (self.number & COUNTER_MASK)
    }

    #[inline]
    pub(super) fn unpack(value: u64, prefix: u32) -> Option<Self> {
        (value >> (COUNTER_BITS + 1) == u64::from(prefix))
            .then_some(Self { here: value & HERE != 0, number: value & COUNTER_MASK })
    }

    fn epoch(self) -> u64 {
        self.number / EPOCH_CELLS
    }
}

/// A [`Prf`] made when it is first needed.
pub(super) struct LazyPrf {
    suite: Suite,
    key: Key,
    made: Option<Prf>,
}

impl LazyPrf {
    pub(super) fn new(suite: Suite, key: &Key) -> Self {
        Self { suite, key: key.clone(), made: None }
    }

    #[inline]
    pub(super) fn get(&mut self) -> &Prf {
        self.made.get_or_insert_with(|| Prf::new(self.suite, &self.key))
    }

    pub(super) fn cool(&mut self) {
        self.made = None;
    }
}

/// One epoch's AEAD key.
struct Epoch {
    key: Key,
    made: Option<Aead>,
}

/// Why a cell was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Forged,
    Replay,
}

impl From<BadTag> for Refused {
    fn from(BadTag: BadTag) -> Self {
        Self::Forged
    }
}

impl Epoch {
    /// The first or next epoch of a chain, and the chain after it.
    fn of(chain: &Key) -> (Self, Key) {
        let prk = Prk::new_less_safe(HKDF_SHA256, &chain[..]);
        (Self { key: expand_key(&prk, "epoch key"), made: None }, expand_key(&prk, "next chain"))
    }

    #[inline]
    fn aead(&mut self, suite: Suite) -> &Aead {
        self.made.get_or_insert_with(|| Aead::new(suite, &self.key))
    }
}

/// The AEAD of one direction that we send in.
pub(super) struct SendChain {
    suite: Suite,
    chain: Key,
    current: Epoch,
    tail: Option<Prf>,
    number: u64,
    began_ms: u64,
}

impl SendChain {
    pub(super) fn new(suite: Suite, chain: &Key) -> Self {
        let (current, chain) = Epoch::of(chain);
        Self { suite, chain, current, tail: None, number: 0, began_ms: 0 }
    }

    /// The next cell's number; the epoch may change with it.
    #[inline]
    pub(super) fn next_number(&mut self, now_ms: u64) -> u64 {
        if self.began_ms == 0 {
            self.began_ms = now_ms;
        }
        let full = self.number != 0 && self.number.is_multiple_of(EPOCH_CELLS);
        if full || now_ms.saturating_sub(self.began_ms) >= EPOCH_MS {
            if !full {
                self.number = (self.number / EPOCH_CELLS + 1) * EPOCH_CELLS;
            }
            (self.current, self.chain) = Epoch::of(&self.chain);
            self.tail = None;
            self.began_ms = now_ms;
        }
        self.number += 1;
        self.number - 1
    }

    #[inline]
    pub(super) fn seal(&mut self, counter: u64, text: &mut [u8]) -> [u8; TAG_LEN] {
        self.current.aead(self.suite).seal(counter, text)
    }

    /// See [`Prf::add_tail`].
    #[inline]
    pub(super) fn add_tail(&mut self, counter: u64, text: &mut [u8]) {
        let (suite, key) = (self.suite, &self.current.key);
        self.tail.get_or_insert_with(|| Prf::new(suite, key)).add_tail(counter, text);
    }
}

/// One epoch at its receiver, with the numbers that came in it.
struct Received {
    epoch: Epoch,
    window: Box<ReplayWindow>,
}

impl Received {
    fn new(epoch: Epoch) -> Self {
        Self { epoch, window: Box::default() }
    }

    /// Numbers count from the epoch's first one.
    #[inline]
    fn open(
        &mut self,
        suite: Suite,
        counter: Counter,
        packed: u64,
        (text, tag): (&[u8], &[u8; TAG_LEN]),
        out: &mut [u8],
    ) -> Result<(), Refused> {
        let number = counter.number % EPOCH_CELLS;
        if !self.window.would_accept(number) {
            return Err(Refused::Replay);
        }
        self.epoch.aead(suite).open(packed, text, tag, out)?;
        self.window.accept(number);
        Ok(())
    }
}

/// The AEAD of one direction that we receive from.
pub(super) struct ReceiveChain {
    suite: Suite,
    chain: Key,
    epoch: u64,
    current: Received,
    previous: Option<(Received, u64)>,
    /// Sent and accepted in epochs before the current one.
    before: (u64, u64),
}

impl ReceiveChain {
    pub(super) fn new(suite: Suite, chain: &Key) -> Self {
        let (current, chain) = Epoch::of(chain);
        let current = Received::new(current);
        Self { suite, chain, epoch: 0, current, previous: None, before: (0, 0) }
    }

    /// Opens with the key of the counter's epoch, each number once; a cell of a
    /// later epoch moves us there, if it is authentic.
    pub(super) fn open(
        &mut self,
        counter: Counter,
        packed: u64,
        sealed: (&[u8], &[u8; TAG_LEN]),
        out: &mut [u8],
        now_ms: u64,
    ) -> Result<(), Refused> {
        // When its time is over the key goes, whether or not cells of its come.
        if self.previous.as_ref().is_some_and(|(_, until)| *until < now_ms) {
            self.previous = None;
        }
        let epoch = counter.epoch();
        if epoch == self.epoch {
            return self.current.open(self.suite, counter, packed, sealed, out);
        }
        if epoch + 1 == self.epoch {
            let (previous, _) = self.previous.as_mut().ok_or(Refused::Forged)?;
            previous.open(self.suite, counter, packed, sealed, out)?;
            self.before.1 += 1;
            return Ok(());
        }
        if epoch < self.epoch || epoch - self.epoch > MAX_AHEAD {
            return Err(Refused::Forged);
        }
        let (mut next, mut chain) = Epoch::of(&self.chain);
        for _ in self.epoch + 1..epoch {
            (next, chain) = Epoch::of(&chain);
        }
        let mut next = Received::new(next);
        next.open(self.suite, counter, packed, sealed, out)?;
        let skipped = epoch - self.epoch > 1;
        let old = std::mem::replace(&mut self.current, next);
        let (sent, accepted) = old.window.progress();
        self.before = (self.before.0 + sent, self.before.1 + accepted);
        self.previous = (!skipped).then_some((old, now_ms + PREVIOUS_MS));
        (self.chain, self.epoch) = (chain, epoch);
        Ok(())
    }

    /// Cells the sender has used numbers for, and those accepted.
    pub(super) fn progress(&self) -> (u64, u64) {
        let (sent, accepted) = self.current.window.progress();
        (self.before.0 + sent, self.before.1 + accepted)
    }

    #[cfg(test)]
    pub(super) fn keeps_previous(&self) -> bool {
        self.previous.is_some()
    }

    pub(super) fn cool(&mut self) {
        self.current.epoch.made = None;
        self.previous = None;
    }
}

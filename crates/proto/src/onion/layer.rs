//! Layers: what client and hops do to a cell's body, in both directions.
//!
//! Forward, a hop authenticates the whole body, decrypts it, drops the
//! [`SLOT_LEN`] bytes in front and appends as many of its own, which the client
//! foresaw: so the body keeps its size, the next tag covers all of it, and no
//! hop can tell its place (the filler construction of Sphinx, Danezis and
//! Goldberg 2009, on a datagram). Backward, one AEAD reaches from a hop to the
//! client, and each hop between adds a keystream chosen by the tag, then masks
//! the tag by what came out: nothing of a cell stays the same from link to link.
//!
//! Invariants: a forward cell that was altered, repeated or is too old dies at
//! the first honest hop; a backward one at the client. Pure; locks and tables
//! are [`super::circuit`]'s.

use super::cell::{BODY_LEN, FORWARD_LEN, MAX_HOPS, SLOT_LEN, TEXT_LEN};
use super::keys::{Counter, HopSecrets, LazyPrf, ReceiveChain, Refused, SendChain};
use super::primitive::{Aead, Prf, TAG_LEN};

const COUNTER_LEN: usize = 8;
const NONCE_LEN: usize = 12;

/// Why a cell was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellError {
    /// Not made by who shares the circuit's keys, altered, or of an epoch past.
    Forged,
    /// Seen before, or too late.
    Replay,
}

impl From<Refused> for CellError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Forged => Self::Forged,
            Refused::Replay => Self::Replay,
        }
    }
}

/// What an opened forward cell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// For this hop: the text is what the client says.
    Here,
    /// For one after it: the output is the body to pass on.
    Onward,
}

#[inline]
fn masked(counter: u64, mask: &[u8; TAG_LEN]) -> u64 {
    let (mask, _) = mask.split_first_chunk::<COUNTER_LEN>().expect("16 bytes");
    counter ^ u64::from_le_bytes(*mask)
}

#[inline]
fn split(body: &[u8]) -> Option<(&[u8; COUNTER_LEN], &[u8; TAG_LEN], &[u8])> {
    let (counter, rest) = body.split_first_chunk::<COUNTER_LEN>()?;
    let (tag, text) = rest.split_first_chunk::<TAG_LEN>()?;
    (text.len() == TEXT_LEN).then_some((counter, tag, text))
}

/// A hop's half of the forward direction.
pub(super) struct ForwardHop {
    mask: LazyPrf,
    fill: LazyPrf,
    chain: ReceiveChain,
    prefix: u32,
}

impl ForwardHop {
    pub(super) fn new(secrets: &HopSecrets) -> Self {
        Self {
            mask: LazyPrf::new(secrets.suite, &secrets.forward_mask),
            fill: LazyPrf::new(secrets.suite, &secrets.fill),
            chain: ReceiveChain::new(secrets.suite, &secrets.forward_chain),
            prefix: secrets.forward_prefix,
        }
    }

    /// Opens `body` into `out`, both [`BODY_LEN`] long. For a cell that ends
    /// here the first [`super::cell::FORWARD_LEN`] bytes of `out` count.
    pub(super) fn open(
        &mut self,
        body: &[u8],
        out: &mut [u8],
        now_ms: u64,
    ) -> Result<Opened, CellError> {
        let (counter, tag, text) = split(body).ok_or(CellError::Forged)?;
        let packed = masked(u64::from_le_bytes(*counter), &self.mask.get().mask(tag));
        let counter = Counter::unpack(packed, self.prefix).ok_or(CellError::Forged)?;
        let (inner, filler) = out.split_at_mut(TEXT_LEN);
        self.chain.open(counter, packed, (text, tag), inner, now_ms)?;
        if counter.here {
            return Ok(Opened::Here);
        }
        filler.copy_from_slice(&self.fill.get().fill(packed));
        Ok(Opened::Onward)
    }

    /// Cells that arrived, and how many the client has sent to this hop or
    /// beyond: (sent, accepted).
    pub(super) fn progress(&self) -> (u64, u64) {
        self.chain.progress()
    }

    #[cfg(test)]
    fn keeps_previous(&self) -> bool {
        self.chain.keeps_previous()
    }

    pub(super) fn cool(&mut self) {
        self.mask.cool();
        self.fill.cool();
        self.chain.cool();
    }
}

/// The client's half of the forward direction, for one hop.
pub(super) struct ForwardClient {
    mask: Prf,
    fill: Prf,
    chain: SendChain,
    prefix: u32,
}

impl ForwardClient {
    pub(super) fn new(secrets: &HopSecrets) -> Self {
        Self {
            mask: Prf::new(secrets.suite, &secrets.forward_mask),
            fill: Prf::new(secrets.suite, &secrets.fill),
            chain: SendChain::new(secrets.suite, &secrets.forward_chain),
            prefix: secrets.forward_prefix,
        }
    }
}

/// Where the text of a cell for the last of `hops` hops begins, in a buffer
/// whose first [`BODY_LEN`] bytes are to be the body.
#[inline]
pub(super) fn text_at(hops: usize) -> usize {
    hops * SLOT_LEN
}

/// Bytes of that buffer.
pub(super) const SEAL_BUFFER: usize = BODY_LEN + (MAX_HOPS - 1) * SLOT_LEN;

/// Seals the text in `buffer` (from [`text_at`], [`FORWARD_LEN`] bytes; what
/// follows is overwritten) for the last of `hops`; the body is
/// then at its start.
pub(super) fn seal_forward(hops: &mut [ForwardClient], buffer: &mut [u8], now_ms: u64) {
    let count = hops.len();
    // What each hop will find at the end of its body, beginning with nothing.
    let mut filler = [0u8; MAX_HOPS * SLOT_LEN];
    let mut len = 0;
    let mut counters = [0u64; MAX_HOPS];
    for (i, hop) in hops.iter_mut().enumerate() {
        let number = hop.chain.next_number(now_ms);
        let packed = Counter { here: i + 1 == count, number }.pack(hop.prefix);
        counters[i] = packed;
        hop.chain.add_tail(packed, &mut filler[..len]);
        if i + 1 < count {
            filler[len..len + SLOT_LEN].copy_from_slice(&hop.fill.fill(packed));
            len += SLOT_LEN;
        }
    }
    let mut at = text_at(count);
    let end = at + TEXT_LEN;
    // A buffer that was used before holds bytes of the body that the entry got:
    // the last hop must not find them, or the two could tell their circuits.
    buffer[at + FORWARD_LEN..end - len].fill(0);
    buffer[end - len..end].copy_from_slice(&filler[..len]);
    for (hop, packed) in hops.iter_mut().zip(&counters).rev() {
        let tag = hop.chain.seal(*packed, &mut buffer[at..at + TEXT_LEN]);
        let counter = masked(*packed, &hop.mask.mask(&tag));
        buffer[at - TAG_LEN..at].copy_from_slice(&tag);
        at -= SLOT_LEN;
        buffer[at..at + COUNTER_LEN].copy_from_slice(&counter.to_le_bytes());
    }
}

/// What a hop adds to a cell that passes it on its way to the client.
pub(super) struct BackwardPass {
    stream: Aead,
    mask: Prf,
}

impl BackwardPass {
    pub(super) fn new(secrets: &HopSecrets) -> Self {
        Self {
            stream: Aead::new(secrets.suite, &secrets.stream),
            mask: Prf::new(secrets.suite, &secrets.stream_mask),
        }
    }

    /// Adds the layer to a body of [`BODY_LEN`] bytes.
    pub(super) fn add(&self, body: &mut [u8]) {
        let Some((tag, rest)) = body.split_first_chunk_mut::<TAG_LEN>() else { return };
        self.stream.stream(tag.first_chunk::<NONCE_LEN>().expect("16 bytes"), rest);
        self.mask_tag(tag, rest);
    }

    /// Takes it off again.
    pub(super) fn remove(&self, body: &mut [u8]) {
        let Some((tag, rest)) = body.split_first_chunk_mut::<TAG_LEN>() else { return };
        self.mask_tag(tag, rest);
        self.stream.stream(tag.first_chunk::<NONCE_LEN>().expect("16 bytes"), rest);
    }

    fn mask_tag(&self, tag: &mut [u8; TAG_LEN], rest: &[u8]) {
        let Some(sample) = rest.first_chunk::<TAG_LEN>() else { return };
        let mask = self.mask.mask(sample);
        tag.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// A hop's own voice: cells it makes for the client.
pub(super) struct BackwardHop {
    mask: Prf,
    chain: SendChain,
    prefix: u32,
}

impl BackwardHop {
    pub(super) fn new(secrets: &HopSecrets) -> Self {
        Self {
            mask: Prf::new(secrets.suite, &secrets.backward_mask),
            chain: SendChain::new(secrets.suite, &secrets.backward_chain),
            prefix: secrets.backward_prefix,
        }
    }

    /// Seals a body whose text stands from [`SLOT_LEN`] on.
    pub(super) fn seal(&mut self, body: &mut [u8], now_ms: u64) {
        let number = self.chain.next_number(now_ms);
        let packed = Counter { here: true, number }.pack(self.prefix);
        let (head, text) = body.split_at_mut(SLOT_LEN);
        let tag = self.chain.seal(packed, &mut text[..TEXT_LEN]);
        head[..TAG_LEN].copy_from_slice(&tag);
        let counter = masked(packed, &self.mask.mask(&tag));
        head[TAG_LEN..].copy_from_slice(&counter.to_le_bytes());
    }
}

/// The client's half of the backward direction, for one hop.
pub(super) struct BackwardClient {
    mask: Prf,
    chain: ReceiveChain,
    prefix: u32,
    pass: BackwardPass,
}

impl BackwardClient {
    pub(super) fn new(secrets: &HopSecrets) -> Self {
        Self {
            mask: Prf::new(secrets.suite, &secrets.backward_mask),
            chain: ReceiveChain::new(secrets.suite, &secrets.backward_chain),
            prefix: secrets.backward_prefix,
            pass: BackwardPass::new(secrets),
        }
    }

    /// Cells this hop has sent us, and those that arrived.
    pub(super) fn progress(&self) -> (u64, u64) {
        self.chain.progress()
    }
}

/// Takes off layer after layer of `body` until a hop is recognised as its
/// author; `out` ([`TEXT_LEN`] bytes) is then what it says. Returns the hop's
/// place, from 0.
pub(super) fn open_backward(
    hops: &mut [BackwardClient],
    body: &mut [u8],
    out: &mut [u8],
    now_ms: u64,
) -> Result<usize, CellError> {
    if body.len() != BODY_LEN {
        return Err(CellError::Forged);
    }
    for (i, hop) in hops.iter_mut().enumerate() {
        let (tag, rest) = body.split_first_chunk::<TAG_LEN>().expect("checked above");
        let (counter, text) = rest.split_first_chunk::<COUNTER_LEN>().expect("checked above");
        let packed = masked(u64::from_le_bytes(*counter), &hop.mask.mask(tag));
        if let Some(counter) = Counter::unpack(packed, hop.prefix) {
            match hop.chain.open(counter, packed, (text, tag), out, now_ms) {
                Ok(()) => return Ok(i),
                Err(Refused::Replay) => return Err(CellError::Replay),
                // One strange cell in 2^24 looks recognised; then it is not.
                Err(Refused::Forged) => {}
            }
        }
        hop.pass.remove(body);
    }
    Err(CellError::Forged)
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;

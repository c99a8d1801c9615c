//! What a worker does with relay frames that arrive: whose they are, and the
//! datagrams in those for us.
//!
//! Datagrams for us wait in [`Nested`] until the session they came on is
//! unlocked: opening them locks another session's replay window, and a hostile
//! peer may put any session's index inside, that same one included.

use std::ops::Range;
use std::sync::Arc;

use warren_types::DropReason;

use super::peer::PeerLink;
use super::relay::{self, RelayFrame, suffix};
use super::tables::Routes;

/// Largest plaintext, and most bytes of one received train.
const MAX_TRAIN: usize = 1 << 16;

/// What becomes of a relay frame.
#[derive(Debug, Clone)]
pub(super) enum Onward {
    /// Its datagram is for us.
    Ours,
    /// It is for this node next.
    Pass(Arc<PeerLink>),
    /// It is dropped.
    Refuse(DropReason),
}

/// Says what becomes of frames, and remembers it for the next one.
#[derive(Debug, Default)]
pub(super) struct Judge {
    last: Option<Judged>,
}

#[derive(Debug)]
struct Judged {
    sender: Arc<PeerLink>,
    fixed: [u8; 2],
    nodes: [u8; relay::MAX_HEADER],
    len: usize,
    onward: Onward,
}

impl Judge {
    /// What becomes of `frame`, which `sender` sent itself.
    pub(super) fn frame(
        &mut self,
        routes: &Routes,
        sender: &Arc<PeerLink>,
        frame: &[u8],
    ) -> Onward {
        let identity = relay::identity(frame);
        if let (Some(last), Some((fixed, nodes))) = (&self.last, identity)
            && last.fixed == *fixed
            && last.nodes[..last.len] == *nodes
            && Arc::ptr_eq(&last.sender, sender)
        {
            // The flags and the datagram are each frame's own.
            return match RelayFrame::parse(frame) {
                Some(_) => last.onward.clone(),
                None => Onward::Refuse(DropReason::RelayMalformed),
            };
        }
        let onward = judge(routes, sender, frame);
        if let Some((&[next, count], nodes)) =
            identity.filter(|(_, n)| n.len() <= relay::MAX_HEADER)
        {
            let mut kept = [0; relay::MAX_HEADER];
            kept[..nodes.len()].copy_from_slice(nodes);
            self.last = Some(Judged {
                sender: sender.clone(),
                fixed: [next, count],
                nodes: kept,
                len: nodes.len(),
                onward: onward.clone(),
            });
        }
        onward
    }

    /// The routing snapshot changed, or a longer wait begins.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }
}

fn judge(routes: &Routes, sender: &PeerLink, frame: &[u8]) -> Onward {
    let Some(frame) = RelayFrame::parse(frame) else {
        return Onward::Refuse(DropReason::RelayMalformed);
    };
    let ours = routes.own_suffix().is_some_and(|own| own == *frame.receiver());
    let theirs = sender.node().is_some_and(|node| suffix(node) == *frame.sender());
    if !ours || !theirs {
        return Onward::Refuse(DropReason::RelayForged);
    }
    // A source or a next node we do not know is no member, or not yet.
    match frame.after() {
        None if routes.node(frame.source()).is_some() => Onward::Ours,
        Some(_) if !routes.relaying() => Onward::Refuse(DropReason::RelayOff),
        Some(next) => match routes.node(next) {
            Some(next) => Onward::Pass(next.clone()),
            None => Onward::Refuse(DropReason::RelayNoHop),
        },
        None => Onward::Refuse(DropReason::RelayNoHop),
    }
}

/// Relay frames for us, taken from one train.
#[derive(Debug, Default)]
pub(super) struct Nested {
    /// Made at the first frame; most nodes never get one.
    buffer: Vec<u8>,
    used: usize,
    frames: Vec<Range<usize>>,
    /// The last message was such a frame, so the next is opened right here.
    pub(super) expected: bool,
}

impl Nested {
    /// Room for a plaintext of `len` bytes; `None` when a train cannot hold it.
    pub(super) fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; MAX_TRAIN];
        }
        self.buffer.get_mut(self.used..self.used + len)
    }

    /// Keeps what [`Self::slot`] of `len` bytes was filled with.
    pub(super) fn keep(&mut self, len: usize) {
        self.frames.push(self.used..self.used + len);
        self.used += len;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frames with one and the same way, in order.
    pub(super) fn groups(&self) -> impl Iterator<Item = impl Iterator<Item = &[u8]>> {
        let way = |frame: &Range<usize>| relay::identity(&self.buffer[frame.clone()]);
        self.frames
            .chunk_by(move |a, b| way(a) == way(b))
            .map(|group| group.iter().map(|frame| &self.buffer[frame.clone()]))
    }

    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.used = 0;
    }
}

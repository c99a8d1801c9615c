//! Link states on their way: ours is signed and published, those of others are
//! checked and handed to the daemon.
//!
//! Invariant: only members' link states count, and ours only if we made it.
//! Deliberately not here: what they are good for.

use std::sync::Arc;

use warren_control::link_state::{LinkReport, LinkStateBody, LinkStateError, SignedLinkState};
use warren_discovery::gossip::{Kind, Record, Verdict};
use warren_types::NodeId;

use super::Core;
use crate::transport::shared::Shared;

/// What we say of our links; the transport adds the rest and signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSummary {
    /// Our direct links, the most useful first; at most
    /// [`warren_control::link_state::MAX_LINKS`] are told.
    pub links: Vec<LinkReport>,
    /// There are more than are named.
    pub partial: bool,
    /// We pass on packets of others.
    pub willing: bool,
    /// How busy we are, 0 to 255.
    pub load: u8,
    /// How long this is good for, seconds.
    pub life: u64,
}

fn record(body: &LinkStateBody, signed: &SignedLinkState) -> Option<Arc<Record>> {
    Record::new(Kind::LinkState, body.node.0, body.sequence, body.expires, &signed.encode())
}

impl Core {
    /// Signs and spreads what we say of our links.
    pub(super) fn publish_links(&mut self, summary: &LinkSummary) {
        let now = self.shared.now();
        let id = self.shared.id();
        let known = self.gossip.get(Kind::LinkState, &id.0).map_or(0, |r| r.sequence());
        let body = LinkStateBody::new(
            self.parts.network.id,
            id,
            (known + 1).max(now.saturating_mul(1000)),
            now,
            summary.life,
            summary.willing,
            summary.load,
            summary.partial,
            &summary.links,
        );
        let signed = body.sign(&self.shared.key());
        let time = self.time();
        if let Some(record) = record(&body, &signed) {
            self.gossip.publish(record, None, time);
            self.send_gossip();
        }
    }
}

/// Checks a record of somebody's links.
pub(super) fn check(shared: &Shared, record: &Record, now: u64) -> Result<LinkStateBody, Verdict> {
    let (network, member) = {
        let directory = shared.directory();
        let node = NodeId(*record.subject());
        (directory.network(), directory.get(node).is_some() && node != shared.id())
    };
    // One of ours that we do not know is from before our state was lost; the
    // next we publish replaces it.
    if !member {
        return Err(Verdict::Ignore);
    }
    let checked = SignedLinkState::decode(record.body()).and_then(|s| s.verify(network, now));
    match checked {
        Ok(body)
            if body.node.0 == *record.subject()
                && (body.sequence, body.expires) == (record.sequence(), record.expires()) =>
        {
            Ok(body)
        }
        Ok(_) => Err(Verdict::Forged),
        Err(LinkStateError::Expired | LinkStateError::TooLong) => Err(Verdict::Ignore),
        Err(_) => Err(Verdict::Forged),
    }
}

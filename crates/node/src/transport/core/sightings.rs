//! Addresses where somebody on the local network says a member is.
//!
//! Invariants: they are hints and nothing else: an address is dialed, and who
//! answers proves who it is; few are kept, each announcement replaces the one
//! before; an address of somebody unknown is tried once per announcement.

use std::net::SocketAddr;
use std::time::Instant;

use warren_types::NodeId;

use super::{Core, Target};
use crate::transport::dial::Schedule;

/// Addresses kept of one member.
const PER_NODE: usize = 8;
/// Addresses of unknown nodes that are tried at a time.
const UNKNOWN: usize = 16;

impl Core {
    /// Takes in where `node` was seen; `None` when its id is unknown.
    pub(super) fn on_seen(&mut self, node: Option<NodeId>, mut addresses: Vec<SocketAddr>) {
        addresses.retain(|address| !self.is_ours(address) && self.may_dial(*address));
        addresses.truncate(PER_NODE);
        let now = Instant::now();
        let Some(node) = node else {
            for address in addresses {
                let target = Target::Endpoint(address);
                if self.seen_unknown.len() < UNKNOWN
                    && !self.schedule.contains_key(&target)
                    && !self.serves(address)
                {
                    self.seen_unknown.insert(address);
                    self.schedule.insert(target, Schedule::at(now));
                }
            }
            return;
        };
        self.seen.insert(node, addresses);
        let connected = self.peers.contains_key(&node);
        if let Some(schedule) = self.schedule.get_mut(&Target::Node(node))
            && !schedule.busy
            && !connected
        {
            schedule.next = now;
        }
    }

    /// After an attempt: whether `target` was an unknown node's address, which
    /// is not tried again by itself.
    pub(super) fn was_seen_unknown(&mut self, target: Target) -> bool {
        let Target::Endpoint(address) = target else { return false };
        self.seen_unknown.remove(&address)
    }
}

//! Entry functions for `warren-discovery`; each takes any bytes and must return.

use warren_discovery::gossip::{Gossip, Message, Record, Time, Verdict, Verifier};
use warren_types::NodeId;

/// Accepts, ignores and refuses, as the body's first byte says.
struct Judge;

impl Verifier for Judge {
    fn verify(&mut self, record: &Record, _: Time) -> Verdict {
        match record.body().first().map(|byte| byte % 4) {
            Some(0 | 1) => Verdict::Accept,
            Some(2) => Verdict::Ignore,
            _ => Verdict::Forged,
        }
    }
}

/// A message of gossip, given to a node with two neighbours.
pub fn gossip(data: &[u8]) {
    let Ok(message) = Message::decode(data) else { return };
    let bytes = message.encode();
    assert!(bytes.len() <= message.encoded_len());
    assert_eq!(Message::decode(&bytes).as_ref(), Ok(&message));
    let mut now = Time { ms: 0, unix: 1_800_000_000 };
    let (from, other) = (NodeId([1; 32]), NodeId([3; 32]));
    let mut gossip = Gossip::new(NodeId([2; 32]), 7, now);
    gossip.neighbour_up(from, true, now);
    gossip.neighbour_up(other, true, now);
    for _ in 0..2 {
        gossip.handle_message(from, message.clone(), now, &mut Judge);
        for _ in 0..4 {
            while gossip.poll_transmit().is_some() {}
            while gossip.poll_event().is_some() {}
            now.ms = gossip.poll_timeout().max(now.ms + 1);
            gossip.handle_timeout(now);
        }
        now.unix += 5000;
    }
    assert!(gossip.memory() < 4 << 20);
}

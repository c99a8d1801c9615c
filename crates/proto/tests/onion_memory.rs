//! Memory of idle circuits at a relay, as the kernel counts it: the library's own
//! included.

#![allow(clippy::disallowed_methods, reason = "a test that asks the kernel what it takes")]

use std::sync::Arc;

use warren_proto::link::peer::PeerLink;
use warren_proto::link::relay::NodeSuffix;
use warren_proto::noise::StaticKey;
use warren_proto::onion::cell::{CircuitId, Kind, plain};
use warren_proto::onion::handshake::{Pending, hint};
use warren_proto::onion::relay::{Duties, Neighbours, Relay};
use warren_proto::onion::tables::OnionTables;
use warren_types::{LinkPublicKey, Suite};

#[path = "../src/test_rng.rs"]
mod test_rng;
use test_rng::TestRng;

/// Resident memory of this process, bytes; `None` where there is no procfs.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

struct Nobody;

impl Neighbours for Nobody {
    fn by_suffix(&self, _: &NodeSuffix) -> Option<Arc<PeerLink>> {
        None
    }
    fn has_role(&self, _: &PeerLink) -> bool {
        false
    }
}

/// 10,000 circuits that carry nothing: at most 4 KiB each, tables included.
#[test]
fn an_idle_circuit_takes_at_most_4_kib() {
    const CIRCUITS: usize = 10_000;
    let mut rng = TestRng::new(3);
    let suite = Suite::Aes256Gcm;
    let tables = Arc::new(OnionTables::default());
    let mut relay = Relay::new(suite, tables);
    let key = StaticKey::from_bytes(&[9; 32]);
    relay.set_keys(vec![key.clone()]);
    relay.set_duties(Duties { entry: true, relay: true, ..Duties::default() }, 1);
    let onion_key = key.public().0;
    let (_, first) = Pending::start(suite, &onion_key, &mut rng).unwrap();
    let content = [&hint(&onion_key)[..], &first].concat();
    let peers: Vec<_> =
        (0..50u8).map(|i| Arc::new(PeerLink::new(LinkPublicKey([i; 32]), suite, true))).collect();
    let Some(before) = resident() else { return println!("SKIPPED: no /proc/self/statm") };
    let mut now_ms = 1;
    for i in 0..CIRCUITS {
        // As fast as a neighbour may, all of them together.
        now_ms += 1;
        let cell = plain(Kind::Create, CircuitId::new(i as u32), &content);
        relay.handle_cell(&peers[i % peers.len()], &cell, &Nobody, now_ms, &mut rng);
        while relay.poll_transmit().is_some() {}
    }
    assert_eq!(relay.stats().circuits, CIRCUITS);
    now_ms += 30_000;
    relay.handle_timeout(now_ms);
    let each = resident().unwrap_or(usize::MAX).saturating_sub(before) / CIRCUITS;
    println!("{each} bytes for each of {CIRCUITS} idle circuits");
    assert!(each <= 4096, "{each} bytes");
}

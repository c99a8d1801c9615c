//! Engines against each other over a simulated network.

#![allow(
    clippy::disallowed_methods,
    reason = "the simulation starts at some Instant and may take its seed from the environment"
)]

mod sim;

use std::time::Duration;

use sim::{World, number, packet};
use warren_proto::engine::{LinkEvent, LinkState};
use warren_types::Suite;

const BOTH: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn the_first_packet_opens_a_link_and_arrives() {
    for suite in BOTH {
        let mut world = World::new(2, 1);
        world.pair(suite);
        world.run(secs(60));
        assert_eq!(world.nodes[0].sent, 0, "a link without traffic sleeps");
        assert!(world.nodes[0].engine.poll_timeout().is_none());
        world.send(0, 1, packet(7, 100));
        let took = world.run_until(secs(1), |w| !w.nodes[1].inbox.is_empty()).unwrap();
        assert_eq!(took, ms(15), "one and a half round trips");
        assert_eq!(number(&world.nodes[1].inbox[0]), 7);
        world.run(ms(10));
        for i in 0..2 {
            assert_eq!(world.sessions(i), 1);
            assert_eq!(world.stats(i, 1 - i).state, LinkState::Up);
            assert_eq!(
                world.happened(
                    i,
                    |e| matches!(e, LinkEvent::RttMeasured { rtt, .. } if *rtt == ms(10))
                ),
                1
            );
        }
        world.send(1, 0, packet(8, 100));
        world.run(ms(10));
        assert_eq!(number(&world.nodes[0].inbox[0]), 8);
    }
}

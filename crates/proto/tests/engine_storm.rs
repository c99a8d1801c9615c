//! Randomised runs: three engines in bad weather, and engines fed with
//! arbitrary bytes. The seed is printed; `WARREN_TEST_SEED` repeats a run.

#![allow(clippy::disallowed_methods, reason = "tests read the clock and files")]

mod sim;

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use rand_core::RngCore;
use sim::{TestRng, World, number, packet, seed};
use warren_proto::engine::LinkState;
use warren_proto::link::frame::Frame;
use warren_types::Suite;

const BOTH: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

#[test]
fn ten_percent_loss_delays_but_does_not_keep_links_down() {
    let seed = seed();
    for round in 0..20 {
        let suite = BOTH[round as usize % 2];
        let mut world = World::new(2, seed.wrapping_add(round));
        world.weather.loss = 0.1;
        world.weather.duplicate = 0.05;
        world.weather.delay = Duration::from_millis(40);
        world.weather.jitter = Duration::from_millis(20);
        world.pair(suite);
        world.send(0, 1, packet(0, 100));
        // Six tries in a row fail once in 20,000 runs.
        let up = |w: &World| (0..2).all(|i| w.stats(i, 1 - i).state == LinkState::Up);
        let took = world.run_until(secs(32), up);
        assert!(took.is_some(), "round {round}");
        world.nodes[1].inbox.clear();
        for n in 1..501 {
            world.send(0, 1, packet(n, 100));
            world.run(Duration::from_millis(500));
        }
        world.run(secs(5));
        let got: HashSet<u32> = world.nodes[1].inbox.iter().map(|p| number(p)).collect();
        assert_eq!(got.len(), world.nodes[1].inbox.len(), "nothing arrives twice");
        assert!(got.len() > 400, "round {round}: {} of 500", got.len());
    }
}

#[test]
fn three_nodes_in_a_storm_are_up_again_soon_after_it() {
    let seed = seed();
    for round in 0..10 {
        let suite = BOTH[round as usize % 2];
        let mut world = World::new(3, seed.wrapping_add(round));
        for (a, b) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            world.introduce(a, b, suite, |_| {});
        }
        let mut rng = TestRng::new(seed ^ round);
        for step in 0..2_000 {
            if step % 100 == 0 {
                let share =
                    |rng: &mut TestRng, most: f64| f64::from(rng.next_u32() % 100) / 100.0 * most;
                world.weather.loss = share(&mut rng, 0.9);
                world.weather.duplicate = share(&mut rng, 0.5);
                world.weather.jitter = Duration::from_millis(u64::from(rng.next_u32() % 2_000));
                let i = (rng.next_u32() % 3) as usize;
                match rng.next_u32() % 4 {
                    0 => world.nodes[i].address.set_port(1024 + rng.next_u32() as u16 % 60_000),
                    1 => world.nodes[i].clock_skew_s += 5,
                    _ => {}
                }
            }
            let a = (rng.next_u32() % 3) as usize;
            let b = (a + 1 + (rng.next_u32() % 2) as usize) % 3;
            world.send(a, b, packet(step, 60));
            world.run(Duration::from_millis(u64::from(rng.next_u32() % 1_000)));
        }
        // Known at home again, as the control plane would tell.
        for (a, b) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            let (key, to) = (world.nodes[b].key, world.nodes[b].address);
            world.with(a, |engine, now, rng| engine.set_endpoint(&key, to, now, rng));
        }
        world.weather = sim::Weather::default();
        world.run(secs(3));
        for n in 0..200 {
            for (a, b) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
                world.send(a, b, packet(10_000 + n, 60));
            }
            world.run(Duration::from_millis(100));
        }
        for node in &mut world.nodes {
            node.inbox.clear();
        }
        for (a, b) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            world.send(a, b, packet(a as u32, 60));
        }
        world.run(secs(1));
        for (i, node) in world.nodes.iter().enumerate() {
            let mut from: Vec<u32> = node.inbox.iter().map(|p| number(p)).collect();
            from.sort_unstable();
            let others: Vec<u32> = (0..3).filter(|n| *n != i as u32).collect();
            assert_eq!(from, others, "round {round}, node {i}");
            assert!(node.timeouts < 40_000, "no busy loop: {}", node.timeouts);
        }
    }
}

/// A connected pair and every kind of datagram seen between them.
fn recorded(suite: Suite) -> (World, Vec<Vec<u8>>) {
    let mut world = World::new(2, 3);
    world.tape = Some(Vec::new());
    world.pair(suite);
    world.send(0, 1, packet(0, 100));
    world.run(secs(1));
    let tape = world.tape.take().unwrap().into_iter().map(|d| d.data).collect();
    (world, tape)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_datagrams_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let (mut world, _) = recorded(Suite::Aes256Gcm);
        let from = world.nodes[0].address;
        let to = world.nodes[1].address;
        for kind in [1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14] {
            let mut data = bytes.clone();
            if let Some(first) = data.first_mut() {
                *first = kind;
            }
            world.with(1, |engine, now, rng| engine.handle_handshake(from, &data, 0, now, rng));
            world.inject(sim::Datagram { from, to, data });
        }
        world.run(secs(1));
        prop_assert_eq!(world.stats(1, 0).state, LinkState::Up);
    }

    #[test]
    fn changed_datagrams_never_panic_or_harm(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bits in 1u8..,
        cut in 0usize..8,
    ) {
        for suite in BOTH {
            let (mut world, tape) = recorded(suite);
            let mut data = which.get(&tape).clone();
            let at = at.index(data.len());
            data[at] ^= bits;
            data.truncate(data.len().saturating_sub(cut));
            for (from, to) in [(0, 1), (1, 0)] {
                let from = world.nodes[from].address;
                let to = world.nodes[to].address;
                world.inject(sim::Datagram { from, to, data: data.clone() });
            }
            world.run(secs(1));
            world.nodes[1].inbox.clear();
            world.send(0, 1, packet(1, 60));
            world.run(secs(1));
            prop_assert_eq!(world.nodes[1].inbox.len(), 1);
        }
    }

    #[test]
    fn arbitrary_frames_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let (mut world, _) = recorded(Suite::Aes256Gcm);
        let link = world.link(1, 0);
        let from = world.nodes[0].address;
        world.with(1, |engine, now, rng| {
            engine.handle_link_frame(&link, from, &bytes, now, rng);
        });
        if let Some(Frame::EchoReply { .. }) = Frame::parse(&bytes) {
            prop_assert!(bytes.len() == 16);
        }
    }
}

//! Direct paths through NATs of all kinds, and paths that fail: the real engines
//! and workers, a third node that relays, 50 ms between any two.

mod nat;

use nat::{KINDS, Nat, Spoil, World, ms, secs};
use warren_proto::engine::{PathKind, PathReason};

/// All pairs have a direct path but two of symmetric NATs, and one of a
/// symmetric and a port-restricted one.
fn possible(a: Nat, b: Nat) -> bool {
    let hard = |nat| matches!(nat, Nat::Symmetric | Nat::PortRestricted);
    !(hard(a) && hard(b) && (a == Nat::Symmetric || b == Nat::Symmetric))
}

/// The two, with links to the third node up for some seconds.
fn ready(left: Nat, right: Nat, seed: u64) -> World {
    let mut world = World::new(left, right, seed);
    world.run(secs(5));
    world
}

/// Connected and talking over the best path for ten seconds.
fn talking(left: Nat, right: Nat) -> (World, u32) {
    let mut world = ready(left, right, 1);
    let next = world.talk(0, secs(10), 500);
    assert!(world.both(PathKind::Direct));
    (world, next)
}

#[test]
fn every_pair_of_nats_connects_at_once_and_directly_where_possible() {
    let mut to_direct = Vec::new();
    for left in KINDS {
        for right in KINDS {
            let mut world = ready(left, right, 3);
            let start = world.now;
            world.send(0, 1, 0, 100);
            let mut direct = None;
            let mut number = 1;
            while world.now < start + secs(20) {
                world.run(ms(10));
                world.send(0, 1, number, 100);
                world.send(1, 0, number, 100);
                number += 1;
                if direct.is_none() && world.both(PathKind::Direct) {
                    direct = Some(world.now - start);
                }
            }
            world.run(secs(1));
            let first = world.nodes[1].inbox.first().map(|(at, _)| *at - start);
            println!("{left:?} x {right:?}: first packet {first:?}, direct {direct:?}");
            assert!(first.is_some_and(|first| first <= ms(400)), "{left:?} {right:?}: {first:?}");
            assert_eq!(direct.is_some(), possible(left, right), "{left:?} x {right:?}");
            to_direct.extend(direct);
            // Nothing was lost on the way from the relay to the direct path.
            for i in 0..2 {
                let mut got: Vec<u32> = world.nodes[i].inbox.iter().map(|(_, n)| *n).collect();
                got.sort_unstable();
                let expected = if i == 1 { 0..number } else { 1..number };
                assert!(got.iter().copied().eq(expected), "{left:?} x {right:?}: {}", got.len());
            }
            assert!(!matches!(world.kind(0, 1), Some(PathKind::Tcp)));
        }
    }
    to_direct.sort_unstable();
    let median = to_direct[to_direct.len() / 2];
    println!("direct after {median:?} (median), {:?} at most", to_direct.last());
    assert!(median <= secs(1), "{median:?}");
    assert!(*to_direct.last().unwrap() <= secs(3));
}

#[test]
fn a_dead_direct_path_is_left_within_a_second() {
    for (left, right) in [(Nat::None, Nat::None), (Nat::PortRestricted, Nat::Restricted)] {
        for phase in 0..5 {
            let (mut world, mut next) = talking(left, right);
            next = world.talk(next, ms(40 * phase), 500);
            world.spoil(Spoil { dead: true, ..Spoil::default() });
            let start = world.now;
            next = world.talk(next, secs(5), 500);
            for i in 0..2 {
                let gap = world.longest_gap(i, start);
                assert!(gap <= secs(1), "{left:?}: {gap:?}");
                let changes = world.changes(i, start);
                assert_eq!(changes.len(), 1, "{changes:?}");
                assert_eq!(changes[0].1, PathReason::Silent);
            }
            assert!(world.both(PathKind::Relay));
            // And used again some time after it came back, without a loss.
            world.spoil(Spoil::default());
            let from = next;
            next = world.talk(next, secs(120), 500);
            world.run(secs(1));
            assert!(world.both(PathKind::Direct));
            for i in 0..2 {
                let got = world.nodes[i].inbox.iter().filter(|(_, n)| *n >= from).count();
                assert_eq!(got as u32, next - from);
            }
        }
    }
}

#[test]
fn a_path_dead_in_one_direction_is_left_by_who_sends_that_way() {
    let (mut world, next) = talking(Nat::Restricted, Nat::FullCone);
    world.spoils.insert((0, 1), Spoil { dead: true, ..Spoil::default() });
    let start = world.now;
    world.talk(next, secs(5), 500);
    let gap = world.longest_gap(1, start);
    assert!(gap <= ms(1_100), "{gap:?}");
    assert_eq!(world.kind(0, 1), Some(PathKind::Relay));
}

#[test]
fn a_path_that_answers_probes_and_drops_data_is_left_within_about_a_second() {
    let (mut world, next) = talking(Nat::FullCone, Nat::PortRestricted);
    world.spoil(Spoil { over: 300, ..Spoil::default() });
    let start = world.now;
    world.talk(next, secs(5), 500);
    for i in 0..2 {
        let gap = world.longest_gap(i, start);
        assert!(gap <= ms(1_200), "{gap:?}");
        assert_eq!(world.changes(i, start)[0].1, PathReason::DataLost);
    }
}

#[test]
fn a_degraded_path_is_left_within_five_seconds() {
    let slow = Spoil { extra: ms(50), ..Spoil::default() };
    let lossy = Spoil { loss: 0.05, ..Spoil::default() };
    for (spoil, why) in [(slow, PathReason::Faster), (lossy, PathReason::Lossy)] {
        let (mut world, mut next) = talking(Nat::None, Nat::Restricted);
        // Enough of a flow to measure loss by.
        world.spoil(spoil);
        let start = world.now;
        for _ in 0..1_000 {
            for _ in 0..4 {
                world.send(0, 1, next, 500);
                world.send(1, 0, next, 500);
                next += 1;
            }
            world.run(ms(5));
        }
        for i in 0..2 {
            assert_eq!(world.kind(i, 1 - i), Some(PathKind::Relay), "{why:?}");
            let changes = world.changes(i, start);
            assert!(changes.len() == 1 && changes[0].1 == why, "{changes:?}");
        }
    }
}

#[test]
fn a_flapping_path_is_not_followed_each_time() {
    let (mut world, mut next) = talking(Nat::FullCone, Nat::FullCone);
    let start = world.now;
    for round in 0..30 {
        world.spoil(Spoil { dead: round % 2 == 0, ..Spoil::default() });
        next = world.talk(next, secs(2), 500);
    }
    for i in 0..2 {
        let changes = world.changes(i, start);
        assert!(changes.len() <= 4, "{changes:?}");
    }
}

#[test]
fn mappings_are_kept_alive_and_new_ones_found() {
    // The NATs forget after 30 s; nothing is said for an hour.
    let mut world = ready(Nat::PortRestricted, Nat::PortRestricted, 5);
    for node in &mut world.nodes {
        node.nat.forgets = secs(30);
    }
    let (key0, key1) = (world.nodes[0].key, world.nodes[1].key);
    for (i, key) in [(0, key1), (1, key0)] {
        let mut config = warren_proto::engine::PeerConfig {
            key,
            suite: warren_types::Suite::Aes256Gcm,
            is_warren: true,
            psk: None,
            psk_required: false,
            endpoint: None,
            allowed: vec![std::net::IpAddr::from(nat::overlay(1 - i)).into()],
            persistent_keepalive: None,
            hold: true,
        };
        config.hold = true;
        world.with(i, |engine, now, rng| engine.upsert_peer(config, now, rng));
    }
    let next = world.talk(0, secs(10), 100);
    assert!(world.both(PathKind::Direct));
    let (sent, timeouts) = (world.nodes[0].sent, world.nodes[0].timeouts);
    world.run(secs(3_600));
    assert!(world.both(PathKind::Direct));
    let (sent, timeouts) = (world.nodes[0].sent - sent, world.nodes[0].timeouts - timeouts);
    println!("{sent} datagrams and {timeouts} wakes of one node in an hour with two idle links");
    assert!(sent < 2_500, "{sent}");
    let start = world.now;
    world.talk(next, secs(2), 100);
    assert!(world.longest_gap(1, start) < ms(300), "alive at once");
}

#[test]
fn a_nat_that_forgets_everything_is_survived() {
    for kinds in [(Nat::PortRestricted, Nat::PortRestricted), (Nat::Symmetric, Nat::Restricted)] {
        let (mut world, mut next) = talking(kinds.0, kinds.1);
        for _ in 0..3 {
            world.nodes[0].nat.restart();
            let start = world.now;
            next = world.talk(next, secs(60), 500);
            for i in 0..2 {
                let gap = world.longest_gap(i, start);
                assert!(gap <= ms(1_100), "{kinds:?} {i}: {gap:?}");
            }
            let changes = world.changes(0, start);
            println!("{kinds:?}: {changes:?}");
            assert!(world.both(PathKind::Direct), "{kinds:?}");
        }
    }
}

#[test]
fn strangers_named_by_a_peer_get_few_small_probes() {
    let mut world = ready(Nat::None, Nat::None, 9);
    world.talk(0, secs(2), 100);
    world.astray.clear();
    // Node 1 names a new list of strangers every half second, for ten minutes.
    for round in 0..1_200u16 {
        let list = (0..16u16)
            .map(|n| std::net::SocketAddr::from(([203, 0, 113, (n + round) as u8], 1_000 + round)));
        world.with(1, |engine, now, rng| engine.set_own_candidates(list, now, rng));
        world.talk(1_000, ms(500), 100);
    }
    let total: u64 = world.astray.values().sum();
    println!("{total} probes to strangers in ten minutes");
    // Both its peers were told.
    assert!(total <= 2 * (49 + 2 * 600 + 2), "{total}");
    assert_eq!(world.kind(0, 1), Some(PathKind::Direct), "and the link is unharmed");
}

#[test]
fn a_thin_flow_leaves_a_lossy_path_in_time() {
    let mut times = Vec::new();
    for seed in 0..20 {
        let mut world = ready(Nat::None, Nat::None, seed);
        let mut next = world.talk(0, secs(5) + ms(37 * seed), 100);
        world.spoil(Spoil { loss: 0.05, ..Spoil::default() });
        let start = world.now;
        while world.kind(0, 1) == Some(PathKind::Direct) && world.now < start + secs(20) {
            world.send(0, 1, next, 100);
            world.send(1, 0, next, 100);
            next += 1;
            world.run(ms(10));
        }
        times.push(world.now - start);
    }
    times.sort_unstable();
    println!("{times:?}");
    assert!(times[16] <= secs(5) && times[19] <= secs(8), "{times:?}");
}

//! Static keys that change while traffic flows: nothing is lost, whoever
//! changes and whoever learns of it first.

mod sim;

use std::time::Duration;

use sim::{World, number, packet};
use warren_proto::engine::{LinkEvent, LinkState, Refusal};
use warren_proto::noise::StaticKey;
use warren_types::{DropReason, LinkPublicKey, LinkSecretKey, Suite};

const OVERLAP: Duration = Duration::from_secs(600);

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn fresh(n: u8) -> StaticKey {
    StaticKey::new(&LinkSecretKey::from_bytes([n; 32]))
}

/// Numbered packets both ways every 50 ms for `time`; all arrive, once.
fn steady(world: &mut World, time: Duration) {
    world.nodes.iter_mut().for_each(|node| node.inbox.clear());
    let count = (time.as_millis() / 50) as u32;
    for n in 0..count {
        world.send(0, 1, packet(n, 100));
        world.send(1, 0, packet(n, 100));
        world.run(ms(50));
    }
    world.run(secs(1));
    for node in &mut world.nodes {
        let mut got: Vec<u32> = node.inbox.drain(..).map(|p| number(&p)).collect();
        got.sort_unstable();
        assert!(got.iter().copied().eq(0..count), "{} of {count}", got.len());
    }
}

/// Node `i` has the key `new`; the other end is not told.
fn rotate(world: &mut World, i: usize, new: StaticKey) {
    world.with(i, |engine, now, _| engine.rotate_static_key(new, OVERLAP, now));
}

/// The other end learns that node `i` has the key `new`.
fn learn(world: &mut World, i: usize, new: LinkPublicKey) {
    let old = std::mem::replace(&mut world.nodes[i].key, new);
    let known =
        world.with(1 - i, |engine, now, rng| engine.rekey_peer(&old, new, OVERLAP, now, rng));
    assert!(known);
}

fn connected() -> World {
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    steady(&mut world, secs(3));
    world
}

fn refused(world: &World) -> usize {
    (0..2).map(|i| world.happened(i, |e| matches!(e, LinkEvent::Refused { .. }))).sum()
}

#[test]
fn a_key_changes_under_traffic_whoever_knows_first() {
    for lag in [ms(0), ms(3), ms(300), secs(20), secs(200)] {
        for told_first in [false, true] {
            let mut world = connected();
            let new = fresh(77);
            if told_first {
                learn(&mut world, 1, new.public());
                steady(&mut world, lag);
                rotate(&mut world, 1, new);
            } else {
                rotate(&mut world, 1, new.clone());
                steady(&mut world, lag);
                learn(&mut world, 1, new.public());
            }
            let before = world.sessions(0);
            steady(&mut world, secs(400));
            assert!(world.sessions(0) >= before + 3, "lag {lag:?}, {told_first}");
            assert_eq!(refused(&world), 0, "nobody was asked in vain: {lag:?} {told_first}");
            assert_eq!(world.stats(0, 1).key, world.nodes[1].key);
            assert_eq!(world.link(0, 1).key(), world.nodes[1].key);
        }
    }
}

#[test]
fn ten_rotations_of_both_ends_at_once_lose_nothing() {
    let mut world = connected();
    for round in 0..10u8 {
        for i in 0..2 {
            let new = fresh(100 + 2 * round + i as u8);
            rotate(&mut world, i, new.clone());
            learn(&mut world, i, new.public());
        }
        steady(&mut world, secs(20 + u64::from(round)));
    }
    // At the very same time, with the news under way to each other.
    for round in 0..10u8 {
        let keys = [fresh(200 + 2 * round), fresh(201 + 2 * round)];
        for (i, key) in keys.iter().enumerate() {
            rotate(&mut world, i, key.clone());
        }
        steady(&mut world, secs(2));
        for (i, key) in keys.iter().enumerate() {
            learn(&mut world, i, key.public());
        }
        steady(&mut world, secs(20));
    }
    assert_eq!(world.stats(0, 1).state, LinkState::Up);
    assert!(world.sessions(0) > 20);
}

#[test]
fn a_link_without_session_comes_up_while_only_one_end_knows() {
    // The peer has changed its key, we have not heard of it: its old one is
    // answered for.
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    rotate(&mut world, 1, fresh(77));
    world.send(0, 1, packet(1, 60));
    world.run(secs(1));
    assert_eq!(world.nodes[1].inbox.len(), 1);
    // We heard of a change that the peer has not made yet.
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    learn(&mut world, 1, fresh(77).public());
    world.send(0, 1, packet(1, 60));
    world.run(secs(7));
    assert_eq!(world.nodes[1].inbox.len(), 1, "the second try is with the old key");
    // The peer starts, and does not know that we changed; nor we that it did.
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    rotate(&mut world, 0, fresh(78));
    rotate(&mut world, 1, fresh(77));
    world.send(1, 0, packet(1, 60));
    world.run(secs(1));
    assert_eq!(world.nodes[0].inbox.len(), 1);
}

#[test]
fn an_old_key_is_worth_nothing_after_the_overlap() {
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    world.send(1, 0, packet(1, 60));
    world.run(secs(1));
    learn(&mut world, 1, fresh(77).public());
    // The peer never changes its key: after the overlap it is a stranger.
    world.run(OVERLAP + secs(200));
    world.nodes[0].inbox.clear();
    world.send(1, 0, packet(2, 60));
    world.run(secs(30));
    assert_eq!(world.nodes[0].inbox.len(), 0);
    let unknown =
        |e: &LinkEvent| matches!(e, LinkEvent::Refused { reason: Refusal::UnknownPeer, .. });
    assert!(world.happened(0, unknown) > 0);
    // Our own: handshakes to it are not ours any more.
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    rotate(&mut world, 1, fresh(77));
    world.run(OVERLAP + secs(1));
    world.send(0, 1, packet(1, 60));
    world.run(secs(20));
    assert_eq!(world.nodes[1].inbox.len(), 0);
    assert!(world.nodes[1].drops.get(DropReason::BadMac) > 0);
}

#[test]
fn a_replayed_initiation_of_the_old_key_is_refused() {
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    world.tape = Some(Vec::new());
    world.send(1, 0, packet(1, 60));
    world.run(secs(2));
    let initiation = world.tape.take().unwrap().into_iter().find(|d| d.data[0] == 0x11).unwrap();
    learn(&mut world, 1, fresh(77).public());
    rotate(&mut world, 1, fresh(77));
    world.run(secs(2));
    let sessions = world.sessions(0);
    world.inject(initiation);
    world.run(secs(2));
    assert_eq!(world.sessions(0), sessions);
    assert!(world.nodes[0].drops.get(DropReason::BadHandshake) > 0);
}

#[test]
fn removing_a_peer_removes_its_old_key_too() {
    let mut world = connected();
    let old = world.nodes[1].key;
    learn(&mut world, 1, fresh(77).public());
    let new = world.nodes[1].key;
    assert!(!world.with(0, |engine, now, rng| engine.rekey_peer(&old, new, OVERLAP, now, rng)));
    world.with(0, |engine, _, _| engine.remove_peer(&new));
    assert_eq!(world.nodes[0].engine.peers().count(), 0);
    world.nodes[0].inbox.clear();
    world.send(1, 0, packet(1, 60));
    world.run(secs(30));
    assert!(world.nodes[0].inbox.is_empty());
    assert!(world.nodes[0].engine.poll_timeout().is_none());
}

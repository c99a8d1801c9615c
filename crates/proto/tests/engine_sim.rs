//! Engines against each other over a simulated network: what WireGuard's
//! timers promise, and what attackers and bad networks must not achieve.

mod sim;

use std::net::SocketAddr;
use std::time::Duration;

use sim::{World, number, packet};
use warren_proto::engine::{LinkEvent, LinkState, Refusal};
use warren_proto::link::session::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES};
use warren_types::{DropReason, Suite};

const BOTH: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn refusals(world: &World, i: usize, which: impl Fn(&Refusal) -> bool) -> usize {
    world.happened(i, |e| matches!(e, LinkEvent::Refused { reason, .. } if which(reason)))
}

/// Two nodes that have just exchanged a packet.
fn connected(suite: Suite) -> World {
    let mut world = World::new(2, 1);
    world.pair(suite);
    world.send(0, 1, packet(0, 100));
    world.run(ms(100));
    assert_eq!(world.nodes[1].inbox.len(), 1);
    world
}

/// Sends a numbered packet every `every` both ways for `time`; all must arrive,
/// once.
fn steady(world: &mut World, every: Duration, time: Duration) {
    world.nodes.iter_mut().for_each(|node| node.inbox.clear());
    let count = (time.as_micros() / every.as_micros()) as u32;
    for n in 0..count {
        world.send(0, 1, packet(n, 100));
        world.send(1, 0, packet(n, 100));
        world.run(every);
    }
    world.run(secs(1));
    for node in &mut world.nodes {
        let mut got: Vec<u32> = node.inbox.drain(..).map(|p| number(&p)).collect();
        got.sort_unstable();
        assert!(got.iter().copied().eq(0..count), "{} of {count}", got.len());
    }
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
        let measured =
            |e: &LinkEvent| matches!(e, LinkEvent::RttMeasured { rtt, .. } if *rtt == ms(10));
        for i in 0..2 {
            assert_eq!(world.sessions(i), 1);
            assert_eq!(world.stats(i, 1 - i).state, LinkState::Up);
            assert_eq!(world.happened(i, measured), 1);
        }
        world.send(1, 0, packet(8, 100));
        world.run(ms(10));
        assert_eq!(number(&world.nodes[0].inbox[0]), 8);
    }
}

#[test]
fn keys_are_renewed_under_traffic_without_losing_a_packet() {
    for suite in BOTH {
        let mut world = connected(suite);
        world.weather.jitter = ms(30);
        steady(&mut world, ms(20), secs(500));
        for i in 0..2 {
            assert_eq!(world.sessions(i), 5, "one at once, then every 120 s");
            assert_eq!(world.nodes[i].drops.non_zero().len(), 0);
        }
        let renewed =
            |e: &LinkEvent| matches!(e, LinkEvent::SessionEstablished { rekey: true, .. });
        assert_eq!(world.happened(0, renewed), 4);
    }
}

#[test]
fn the_receiving_end_keeps_keys_fresh_for_a_sender_that_did_not_start() {
    let mut world = World::new(2, 1);
    for (a, b) in [(0, 1), (1, 0)] {
        world.introduce(a, b, Suite::ChaCha20Poly1305, |c| c.is_warren = false);
    }
    world.send(0, 1, packet(0, 60));
    world.run(secs(1));
    world.nodes[0].inbox.clear();
    for n in 0..4000 {
        world.send(1, 0, packet(n, 60));
        world.run(ms(100));
    }
    assert_eq!(world.nodes[0].inbox.len(), 4000);
    assert_eq!(world.sessions(0), 4, "its keepalives renew the keys every 120 s");
    assert_eq!(world.nodes[0].drops.non_zero().len(), 0);
}

#[test]
fn both_ends_starting_at_once_agree_on_one_session() {
    for suite in BOTH {
        let mut world = World::new(2, 1);
        world.pair(suite);
        world.send(0, 1, packet(1, 60));
        world.send(1, 0, packet(2, 60));
        world.run(secs(1));
        assert_eq!(number(&world.nodes[0].inbox[0]), 2);
        assert_eq!(number(&world.nodes[1].inbox[0]), 1);
        // Exactly one end is the initiator of what is in use at each end.
        let sending = |w: &World, i: usize| w.link(i, 1 - i).send.load_full().unwrap();
        let receivable = |w: &World, i: usize, index| w.nodes[i].tables.session(index).is_some();
        assert_ne!(sending(&world, 0).initiator, sending(&world, 1).initiator);
        assert!(receivable(&world, 1, sending(&world, 0).receiver()));
        assert!(receivable(&world, 0, sending(&world, 1).receiver()));
        steady(&mut world, ms(50), secs(400));
        assert!(world.sessions(0) <= 6, "{}", world.sessions(0));
    }
}

#[test]
fn both_ends_renewing_at_once_lose_nothing() {
    let mut world = connected(Suite::Aes256Gcm);
    for _ in 0..5 {
        world.run(secs(6));
        for (a, b) in [(0, 1), (1, 0)] {
            let link = world.link(a, b);
            let session = link.send.load_full().unwrap();
            session.reserve(REKEY_AFTER_MESSAGES).unwrap();
            world.with(a, |engine, now, rng| engine.handle_want_handshake(&link, now, rng));
        }
        steady(&mut world, ms(1), secs(1));
    }
    let initiators = (0..2).filter(|i| world.link(*i, 1 - i).send.load_full().unwrap().initiator);
    assert_eq!(initiators.count(), 1);
}

#[test]
fn a_replayed_initiation_is_refused_and_moves_nothing() {
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    world.tape = Some(Vec::new());
    world.send(0, 1, packet(0, 100));
    world.run(secs(1));
    let tape = world.tape.take().unwrap();
    let endpoint = world.nodes[0].address;
    let attacker: SocketAddr = "203.0.113.9:9".parse().unwrap();
    let sessions = world.sessions(1);
    let (mut replays, mut initiations) = (0, 0);
    let target = world.nodes[1].address;
    for mut datagram in tape.into_iter().filter(|d| d.to == target) {
        datagram.from = attacker;
        initiations += usize::from(datagram.data[0] == 0x11);
        replays += usize::from(datagram.data[0] == 0x14);
        world.inject(datagram);
        world.run(secs(1));
    }
    assert_eq!(initiations, 1);
    assert_eq!(world.nodes[1].drops.get(DropReason::BadHandshake), 1);
    assert_eq!(refusals(&world, 1, |_| true), 0, "the latest may be the network's duplicate");
    assert_eq!(world.nodes[1].drops.get(DropReason::Replay), replays as u64);
    assert_eq!(world.sessions(1), sessions);
    assert_eq!(world.stats(1, 0).endpoint, Some(endpoint));
    steady(&mut world, ms(100), secs(10));
}

#[test]
fn an_old_initiation_replayed_is_reported() {
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    world.tape = Some(Vec::new());
    world.send(0, 1, packet(0, 100));
    world.run(secs(1));
    let first = world.tape.take().unwrap().remove(0);
    steady(&mut world, secs(1), secs(200));
    assert_eq!(world.sessions(1), 2);
    world.inject(first);
    world.run(secs(1));
    let behind = |r: &Refusal| matches!(r, Refusal::TimestampNotNewer { behind } if (119..=123).contains(&behind.as_secs()));
    assert_eq!(refusals(&world, 1, behind), 1);
    steady(&mut world, ms(100), secs(10));
}

#[test]
fn several_changes_at_once_make_one_handshake() {
    let mut world = World::new(2, 1);
    for (a, b) in [(0, 1), (1, 0)] {
        world.introduce(a, b, Suite::Aes256Gcm, |c| {
            c.hold = a == 0;
            c.endpoint = Some("198.51.100.99:1".parse().unwrap());
        });
    }
    world.run(secs(7));
    let (key, to) = (world.nodes[1].key, world.nodes[1].address);
    let back = world.nodes[0].key;
    world.with(1, |engine, now, rng| engine.set_psk(&back, sim::psk(1), now, rng));
    world.with(0, |engine, now, rng| {
        engine.set_endpoint(&key, to, now, rng);
        engine.set_psk(&key, sim::psk(1), now, rng);
    });
    let up = |w: &World| (0..2).all(|i| w.stats(i, 1 - i).state == LinkState::Up);
    let took = world.run_until(secs(10), up).unwrap();
    assert!(took < ms(200), "{took:?}");
    assert!(world.stats(0, 1).preshared);
}

#[test]
fn loss_is_seen_by_who_sends() {
    let mut world = connected(Suite::Aes256Gcm);
    world.weather.loss = 0.05;
    world.weather.jitter = ms(4);
    for n in 0..20_000 {
        world.send(0, 1, packet(n, 60));
        world.run(ms(10));
    }
    let loss = world.stats(0, 1).loss.unwrap();
    assert!((0.02..0.09).contains(&loss), "{loss}");
    world.weather.loss = 0.0;
    for n in 0..2_000 {
        world.send(0, 1, packet(n, 60));
        world.run(ms(10));
    }
    assert!(world.stats(0, 1).loss.unwrap() < 0.01);
}

#[test]
fn probes_of_addresses_that_lead_nowhere_are_no_loss() {
    let mut world = connected(Suite::Aes256Gcm);
    let dead: Vec<SocketAddr> =
        (1..=6).map(|n| format!("198.51.100.{n}:1").parse().unwrap()).collect();
    for (own, other) in [(0, 1), (1, 0)] {
        let key = world.nodes[other].key;
        world.with(own, |engine, now, rng| {
            engine.set_candidates(&key, dead.iter().copied(), now, rng);
        });
    }
    for n in 0..300 {
        world.send(0, 1, packet(n, 60));
        world.send(1, 0, packet(n, 60));
        world.run(ms(100));
        for (own, other) in [(0, 1), (1, 0)] {
            let loss = world.stats(own, other).loss;
            assert!(loss.is_none_or(|loss| loss < 0.001), "{loss:?} after {n}");
        }
    }
    assert_eq!(world.stats(0, 1).loss, Some(0.0));
}

#[test]
fn a_wrong_pre_shared_key_gets_nothing_and_a_change_takes_effect_at_once() {
    for suite in BOTH {
        let mut world = World::new(2, 1);
        world.introduce(0, 1, suite, |c| c.psk = sim::psk(1));
        world.introduce(1, 0, suite, |c| c.psk = sim::psk(2));
        world.send(0, 1, packet(1, 60));
        world.send(1, 0, packet(2, 60));
        world.run(secs(30));
        for i in 0..2 {
            assert!(world.nodes[i].inbox.is_empty());
            assert_eq!(world.sessions(i), 0);
            assert!(refusals(&world, i, |r| *r == Refusal::ResponseNotAuthentic) > 0);
        }
        let key = world.nodes[0].key;
        world.with(1, |engine, now, rng| engine.set_psk(&key, sim::psk(1), now, rng));
        world.run(ms(100));
        assert_eq!(number(&world.nodes[1].inbox[0]), 1);
        assert_eq!(number(&world.nodes[0].inbox[0]), 2);
        assert!(world.stats(0, 1).preshared);

        // Changed on a live link at one end: the old session lasts until it
        // expires, no new one comes with the old key.
        world.with(1, |engine, now, rng| engine.set_psk(&key, sim::psk(3), now, rng));
        let sessions = world.sessions(0);
        for _ in 0..300 {
            world.send(0, 1, packet(1, 60));
            world.run(secs(1));
        }
        assert_eq!(world.sessions(0), sessions);
        let late = world.nodes[1].inbox.len();
        assert!((170..200).contains(&late), "{late}");
    }
}

#[test]
fn a_required_pre_shared_key_is_waited_for() {
    let mut world = World::new(2, 1);
    world.introduce(0, 1, Suite::Aes256Gcm, |c| c.psk_required = true);
    world.introduce(1, 0, Suite::Aes256Gcm, |c| c.psk_required = true);
    world.send(0, 1, packet(1, 60));
    world.run(secs(3));
    assert_eq!(world.nodes[0].sent, 0);
    for (a, b) in [(0, 1), (1, 0)] {
        let key = world.nodes[b].key;
        world.with(a, |engine, now, rng| engine.set_psk(&key, sim::psk(1), now, rng));
    }
    world.run(ms(100));
    assert_eq!(number(&world.nodes[1].inbox[0]), 1);
}

#[test]
fn a_peer_that_moves_is_followed() {
    for suite in BOTH {
        let mut world = connected(suite);
        let home = world.nodes[1].address;
        let away: SocketAddr = "198.51.100.7:4000".parse().unwrap();
        world.nodes[1].address = away;
        world.send(1, 0, packet(1, 60));
        world.run(ms(600));
        assert_eq!(world.stats(0, 1).endpoint, Some(away));
        let moved = |e: &LinkEvent| matches!(e, LinkEvent::PathChanged { to, .. } if *to == away);
        assert_eq!(world.happened(0, moved), 1);
        steady(&mut world, ms(100), secs(10));
        assert_eq!(world.sessions(0), 1, "roaming needs no handshake");
        // Datagrams recorded at home and replayed do not move it back.
        assert_ne!(home, away);
    }
}

#[test]
fn a_session_at_its_message_limit_is_replaced() {
    let mut world = connected(Suite::Aes256Gcm);
    let link = world.link(0, 1);
    link.send.load_full().unwrap().reserve(REKEY_AFTER_MESSAGES).unwrap();
    world.run(secs(10));
    assert_eq!(world.sessions(0), 2, "renewed in time");
    link.send.load_full().unwrap().reserve(REJECT_AFTER_MESSAGES - 10);
    world.run(secs(10));
    link.send.load_full().unwrap().reserve(REJECT_AFTER_MESSAGES);
    world.nodes[1].inbox.clear();
    for n in 0..20 {
        world.send(0, 1, packet(n, 60));
    }
    world.run(secs(10));
    assert_eq!(world.nodes[1].inbox.len(), 20, "none is lost even past the limit");
}

#[test]
fn an_unreachable_peer_is_reported_given_up_and_found_again() {
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    let home = world.nodes[1].address;
    world.nodes[1].address = "198.51.100.7:4000".parse().unwrap();
    for n in 0..200 {
        world.send(0, 1, packet(n, 60));
    }
    assert_eq!(world.nodes[0].drops.get(DropReason::StagingFull), 200 - 128);
    let gone = |e: &LinkEvent| matches!(e, LinkEvent::PeerUnreachable { .. });
    let took = world.run_until(secs(60), |w| w.happened(0, gone) > 0).unwrap();
    assert!((secs(10)..secs(11)).contains(&took), "{took:?}");
    assert_eq!(world.stats(0, 1).state, LinkState::Unreachable);
    world.run(secs(100));
    let given_up = |e: &LinkEvent| matches!(e, LinkEvent::HandshakeAbandoned { .. });
    assert_eq!((world.happened(0, gone), world.happened(0, given_up)), (1, 1));
    assert_eq!(world.nodes[0].drops.get(DropReason::NoEndpoint), 128);
    assert!((17..=19).contains(&world.nodes[0].sent), "{}", world.nodes[0].sent);
    assert!(world.nodes[0].engine.poll_timeout().is_none());
    world.nodes[1].address = home;
    world.send(0, 1, packet(1, 60));
    world.run(secs(1));
    assert_eq!(world.nodes[1].inbox.len(), 1);
    assert_eq!(world.stats(0, 1).state, LinkState::Up);
}

#[test]
fn a_dead_path_is_suspected_within_seconds_and_recovers() {
    let mut world = connected(Suite::Aes256Gcm);
    world.weather.loss = 1.0;
    let suspected = |e: &LinkEvent| matches!(e, LinkEvent::PathSuspected { .. });
    let mut took = Duration::ZERO;
    while world.happened(0, suspected) == 0 {
        world.send(0, 1, packet(1, 60));
        world.run(ms(100));
        took += ms(100);
        assert!(took < secs(4));
    }
    world.weather.loss = 0.0;
    world.send(0, 1, packet(2, 60));
    world.run(secs(6));
    assert_eq!(world.stats(0, 1).state, LinkState::Up);
    steady(&mut world, ms(100), secs(5));
}

#[test]
fn a_peer_that_restarted_is_talked_to_again() {
    for (suite, is_warren, within) in
        [(Suite::Aes256Gcm, true, 6), (Suite::ChaCha20Poly1305, false, 18)]
    {
        let mut world = World::new(2, 1);
        for (a, b) in [(0, 1), (1, 0)] {
            world.introduce(a, b, suite, |c| c.is_warren = is_warren);
        }
        world.send(0, 1, packet(1, 60));
        world.run(secs(20));
        world.restart(1, 99);
        world.introduce(1, 0, suite, |c| c.is_warren = is_warren);
        let start = world.now;
        while world.nodes[1].inbox.is_empty() {
            world.send(0, 1, packet(2, 60));
            world.run(ms(100));
            assert!(world.now - start < secs(within), "{suite}");
        }
        steady(&mut world, ms(100), secs(5));
        // And when the one that restarted speaks first, at once.
        world.restart(1, 100);
        world.introduce(1, 0, suite, |c| c.is_warren = is_warren);
        world.send(1, 0, packet(3, 60));
        world.run(ms(100));
        steady(&mut world, ms(100), secs(5));
    }
}

#[test]
fn wireguard_peers_get_wireguards_timers_and_no_frames() {
    let mut world = World::new(2, 1);
    for (a, b) in [(0, 1), (1, 0)] {
        world.introduce(a, b, Suite::ChaCha20Poly1305, |c| c.is_warren = false);
    }
    world.send(0, 1, packet(1, 60));
    world.run(secs(3));
    assert_eq!(world.nodes[0].sent, 2, "initiation and data");
    assert_eq!(world.nodes[1].sent, 1, "response");
    world.send(0, 1, packet(2, 60));
    world.run(secs(6));
    assert_eq!(world.nodes[1].sent, 1);
    world.run(secs(2));
    assert_eq!(world.nodes[1].sent, 2, "one keepalive 10 s after data");
    world.run(secs(60));
    assert_eq!((world.nodes[0].sent, world.nodes[1].sent), (3, 2));
    world.run(secs(200));
    assert_eq!((world.nodes[0].sent, world.nodes[1].sent), (3, 2), "and then silence");
    for i in 0..2 {
        assert_eq!(world.stats(i, 1 - i).state, LinkState::Idle);
        assert!(world.nodes[i].engine.poll_timeout().is_none());
        assert!(world.link(i, 1 - i).send.load().is_none());
    }
}

#[test]
fn persistent_keepalive_keeps_the_link_and_its_keys() {
    let mut world = World::new(2, 1);
    world.introduce(0, 1, Suite::ChaCha20Poly1305, |c| {
        c.is_warren = false;
        c.persistent_keepalive = Some(secs(25));
    });
    world.introduce(1, 0, Suite::ChaCha20Poly1305, |c| c.is_warren = false);
    world.run(secs(1000));
    assert_eq!(world.stats(1, 0).state, LinkState::Up);
    assert!((7..=9).contains(&world.sessions(1)), "{}", world.sessions(1));
    assert!((40..=60).contains(&world.nodes[0].sent), "{}", world.nodes[0].sent);
}

#[test]
fn held_links_stay_measured_and_others_sleep() {
    let mut world = World::new(3, 1);
    world.introduce(0, 1, Suite::Aes256Gcm, |c| c.hold = true);
    world.introduce(1, 0, Suite::Aes256Gcm, |_| {});
    world.introduce(0, 2, Suite::Aes256Gcm, |_| {});
    world.introduce(2, 0, Suite::Aes256Gcm, |_| {});
    world.send(0, 2, packet(1, 60));
    world.run(secs(1200));
    assert_eq!(world.stats(0, 1).state, LinkState::Up);
    assert_eq!(world.stats(0, 1).rtt, Some(ms(10)));
    assert_eq!(world.stats(0, 2).state, LinkState::Idle);
    assert!(world.nodes[2].engine.poll_timeout().is_none());
    // Held: an echo each 10 s and a handshake each 120 s; looked at each 2 s.
    let node = &world.nodes[0];
    assert!(node.sent < 400, "{} sent", node.sent);
    assert!(node.timeouts < 800, "{} timeouts", node.timeouts);
}

#[test]
fn a_clock_set_back_is_named_as_the_reason() {
    let mut world = connected(Suite::Aes256Gcm);
    // While running, it does not matter.
    world.nodes[0].clock_skew_s = -3600;
    steady(&mut world, ms(500), secs(200));
    assert!(world.sessions(0) >= 2);
    // After a restart with the wrong clock, the other end says what is wrong.
    world.restart(0, 5);
    world.introduce(0, 1, Suite::Aes256Gcm, |_| {});
    world.send(0, 1, packet(9, 60));
    world.run(secs(1));
    let told = world.nodes[1].events.iter().find_map(|(_, e)| match e {
        LinkEvent::Refused {
            peer, reason: reason @ Refusal::TimestampNotNewer { behind }, ..
        } => {
            assert_eq!(*peer, Some(world.nodes[0].key));
            assert!(reason.to_string().contains("clock"));
            Some(*behind)
        }
        _ => None,
    });
    assert!((secs(3300)..=secs(3700)).contains(&told.unwrap()), "{told:?}");
}

#[test]
fn a_1280_byte_underlay_is_found_at_the_start_and_later() {
    // 1280 minus IPv4 and UDP headers; 32 more for the link.
    const LIMIT: usize = 1280 - 28;
    let mut world = World::new(2, 1);
    world.weather.payload_limit = LIMIT;
    world.pair(Suite::Aes256Gcm);
    world.send(0, 1, packet(1, 60));
    world.run(secs(2));
    assert_eq!(world.stats(0, 1).path_mtu, 1200, "known to be safe within a second");
    world.run(secs(8));
    let fits = 1280 - 28 - 32 - 8..=1280 - 28 - 32;
    for i in 0..2 {
        assert!(fits.contains(&world.stats(i, 1 - i).path_mtu));
    }
    // The path grows: noticed by the next search.
    world.weather.payload_limit = 2000;
    for _ in 0..100 {
        world.send(0, 1, packet(1, 60));
        world.run(secs(1));
    }
    assert_eq!(world.stats(0, 1).path_mtu, 1420);
    // And falls again while packets flow: noticed by a lost canary.
    world.weather.payload_limit = LIMIT;
    for _ in 0..20 {
        world.send(0, 1, packet(1, 60));
        world.run(secs(1));
    }
    assert!(fits.contains(&world.stats(0, 1).path_mtu), "{}", world.stats(0, 1).path_mtu);
}

#[test]
fn a_removed_peer_is_gone_at_once() {
    let mut world = connected(Suite::Aes256Gcm);
    let key = world.nodes[0].key;
    let link = world.link(1, 0);
    world.with(1, |engine, _, _| engine.remove_peer(&key));
    assert!(link.send.load().is_none());
    world.nodes[1].inbox.clear();
    world.send(0, 1, packet(1, 60));
    world.run(ms(50));
    assert_eq!(world.nodes[1].inbox.len(), 0);
    assert_eq!(world.nodes[1].drops.get(DropReason::UnknownSession), 1);
    assert!(world.nodes[1].engine.poll_timeout().is_none());
    world.run(secs(30));
    assert!(refusals(&world, 1, |r| *r == Refusal::UnknownPeer) > 0);
    world.with(1, |engine, now, rng| {
        engine.handle_link_frame(&link, "192.0.2.1:1".parse().unwrap(), &[1; 48], now, rng);
        engine.handle_want_handshake(&link, now, rng);
        engine.handle_staged(&link, [vec![0x45; 40]], now, rng);
    });
    assert!(world.nodes[1].engine.poll_timeout().is_none());
}

//! Floods of forged initiations, and what many idle peers cost.

#![allow(clippy::disallowed_methods, reason = "tests read the clock and files")]

mod sim;

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::RngCore;
use sim::{Datagram, TestRng, World, packet};
use warren_proto::engine::{LinkEvent, LinkState, Refusal};
use warren_proto::noise::{Initiator, StaticKey, Tai64n};
use warren_types::{DropReason, LinkPublicKey, LinkSecretKey, Suite};

/// Initiations from keys nobody knows, each with a valid mac1, as anyone can
/// make who has heard our public key.
fn strangers(to: &LinkPublicKey, suite: Suite, n: usize) -> Vec<Vec<u8>> {
    let mut rng = TestRng::new(77);
    (0..n)
        .map(|_| {
            let mut secret = [0; 32];
            rng.fill_bytes(&mut secret);
            let key = StaticKey::new(&LinkSecretKey::from_bytes(secret));
            let stamp = Tai64n::from_unix(Duration::from_secs(1));
            let (_, sent) = Initiator::start(&key, to, suite, 1, stamp, None, &mut rng).unwrap();
            sent.datagram.to_vec()
        })
        .collect()
}

#[test]
fn under_a_flood_cookies_let_honest_peers_in() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let mut world = World::new(3, 1);
        world.introduce(0, 1, suite, |_| {});
        world.introduce(1, 0, suite, |_| {});
        world.introduce(2, 1, suite, |_| {});
        world.introduce(1, 2, suite, |_| {});
        world.send(2, 1, packet(5, 60));
        world.run(Duration::from_secs(1));
        let forged = strangers(&world.nodes[1].key, suite, 64);
        let target = world.nodes[1].address;
        let mut sent = 0u64;
        let mut flood = |world: &mut World, time: Duration| {
            let until = world.now + time;
            while world.now < until {
                for _ in 0..2 {
                    sent += 1;
                    let ip = [203, 0, (sent >> 8) as u8, sent as u8];
                    let from = SocketAddr::new(ip.into(), 1 + (sent % 60_000) as u16);
                    let data = forged[sent as usize % forged.len()].clone();
                    world.inject(Datagram { from, to: target, data });
                }
                world.run(Duration::from_millis(1));
            }
        };
        flood(&mut world, Duration::from_secs(1));
        // An honest peer connects meanwhile: refused once, let in with a cookie.
        world.send(0, 1, packet(1, 60));
        flood(&mut world, Duration::from_secs(7));
        assert_eq!(world.stats(0, 1).state, LinkState::Up);
        assert!(world.nodes[1].inbox.iter().any(|p| sim::number(p) == 1));
        // Who was connected before is not touched.
        world.nodes[1].inbox.clear();
        world.send(2, 1, packet(6, 60));
        flood(&mut world, Duration::from_millis(100));
        assert_eq!(world.nodes[1].inbox.len(), 1);
        // The flood got cookies, not Diffie-Hellman operations.
        let answered = world.nodes[1].drops.get(DropReason::BadHandshake);
        let refused = world.nodes[1].drops.get(DropReason::UnderLoad);
        assert!(
            sent > 15_000 && answered <= 1_010 && refused > sent - 1_500,
            "{answered} {refused}"
        );
        let reported =
            |e: &LinkEvent| matches!(e, LinkEvent::Refused { reason: Refusal::UnknownPeer, .. });
        let told = world.happened(1, reported);
        assert!((1..=20 * 12).contains(&told), "reports do not flood either: {told}");
        // It ends, and so do cookies.
        world.run(Duration::from_secs(3));
        let before = world.nodes[1].drops.get(DropReason::UnderLoad);
        world.restart(0, 9);
        world.introduce(0, 1, suite, |_| {});
        world.nodes[0].clock_skew_s = 60;
        world.send(0, 1, packet(2, 60));
        world.run(Duration::from_secs(1));
        assert_eq!(world.stats(0, 1).state, LinkState::Up);
        assert_eq!(world.nodes[1].drops.get(DropReason::UnderLoad), before);
    }
}

#[test]
fn a_long_queue_alone_turns_cookies_on() {
    let mut world = World::new(2, 1);
    world.pair(Suite::Aes256Gcm);
    let forged = strangers(&world.nodes[1].key, Suite::Aes256Gcm, 1);
    let from = "203.0.113.5:5".parse().unwrap();
    world.tape = Some(Vec::new());
    world.with(1, |engine, now, rng| {
        engine.handle_handshake(from, &forged[0], 1000, now, rng);
    });
    let tape = world.tape.take().unwrap();
    assert_eq!(tape.len(), 1);
    assert_eq!((tape[0].data[0], tape[0].data.len(), tape[0].to), (0x13, 64, from));
    // A cookie reply nobody asked for is ignored.
    world.inject(Datagram { from, to: world.nodes[0].address, data: tape[0].data.clone() });
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[0].drops.get(DropReason::BadHandshake), 1);
}

#[test]
fn two_loaded_ends_connect_all_the_same() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let mut world = World::new(2, 1);
        world.queued = 1000;
        world.pair(suite);
        world.send(0, 1, packet(1, 60));
        // One try for each end's cookie.
        let arrived = |w: &World| !w.nodes[1].inbox.is_empty();
        let took = world.run_until(Duration::from_secs(60), arrived).unwrap();
        assert!((10..12).contains(&took.as_secs()), "{took:?}");
        assert_eq!(world.nodes[0].drops.get(DropReason::UnderLoad), 1);
        assert_eq!(world.nodes[1].drops.get(DropReason::UnderLoad), 1);
    }
}

/// Resident memory of this process, bytes.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn an_idle_peer_costs_little_memory_and_no_timer() {
    const PEERS: u32 = 20_000;
    let mut world = World::new(1, 1);
    let before = resident();
    world.with(0, |engine, now, rng| {
        for n in 0..PEERS {
            let mut key = [9; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            let mut config = sim::peer_config(LinkPublicKey(key), Suite::Aes256Gcm);
            config.endpoint = Some(SocketAddr::new([10, 0, 0, 1].into(), 1));
            let v4 = std::net::Ipv4Addr::from(0x6440_0000 + n);
            let v6 = std::net::Ipv6Addr::from((0xfd00_u128 << 112) + (u128::from(n) << 64) + 1);
            config.allowed = vec![ipnet::Ipv4Net::from(v4).into(), ipnet::Ipv6Net::from(v6).into()];
            engine.upsert_peer(config, now, rng);
        }
    });
    let each = (resident() - before) / PEERS as usize;
    println!("{each} bytes per idle peer");
    assert!(each < 2048, "{each} bytes");
    assert!(world.nodes[0].engine.poll_timeout().is_none());
    let routes = world.nodes[0].tables.routes.load();
    assert_eq!(
        routes.lookup("100.64.0.77".parse().unwrap()).unwrap().key().0[..4],
        77u32.to_le_bytes()
    );
}

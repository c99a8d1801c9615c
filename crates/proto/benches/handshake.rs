//! Handshakes a core answers: the cryptography alone, and the engine with all
//! its bookkeeping (mac1, peer lookup, timestamps, publishing the session).
//! The bar is 5,000 a second on one core.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warren_proto::engine::{Engine, EngineConfig, Now, PeerConfig};
use warren_proto::link::tables::Tables;
use warren_proto::noise::{Initiator, MacKey, OpenedInitiation, StaticKey, Tai64n, mac1_ok};
use warren_types::{DropCounters, LinkSecretKey, Suite};

#[path = "../src/test_rng.rs"]
mod test_rng;
use test_rng::TestRng;

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fn key(n: u16) -> StaticKey {
    let mut bytes = [1; 32];
    bytes[4..6].copy_from_slice(&n.to_le_bytes());
    StaticKey::new(&LinkSecretKey::from_bytes(bytes))
}

fn initiation(from: &StaticKey, to: &StaticKey, suite: Suite, at_s: u64) -> [u8; 148] {
    let mut rng = TestRng::new(at_s);
    let stamp = Tai64n::from_unix(Duration::from_secs(at_s));
    Initiator::start(from, &to.public(), suite, 1, stamp, None, &mut rng).unwrap().1.datagram
}

fn cryptography(c: &mut Criterion) {
    let (us, them) = (key(0), key(1));
    let mac_key = MacKey::for_receiver(&us.public());
    let mut group = c.benchmark_group("handshake/answer");
    group.throughput(Throughput::Elements(1));
    for suite in SUITES {
        let datagram = initiation(&them, &us, suite, 1);
        let mut rng = TestRng::new(2);
        group.bench_function(suite.as_str(), |b| {
            b.iter(|| {
                assert!(mac1_ok(&mac_key, &datagram));
                let opened = OpenedInitiation::open(&us, &datagram, &mut rng).unwrap();
                black_box(opened.respond(None, 7, None).unwrap())
            });
        });
    }
    group.finish();
    let datagram = initiation(&them, &us, Suite::Aes256Gcm, 1);
    c.bench_function("handshake/mac1", |b| b.iter(|| mac1_ok(&mac_key, black_box(&datagram))));
}

fn engine(c: &mut Criterion) {
    const PEERS: u16 = 256;
    let us = key(0);
    let peers: Vec<StaticKey> = (1..=PEERS).map(key).collect();
    let from: SocketAddr = "192.0.2.1:51820".parse().unwrap();
    let mut group = c.benchmark_group("handshake/engine");
    group.throughput(Throughput::Elements(1));
    for suite in SUITES {
        let epoch = Instant::now();
        let drops = Arc::new(DropCounters::default());
        let mut config = EngineConfig::new(us.clone(), Vec::new(), 1420, drops);
        config.load_per_second = u32::MAX;
        let mut engine = Engine::new(config, Arc::new(Tables::default()), epoch);
        let mut rng = TestRng::new(3);
        let mut round = 1;
        let at = |round: u64| Now {
            instant: epoch + Duration::from_secs(round),
            unix: Duration::from_secs(round),
        };
        for peer in &peers {
            let config = PeerConfig {
                key: peer.public(),
                suite,
                is_warren: true,
                psk: None,
                psk_required: false,
                endpoint: None,
                allowed: Vec::new(),
                persistent_keepalive: None,
                hold: false,
            };
            engine.upsert_peer(config, at(round), &mut rng);
        }
        group.bench_function(suite.as_str(), |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    round += 1;
                    let n = left.min(u64::from(PEERS)) as usize;
                    let made: Vec<_> =
                        peers[..n].iter().map(|p| initiation(p, &us, suite, round)).collect();
                    let start = Instant::now();
                    for datagram in &made {
                        engine.handle_handshake(from, datagram, 0, at(round), &mut rng);
                    }
                    spent += start.elapsed();
                    let answers = std::iter::from_fn(|| engine.poll_transmit()).count();
                    assert_eq!(answers, n);
                    left -= n as u64;
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = handshakes;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(30);
    targets = cryptography, engine
}
criterion_main!(handshakes);

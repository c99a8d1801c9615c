//! What circuits cost a hop and a client: handshakes a second, cells a second.
//!
//! `cargo bench -p warren-proto --bench onion`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warren_proto::link::peer::PeerLink;
use warren_proto::noise::StaticKey;
use warren_proto::onion::cell::{CELL_LEN, CircuitId};
use warren_proto::onion::circuit::{CLIENT_BUFFER, ClientCircuit, HopCircuit, Neighbour};
use warren_proto::onion::handshake::{Pending, respond};
use warren_proto::onion::keys::HopSecrets;
use warren_types::{LinkPublicKey, Suite};

#[path = "../src/test_rng.rs"]
mod test_rng;
use test_rng::TestRng;

fn neighbour(suite: Suite) -> Neighbour {
    Neighbour {
        peer: Arc::new(PeerLink::new(LinkPublicKey([1; 32]), suite, true)),
        theirs: CircuitId::new(1),
        ours: CircuitId::new(2),
    }
}

fn handshakes(c: &mut Criterion) {
    let mut group = c.benchmark_group("circuit handshake");
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let mut rng = TestRng::new(1);
        let key = StaticKey::from_bytes(&[7; 32]);
        let (_, first) = Pending::start(suite, &key.public().0, &mut rng).unwrap();
        group.throughput(Throughput::Elements(1));
        // With what the hop then keeps.
        group.bench_function(format!("a hop answers, {suite}"), |b| {
            b.iter(|| {
                let (second, agreed) = respond(suite, &key, &first, &mut rng).unwrap();
                let circuit = HopCircuit::new(neighbour(suite), agreed.secrets, agreed.hash, 1);
                black_box((second, circuit))
            });
        });
    }
    group.finish();
}

fn cells(c: &mut Criterion) {
    let mut group = c.benchmark_group("cells");
    group.throughput(Throughput::Elements(1));
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let secrets = |i: u8| HopSecrets::derive(suite, &[i; 32], &[i ^ 0x55; 96]);
        for hops in [1, 3] {
            let circuit = ClientCircuit::new(1, neighbour(suite), &secrets(0), 1);
            (1..hops).for_each(|i| circuit.extend(&secrets(i)));
            let mut buffer = vec![0; CLIENT_BUFFER];
            group.bench_function(format!("a client seals for {hops} hops, {suite}"), |b| {
                b.iter(|| circuit.seal(usize::from(hops) - 1, black_box(&mut buffer), 1));
            });
        }
        let circuit = ClientCircuit::new(1, neighbour(suite), &secrets(0), 1);
        circuit.extend(&secrets(1));
        let hop = HopCircuit::new(neighbour(suite), secrets(0), [0; 32], 1);
        let mut out = vec![0; CELL_LEN];
        group.bench_function(format!("a hop opens what passes, {suite}"), |b| {
            b.iter_batched(
                || circuit.say(1, b"text", 1),
                |cell| hop.open(&cell, &mut out, 1).unwrap(),
                criterion::BatchSize::SmallInput,
            );
        });
        let mut cell = vec![0; CELL_LEN];
        group.bench_function(format!("a hop adds its layer on the way back, {suite}"), |b| {
            b.iter(|| hop.pass_back(black_box(&mut cell), 1));
        });
    }
    group.finish();
}

criterion_group!(benches, handshakes, cells);
criterion_main!(benches);

//! Holds three things together: what `docs/protocol.md` says of circuits (by a
//! slow model of it), the vectors in `tests/vectors/onion.json`, and the code.
//!
//! `WARREN_WRITE_VECTORS=1 cargo test -p warren-proto --test onion_reference`
//! writes the vectors anew, from the model.

#![allow(clippy::disallowed_methods, reason = "tests read files")]

mod model;
mod noise;

use std::path::PathBuf;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use model::{BODY, Hop, SAID, SLOT, TEXT};
use rand_core::{CryptoRng, RngCore};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use warren_proto::link::peer::PeerLink;
use warren_proto::noise::{StaticKey, nk};
use warren_proto::onion::cell::{CELL_LEN, CircuitId, HEADER_LEN, Kind, parse};
use warren_proto::onion::circuit::{CLIENT_BUFFER, ClientCircuit, HopCircuit, Neighbour};
use warren_proto::onion::keys::{EPOCH_CELLS, EPOCH_MS, HopSecrets};
use warren_proto::onion::layer::Opened;
use warren_types::{LinkPublicKey, Suite};

const SUITES: [(Suite, &str); 2] =
    [(Suite::Aes256Gcm, "aes256gcm"), (Suite::ChaCha20Poly1305, "chacha20poly1305")];
const MAX_HOPS: usize = 4;

fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}

/// A long string of bytes: its ends, and the hash of all of it.
fn digest(bytes: &[u8]) -> Value {
    let (start, end) = (&bytes[..24], &bytes[bytes.len() - 24..]);
    json!({ "start": hex(start), "end": hex(end), "sha256": hex(Sha256::digest(bytes)) })
}

/// What hop `i` shares with the client: the handshake's hash and the secrets.
fn inputs(i: usize) -> ([u8; 32], [u8; 96]) {
    (std::array::from_fn(|at| (i * 32 + at) as u8), std::array::from_fn(|at| (at * 5 + i) as u8))
}

/// Byte `at` of every text and of the handshake's payloads.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// What a client of `count` hops says: to which hop, when, and the numbers that
/// gives at each hop on the way.
fn script(count: usize) -> Vec<(usize, u64, Vec<u64>)> {
    let last = count - 1;
    vec![
        (last, 1, vec![0; count]),
        (0, 1, vec![1]),
        (last, 1, (0..count).map(|i| if i == 0 { 2 } else { 1 }).collect()),
        (last, 1 + EPOCH_MS, vec![EPOCH_CELLS; count]),
    ]
}

fn hops(suite: Suite, count: usize) -> Vec<Hop> {
    let hop = |i: usize| Hop::derive(suite, &inputs(i).0, &inputs(i).1);
    (0..count).map(hop).collect()
}

/// Each body of a forward cell as a hop gets it, and the text at the end.
fn travel(hops: &[Hop], numbers: &[u64]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut bodies = vec![model::forward(hops, numbers, &pattern(SAID))];
    for (i, hop) in hops.iter().enumerate() {
        let (here, number, out) = model::open(hop, &bodies[i]).expect("it is for this hop");
        assert_eq!(
            (here, number, out.len()),
            (i + 1 == hops.len(), numbers[i], [BODY, TEXT][usize::from(here)])
        );
        if here {
            return (bodies, out);
        }
        bodies.push(out);
    }
    unreachable!("the last hop is the end")
}

/// Each body of a backward cell of the last hop, the client's last.
fn back(hops: &[Hop], number: u64) -> Vec<Vec<u8>> {
    let (last, before) = hops.split_last().expect("one hop or more");
    let mut bodies = vec![model::say(last, number, &pattern(TEXT))];
    for hop in before.iter().rev() {
        bodies.push(model::pass(hop, bodies.last().expect("one at least")));
    }
    let heard = model::listen(hops, bodies.last().expect("one at least"));
    assert_eq!(heard, Some((before.len(), number, pattern(TEXT))));
    bodies
}

fn handshake(suite: Suite) -> noise::Handshake {
    noise::nk(suite, [1; 32], [2; 32], [3; 32], [&pattern(1184), &pattern(1088)])
}

fn vectors(suite: Suite, name: &str) -> Value {
    let noise = handshake(suite);
    let epochs = |chain: &[u8; 32]| [0, 1, 2].map(|n| hex(model::epoch_key(chain, n << 20)));
    let keys = |i: usize| {
        let ((hash, secrets), hop) = (inputs(i), &hops(suite, MAX_HOPS)[i]);
        json!({
            "hash": hex(hash), "secrets": hex(secrets),
            "forward_chain": hex(hop.forward_chain), "backward_chain": hex(hop.backward_chain),
            "forward_mask": hex(hop.forward_mask), "backward_mask": hex(hop.backward_mask),
            "fill": hex(hop.fill), "stream": hex(hop.stream), "stream_mask": hex(hop.stream_mask),
            "forward_prefix": hop.forward_prefix, "backward_prefix": hop.backward_prefix,
            "forward_epoch_keys": epochs(&hop.forward_chain),
            "backward_epoch_keys": epochs(&hop.backward_chain),
        })
    };
    let forward = |count: usize| {
        let all = hops(suite, count);
        let cell = |(to, _, numbers): (usize, u64, Vec<u64>)| {
            let (bodies, text) = travel(&all[..=to], &numbers);
            let digests: Vec<_> = bodies.iter().map(|body| digest(body)).collect();
            json!({ "to": to, "numbers": numbers, "bodies": digests, "text": digest(&text) })
        };
        script(count).into_iter().map(cell).collect::<Vec<_>>()
    };
    let backward = |count: usize| {
        let all = hops(suite, count);
        let cell = |number: u64| {
            let digests: Vec<_> = back(&all, number).iter().map(|body| digest(body)).collect();
            json!({ "number": number, "bodies": digests })
        };
        [0, 1, EPOCH_CELLS].map(cell)
    };
    json!({
        "suite": name,
        "handshake": {
            "onion_secret": hex([1; 32]), "client_ephemeral": hex([2; 32]),
            "hop_ephemeral": hex([3; 32]), "first": digest(&noise.first),
            "second": digest(&noise.second), "hash": hex(noise.hash), "keys": hex(noise.keys),
        },
        "hops": (0..MAX_HOPS).map(keys).collect::<Vec<_>>(),
        "forward": (1..=MAX_HOPS).map(forward).collect::<Vec<_>>(),
        "backward": (1..=MAX_HOPS).map(backward).collect::<Vec<_>>(),
    })
}

#[test]
fn the_vectors_are_the_model_s() {
    let all: Vec<Value> = SUITES.iter().map(|(suite, name)| vectors(*suite, name)).collect();
    let text = serde_json::to_string_pretty(&all).unwrap() + "\n";
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/onion.json");
    if std::env::var_os("WARREN_WRITE_VECTORS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    assert!(std::fs::read_to_string(&file).unwrap() == text, "{} differs", file.display());
}

/// Section 29 has some of the values.
#[test]
fn the_document_says_the_same() {
    let document = include_str!("../../../../docs/protocol.md");
    for (suite, name) in SUITES {
        let (hash, keys) = (handshake(suite).hash, handshake(suite).keys);
        let hops = hops(suite, 3);
        let chain = hops[0].forward_chain;
        let out = travel(&hops, &[0; 3]).0.into_iter().map(|body| Sha256::digest(body).to_vec());
        let out: Vec<_> = out.collect();
        let back = Sha256::digest(&back(&hops, 0)[2]).to_vec();
        let key = model::epoch_key(&chain, EPOCH_CELLS).to_vec();
        let values = [hash.to_vec(), keys[..32].to_vec(), chain.to_vec(), key];
        for value in values.iter().chain([&out[0], &out[2], &back]) {
            assert!(
                document.contains(&hex(value)),
                "docs/protocol.md lacks {} ({name})",
                hex(value)
            );
        }
    }
}

fn neighbour(suite: Suite, n: u8) -> Neighbour {
    let peer = Arc::new(PeerLink::new(LinkPublicKey([n; 32]), suite, true));
    Neighbour { peer, theirs: CircuitId::new(0x30_2010 + u32::from(n)), ours: CircuitId::new(7) }
}

fn secrets(suite: Suite, i: usize) -> HopSecrets {
    HopSecrets::derive(suite, &inputs(i).0, &inputs(i).1)
}

fn circuit(suite: Suite, count: usize) -> (ClientCircuit, Vec<HopCircuit>) {
    let client = ClientCircuit::new(1, neighbour(suite, 0), &secrets(suite, 0), 1);
    (1..count).for_each(|i| client.extend(&secrets(suite, i)));
    let hop = |i| HopCircuit::new(neighbour(suite, i as u8), secrets(suite, i), inputs(i).0, 1);
    (client, (0..count).map(hop).collect())
}

#[test]
fn the_code_makes_and_opens_forward_cells_like_the_model() {
    for (suite, name) in SUITES {
        for count in 1..=MAX_HOPS {
            let (client, circuits) = circuit(suite, count);
            // One buffer for all cells, as workers do.
            let mut buffer = vec![0; CLIENT_BUFFER];
            for (to, now_ms, numbers) in script(count) {
                let at = ClientCircuit::text_at(to);
                buffer[at..at + SAID].copy_from_slice(&pattern(SAID));
                client.seal(to, &mut buffer, now_ms);
                let (bodies, text) = travel(&hops(suite, count)[..=to], &numbers);
                let mut cell = buffer[..CELL_LEN].to_vec();
                assert_eq!(cell[..HEADER_LEN], [5, 0x10, 0x20, 0x30]);
                assert_eq!(parse(&cell), Some((Kind::Forward, CircuitId::new(0x30_2010))));
                for (i, body) in bodies.iter().enumerate() {
                    assert!(cell[HEADER_LEN..] == body[..], "{name}: {count} hops, hop {i}");
                    let mut out = vec![0; CELL_LEN];
                    let opened = circuits[i].open(&cell, &mut out, now_ms);
                    let expected = if i == to { Opened::Here } else { Opened::Onward };
                    assert_eq!(opened, Ok(expected), "{name}: {count} hops, hop {i}");
                    cell = out;
                }
                assert!(cell[HEADER_LEN..HEADER_LEN + TEXT] == text[..], "{name}: {count} hops");
                assert_eq!(text[..SAID], pattern(SAID));
                let rest = &text[SAID..TEXT - to * SLOT];
                assert!(rest.iter().all(|byte| *byte == 0), "nothing is said there");
            }
        }
    }
}

#[test]
fn the_code_makes_and_opens_backward_cells_like_the_model() {
    for (suite, name) in SUITES {
        for count in 1..=MAX_HOPS {
            let (client, circuits) = circuit(suite, count);
            for (number, now_ms) in [(0, 1), (1, 1), (EPOCH_CELLS, 1 + EPOCH_MS)] {
                let mut cell = circuits[count - 1].say(&pattern(TEXT), now_ms);
                for (i, body) in back(&hops(suite, count), number).iter().enumerate() {
                    if i > 0 {
                        circuits[count - 1 - i].pass_back(&mut cell, now_ms);
                    }
                    assert!(cell[HEADER_LEN..] == body[..], "{name}: {count} hops, step {i}");
                }
                let mut out = vec![0; TEXT];
                assert_eq!(client.open(&mut cell, &mut out, now_ms), Ok(count - 1));
                assert_eq!(out, pattern(TEXT));
            }
        }
    }
}

/// Gives the bytes of an ephemeral key.
struct Fixed(u8);

impl RngCore for Fixed {
    fn next_u32(&mut self) -> u32 {
        unreachable!("keys are taken as bytes")
    }
    fn next_u64(&mut self) -> u64 {
        unreachable!("keys are taken as bytes")
    }
    fn fill_bytes(&mut self, dst: &mut [u8]) {
        dst.fill(self.0);
    }
}

impl CryptoRng for Fixed {}

#[test]
fn the_code_shakes_hands_like_the_model() {
    for (suite, name) in SUITES {
        let expected = handshake(suite);
        let key = StaticKey::from_bytes(&[1; 32]);
        let (client, first) =
            nk::Initiator::start(suite, &key.public().0, &pattern(1184), &mut Fixed(2)).unwrap();
        assert!(first == expected.first, "{name}");
        let (second, hop) = nk::respond(
            suite,
            &key,
            &first,
            |payload| (payload == pattern(1184)).then(|| pattern(1088)),
            &mut Fixed(3),
        )
        .unwrap();
        assert!(second == expected.second, "{name}");
        let (payload, client) = client.finish(&second).unwrap();
        assert_eq!(payload, pattern(1088));
        for shared in [hop, client] {
            assert_eq!((shared.hash, *shared.keys), (expected.hash, expected.keys), "{name}");
        }
    }
}

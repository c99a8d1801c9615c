//! Replays the fuzz corpora with a stable compiler: each seed, and each seed
//! cut short and with single bytes changed.

#![allow(clippy::disallowed_methods, reason = "tests read files and the clock")]

use std::path::Path;

#[path = "../../../fuzz/src/onion.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod onion;
#[path = "../../../fuzz/src/proto.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod proto;
#[path = "../../../fuzz/src/selection.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod selection;

fn each_seed(target: &str, replay: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut seeds = 0;
    for file in std::fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        seeds += 1;
        replay(&seed);
    }
    assert!(seeds > 0, "no seeds in {}", dir.display());
}

fn replay(target: &str, entry: fn(&[u8])) {
    each_seed(target, |seed| {
        entry(seed);
        for at in 0..seed.len().min(200) {
            entry(&seed[..at]);
            let mut changed = seed.to_vec();
            changed[at] ^= 0xff;
            entry(&changed);
        }
    });
}

#[test]
fn handshake() {
    replay("handshake", proto::handshake);
}

#[test]
fn transport() {
    replay("transport", proto::transport);
}

#[test]
fn tun_frame() {
    replay("tun_frame", proto::tun_frame);
}

#[test]
fn link_frame() {
    replay("link_frame", proto::link_frame);
}

#[test]
fn relay_frame() {
    replay("relay_frame", proto::relay_frame);
}

#[test]
fn cell() {
    replay("cell", onion::cell);
}

#[test]
fn cell_text() {
    replay("cell_text", onion::cell_text);
}

#[test]
fn circuit_handshake() {
    replay("circuit_handshake", onion::circuit_handshake);
}

#[test]
fn relay_story() {
    replay("relay_story", onion::relay_story);
}

/// Long, and text: all of it here and there, and digits for digits.
#[test]
fn explanation() {
    each_seed("explanation", |seed| {
        selection::explanation(seed);
        for at in (0..seed.len()).step_by(13) {
            selection::explanation(&seed[..at]);
            for other in [b'0', b'9', seed[at] ^ 1] {
                let mut changed = seed.to_vec();
                changed[at] = other;
                selection::explanation(&changed);
            }
        }
    });
}

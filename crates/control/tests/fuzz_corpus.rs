//! Replays the fuzz corpora with a stable compiler: each seed, and each seed
//! cut short and with single bytes changed.

#![allow(clippy::disallowed_methods, reason = "tests read files")]

use std::path::Path;

#[path = "../../../fuzz/src/control.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod entry;

fn replay(target: &str, entry: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut seeds = 0;
    for file in std::fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        seeds += 1;
        entry(&seed);
        for at in 0..seed.len().min(400) {
            entry(&seed[..at]);
            let mut changed = seed.clone();
            changed[at] ^= 0xff;
            entry(&changed);
        }
    }
    assert!(seeds > 0, "no seeds in {}", dir.display());
}

#[test]
fn join_code() {
    replay("join_code", entry::join_code);
}

#[test]
fn control_wire() {
    replay("control_wire", entry::control_wire);
}

#[test]
fn descriptor() {
    replay("descriptor", entry::descriptor);
}

#[test]
fn certificate() {
    replay("certificate", entry::certificate);
}

#[test]
fn record() {
    replay("record", entry::record);
}

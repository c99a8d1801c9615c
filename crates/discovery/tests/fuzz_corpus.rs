//! Replays the fuzz corpus with a stable compiler: each seed, and each seed cut
//! short and with single bytes changed.

#![allow(clippy::disallowed_methods, reason = "tests read files")]

use std::path::Path;

#[path = "../../../fuzz/src/discovery.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod entry;

#[test]
fn gossip() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gossip");
    let mut seeds = 0;
    for file in std::fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        seeds += 1;
        entry::gossip(&seed);
        for at in 0..seed.len() {
            entry::gossip(&seed[..at]);
            let mut changed = seed.clone();
            changed[at] ^= 0xff;
            entry::gossip(&changed);
        }
    }
    assert!(seeds > 0, "no seeds in {}", dir.display());
}

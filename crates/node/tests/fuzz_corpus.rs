//! Replays the fuzz corpus of the configuration file with a stable compiler:
//! each seed, and each seed cut short and with single bytes changed.

use std::path::Path;

#[path = "../../../fuzz/src/config.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod entry;

#[test]
fn config() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/config");
    let mut seeds = 0;
    for file in std::fs::read_dir(&dir).unwrap() {
        let seed = std::fs::read(file.unwrap().path()).unwrap();
        seeds += 1;
        entry::config(&seed);
        for at in 0..seed.len() {
            entry::config(&seed[..at]);
            let mut changed = seed.clone();
            changed[at] ^= 0xff;
            entry::config(&changed);
        }
    }
    assert!(seeds > 0, "no seeds in {}", dir.display());
}

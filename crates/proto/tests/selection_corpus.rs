//! Replays the fuzz corpus of recorded choices with a stable compiler: each
//! seed, and each seed cut short and with single bytes changed, here and there.

#![allow(clippy::disallowed_methods, reason = "tests read files")]

use std::path::Path;

#[path = "../../../fuzz/src/selection.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod entry;

#[test]
fn explanation() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/explanation");
    let mut seeds = 0;
    for file in std::fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        seeds += 1;
        entry::explanation(&seed);
        for at in (0..seed.len()).step_by(13) {
            entry::explanation(&seed[..at]);
            for other in [b'0', b'9', seed[at] ^ 1] {
                let mut changed = seed.clone();
                changed[at] = other;
                entry::explanation(&changed);
            }
        }
    }
    assert!(seeds > 0, "no seeds in {}", dir.display());
}

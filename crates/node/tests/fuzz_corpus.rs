//! Replays the fuzz corpora of this crate's parsers with a stable compiler:
//! each seed, and each seed cut short and with single bytes changed.

use std::path::Path;

#[path = "../../../fuzz/src/config.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod config;
#[path = "../../../fuzz/src/dns.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod dns;
#[path = "../../../fuzz/src/path_proof.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod path_proof;
#[path = "../../../fuzz/src/userspace.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets use it from another crate")]
mod userspace;

fn replay(corpus: &str, entry: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(corpus);
    let mut seeds = 0;
    for file in std::fs::read_dir(&dir).unwrap() {
        let seed = std::fs::read(file.unwrap().path()).unwrap();
        seeds += 1;
        entry(&seed);
        for at in 0..seed.len() {
            entry(&seed[..at]);
            let mut changed = seed.clone();
            changed[at] ^= 0xff;
            entry(&changed);
        }
    }
    assert!(seeds > 0, "no seeds in {}", dir.display());
}

#[test]
fn config() {
    replay("config", config::config);
}

#[test]
fn dns_question() {
    replay("dns_question", dns::question);
}

#[test]
fn socks() {
    replay("socks", userspace::socks);
}

#[test]
fn stack_frames() {
    replay("stack_frames", userspace::stack);
}

#[test]
fn name_answer() {
    replay("name_answer", userspace::lookup);
}

#[test]
fn path_proof() {
    replay("path_proof", path_proof::path_proof);
}

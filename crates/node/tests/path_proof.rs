//! Exported proofs of path: one that is as it should be, and what is not.
//!
//! `WARREN_WRITE_SEEDS=1 cargo test -p warren-node --test path_proof` writes the
//! seed of the fuzz target anew.

#![allow(clippy::disallowed_methods, reason = "tests write files")]

use std::collections::BTreeMap;

use data_encoding::{BASE64, HEXLOWER};
use warren_control::address::ipv6_of_key;
use warren_control::descriptor::DescriptorBody;
use warren_control::identity::IdentityKey;
use warren_control::membership::Membership;
use warren_control::path_proof::{LABEL, body};
use warren_node::path_proof::check;
use warren_types::api::{HopProof, PathProof};
use warren_types::{LinkPublicKey, NetworkId};

const NETWORK: NetworkId = NetworkId([1; 16]);
const NONCE: [u8; 32] = [9; 32];
const NAMES: [&str; 3] = ["entry", "middle", "exit"];

fn key(i: usize) -> IdentityKey {
    IdentityKey::from_seed(&[i as u8 + 1; 32]).unwrap()
}

fn node(i: usize) -> [u8; 10] {
    let address = ipv6_of_key(NETWORK, &key(i).id().0);
    *address.octets().last_chunk().unwrap()
}

fn descriptor(i: usize, network: NetworkId) -> String {
    let id = key(i).id();
    let body = DescriptorBody {
        network,
        node: id,
        name: NAMES[i].parse().unwrap(),
        link_key: LinkPublicKey([3; 32]),
        addresses: vec![ipv6_of_key(NETWORK, &id.0).into()],
        clients: Vec::new(),
        endpoints: Vec::new(),
        sequence: 1,
        issued: 1_800_000_000,
        expires: 1_800_600_000,
        chain: Vec::new(),
        left: false,
        admin: false,
        routes: Vec::new(),
        tcp: Vec::new(),
        keys: None,
        onion: None,
    };
    let signed = body.sign(&key(i), &Membership::Key(BTreeMap::new()));
    BASE64.encode(&minicbor::to_vec(&signed).unwrap())
}

fn hop(i: usize) -> HopProof {
    let next = if i + 1 < NAMES.len() { node(i + 1) } else { [0; 10] };
    let (circuit, time) = ([i as u8; 32], 1_800_000_100 + i as u64);
    let signature = key(i).sign(LABEL, &body(&circuit, &NONCE, time, &next));
    HopProof {
        name: NAMES[i].to_owned(),
        id: key(i).id(),
        descriptor: descriptor(i, NETWORK),
        circuit: HEXLOWER.encode(&circuit),
        next: HEXLOWER.encode(&next),
        node: HEXLOWER.encode(&node(i)),
        time,
        signature: HEXLOWER.encode(&signature),
    }
}

fn proof() -> PathProof {
    PathProof {
        network: NETWORK.to_string(),
        nonce: HEXLOWER.encode(&NONCE),
        hops: (0..NAMES.len()).map(hop).collect(),
        length: NAMES.len(),
    }
}

#[test]
fn the_whole_path_is_proven() {
    let checked = check(&proof()).unwrap();
    assert_eq!(checked.hops, NAMES);
    assert_eq!(checked.time, 1_800_000_100);
    let text = serde_json::to_string_pretty(&proof()).unwrap();
    assert!(check(&serde_json::from_str(&text).unwrap()).is_ok());
    if std::env::var_os("WARREN_WRITE_SEEDS").is_some() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        std::fs::write(dir.join("path_proof/three-hops"), text).unwrap();
    }
}

#[test]
fn whatever_is_altered_is_noticed() {
    type Change = fn(&mut PathProof);
    let changes: [(&str, Change, &str); 11] = [
        ("another nonce", |p| p.nonce = "08".repeat(32), "signature of hop 1 is wrong"),
        ("a short nonce", |p| p.nonce = "08".to_owned(), "nonce"),
        ("a hop less", |p| drop(p.hops.pop()), "2 of 3 hops answered"),
        ("a shorter path", |p| drop((p.hops.pop(), p.length -= 1)), "another node"),
        ("none", |p| p.hops.clear(), "0 of 3"),
        ("another order", |p| p.hops.swap(0, 1), "another node"),
        ("another time", |p| p.hops[1].time += 1, "signature of hop 2 is wrong"),
        ("another name", |p| p.hops[2].name = "other".to_owned(), "not its own"),
        ("another's descriptor", |p| p.hops[2].descriptor = descriptor(1, NETWORK), "not its own"),
        (
            "another network",
            |p| p.hops[0].descriptor = descriptor(0, NetworkId([2; 16])),
            "network",
        ),
        ("another address", |p| p.hops[0].node = HEXLOWER.encode(&node(1)), "address"),
    ];
    for (what, change, expected) in changes {
        let mut proof = proof();
        change(&mut proof);
        let fault = check(&proof).expect_err(what).to_string();
        assert!(fault.contains(expected), "{what}: {fault}");
    }
}

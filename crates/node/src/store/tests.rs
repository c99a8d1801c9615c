//! Round trips, permissions, and what happens to damaged files.

use std::os::unix::fs::PermissionsExt;

use aws_lc_rs::rand::SecureRandom;
use warren_control::network::{AuthKind, NetworkParameters};
use warren_os::files::TemporaryDir;
use warren_types::{NetworkId, Suite};

use super::*;
use crate::random::OsRandom;

fn member() -> Member {
    Member {
        network: NetworkParameters {
            name: "lab".parse().unwrap(),
            id: NetworkId([3; 16]),
            suite: Suite::Aes256Gcm,
            auth: AuthKind::Certificate,
        },
        name: "a".parse().unwrap(),
        addresses: vec!["100.64.0.7".parse().unwrap()],
    }
}

fn fresh() -> (TemporaryDir, Store) {
    let temporary = TemporaryDir::create("warren-store").unwrap();
    let store = Store::open(&temporary.path().join("state")).unwrap();
    (temporary, store)
}

#[test]
fn everything_comes_back_and_is_private() {
    let (_temporary, store) = fresh();
    let id = store.identity(&mut OsRandom).unwrap().id();
    assert_eq!(store.identity(&mut OsRandom).unwrap().id(), id);
    let link = store.link_key(&mut OsRandom).unwrap();
    assert_eq!(store.link_key(&mut OsRandom).unwrap().expose(), link.expose());
    assert_eq!(store.member().unwrap(), None);
    store.save_member(&member()).unwrap();
    assert_eq!(store.member().unwrap(), Some(member()));
    let certificates = Certificates { chain: vec![vec![1, 2], vec![3]], ca: vec![4] };
    store.save_certificates(&certificates).unwrap();
    assert_eq!(store.certificates().unwrap(), certificates);
    let client = StoredClient {
        name: "phone".parse().unwrap(),
        public_key: LinkPublicKey([9; 32]),
        preshared_key: PresharedKey::from_bytes([8; 32]),
        addresses: vec!["100.64.0.9".parse().unwrap()],
    };
    store.save_clients(std::slice::from_ref(&client)).unwrap();
    let back = store.clients().unwrap();
    assert_eq!(back[0].name, client.name);
    assert_eq!(back[0].preshared_key.expose(), client.preshared_key.expose());
    for entry in std::fs::read_dir(&store.dir).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
    assert_eq!(std::fs::metadata(&store.dir).unwrap().permissions().mode() & 0o777, 0o700);
    let dir = store.dir.clone();
    store.wipe().unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_second_daemon_is_refused() {
    let (_temporary, store) = fresh();
    let error = Store::open(&store.dir).unwrap_err();
    assert!(error.what().contains("runs on"), "{error}");
}

#[test]
fn damaged_files_are_named_and_kept() {
    let (_temporary, store) = fresh();
    for (name, read) in [
        (NETWORK, (|s: &Store| s.member().map(drop)) as fn(&Store) -> Result<(), Fault>),
        (NODE_KEY, |s| s.identity(&mut OsRandom).map(drop)),
        (LINK_KEY, |s| s.link_key(&mut OsRandom).map(drop)),
        (CLIENTS, |s| s.clients().map(drop)),
        (NODE_CERTIFICATE, |s| s.certificates().map(drop)),
    ] {
        let mut junk = [0; 40];
        aws_lc_rs::rand::SystemRandom::new().fill(&mut junk).unwrap();
        store.write(name, &junk).unwrap();
        let error = read(&store).unwrap_err();
        assert!(error.what().contains(name), "{error}");
        assert_eq!(std::fs::read(store.path(name)).unwrap(), junk);
    }
    store.write(DIRECTORY, b"junk").unwrap();
    assert!(store.directory().descriptors.is_empty());
}

//! Conflicts, order, revocation and expiry.

use super::*;
use crate::address;
use crate::ca::{Authority, CertificateRequest};
use crate::descriptor::{DESCRIPTOR_LIFE, DescriptorBody};
use crate::identity::IdentityKey;
use crate::network::{NetworkParameters, fingerprint};
use crate::psk::PskKeys;
use crate::revocation::{RevocationBody, SignedRevocation};
use crate::testing::TestRng;
use crate::trust::Trust;
use proptest::prelude::*;
use warren_types::{PresharedKey, Suite};

const NOW: u64 = 1_800_000_000;

fn psk() -> Membership {
    Membership::Psk(PskKeys::derive(&PresharedKey::from_bytes([1; 32])))
}

fn key(seed: u64) -> IdentityKey {
    IdentityKey::generate(&mut TestRng::new(seed)).unwrap()
}

fn net() -> NetworkId {
    NetworkId([1; 16])
}

fn body(key: &IdentityKey, name: &str, sequence: u64) -> DescriptorBody {
    DescriptorBody {
        network: net(),
        node: key.id(),
        name: name.parse().unwrap(),
        link_key: LinkPublicKey(key.id().0),
        addresses: vec![
            address::ipv6_of_node(net(), key.id()).into(),
            address::ipv4_of_key(net(), &key.id().0, 0).into(),
        ],
        clients: vec![],
        endpoints: vec![],
        sequence,
        issued: NOW,
        expires: NOW + DESCRIPTOR_LIFE,
        chain: vec![],
        left: false,
        admin: false,
        routes: vec![],
        tcp: vec![],
        keys: None,
        onion: None,
    }
}

fn signed(key: &IdentityKey, name: &str, sequence: u64) -> SignedDescriptor {
    body(key, name, sequence).sign(key, &psk())
}

#[test]
fn the_highest_sequence_wins_whatever_the_order() {
    let a = key(1);
    let mut directory = Directory::new(net(), psk());
    let changes = directory.apply(&signed(&a, "a", 2), NOW).unwrap().unwrap();
    assert!(matches!(changes[..], [DirectoryChange::Added(_)]));
    assert_eq!(directory.apply(&signed(&a, "old", 1), NOW), Ok(None));
    assert_eq!(directory.apply(&signed(&a, "a", 2), NOW), Ok(None));
    let changes = directory.apply(&signed(&a, "new", 3), NOW).unwrap().unwrap();
    assert!(matches!(changes[..], [DirectoryChange::Updated(_)]));
    assert_eq!(directory.get(a.id()).unwrap().name.as_str(), "new");
    assert!(!directory.has_name(&"a".parse().unwrap()));
}

#[test]
fn two_nodes_with_one_name_are_told_apart_the_same_way_everywhere() {
    let (a, b) = (key(1), key(2));
    let (small, large) = if a.id() < b.id() { (&a, &b) } else { (&b, &a) };
    for order in [[small, large], [large, small]] {
        let mut directory = Directory::new(net(), psk());
        directory.apply(&signed(order[0], "same", 1), NOW).unwrap();
        let changes = directory.apply(&signed(order[1], "same", 1), NOW).unwrap().unwrap();
        assert!(changes.iter().any(|c| matches!(
            c,
            DirectoryChange::Conflict { claim: Claim::Name(_), winner, loser }
                if *winner == small.id() && *loser == large.id()
        )));
        assert_eq!(directory.get(small.id()).unwrap().name.as_str(), "same");
        let renamed = format!("same-{}", large.id().short());
        assert_eq!(directory.get(large.id()).unwrap().name.as_str(), renamed);
        // When the winner leaves, the other gets the name back.
        let mut bye = body(small, "same", 9);
        bye.left = true;
        let changes = directory.apply(&bye.sign(small, &psk()), NOW).unwrap().unwrap();
        assert!(matches!(
            changes[..],
            [
                DirectoryChange::Removed { reason: RemovalReason::Left, .. },
                DirectoryChange::Updated(_)
            ]
        ));
        assert_eq!(directory.get(large.id()).unwrap().name.as_str(), "same");
    }
}

#[test]
fn a_node_that_left_does_not_come_back_by_an_old_descriptor() {
    let a = key(1);
    let mut directory = Directory::new(net(), psk());
    let mut bye = body(&a, "a", 5);
    bye.left = true;
    directory.apply(&bye.sign(&a, &psk()), NOW).unwrap();
    assert_eq!(directory.apply(&signed(&a, "a", 4), NOW), Ok(None));
    assert!(directory.get(a.id()).is_none());
    assert_eq!(directory.sequence(a.id()), Some(5));
    assert!(directory.expire(NOW + DESCRIPTOR_LIFE).is_empty());
    assert_eq!(directory.sequence(a.id()), None);
}

#[test]
fn a_link_key_stays_with_its_first_holder() {
    let (a, b) = (key(1), key(2));
    let mut directory = Directory::new(net(), psk());
    directory.apply(&signed(&a, "a", 1), NOW).unwrap();
    let mut thief = body(&b, "b", 1);
    thief.link_key = LinkPublicKey(a.id().0);
    assert_eq!(
        directory.apply(&thief.sign(&b, &psk()), NOW),
        Err(ApplyError::LinkKeyTaken { winner: a.id(), loser: b.id() })
    );
    let mut thief = body(&b, "b", 1);
    thief.clients.push(ClientRecord {
        name: "c".parse().unwrap(),
        key: LinkPublicKey(a.id().0),
        addresses: vec![],
    });
    assert!(directory.apply(&thief.sign(&b, &psk()), NOW).is_err());
}

#[test]
fn a_client_never_takes_a_nodes_address() {
    // Addresses follow from key bytes, so a client with the bytes of the
    // node's identity key has the node's addresses.
    let (a, b) = (key(1), key(2));
    let mut holder = body(&b, "b", 1);
    holder.clients.push(ClientRecord {
        name: "c".parse().unwrap(),
        key: LinkPublicKey(a.id().0),
        addresses: vec![address::ipv4_of_key(net(), &a.id().0, 0).into()],
    });
    let mut node = body(&a, "a", 1);
    node.link_key = LinkPublicKey([77; 32]);
    let address = node.addresses[1];
    for node_first in [true, false] {
        let mut directory = Directory::new(net(), psk());
        let (node, holder) = (node.sign(&a, &psk()), holder.sign(&b, &psk()));
        let order = if node_first { [&node, &holder] } else { [&holder, &node] };
        for descriptor in order {
            directory.apply(descriptor, NOW).unwrap();
        }
        assert!(directory.get(a.id()).unwrap().addresses.contains(&address));
        assert!(directory.get(b.id()).unwrap().clients[0].addresses.is_empty());
    }
}

fn certified() -> (Authority, Membership, NetworkId) {
    let mut rng = TestRng::new(50);
    let name: warren_types::NetworkName = "home".parse().unwrap();
    let ca = Authority::create(key(51), &name, NOW, &mut rng).unwrap();
    let print = fingerprint(ca.certificate());
    let id = NetworkParameters::certificate(name.clone(), Suite::default(), &print).id;
    let root = Trust::new(ca.certificate().to_vec(), name, id).unwrap();
    (ca, Membership::Certificate(root), id)
}

fn certified_body(
    ca: &Authority,
    network: NetworkId,
    key: &IdentityKey,
    name: &str,
) -> DescriptorBody {
    let mut body = body(key, name, 1);
    body.network = network;
    body.addresses = vec![
        address::ipv6_of_node(network, key.id()).into(),
        address::ipv4_of_key(network, &key.id().0, 0).into(),
    ];
    let request = CertificateRequest {
        id: key.id(),
        name: body.name.clone(),
        addresses: body.addresses.clone(),
        origin: None,
    };
    body.chain = vec![ca.issue_for(&request, NOW, 3600, &mut TestRng::new(60)).unwrap()];
    body
}

#[test]
fn certificates_bind_names_and_revocations_win() {
    let (ca, membership, network) = certified();
    let a = key(1);
    let mut directory = Directory::new(network, membership.clone());
    let good = certified_body(&ca, network, &a, "a");
    let mut other_name = good.clone();
    other_name.name = "b".parse().unwrap();
    assert!(directory.apply(&other_name.sign(&a, &membership), NOW).is_err());
    let mut other_address = good.clone();
    other_address.addresses.push("100.64.0.9".parse().unwrap());
    assert!(directory.apply(&other_address.sign(&a, &membership), NOW).is_err());
    let thief = key(3);
    let mut stolen = good.clone();
    stolen.node = thief.id();
    assert_eq!(
        directory.apply(&stolen.sign(&thief, &membership), NOW),
        Err(DescriptorError::WrongCertificate.into())
    );

    directory.apply(&good.sign(&a, &membership), NOW).unwrap();
    let forged = {
        let stranger =
            Authority::create(thief, &"home".parse().unwrap(), NOW, &mut TestRng::new(9)).unwrap();
        SignedRevocation::sign(
            &stranger,
            membership.trust().unwrap(),
            &RevocationBody::of(network, a.id(), NOW),
        )
    };
    assert!(directory.revoke(forged, NOW).is_err());
    assert!(directory.get(a.id()).is_some());
    let record = SignedRevocation::sign(
        &ca,
        membership.trust().unwrap(),
        &RevocationBody::of(network, a.id(), NOW),
    );
    let changes = directory.revoke(record.clone(), NOW).unwrap().unwrap();
    assert!(matches!(
        changes[..],
        [DirectoryChange::Removed { reason: RemovalReason::Revoked, .. }]
    ));
    assert_eq!(directory.revoke(record, NOW), Ok(None));
    let mut newer = good.clone();
    newer.sequence = 99;
    assert!(directory.apply(&newer.sign(&a, &membership), NOW).is_err());
    assert!(directory.check_chain(&good.chain, NOW).is_err());
}

#[test]
fn a_certificates_end_removes_its_node() {
    let (ca, membership, network) = certified();
    let a = key(1);
    let mut directory = Directory::new(network, membership.clone());
    directory.apply(&certified_body(&ca, network, &a, "a").sign(&a, &membership), NOW).unwrap();
    assert_eq!(directory.next_expiry(), Some(NOW + 3600));
    assert!(directory.expire(NOW + 3599).is_empty());
    assert!(matches!(
        directory.expire(NOW + 3600)[..],
        [DirectoryChange::Removed { reason: RemovalReason::Expired, .. }]
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Any order and repetition of the same descriptors ends in the same
    /// directory.
    #[test]
    fn partitions_merge_to_the_same(order in proptest::collection::vec(0_usize..9, 1..30)) {
        let keys: Vec<_> = (0..3).map(|n| key(n + 10)).collect();
        let all: Vec<_> = (0..9)
            .map(|n| {
                let key = &keys[n % 3];
                let mut body = body(key, ["x", "y", "x"][n / 3], 1 + (n / 3) as u64);
                body.left = n == 7;
                body.sign(key, &psk())
            })
            .collect();
        let mut shuffled = Directory::new(net(), psk());
        for at in order {
            shuffled.apply(&all[at], NOW).unwrap();
        }
        let mut straight = Directory::new(net(), psk());
        for descriptor in &all {
            shuffled.apply(descriptor, NOW).unwrap();
            straight.apply(descriptor, NOW).unwrap();
        }
        let views = |d: &Directory| d.views().cloned().collect::<Vec<_>>();
        prop_assert_eq!(views(&shuffled), views(&straight));
        prop_assert_eq!(views(&shuffled).len(), 2);
    }
}

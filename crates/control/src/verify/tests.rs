use super::*;
use crate::ca::{Authority, CertificateRequest, NODE_CERTIFICATE_LIFE};
use crate::identity::IdentityKey;
use crate::network::{NetworkParameters, fingerprint};
use crate::testing::TestRng;
use warren_types::{NetworkName, Suite};

const NOW: u64 = 1_800_000_000;

fn network(seed: u64) -> (Authority, Trust) {
    let mut rng = TestRng::new(seed);
    let name: NetworkName = "home".parse().unwrap();
    let key = IdentityKey::generate(&mut rng).unwrap();
    let ca = Authority::create(key, &name, NOW, &mut rng).unwrap();
    let params = NetworkParameters::certificate(
        name.clone(),
        Suite::default(),
        &fingerprint(ca.certificate()),
    );
    let root = Trust::new(ca.certificate().to_vec(), name, params.id).unwrap();
    (ca, root)
}

fn request(root: &Trust, id: NodeId) -> CertificateRequest {
    CertificateRequest {
        id,
        name: "alpha".parse().unwrap(),
        addresses: vec![
            address::ipv6_of_node(root.network_id, id).into(),
            address::ipv4_of_key(root.network_id, &id.0, 0).into(),
        ],
        origin: None,
    }
}

fn node(seed: u64) -> IdentityKey {
    IdentityKey::generate(&mut TestRng::new(seed)).unwrap()
}

#[test]
fn an_issued_certificate_verifies_with_all_it_says() {
    let (ca, root) = network(1);
    let key = node(2);
    let request = request(&root, key.id());
    let leaf = ca.issue(&request, NOW, &mut TestRng::new(3)).unwrap();
    let none = RevocationList::default();
    // With and without the root in the chain: TLS sends it for joiners.
    for chain in [vec![leaf.clone()], vec![leaf.clone(), ca.certificate().to_vec()]] {
        let node = verify_chain(&chain, &root, &none, NOW).unwrap();
        assert_eq!((node.id, &node.name), (key.id(), &request.name));
        assert_eq!(node.addresses, request.addresses);
        assert_eq!(node.not_after, NOW + NODE_CERTIFICATE_LIFE);
    }
    let late =
        verify_chain(std::slice::from_ref(&leaf), &root, &none, NOW + NODE_CERTIFICATE_LIFE + 1);
    assert!(matches!(late, Err(CertificateError::Expired { .. })), "{late:?}");
    let early = verify_chain(&[leaf], &root, &none, NOW - 2 * crate::ca::BACKDATE);
    assert!(matches!(early, Err(CertificateError::NotYetValid { .. })), "{early:?}");
}

#[test]
fn another_ca_of_the_same_name_is_refused() {
    let (_, root) = network(1);
    let (other_ca, other_root) = network(7);
    let key = node(2);
    let leaf = other_ca.issue(&request(&other_root, key.id()), NOW, &mut TestRng::new(3)).unwrap();
    let result = verify_chain(
        &[leaf, other_ca.certificate().to_vec()],
        &root,
        &RevocationList::default(),
        NOW,
    );
    assert_eq!(result, Err(CertificateError::WrongAuthority));
}

#[test]
fn self_signed_and_empty_chains_are_refused() {
    let (ca, root) = network(1);
    let key = node(2);
    let own = crate::ca::self_signed(&key, NOW, &mut TestRng::new(3)).unwrap();
    assert_eq!(subject_key(&own).unwrap(), key.id());
    let none = RevocationList::default();
    assert!(verify_chain(&[own], &root, &none, NOW).is_err());
    assert_eq!(verify_chain(&[], &root, &none, NOW), Err(CertificateError::Missing));
    // The root is no node.
    assert!(verify_chain(&[ca.certificate().to_vec()], &root, &none, NOW).is_err());
}

#[test]
fn a_node_certificate_cannot_issue() {
    let (ca, root) = network(1);
    let (middle, victim) = (node(2), node(4));
    let leaf = ca.issue(&request(&root, middle.id()), NOW, &mut TestRng::new(3)).unwrap();
    let forger = Authority::load(middle, leaf.clone(), &root.network).unwrap();
    let forged = forger.issue(&request(&root, victim.id()), NOW, &mut TestRng::new(5)).unwrap();
    let result = verify_chain(&[forged, leaf], &root, &RevocationList::default(), NOW);
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn every_altered_byte_is_refused() {
    let (ca, root) = network(1);
    let key = node(2);
    let leaf = ca.issue(&request(&root, key.id()), NOW, &mut TestRng::new(3)).unwrap();
    for at in 0..leaf.len() {
        let mut bad = leaf.clone();
        bad[at] ^= 0x01;
        let result = verify_chain(&[bad], &root, &RevocationList::default(), NOW);
        assert!(result.is_err(), "byte {at} altered and accepted");
    }
    for end in 0..leaf.len() {
        assert!(
            verify_chain(&[leaf[..end].to_vec()], &root, &RevocationList::default(), NOW).is_err()
        );
    }
}

#[test]
fn names_of_another_network_and_foreign_addresses_are_refused() {
    let (ca, root) = network(1);
    let key = node(2);
    let leaf = ca.issue(&request(&root, key.id()), NOW, &mut TestRng::new(3)).unwrap();
    let mut elsewhere = root.clone();
    elsewhere.network = "office".parse().unwrap();
    let none = RevocationList::default();
    assert_eq!(verify_chain(&[leaf], &elsewhere, &none, NOW), Err(CertificateError::WrongName));
    let mut foreign = request(&root, key.id());
    foreign.addresses[0] = address::ipv6_of_node(root.network_id, NodeId([1; 32])).into();
    let leaf = ca.issue(&foreign, NOW, &mut TestRng::new(3)).unwrap();
    assert_eq!(verify_chain(&[leaf], &root, &none, NOW), Err(CertificateError::WrongAddresses));
}

fn delegated(ca: &Authority, root: &Trust, seed: u64) -> Authority {
    let key = node(seed);
    let mut rng = TestRng::new(seed);
    let name = "middle".parse().unwrap();
    let der = ca.delegate(&name, key.id(), root.network_id, NOW, 1000, &mut rng).unwrap();
    assert!(ca.is_root());
    Authority::load_delegated(key, der, &root.network).unwrap()
}

fn chain(by: &Authority, request: &CertificateRequest) -> Vec<Vec<u8>> {
    let leaf = by.issue(request, NOW, &mut TestRng::new(31)).unwrap();
    [vec![leaf], by.above()].concat()
}

#[test]
fn a_delegated_authority_admits_until_it_ends_or_is_revoked() {
    let (ca, root) = network(1);
    let middle = delegated(&ca, &root, 20);
    let key = node(2);
    let chain = chain(&middle, &request(&root, key.id()));
    assert_eq!(chain.len(), 2);
    let mut revoked = RevocationList::default();
    let node = verify_chain(&chain, &root, &revoked, NOW).unwrap();
    assert_eq!(node.authority, Some(middle.key().id()));
    assert_eq!((node.root, node.not_after), (ca.key().id(), NOW + 1000));
    let with_root = [chain.clone(), vec![ca.certificate().to_vec()]].concat();
    assert!(verify_chain(&with_root, &root, &revoked, NOW).is_ok());
    assert!(verify_chain(&chain[..1], &root, &revoked, NOW).is_err(), "without its issuer");
    assert!(verify_chain(&chain, &root, &revoked, NOW + 1001).is_err());
    let info = verify_authority(middle.certificate(), &root).unwrap();
    assert_eq!((info.key, info.name.as_str()), (middle.key().id(), "middle"));
    let body = crate::revocation::RevocationBody::of(root.network_id, middle.key().id(), NOW);
    let record = crate::revocation::SignedRevocation::sign(&ca, &root, &body);
    revoked.insert(record, &root, NOW).unwrap();
    assert_eq!(
        verify_chain(&chain, &root, &revoked, NOW),
        Err(CertificateError::AuthorityRevoked { node: key.id(), authority: middle.key().id() })
    );
    let leniency = Leniency { revoked_authority: true, ..Leniency::default() };
    assert!(verify_leniently(&chain, &root, &revoked, NOW, leniency).is_ok());
}

#[test]
fn a_delegated_authority_is_confined() {
    let (ca, root) = network(1);
    let middle = delegated(&ca, &root, 20);
    let none = RevocationList::default();
    let key = node(2);
    // No authority below it.
    let second = node(21);
    assert_eq!(
        middle.delegate(
            &"x".parse().unwrap(),
            second.id(),
            root.network_id,
            NOW,
            9,
            &mut TestRng::new(1)
        ),
        Err(crate::ca::IssueError::NotRoot)
    );
    let middle_key = node(20);
    let forger = Authority::load(middle_key, middle.certificate().to_vec(), &root.network);
    let below = forger
        .unwrap()
        .delegate(&"x".parse().unwrap(), second.id(), root.network_id, NOW, 9, &mut TestRng::new(1))
        .unwrap();
    let below = Authority::load_delegated(second, below, &root.network).unwrap();
    let leaf = below.issue(&request(&root, key.id()), NOW, &mut TestRng::new(3)).unwrap();
    let long = vec![leaf, below.certificate().to_vec(), middle.certificate().to_vec()];
    assert!(verify_chain(&long, &root, &none, NOW).is_err(), "an authority under another");
    // No addresses but this network's, whatever the verifier's own rules are.
    let mut foreign = request(&root, key.id());
    foreign.addresses = vec!["192.0.2.1".parse().unwrap()];
    let result = verify_chain(&chain(&middle, &foreign), &root, &none, NOW);
    assert!(matches!(result, Err(CertificateError::Chain(_))), "{result:?}");
    // It is no node.
    assert!(verify_chain(&[middle.certificate().to_vec()], &root, &none, NOW).is_err());
    // Another network's authority is none here.
    let (other, other_root) = network(7);
    let stranger = delegated(&other, &other_root, 22);
    let theirs = chain(&stranger, &request(&root, key.id()));
    assert_eq!(verify_chain(&theirs, &root, &none, NOW), Err(CertificateError::WrongAuthority));
    assert_eq!(
        verify_authority(stranger.certificate(), &root),
        Err(CertificateError::WrongAuthority)
    );
    for at in 0..middle.certificate().len() {
        let mut bad = middle.certificate().to_vec();
        bad[at] ^= 1;
        assert!(verify_authority(&bad, &root).is_err(), "byte {at}");
    }
}

#[test]
fn a_rotated_key_keeps_the_address_of_the_first() {
    let (ca, root) = network(1);
    let (first, second) = (node(2), node(4));
    let none = RevocationList::default();
    let mut moved = request(&root, first.id());
    moved.id = second.id();
    assert_eq!(
        verify_chain(&chain(&ca, &moved), &root, &none, NOW),
        Err(CertificateError::WrongAddresses),
        "only with its origin named"
    );
    moved.origin = Some(Origin { id: first.id(), generation: 3 });
    let node = verify_chain(&chain(&ca, &moved), &root, &none, NOW).unwrap();
    assert_eq!((node.id, Some(node.origin)), (second.id(), moved.origin));
    for text in ["", "x/1", "/1", "1", "x/-1"] {
        assert!(parse_origin(text).is_err(), "{text}");
    }
    for generation in ["0", "01", "+1", "4294967296"] {
        assert!(parse_origin(&format!("{}/{generation}", first.id())).is_err());
    }
}

#[test]
fn a_replaced_root_is_told_from_a_strange_one() {
    let (ca, mut root) = network(1);
    let (next, _) = network(5);
    let key = node(2);
    let none = RevocationList::default();
    let old = chain(&ca, &request(&root, key.id()));
    let record = root.succeed(ca.key(), next.certificate(), NOW, 100);
    root.apply(&crate::trust::TrustChain(vec![record]), NOW).unwrap();
    let new = chain(&next, &request(&root, key.id()));
    assert!(verify_chain(&old, &root, &none, NOW + 99).is_ok());
    assert!(verify_chain(&new, &root, &none, NOW + 99).is_ok());
    assert_eq!(verify_chain(&old, &root, &none, NOW + 100), Err(CertificateError::FormerRoot));
    let leniency = Leniency { former_roots: true, ..Leniency::default() };
    assert!(verify_leniently(&old, &root, &none, NOW + 100, leniency).is_ok());
    let (stranger, _) = network(9);
    assert_eq!(
        verify_chain(&chain(&stranger, &request(&root, key.id())), &root, &none, NOW + 100),
        Err(CertificateError::WrongAuthority)
    );
}

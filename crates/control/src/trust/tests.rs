use super::*;
use crate::ca::Authority;
use crate::testing::TestRng;
use proptest::prelude::*;

const NOW: u64 = 1_800_000_000;
const NET: NetworkId = NetworkId([7; 16]);

fn root(seed: u64) -> Authority {
    let mut rng = TestRng::new(seed);
    let key = IdentityKey::generate(&mut rng).unwrap();
    Authority::create(key, &"home".parse().unwrap(), NOW, &mut rng).unwrap()
}

fn trust(founding: &Authority) -> Trust {
    Trust::new(founding.certificate().to_vec(), "home".parse().unwrap(), NET).unwrap()
}

fn rotate(trust: &mut Trust, old: &Authority, new: &Authority, now: u64) -> SignedTrust {
    let record = trust.succeed(old.key(), new.certificate(), now, 1000);
    assert_eq!(trust.apply(&TrustChain(vec![record.clone()]), now), Ok(true));
    record
}

#[test]
fn a_node_that_slept_through_three_rotations_catches_up() {
    let roots: Vec<Authority> = (1..5).map(root).collect();
    let mut awake = trust(&roots[0]);
    let mut asleep = awake.clone();
    for n in 0..3 {
        rotate(&mut awake, &roots[n], &roots[n + 1], NOW + 10_000 * n as u64);
    }
    assert_eq!(awake.epoch(), 3);
    let later = NOW + 1_000_000;
    let bytes = awake.chain().to_bytes();
    assert_eq!(asleep.apply(&TrustChain::from_bytes(&bytes).unwrap(), later), Ok(true));
    assert_eq!(asleep, awake);
    assert_eq!(asleep.current().key, roots[3].key().id());
    assert_eq!(asleep.roots(later).count(), 1);
    assert!(!asleep.is_root_key(roots[0].key().id(), later));
    assert_eq!(asleep.apply(&awake.chain(), later), Ok(false));
    assert_eq!(asleep.network_id, NET, "the network stays what it is");
}

#[test]
fn both_roots_count_during_the_overlap_only() {
    let (a, b) = (root(1), root(2));
    let mut trust = trust(&a);
    rotate(&mut trust, &a, &b, NOW);
    for (now, both) in [(NOW, true), (NOW + 999, true), (NOW + 1000, false)] {
        assert_eq!(trust.is_root_key(a.key().id(), now), both, "{now}");
        assert!(trust.is_root_key(b.key().id(), now));
    }
    assert_eq!(trust.ends(a.key().id()), NOW + 1000);
}

#[test]
fn two_rotations_at_once_end_the_same_way_everywhere() {
    let (a, b, c) = (root(1), root(2), root(3));
    let base = trust(&a);
    let one = base.succeed(a.key(), b.certificate(), NOW, 1000);
    let two = base.succeed(a.key(), c.certificate(), NOW + 1, 1000);
    let mut results = Vec::new();
    for order in [[&one, &two], [&two, &one]] {
        let mut trust = base.clone();
        for record in order {
            assert_eq!(trust.apply(&TrustChain(vec![record.clone()]), NOW + 5), Ok(true));
        }
        // Whoever renewed under the loser is still served.
        assert!(trust.is_root_key(b.key().id(), NOW + 5));
        assert!(trust.is_root_key(c.key().id(), NOW + 5));
        results.push((trust.current().key, trust.epoch()));
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0].1, 1);
    let winner = if one.hash() < two.hash() { &one } else { &two };
    let loser = if one.hash() < two.hash() { &two } else { &one };
    let sequence = |r: &SignedTrust| TrustChain(vec![r.clone()]).sequence();
    assert!(sequence(winner) > sequence(loser));
    // The overlap over, a stolen old key changes nothing any more.
    let mut settled = base;
    settled.apply(&TrustChain(vec![loser.clone()]), NOW + 5).unwrap();
    let late = settled.apply(&TrustChain(vec![winner.clone()]), NOW + 5000);
    assert_eq!(late, Err(TrustError::Closed));
}

#[test]
fn forged_records_are_refused() {
    let (a, b, stranger) = (root(1), root(2), root(9));
    let mut trust = trust(&a);
    let good = trust.succeed(a.key(), b.certificate(), NOW, 1000);
    let one = |record: SignedTrust| TrustChain(vec![record]);
    let mut apply = |record: SignedTrust| trust.apply(&one(record), NOW);
    let forged = SignedTrust { signature: stranger.key().sign(LABEL, &good.body), ..good.clone() };
    assert_eq!(apply(forged), Err(TrustError::BadSignature));
    let body = good.parse().unwrap();
    for (change, error) in [
        (TrustBody { network: NetworkId([1; 16]), ..body.clone() }, TrustError::WrongNetwork),
        (TrustBody { epoch: 0, ..body.clone() }, TrustError::Gap),
        (TrustBody { epoch: 2, ..body.clone() }, TrustError::Gap),
        (TrustBody { previous: [0; 32], ..body.clone() }, TrustError::Gap),
        (TrustBody { at: NOW + MAX_SKEW + 1, ..body.clone() }, TrustError::FromTheFuture),
        (TrustBody { overlap: u64::MAX, ..body.clone() }, TrustError::Malformed),
        (TrustBody { certificate: vec![1], ..body.clone() }, TrustError::Malformed),
        (
            TrustBody { certificate: a.certificate().to_vec(), ..body.clone() },
            TrustError::Malformed,
        ),
    ] {
        assert_eq!(apply(SignedTrust::sign(a.key(), &change)), Err(error), "{change:?}");
    }
    for at in 0..good.body.len() {
        let mut bad = good.clone();
        bad.body[at] ^= 1;
        assert!(apply(bad).is_err(), "byte {at}");
    }
    assert_eq!(apply(good), Ok(true));
}

#[test]
fn a_root_that_is_none_is_refused() {
    let a = root(1);
    let mut rng = TestRng::new(4);
    let key = IdentityKey::generate(&mut rng).unwrap();
    let node = crate::ca::self_signed(&key, NOW, &mut rng).unwrap();
    let name: NetworkName = "home".parse().unwrap();
    assert!(Trust::new(node, name.clone(), NET).is_err());
    let authority = IdentityKey::generate(&mut rng).unwrap();
    let delegated =
        a.delegate(&"b".parse().unwrap(), authority.id(), NET, NOW, 1000, &mut rng).unwrap();
    assert!(Trust::new(delegated, name, NET).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = TrustChain::from_bytes(&bytes);
        let mut trust = trust(&root(1));
        let record = SignedTrust { body: bytes, signature: [0; 64] };
        prop_assert!(trust.apply(&TrustChain(vec![record]), NOW).is_err());
    }
}

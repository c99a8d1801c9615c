//! Routes on small graphs by hand, and on large random ones against the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn node(n: u32) -> Ipv6Addr {
    let [a, b, c, d] = n.to_be_bytes();
    Ipv6Addr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d])
}

fn metric(ms: u64) -> LinkMetric {
    LinkMetric { rtt: Duration::from_millis(ms), loss: 0.0 }
}

/// What is true of a network.
#[derive(Debug, Clone, Default)]
struct Truth {
    links: BTreeMap<(u32, u32), LinkMetric>,
    unwilling: BTreeSet<u32>,
    sequence: u64,
}

impl Truth {
    fn link(&mut self, a: u32, b: u32, ms: u64) {
        self.links.insert((a.min(b), a.max(b)), metric(ms));
    }

    fn cut(&mut self, a: u32, b: u32) {
        self.links.remove(&(a.min(b), a.max(b)));
    }

    fn of(&self, n: u32) -> Vec<(Ipv6Addr, LinkMetric)> {
        self.links
            .iter()
            .filter(|((a, b), _)| *a == n || *b == n)
            .map(|((a, b), m)| (node(if *a == n { *b } else { *a }), *m))
            .collect()
    }

    fn tell(&mut self, router: &mut Router, own: u32, nodes: u32) {
        self.sequence += 1;
        router.set_own_links(self.of(own));
        for n in (0..nodes).filter(|n| *n != own) {
            router.apply(
                node(n),
                NodeLinks {
                    sequence: self.sequence,
                    expires: 1000,
                    willing: !self.unwilling.contains(&n),
                    load: 0,
                    partial: false,
                    links: self.of(n),
                },
            );
        }
    }
}

fn relays(router: &Router, to: u32) -> Option<Vec<Ipv6Addr>> {
    router.routes().get(&node(to)).map(|route| route.relays.clone())
}

/// 0 and 1 reach each other over 2 (20 ms) or 3 (40 ms) or 4 and 5 (24 ms).
fn diamond() -> (Truth, Router, Instant) {
    let mut truth = Truth::default();
    for (a, b, ms) in
        [(0, 2, 10), (2, 1, 10), (0, 3, 20), (3, 1, 20), (0, 4, 8), (4, 5, 8), (5, 1, 8)]
    {
        truth.link(a, b, ms);
    }
    let mut router = Router::new(node(0));
    truth.tell(&mut router, 0, 6);
    let now = Instant::now_for_tests();
    assert!(router.recompute(now));
    (truth, router, now)
}

trait ForTests {
    fn now_for_tests() -> Self;
}

impl ForTests for Instant {
    #[allow(clippy::disallowed_methods, reason = "tests need some instant to start from")]
    fn now_for_tests() -> Self {
        Instant::now()
    }
}

#[test]
fn the_cheapest_willing_way_is_taken() {
    let (mut truth, mut router, now) = diamond();
    assert_eq!(relays(&router, 1), Some(vec![node(2)]));
    assert_eq!(router.routes()[&node(1)].rtt, Duration::from_millis(20));
    truth.unwilling.insert(2);
    truth.tell(&mut router, 0, 6);
    assert!(router.is_stale() && router.recompute(now));
    assert_eq!(relays(&router, 1), Some(vec![node(4), node(5)]));
    // 2 is still reached, over 1 for one who may not use the direct link.
    assert_eq!(relays(&router, 2), Some(vec![node(4), node(5), node(1)]));
}

#[test]
fn a_relay_that_dies_is_replaced_and_its_suspicion_ends() {
    let (mut truth, mut router, now) = diamond();
    // Its neighbours say so.
    let mut dead = truth.clone();
    dead.cut(2, 1);
    dead.tell(&mut router, 0, 6);
    assert!(router.recompute(now));
    assert_eq!(relays(&router, 1), Some(vec![node(4), node(5)]));
    // Or nobody says anything, and only the traffic shows it.
    truth.sequence = dead.sequence;
    truth.tell(&mut router, 0, 6);
    router.recompute(now);
    assert_eq!(relays(&router, 1), Some(vec![node(2)]));
    router.suspect(node(1), now);
    router.recompute(now);
    assert_eq!(relays(&router, 1), Some(vec![node(4), node(5)]));
    router.suspect(node(1), now);
    router.recompute(now);
    assert_eq!(relays(&router, 1), Some(vec![node(3)]), "the last that is not suspect");
    router.suspect(node(1), now);
    router.recompute(now);
    assert!(relays(&router, 1).is_some(), "a suspect way is better than none");
    let later = now + SUSPICION + Duration::from_secs(1);
    router.recompute(later);
    assert_eq!(relays(&router, 1), Some(vec![node(2)]));
    // The second time lasts longer.
    router.suspect(node(1), later);
    router.recompute(later + SUSPICION + Duration::from_secs(1));
    assert_ne!(relays(&router, 1), Some(vec![node(2)]));
}

#[test]
fn small_differences_change_nothing() {
    let (mut truth, mut router, now) = diamond();
    truth.link(0, 2, 13);
    truth.tell(&mut router, 0, 6);
    assert!(!router.recompute(now), "20 ms against 24: not a fifth");
    assert_eq!(relays(&router, 1), Some(vec![node(2)]));
    truth.link(0, 2, 60);
    truth.tell(&mut router, 0, 6);
    assert!(router.recompute(now));
    assert_eq!(relays(&router, 1), Some(vec![node(4), node(5)]));
}

#[test]
fn explanations_name_the_alternatives() {
    let (mut truth, mut router, now) = diamond();
    let told = router.explain(node(1), now);
    let (chosen, why) = told.chosen.unwrap();
    assert_eq!((chosen.relays, why), (vec![node(2)], Why::Cheapest));
    let others: Vec<_> = told.others.iter().map(|(r, why)| (r.relays.clone(), *why)).collect();
    assert_eq!(others, [(vec![node(4), node(5)], WhyNot::Dearer), (vec![node(3)], WhyNot::Dearer)]);
    truth.unwilling.insert(3);
    truth.tell(&mut router, 0, 6);
    router.suspect(node(1), now);
    router.recompute(now);
    let told = router.explain(node(1), now);
    assert_eq!(told.unwilling, [node(3)]);
    assert_eq!(told.links, Some(3));
    assert_eq!(told.chosen.unwrap().1, Why::CheapestSuspect);
    assert!(matches!(told.others[0].1, WhyNot::Suspect { .. }), "{:?}", told.others);
    assert_eq!(router.explain(node(99), now).chosen, None);
}

#[test]
fn four_relays_are_the_most() {
    let mut truth = Truth::default();
    for n in 0..8 {
        truth.link(n, n + 1, 1);
    }
    let mut router = Router::new(node(0));
    truth.tell(&mut router, 0, 9);
    router.recompute(Instant::now_for_tests());
    assert_eq!(relays(&router, 5).unwrap().len(), MAX_RELAYS);
    assert_eq!(relays(&router, 6), None);
    assert_eq!(relays(&router, 1), None, "no way round");
}

/// A ring with chords, as the control plane keeps in large networks.
fn large(nodes: u32, degree: u32) -> Truth {
    let mut truth = Truth::default();
    let mut seed = 0x9e37_79b9_u32;
    for n in 0..nodes {
        truth.link(n, (n + 1) % nodes, 10);
        for _ in 0..degree / 2 - 1 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let other = (seed >> 8) % nodes;
            if other != n {
                truth.link(n, other, u64::from(5 + (seed >> 16) % 100));
            }
        }
    }
    truth
}

#[test]
fn a_large_network_is_computed_in_little_time() {
    const NODES: u32 = 5000;
    let truth = large(NODES, 16);
    let mut links: BTreeMap<u32, Vec<(Ipv6Addr, LinkMetric)>> = BTreeMap::new();
    for ((a, b), m) in &truth.links {
        links.entry(*a).or_default().push((node(*b), *m));
        links.entry(*b).or_default().push((node(*a), *m));
    }
    let mut router = Router::new(node(0));
    router.set_own_links(links[&0].clone());
    for n in 1..NODES {
        let said = NodeLinks {
            sequence: 1,
            expires: 10,
            willing: true,
            load: 0,
            partial: false,
            links: links[&n].clone(),
        };
        assert!(router.apply(node(n), said));
    }
    let start = Instant::now_for_tests();
    assert!(router.recompute(start));
    let took = start.elapsed();
    println!("{} routes in {took:?}", router.routes().len());
    assert!(router.routes().len() > NODES as usize * 99 / 100, "{}", router.routes().len());
    assert!(took < Duration::from_secs(5), "{took:?}: worse than linear");
}

/// The cheapest cost with at most `hops` links, by brute force.
fn truly_cheapest(truth: &Truth, nodes: u32, to: u32, direct: bool) -> Option<u32> {
    let cost_of = |m: &LinkMetric| u32::try_from(m.rtt.as_micros()).unwrap();
    let mut best = vec![None::<u32>; nodes as usize];
    best[0] = Some(0);
    for _ in 0..=MAX_RELAYS {
        let before = best.clone();
        for ((a, b), m) in &truth.links {
            for (from, at) in [(*a, *b), (*b, *a)] {
                if !direct && from == 0 && at == to {
                    continue;
                }
                if from != 0 && truth.unwilling.contains(&from) {
                    continue;
                }
                let Some(base) = before[from as usize] else { continue };
                let cost = base + cost_of(m) + if from == 0 { 0 } else { 2000 };
                if best[at as usize].is_none_or(|known| cost < known) {
                    best[at as usize] = Some(cost);
                }
            }
        }
    }
    best[to as usize]
}

proptest! {
    /// Routes exist exactly where there is a way, cost what they should, and
    /// use links that are there and relays that are willing.
    #[test]
    fn routes_are_true_and_cheapest(
        edges in proptest::collection::vec((0_u32..12, 0_u32..12, 1_u64..50), 0..40),
        unwilling in proptest::collection::btree_set(0_u32..12, 0..4),
        cuts in proptest::collection::vec((0_u32..12, 0_u32..12), 0..8),
    ) {
        const NODES: u32 = 12;
        let mut truth = Truth { unwilling, ..Truth::default() };
        for (a, b, ms) in edges {
            if a != b {
                truth.link(a, b, ms);
            }
        }
        let now = Instant::now_for_tests();
        let mut router = Router::new(node(0));
        truth.tell(&mut router, 0, NODES);
        router.recompute(now);
        for (a, b) in cuts {
            truth.cut(a, b);
        }
        truth.tell(&mut router, 0, NODES);
        // Twice: hysteresis must not keep what is gone.
        router.recompute(now);
        for to in 1..NODES {
            let direct = truth.links.contains_key(&(0, to));
            // A way for a neighbour ends one hop after the first that is found.
            let wanted = truly_cheapest(&truth, NODES, to, false);
            let found = router.routes().get(&node(to));
            prop_assert_eq!(found.is_some(), wanted.is_some(), "to {}", to);
            let Some(route) = found else { continue };
            let wanted = wanted.unwrap();
            prop_assert!(route.cost >= wanted);
            if !direct {
                let slack = (wanted / 4).max(3000);
                prop_assert!(route.cost <= wanted + slack + 1, "{} against {}", route.cost, wanted);
            }
            prop_assert!((1..=MAX_RELAYS).contains(&route.relays.len()));
            let distinct: BTreeSet<_> = route.relays.iter().collect();
            prop_assert_eq!(distinct.len(), route.relays.len(), "a loop");
            let mut at = 0;
            for next in route.relays.iter().chain([&node(to)]) {
                let next = (0..NODES).find(|n| node(*n) == *next).unwrap();
                prop_assert!(truth.links.contains_key(&(at.min(next), at.max(next))));
                prop_assert!(next == to || !truth.unwilling.contains(&next));
                at = next;
            }
        }
    }

    /// Whatever nodes say, nothing breaks.
    #[test]
    fn wild_link_states_do_no_harm(
        states in proptest::collection::vec(
            (0_u32..20, any::<u64>(), any::<u64>(), any::<bool>(), any::<bool>(),
             proptest::collection::vec((0_u32..40, any::<u32>(), any::<f32>()), 0..60)),
            0..40),
    ) {
        let now = Instant::now_for_tests();
        let mut router = Router::new(node(0));
        router.set_own_links(vec![(node(1), metric(1)), (node(2), metric(1))]);
        for (n, sequence, expires, willing, partial, links) in states {
            let links = links.into_iter().map(|(to, ms, loss)| {
                (node(to), LinkMetric { rtt: Duration::from_millis(ms.into()), loss })
            });
            router.apply(node(n), NodeLinks {
                sequence, expires, willing, load: 9, partial, links: links.collect(),
            });
            router.recompute(now);
            for to in 0..40 {
                router.suspect(node(to), now);
                router.explain(node(to), now);
            }
        }
        router.expire(u64::MAX);
        router.recompute(now);
        prop_assert!(router.routes().is_empty());
    }
}

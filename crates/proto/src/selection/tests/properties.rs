//! What holds in any world: rules are kept, paths that exist are found, and a
//! choice can be made again from what was written down.

use proptest::prelude::*;
use warren_types::{Place, Role};

use super::*;

const PLACES: [&str; 5] = ["de-fra", "fr-par", "us-nyc", "jp-tyo", "br-sao"];

prop_compose! {
    fn a_node()(
        roles in 0_u8..8,
        place in proptest::option::of(0_usize..PLACES.len()),
        family in proptest::option::of(0_u8..4),
        networks in proptest::collection::vec(0_u8..8, 0..3),
        flaws in proptest::collection::vec(proptest::bool::weighted(0.07), 4),
        load in 0.0_f32..1.2,
        mbit in proptest::option::of(1_u64..2000),
        rtt in proptest::option::of((0_u32..900_000, 0.0_f32..0.3)),
        web in proptest::bool::weighted(0.2),
    ) -> Candidate {
        let addresses = networks.iter().map(|n| IpAddr::from([40, *n, 1, 1])).collect();
        Candidate {
            roles: Roles::from_bits(roles),
            place: place.map(|p| PLACES[p].parse().unwrap()),
            family: family.map(|f| format!("f{f}").parse().unwrap()),
            addresses,
            draining: flaws[0],
            unreachable: flaws[1],
            has_key: !flaws[2],
            age_s: if flaws[3] { STALE_AFTER_S + 1 } else { 5 },
            load,
            bandwidth: mbit.map(|m| format!("{m}mbit").parse().unwrap()),
            direct: rtt.map(|(rtt_us, loss)| Measure { rtt_us, loss }),
            exit_policy: web.then(|| "accept *:443".parse().unwrap()),
            ..node(0)
        }
    }
}

prop_compose! {
    fn a_world(most: usize)(
        mut candidates in proptest::collection::vec(a_node(), 0..most),
        hops in 1_u8..=4,
        exit in 0_u8..7,
        entry in 0_u8..6,
        avoid in 0_u8..8,
        port in proptest::option::of(prop_oneof![Just(25_u16), Just(443), Just(80)]),
        distinct_countries in proptest::bool::weighted(0.2),
        family in proptest::option::weighted(0.2, 0_u8..4),
        guarded: bool,
        pairs in proptest::collection::vec((0_usize..30, 0_usize..30, 0_u32..300_000), 0..20),
        salt: u64,
    ) -> World {
        for (number, candidate) in candidates.iter_mut().enumerate() {
            let other = node(number as u16);
            (candidate.id, candidate.name) = (other.id, other.name);
        }
        let mut world = World::new(candidates);
        world.own.family = family.map(|f| format!("f{f}").parse().unwrap());
        let some = |at: u8| world.candidates.get(usize::from(at)).map_or(NodeId([1; 32]), |n| n.id);
        world.constraints = Constraints {
            hops,
            exit: match exit {
                0 => ExitChoice::Country("fr".parse().unwrap()),
                1 => ExitChoice::Region(warren_types::Region::Europe),
                2 => ExitChoice::Nearest("us-bos".parse::<Place>().unwrap().coordinates()),
                3 => ExitChoice::Random,
                4 => ExitChoice::Node(some(2)),
                _ => ExitChoice::Auto,
            },
            entry: match entry {
                0 => Some(EntryChoice::Country("de".parse().unwrap())),
                1 => Some(EntryChoice::Node(some(1))),
                _ => None,
            },
            avoid: Avoid {
                nodes: (avoid == 0).then(|| some(0)).into_iter().collect(),
                countries: (avoid == 1).then(|| "us".parse().unwrap()).into_iter().collect(),
                families: (avoid == 2).then(|| "f1".parse().unwrap()).into_iter().collect(),
            },
            port: port.map(|port| PortNeed { port, udp: false }),
            distinct_countries,
        };
        for (a, b, rtt_us) in pairs {
            if let (Some(a), Some(b)) = (world.candidates.get(a), world.candidates.get(b)) {
                world.measurements.insert(a.id, b.id, Measure { rtt_us, loss: 0.01 });
            }
        }
        if guarded {
            let mut state = GuardState::default();
            state.maintain(&world.own, &world.candidates, 1_800_000_000, &mut TestRng::new(salt));
            world.guards = Some(state);
        }
        world
    }
}

/// Written anew, as plainly as can be: may this be a path?
fn keeps_all_rules(world: &World, path: &[&Candidate]) -> bool {
    let c = &world.constraints;
    if path.len() != usize::from(c.hops) {
        return false;
    }
    for (at, node) in path.iter().enumerate() {
        let last = at + 1 == path.len();
        let role = if last {
            Role::Exit
        } else if at == 0 {
            Role::Entry
        } else {
            Role::Relay
        };
        let country = node.place.as_ref().map(|p| p.country);
        let fine = node.roles.has(role)
            && node.id != world.own.id
            && !node.draining
            && !node.unreachable
            && node.has_key
            && node.age_s <= STALE_AFTER_S
            && !(node.family.is_some() && node.family == world.own.family)
            && !c.avoid.nodes.contains(&node.id)
            && !country.is_some_and(|c2| c.avoid.countries.contains(&c2))
            && !node.family.as_ref().is_some_and(|f| c.avoid.families.contains(f));
        if !fine {
            return false;
        }
        if last {
            let place = match c.exit {
                ExitChoice::Country(wanted) => country == Some(wanted),
                ExitChoice::Region(wanted) => country.map(|c| c.region()) == Some(wanted),
                ExitChoice::Node(wanted) => node.id == wanted,
                ExitChoice::Nearest(_) => node.place.is_some(),
                ExitChoice::Auto | ExitChoice::Random => true,
            };
            let policy = node.exit_policy.clone().unwrap_or_default();
            let port = c.port.is_none_or(|need| {
                policy.allows("9.9.9.9".parse().unwrap(), need.port, warren_types::Protocol::Tcp)
            });
            if !place || !port {
                return false;
            }
        } else if at == 0 {
            let entry = match (c.entry, &world.guards) {
                (Some(EntryChoice::Country(wanted)), _) => country == Some(wanted),
                (Some(EntryChoice::Node(wanted)), _) => node.id == wanted,
                (None, Some(guards)) => guards.holds(node.id),
                (None, None) => true,
            };
            if !entry {
                return false;
            }
        }
        for other in &path[..at] {
            let slash16 = |a: &Candidate| -> Vec<[u8; 2]> {
                a.addresses
                    .iter()
                    .map(|ip| match ip {
                        IpAddr::V4(v4) => [v4.octets()[0], v4.octets()[1]],
                        IpAddr::V6(_) => unreachable!("not in these worlds"),
                    })
                    .collect()
            };
            let networks = slash16(other);
            if other.id == node.id
                || (node.family.is_some() && node.family == other.family)
                || slash16(node).iter().any(|net| networks.contains(net))
                || (c.distinct_countries
                    && country.is_some()
                    && country == other.place.as_ref().map(|p| p.country))
            {
                return false;
            }
        }
    }
    true
}

/// Tries every path there could be.
fn exists(world: &World, path: &mut Vec<usize>) -> bool {
    if path.len() == usize::from(world.constraints.hops) {
        let nodes: Vec<&Candidate> = path.iter().map(|at| &world.candidates[*at]).collect();
        return keeps_all_rules(world, &nodes);
    }
    (0..world.candidates.len()).any(|at| {
        path.push(at);
        let found = exists(world, path);
        path.pop();
        found
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn rules_are_kept_and_a_path_is_found_where_there_is_one(
        world in a_world(9), salt: u64
    ) {
        // Fewer than eight exits: `nearest` is any of them.
        let found = choose(&world.input(), seed(salt));
        prop_assert_eq!(found.is_ok(), exists(&world, &mut Vec::new()), "{:?}", found);
    }

    #[test]
    fn every_path_keeps_the_rules(world in a_world(40), salt: u64) {
        let explanation = explain(&world.input(), seed(salt));
        for sampled in &explanation.sampled {
            let path: Vec<&Candidate> = sampled.hops.iter().map(|id| world.get(*id)).collect();
            prop_assert!(keeps_all_rules(&world, &path), "{:?}", sampled);
        }
        if let Outcome::Chosen(choice) = explanation.outcome {
            let path: Vec<&Candidate> = choice.hops.iter().map(|hop| world.get(hop.id)).collect();
            prop_assert!(keeps_all_rules(&world, &path), "{:?}", names(&choice.hops));
            prop_assert!(choice.probability > 0.0 && choice.probability <= 1.0 + 1e-9);
        }
    }

    #[test]
    fn errors_are_told_and_name_a_rule_that_refused_somebody(world in a_world(12), salt: u64) {
        if let Err(error) = choose(&world.input(), seed(salt)) {
            prop_assert!(error.to_string().len() > 20);
            if let SelectionError::Empty { culprits, removed, considered, .. } = &error {
                let total: usize = removed.iter().map(|r| r.count).sum();
                prop_assert_eq!(total, *considered);
                prop_assert!(culprits.is_empty() == world.candidates.is_empty());
            }
        }
    }

    #[test]
    fn what_is_written_down_can_be_recomputed(world in a_world(20), salt: u64) {
        let explanation = explain(&world.input(), seed(salt));
        let text = serde_json::to_string(&explanation).unwrap();
        let read: Explanation = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(verify(&read), Ok(()));
        let chosen = choose(&world.input(), seed(salt));
        match (&read.outcome, chosen) {
            (Outcome::Chosen(a), Ok(b)) => prop_assert_eq!(names(&a.hops), names(&b.hops)),
            (Outcome::Failed(a), Err(b)) => prop_assert_eq!(a, &b),
            other => prop_assert!(false, "{:?}", other),
        }
        for report in &read.positions {
            let removed: usize = report.removed.iter().map(|r| r.count).sum();
            prop_assert_eq!(report.left + removed, report.considered);
        }
        let total: f64 = read.sampled.iter().map(|sampled| sampled.probability).sum();
        prop_assert!(read.sampled.is_empty() || (total - 1.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_that_are_none_do_no_harm(load: f32, reputation: f32, loss: f32, rtt_us: u32) {
        let mut world = World::new(nodes(6));
        for node in &mut world.candidates[..3] {
            node.load = load;
            node.reputation = reputation;
            node.direct = Some(Measure { rtt_us, loss });
        }
        prop_assert!(world.choose(1).is_ok());
    }
}

#[test]
fn a_changed_record_is_found_out() {
    let world = World::new(nodes(30));
    let good = explain(&world.input(), seed(1));
    assert_eq!(verify(&good), Ok(()));
    let with = |change: &dyn Fn(&mut Explanation)| {
        let mut bad = good.clone();
        change(&mut bad);
        verify(&bad)
    };
    // The operator of n7 would like to be chosen.
    assert_eq!(
        with(&|e| {
            let Outcome::Chosen(choice) = &mut e.outcome else { unreachable!() };
            let n7 = e.candidates.iter().find(|n| !choice.hops.iter().any(|h| h.id == n.id));
            choice.hops[1].id = n7.unwrap().id;
        }),
        Err(Mismatch::Outcome)
    );
    assert_eq!(with(&|e| e.seed = seed(2)), Err(Mismatch::Sampled));
    assert_eq!(with(&|e| e.weights[3] *= 2.0), Err(Mismatch::Weights));
    assert_eq!(with(&|e| e.candidates[3].draining = true), Err(Mismatch::Positions));
    assert_eq!(with(&|e| e.sampled[0].predicted.cost_ms += 1.0), Err(Mismatch::Sampled));
}

/// The draws of a seed (from Python's hashlib), so that a second implementation can check its own.
#[test]
fn draws_are_as_documented() {
    let mut draws = super::super::draw::Draws::new(Seed([0; 32]));
    let drawn: Vec<f64> = (0..3).map(|_| draws.unit()).collect();
    assert_eq!(drawn, DRAWS_OF_ZERO);
    assert_eq!(seed(5).to_string().parse(), Ok(seed(5)));
    assert!("xyz".parse::<Seed>().is_err() && "é".repeat(32).parse::<Seed>().is_err());
}

const DRAWS_OF_ZERO: [f64; 3] = [0.9158536159422439, 0.3371134773655463, 0.49130041151599047];

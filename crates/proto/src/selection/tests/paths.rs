//! Choices in small worlds, and errors that name who is to blame.

use std::collections::BTreeMap;

use super::*;

#[test]
fn three_hops_and_a_path_beside_them() {
    let mut world = World::new(nodes(20));
    for number in 0..50 {
        world.constraints = Constraints::default();
        let choice = world.choose(number).unwrap();
        assert_eq!(choice.hops.len(), 3);
        let positions: Vec<Position> = choice.hops.iter().map(|hop| hop.position).collect();
        assert_eq!(positions, [Position::Entry, Position::Relay, Position::Exit]);
        assert_eq!(world.choose(number).unwrap(), choice, "the same seed, the same choice");
        // The same exit over other nodes.
        let [entry, relay, exit] = &choice.hops[..] else { unreachable!() };
        world.constraints.avoid.nodes.extend([entry.id, relay.id]);
        world.constraints.exit = ExitChoice::Node(exit.id);
        let beside = world.choose(number).unwrap();
        assert_eq!(beside.hops[2], *exit);
        assert!(beside.hops[..2].iter().all(|hop| choice.hops.iter().all(|o| o.id != hop.id)));
    }
}

#[test]
fn distribution_follows_capacity_load_uptime_and_reputation() {
    let mut world = World::new(nodes(4));
    world.constraints.hops = 1;
    // 100 x 0.9 each: 400, 200 (half full), 100 (reputation), 53 Mbit/s, about.
    let [a, b, c, d] = &mut world.candidates[..] else { unreachable!() };
    for node in [&mut *a, &mut *b, &mut *c, &mut *d] {
        node.bandwidth = Some("400mbit".parse().unwrap());
        // Load counts for cost as well; measure everybody alike.
        node.direct = Some(Measure { rtt_us: 1_000_000, loss: 0.0 });
    }
    b.load = 0.5;
    c.reputation = 0.25;
    d.uptime_s = 86_400 / 6;
    let rounds = 3000;
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for number in 0..rounds {
        let choice = world.choose(number).unwrap();
        *counts.entry(choice.hops[0].name.to_string()).or_default() += 1.0;
    }
    let explanation = explain(&world.input(), seed(0));
    // The cost of load takes a little more from b than its weight does.
    let penalty: f64 = (-0.25 * 100.0 / (1000.0 * 0.2_f64)).exp();
    let shares = [1.0, penalty, 1.0, 1.0];
    let expected: Vec<f64> = explanation.weights.iter().zip(shares).map(|(w, s)| w * s).collect();
    let total: f64 = expected.iter().sum();
    for (number, weight) in expected.iter().enumerate() {
        let share = counts[&format!("n{number}")] / rounds as f64;
        assert!((share - weight / total).abs() < 0.035, "n{number}: {share} of {}", weight / total);
    }
}

#[test]
fn a_claim_counts_up_to_ten_times_the_median() {
    let mut world = World::new(nodes(11));
    world.candidates[0].bandwidth = Some("10000gbit".parse().unwrap());
    let explanation = explain(&world.input(), seed(1));
    assert!((explanation.weights[0] / explanation.weights[1] - 10.0).abs() < 1e-9);
}

#[test]
fn near_paths_are_preferred_to_far_ones() {
    let mut world = World::new(nodes(40));
    for node in &mut world.candidates[20..] {
        node.place = Some("au-syd".parse().unwrap());
    }
    let near = (0..200)
        .filter(|number| {
            let choice = world.choose(*number).unwrap();
            choice.hops.iter().all(|hop| hop.place.as_ref().unwrap().country.code() == "de")
        })
        .count();
    assert!(near > 190, "{near} of 200");
}

#[test]
fn measurements_count_more_than_maps() {
    let mut world = World::new(nodes(2));
    world.constraints.hops = 1;
    world.candidates[0].direct = Some(Measure { rtt_us: 400_000, loss: 0.0 });
    world.candidates[1].place = Some("fr-par".parse().unwrap());
    let hits = (0..100).filter(|n| names(&world.choose(*n).unwrap().hops) == ["n1"]).count();
    assert!(hits > 95, "{hits}");
    let (a, b) = (&world.candidates[0], &world.candidates[1]);
    let predict = |hops: &[&Candidate], measurements| {
        super::super::score::predict(&world.own, hops, measurements, ExitChoice::Auto)
    };
    let slow = predict(&[a], &world.measurements);
    assert_eq!((slow.rtt_us, slow.measured), (400_000, 1));
    let mut measurements = Measurements::default();
    measurements.insert(b.id, a.id, Measure { rtt_us: 7_000, loss: 0.5 });
    let both = predict(&[a, b], &measurements);
    assert_eq!((both.measured, both.rtt_us), (2, 407_000));
    assert!((both.loss - 0.5).abs() < 1e-6 && both.cost_ms > 1000.0);
}

#[test]
fn nearest_is_any_of_the_eight_nearest() {
    let mut world = World::new(nodes(30));
    let places = ["jp-tyo", "jp-osa", "kr-sel", "tw-tpe", "hk-hkg", "cn-sha", "cn-bjs", "ph-mnl"];
    for (node, place) in world.candidates[10..].iter_mut().zip(places) {
        node.place = Some(place.parse().unwrap());
    }
    world.candidates[29].place = None;
    let tokyo = "jp-tyo".parse::<warren_types::Place>().unwrap().coordinates();
    world.constraints.exit = ExitChoice::Nearest(tokyo);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..1600 {
        let choice = world.choose(number).unwrap();
        *counts.entry(choice.hops[2].place.as_ref().unwrap().to_string()).or_default() += 1;
    }
    assert_eq!(counts.len(), places.len(), "{counts:?}");
    assert!(counts.values().all(|count| (140..260).contains(count)), "each alike: {counts:?}");
    let explanation = explain(&world.input(), seed(1));
    let removed = &explanation.positions[0].removed;
    let count = |rule| removed.iter().find(|r| r.rule == rule).map(|r| r.count);
    assert_eq!((count(Rule::NoPlace), count(Rule::NotNearest)), (Some(1), Some(21)));
}

#[test]
fn random_takes_every_exit_alike() {
    let mut world = World::new(nodes(10));
    world.candidates[3].bandwidth = Some("1gbit".parse().unwrap());
    world.candidates[4].place = Some("au-syd".parse().unwrap());
    world.constraints.exit = ExitChoice::Random;
    let mut counts: BTreeMap<NodeId, u32> = BTreeMap::new();
    for number in 0..2000 {
        *counts.entry(world.choose(number).unwrap().hops[2].id).or_default() += 1;
    }
    assert_eq!(counts.len(), 10);
    assert!(counts.values().all(|count| (150..250).contains(count)), "{counts:?}");
}

fn text(world: &World) -> String {
    world.choose(1).unwrap_err().to_string()
}

fn culprits(world: &World) -> Vec<Rule> {
    match world.choose(1).unwrap_err() {
        SelectionError::Empty { culprits, .. } => culprits,
        SelectionError::NoPath { culprit, .. } => culprit.into_iter().collect(),
        error @ SelectionError::Hops(_) => panic!("{error}"),
    }
}

#[test]
fn errors_name_the_rule_that_left_nobody() {
    let change = |change: &dyn Fn(&mut World)| {
        let mut world = World::new(nodes(6));
        change(&mut world);
        world
    };
    let all =
        |what: fn(&mut Candidate)| change(&|world| world.candidates.iter_mut().for_each(what));
    for (world, rule, words) in [
        (all(|n| n.roles = "relay".parse().unwrap()), Rule::NoRole, "--roles exit"),
        (all(|n| n.age_s = STALE_AFTER_S + 1), Rule::Stale, "clock"),
        (all(|n| n.has_key = false), Rule::NoKey, "clocks"),
        (all(|n| n.draining = true), Rule::Draining, "draining"),
        (all(|n| n.unreachable = true), Rule::Unreachable, "connection"),
        (
            change(&|w| {
                w.own.family = Some("me".parse().unwrap());
                w.candidates.iter_mut().for_each(|n| n.family = w.own.family.clone());
            }),
            Rule::OwnFamily,
            "--family none",
        ),
        (all(|n| n.addresses = own().addresses), Rule::OwnAddress, "own address"),
        (
            change(&|w| w.constraints.exit = ExitChoice::Country("fr".parse().unwrap())),
            Rule::OtherCountry,
            "to be had: de",
        ),
        (
            change(&|w| w.constraints.exit = ExitChoice::Region(warren_types::Region::Asia)),
            Rule::OtherRegion,
            "to be had: europe",
        ),
        (
            change(&|w| w.constraints.exit = ExitChoice::Node(NodeId([3; 32]))),
            Rule::OtherNode,
            "another node with --exit",
        ),
        (
            change(&|w| {
                w.constraints.avoid.countries.insert("de".parse().unwrap());
            }),
            Rule::AvoidedCountry,
            "--avoid",
        ),
        (
            change(&|w| w.constraints.port = Some(PortNeed { port: 25, udp: false })),
            Rule::Policy,
            "exit policy",
        ),
        (
            change(&|w| {
                w.candidates.iter_mut().for_each(|n| n.place = None);
                w.constraints.exit =
                    ExitChoice::Nearest(warren_types::Coordinates { north: 0.0, east: 0.0 });
            }),
            Rule::NoPlace,
            "--exit auto",
        ),
        (
            change(&|w| w.constraints.entry = Some(EntryChoice::Country("jp".parse().unwrap()))),
            Rule::OtherCountry,
            "--entry",
        ),
        (all(|n| n.family = Some("x".parse().unwrap())), Rule::SameFamily, "--hops 1"),
        (all(|n| n.addresses = vec!["8.8.4.4".parse().unwrap()]), Rule::SameNetwork, "networks"),
        (change(&|w| w.constraints.distinct_countries = true), Rule::SameCountry, "distinct"),
    ] {
        assert_eq!(culprits(&world), [rule], "{}", text(&world));
        assert!(text(&world).contains(words), "{rule:?}: {}", text(&world));
    }
}

#[test]
fn what_was_asked_for_is_blamed_before_what_others_do() {
    // Relays in France are many; exits there are what is asked for.
    let mut world = World::new(nodes(9));
    for node in &mut world.candidates[2..] {
        node.place = Some("fr".parse().unwrap());
        node.roles = "entry,relay".parse().unwrap();
    }
    world.constraints.exit = ExitChoice::Country("fr".parse().unwrap());
    assert_eq!(culprits(&world), [Rule::OtherCountry]);
    // Two rules together.
    for node in &mut world.candidates[..2] {
        node.draining = true;
    }
    assert_eq!(culprits(&world), [Rule::Draining, Rule::OtherCountry]);
    let text = text(&world);
    assert!(text.contains("of 9 members with a role 7 do not count because"), "{text}");
}

#[test]
fn too_few_nodes_say_how_many_hops_there_could_be() {
    let mut world = World::new(nodes(2));
    let error = text(&world);
    assert!(error.contains("more nodes") && error.contains("--hops 2"), "{error}");
    assert!(culprits(&world).is_empty());
    world.constraints.hops = 2;
    assert_eq!(world.choose(1).unwrap().hops.len(), 2);
    for hops in [0, 5] {
        world.constraints.hops = hops;
        assert_eq!(world.choose(1), Err(SelectionError::Hops(hops)));
    }
    assert!(text(&World::new(Vec::new())).contains("no member has a role"));
}

#[test]
fn private_addresses_tell_nothing_about_networks() {
    let mut world = World::new(nodes(4));
    for node in &mut world.candidates {
        node.addresses = vec!["192.168.1.10".parse().unwrap(), "fd00::1".parse().unwrap()];
    }
    assert!(world.choose(1).is_ok());
    // IPv6 counts by /32, IPv4 by /16, each family for itself.
    for (a, b, same) in [
        ("8.8.1.1", "8.8.200.1", true),
        ("8.8.1.1", "8.9.1.1", false),
        ("2a00:1:2::1", "2a00:1:ffff::1", true),
        ("2a00:1:2::1", "2a00:2:2::1", false),
        ("::ffff:8.8.1.1", "8.8.2.2", true),
    ] {
        let mut world = World::new(nodes(2));
        world.constraints.hops = 2;
        world.candidates[0].addresses = vec![a.parse().unwrap()];
        world.candidates[1].addresses = vec![b.parse().unwrap()];
        assert_eq!(world.choose(1).is_err(), same, "{a} {b}");
    }
}

#[test]
fn five_thousand_candidates_are_fast() {
    let mut world = World::new(nodes(5000));
    for (number, node) in world.candidates.iter_mut().enumerate() {
        node.family = (number % 3 == 0).then(|| format!("f{}", number % 400).parse().unwrap());
        node.place = Some(["de", "us", "jp", "br", "au"][number % 5].parse().unwrap());
        node.load = (number % 10) as f32 / 10.0;
        node.exit_policy = Some("reject *:25\naccept *:*".parse().unwrap());
    }
    world.constraints.port = Some(PortNeed { port: 443, udp: false });
    let best = (0..10)
        .map(|number| {
            let start = std::time::Instant::now();
            world.choose(number).unwrap();
            start.elapsed()
        })
        .min()
        .unwrap();
    println!("one choice among 5,000: {best:?}");
    assert!(best < std::time::Duration::from_millis(50), "{best:?}");
}

#[test]
fn hopeless_worlds_are_found_out_fast() {
    // One family in 5,000 networks: no search may go through all pairs.
    let mut world = World::new(nodes(5000));
    for node in &mut world.candidates {
        node.family = Some("one".parse().unwrap());
    }
    world.constraints.hops = 4;
    let start = std::time::Instant::now();
    assert_eq!(culprits(&world), [Rule::SameFamily]);
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}

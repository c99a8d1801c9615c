//! Entries stay the same for months, whatever is done to them.

use std::collections::BTreeSet;

use super::*;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

fn ids(state: &GuardState) -> Vec<NodeId> {
    state.guards().iter().map(|guard| guard.id).collect()
}

fn pinned(world: &World, rng: &mut TestRng) -> GuardState {
    let mut state = GuardState::default();
    assert!(state.maintain(&world.own, &world.candidates, NOW, rng));
    assert_eq!(state.guards().len(), 3);
    state
}

fn down(world: &mut World, ids: &[NodeId]) {
    for node in &mut world.candidates {
        node.unreachable = ids.contains(&node.id);
    }
}

#[test]
fn all_paths_begin_with_two_guards() {
    let mut rng = TestRng::new(1);
    let mut world = World::new(nodes(50));
    let state = pinned(&world, &mut rng);
    let two: BTreeSet<NodeId> = ids(&state)[..2].iter().copied().collect();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<GuardState>(&text).unwrap(), state);
    world.guards = Some(state);
    let mut entries = BTreeSet::new();
    for number in 0..200 {
        let choice = world.choose(number).unwrap();
        let entry = choice.hops[0].id;
        entries.insert(entry);
        // A path that keeps apart from it begins with the other guard, or the
        // reserve.
        world.constraints.avoid.nodes.extend(choice.hops.iter().map(|hop| hop.id));
        let other = world.choose(number).unwrap().hops[0].id;
        assert!(other != entry && world.guards.as_ref().unwrap().holds(other));
        world.constraints.avoid.nodes.clear();
    }
    assert_eq!(entries, two);
}

#[test]
fn the_reserve_serves_only_when_both_guards_do_not() {
    let mut rng = TestRng::new(2);
    let mut world = World::new(nodes(50));
    let state = pinned(&world, &mut rng);
    let guards = ids(&state);
    world.guards = Some(state);
    down(&mut world, &guards[..1]);
    assert!((0..50).all(|n| world.choose(n).unwrap().hops[0].id == guards[1]));
    down(&mut world, &guards[..2]);
    assert!((0..50).all(|n| world.choose(n).unwrap().hops[0].id == guards[2]));
    // And then nobody else does.
    down(&mut world, &guards);
    let error = world.choose(1).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, SelectionError::Empty { position: Position::Entry, .. }), "{text}");
    for words in ["all guards are out", "did not answer", "--entry"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    // Unless it is asked for.
    let other = world.candidates.iter().find(|n| !guards.contains(&n.id)).unwrap().id;
    world.constraints.entry = Some(EntryChoice::Node(other));
    assert_eq!(world.choose(1).unwrap().hops[0].id, other);
}

#[test]
fn guards_stay_for_sixty_to_a_hundred_and_twenty_days() {
    let mut rng = TestRng::new(3);
    let mut kept = Vec::new();
    for _ in 0..200 {
        let world = World::new(nodes(10));
        let state = pinned(&world, &mut rng);
        kept.extend(state.guards().iter().map(|guard| (guard.until - guard.since) / DAY));
    }
    assert!(kept.iter().all(|days| (60..=120).contains(days)));
    assert!(kept.iter().any(|days| *days < 70) && kept.iter().any(|days| *days > 110));
    let world = World::new(nodes(10));
    let mut state = pinned(&world, &mut rng);
    let first = ids(&state);
    for day in 0..60 {
        assert!(!state.maintain(&world.own, &world.candidates, NOW + day * DAY, &mut rng));
    }
    state.maintain(&world.own, &world.candidates, NOW + 121 * DAY, &mut rng);
    assert!(state.guards().iter().all(|guard| guard.since > NOW));
    assert_eq!(first.len(), 3);
}

#[test]
fn knocking_guards_out_does_not_make_us_take_others_for_a_week() {
    let mut rng = TestRng::new(4);
    let mut world = World::new(nodes(20));
    let mut state = pinned(&world, &mut rng);
    let before = ids(&state);
    down(&mut world, &before);
    for hour in 0..7 * 24 {
        state.maintain(&world.own, &world.candidates, NOW + hour * 3600, &mut rng);
        assert_eq!(ids(&state), before);
    }
    // Back for a moment, the week begins anew.
    down(&mut world, &[]);
    state.maintain(&world.own, &world.candidates, NOW + 7 * DAY - 1, &mut rng);
    down(&mut world, &before[..1]);
    state.maintain(&world.own, &world.candidates, NOW + 7 * DAY, &mut rng);
    assert_eq!(ids(&state), before);
    state.maintain(&world.own, &world.candidates, NOW + 14 * DAY, &mut rng);
    assert_eq!(ids(&state)[..2], before[1..], "the reserve moves up");
    assert!(!state.holds(before[0]) && state.guards().len() == 3);
}

#[test]
fn a_guard_that_leaves_is_replaced_after_an_hour_and_one_that_drains_is_not() {
    let mut rng = TestRng::new(5);
    let mut world = World::new(nodes(20));
    let mut state = pinned(&world, &mut rng);
    let before = ids(&state);
    assert!(!state.maintain(&world.own, &[], NOW + 9 * DAY, &mut rng), "nothing is known yet");
    world.candidates.retain(|node| node.id != before[0]);
    world.candidates.iter_mut().find(|n| n.id == before[1]).unwrap().draining = true;
    state.maintain(&world.own, &world.candidates, NOW, &mut rng);
    state.maintain(&world.own, &world.candidates, NOW + 3599, &mut rng);
    assert_eq!(ids(&state), before);
    world.guards = Some(state.clone());
    assert_eq!(world.choose(1).unwrap().hops[0].id, before[2], "the reserve serves");
    assert!(state.maintain(&world.own, &world.candidates, NOW + 3600, &mut rng));
    assert_eq!(ids(&state)[..2], before[1..]);
    assert!(!state.holds(before[0]) && state.guards().len() == 3);
    // Who gives up the role is none at once.
    world.candidates.iter_mut().find(|n| n.id == before[2]).unwrap().roles = Roles::NONE;
    assert!(state.maintain(&world.own, &world.candidates, NOW + 3601, &mut rng));
    assert!(!state.holds(before[2]));
}

#[test]
fn guards_are_of_different_families_and_networks() {
    let mut rng = TestRng::new(6);
    let mut world = World::new(nodes(30));
    for (number, node) in world.candidates.iter_mut().enumerate() {
        node.family = Some(format!("f{}", number % 3).parse().unwrap());
    }
    for _ in 0..30 {
        let state = pinned(&world, &mut rng);
        let families: BTreeSet<_> =
            state.guards().iter().map(|guard| world.get(guard.id).family.clone()).collect();
        assert_eq!(families.len(), 3);
    }
    // With one family there is one guard, not three of one operator.
    for node in &mut world.candidates {
        node.family = Some("one".parse().unwrap());
    }
    let mut state = GuardState::default();
    state.maintain(&world.own, &world.candidates, NOW, &mut rng);
    assert_eq!(state.guards().len(), 1);
}

//! Paths that are bad for long: the right hop shows it, and the session does not
//! go to and fro.

use super::*;

/// The links from the client to the entry, and from each hop to the next.
fn links(world: &World) -> [(usize, usize); 3] {
    let [a, b, c] = [0, 1, 2].map(|hop| world.place(hop));
    [(0, a), (a.min(b), a.max(b)), (b.min(c), b.max(c))]
}

fn moves(world: &World) -> usize {
    let is = |event: &&(u64, ClientEvent)| matches!(event.1, ClientEvent::Moved { .. });
    world.events.iter().filter(is).count()
}

#[test]
fn loss_and_delay_show_at_the_hop_behind_the_link_and_nowhere_else() {
    for link in 0..3 {
        let mut world = World::connected(&[8, 9]);
        world.run(5_000, true);
        let serial = world.active().serial;
        world.loss.insert(links(&world)[link], 0.10);
        let mut seen = [0.0_f32; 3];
        for _ in 0..50 {
            world.run(100, true);
            let views = world.client.circuits(world.now_us);
            let Some(view) = views.iter().find(|view| view.serial == serial) else { break };
            for (most, hop) in seen.iter_mut().zip(&view.hops) {
                *most = most.max(hop.loss);
            }
        }
        for (hop, loss) in seen.iter().enumerate() {
            if hop == link {
                assert!(*loss >= 0.05, "link {link}: {seen:?}");
            } else {
                assert!(*loss < 0.025, "link {link}, but hop {hop} shows it: {seen:?}");
            }
        }

        let mut world = World::connected(&[8, 9]);
        world.run(5_000, true);
        let serial = world.active().serial;
        let added = |world: &World| {
            let views = world.client.circuits(world.now_us);
            let view = views.iter().find(|view| view.serial == serial)?;
            let times = view.hops.iter().map(|hop| i64::from(hop.rtt_us.unwrap()));
            let before: Vec<i64> = std::iter::once(0).chain(times).collect();
            Some([0, 1, 2].map(|i| before[i + 1] - before[i]))
        };
        let before = added(&world).unwrap();
        world.delay_us.insert(links(&world)[link], DELAY_US + 75_000);
        let mut most = [0; 3];
        for _ in 0..50 {
            world.run(100, true);
            let Some(now) = added(&world) else { break };
            (0..3).for_each(|i| most[i] = most[i].max(now[i] - before[i]));
        }
        for (hop, more) in most.iter().enumerate() {
            let range = if hop == link { 25_001..160_000 } else { -1_000..20_000 };
            assert!(range.contains(more), "link {link}: hop {hop} adds {more} us: {most:?}");
        }
    }
}

#[test]
fn a_short_path_that_loses_for_good_is_not_taken_again_and_again() {
    let mut world = World::connected(&[8, 9]);
    // All others are slower, so that this one would be preferred.
    let (first, second) = (world.place(0), world.place(1));
    for node in (1..world.nodes.len()).filter(|node| ![first, second].contains(node)) {
        world.delay_us.insert((0, node), DELAY_US + 20_000);
    }
    world.loss.insert((0, first), 0.06);
    world.run(120_000, true);
    let moves = moves(&world);
    let all: Vec<_> =
        world.events.iter().filter(|e| matches!(e.1, ClientEvent::Moved { .. })).collect();
    assert!((1..=6).contains(&moves), "{moves} moves in two minutes: {all:#?}");
    assert!(!world.active().hops.iter().any(|hop| hop.node == suffix(overlay(first))));
}

#[test]
fn a_single_lost_echo_is_no_reason_to_go() {
    let mut world = World::connected(&[8, 9]);
    for _ in 0..20 {
        let links = links(&world);
        world.loss.insert(links[0], 1.0);
        world.run(25, false);
        world.loss.clear();
        world.run(3_000, true);
    }
    assert_eq!(moves(&world), 0, "{:?}", world.events);
}

#[test]
fn an_exit_that_forgot_the_session_gets_a_new_one() {
    let mut world = World::new(10, &[9]);
    world.client.connect(1, world.now_us, &mut world.rng);
    world.run(2_000, true);
    let exit = world.place(2);
    // It restarts at once: circuits and sessions are gone.
    let tables = Arc::new(OnionTables::default());
    let mut relay = Relay::new(SUITE, tables.clone());
    relay.set_keys(vec![key(exit)]);
    let duties = Duties { entry: true, relay: true, exit: true, draining: false, ipv6: false };
    relay.set_duties(duties, 1);
    (world.nodes[exit].tables, world.nodes[exit].relay) = (tables, relay);
    let at = world.now_us;
    world.run(20_000, true);
    let lost = |event: &(u64, ClientEvent)| matches!(event.1, ClientEvent::ExitLost { .. });
    assert!(world.events.iter().any(lost), "programs learn of it: {:?}", world.events);
    assert!(world.gap_ms(at) < 15_000, "{} ms", world.gap_ms(at));
    let until = world.now_us;
    world.run(2_000, true);
    assert!(world.gap_ms(until) < 100, "data comes back again");
}

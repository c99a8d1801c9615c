//! The state machine against simulated paths on a virtual clock of 1 ms.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proptest::prelude::*;
use warren_types::mesh_address;

use super::schedule::Budget;
use super::*;
use crate::path::choice::Change;

fn data(data: u64) -> Tally {
    Tally { data, quiet: 0 }
}

const DIRECT: &str = "192.0.2.1:51820";
const OTHER: &str = "[2001:db8::1]:51820";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn relay() -> SocketAddr {
    mesh_address("fd12::7".parse().unwrap())
}

/// What a simulated path does.
#[derive(Debug, Clone, Copy)]
struct Wire {
    rtt_ms: u64,
    up: bool,
    /// Each so many packets lose one; 0 none, 1 all.
    lose_data: u64,
    /// The same of probes.
    lose_echoes: u64,
}

const GOOD: Wire = Wire { rtt_ms: 50, up: true, lose_data: 0, lose_echoes: 0 };

/// True when the `n`th packet is lost.
fn loses(each: u64, n: u64) -> bool {
    each > 0 && n.is_multiple_of(each)
}

struct World {
    paths: Paths,
    wires: BTreeMap<SocketAddr, Wire>,
    now: u64,
    pace: Pace,
    /// (arrives, id, where)
    answers: Vec<(u64, (u32, u64), SocketAddr)>,
    ids: u32,
    sent: u64,
    received: u64,
    probes: BTreeMap<SocketAddr, u64>,
    changes: Vec<(u64, Change)>,
}

impl World {
    fn new(wires: &[(SocketAddr, Wire)]) -> Self {
        let mut paths = Paths::default();
        paths.set(Origin::Configured, wires.iter().map(|(address, _)| *address));
        paths.force(wires[0].0, 1);
        Self {
            paths,
            wires: wires.iter().copied().collect(),
            now: 1,
            pace: Pace::Flowing,
            answers: Vec::new(),
            ids: 0,
            sent: 0,
            received: 0,
            probes: BTreeMap::new(),
            changes: Vec::new(),
        }
    }

    fn wire(&mut self, address: SocketAddr) -> &mut Wire {
        self.wires.get_mut(&address).unwrap()
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += 1;
            let now = self.now;
            let active = self.paths.active.unwrap();
            if self.pace == Pace::Flowing {
                self.sent += 1;
                let wire = self.wires.get(&active).copied().unwrap_or(Wire { up: false, ..GOOD });
                self.received += u64::from(wire.up && !loses(wire.lose_data, self.sent));
            }
            let due: Vec<_> = self.answers.extract_if(.., |(when, ..)| *when <= now).collect();
            for (_, (id, token), _) in due {
                self.paths.answered(id, token, data(self.received), None, now, now * 1000);
            }
            self.paths.check(now);
            if let Some(change) = self.paths.choose(now, now) {
                self.changes.push((now, change));
            }
            while let Some(to) = self.paths.due(self.pace, now) {
                self.ids += 1;
                let numbers = (self.ids, u64::from(self.ids) << 32);
                self.paths.sent(to, numbers, data(self.sent), now, now * 1000);
                let probes = self.probes.entry(to).or_default();
                *probes += 1;
                let probes = *probes;
                let wire = self.wires.get(&to).copied().unwrap_or(Wire { up: false, ..GOOD });
                if wire.up && !loses(wire.lose_echoes, probes) {
                    self.answers.push((now + wire.rtt_ms, numbers, to));
                }
            }
            assert!(self.paths.next_ms(self.pace) > now, "woken in vain: {:?}", self.paths);
        }
    }

    fn active(&self) -> SocketAddr {
        self.paths.active.unwrap()
    }

    /// Time until another path was chosen, and why.
    fn moved_after(&mut self, limit: u64) -> Option<(u64, PathReason)> {
        let (start, count) = (self.now, self.changes.len());
        while self.changes.len() == count {
            if self.now - start >= limit {
                return None;
            }
            self.run(1);
        }
        let (when, change) = self.changes[count];
        Some((when - start, change.reason))
    }
}

fn direct_and_relay() -> World {
    let mut world = World::new(&[(at(DIRECT), GOOD), (relay(), Wire { rtt_ms: 80, ..GOOD })]);
    world.run(5_000);
    assert_eq!(world.active(), at(DIRECT));
    assert!(world.changes.is_empty());
    world
}

#[test]
fn a_direct_path_replaces_a_relay_as_soon_as_it_answers() {
    let mut world = World::new(&[
        (relay(), Wire { rtt_ms: 80, ..GOOD }),
        (at(DIRECT), Wire { rtt_ms: 85, ..GOOD }),
    ]);
    let (took, reason) = world.moved_after(1_000).unwrap();
    assert_eq!(reason, PathReason::Direct);
    assert!(took <= 100, "{took}");
    world.run(60_000);
    assert_eq!(world.changes.len(), 1);
}

#[test]
fn a_dead_path_is_left_within_a_second_wherever_it_dies() {
    for offset in (0..2_000).step_by(97) {
        let mut world = direct_and_relay();
        world.run(offset);
        world.wire(at(DIRECT)).up = false;
        let (took, reason) = world.moved_after(1_000).unwrap();
        assert_eq!((world.active(), reason), (relay(), PathReason::Silent), "after {took}");
    }
}

#[test]
fn one_direction_that_dies_is_noticed_too() {
    let mut world = direct_and_relay();
    world.wire(at(DIRECT)).lose_echoes = 1;
    assert_eq!(world.moved_after(1_000).unwrap().1, PathReason::Silent);
}

#[test]
fn a_path_that_answers_but_swallows_data_is_left_and_not_soon_taken_again() {
    let mut world = direct_and_relay();
    world.wire(at(DIRECT)).lose_data = 1;
    let (took, reason) = world.moved_after(1_500).unwrap();
    assert_eq!(reason, PathReason::DataLost);
    assert!(took <= 1_000, "{took}");
    world.run(20_000);
    assert_eq!(world.active(), relay());
    world.wire(at(DIRECT)).lose_data = 0;
    world.run(200_000);
    assert_eq!(world.active(), at(DIRECT), "in the end it is tried again");
}

#[test]
fn when_all_paths_swallow_data_there_is_no_ping_pong() {
    let mut world = direct_and_relay();
    world.wire(at(DIRECT)).lose_data = 1;
    world.wire(relay()).lose_data = 1;
    world.run(60_000);
    assert!(world.changes.len() <= 40, "{} changes", world.changes.len());
}

#[test]
fn a_degraded_path_is_left_within_five_seconds() {
    let slow = |world: &mut World| world.wire(at(DIRECT)).rtt_ms += 100;
    let lossy = |world: &mut World| world.wire(at(DIRECT)).lose_data = 20;
    type Degrade<'a> = &'a dyn Fn(&mut World);
    for (degrade, expected) in
        [(&slow as Degrade<'_>, PathReason::Faster), (&lossy, PathReason::Lossy)]
    {
        for offset in (0..2_000).step_by(311) {
            let mut world = direct_and_relay();
            world.run(offset);
            degrade(&mut world);
            let (took, reason) = world.moved_after(5_000).unwrap();
            assert_eq!(reason, expected, "after {took}");
            world.run(20_000);
            assert_eq!(world.active(), relay(), "and stays away");
        }
    }
}

#[test]
fn a_path_that_lost_packets_is_taken_again_when_it_does_not() {
    for (pace, limit) in [(Pace::Flowing, 30_000), (Pace::Recent { quiet_ms: 9_000 }, 60_000)] {
        let mut world = direct_and_relay();
        *world.wire(at(DIRECT)) = Wire { lose_data: 7, lose_echoes: 7, ..GOOD };
        let (_, reason) = world.moved_after(5_000).unwrap();
        assert_eq!(reason, PathReason::Lossy);
        world.run(60_000);
        assert_eq!(world.active(), relay(), "and stays away: {:?}", world.changes);
        *world.wire(at(DIRECT)) = GOOD;
        world.pace = pace;
        let (took, reason) = world.moved_after(limit).expect("it is never taken again");
        assert_eq!(reason, PathReason::Direct, "after {took}");
    }
}

#[test]
fn what_comes_late_is_not_lost() {
    let mut path = Candidate::new(at(DIRECT), Origin::Told);
    let mut now = 0;
    for id in 0..60 {
        let late = id >= 10 && id % 4 == 0;
        path.sent(id, 7, data(0), now, now * 1000);
        if late {
            path.check(now + path.timeout_ms());
        }
        let delay = if late { path.timeout_ms() + 100 } else { 20 };
        path.answered(id, 7, now + delay, (now + delay) * 1000).unwrap();
        now += 1000;
    }
    assert_eq!(path.echo_loss(now), Some(0.0));
    for id in 60..80 {
        path.sent(id, 7, data(0), now, now * 1000);
        now += 2000;
        path.check(now);
        path.sent(id, 8, data(0), now, now * 1000);
        path.answered(id, 8, now + 20, (now + 20) * 1000).unwrap();
    }
    assert!(path.echo_loss(now).unwrap() > 0.2, "{path:?}");
}

#[test]
fn small_differences_do_not_move_traffic() {
    let mut world = World::new(&[
        (at(DIRECT), Wire { rtt_ms: 12, ..GOOD }),
        (at(OTHER), Wire { rtt_ms: 8, ..GOOD }),
    ]);
    world.run(60_000);
    assert_eq!(world.changes.len(), 0);
}

#[test]
fn a_path_that_flaps_every_two_seconds_is_seldom_used() {
    let mut world = direct_and_relay();
    for round in 0..60 {
        world.wire(at(DIRECT)).up = round % 2 == 1;
        world.run(2_000);
    }
    assert!(world.changes.len() <= 4, "{:?}", world.changes);
    assert_eq!(world.active(), relay());
    // When it stays up it is used again.
    world.run(150_000);
    assert_eq!(world.active(), at(DIRECT));
}

#[test]
fn a_path_dead_for_long_is_found_again() {
    let mut world = direct_and_relay();
    world.wire(at(DIRECT)).up = false;
    world.run(120_000);
    assert_eq!(world.active(), relay());
    world.wire(at(DIRECT)).up = true;
    world.run(120_000);
    assert_eq!(world.active(), at(DIRECT));
}

#[test]
fn idle_links_are_probed_seldom_and_asleep_ones_never() {
    let mut world = direct_and_relay();
    world.pace = Pace::Idle;
    world.run(5_000);
    world.probes.clear();
    world.run(600_000);
    assert!((28..=32).contains(&world.probes[&at(DIRECT)]), "{:?}", world.probes);
    assert!(world.probes.get(&relay()).is_none_or(|count| *count <= 1), "{:?}", world.probes);
    world.pace = Pace::Asleep;
    world.probes.clear();
    world.run(600_000);
    assert!(world.probes.is_empty());
}

#[test]
fn a_moment_of_load_does_not_show_for_minutes_on_idle_links() {
    let mut world = World::new(&[(at(DIRECT), Wire { rtt_ms: 200, ..GOOD })]);
    world.run(5_000);
    world.wire(at(DIRECT)).rtt_ms = 50;
    world.pace = Pace::Idle;
    world.run(45_000);
    let rtt = world.paths.rtt().unwrap().as_millis();
    assert!(rtt < 70, "{rtt} ms");
}

#[test]
fn a_mapping_that_changes_while_idle_shortens_the_keepalive() {
    let mut path = candidate::Candidate::new(at(DIRECT), Origin::Told);
    let mut seen =
        |port, now| path.note_observed(Some(SocketAddr::from(([192, 0, 2, 9], port))), now);
    assert!(seen(1, 10).is_some());
    assert!(seen(1, 20_010).is_none());
    for port in 2..20 {
        assert!(seen(port, 20).is_some());
    }
    assert_eq!(path.keepalive_ms, schedule::KEEPALIVE_LEAST_MS);
}

#[test]
fn strangers_get_few_probes_however_often_the_peer_changes_its_mind() {
    let mut world = direct_and_relay();
    let before: u64 = world.probes.values().sum();
    let known: Vec<SocketAddr> = world.probes.keys().copied().collect();
    for round in 0..600u16 {
        let told = (0..16).map(|n| SocketAddr::from(([203, 0, (round % 256) as u8, n], 1 + round)));
        world.paths.set(Origin::Told, told);
        world.paths.punch(world.now);
        for n in 0..8 {
            let from = SocketAddr::from(([198, 51, n, (round % 250) as u8], 1 + round));
            world.paths.heard(from, world.now);
        }
        assert!(world.paths.list.len() <= MAX_PATHS);
        world.run(100);
    }
    let strangers = world.probes.iter().filter(|(address, _)| !known.contains(address));
    let sent: u64 = strangers.map(|(_, count)| count).sum();
    assert!(sent <= Budget::MOST + 2 * 60 + 2, "{sent} in a minute");
    assert!(before > 0);
    assert_eq!(world.active(), at(DIRECT));
}

#[test]
fn an_unanswered_list_is_tried_ever_more_seldom() {
    let mut world = World::new(&[(relay(), GOOD)]);
    let told: Vec<SocketAddr> =
        (0..4).map(|n| SocketAddr::from(([203, 0, 113, n], 51820))).collect();
    world.paths.set(Origin::Told, told.iter().copied());
    world.run(3_600_000);
    for address in &told {
        let probes = world.probes[address];
        assert!((150..220).contains(&probes), "{probes} in an hour");
    }
}

#[test]
fn an_answer_needs_the_token_of_its_probe() {
    let mut paths = Paths::default();
    paths.force(relay(), 1);
    paths.set(Origin::Told, [at(DIRECT)]);
    paths.sent(at(DIRECT), (1, 77), data(0), 10, 10_000);
    paths.sent(relay(), (2, 78), data(0), 10, 10_000);
    for (id, token) in [(1, 78), (2, 77), (3, 77), (1, 0)] {
        assert!(paths.answered(id, token, data(0), None, 20, 20_000).is_none());
    }
    assert_eq!(paths.answered(1, 77, data(0), None, 20, 20_000).unwrap().path, at(DIRECT));
    assert!(paths.answered(1, 77, data(0), None, 20, 20_000).is_none(), "once");
}

#[derive(Debug, Clone)]
enum Step {
    Run(u16),
    Set(bool, Vec<u8>),
    Heard(u8),
    Force(u8),
    Wire(u8, u16, bool, u8),
    Answer(u32, u64, u64),
    Pace(u8),
    Punch,
    Session,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u16..3_000).prop_map(Step::Run),
        1 => (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(told, list)| Step::Set(told, list)),
        1 => any::<u8>().prop_map(Step::Heard),
        1 => any::<u8>().prop_map(Step::Force),
        2 => (any::<u8>(), 0u16..1_000, any::<bool>(), any::<u8>())
            .prop_map(|(n, rtt, up, lose)| Step::Wire(n, rtt, up, lose)),
        1 => (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| Step::Answer(a, b, c)),
        1 => (0u8..4).prop_map(Step::Pace),
        1 => Just(Step::Punch),
        1 => Just(Step::Session),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_and_all_is_bounded(steps in proptest::collection::vec(step(), 1..60)) {
        let address = |n: u8| match n % 8 {
            0 => relay(),
            1 => SocketAddr::from(([127, 0, 0, 1], 1 + u16::from(n))),
            _ => SocketAddr::from(([192, 0, 2, n], 51820)),
        };
        let mut world = World::new(&[(address(2), GOOD)]);
        for step in steps {
            match step {
                Step::Run(ms) => world.run(u64::from(ms)),
                Step::Set(told, list) => {
                    let origin = if told { Origin::Told } else { Origin::Configured };
                    world.paths.set(origin, list.into_iter().map(address));
                }
                Step::Heard(n) => {
                    world.paths.heard(address(n), world.now);
                }
                Step::Force(n) => world.paths.force(address(n), world.now),
                Step::Wire(n, rtt, up, lose) => {
                    let wire = Wire {
                        rtt_ms: u64::from(rtt),
                        up,
                        lose_data: u64::from(lose % 8),
                        lose_echoes: u64::from(lose > 200),
                    };
                    world.wires.insert(address(n), wire);
                }
                Step::Answer(id, token, received) => {
                    let (now, us) = (world.now, world.now * 1000);
                    world.paths.answered(id % 1_000, token, data(received), Some(address(9)), now, us);
                }
                Step::Pace(n) => {
                    world.pace =
                        [Pace::Flowing, Pace::Recent { quiet_ms: 5_000 }, Pace::Idle, Pace::Asleep][usize::from(n)];
                }
                Step::Punch => world.paths.punch(world.now),
                Step::Session => world.paths.new_session(),
            }
            prop_assert!(world.paths.list.len() <= MAX_PATHS);
            prop_assert!(world.paths.get(world.active()).is_some());
            let stats = world.paths.stats(world.now);
            prop_assert_eq!(stats.iter().filter(|path| path.active).count(), 1);
            prop_assert!(world.paths.others(world.now).len() <= MAX_TOLD);
        }
        // Seven at once and three for each later try; never a flood.
        let most = 20 * (world.now / 100 + 10) * MAX_PATHS as u64;
        prop_assert!(world.probes.values().sum::<u64>() <= most);
    }
}

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const UDP: Protocol = Protocol::Udp;

fn at(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn inside() -> SocketAddrV4 {
    at("192.168.1.2:9277")
}

/// Who gets in after one packet left for `198.18.1.1:1`: the same address and
/// port, another port of it, another address.
fn admitted(kind: Kind) -> [bool; 3] {
    let now = Instant::now();
    let mut nat = Nat::new(kind.into(), 1);
    let port = nat.leave(UDP, inside(), at("198.18.1.1:1"), now).unwrap();
    ["198.18.1.1:1", "198.18.1.1:2", "198.18.2.1:1"].map(|from| {
        let goes = nat.enter(UDP, port, at(from), now);
        assert!(goes.is_none_or(|goes| goes == inside()));
        goes.is_some()
    })
}

#[test]
fn each_kind_lets_in_whom_its_name_says() {
    assert_eq!(admitted(Kind::FullCone), [true, true, true]);
    assert_eq!(admitted(Kind::Restricted), [true, true, false]);
    assert_eq!(admitted(Kind::PortRestricted), [true, false, false]);
    assert_eq!(admitted(Kind::Symmetric), [true, false, false]);
}

#[test]
fn cones_map_alike_for_all_and_symmetric_ones_do_not() {
    let now = Instant::now();
    for kind in Kind::ALL {
        let mut nat = Nat::new(kind.into(), 7);
        let ports: std::collections::BTreeSet<u16> = (1..20u16)
            .map(|i| SocketAddrV4::new(Ipv4Addr::new(198, 18, i as u8, 1), i))
            .map(|to| nat.leave(UDP, inside(), to, now).unwrap())
            .collect();
        match kind {
            // Symmetric ones do not keep ports either, so none can be guessed.
            Kind::Symmetric => assert!(ports.len() > 17 && !ports.contains(&9277), "{ports:?}"),
            _ => assert_eq!(Vec::from_iter(ports), [9277]),
        }
    }
}

#[test]
fn ports_are_shared_out_and_protocols_kept_apart() {
    let now = Instant::now();
    let mut nat = Nat::new(Kind::FullCone.into(), 3);
    let to = at("198.18.1.1:1");
    let other = at("192.168.1.3:9277");
    assert_eq!(nat.leave(UDP, inside(), to, now), Some(9277));
    let second = nat.leave(UDP, other, to, now).unwrap();
    assert_ne!(second, 9277);
    assert_eq!(nat.leave(Protocol::Tcp, other, to, now), Some(9277));
    assert_eq!(nat.enter(UDP, 9277, to, now), Some(inside()));
    assert_eq!(nat.enter(UDP, second, to, now), Some(other));
    assert_eq!(nat.enter(Protocol::Tcp, 9277, to, now), Some(other));
    assert_eq!(nat.enter(Protocol::Tcp, second, to, now), None);
    assert_eq!(nat.ports_of(UDP, *other.ip(), now), [second]);
    assert_eq!(nat.counters(), Counters { mappings: 3, entered: 3, refused: 1, exhausted: 0 });
}

#[test]
fn mappings_live_while_packets_leave() {
    let start = Instant::now();
    let behaviour = Behaviour { udp_timeout: 30 * SECOND, ..Kind::PortRestricted.into() };
    let mut nat = Nat::new(behaviour, 3);
    let (to, quiet) = (at("198.18.1.1:1"), at("198.18.2.1:1"));
    nat.leave(UDP, inside(), quiet, start).unwrap();
    for i in 0..10 {
        nat.leave(UDP, inside(), to, start + 20 * SECOND * i).unwrap();
    }
    let last = start + 180 * SECOND;
    assert!(nat.enter(UDP, 9277, to, last + 29 * SECOND).is_some());
    // Entering packets prolong nothing, and who was not sent to for long is
    // a stranger again though the mapping lives.
    assert!(nat.enter(UDP, 9277, quiet, last).is_none());
    assert!(nat.enter(UDP, 9277, to, last + 30 * SECOND).is_none());
    // After that the port is free for others.
    let other = at("192.168.1.3:9277");
    assert_eq!(nat.leave(UDP, other, to, last + 31 * SECOND), Some(9277));
    assert_eq!(nat.enter(UDP, 9277, to, last + 31 * SECOND), Some(other));
    let moved = nat.leave(UDP, inside(), to, last + 32 * SECOND).unwrap();
    assert_ne!(moved, 9277);
    assert_eq!(nat.enter(UDP, 9277, to, last + 32 * SECOND), Some(other));
}

#[test]
fn an_expired_mapping_of_a_symmetric_one_comes_back_elsewhere() {
    let start = Instant::now();
    let mut nat = Nat::new(Kind::Symmetric.into(), 3);
    let to = at("198.18.1.1:1");
    let first = nat.leave(UDP, inside(), to, start).unwrap();
    assert_eq!(nat.leave(UDP, inside(), to, start + 29 * SECOND), Some(first));
    let second = nat.leave(UDP, inside(), to, start + 60 * SECOND).unwrap();
    assert_ne!(first, second);
    assert_eq!(nat.enter(UDP, first, to, start + 60 * SECOND), None);
    nat.forget();
    assert_eq!(nat.enter(UDP, second, to, start + 60 * SECOND), None);
}

#[test]
fn seeds_repeat_and_a_crowd_does_not_grow_the_table_for_ever() {
    let start = Instant::now();
    let run = |seed| -> Vec<u16> {
        let mut nat = Nat::new(Kind::Symmetric.into(), seed);
        let ports = (0..60_000u32).map(|i| {
            let now = start + Duration::from_millis(10) * i;
            let to = SocketAddrV4::new(Ipv4Addr::from(0xc612_0000 + i), 1);
            nat.leave(UDP, inside(), to, now).unwrap()
        });
        let ports = ports.collect();
        // 30 s of 100 a second live; the rest is swept now and then.
        assert!(nat.entries.len() <= 2 * SWEEP_AT && nat.outside.len() <= 2 * SWEEP_AT);
        ports
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn a_full_table_says_so() {
    let now = Instant::now();
    let mut nat = Nat::new(Kind::Symmetric.into(), 5);
    let count = (0..100_000u32).filter(|i| {
        let to = SocketAddrV4::new(Ipv4Addr::from(0xc612_0000 + i), 1);
        nat.leave(UDP, inside(), to, now).is_some()
    });
    let count = count.count();
    assert!((60_000..=64_511).contains(&count), "{count}");
    assert_eq!(nat.counters().exhausted, 100_000 - count as u64);
}

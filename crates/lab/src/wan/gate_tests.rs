//! Routers and firewalls with real sockets behind them.

use std::net::UdpSocket;
use std::time::Duration;

use super::tests::{bind, trains, transfer, world};
use super::*;
use crate::nat::Kind;

const MS: Duration = Duration::from_millis(1);

fn behind(kind: Kind) -> Attachment {
    Attachment { nat: Some(kind.into()), ..Attachment::default() }
}

/// Sends until the first datagram arrives; where it came from.
fn reaches(from: &UdpSocket, to: std::net::SocketAddr, at: &UdpSocket) -> Option<IpAddr> {
    let mut buffer = [0; 32];
    // Late ones of earlier questions are not answers.
    at.set_nonblocking(true).unwrap();
    while at.recv_from(&mut buffer).is_ok() {}
    at.set_nonblocking(false).unwrap();
    at.set_read_timeout(Some(60 * MS)).unwrap();
    (0..3).find_map(|_| {
        // Without a route it does not arrive either.
        let _ = from.send_to(b"knock", to);
        at.recv_from(&mut buffer).ok().map(|(_, source)| source.ip())
    })
}

#[test]
fn answers_come_back_and_strangers_do_not() {
    for kind in Kind::ALL {
        let plain = Attachment::default();
        let Some((wan, hosts)) = world(21, &[behind(kind), plain, plain]) else { return };
        let [inside, server, stranger] = [0, 1, 2].map(|i| {
            let (namespace, host) = &hosts[i];
            bind(namespace, wan.inside(*host).unwrap())
        });
        assert!(inside.local_addr().unwrap().ip().to_string().starts_with("192.168.1."));
        inside.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 32];
        let (_, seen) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(seen.ip(), hosts[0].1.ipv4());
        let same_port = seen.port() == inside.local_addr().unwrap().port();
        assert_eq!(same_port, kind != Kind::Symmetric);
        let server_address = server.local_addr().unwrap().ip();
        assert_eq!(reaches(&server, seen, &inside), Some(server_address));
        let open = reaches(&stranger, seen, &inside).is_some();
        assert_eq!(open, kind == Kind::FullCone, "{kind:?}");
        if !open {
            assert!(wan.nat_counters(hosts[0].1).unwrap().refused > 0);
        }
        wan.forget(hosts[0].1).unwrap();
        assert_eq!(reaches(&server, seen, &inside), None, "{kind:?}");
    }
}

#[test]
fn cones_can_be_punched_and_symmetric_ones_cannot() {
    for (a, b, direct) in [
        (Kind::PortRestricted, Kind::PortRestricted, true),
        (Kind::Restricted, Kind::Symmetric, true),
        (Kind::PortRestricted, Kind::Symmetric, false),
    ] {
        let cast = [behind(a), behind(b), Attachment::default()];
        let Some((wan, hosts)) = world(22, &cast) else { return };
        let [left, right, helper] = [0, 1, 2].map(|i| {
            let (namespace, host) = &hosts[i];
            bind(namespace, wan.inside(*host).unwrap())
        });
        // The helper tells each where the other is seen.
        let seen = [&left, &right].map(|socket| {
            socket.send_to(b"hello", helper.local_addr().unwrap()).unwrap();
            helper.recv_from(&mut [0; 32]).unwrap().1
        });
        // Both send, and answer what they get.
        let mut got = false;
        for _ in 0..5 {
            left.send_to(b"punch", seen[1]).unwrap();
            right.send_to(b"punch", seen[0]).unwrap();
            for socket in [&left, &right] {
                socket.set_read_timeout(Some(30 * MS)).unwrap();
                let mut buffer = [0; 32];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    match &buffer[..length] {
                        b"punch" => {
                            socket.send_to(b"back", from).unwrap();
                        }
                        answer => got |= answer == b"back",
                    }
                }
            }
        }
        assert_eq!(got, direct, "{a:?} {b:?}");
    }
}

#[test]
fn tcp_and_super_packets_pass_routers() {
    let cast = [behind(Kind::Symmetric), Attachment::default()];
    let Some((wan, hosts)) = world(23, &cast) else { return };
    let hosts = <[_; 2]>::try_from(hosts).unwrap();
    transfer(&hosts, false, 4 << 20);
    if wan.offloads(hosts[0].1).unwrap().uso {
        assert_eq!(trains(&hosts, false, 10), (400, 10));
    }
    // The same with every packet cut and its checksums done anew.
    wan.change(hosts[0].1, hosts[1].1, |link| link.loss = 0.001).unwrap();
    transfer(&hosts, false, 4 << 20);
}

#[test]
fn hosts_behind_one_router_meet_inside_and_nowhere_else() {
    let Some((mut wan, mut hosts)) = world(24, &[behind(Kind::FullCone), Attachment::default()])
    else {
        return;
    };
    let namespace = NetNamespace::create().unwrap();
    let beside = wan.attach_beside(&namespace, hosts[0].1, Attachment::default()).unwrap();
    hosts.push((namespace, beside));
    assert!(wan.attach_beside(&hosts[0].0, hosts[1].1, Attachment::default()).is_err());
    let [first, public, second] = [0, 1, 2].map(|i| {
        let (namespace, host) = &hosts[i];
        bind(namespace, wan.inside(*host).unwrap())
    });
    let inside = second.local_addr().unwrap();
    assert_eq!(reaches(&first, inside, &second), Some(wan.inside(hosts[0].1).unwrap().into()));
    assert_eq!(reaches(&public, inside, &second), None, "inside addresses mean nothing outside");
    let outside = reaches(&second, public.local_addr().unwrap(), &public);
    assert_eq!(outside, Some(hosts[0].1.ipv4().into()));
    second.send_to(b"hello", public.local_addr().unwrap()).unwrap();
    let mapped = public.recv_from(&mut [0; 32]).unwrap().1;
    assert_eq!(reaches(&first, mapped, &second), None, "no hairpins");
    assert!(reaches(&public, mapped, &second).is_some());
}

#[test]
fn firewalls_stop_udp_alone_and_only_while_they_stand() {
    let Some((wan, hosts)) = world(25, &[Attachment::default(); 3]) else { return };
    let [walled, friend, other] = [0, 1, 2].map(|i| bind(&hosts[i].0, hosts[i].1.ipv4()));
    let passes = || {
        [&friend, &other].map(|peer| {
            let (near, far) = (walled.local_addr().unwrap(), peer.local_addr().unwrap());
            let both =
                [reaches(&walled, far, peer).is_some(), reaches(peer, near, &walled).is_some()];
            assert_eq!(both[0], both[1]);
            both[0]
        })
    };
    assert_eq!(passes(), [true, true]);
    let one = Firewall::udp_only_with(hosts[1].1.ipv4().into());
    wan.set_firewall(hosts[0].1, one).unwrap();
    assert_eq!(passes(), [true, false]);
    wan.set_firewall(hosts[0].1, Firewall::no_udp()).unwrap();
    assert_eq!(passes(), [false, false]);
    let listener =
        hosts[2].0.run(|| std::net::TcpListener::bind((hosts[2].1.ipv4(), 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let connect = || {
        let wait = 200 * MS;
        hosts[0].0.run(|| std::net::TcpStream::connect_timeout(&to, wait).is_ok()).unwrap()
    };
    assert!(connect());
    let closed = Firewall { udp: Reach::Nobody, tcp: Reach::Nobody };
    wan.set_firewall(hosts[0].1, closed).unwrap();
    assert!(!connect());
    wan.set_firewall(hosts[0].1, Firewall::default()).unwrap();
    assert_eq!(passes(), [true, true]);
}

#[test]
fn partitions_part_groups_and_heal() {
    let Some((wan, hosts)) = world(26, &[Attachment::default(); 4]) else { return };
    let sockets: Vec<UdpSocket> =
        hosts.iter().map(|(namespace, host)| bind(namespace, host.ipv4())).collect();
    let reach = |a: usize, b: usize| {
        reaches(&sockets[a], sockets[b].local_addr().unwrap(), &sockets[b]).is_some()
    };
    let [a, b, c] = [0, 1, 2].map(|i| hosts[i].1);
    wan.partition(&[&[a, b], &[c]]).unwrap();
    assert!(reach(0, 1) && !reach(0, 2) && !reach(2, 1));
    assert!(reach(3, 0) && reach(2, 3), "the fourth is in no group");
    wan.heal().unwrap();
    assert!(reach(0, 2) && reach(2, 1));
}

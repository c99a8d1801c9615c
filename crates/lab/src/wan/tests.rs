use super::*;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use warren_os::udp::{RecvBatch, Transmit, UdpSocket as BatchSocket};

const MS: Duration = Duration::from_millis(1);

/// A world of hosts with real interfaces; says loudly when there can be none.
pub(super) fn world(
    seed: u64,
    attachments: &[Attachment],
) -> Option<(Wan, Vec<(NetNamespace, WanHost)>)> {
    let made = (|| {
        let mut wan = Wan::new(seed)?;
        let mut hosts = Vec::new();
        for attachment in attachments {
            let namespace = NetNamespace::create()?;
            let host = wan.attach(&namespace, *attachment)?;
            hosts.push((namespace, host));
        }
        Ok::<_, WanError>((wan, hosts))
    })();
    match made {
        Ok(world) => Some(world),
        Err(
            error @ (WanError::Tun(TunError::NoDevice | TunError::NoPermission)
            | WanError::Namespace(_)),
        ) => {
            println!("SKIPPED: no WAN emulator on this machine: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Two hosts without distance.
fn pair(seed: u64) -> Option<(Wan, [(NetNamespace, WanHost); 2])> {
    let (wan, hosts) = world(seed, &[Attachment::default(); 2])?;
    Some((wan, hosts.try_into().ok()?))
}

pub(super) fn bind(namespace: &NetNamespace, address: impl Into<IpAddr>) -> UdpSocket {
    let address = address.into();
    let socket = namespace.run(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

#[test]
fn regions_are_as_far_apart_as_the_table_says() {
    let at = |region| Attachment { region: Some(region), ..Attachment::default() };
    let Some((_wan, hosts)) =
        world(1, &[at(Region::UsEast), at(Region::Canada), at(Region::UsEast)])
    else {
        return;
    };
    for (far, v6) in [(1, false), (1, true), (2, false)] {
        let address =
            |host: WanHost| -> IpAddr { if v6 { host.ipv6().into() } else { host.ipv4().into() } };
        let near = bind(&hosts[0].0, address(hosts[0].1));
        let echo = bind(&hosts[far].0, address(hosts[far].1));
        let expected = if far == 1 {
            Region::UsEast.rtt(Region::Canada)
        } else {
            Region::UsEast.rtt(Region::UsEast)
        };
        let mut best = Duration::MAX;
        for i in 0..10u8 {
            let start = Instant::now();
            near.send_to(&[i], echo.local_addr().unwrap()).unwrap();
            let mut buffer = [0; 8];
            let (length, from) = echo.recv_from(&mut buffer).unwrap();
            assert_eq!(from, near.local_addr().unwrap());
            echo.send_to(&buffer[..length], from).unwrap();
            assert_eq!(near.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], i);
            best = best.min(start.elapsed());
        }
        // Never faster than the table less jitter, and the best of ten not
        // much slower even on a busy machine.
        assert!(best >= expected.mul_f64(0.99), "{best:?} for {expected:?}");
        assert!(best <= expected + 10 * MS, "{best:?} for {expected:?}");
    }
}

/// Sends super-packets from one host to the other and checks what comes;
/// returns datagrams and the trains they came in.
pub(super) fn trains(
    wan: &[(NetNamespace, WanHost); 2],
    v6: bool,
    rounds: usize,
) -> (usize, usize) {
    let [a, b] = wan;
    let (from, to): (IpAddr, IpAddr) = if v6 {
        (a.1.ipv6().into(), b.1.ipv6().into())
    } else {
        // Whatever address it has behind a router.
        (Ipv4Addr::UNSPECIFIED.into(), b.1.ipv4().into())
    };
    let sender = a.0.run(|| BatchSocket::bind((from, 0).into(), false).unwrap()).unwrap();
    let receiver = b.0.run(|| BatchSocket::bind((to, 0).into(), false).unwrap()).unwrap();
    let to = receiver.local_addr().unwrap();
    let mut batch = RecvBatch::default();
    let (mut datagrams, mut came_in) = (0, 0);
    for round in 0..rounds {
        let data: Vec<u8> =
            (0..40u8).flat_map(|i| vec![i ^ round as u8; if i < 39 { 1400 } else { 77 }]).collect();
        sender.send(&Transmit { to, data: &data, segment: 1400, tos: 0 }).unwrap();
        let deadline = Instant::now() + 50 * MS;
        let mut seen = 0;
        while seen < 40 && Instant::now() < deadline {
            let Ok(count) = receiver.receive(&mut batch) else {
                std::thread::sleep(MS / 10);
                continue;
            };
            for i in 0..count {
                let train = batch.train(i).unwrap();
                came_in += 1;
                for datagram in train.data.chunks(train.segment) {
                    let number = datagram[0] ^ round as u8;
                    assert!(datagram.iter().all(|byte| *byte == datagram[0]));
                    assert_eq!(datagram.len(), if number < 39 { 1400 } else { 77 });
                    seen += 1;
                }
            }
        }
        datagrams += seen;
    }
    (datagrams, came_in)
}

#[test]
fn super_packets_pass_whole_where_nothing_happens_to_single_packets() {
    let Some((wan, hosts)) = pair(2) else { return };
    if !wan.offloads(hosts[0].1).unwrap().uso {
        println!("SKIPPED: this kernel has no UDP segmentation offload for TUN (Linux 6.2)");
        return;
    }
    for v6 in [false, true] {
        assert_eq!(trains(&hosts, v6, 10), (400, 10), "IPv6: {v6}");
    }
    let counters = wan.counters(hosts[0].1, hosts[1].1).unwrap();
    // Besides, the kernel says a few words of its own (IPv6 housekeeping),
    // but to nobody on the WAN.
    assert_eq!((counters.offered, counters.delivered), (20, 20));
}

#[test]
fn lossy_links_lose_single_packets_of_super_packets() {
    let Some((wan, hosts)) = pair(3) else { return };
    wan.change(hosts[0].1, hosts[1].1, |link| link.loss = 0.1).unwrap();
    for v6 in [false, true] {
        let (datagrams, _) = trains(&hosts, v6, 20);
        // 800 sent; 720 expected, four standard deviations are 34.
        assert!((686..=754).contains(&datagrams), "{datagrams} of 800");
    }
    let counters = wan.counters(hosts[0].1, hosts[1].1).unwrap();
    assert_eq!((counters.offered, counters.lost + counters.delivered), (1600, 1600));
}

#[test]
fn a_cut_link_carries_nothing_until_it_is_mended() {
    let Some((wan, hosts)) = pair(4) else { return };
    let [(near, a), (far, b)] = &hosts;
    let sender = bind(near, a.ipv4());
    let receiver = bind(far, b.ipv4());
    receiver.set_read_timeout(Some(100 * MS)).unwrap();
    let mut buffer = [0; 8];
    let mut passes = || {
        sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut buffer).is_ok()
    };
    assert!(passes());
    wan.change(*a, *b, |link| link.cut = true).unwrap();
    assert!(!passes());
    wan.change(*a, *b, |link| link.cut = false).unwrap();
    assert!(passes());
    wan.set_one_way(*b, *a, Profile { cut: true, ..Profile::default() }).unwrap();
    assert!(passes(), "the other direction is not affected");
    assert!(matches!(
        wan.change(*a, *b, |link| link.loss = 2.0),
        Err(WanError::Profile(ProfileError::Share { .. }))
    ));
    assert!(passes(), "a refused change changes nothing");
}

#[test]
fn hosts_move_to_other_addresses() {
    let Some((wan, hosts)) = pair(5) else { return };
    let [(near, a), (far, b)] = &hosts;
    let moved: IpAddr = "198.18.77.9".parse().unwrap();
    assert!(wan.add_address(*b, "192.0.2.1".parse().unwrap()).is_err(), "not of the WAN");
    assert!(wan.add_address(*b, a.ipv4().into()).is_err(), "taken");
    wan.add_address(*b, moved).unwrap();
    let sender = bind(near, a.ipv4());
    let receiver = bind(far, moved);
    sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
    wan.remove_address(*b, moved).unwrap();
    assert!(wan.remove_address(*b, moved).is_err());
    far.run(|| UdpSocket::bind((moved, 0)).unwrap_err()).unwrap();
}

/// A pseudo-random byte for each place of a transfer.
fn pattern(place: usize) -> u8 {
    (place.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// Sends `length` bytes over TCP, checks them, returns bits per second.
pub(super) fn transfer(hosts: &[(NetNamespace, WanHost); 2], v6: bool, length: usize) -> f64 {
    let [(near, _), (far, b)] = hosts;
    let to: IpAddr = if v6 { b.ipv6().into() } else { b.ipv4().into() };
    let listener = far.run(|| TcpListener::bind((to, 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = near.run(|| TcpStream::connect(to).unwrap()).unwrap();
            let mut block = vec![0; 1 << 18];
            let mut sent = 0;
            while sent < length {
                for (i, byte) in block.iter_mut().enumerate() {
                    *byte = pattern((sent + i) % (1 << 20));
                }
                let part = block.len().min(length - sent);
                stream.write_all(&block[..part]).unwrap();
                sent += part;
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let start = Instant::now();
        let mut block = vec![0; 1 << 18];
        let mut received = 0;
        loop {
            match stream.read(&mut block).unwrap() {
                0 => break,
                count => {
                    for (i, byte) in block[..count].iter().enumerate() {
                        assert_eq!(*byte, pattern((received + i) % (1 << 20)));
                    }
                    received += count;
                }
            }
        }
        assert_eq!(received, length);
        length as f64 * 8.0 / start.elapsed().as_secs_f64()
    })
}

#[test]
fn tcp_gets_its_bytes_through_the_worst_of_links() {
    let Some((wan, hosts)) = pair(6) else { return };
    wan.change(hosts[0].1, hosts[1].1, |link| {
        *link = Profile {
            jitter: MS,
            loss: 0.02,
            reorder: 0.05,
            duplicate: 0.05,
            ..Profile::delayed(2 * MS)
        };
    })
    .unwrap();
    for v6 in [false, true] {
        transfer(&hosts, v6, 1 << 20);
    }
    let counters = wan.counters(hosts[0].1, hosts[1].1).unwrap();
    assert!(counters.lost > 0 && counters.duplicated > 0 && counters.reordered > 0, "{counters:?}");
}

#[test]
fn a_rate_limit_is_what_tcp_gets() {
    let Some((wan, hosts)) = pair(7) else { return };
    wan.change(hosts[0].1, hosts[1].1, |link| {
        link.delay = 5 * MS;
        link.rate = Some(50_000_000);
        link.queue = 200_000;
    })
    .unwrap();
    let rate = transfer(&hosts, false, 6 << 20);
    assert!((25e6..50e6).contains(&rate), "{} Mb/s", rate / 1e6);
}

#[test]
fn an_eavesdropper_sees_plain_text_and_only_that() {
    let Some((wan, hosts)) = pair(8) else { return };
    let [(near, a), (far, b)] = &hosts;
    let sender = bind(near, a.ipv4());
    let receiver = bind(far, b.ipv4());
    let to = receiver.local_addr().unwrap();
    wan.watch(Some(b"secret"));
    for text in ["no seseecret", "a ssecret here", "secre", "secret"] {
        sender.send_to(text.as_bytes(), to).unwrap();
        receiver.recv(&mut [0; 32]).unwrap();
    }
    assert_eq!(wan.watched(), (4, 2));
    wan.watch(None);
    assert_eq!(wan.watched(), (0, 0));
}

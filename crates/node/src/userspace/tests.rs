//! Two stacks back to back: what one sends the other receives, through the
//! queues that workers use, with losses where a test wants them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::{sleep, timeout};
use warren_os::tun::{TunQueue, memory};
use warren_proto::packet::checksum;
use warren_proto::packet::ip::Ip;
use warren_proto::packet::vnet::{VNET_LEN, Vnet};

use super::*;

const FIRST: &str = "100.64.0.1";
const SECOND: &str = "100.64.0.2";
const FIRST_V6: &str = "fd12::1";
const SECOND_V6: &str = "fd12::2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn own(addresses: &[&str]) -> Addresses {
    Addresses {
        mesh: addresses.iter().map(|a| ip(a)).collect(),
        prefixes: vec!["100.64.0.0/10".parse().unwrap(), "fd12::/48".parse().unwrap()],
        mesh_mtu: 1420,
        ..Addresses::default()
    }
}

/// What happens to frames on their way; false drops one.
type Weather = Box<dyn FnMut(&mut Vec<u8>) -> bool>;

fn carry(from: &TunQueue, to: &TunQueue, weather: &mut Weather) -> usize {
    let mut buffer = vec![0; 70_000];
    let mut moved = 0;
    while let Ok(len) = from.read(&mut buffer) {
        let mut frame = buffer[..len].to_vec();
        moved += 1;
        if weather(&mut frame) {
            to.write(&frame).unwrap();
        }
    }
    moved
}

struct Two {
    first: Stack,
    second: Stack,
    arrivals: mpsc::Receiver<Arrival>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Two {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The second stack hands over what comes unasked.
fn two(there: Weather, back: Weather) -> Two {
    two_of(64, there, back)
}

/// `most`: connections that the first may have; the second takes as many.
fn two_of(most: usize, mut there: Weather, mut back: Weather) -> Two {
    let (mut left, left_end) = memory::pair(1).unwrap();
    let (mut right, right_end) = memory::pair(1).unwrap();
    let first = Stack::new(left_end, own(&[FIRST, FIRST_V6]), most);
    let second = Stack::new(right_end, own(&[SECOND, SECOND_V6]), most * 3 / 2);
    let (taker, arrivals) = mpsc::channel(64);
    second.set_member(Some(taker));
    let mut tasks = Vec::new();
    for stack in [first.clone(), second.clone()] {
        tasks.push(tokio::task::spawn_local(async move { stack.run().await }));
    }
    let (left, right) = (left.remove(0), right.remove(0));
    tasks.push(tokio::task::spawn_local(async move {
        loop {
            if carry(&left, &right, &mut there) + carry(&right, &left, &mut back) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            tokio::task::yield_now().await;
        }
    }));
    Two { first, second, arrivals, tasks }
}

fn fair() -> Weather {
    Box::new(|_| true)
}

/// Runs a test on one thread, as the daemon does.
fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new()
        .block_on(&runtime, async { timeout(Duration::from_secs(60), test()).await })
        .unwrap();
}

async fn connect(stack: &Stack, to: &str) -> Result<Stream, ConnectError> {
    let to: SocketAddr = to.parse().unwrap();
    let source = stack.addresses().source_for(to.ip(), &Isolation::default()).unwrap();
    stack.connect(source, to).await
}

async fn request(two: &mut Two) -> Request {
    match two.arrivals.recv().await {
        Some(Arrival::Connection(request)) => request,
        other => panic!("{other:?}"),
    }
}

/// Sends `bytes` one way, and back, and checks each.
async fn exchange(two: &mut Two, to: &str, bytes: usize) {
    let first = two.first.clone();
    let to = to.to_owned();
    let dialing = tokio::task::spawn_local(async move { connect(&first, &to).await });
    let server = request(two).await.accept().await.unwrap();
    let client = dialing.await.unwrap().unwrap();
    assert_eq!(client.local(), server.remote());
    let echo = tokio::task::spawn_local(async move {
        let (mut reader, mut writer) = tokio::io::split(server);
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let (mut reader, mut writer) = tokio::io::split(client);
    let byte = |at: usize| (at ^ (at >> 8) ^ (at >> 16)) as u8;
    let writing = tokio::task::spawn_local(async move {
        let data: Vec<u8> = (0..bytes).map(byte).collect();
        writer.write_all(&data).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    reader.read_to_end(&mut back).await.unwrap();
    assert_eq!(back.len(), bytes);
    assert!(back.iter().enumerate().all(|(at, value)| *value == byte(at)));
    writing.await.unwrap();
    echo.await.unwrap();
}

#[test]
fn streams_carry_both_ways_and_leave_nothing() {
    run(|| async {
        let mut two = two(fair(), fair());
        for to in ["100.64.0.2:80", "[fd12::2]:80"] {
            exchange(&mut two, to, 5_000_000).await;
        }
        // The one that closed first waits for strays until it is let go of.
        for stack in [&two.first, &two.second] {
            while stack.connections() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        }
    });
}

#[test]
fn losses_are_repaired() {
    run(|| async {
        let mut count = 0;
        let lossy = Box::new(move |_: &mut Vec<u8>| {
            count += 1;
            count % 29 != 0
        });
        let mut back = 0;
        let lossy_back = Box::new(move |_: &mut Vec<u8>| {
            back += 1;
            back % 31 != 0
        });
        let mut two = two(lossy, lossy_back);
        exchange(&mut two, "100.64.0.2:80", 1_000_000).await;
    });
}

#[test]
fn frames_are_what_a_tun_would_give() {
    run(|| async {
        // Super-packets of whole segments, checksums left to the link.
        let (seen, largest) = (std::rc::Rc::new(std::cell::Cell::new(0)), 1420);
        let note = seen.clone();
        let check = Box::new(move |frame: &mut Vec<u8>| {
            let (header, packet) = frame.split_first_chunk_mut::<VNET_LEN>().unwrap();
            let vnet = Vnet::parse(header).unwrap();
            let ip = Ip::parse(packet).unwrap();
            assert!(vnet.needs_csum);
            let headers = usize::from(vnet.hdr_len);
            if vnet.gso_size > 0 {
                assert_eq!(headers + usize::from(vnet.gso_size), largest);
                note.set(note.get().max(packet.len()));
            } else {
                assert!(packet.len() <= largest);
            }
            checksum::complete(packet, vnet.csum_start.into(), vnet.csum_offset.into());
            assert!(checksum::transport_is_valid(&ip, packet));
            // Delivered as a link without offloads would.
            frame[0] = 0;
            true
        });
        let mut two = two(check, fair());
        exchange(&mut two, "100.64.0.2:80", 2_000_000).await;
        assert!(seen.get() > 30_000, "{}", seen.get());
    });
}

#[test]
fn a_smaller_path_is_told_and_kept_to() {
    run(|| async {
        let narrow = Box::new(move |frame: &mut Vec<u8>| {
            let header = frame.first_chunk::<VNET_LEN>().unwrap();
            let vnet = Vnet::parse(header).unwrap();
            let longest = match vnet.gso_size {
                0 => frame.len() - VNET_LEN,
                size => usize::from(vnet.hdr_len + size),
            };
            longest <= 1300
        });
        let mut two = two(narrow, fair());
        // As the link tells it, once the first large packet is lost.
        let (first, done) = (two.first.clone(), std::rc::Rc::new(std::cell::Cell::new(false)));
        let ended = done.clone();
        let teller = tokio::task::spawn_local(async move {
            while !ended.get() {
                let flows: Vec<_> = first.0.table().flows.values().cloned().collect();
                for flow in flows {
                    flow.told(packet::IcmpKind::TooBig(1300));
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        exchange(&mut two, "100.64.0.2:80", 300_000).await;
        done.set(true);
        teller.await.unwrap();
    });
}

#[test]
fn refusals_are_told_apart() {
    run(|| async {
        let mut two = two(fair(), fair());
        for (no, expected) in [
            (No::Refused, ConnectError::Refused),
            (No::Prohibited, ConnectError::Refused),
            (No::Unreachable, ConnectError::Unreachable),
        ] {
            let first = two.first.clone();
            let dialing =
                tokio::task::spawn_local(async move { connect(&first, "100.64.0.2:80").await });
            request(&mut two).await.refuse(no);
            assert_eq!(dialing.await.unwrap().unwrap_err(), expected, "{no:?}");
        }
        // Nobody takes what comes to the first.
        let refused = connect(&two.second, "100.64.0.1:80").await.unwrap_err();
        assert_eq!(refused, ConnectError::Refused);
        assert_eq!(two.first.connections() + two.second.connections(), 0);
    });
}

#[test]
fn ports_are_published_to_the_mesh_and_not_to_exits() {
    run(|| async {
        let mut two = two(fair(), fair());
        let inner = ip("192.0.0.2");
        two.second.set_addresses(Addresses { onion: vec![inner], ..own(&[SECOND, SECOND_V6]) });
        let source = Source { address: ip(FIRST), mtu: 1280 };
        let to = SocketAddr::new(inner, 80);
        let refused = two.first.connect(source, to).await.unwrap_err();
        assert_eq!(refused, ConnectError::Refused);
        assert!(two.first.send_datagram(SocketAddr::new(source.address, 9), to, b"unasked"));
        // What arrives after it is the first to be handed over.
        let mesh = SocketAddr::new(ip(SECOND), 80);
        assert!(two.first.send_datagram(SocketAddr::new(source.address, 9), mesh, b"asked"));
        match two.arrivals.recv().await {
            Some(Arrival::Datagram(datagram)) => assert_eq!(datagram.payload(), b"asked"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_node_reaches_its_own_address() {
    run(|| async {
        let mut two = two(fair(), fair());
        let second = two.second.clone();
        let dialing =
            tokio::task::spawn_local(async move { connect(&second, "[fd12::2]:80").await });
        let mut server = request(&mut two).await.accept().await.unwrap();
        let mut client = dialing.await.unwrap().unwrap();
        let sent = vec![7; 3 << 20];
        let (written, read) = tokio::join!(
            async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
            },
            async {
                let mut all = Vec::new();
                server.read_to_end(&mut all).await.unwrap();
                all
            }
        );
        let () = written;
        assert_eq!(read, sent);
    });
}

#[test]
fn connections_and_requests_are_bounded() {
    run(|| async {
        let mut two = two(fair(), fair());
        let mut kept = Vec::new();
        for _ in 0..64 {
            let first = two.first.clone();
            let dialing =
                tokio::task::spawn_local(async move { connect(&first, "100.64.0.2:80").await });
            kept.push(request(&mut two).await.accept().await.unwrap());
            kept.push(dialing.await.unwrap().unwrap());
        }
        let refused = connect(&two.first, "100.64.0.2:80").await.unwrap_err();
        assert_eq!(refused, ConnectError::TooMany);
        // Dropped without an end, they are reset, and make room.
        drop(kept);
        while two.first.connections() + two.second.connections() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    });
}

/// Opens `count` connections that stay.
async fn open(two: &mut Two, count: usize) -> Vec<(Stream, Stream)> {
    let mut kept = Vec::new();
    for _ in 0..count {
        let first = two.first.clone();
        let dialing =
            tokio::task::spawn_local(async move { connect(&first, "100.64.0.2:80").await });
        let server = request(two).await.accept().await.unwrap();
        kept.push((dialing.await.unwrap().unwrap(), server));
    }
    kept
}

#[test]
fn others_leave_room_for_programs_here() {
    run(|| async {
        let mut two = two(fair(), fair());
        two.first.set_member(two.second.0.table().member.clone());
        let kept = open(&mut two, 64).await;
        let second = two.second.clone();
        drop(kept);
        while two.first.connections() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        // The second has room for 96, the first takes 48 of them.
        let mut kept = Vec::new();
        for n in 0..50 {
            let dialer = second.clone();
            let dialing =
                tokio::task::spawn_local(async move { connect(&dialer, "100.64.0.1:80").await });
            let accepted = request(&mut two).await.accept().await;
            assert_eq!(accepted.is_ok(), n < 48, "{n}: {accepted:?}");
            match accepted {
                Ok(server) => kept.push((server, dialing.await.unwrap().unwrap())),
                Err(error) => {
                    assert_eq!(error, ConnectError::TooMany);
                    dialing.abort();
                }
            }
        }
        // A program's own connection still finds room.
        let source = two.first.addresses().source_for(ip(SECOND), &Isolation::default()).unwrap();
        let to = "100.64.0.2:80".parse().unwrap();
        let first = two.first.clone();
        let dialing = tokio::task::spawn_local(async move { first.connect(source, to).await });
        let _server = request(&mut two).await.accept().await.unwrap();
        dialing.await.unwrap().unwrap();
    });
}

#[test]
fn a_thousand_idle_connections_are_no_burden() {
    run(|| async {
        let mut two = two_of(1100, fair(), fair());
        exchange(&mut two, "100.64.0.2:80", 5_000_000).await;
        let start = std::time::Instant::now();
        exchange(&mut two, "100.64.0.2:80", 20_000_000).await;
        let alone = start.elapsed();
        let kept = open(&mut two, 1000).await;
        assert!(two.second.connections() >= 1000);
        let start = std::time::Instant::now();
        exchange(&mut two, "100.64.0.2:80", 20_000_000).await;
        let beside = start.elapsed();
        println!("alone {alone:?}, beside a thousand {beside:?}");
        // Its window is smaller, and the machine may be busy; work for each
        // packet on each connection would be a hundredfold.
        assert!(beside < alone * 10 + Duration::from_secs(1), "{alone:?}, then {beside:?}");
        drop(kept);
    });
}

#[test]
fn an_address_that_goes_takes_its_connections_along() {
    run(|| async {
        let mut two = two(fair(), fair());
        let first = two.first.clone();
        let dialing =
            tokio::task::spawn_local(async move { connect(&first, "100.64.0.2:80").await });
        let _server = request(&mut two).await.accept().await.unwrap();
        let mut client = dialing.await.unwrap().unwrap();
        two.first.set_addresses(own(&[FIRST_V6]));
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(two.first.connections(), 0);
    });
}

#[test]
fn datagrams_pass_and_unbound_ports_are_told() {
    run(|| async {
        let mut two = two(fair(), fair());
        for (from, to) in [(FIRST, SECOND), (FIRST_V6, SECOND_V6)] {
            let mut server = two.second.bind_udp(ip(to), Some(53)).unwrap();
            assert!(two.second.bind_udp(ip(to), Some(53)).is_err());
            let mut client = two.first.bind_udp(ip(from), None).unwrap();
            assert!(client.send(server.local(), b"question"));
            let (asker, data) = server.receive().await.unwrap();
            assert_eq!((asker, &data[..]), (client.local(), &b"question"[..]));
            assert!(server.send(asker, &[1; 9000]));
            assert_eq!(client.receive().await.unwrap(), (server.local(), vec![1; 9000]));
            let port = server.local();
            drop(server);
            assert!(client.send(port, b"again"));
            match two.arrivals.recv().await {
                Some(Arrival::Datagram(unclaimed)) => {
                    assert_eq!((unclaimed.from, unclaimed.to), (client.local(), port));
                    assert_eq!(unclaimed.payload(), b"again");
                    unclaimed.refuse(No::Refused);
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn names_outside_are_looked_up_at_the_exit() {
    run(|| async {
        let mut two = two(fair(), fair());
        let (daemon, mut wanted) = mpsc::channel(4);
        let dialer = Dialer::new(two.first.clone(), None, Isolator::new(daemon));
        let name = Destination::new("example.org", 80).unwrap();
        let anna = Isolation::of_user(b"anna");
        let nowhere = dialer.resolve(&name, &anna).await;
        assert_eq!(nowhere, Err(DialError::ForeignName));
        // A path out of the mesh: the other end is the resolver, and the host.
        let outside = ["192.0.0.1", "203.0.113.9"];
        two.first.set_addresses(Addresses { onion: vec![ip("192.0.0.2")], ..own(&[FIRST]) });
        two.second.set_addresses(own(&outside));
        // Of those who want a path of their own the first gets one.
        let stack = two.first.clone();
        let giving = tokio::task::spawn_local(async move {
            let asked: isolation::Wanted = wanted.recv().await.unwrap();
            let before = stack.addresses();
            let isolated = [(asked.isolation, vec![ip("240.1.0.1")])].into();
            stack.set_addresses(Addresses { isolated, ..(*before).clone() });
            asked.reply.send(Ok(())).unwrap();
            let asked = wanted.recv().await.unwrap();
            asked.reply.send(Err(IsolationError::TooMany)).unwrap();
            asked.isolation
        });
        let mut resolver = two.second.bind_udp(ip(outside[0]), Some(53)).unwrap();
        let answering = tokio::task::spawn_local(async move {
            let mut numbers = Vec::new();
            // The first question is lost.
            resolver.receive().await.unwrap();
            for (code, address) in [(0x81, Some([203, 0, 113, 9])), (0x81, None)] {
                let (from, question) = resolver.receive().await.unwrap();
                assert_eq!(from.ip(), ip("240.1.0.1"), "anna's");
                numbers.push((from.port(), [question[0], question[1]]));
                let mut reply = question.clone();
                reply[2] = code;
                reply[3] = if address.is_some() { 0x80 } else { 0x83 };
                if let Some(address) = address {
                    reply[7] = 1;
                    reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                    reply.extend_from_slice(&address);
                }
                // Another number is nobody's answer.
                let mut forged = reply.clone();
                forged[0] ^= 1;
                *forged.last_mut().unwrap() ^= 1;
                assert!(resolver.send(from, &forged) && resolver.send(from, &reply));
            }
            numbers
        });
        let found = dialer.resolve(&name, &anna).await.unwrap();
        assert_eq!(found, ["203.0.113.9:80".parse().unwrap()]);
        let other = Destination::new("nothere.example.org", 80).unwrap();
        let missing = dialer.resolve(&other, &anna).await.unwrap_err();
        assert_eq!(missing, DialError::Lookup(lookup::LookupError::Missing));
        answering.await.unwrap();
        let bert = Isolation::of_user(b"bert");
        let refused = dialer.dial(&Destination::Address(found[0]), &bert).await.unwrap_err();
        assert_eq!(refused, DialError::Isolation(IsolationError::TooMany));
        assert_eq!(giving.await.unwrap(), bert);
        // And connections there leave from inner addresses.
        for (who, from) in [(Isolation::default(), "192.0.0.2"), (anna, "240.1.0.1")] {
            let (dialer, to) = (dialer.clone(), Destination::Address(found[0]));
            let dialing = tokio::task::spawn_local(async move { dialer.dial(&to, &who).await });
            let asked = request(&mut two).await;
            assert_eq!(asked.from().ip(), ip(from));
            let _server = asked.accept().await.unwrap();
            let mut stream = dialing.await.unwrap().unwrap();
            // With the path goes the connection, and no other takes its place.
            let before = two.first.addresses();
            let (onion, isolated) = Default::default();
            two.first.set_addresses(Addresses { onion, isolated, ..(*before).clone() });
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            let source = Source { address: ip(from), mtu: 1280 };
            let again = two.first.connect(source, "203.0.113.9:80".parse().unwrap()).await;
            assert_eq!(again.unwrap_err(), ConnectError::Unreachable);
            two.first.set_addresses((*before).clone());
        }
    });
}

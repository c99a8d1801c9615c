//! The worker threads on real interfaces: two TUNs in namespaces of their own,
//! joined by UDP over the loopback, with fixed session keys. Needs root; says
//! so and passes without it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use warren_node::workers::{EngineQueues, WorkerConfig, Workers};
use warren_os::netlink::LinkSettings;
use warren_os::netns::{NetNamespace, is_privileged};
use warren_os::tun::{Tun, TunError};
use warren_os::udp::UdpSocket;
use warren_proto::link::event::ToEngine;
use warren_proto::link::peer::PeerLink;
use warren_proto::link::session::{RecvSession, SendSession};
use warren_proto::link::tables::{Routes, Tables};
use warren_proto::noise::MacKey;
use warren_types::{DropCounters, LinkPublicKey, Suite};

struct End {
    namespace: NetNamespace,
    sockets: Vec<Arc<UdpSocket>>,
    peer: Arc<PeerLink>,
    drops: Arc<DropCounters>,
    events: mpsc::Receiver<ToEngine>,
    workers: Option<Workers>,
}

const ADDRESSES: [[&str; 2]; 2] = [["10.77.0.1", "fd77::1"], ["10.77.0.2", "fd77::2"]];

fn sockets(count: usize) -> Vec<Arc<UdpSocket>> {
    let first = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), true).unwrap();
    let address = first.local_addr().unwrap();
    let mut all = vec![Arc::new(first)];
    all.extend((1..count).map(|_| Arc::new(UdpSocket::bind(address, true).unwrap())));
    all
}

fn end(index: usize, suite: Suite, sockets: Vec<Arc<UdpSocket>>, other: SocketAddr) -> End {
    let namespace = NetNamespace::create().unwrap();
    let count = sockets.len();
    let tun = namespace.run(|| Tun::open("wt0", count)).unwrap().unwrap();
    let taken = namespace.run(|| Tun::open("wt0", count + 1)).unwrap();
    if count == 1 {
        assert!(matches!(taken, Err(TunError::NameBusy(name)) if name == "wt0"));
    }
    let mut netlink = namespace.netlink().unwrap();
    let link = netlink.link_index("wt0").unwrap();
    let settings = LinkSettings { mtu: Some(1420), up: Some(true), ..LinkSettings::default() };
    netlink.configure_link(link, &settings).unwrap();
    for (address, bits) in ADDRESSES[index].iter().zip([24, 64]) {
        netlink.add_address(link, format!("{address}/{bits}").parse().unwrap()).unwrap();
    }
    let peer = Arc::new(PeerLink::new(LinkPublicKey([2; 32]), suite, true));
    peer.endpoint.store(Some(Arc::new(other)));
    let keys = [[7; 32], [8; 32]];
    peer.send.store(Some(Arc::new(SendSession::new(suite, 1, &keys[index], 1, true))));
    let tables = Arc::new(Tables::default());
    let receive = RecvSession::new(suite, 1, &keys[1 - index], peer.clone(), 1);
    tables.insert_session(Arc::new(receive));
    let own = ADDRESSES[index].map(|text| text.parse().unwrap()).to_vec();
    let others = ADDRESSES[1 - index].map(|text| text.parse::<IpAddr>().unwrap());
    let nets = others.map(|address| (address.into(), peer.clone()));
    tables.routes.store(Arc::new(Routes::new(own, nets)));
    let (queue, events) = mpsc::channel(64);
    let drops = Arc::new(DropCounters::default());
    let offloads = tun.offloads();
    let workers = Workers::spawn(WorkerConfig {
        queues: tun.into_queues(),
        offloads,
        sockets: sockets.clone(),
        tables,
        drops: drops.clone(),
        engine: EngineQueues { handshakes: queue.clone(), quic: queue.clone(), events: queue },
        mac_key: MacKey::for_receiver(&LinkPublicKey([2; 32])),
        // One end of each kind.
        one_thread: index == 0,
        epoch: Instant::now(),
    })
    .unwrap();
    End { namespace, sockets, peer, drops, events, workers: Some(workers) }
}

fn pair(suite: Suite, count: usize) -> [End; 2] {
    let (a, b) = (sockets(count), sockets(count));
    let (to_a, to_b) = (a[0].local_addr().unwrap(), b[0].local_addr().unwrap());
    [end(0, suite, a, to_b), end(1, suite, b, to_a)]
}

/// Sends `len` bytes of a pattern from A to `to` at B and back, and checks them.
fn round_trip(ends: &[End; 2], to: &str, len: usize) {
    let pattern: Vec<u8> = (0..len).map(|i| (i / 7 % 251) as u8).collect();
    let to: IpAddr = to.parse().unwrap();
    let listener = ends[1].namespace.run(|| TcpListener::bind((to, 5000))).unwrap().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = vec![0; len];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(&got).unwrap();
        });
        let connect = || TcpStream::connect_timeout(&(to, 5000).into(), Duration::from_secs(5));
        let mut stream = ends[0].namespace.run(connect).unwrap().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sent = pattern.clone();
        scope.spawn(move || writer.write_all(&sent).unwrap());
        let mut got = vec![0; len];
        stream.read_exact(&mut got).unwrap();
        assert!(got == pattern, "the bytes came back changed");
        server.join().unwrap();
    });
}

#[test]
fn tcp_goes_through_intact_and_threads_stop() {
    if !is_privileged() {
        eprintln!("skipped: needs root to make TUN interfaces");
        return;
    }
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for count in [1, 2] {
            let mut ends = pair(suite, count);
            let mode = ends[0].workers.as_ref().unwrap().mode();
            assert!(mode.starts_with("tun(vnet_hdr,csum,tso"), "{mode}");
            assert!(mode.ends_with(&format!("workers={count}")), "{mode}");
            for to in ADDRESSES[1] {
                round_trip(&ends, to, 8_000_000);
            }
            for end in &mut ends {
                // Nothing of a healthy link is dropped for what it is.
                let drops = end.drops.non_zero();
                let harmless = ["no_route", "send_failed"];
                assert!(drops.keys().all(|key| harmless.contains(&key.as_str())), "{drops:?}");
                let rx = end.peer.rx_bytes.load(Ordering::Relaxed);
                assert!(rx > 16_000_000, "{rx} bytes received");
                assert!(matches!(end.events.try_recv(), Ok(ToEngine::Confirmed { .. })));
                assert!(!end.workers.as_ref().unwrap().failed());
                let before = Instant::now();
                end.workers = None;
                assert!(before.elapsed() < Duration::from_secs(1), "stopping took long");
            }
        }
    }
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    if !is_privileged() {
        eprintln!("skipped: needs root to make TUN interfaces");
        return;
    }
    let ends = pair(Suite::Aes256Gcm, 1);
    let to_b = ends[1].sockets[0].local_addr().unwrap();
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in [&[0x20; 40][..], &[4; 8], &[1; 148], &[0x14, 0, 0, 0, 9, 9, 9, 9]] {
        stranger.send_to(datagram, to_b).unwrap();
    }
    let mut forged = vec![0x14, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    forged.resize(100, 0xee);
    stranger.send_to(&forged, to_b).unwrap();
    round_trip(&ends, ADDRESSES[1][0], 1_000_000);
    let drops = ends[1].drops.non_zero();
    for reason in ["unknown_type", "malformed", "bad_mac", "bad_tag"] {
        assert!(drops.contains_key(reason), "{reason}: {drops:?}");
    }
    let endpoint = **ends[1].peer.endpoint.load().as_ref().unwrap();
    assert_eq!(endpoint, ends[0].sockets[0].local_addr().unwrap(), "a forgery moved the endpoint");
}

//! Entry functions for `warren-proto`; each takes any bytes and must return.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::{CryptoRng, RngCore};
use warren_proto::engine::{Engine, EngineConfig, Now, PeerConfig};
use warren_proto::link::event::{Outputs, ToEngine};
use warren_proto::link::frame::Frame;
use warren_proto::link::peer::PeerLink;
use warren_proto::link::receive::Receiver;
use warren_proto::link::relay::{KIND, RelayFrame};
use warren_proto::link::session::{HEADER_LEN, OVERHEAD, RecvSession, SendSession};
use warren_proto::link::tables::{Routes, Tables};
use warren_proto::link::transmit::{TAIL_ROOM, Transmitter};
use warren_proto::noise::mac::open_cookie;
use warren_proto::noise::{Initiator, MacKey, StaticKey, Tai64n, mac1_ok};
use warren_proto::packet::gather::Limits;
use warren_types::{DropCounters, DropReason, LinkPublicKey, LinkSecretKey, Suite};

/// Counts up; a fuzz run must be the same each time.
pub(super) struct Counter(pub(super) u64);

impl RngCore for Counter {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }
    fn next_u64(&mut self) -> u64 {
        self.0 += 1;
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn fill_bytes(&mut self, dst: &mut [u8]) {
        for chunk in dst.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

impl CryptoRng for Counter {}

pub(super) fn key(n: u8) -> StaticKey {
    StaticKey::new(&LinkSecretKey::from_bytes([n; 32]))
}

pub(super) fn suite_of(flag: u8) -> Suite {
    if flag & 1 == 0 { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
}

/// An engine that knows peer 2, and a handshake of its own under way.
fn engine(suite: Suite, rng: &mut Counter) -> (Engine, Now) {
    let epoch = Instant::now();
    let drops = Arc::new(DropCounters::default());
    let config = EngineConfig::new(key(1), Vec::new(), 1420, drops);
    let mut engine = Engine::new(config, Arc::new(Tables::default()), epoch);
    let now = Now { instant: epoch, unix: Duration::from_secs(1_800_000_000) };
    let peer = PeerConfig {
        key: key(2).public(),
        suite,
        is_warren: true,
        psk: None,
        psk_required: false,
        endpoint: Some(SocketAddr::from(([192, 0, 2, 2], 51820))),
        allowed: Vec::new(),
        persistent_keepalive: None,
        hold: true,
    };
    engine.upsert_peer(peer, now, rng);
    (engine, now)
}

fn drain(engine: &mut Engine) -> usize {
    while engine.poll_event().is_some() {}
    let sent = std::iter::from_fn(|| engine.poll_transmit()).count();
    engine.poll_timeout();
    sent
}

/// First byte: bit 0 the suite, bit 1 whether the rest is a datagram (mac1 is
/// made valid) or the fields of a genuine initiation, bit 2 load.
pub fn handshake(data: &[u8]) {
    let Some((&flags, rest)) = data.split_first() else { return };
    let rng = &mut Counter(0);
    let suite = suite_of(flags);
    let (mut engine, now) = engine(suite, rng);
    drain(&mut engine);
    let queued = if flags & 4 == 0 { 0 } else { 10_000 };
    let from = SocketAddr::from(([198, 51, 100, 1], 1024));
    let mut datagram = rest.to_vec();
    if flags & 2 != 0 {
        let mut fields = [0; 16];
        let n = rest.len().min(16);
        fields[..n].copy_from_slice(&rest[..n]);
        let index = u32::from_le_bytes([fields[12], fields[13], fields[14], fields[15]]);
        let stamp = Tai64n::from_bytes(fields[..12].try_into().expect("12 bytes"));
        let started = Initiator::start(&key(2), &key(1).public(), suite, index, stamp, None, rng);
        datagram = started.expect("our own keys are good").1.datagram.to_vec();
    } else {
        MacKey::for_receiver(&key(1).public()).stamp(&mut datagram);
    }
    let _ = mac1_ok(&engine.mac_key(), &datagram);
    engine.handle_handshake(from, &datagram, queued, now, rng);
    let sent = drain(&mut engine);
    assert!(sent <= 1, "one answer at most: no amplification");
    let later = Now { instant: now.instant + Duration::from_secs(200), unix: now.unix };
    engine.handle_timeout(later, rng);
    drain(&mut engine);
    let _ = open_cookie(&key(2).public(), &[0; 16], &datagram);
}

/// Outputs that only check sizes.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) frames: usize,
    pub(super) datagrams: usize,
}

impl Outputs for Sink {
    fn tun(&mut self, frame: &[u8]) {
        assert!(frame.len() <= 10 + 65_535);
        self.frames += 1;
    }
    fn udp(&mut self, _: SocketAddr, data: &[u8], segment: usize, _: u8) {
        assert!(data.len() <= 65_507 && segment > 0 && data.len().div_ceil(segment) <= 64);
        self.datagrams += 1;
    }
    fn udp_fragmentable(&mut self, _: SocketAddr, data: &[u8], _: u8) {
        assert!(data.len() <= 65_507);
        self.datagrams += 1;
    }
    fn engine(&mut self, _: ToEngine) {}
    fn dropped(&mut self, _: DropReason, packets: u64) {
        assert!(packets > 0);
    }
}

/// Overlay address of a node: what relay frames name it by is its last 80 bits.
pub(super) fn node(n: u8) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::new(0xfd00, 0, 0, 0x0101, 0x0101, 0x0101, 0x0101, 0x0100 + u16::from(n))
}

pub(super) struct Worker {
    pub(super) tables: Tables,
    send: SendSession,
    pub(super) limits: Limits,
    pub(super) suite: Suite,
    /// Whose session `send` is, and another.
    pub(super) peers: [Arc<PeerLink>; 2],
}

/// Tables with a local address and two peers, and the session peer 1 sends on.
pub(super) fn worker(flags: u8) -> Worker {
    let suite = suite_of(flags);
    let limits = if flags & 2 == 0 { Limits::ALL } else { Limits::NONE };
    let peer = |n: u8| {
        let link = PeerLink::new(LinkPublicKey([n; 32]), suite, true);
        link.roam(SocketAddr::from(([192, 0, 2, n], 51820)));
        link.send.store(Some(Arc::new(SendSession::new(suite, 9, &[n; 32], 1, true))));
        link.set_node(Some(node(n)));
        if flags & 8 != 0 {
            link.path_mtu.store(1200, std::sync::atomic::Ordering::Relaxed);
        }
        Arc::new(link)
    };
    let (first, second) = (peer(1), peer(2));
    let nets = [("10.1.0.0/16", &first), ("fd00:1::/32", &first), ("10.2.0.0/16", &second)];
    let entries = nets.map(|(net, peer)| (net.parse().expect("a prefix"), peer.clone()));
    let local = vec!["10.0.0.1".parse().expect("an address"), node(0).into()];
    let tables = Tables::default();
    let routes =
        Routes::new(local, entries).with_nodes([first.clone(), second.clone()], flags & 32 == 0);
    tables.routes.store(Arc::new(routes));
    let peers = [first.clone(), second.clone()];
    // What the second peer may send inside relay frames of the first.
    tables.insert_session(Arc::new(RecvSession::new(suite, 8, &[4; 32], second, 1)));
    tables.insert_session(Arc::new(RecvSession::new(suite, 7, &[3; 32], first, 1)));
    let send = SendSession::new(suite, 7, &[3; 32], 1, true);
    Worker { tables, send, limits, suite, peers }
}

impl Worker {
    /// A message of the first peer that carries `frame`.
    pub(super) fn message(&self, frame: &[u8]) -> Vec<u8> {
        let mut message = vec![0; OVERHEAD + frame.len()];
        let counter = self.send.reserve(1).expect("few messages");
        self.send.seal_from(frame, &mut message, 0, counter);
        message
    }
}

/// First byte: bit 0 the suite, bit 1 a TUN without offloads, bit 2 whether
/// the rest is a train of datagrams or plaintexts (a length of 2 bytes before
/// each) of genuine messages.
pub fn transport(data: &[u8]) {
    let Some((&flags, rest)) = data.split_first() else { return };
    let worker = worker(flags);
    let mac_key = MacKey::for_receiver(&key(1).public());
    let from = SocketAddr::from(([198, 51, 100, 1], 1024));
    let mut receiver = Receiver::new(worker.limits);
    let mut sink = Sink::default();
    if flags & 4 == 0 {
        let segment = rest.first().map_or(1, |n| 1 + usize::from(*n));
        receiver.train(&mut sink, &worker.tables, &mac_key, from, flags, rest, segment, 5);
    } else {
        let partial = u8::from(worker.suite == Suite::Aes256Gcm) & (flags >> 4);
        let mut rest = rest;
        while let Some((head, tail)) = rest.split_first_chunk::<2>() {
            let len = usize::from(u16::from_le_bytes(*head)).min(tail.len());
            let mut message = vec![0; OVERHEAD + len];
            message[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&tail[..len]);
            let counter = worker.send.reserve(1).expect("few messages");
            worker.send.seal(&mut message, partial, counter);
            let n = message.len();
            receiver.train(&mut sink, &worker.tables, &mac_key, from, flags, &message, n, 5);
            rest = &tail[len..];
        }
    }
    receiver.finish(&mut sink);
    receiver.rest(&mut sink);
}

/// First byte as for [`transport`], bit 3 a small path MTU, bit 5 a node that
/// is no relay; the rest is a relay frame without its first byte, and comes
/// twice in a row.
pub fn relay_frame(data: &[u8]) {
    let Some((&flags, rest)) = data.split_first() else { return };
    let frame = [&[KIND], &rest[..rest.len().min(60_000)]].concat();
    if let Some(parsed) = RelayFrame::parse(&frame) {
        assert!((34..=64).contains(&parsed.header_len()) && parsed.header_len() < frame.len());
        assert!(parsed.sender() != parsed.receiver() && parsed.after() != Some(parsed.source()));
    }
    let worker = worker(flags);
    let mac_key = MacKey::for_receiver(&key(1).public());
    let from = SocketAddr::from(([198, 51, 100, 1], 1024));
    let mut receiver = Receiver::new(worker.limits);
    let mut sink = Sink::default();
    let mut train = Vec::new();
    for _ in 0..1 + usize::from(frame.len() < 30_000) {
        train.extend(worker.message(&frame));
    }
    let segment = OVERHEAD + frame.len();
    receiver.train(&mut sink, &worker.tables, &mac_key, from, flags, &train, segment, 5);
    receiver.rest(&mut sink);
    assert!(sink.frames == 0, "nothing inside it authenticates");
}

/// First byte as for [`transport`], bit 3 a small path MTU; the rest is a
/// frame from the TUN.
pub fn tun_frame(data: &[u8]) {
    let Some((&flags, rest)) = data.split_first() else { return };
    let worker = worker(flags);
    let mut transmitter = Transmitter::default();
    let mut sink = Sink::default();
    let mut buffer = rest[..rest.len().min(65_545)].to_vec();
    let len = buffer.len();
    buffer.resize(len + TAIL_ROOM, 0);
    transmitter.frame(&mut sink, &worker.tables, &mut buffer, len, 5);
    transmitter.finish(&mut sink);
    transmitter.rest(&mut sink);
}

/// All bytes are a frame.
pub fn link_frame(data: &[u8]) {
    if let Some(frame) = Frame::parse(data) {
        assert_eq!(frame.encode(data.len()), data);
    }
    let rng = &mut Counter(0);
    let (mut engine, now) = engine(Suite::Aes256Gcm, rng);
    let link = engine.peers().next().expect("it has one").clone();
    let from = SocketAddr::from(([198, 51, 100, 1], 1024));
    engine.handle_link_frame(&link, from, data, now, rng);
    drain(&mut engine);
}

//! The fast path without a kernel: a 60 kB super-packet sealed to 45
//! datagrams, the same opened and joined again, and small packets one by one.
//! Throughput is of inner packets.

#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warren_proto::link::event::{Outputs, ToEngine};
use warren_proto::link::peer::PeerLink;
use warren_proto::link::receive::Receiver;
use warren_proto::link::session::{RecvSession, SendSession};
use warren_proto::link::tables::{Routes, Tables};
use warren_proto::link::transmit::{FRAME_BUFFER, Transmitter};
use warren_proto::noise::MacKey;
use warren_proto::packet::gather::Limits;
use warren_proto::packet::vnet::{Gso, VNET_LEN, Vnet};
use warren_types::{DropReason, LinkPublicKey, Suite};

const SEGMENT: usize = 1368;
const HEADERS: usize = 52;
const SEGMENTS: usize = 45;

#[derive(Default)]
struct Sink {
    sent: Vec<(Vec<u8>, usize)>,
    keep: bool,
    bytes: usize,
}

impl Outputs for Sink {
    fn tun(&mut self, frame: &[u8]) {
        self.bytes += black_box(frame).len();
    }
    fn udp(&mut self, _to: SocketAddr, data: &[u8], segment: usize, _tos: u8) {
        self.bytes += black_box(data).len();
        if self.keep {
            self.sent.push((data.to_vec(), segment));
        }
    }
    fn udp_fragmentable(&mut self, _to: SocketAddr, _data: &[u8], _tos: u8) {}
    fn engine(&mut self, _event: ToEngine) {}
    fn dropped(&mut self, reason: DropReason, _packets: u64) {
        panic!("{reason:?}");
    }
}

fn tables(suite: Suite, own: &str, other: &str) -> Tables {
    let peer = Arc::new(PeerLink::new(LinkPublicKey([2; 32]), suite, true));
    peer.endpoint.store(Some(Arc::new(([192, 0, 2, 1], 7000).into())));
    peer.send.store(Some(Arc::new(SendSession::new(suite, 1, &[7; 32], 1, true))));
    let tables = Tables::default();
    tables.insert_session(Arc::new(RecvSession::new(suite, 1, &[7; 32], peer.clone(), 1)));
    let net = format!("{other}/32").parse().expect("a prefix");
    tables
        .routes
        .store(Arc::new(Routes::new(vec![own.parse().expect("an address")], [(net, peer)])));
    tables
}

/// A frame as the kernel hands it over: TCP over IPv4, checksum unfinished.
fn frame(payload: usize) -> (Vec<u8>, usize) {
    let total = HEADERS + payload;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    packet.resize(HEADERS, 0);
    packet[32] = 0x80;
    packet[33] = 0x10;
    packet.resize(total, 0x5a);
    let gso = if payload > SEGMENT { Gso::TcpV4 } else { Gso::None };
    let vnet = Vnet {
        needs_csum: true,
        gso,
        hdr_len: HEADERS as u16,
        gso_size: if gso == Gso::None { 0 } else { SEGMENT as u16 },
        csum_start: 20,
        csum_offset: 16,
    };
    let mut buffer = vec![0; FRAME_BUFFER];
    vnet.encode(buffer.first_chunk_mut::<VNET_LEN>().expect("room"));
    buffer[VNET_LEN..VNET_LEN + total].copy_from_slice(&packet);
    (buffer, VNET_LEN + total)
}

fn fast_path(c: &mut Criterion) {
    for (name, payload) in [("60kB", SEGMENT * SEGMENTS), ("64B", 64)] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(payload as u64));
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let sender = tables(suite, "10.0.0.1", "10.0.0.2");
            group.bench_function(BenchmarkId::new("seal", suite), |b| {
                let (template, len) = frame(payload);
                let mut transmitter = Transmitter::default();
                let mut sink = Sink::default();
                let mut buffer = template.clone();
                b.iter(|| {
                    // Sealing overwrites headers only; put the first ones back.
                    buffer[..VNET_LEN + HEADERS].copy_from_slice(&template[..VNET_LEN + HEADERS]);
                    transmitter.frame(&mut sink, &sender, &mut buffer, len, 5);
                });
                transmitter.finish(&mut sink);
            });
            group.bench_function(BenchmarkId::new("open", suite), |b| {
                let receiver_tables = tables(suite, "10.0.0.2", "10.0.0.1");
                let mut transmitter = Transmitter::default();
                let mut receiver = Receiver::new(Limits::ALL);
                let mac_key = MacKey::for_receiver(&LinkPublicKey([2; 32]));
                let from = ([192, 0, 2, 1], 7000).into();
                let mut sink = Sink::default();
                b.iter_batched(
                    || {
                        let (mut buffer, len) = frame(payload);
                        let mut out = Sink { keep: true, ..Sink::default() };
                        transmitter.frame(&mut out, &sender, &mut buffer, len, 5);
                        transmitter.finish(&mut out);
                        out.sent
                    },
                    |sent| {
                        for (data, segment) in &sent {
                            receiver.train(
                                &mut sink,
                                &receiver_tables,
                                &mac_key,
                                from,
                                0,
                                data,
                                *segment,
                                5,
                            );
                        }
                        receiver.finish(&mut sink);
                        sent
                    },
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, fast_path);
criterion_main!(benches);

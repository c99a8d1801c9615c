//! What comes in: whose packet it is, and what is done with one that nobody
//! waits for.
//!
//! Invariants: only packets for our own addresses, and those from an exit's
//! leases, are looked at further; a connection nobody wants is reset and a
//! datagram answered by ICMP, so that nobody waits for nothing; what asks for a
//! connection waits, unanswered, until the taker says yes or no.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smoltcp::time::Instant as StackTime;
use tokio::sync::mpsc;
use warren_proto::packet::icmp::{self, Answer};
use warren_proto::packet::ip::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};
use warren_proto::packet::vnet::VNET_LEN;

use super::address::{ONION_MTU, is_unicast};
use super::flow::{self, ConnectError, Flow, FlowKey};
use super::packet::{Packet, Protocol};
use super::stack::{CONNECT_PATIENCE, MAX_REQUESTS, Stack, Table};
use super::stream::Stream;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Something that came unasked.
#[derive(Debug)]
pub enum Arrival {
    /// Somebody wants a connection.
    Connection(Request),
    /// A datagram for a port nobody has bound.
    Datagram(Unclaimed),
    /// An echo request; from an exit's lease only.
    Echo {
        /// Who asks.
        from: IpAddr,
        /// Whom.
        to: IpAddr,
        /// Identifier, sequence, payload.
        body: Vec<u8>,
    },
}

/// A datagram nobody has bound the port of.
#[derive(Debug)]
pub struct Unclaimed {
    /// Who sent it.
    pub from: SocketAddr,
    /// To where.
    pub to: SocketAddr,
    stack: Stack,
    /// The whole packet.
    packet: Vec<u8>,
}

impl Unclaimed {
    /// What it holds.
    pub fn payload(&self) -> &[u8] {
        let ip = warren_proto::packet::ip::Ip::parse(&self.packet);
        ip.and_then(|ip| Packet { ip, bytes: &self.packet, trusted: true }.datagram())
            .unwrap_or_default()
    }

    /// Tells the sender that it did not arrive.
    pub fn refuse(self, why: No) {
        self.stack.answer(&self.packet, why.answer());
    }
}

/// Why a connection or a datagram is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    /// Nobody listens: a reset, or "port unreachable".
    Refused,
    /// A policy says no: a reset, or "prohibited".
    Prohibited,
    /// No way there: "host unreachable".
    Unreachable,
}

impl No {
    fn answer(self) -> Answer {
        match self {
            Self::Refused => Answer::PortUnreachable,
            Self::Prohibited => Answer::Prohibited,
            Self::Unreachable => Answer::HostUnreachable,
        }
    }
}

/// A connection somebody asks for; dropped, it is as if the question had been
/// lost.
#[derive(Debug)]
pub struct Request {
    stack: Stack,
    key: FlowKey,
    packet: Vec<u8>,
    mtu: usize,
}

impl Request {
    /// Who asks.
    pub fn from(&self) -> SocketAddr {
        self.key.remote
    }

    /// What for.
    pub fn to(&self) -> SocketAddr {
        self.key.local
    }

    /// Says yes.
    ///
    /// # Errors
    /// When the other side is gone meanwhile, or connections are used up.
    pub async fn accept(self) -> Result<Stream, ConnectError> {
        let shared = &self.stack.0;
        let flow = {
            let mut table = shared.table();
            table.requests.remove(&self.key);
            self.stack.add(&mut table, self.key, self.mtu, false)?
        };
        let stream = Stream::new(self.stack.clone(), flow);
        let now = flow::stack_time(shared.epoch, std::time::Instant::now());
        let ip = warren_proto::packet::ip::Ip::parse(&self.packet);
        let packet = ip.map(|ip| Packet { ip, bytes: &self.packet, trusted: true });
        if let Some(packet) = packet {
            stream.flow().take(&shared.wire, &packet, now);
        }
        shared.work(stream.flow());
        tokio::time::timeout(CONNECT_PATIENCE, poll_fn(|cx| stream.flow().poll_connected(cx)))
            .await
            .map_err(|_| ConnectError::TimedOut)??;
        Ok(stream)
    }

    /// Says no.
    pub fn refuse(self, why: No) {
        match why {
            No::Unreachable => self.stack.answer(&self.packet, why.answer()),
            // Programs understand a reset best.
            No::Refused | No::Prohibited => {
                flow::reset(&self.stack.0.wire, self.key, &self.packet);
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.stack.0.table().requests.remove(&self.key);
    }
}

impl Stack {
    fn answer(&self, packet: &[u8], why: Answer) {
        let ip = warren_proto::packet::ip::Ip::parse(packet);
        let reply = ip.and_then(|ip| Some((ip, icmp::answer(&ip, packet, None, why)?)));
        if let Some((ip, reply)) = reply {
            let frame = [&[0; VNET_LEN][..], &reply].concat();
            self.0.wire.offer(ip.source(packet), 0, frame);
        }
    }

    /// Takes one frame in. Connections it was for are put into `touched`, to be
    /// worked on.
    pub(super) fn arrived(&self, frame: &[u8], now: StackTime, touched: &mut Vec<Arc<Flow>>) {
        let counters = &self.0.wire.counters;
        let Some(packet) = Packet::of_frame(frame) else {
            return counters.count(|c| &c.malformed);
        };
        let (from, to) = (packet.source(), packet.destination());
        let own = self.0.wire.own().is_own(to);
        let leased = {
            let table = self.0.table();
            table.exit.as_ref().is_some_and(|(leases, _)| leases.iter().any(|l| l.contains(&from)))
        };
        if !own && !leased {
            // Every interface is sent multicast nobody here asked for.
            if !to.is_multicast() {
                counters.count(|c| &c.not_ours);
            }
            return;
        }
        if packet.is_fragment() {
            return counters.count(|c| &c.fragments);
        }
        // What is no host is nobody's peer, nor an address of ours for a moment.
        if from.is_unspecified() || from.is_multicast() || !is_unicast(to) {
            return counters.count(|c| &c.malformed);
        }
        match packet.ip.protocol {
            PROTO_TCP | PROTO_UDP => {
                let Some((_, from_port, to_port)) = packet.ports() else {
                    return counters.count(|c| &c.malformed);
                };
                if !packet.is_sound() {
                    return counters.count(|c| &c.malformed);
                }
                let key = FlowKey {
                    local: SocketAddr::new(to, to_port),
                    remote: SocketAddr::new(from, from_port),
                };
                if packet.ip.protocol == PROTO_TCP {
                    self.segment(&packet, key, leased, now, touched);
                } else {
                    self.datagram(&packet, key, leased);
                }
            }
            PROTO_ICMP | PROTO_ICMPV6 => self.icmp(&packet, leased, touched),
            _ => counters.count(|c| &c.malformed),
        }
    }

    /// Who takes what came unasked to `to`. Ports are published to the mesh, not
    /// to an exit, which can send whatever it likes to an inner address.
    fn taker<'a>(
        &self,
        table: &'a Table,
        to: IpAddr,
        leased: bool,
    ) -> Option<&'a mpsc::Sender<Arrival>> {
        if leased {
            table.exit.as_ref().map(|exit| &exit.1)
        } else {
            table.member.as_ref().filter(|_| !self.0.wire.own().is_inner(to))
        }
    }

    fn segment(
        &self,
        packet: &Packet<'_>,
        key: FlowKey,
        leased: bool,
        now: StackTime,
        touched: &mut Vec<Arc<Flow>>,
    ) {
        let opens = packet.tcp_flags() & (SYN | ACK | RST) == SYN;
        let mut table = self.0.table();
        if let Some(flow) = table.flows.get(&key).cloned() {
            if !(opens && flow.lingers()) {
                drop(table);
                flow.take(&self.0.wire, packet, now);
                touched.push(flow);
                return;
            }
            table.flows.remove(&key);
        }
        if !opens {
            drop(table);
            if packet.tcp_flags() & RST == 0 {
                flow::reset(&self.0.wire, key, packet.bytes);
            }
            return;
        }
        if table.requests.contains(&key) {
            return;
        }
        let taker = self.taker(&table, key.local.ip(), leased);
        let Some(taker) = taker.cloned() else {
            drop(table);
            return flow::reset(&self.0.wire, key, packet.bytes);
        };
        if table.requests.len() >= MAX_REQUESTS {
            // It asks again.
            return self.0.wire.counters.count(|c| &c.no_room);
        }
        table.requests.insert(key);
        drop(table);
        let own = self.0.wire.own();
        let request = Request {
            stack: self.clone(),
            key,
            packet: packet.bytes.to_vec(),
            mtu: if leased { ONION_MTU } else { own.mesh_mtu.max(ONION_MTU) },
        };
        if taker.try_send(Arrival::Connection(request)).is_err() {
            self.0.wire.counters.count(|c| &c.no_room);
        }
    }

    fn datagram(&self, packet: &Packet<'_>, key: FlowKey, leased: bool) {
        let counters = &self.0.wire.counters;
        let Some(payload) = packet.datagram() else {
            return counters.count(|c| &c.malformed);
        };
        let taker = {
            let table = self.0.table();
            if let Some(socket) = table.sockets.get(&key.local) {
                if socket.incoming.try_send((key.remote, payload.to_vec())).is_err() {
                    counters.count(|c| &c.no_room);
                }
                return;
            }
            self.taker(&table, key.local.ip(), leased).cloned()
        };
        let Some(taker) = taker else {
            return self.answer(packet.bytes, Answer::PortUnreachable);
        };
        let unclaimed = Unclaimed {
            from: key.remote,
            to: key.local,
            stack: self.clone(),
            packet: packet.bytes.to_vec(),
        };
        if taker.try_send(Arrival::Datagram(unclaimed)).is_err() {
            counters.count(|c| &c.no_room);
        }
    }

    fn icmp(&self, packet: &Packet<'_>, leased: bool, touched: &mut Vec<Arc<Flow>>) {
        let (from, to) = (packet.source(), packet.destination());
        if leased {
            let taker = self.0.table().exit.as_ref().map(|exit| exit.1.clone());
            if let (Some(body), Some(taker)) = (packet.echo_request(), taker) {
                let echo = Arrival::Echo { from, to, body: body.to_vec() };
                if let Err(mpsc::error::TrySendError::Full(_)) = taker.try_send(echo) {
                    self.0.wire.counters.no_room.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
        } else if let Some(reply) = packet.echo_reply() {
            self.0.wire.offer(from, 0, reply);
            return;
        }
        let Some(error) = packet.icmp_error() else { return };
        if error.protocol == Protocol::Tcp {
            let key = FlowKey { local: error.local, remote: error.remote };
            let flow = self.0.table().flows.get(&key).cloned();
            if let Some(flow) = flow {
                flow.told(error.what);
                touched.push(flow);
            }
        }
    }
}

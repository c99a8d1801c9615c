//! Many nodes in one process: the real engine and the real control transport on
//! a UDP socket each, without TUN. What a node would write to its TUN is looked
//! at for echo replies and dropped.
//!
//! In: state directories, and where the daemon under test is. Out: a line of
//! JSON ([`Progress`]) whenever something changed. Invariant: each node connects
//! to the daemon, keeps its link up and sends it one ping a second, so that all
//! of them are active. Deliberately not here: speed. One thread for all.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use warren_control::ca::NODE_CERTIFICATE_LIFE;
use warren_control::membership::Membership;
use warren_control::trust::Trust;
use warren_node::random::OsRandom;
use warren_node::store::Store;
use warren_node::transport::{
    Control, ControlConfig, ControlEvent, ControlHandle, ControlSocket, Datagram, OwnDescriptor,
    Timing,
};
use warren_proto::engine::{Engine, EngineConfig, LinkEvent, Now, PeerConfig};
use warren_proto::link::event::{Outputs, ToEngine};
use warren_proto::link::receive::Receiver;
use warren_proto::link::tables::Tables;
use warren_proto::link::transmit::{TAIL_ROOM, Transmitter};
use warren_proto::noise::{MacKey, StaticKey};
use warren_proto::packet::checksum::Sum;
use warren_proto::packet::gather::Limits;
use warren_proto::packet::vnet::VNET_LEN;
use warren_types::{DropCounters, DropReason, NodeId};

use super::members::LATE;

/// Between pings of one node.
const PING: Duration = Duration::from_secs(1);
const MTU: u32 = 1420;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// What the farm tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Nodes with a control connection to the daemon.
    pub(super) connected: usize,
    /// Nodes whose link with it came up.
    pub(super) linked: usize,
    /// Pings answered, of all nodes together.
    pub(super) pongs: u64,
    /// Links that came up again, keys being renewed in time left out.
    pub(super) again: u64,
}

/// What a worker did.
#[derive(Default)]
struct Did {
    sent: Vec<(SocketAddr, Vec<u8>)>,
    events: Vec<ToEngine>,
    pongs: u64,
}

impl Outputs for Did {
    fn tun(&mut self, frame: &[u8]) {
        let reply = frame.get(VNET_LEN + 6) == Some(&ICMPV6)
            && frame.get(VNET_LEN + 40) == Some(&ECHO_REPLY);
        self.pongs += u64::from(reply);
    }
    fn udp(&mut self, to: SocketAddr, data: &[u8], segment: usize, _: u8) {
        self.sent.extend(data.chunks(segment.max(1)).map(|one| (to, one.to_vec())));
    }
    fn udp_fragmentable(&mut self, to: SocketAddr, data: &[u8], _: u8) {
        self.sent.push((to, data.to_vec()));
    }
    fn engine(&mut self, event: ToEngine) {
        self.events.push(event);
    }
    fn dropped(&mut self, _: DropReason, _: u64) {}
}

struct Node {
    engine: Engine,
    tables: Arc<Tables>,
    mac_key: MacKey,
    epoch: Instant,
    own: Ipv6Addr,
    hub: NodeId,
    hub_address: Option<Ipv6Addr>,
    linked: bool,
    socket: Arc<UdpSocket>,
    quic: mpsc::Sender<Datagram>,
    receiver: Receiver,
    transmitter: Transmitter,
    progress: Rc<RefCell<Progress>>,
}

/// Runs nodes from their state directories at their addresses, until killed.
pub(super) fn run(
    nodes: impl Iterator<Item = (PathBuf, SocketAddr)>,
    hub: (NodeId, SocketAddr),
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let progress = Rc::new(RefCell::new(Progress::default()));
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        for (dir, at) in nodes {
            let (node, control, events, incoming) =
                start(&dir, at, hub, &progress).with_context(|| dir.display().to_string())?;
            tokio::task::spawn_local(serve(node, control, events, incoming));
        }
        let mut told = None;
        loop {
            let now = *progress.borrow();
            if told != Some(now) {
                println!("{}", serde_json::to_string(&now)?);
                told = Some(now);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

type Started = (Node, ControlHandle, mpsc::UnboundedReceiver<ControlEvent>, Arc<UdpSocket>);

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn start(
    dir: &Path,
    at: SocketAddr,
    hub: (NodeId, SocketAddr),
    progress: &Rc<RefCell<Progress>>,
) -> Result<Started> {
    let store = Arc::new(Store::open(dir)?);
    let member = store.member()?.context("no member")?;
    let certificates = store.certificates()?;
    let root = Trust::new(certificates.ca, member.network.name.clone(), member.network.id)?;
    let own = member.addresses.iter().find_map(|a| match a {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let link_key = StaticKey::new(&store.link_key(&mut OsRandom)?);
    let socket = std::net::UdpSocket::bind(at)?;
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let (quic, incoming) = mpsc::channel(64);
    let sender = socket.clone();
    let control_socket = ControlSocket {
        sender: Arc::new(move |to: SocketAddr, _ecn: u8, data: &[u8]| {
            sender.try_send_to(data, to).map(drop)
        }),
        incoming,
        port: at.port(),
    };
    let (control, events) = Control::spawn(
        ControlConfig {
            key: Arc::new(store.identity(&mut OsRandom)?),
            network: member.network,
            membership: Membership::Certificate(root),
            chain: certificates.chain,
            own: OwnDescriptor {
                name: member.name,
                link_key: link_key.public(),
                addresses: member.addresses.clone(),
                clients: vec![],
                endpoints: vec![at],
                routes: vec![],
                tcp_port: None,
                onion: None,
            },
            admin: None,
            certificate_life: NODE_CERTIFICATE_LIFE,
            known: vec![],
            revocations: vec![],
            approvals: vec![],
            bootstrap: vec![(None, hub.1)],
            bound: at,
            tcp_listener: None,
            tcp_fallback: false,
            persist: store,
            clock: Arc::new(|| unix_now().as_secs() - LATE),
            timing: Timing::default(),
        },
        control_socket,
    )?;
    let epoch = Instant::now();
    let tables = Arc::new(Tables::default());
    let drops = Arc::new(DropCounters::default());
    let config = EngineConfig::new(link_key, member.addresses, MTU, drops);
    let mut engine = Engine::new(config, tables.clone(), epoch);
    engine.set_relaying(false);
    let node = Node {
        mac_key: engine.mac_key(),
        engine,
        tables,
        epoch,
        own: own.context("no IPv6 address")?,
        hub: hub.0,
        hub_address: None,
        linked: false,
        socket: socket.clone(),
        quic,
        receiver: Receiver::new(Limits::ALL),
        transmitter: Transmitter::default(),
        progress: progress.clone(),
    };
    Ok((node, control, events, socket))
}

async fn serve(
    mut node: Node,
    _control: ControlHandle,
    mut events: mpsc::UnboundedReceiver<ControlEvent>,
    socket: Arc<UdpSocket>,
) {
    let mut buffer = vec![0; 2048];
    let phase = u32::from(socket.local_addr().map_or(0, |a| a.port()) % 100);
    let begin = tokio::time::Instant::now() + PING * phase / 100;
    let mut ping = tokio::time::interval_at(begin, PING);
    loop {
        node.flush();
        let deadline = node.engine.poll_timeout().map(|(at, _)| at);
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An ICMP error of an earlier send concerns nobody.
                if let Ok((len, from)) = received {
                    node.received(from, &buffer[..len]);
                }
            }
            event = events.recv() => match event {
                Some(event) => node.told(event),
                None => return,
            },
            () = timer => node.engine.handle_timeout(now(), &mut OsRandom),
            _ = ping.tick() => node.ping(),
        }
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), unix: unix_now() }
}

impl Node {
    fn now_ms(&self) -> u64 {
        self.engine.now_ms(Instant::now().max(self.epoch))
    }

    fn flush(&mut self) {
        while let Some(transmit) = self.engine.poll_transmit() {
            // Lost datagrams are repaired by those who sent them.
            let _lost = self.socket.try_send_to(&transmit.data, transmit.to);
        }
        while let Some(event) = self.engine.poll_event() {
            if let LinkEvent::SessionEstablished { rekey: false, .. } = event {
                let mut progress = self.progress.borrow_mut();
                match std::mem::replace(&mut self.linked, true) {
                    false => progress.linked += 1,
                    true => progress.again += 1,
                }
            }
        }
    }

    fn settle(&mut self, did: Did) {
        self.progress.borrow_mut().pongs += did.pongs;
        for (to, data) in did.sent {
            let _lost = self.socket.try_send_to(&data, to);
        }
        let (engine, rng) = (&mut self.engine, &mut OsRandom);
        for event in did.events {
            match event {
                ToEngine::Handshake { from, data } => {
                    engine.handle_handshake(from, &data, 0, now(), rng);
                }
                ToEngine::LinkFrame { peer, from, data } => {
                    engine.handle_link_frame(&peer, from, &data, now(), rng);
                }
                ToEngine::Staged { peer, packets } => {
                    engine.handle_staged(&peer, packets, now(), rng);
                }
                ToEngine::Confirmed { session } => engine.handle_confirmed(&session, now(), rng),
                ToEngine::Roamed { peer, to } => engine.handle_roamed(&peer, to, now(), rng),
                // No control transport and no circuits here.
                ToEngine::Quic { .. }
                | ToEngine::Cell { .. }
                | ToEngine::OnionRequest { .. }
                | ToEngine::OnionAnswer { .. } => {}
            }
        }
    }

    fn received(&mut self, from: SocketAddr, data: &[u8]) {
        if data.first().is_some_and(|first| *first >= 64) {
            // A full queue loses it, as a socket's would.
            let _lost = self.quic.try_send(Datagram { from, ecn: 0, data: data.to_vec() });
            return;
        }
        let mut did = Did::default();
        let now_ms = self.now_ms();
        let (tables, key, len) = (&self.tables, &self.mac_key, data.len());
        self.receiver.train(&mut did, tables, key, from, 0, data, len, now_ms);
        self.receiver.finish(&mut did);
        self.settle(did);
    }

    fn told(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::PeerConnected(peer) if peer.node == self.hub => {
                let body = &peer.view.descriptor.body;
                let config = PeerConfig {
                    key: body.link_key,
                    suite: warren_types::Suite::default(),
                    is_warren: true,
                    psk: Some(peer.psk.clone()),
                    psk_required: true,
                    endpoint: Some(peer.remote),
                    allowed: peer.view.addresses.iter().map(|a| (*a).into()).collect(),
                    persistent_keepalive: None,
                    hold: peer.dialer,
                };
                self.hub_address = peer.view.addresses.iter().find_map(|a| match a {
                    IpAddr::V6(v6) => Some(*v6),
                    IpAddr::V4(_) => None,
                });
                self.engine.upsert_peer(config, now(), &mut OsRandom);
                let _waits_no_more = peer.installed.send(());
                self.progress.borrow_mut().connected += 1;
            }
            ControlEvent::PeerLost { node, .. } if node == self.hub => {
                let mut progress = self.progress.borrow_mut();
                progress.connected = progress.connected.saturating_sub(1);
            }
            _ => {}
        }
    }

    /// Sends an echo request to the daemon's overlay address.
    fn ping(&mut self) {
        let Some(hub) = self.hub_address.filter(|_| self.linked) else { return };
        let mut icmp = vec![ECHO_REQUEST, 0, 0, 0, 0, 7, 0, 1];
        icmp.extend([0; 8]);
        let addresses = [self.own.octets(), hub.octets()].concat();
        let sum = Sum::default().pseudo(&addresses, ICMPV6, icmp.len()).bytes(&icmp).complete();
        icmp[2..4].copy_from_slice(&sum);
        let len = (icmp.len() as u16).to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], ICMPV6, 64];
        packet.extend(addresses);
        packet.extend(icmp);
        let end = VNET_LEN + packet.len();
        let mut frame = vec![0; end + TAIL_ROOM];
        frame[VNET_LEN..end].copy_from_slice(&packet);
        let mut did = Did::default();
        let now_ms = self.now_ms();
        self.transmitter.frame(&mut did, &self.tables, &mut frame, end, now_ms);
        self.transmitter.finish(&mut did);
        self.settle(did);
    }
}

//! The bare data path between two ends with fixed keys: no handshake, no
//! rekeying. For measuring and profiling the workers, never for real traffic.
//!
//! `static_link SUITE INTERFACE LISTEN PEER OWN_ADDRESS PEER_ADDRESS [WORKERS]`

#![allow(clippy::print_stdout, reason = "a command-line tool")]

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use warren_node::workers::{EngineQueues, WorkerConfig, Workers};
use warren_os::tun::Tun;
use warren_os::udp::UdpSocket;
use warren_proto::link::peer::PeerLink;
use warren_proto::link::session::{RecvSession, SendSession};
use warren_proto::link::tables::{Routes, Tables};
use warren_proto::noise::MacKey;
use warren_types::{DropCounters, LinkPublicKey, Suite};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [suite, interface, listen, endpoint, own, other, rest @ ..] = &args[..] else {
        anyhow::bail!(
            "usage: static_link SUITE INTERFACE LISTEN PEER OWN_ADDRESS PEER_ADDRESS [WORKERS]"
        );
    };
    let suite: Suite = suite.parse()?;
    let count: usize = rest.first().map_or(Ok(1), |text| text.parse())?;
    let tun = Tun::open(interface, count)?;
    let listen = listen.parse().context("LISTEN")?;
    let sockets = (0..count)
        .map(|_| UdpSocket::bind(listen, count > 1).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let peer = Arc::new(PeerLink::new(LinkPublicKey([2; 32]), suite, true));
    peer.endpoint.store(Some(Arc::new(endpoint.parse().context("PEER")?)));
    let tables = Arc::new(Tables::default());
    let other_net: ipnet::IpNet = other.parse::<std::net::IpAddr>()?.into();
    tables.routes.store(Arc::new(Routes::new(vec![own.parse()?], [(other_net, peer.clone())])));
    // One key per direction. The sessions are made "in the future", so that
    // they do not expire.
    let (send_key, recv_key) = if own < other { ([7; 32], [8; 32]) } else { ([8; 32], [7; 32]) };
    let created_ms = u64::MAX;
    peer.send.store(Some(Arc::new(SendSession::new(suite, 1, &send_key, created_ms, true))));
    tables.insert_session(Arc::new(RecvSession::new(suite, 1, &recv_key, peer, created_ms)));
    let (events, mut queue) = tokio::sync::mpsc::channel(64);
    let drops = Arc::new(DropCounters::default());
    let offloads = tun.offloads();
    let workers = Workers::spawn(WorkerConfig {
        queues: tun.into_queues(),
        offloads,
        sockets,
        tables,
        drops: drops.clone(),
        engine: EngineQueues { handshakes: events.clone(), quic: events.clone(), events },
        mac_key: MacKey::for_receiver(&LinkPublicKey([2; 32])),
        one_thread: false,
        epoch: Instant::now(),
    })?;
    println!("{}", workers.mode());
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
        while queue.try_recv().is_ok() {}
        if workers.failed() {
            anyhow::bail!("a worker failed; drops: {:?}", drops.non_zero());
        }
        if std::env::var_os("STATIC_LINK_DROPS").is_some() {
            println!("{:?}", drops.non_zero());
        }
    }
}

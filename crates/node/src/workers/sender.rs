//! Datagrams that do not come from the workers: the engine's and the control
//! transport's. Those to mesh addresses become relay frames here, so that
//! nobody else has to know what such an address is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use warren_os::udp::{SendError, Transmit, UdpSocket};
use warren_proto::link::event::ToEngine;
use warren_proto::link::relay::{Wrapped, wrap};
use warren_proto::link::tables::Tables;
use warren_types::{DropCounters, DropReason, mesh_node};

use super::engine_ms;

/// Sends datagrams from the workers' sockets, for the engine and the control
/// transport. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct DatagramSender {
    sockets: Arc<[Arc<UdpSocket>]>,
    mesh: Option<Arc<MeshSender>>,
}

/// What it takes to send over other nodes.
#[derive(Debug)]
pub(super) struct MeshSender {
    pub(super) tables: Arc<Tables>,
    pub(super) drops: Arc<DropCounters>,
    /// Where frames wait for a session with the first relay.
    pub(super) engine: mpsc::Sender<ToEngine>,
    pub(super) epoch: Instant,
}

impl DatagramSender {
    /// For sockets without workers (tests, and a node without a TUN); nothing
    /// goes to mesh addresses.
    pub fn new(sockets: Vec<Arc<UdpSocket>>) -> Self {
        Self { sockets: sockets.into(), mesh: None }
    }

    pub(super) fn over_others(self, mesh: MeshSender) -> Self {
        Self { mesh: Some(Arc::new(mesh)), ..self }
    }

    fn socket(&self) -> &UdpSocket {
        &self.sockets[0]
    }

    /// Sends datagrams: `data`, cut every `segment` bytes. What cannot go to a
    /// mesh address is counted, and is no error.
    ///
    /// # Errors
    /// As [`UdpSocket::try_send`].
    pub fn send(&self, transmit: &Transmit<'_>) -> Result<(), SendError> {
        if mesh_node(transmit.to).is_none() {
            return self.socket().try_send(transmit);
        }
        for datagram in transmit.data.chunks(transmit.segment.max(1)) {
            self.send_over_others(transmit.to, datagram, transmit.tos, false)?;
        }
        Ok(())
    }

    /// Sends one datagram that may be fragmented on its way.
    ///
    /// # Errors
    /// As [`UdpSocket::send_fragmentable`].
    pub fn send_fragmentable(&self, to: SocketAddr, data: &[u8]) -> Result<(), SendError> {
        if mesh_node(to).is_none() {
            return self.socket().send_fragmentable(to, data, 0);
        }
        self.send_over_others(to, data, 0, true)
    }

    fn send_over_others(
        &self,
        to: SocketAddr,
        data: &[u8],
        tos: u8,
        may_fragment: bool,
    ) -> Result<(), SendError> {
        let (Some(node), Some(mesh)) = (mesh_node(to), &self.mesh) else { return Ok(()) };
        let now_ms = engine_ms(mesh.epoch, Instant::now());
        match wrap(&mesh.tables.routes.load(), node, data, may_fragment, now_ms) {
            Wrapped::Send { to, datagram, fragment: false } => {
                let segment = datagram.len();
                self.socket().try_send(&Transmit { to, data: &datagram, segment, tos })
            }
            Wrapped::Send { to, datagram, fragment: true } => {
                self.socket().send_fragmentable(to, &datagram, tos)
            }
            Wrapped::Stage { hop, frame } => {
                let staged = ToEngine::Staged { peer: hop, packets: vec![frame] };
                if mesh.engine.try_send(staged).is_err() {
                    mesh.drops.count(DropReason::StagingFull);
                }
                Ok(())
            }
            Wrapped::Dropped(reason) => {
                mesh.drops.count(reason);
                Ok(())
            }
        }
    }

    /// The address the sockets are bound to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket().local_addr()
    }
}

//! What the fast path hands over: frames to the TUN, datagrams to the network,
//! everything that needs thought to the engine.

use std::net::SocketAddr;
use std::sync::Arc;

use warren_types::DropReason;

use super::peer::PeerLink;
use super::session::RecvSession;
use crate::onion::circuit::{ClientCircuit, HopCircuit};

/// Something a worker cannot or must not decide by itself.
#[derive(Debug)]
pub enum ToEngine {
    /// A handshake message with the right form and mac1.
    Handshake {
        /// Sender.
        from: SocketAddr,
        /// The whole datagram.
        data: Vec<u8>,
    },
    /// A datagram of the control transport.
    Quic {
        /// Sender.
        from: SocketAddr,
        /// ECN field of the outer header, 0 to 3.
        ecn: u8,
        /// The whole datagram.
        data: Vec<u8>,
    },
    /// A frame between Warren nodes, authenticated, that is no IP packet.
    LinkFrame {
        /// Who sent it.
        peer: Arc<PeerLink>,
        /// From which address.
        from: SocketAddr,
        /// The frame, padding included.
        data: Vec<u8>,
    },
    /// A cell that is no worker's business: the beginning or end of a circuit.
    Cell {
        /// Who sent it.
        peer: Arc<PeerLink>,
        /// The cell.
        data: Vec<u8>,
    },
    /// What a client says to us as a hop of its circuit.
    OnionRequest {
        /// The circuit.
        circuit: Arc<HopCircuit>,
        /// The text.
        text: Vec<u8>,
    },
    /// What a hop of one of our circuits says.
    OnionAnswer {
        /// The circuit.
        circuit: Arc<ClientCircuit>,
        /// The hop, from 0.
        hop: usize,
        /// The text.
        text: Vec<u8>,
    },
    /// Packets for a peer without a usable session: the engine makes a
    /// handshake and sends them after it.
    Staged {
        /// Where they go.
        peer: Arc<PeerLink>,
        /// Complete IP packets, checksums finished.
        packets: Vec<Vec<u8>>,
    },
    /// The first message on a session authenticated.
    Confirmed {
        /// The session.
        session: Arc<RecvSession>,
    },
    /// A peer's authenticated message came from another address than it is
    /// sent to. For a stock WireGuard peer that is its endpoint now.
    Roamed {
        /// The peer.
        peer: Arc<PeerLink>,
        /// That address.
        to: SocketAddr,
    },
}

/// Where the fast path's results go. Implemented by the worker threads with
/// real descriptors, and by tests with memory. No method may block for long;
/// what fails is counted by the implementation.
pub trait Outputs {
    /// Writes one frame (vnet header and packet) to the TUN.
    fn tun(&mut self, frame: &[u8]);
    /// Sends datagrams, cut every `segment` bytes, the last possibly shorter.
    fn udp(&mut self, to: SocketAddr, data: &[u8], segment: usize, tos: u8);
    /// Sends one datagram that may be fragmented on its way.
    fn udp_fragmentable(&mut self, to: SocketAddr, data: &[u8], tos: u8);
    /// Queues something for the engine; a full queue drops and counts.
    fn engine(&mut self, event: ToEngine);
    /// Counts dropped packets.
    fn dropped(&mut self, reason: DropReason, packets: u64);
}

//! The fast path's outputs on real descriptors.

use std::net::SocketAddr;

use tokio::sync::mpsc::error::TrySendError;
use warren_os::udp::{SendError, Transmit};
use warren_proto::link::event::{Outputs, ToEngine};
use warren_types::DropReason;

use super::loops::Shared;

/// Writes to one worker's TUN queue, socket and engine queues.
pub(super) struct Descriptors<'a>(pub(super) &'a Shared);

impl Descriptors<'_> {
    fn sent(&mut self, result: Result<(), SendError>) {
        if let Err(error) = result {
            tracing::trace!(%error, "datagrams not sent");
            self.dropped(DropReason::SendFailed, error.failed as u64);
        }
    }
}

impl Outputs for Descriptors<'_> {
    fn tun(&mut self, frame: &[u8]) {
        if let Err(error) = self.0.queue.write(frame) {
            tracing::trace!(%error, "frame not written to the TUN interface");
            self.dropped(DropReason::SendFailed, 1);
        }
    }

    fn udp(&mut self, to: SocketAddr, data: &[u8], segment: usize, tos: u8) {
        let result = self.0.socket.send(&Transmit { to, data, segment, tos });
        self.sent(result);
    }

    fn udp_fragmentable(&mut self, to: SocketAddr, data: &[u8], tos: u8) {
        let result = self.0.socket.send_fragmentable(to, data, tos);
        self.sent(result);
    }

    fn engine(&mut self, event: ToEngine) {
        let queues = &self.0.engine;
        let queue = match &event {
            ToEngine::Handshake { .. } => &queues.handshakes,
            ToEngine::Quic { .. } => &queues.quic,
            _ => &queues.events,
        };
        match queue.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(ToEngine::Staged { packets, .. })) => {
                self.dropped(DropReason::StagingFull, packets.len() as u64);
            }
            Err(TrySendError::Full(_)) => self.dropped(DropReason::QueueFull, 1),
            // The engine is gone: the daemon is stopping.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    fn dropped(&mut self, reason: DropReason, packets: u64) {
        self.0.drops.add(reason, packets);
    }
}

//! The two loops: read until nothing is left, then wait.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use warren_os::tun::{TunOffloads, TunQueue};
use warren_os::udp::{RecvBatch, UdpSocket};
use warren_os::wait::{Ready, Waker, wait_readable};
use warren_proto::link::receive::Receiver;
use warren_proto::link::tables::Tables;
use warren_proto::link::transmit::{FRAME_BUFFER, TAIL_ROOM, Transmitter};
use warren_proto::noise::MacKey;
use warren_proto::packet::gather::Limits;
use warren_types::DropCounters;

use super::io::Descriptors;
use super::{EngineQueues, engine_ms};

/// What the two threads of a worker share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) queue: Arc<TunQueue>,
    pub(super) socket: Arc<UdpSocket>,
    pub(super) tables: Arc<Tables>,
    pub(super) drops: Arc<DropCounters>,
    pub(super) engine: EngineQueues,
    pub(super) mac_key: MacKey,
    pub(super) epoch: Instant,
    pub(super) offloads: TunOffloads,
    pub(super) waker: Waker,
    pub(super) failed: Arc<AtomicBool>,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        engine_ms(self.epoch, Instant::now())
    }

    fn give_up(&self, what: &'static str, error: &std::io::Error) {
        tracing::error!(%error, "{what} failed; this worker stops");
        self.failed.store(true, Ordering::Relaxed);
    }
}

/// From the TUN to the network.
pub(super) fn transmit(shared: &Shared) {
    let mut buffer = vec![0u8; FRAME_BUFFER];
    let mut transmitter = Transmitter::default();
    let mut io = Descriptors(shared);
    loop {
        // A super-packet's datagrams stay open to be joined by the next
        // frame's until the queue is empty.
        match shared.queue.read(&mut buffer[..FRAME_BUFFER - TAIL_ROOM]) {
            Ok(len) => {
                transmitter.frame(&mut io, &shared.tables, &mut buffer, len, shared.now_ms());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                transmitter.rest(&mut io);
                match wait_readable(&[shared.queue.as_fd()], &shared.waker) {
                    Ok(Ready::Readable(_)) => {}
                    Ok(Ready::Woken) => return,
                    Err(error) => return shared.give_up("waiting for the TUN interface", &error),
                }
            }
            Err(error) => return shared.give_up("reading the TUN interface", &error),
        }
    }
}

/// From the network to the TUN.
pub(super) fn receive(shared: &Shared) {
    let mut batch = RecvBatch::default();
    let mut receiver = Receiver::new(Limits {
        checksum: shared.offloads.vnet_hdr,
        tcp: shared.offloads.vnet_hdr,
        udp: shared.offloads.uso,
    });
    let mut io = Descriptors(shared);
    loop {
        match shared.socket.receive(&mut batch) {
            Ok(count) => {
                let now_ms = shared.now_ms();
                for i in 0..count {
                    if let Some(train) = batch.train(i) {
                        receiver.train(
                            &mut io,
                            &shared.tables,
                            &shared.mac_key,
                            train.from,
                            train.tos,
                            train.data,
                            train.segment,
                            now_ms,
                        );
                    }
                }
                receiver.finish(&mut io);
                if batch.was_full() {
                    continue;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // What earlier sends met on their way; the socket itself is fine.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused
                        | ErrorKind::HostUnreachable
                        | ErrorKind::NetworkUnreachable
                        | ErrorKind::NetworkDown
                ) =>
            {
                continue;
            }
            Err(error) => return shared.give_up("receiving UDP", &error),
        }
        receiver.rest(&mut io);
        match wait_readable(&[shared.socket.as_fd()], &shared.waker) {
            Ok(Ready::Readable(_)) => {}
            Ok(Ready::Woken) => return,
            Err(error) => return shared.give_up("waiting for UDP", &error),
        }
    }
}

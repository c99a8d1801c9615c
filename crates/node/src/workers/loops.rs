//! The loops: read until nothing is left, then wait. Either one thread for each
//! direction, or one for both.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use warren_os::tun::{TunOffloads, TunQueue};
use warren_os::udp::{RecvBatch, UdpSocket};
use warren_os::wait::{Ready, Waker, wait_readable};
use warren_proto::link::receive::Receiver;
use warren_proto::link::session::{TYPE_TRANSPORT_AES, TYPE_TRANSPORT_WIREGUARD};
use warren_proto::link::tables::Tables;
use warren_proto::link::transmit::{FRAME_BUFFER, TAIL_ROOM, Transmitter};
use warren_proto::noise::MacKey;
use warren_proto::packet::gather::Limits;
use warren_types::DropCounters;

use super::io::Descriptors;
use super::linger::Linger;
use super::{EngineQueues, engine_ms};

/// What the threads of a worker share.
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

/// Most frames and bytes taken from the TUN before the socket gets its turn,
/// where one thread serves both.
const TURN_FRAMES: usize = 64;
const TURN_BYTES: usize = 256 * 1024;

/// First bytes of datagrams that may hold packets for this host.
const TRAFFIC: [u8; 2] = [TYPE_TRANSPORT_AES, TYPE_TRANSPORT_WIREGUARD];

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing is left to read, as far as is known.
    Empty,
    /// There may be more.
    More,
}

/// A worker has to stop; why was logged.
struct GivenUp;

/// From the TUN to the network.
struct Sending {
    buffer: Vec<u8>,
    transmitter: Transmitter,
    /// Taken since somebody last looked.
    bytes: usize,
}

impl Sending {
    fn new() -> Self {
        Self { buffer: vec![0; FRAME_BUFFER], transmitter: Transmitter::default(), bytes: 0 }
    }

    /// Takes frames until the queue is empty or the limits are reached. A
    /// super-packet's datagrams stay open meanwhile, to be joined by the next
    /// frame's; all are sent when it returns.
    fn turn(&mut self, shared: &Shared, frames: usize, bytes: usize) -> Result<Turn, GivenUp> {
        let mut io = Descriptors(shared);
        let (mut frames_left, mut bytes_left) = (frames, bytes);
        while frames_left > 0 && bytes_left > 0 {
            match shared.queue.read(&mut self.buffer[..FRAME_BUFFER - TAIL_ROOM]) {
                Ok(len) => {
                    let now_ms = shared.now_ms();
                    let (transmitter, buffer) = (&mut self.transmitter, &mut self.buffer);
                    transmitter.frame(&mut io, &shared.tables, buffer, len, now_ms);
                    self.bytes += len;
                    frames_left -= 1;
                    bytes_left = bytes_left.saturating_sub(len);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.transmitter.finish(&mut io);
                    return Ok(Turn::Empty);
                }
                Err(error) => {
                    shared.give_up("reading the TUN interface", &error);
                    return Err(GivenUp);
                }
            }
        }
        self.transmitter.finish(&mut io);
        Ok(Turn::More)
    }

    fn rest(&mut self, shared: &Shared) {
        self.transmitter.rest(&mut Descriptors(shared));
    }
}

/// From the network to the TUN.
struct Receiving {
    batch: RecvBatch,
    receiver: Receiver,
    /// Taken since somebody last looked.
    bytes: usize,
}

impl Receiving {
    fn new(shared: &Shared) -> Self {
        let receiver = Receiver::new(Limits {
            checksum: shared.offloads.vnet_hdr,
            tcp: shared.offloads.vnet_hdr,
            udp: shared.offloads.uso,
        });
        Self { batch: RecvBatch::default(), receiver, bytes: 0 }
    }

    /// Takes one batch.
    fn turn(&mut self, shared: &Shared) -> Result<Turn, GivenUp> {
        let mut io = Descriptors(shared);
        let count = match shared.socket.receive(&mut self.batch) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Empty),
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
                return Ok(Turn::More);
            }
            Err(error) => {
                shared.give_up("receiving UDP", &error);
                return Err(GivenUp);
            }
        };
        let now_ms = shared.now_ms();
        for i in 0..count {
            if let Some(train) = self.batch.train(i) {
                // After handshakes and the control transport nobody here answers
                // at once.
                if train.data.first().is_some_and(|first| TRAFFIC.contains(first)) {
                    self.bytes += train.data.len();
                }
                self.receiver.train(
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
        self.receiver.finish(&mut io);
        Ok(if self.batch.was_full() { Turn::More } else { Turn::Empty })
    }

    fn rest(&mut self, shared: &Shared) {
        self.receiver.rest(&mut Descriptors(shared));
    }
}

/// A thread that only sends.
pub(super) fn transmit(shared: &Shared) {
    let mut sending = Sending::new();
    loop {
        match sending.turn(shared, usize::MAX, usize::MAX) {
            Ok(Turn::More) => continue,
            Ok(Turn::Empty) => sending.rest(shared),
            Err(GivenUp) => return,
        }
        match wait_readable(&[shared.queue.as_fd()], &shared.waker) {
            Ok(Ready::Readable(_)) => {}
            Ok(Ready::Woken) => return,
            Err(error) => return shared.give_up("waiting for the TUN interface", &error),
        }
    }
}

/// A thread that only receives.
pub(super) fn receive(shared: &Shared) {
    let mut receiving = Receiving::new(shared);
    loop {
        match receiving.turn(shared) {
            Ok(Turn::More) => continue,
            Ok(Turn::Empty) => receiving.rest(shared),
            Err(GivenUp) => return,
        }
        match wait_readable(&[shared.socket.as_fd()], &shared.waker) {
            Ok(Ready::Readable(_)) => {}
            Ok(Ready::Woken) => return,
            Err(error) => return shared.give_up("waiting for UDP", &error),
        }
    }
}

/// One thread for both directions. What it delivers to this host is often
/// answered at once (an echo, an acknowledgement): it finds the answer in the
/// TUN when it looks next, where a second thread would have to be woken, on
/// another core at that. Good where there are no cores to spare. After little
/// traffic it stays awake for the answer from far away ([`Linger`]).
pub(super) fn both(shared: &Shared) {
    const TUN: u32 = 1;
    const UDP: u32 = 2;
    let (mut sending, mut receiving) = (Sending::new(), Receiving::new(shared));
    let fds = [shared.queue.as_fd(), shared.socket.as_fd()];
    let mut linger = Linger::new(Instant::now());
    let mut ready = TUN | UDP;
    loop {
        let mut more = 0;
        if ready & UDP != 0 {
            match receiving.turn(shared) {
                Ok(Turn::More) => more |= UDP,
                Ok(Turn::Empty) => {}
                Err(GivenUp) => return,
            }
        }
        match sending.turn(shared, TURN_FRAMES, TURN_BYTES) {
            // Acknowledgements wait in the socket meanwhile.
            Ok(Turn::More) => more |= TUN | UDP,
            Ok(Turn::Empty) => {}
            Err(GivenUp) => return,
        }
        if more != 0 {
            ready = more;
            continue;
        }
        let bytes = std::mem::take(&mut sending.bytes) + std::mem::take(&mut receiving.bytes);
        let waited = match linger.look(bytes, &fds, &shared.waker) {
            Ok(None) => {
                sending.rest(shared);
                receiving.rest(shared);
                wait_readable(&fds, &shared.waker)
            }
            Ok(Some(found)) => Ok(found),
            Err(error) => Err(error),
        };
        match waited {
            Ok(Ready::Readable(bits)) => ready = bits,
            Ok(Ready::Woken) => return,
            Err(error) => return shared.give_up("waiting for packets", &error),
        }
    }
}

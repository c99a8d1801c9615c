//! The fast path's threads: per TUN queue and UDP socket, one thread from TUN
//! to network and one back, each running its batches to completion.
//!
//! Inputs: TUN queues, UDP sockets, the tables the engine publishes. Outputs:
//! packets, counters, and [`ToEngine`] events in bounded queues. Deliberately
//! not here: handshakes, timers, anything asynchronous.

mod io;
mod linger;
mod loops;
mod sender;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc;
use warren_os::tun::{TunOffloads, TunQueue};
use warren_os::udp::UdpSocket;
use warren_os::wait::Waker;
use warren_proto::link::event::ToEngine;
use warren_proto::link::tables::Tables;
use warren_proto::noise::MacKey;
use warren_types::DropCounters;

pub use sender::DatagramSender;
use sender::MeshSender;

/// Queues from the workers to the engine. Separate, so that a flood of one
/// kind cannot crowd out another; all bounded, and what does not fit is
/// dropped and counted.
#[derive(Debug, Clone)]
pub struct EngineQueues {
    /// [`ToEngine::Handshake`].
    pub handshakes: mpsc::Sender<ToEngine>,
    /// [`ToEngine::Quic`].
    pub quic: mpsc::Sender<ToEngine>,
    /// Everything else: it comes from authenticated peers or from this host.
    pub events: mpsc::Sender<ToEngine>,
}

/// What the workers work with.
#[derive(Debug)]
pub struct WorkerConfig {
    /// One per worker.
    pub queues: Vec<TunQueue>,
    /// What the TUN can do.
    pub offloads: TunOffloads,
    /// One per worker; several share a port.
    pub sockets: Vec<Arc<UdpSocket>>,
    /// Peers and sessions.
    pub tables: Arc<Tables>,
    /// Drop counters.
    pub drops: Arc<DropCounters>,
    /// Where events go.
    pub engine: EngineQueues,
    /// For mac1 of handshake messages sent to us: of our own link key.
    pub mac_key: MacKey,
    /// One thread for both directions of a worker instead of one for each: less
    /// latency and less work in all, but no more than one core's throughput.
    pub one_thread: bool,
    /// The engine's epoch; its clock says 1 ms at this instant.
    pub epoch: Instant,
}

/// Running workers. Dropping it stops them.
#[derive(Debug)]
pub struct Workers {
    waker: Waker,
    threads: Vec<JoinHandle<()>>,
    sender: DatagramSender,
    sockets: Arc<[Arc<UdpSocket>]>,
    offloads: TunOffloads,
    failed: Arc<AtomicBool>,
}

/// Workers by default for a machine with `cores` cores: one up to two cores
/// (more threads only take turns there), then half of them, at most four.
pub fn default_workers(cores: usize) -> usize {
    if cores <= 2 { 1 } else { (cores / 2).min(4) }
}

/// The engine's clock at `now`: ms since `epoch`, counted from 1.
pub fn engine_ms(epoch: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(epoch).as_millis() as u64 + 1
}

impl Workers {
    /// Starts one or two threads for each pair of queue and socket.
    ///
    /// # Errors
    /// When threads or descriptors run out; those already started are stopped.
    pub fn spawn(config: WorkerConfig) -> std::io::Result<Self> {
        let sockets: Arc<[Arc<UdpSocket>]> = config.sockets.into();
        let mut workers = Self {
            waker: Waker::new()?,
            threads: Vec::new(),
            sender: DatagramSender::new(sockets.to_vec()).over_others(MeshSender {
                tables: config.tables.clone(),
                drops: config.drops.clone(),
                engine: config.engine.events.clone(),
                epoch: config.epoch,
            }),
            sockets: sockets.clone(),
            offloads: config.offloads,
            failed: Arc::default(),
        };
        for (i, (queue, socket)) in config.queues.into_iter().zip(sockets.iter()).enumerate() {
            let shared = loops::Shared {
                queue: Arc::new(queue),
                socket: socket.clone(),
                tables: config.tables.clone(),
                drops: config.drops.clone(),
                engine: config.engine.clone(),
                mac_key: config.mac_key,
                epoch: config.epoch,
                offloads: config.offloads,
                waker: workers.waker.clone(),
                failed: workers.failed.clone(),
            };
            if config.one_thread {
                workers.start(format!("worker{i}"), move || loops::both(&shared))?;
            } else {
                let other = shared.clone();
                workers.start(format!("tx{i}"), move || loops::transmit(&shared))?;
                workers.start(format!("rx{i}"), move || loops::receive(&other))?;
            }
        }
        Ok(workers)
    }

    fn start(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// What is in use, for people: `tun(vnet_hdr,csum,tso,uso) udp(gso,gro) workers=1`.
    pub fn mode(&self) -> String {
        format!("tun({}) {}", self.offloads, self.outside())
    }

    /// The part of it that is about the underlay.
    pub fn outside(&self) -> String {
        let udp = self.sockets.first().map(|socket| socket.offloads().to_string());
        format!("udp({}) workers={}", udp.unwrap_or_default(), self.sockets.len())
    }

    /// Sends on the same sockets, to mesh addresses too.
    pub fn sender(&self) -> DatagramSender {
        self.sender.clone()
    }

    /// True when a thread had to give up, because the interface was deleted or
    /// a socket broke. The log says why.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.waker.wake();
        for thread in self.threads.drain(..) {
            // A thread that panicked said so already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_cores_get_one_worker() {
        let counts: Vec<_> = [1, 2, 3, 4, 8, 64].map(default_workers).into();
        assert_eq!(counts, [1, 1, 1, 2, 4, 4]);
    }

    #[test]
    fn the_clock_starts_at_one() {
        let epoch = Instant::now();
        assert_eq!(engine_ms(epoch, epoch), 1);
        assert_eq!(engine_ms(epoch, epoch + std::time::Duration::from_millis(1500)), 1501);
    }
}

//! Datagrams of others through ordinary sockets, and the answers back.
//!
//! One socket for each who sends (and, for published ports, each port), kept
//! while something passes. Invariants: sockets are bounded and closed when
//! idle; answers pass only from where something was sent to.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use super::arrive::Unclaimed;
use super::packet::MAX_DATAGRAM;
use super::stack::Stack;

/// Sockets at one time.
const MAX_RELAYS: usize = 1024;
/// A socket nothing passes through is closed after this (RFC 4787 asks for two
/// minutes at least).
const IDLE: Duration = Duration::from_secs(150);
/// Others that one socket may hear from.
const MAX_PEERS: usize = 256;

/// Who sends, and through what: a published port, or from an exit to a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Local { from: SocketAddr, to: SocketAddr },
    Outward { from: SocketAddr, v6: bool },
}

#[derive(Debug)]
struct Relay {
    socket: UdpSocket,
    /// Ms since the start of the relays.
    used: AtomicU64,
    peers: Mutex<HashSet<SocketAddr>>,
}

#[derive(Debug)]
struct Entry {
    relay: Arc<Relay>,
    task: AbortHandle,
}

/// All sockets.
#[derive(Debug)]
pub(super) struct Relays {
    all: Mutex<HashMap<Key, Entry>>,
    start: Instant,
}

impl Default for Relays {
    fn default() -> Self {
        Self { all: Mutex::default(), start: Instant::now() }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for (_, entry) in self.lock().drain() {
            entry.task.abort();
        }
    }
}

impl Relays {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Passes a datagram for a published port to the local socket.
    pub(super) async fn to_local(
        self: &Arc<Self>,
        stack: &Stack,
        datagram: &Unclaimed,
        local: SocketAddr,
    ) {
        let key = Key::Local { from: datagram.from, to: datagram.to };
        self.pass(stack, key, local, datagram.payload()).await;
    }

    /// Passes a datagram on to where it is for.
    pub(super) async fn outward(self: &Arc<Self>, stack: &Stack, datagram: &Unclaimed) {
        let key = Key::Outward { from: datagram.from, v6: datagram.to.is_ipv6() };
        self.pass(stack, key, datagram.to, datagram.payload()).await;
    }

    async fn pass(self: &Arc<Self>, stack: &Stack, key: Key, to: SocketAddr, payload: &[u8]) {
        let relay = match self.find(stack, key, to).await {
            Ok(relay) => relay,
            Err(error) => return tracing::debug!(%error, "no socket for datagrams"),
        };
        relay.used.store(self.now(), Ordering::Relaxed);
        {
            let mut peers = relay.peers.lock().unwrap_or_else(PoisonError::into_inner);
            if peers.len() >= MAX_PEERS && !peers.contains(&to) {
                // Whoever answers late to such a one is not heard.
                peers.clear();
            }
            peers.insert(to);
        }
        // What a full queue, or the host's network, loses, datagrams may lose.
        let _lost = relay.socket.try_send_to(payload, to);
    }

    async fn find(
        self: &Arc<Self>,
        stack: &Stack,
        key: Key,
        to: SocketAddr,
    ) -> std::io::Result<Arc<Relay>> {
        if let Some(entry) = self.lock().get(&key) {
            return Ok(entry.relay.clone());
        }
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        // Ready to send before the first attempt.
        socket.writable().await?;
        let relay =
            Arc::new(Relay { socket, used: AtomicU64::new(self.now()), peers: Mutex::default() });
        let mut all = self.lock();
        if all.len() >= MAX_RELAYS {
            let oldest = all
                .iter()
                .min_by_key(|(_, entry)| entry.relay.used.load(Ordering::Relaxed))
                .map(|(key, _)| *key);
            if let Some(entry) = oldest.and_then(|key| all.remove(&key)) {
                entry.task.abort();
            }
        }
        let task = tokio::spawn(answers(Arc::downgrade(self), stack.clone(), key, relay.clone()));
        all.insert(key, Entry { relay: relay.clone(), task: task.abort_handle() });
        Ok(relay)
    }
}

/// Passes answers back until the socket has been idle for long.
async fn answers(relays: std::sync::Weak<Relays>, stack: Stack, key: Key, relay: Arc<Relay>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::time::timeout(IDLE, relay.socket.recv_from(&mut buffer)).await;
        let Some(relays) = relays.upgrade() else { return };
        match received {
            Ok(Ok((length, sender))) => {
                let heard = relay.peers.lock().unwrap_or_else(PoisonError::into_inner);
                if !heard.contains(&sender) {
                    continue;
                }
                drop(heard);
                relay.used.store(relays.now(), Ordering::Relaxed);
                let (from, to) = match key {
                    Key::Local { from, to } => (to, from),
                    Key::Outward { from, .. } => (sender, from),
                };
                stack.send_datagram(from, to, &buffer[..length]);
            }
            // What became of an earlier datagram (ICMP).
            Ok(Err(_)) => {}
            Err(_) => {
                let used = relay.used.load(Ordering::Relaxed);
                if relays.now().saturating_sub(used) >= IDLE.as_millis() as u64 {
                    relays.lock().remove(&key);
                    return;
                }
            }
        }
    }
}

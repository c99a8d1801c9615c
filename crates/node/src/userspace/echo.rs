//! Echo requests through unprivileged sockets of the kernel.
//!
//! One socket for each identifier and pair of hosts, kept while echoes pass;
//! their number is bounded. Invariant: a reply has the identifier of its
//! request, which the kernel replaces on the way out.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::net::UdpSocket;
use warren_os::icmp::echo_socket;

use super::stack::Stack;

/// Sockets at one time.
const MAX_SOCKETS: usize = 256;
/// A socket that hears nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// Longest reply taken, bytes.
const MAX_REPLY: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    from: IpAddr,
    to: IpAddr,
    identifier: [u8; 2],
}

/// All sockets.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    all: Mutex<HashMap<Key, Arc<UdpSocket>>>,
}

impl Echoes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<UdpSocket>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request on; `body` begins with identifier and sequence.
    pub(super) fn send(
        self: &Arc<Self>,
        stack: &Stack,
        from: IpAddr,
        to: IpAddr,
        body: &[u8],
    ) -> io::Result<()> {
        let identifier = *body.first_chunk::<2>().ok_or(io::ErrorKind::InvalidInput)?;
        let key = Key { from, to, identifier };
        let socket = self.lock().get(&key).cloned();
        let socket = match socket {
            Some(socket) => socket,
            None => self.open(stack, key)?,
        };
        let kind = if to.is_ipv4() { 8 } else { 128 };
        let request = [&[kind, 0, 0, 0][..], body].concat();
        // A new socket is not known to be writable yet, so a task waits for it;
        // what fails then, echoes may lose.
        tokio::spawn(async move {
            let _lost = socket.send(&request).await;
        });
        Ok(())
    }

    fn open(self: &Arc<Self>, stack: &Stack, key: Key) -> io::Result<Arc<UdpSocket>> {
        let mut all = self.lock();
        if all.len() >= MAX_SOCKETS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let socket = Arc::new(UdpSocket::from_std(echo_socket(key.to)?)?);
        tokio::spawn(replies(Arc::downgrade(self), stack.clone(), key, socket.clone()));
        all.insert(key, socket.clone());
        Ok(socket)
    }
}

/// Passes replies back until none has come for long.
async fn replies(all: Weak<Echoes>, stack: Stack, key: Key, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; MAX_REPLY];
    let kind = if key.to.is_ipv4() { 0 } else { 129 };
    while let Ok(Ok(length)) = tokio::time::timeout(IDLE, socket.recv(&mut buffer)).await {
        let Some(([first, 0, ..], body)) = buffer[..length].split_first_chunk_mut::<4>() else {
            continue;
        };
        if *first == kind && body.len() >= 4 {
            body[..2].copy_from_slice(&key.identifier);
            stack.send_echo_reply(key.to, key.from, body);
        }
    }
    if let Some(all) = all.upgrade() {
        all.lock().remove(&key);
    }
}

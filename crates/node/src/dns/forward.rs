//! Questions about the rest of the world, passed on while this machine is
//! connected through an exit: the system then asks this node about everything,
//! so that members' names go on resolving.
//!
//! In: a question from this machine, and the servers to ask (none: nothing is
//! passed on). Out: their answer as it came. Invariants: only this machine's own
//! questions are passed on, other members' never, so this is no open resolver;
//! names under `.warren` stay here; few at a time. Deliberately not here: a
//! cache, and checking answers (programs and DNSSEC do).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long one server may take; programs ask again after 5 s.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions on their way at a time; more are not passed on, and asked again.
const AT_A_TIME: usize = 128;
/// Largest answer over UDP, bytes.
const MAX_DATAGRAM: usize = 4096;

/// Where questions are passed on to; clones share it.
#[derive(Debug, Clone)]
pub struct Forwarding {
    servers: Arc<Mutex<Vec<SocketAddr>>>,
    room: Arc<Semaphore>,
}

impl Default for Forwarding {
    fn default() -> Self {
        Self { servers: Arc::default(), room: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl Forwarding {
    /// Passes questions on to these servers from now on, the first first; with
    /// none, refuses them.
    pub fn set(&self, servers: &[IpAddr]) {
        let servers = servers.iter().map(|server| SocketAddr::new(*server, 53)).collect();
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = servers;
    }

    #[cfg(test)]
    pub(super) fn set_exactly(&self, servers: Vec<SocketAddr>) {
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = servers;
    }

    fn servers(&self) -> Vec<SocketAddr> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True while there is somebody to ask.
    pub(super) fn is_on(&self) -> bool {
        !self.servers().is_empty()
    }

    /// The answer of the first server that gives one.
    pub(super) async fn ask(&self, query: &[u8], udp: bool) -> Option<Vec<u8>> {
        let _room = self.room.try_acquire().ok()?;
        for server in self.servers() {
            let asked = async {
                match udp {
                    true => by_datagram(server, query).await,
                    false => by_stream(server, query).await,
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "no answer about a name"),
                Err(_) => tracing::debug!(%server, "no answer about a name in time"),
            }
        }
        None
    }
}

/// A reply to this very question: by number, and by being a reply.
fn fits(query: &[u8], reply: &[u8]) -> bool {
    reply.len() >= 12 && reply[..2] == query[..2] && reply[2] & 0x80 != 0
}

async fn by_datagram(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0_u16; 8].into(),
    };
    // A port of the kernel's choosing for each question, and nobody else's
    // datagrams.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if fits(query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_stream(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    match fits(query, &reply) {
        true => Ok(reply),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

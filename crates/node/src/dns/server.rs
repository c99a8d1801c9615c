//! Port 53 on the node's own overlay addresses: UDP and TCP (RFC 7766).
//!
//! Invariants: bound to those addresses only; a datagram or connection whose
//! source is neither this machine nor in the overlay is ignored (a neighbour on
//! the underlay can address packets to an overlay address too); connections are
//! few and short. Runs on the daemon's slow path: one question costs some
//! microseconds, and only members can ask.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::answer::{MAX_QUERY, answer};
use super::zone::Zone;

/// The port of DNS.
const PORT: u16 = 53;
/// TCP connections at a time.
const CONNECTIONS: usize = 16;
/// A TCP connection that asks nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(5);
/// Questions over one TCP connection.
const QUESTIONS: usize = 64;
/// After a socket error that is nobody's fault (no memory, no descriptors).
const PAUSE: Duration = Duration::from_millis(200);

/// The zone, read by the server and written by the daemon; never locked over
/// an await.
#[derive(Debug, Clone)]
pub struct SharedZone(Arc<Mutex<Zone>>);

impl SharedZone {
    /// Takes the zone in.
    pub fn new(zone: Zone) -> Self {
        Self(Arc::new(Mutex::new(zone)))
    }

    /// The zone, until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, Zone> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bound sockets that nobody serves yet.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

/// Port 53 is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Ports below 1024 take a capability.
    #[error("port 53 takes root or CAP_NET_BIND_SERVICE")]
    NotPermitted,
    /// Another program has it on all addresses.
    #[error(
        "another DNS server has port 53 of all addresses; let it listen on its own addresses only"
    )]
    Taken,
    /// Anything else.
    #[error("port 53 of {address}: {source}")]
    Os {
        /// The address.
        address: IpAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// Binds port 53 of each address. Needs the privilege for low ports, so call it
/// before that is given up.
///
/// # Errors
/// [`BindError`] when none can be bound; some are enough.
pub async fn bind(addresses: &[IpAddr]) -> Result<Sockets, BindError> {
    let mut sockets = Sockets { udp: Vec::new(), tcp: Vec::new() };
    let mut failure = None;
    for address in addresses {
        let at = SocketAddr::new(*address, PORT);
        let bound = async {
            let udp = UdpSocket::bind(at).await?;
            Ok::<_, io::Error>((udp, TcpListener::bind(at).await?))
        };
        match bound.await {
            Ok((udp, tcp)) => {
                sockets.udp.push(udp);
                sockets.tcp.push(tcp);
            }
            Err(source) => failure = Some(failed(*address, source)),
        }
    }
    match failure {
        Some(failure) if sockets.udp.is_empty() => Err(failure),
        _ => Ok(sockets),
    }
}

fn failed(address: IpAddr, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => BindError::NotPermitted,
        io::ErrorKind::AddrInUse => BindError::Taken,
        _ => BindError::Os { address, source },
    }
}

impl Sockets {
    /// The addresses that are served.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.udp.iter().filter_map(|s| s.local_addr().ok()).map(|a| a.ip()).collect()
    }
}

/// Answers until the runtime ends.
pub fn serve(sockets: Sockets, zone: &SharedZone) {
    for socket in sockets.udp {
        tokio::spawn(datagrams(socket, zone.clone()));
    }
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    for listener in sockets.tcp {
        tokio::spawn(connections(listener, zone.clone(), room.clone()));
    }
}

/// Whether the source of a question may have an answer.
fn may_ask(zone: &Zone, from: IpAddr) -> bool {
    let from = from.to_canonical();
    from.is_loopback() || zone.in_overlay(from)
}

async fn datagrams(socket: UdpSocket, zone: SharedZone) {
    // One more byte than is read, so that longer ones are seen to be longer.
    let mut buffer = [0; MAX_QUERY + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Among them what became of an earlier answer (ICMP).
                tracing::debug!(%error, "DNS socket");
                sleep(PAUSE).await;
                continue;
            }
        };
        let reply = {
            let zone = zone.lock();
            may_ask(&zone, from.ip()).then(|| answer(&zone, &buffer[..length], true)).flatten()
        };
        if let Some(reply) = reply {
            // The asker repeats what a full queue loses.
            let _lost = socket.try_send_to(&reply, from);
        }
    }
}

async fn connections(listener: TcpListener, zone: SharedZone, room: Arc<Semaphore>) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                if !may_ask(&zone.lock(), from.ip()) {
                    continue;
                }
                let zone = zone.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, &zone).await {
                        tracing::debug!(%error, "DNS connection");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "DNS listener");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(mut stream: TcpStream, zone: &SharedZone) -> io::Result<()> {
    let mut query = Vec::new();
    for _ in 0..QUESTIONS {
        let read = async {
            let length = usize::from(stream.read_u16().await?);
            if length > MAX_QUERY {
                return Ok(false);
            }
            query.resize(length, 0);
            stream.read_exact(&mut query).await.map(|_| true)
        };
        match timeout(IDLE, read).await {
            Ok(Ok(true)) => {}
            Ok(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => return Ok(()),
        }
        let Some(reply) = answer(&zone.lock(), &query, false) else { return Ok(()) };
        let mut framed = Vec::with_capacity(reply.len() + 2);
        framed.extend(u16::try_from(reply.len()).unwrap_or(0).to_be_bytes());
        framed.extend(reply);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::zone::tests::example;
    use super::*;

    #[test]
    fn only_this_machine_and_members_may_ask() {
        let zone = example();
        for address in ["127.0.0.1", "::1", "100.64.0.2", "fd12:3456:789a::77", "100.127.255.255"] {
            assert!(may_ask(&zone, address.parse().unwrap()), "{address}");
        }
        for address in ["192.168.0.2", "8.8.8.8", "fd99::1", "100.128.0.1", "::ffff:10.0.0.1"] {
            assert!(!may_ask(&zone, address.parse().unwrap()), "{address}");
        }
    }

    #[tokio::test]
    async fn tcp_answers_several_questions_and_ends_on_nonsense() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let zone = SharedZone::new(example());
        tokio::spawn(connections(listener, zone, Arc::new(Semaphore::new(1))));
        let mut stream = TcpStream::connect(at).await.unwrap();
        // gpu-2.lab.warren A, by hand.
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in ["gpu-2", "lab", "warren"] {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        for _ in 0..2 {
            stream.write_u16(query.len() as u16).await.unwrap();
            stream.write_all(&query).await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut reply = vec![0; usize::from(length)];
            stream.read_exact(&mut reply).await.unwrap();
            assert!(reply.ends_with(&[100, 64, 0, 2]), "{reply:?}");
        }
        stream.write_u16(u16::MAX).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "closed");
    }
}

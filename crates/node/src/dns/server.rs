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

use super::answer::{MAX_QUERY, answer, is_outside};
use super::forward::Forwarding;
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

/// Answers until the runtime ends, and passes this machine's other questions on
/// while there is somebody to pass them to.
pub fn serve(sockets: Sockets, zone: &SharedZone, forwarding: &Forwarding) {
    for socket in sockets.udp {
        tokio::spawn(datagrams(Arc::new(socket), zone.clone(), forwarding.clone()));
    }
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    for listener in sockets.tcp {
        tokio::spawn(connections(listener, zone.clone(), forwarding.clone(), room.clone()));
    }
}

/// Whether the source of a question may have an answer.
fn may_ask(zone: &Zone, from: IpAddr) -> bool {
    let from = from.to_canonical();
    from.is_loopback() || zone.in_overlay(from)
}

/// Whether a question may be passed on: one of this machine's own, which has
/// the same address at both ends, about the rest of the world.
fn may_pass(zone: &Zone, query: &[u8], from: IpAddr, to: IpAddr) -> bool {
    (from.is_loopback() || from.to_canonical() == to.to_canonical()) && is_outside(zone, query)
}

async fn datagrams(socket: Arc<UdpSocket>, zone: SharedZone, forwarding: Forwarding) {
    let own = socket.local_addr().map(|at| at.ip());
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
        let query = &buffer[..length];
        let pass = forwarding.is_on()
            && own.as_ref().is_ok_and(|own| may_pass(&zone.lock(), query, from.ip(), *own));
        if pass {
            let (socket, forwarding, query) = (socket.clone(), forwarding.clone(), query.to_vec());
            tokio::spawn(async move {
                if let Some(reply) = forwarding.ask(&query, true).await {
                    let _lost = socket.try_send_to(&reply, from);
                }
            });
            continue;
        }
        let reply = {
            let zone = zone.lock();
            may_ask(&zone, from.ip()).then(|| answer(&zone, query, true)).flatten()
        };
        if let Some(reply) = reply {
            // The asker repeats what a full queue loses.
            let _lost = socket.try_send_to(&reply, from);
        }
    }
}

async fn connections(
    listener: TcpListener,
    zone: SharedZone,
    forwarding: Forwarding,
    room: Arc<Semaphore>,
) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                if !may_ask(&zone.lock(), from.ip()) {
                    continue;
                }
                let (zone, forwarding) = (zone.clone(), forwarding.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, &zone, &forwarding).await {
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

async fn connection(
    mut stream: TcpStream,
    zone: &SharedZone,
    forwarding: &Forwarding,
) -> io::Result<()> {
    let (own, from) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
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
        let pass = forwarding.is_on() && may_pass(&zone.lock(), &query, from, own);
        let reply = match pass {
            true => forwarding.ask(&query, false).await,
            false => answer(&zone.lock(), &query, false),
        };
        let Some(reply) = reply else { return Ok(()) };
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
        let room = Arc::new(Semaphore::new(1));
        tokio::spawn(connections(listener, zone, Forwarding::default(), room));
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

    /// A question about the A records of a name, by hand.
    fn question(name: &str) -> Vec<u8> {
        let mut query = vec![0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        query
    }

    #[test]
    fn only_this_machines_questions_about_others_are_passed_on() {
        let zone = example();
        let own: IpAddr = "100.64.0.1".parse().unwrap();
        let member: IpAddr = "100.64.0.2".parse().unwrap();
        let outside = question("www.example.org");
        assert!(may_pass(&zone, &outside, own, own));
        assert!(!may_pass(&zone, &outside, member, own));
        for stays in ["gpu-2.lab.warren", "nobody.lab.warren", "gpu-2.other.WARREN", "warren"] {
            assert!(!may_pass(&zone, &question(stays), own, own), "{stays}");
        }
        let mut reply = outside.clone();
        reply[2] |= 0x80;
        assert!(!may_pass(&zone, &reply, own, own));
        assert!(!may_pass(&zone, &outside[..20], own, own));
    }

    #[tokio::test]
    async fn answers_of_others_come_back_over_both_transports() {
        // A server that says nothing, then one that answers with the question.
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let there = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(there).await.unwrap();
        let as_reply = |query: &[u8]| {
            let mut reply = query.to_vec();
            reply[2] |= 0x80;
            reply
        };
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            // Not to this question; then the answer.
            udp.send_to(&[1; 20], from).await.unwrap();
            udp.send_to(&as_reply(&buffer[..length]), from).await.unwrap();
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            stream.write_u16(query.len() as u16).await.unwrap();
            stream.write_all(&as_reply(&query)).await.unwrap();
        });
        let forwarding = Forwarding::default();
        assert!(!forwarding.is_on());
        forwarding.set_exactly(vec![silent.local_addr().unwrap(), there]);
        let own = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let node = own.local_addr().unwrap();
        let zone = SharedZone::new(example());
        tokio::spawn(datagrams(Arc::new(own), zone, forwarding.clone()));
        let asker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let query = question("www.example.org");
        asker.send_to(&query, node).await.unwrap();
        let mut buffer = [0; 512];
        let patience = Duration::from_secs(10);
        let (length, _) = timeout(patience, asker.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer[..length], as_reply(&query));
        forwarding.set_exactly(vec![there]);
        assert_eq!(forwarding.ask(&query, false).await.unwrap(), as_reply(&query));
    }
}

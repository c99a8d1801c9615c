//! QUIC over the daemon's one UDP port.
//!
//! In: datagrams that the workers recognised as QUIC (first byte >= 64), over a
//! bounded channel. Out: datagrams through a [`DatagramSender`] of the caller.
//! Invariants: quinn sees one IPv6 socket; IPv4 peers appear mapped inside
//! (`::ffff:a.b.c.d`) and plain outside, whatever the real sockets are; a full
//! or failing socket loses datagrams, it never blocks (QUIC repairs that).
//! Deliberately not here: system calls, and which datagram is QUIC.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;

/// One received datagram.
#[derive(Debug)]
pub struct Datagram {
    /// Underlay address it came from.
    pub from: SocketAddr,
    /// The two ECN bits of the outer header (RFC 3168), 0 when unknown.
    pub ecn: u8,
    /// Its payload.
    pub data: Vec<u8>,
}

/// Sends datagrams of the control transport; given by the owner of the socket.
pub trait DatagramSender: Send + Sync + 'static {
    /// Sends one datagram. `ecn` are the two ECN bits to set. Must not block.
    ///
    /// # Errors
    /// Whatever the socket says; the datagram counts as lost.
    fn send(&self, to: SocketAddr, ecn: u8, data: &[u8]) -> io::Result<()>;
}

impl<F> DatagramSender for F
where
    F: Fn(SocketAddr, u8, &[u8]) -> io::Result<()> + Send + Sync + 'static,
{
    fn send(&self, to: SocketAddr, ecn: u8, data: &[u8]) -> io::Result<()> {
        self(to, ecn, data)
    }
}

/// The port as the control transport sees it.
pub struct ControlSocket {
    /// Where datagrams go.
    pub sender: Arc<dyn DatagramSender>,
    /// Where they come from. Bounded; whoever fills it drops on overflow.
    pub incoming: mpsc::Receiver<Datagram>,
    /// UDP port of the socket.
    pub port: u16,
}

impl fmt::Debug for ControlSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlSocket").field("port", &self.port).finish_non_exhaustive()
    }
}

impl ControlSocket {
    /// Drives a plain UDP socket, for tests and for a program without workers.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let socket = std::net::UdpSocket::bind(address)?;
        let _unmarked = warren_os::mark::mark(&socket);
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let socket = Arc::new(tokio::net::UdpSocket::from_std(socket)?);
        let (feed, incoming) = mpsc::channel(512);
        let reader = socket.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0_u8; 65_536];
            while !feed.is_closed() {
                // An ICMP error of an earlier send is reported by the next
                // receive and concerns one peer only.
                let Ok((len, from)) = reader.recv_from(&mut buffer).await else { continue };
                let data = buffer[..len].to_vec();
                let _ = feed.try_send(Datagram { from, ecn: 0, data });
            }
        });
        let sender =
            move |to: SocketAddr, _ecn: u8, data: &[u8]| socket.try_send_to(data, to).map(|_| ());
        Ok((Self { sender: Arc::new(sender), incoming, port: local.port() }, local))
    }
}

/// The address without IPv4-in-IPv6 mapping.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => {
            SocketAddr::V6(SocketAddrV6::new(v4.to_ipv6_mapped(), address.port(), 0, 0))
        }
        IpAddr::V6(_) => address,
    }
}

pub(crate) struct QuicSocket {
    sender: Arc<dyn DatagramSender>,
    incoming: Mutex<mpsc::Receiver<Datagram>>,
    port: u16,
}

impl fmt::Debug for QuicSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicSocket").field("port", &self.port).finish_non_exhaustive()
    }
}

impl From<ControlSocket> for QuicSocket {
    fn from(socket: ControlSocket) -> Self {
        Self { sender: socket.sender, incoming: Mutex::new(socket.incoming), port: socket.port }
    }
}

/// Sending never waits, so there is nothing to poll for.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = canonical(transmit.destination);
        let ecn = transmit.ecn.map_or(0, |e| e as u8);
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(segment) {
            if let Err(error) = self.sender.send(to, ecn, datagram) {
                tracing::trace!(%to, %error, "control datagram lost");
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0;
        while filled < bufs.len().min(meta.len()) {
            match incoming.poll_recv(cx) {
                Poll::Ready(Some(datagram)) => {
                    let (buffer, meta) = (&mut bufs[filled], &mut meta[filled]);
                    let len = datagram.data.len();
                    // Larger than any QUIC packet we allow: not ours.
                    let Some(space) = buffer.get_mut(..len) else { continue };
                    space.copy_from_slice(&datagram.data);
                    *meta = RecvMeta {
                        addr: mapped(datagram.from),
                        len,
                        stride: len,
                        ecn: EcnCodepoint::from_bits(datagram.ecn & 3),
                        dst_ip: None,
                    };
                    filled += 1;
                }
                // The workers are gone: the daemon stops. Waiting forever is
                // right, an error would be logged as a failure.
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if filled == 0 { Poll::Pending } else { Poll::Ready(Ok(filled)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([0_u16; 8], self.port)))
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_mapped_inside_and_plain_outside() {
        let v4: SocketAddr = "192.0.2.1:7".parse().unwrap();
        assert!(mapped(v4).is_ipv6());
        assert_eq!(canonical(mapped(v4)), v4);
        let v6: SocketAddr = "[2001:db8::1]:7".parse().unwrap();
        assert_eq!(canonical(mapped(v6)), v6);
    }
}

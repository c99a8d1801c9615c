//! UDP ASSOCIATE: datagrams of a program, for as long as it keeps the
//! connection it asked on.
//!
//! Invariants: only datagrams from the program's own host are taken, and after
//! the first only from that port; one port of the stack for each family in the
//! mesh and outside of it, whose datagrams reach the program wherever they come
//! from.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket as HostSocket};

use super::wire::{self, Reply};
use crate::userspace::proxy::{Proxy, log_failure};
use crate::userspace::stream::UdpSocket;
use crate::userspace::{DialError, Isolation, MAX_DATAGRAM};

/// The stack's sockets of one association: in the mesh and outside, each for
/// IPv4 and IPv6.
#[derive(Default)]
struct Sides([Option<UdpSocket>; 4]);

impl Sides {
    /// Sends, from a port that is bound when first needed.
    fn send(
        &mut self,
        proxy: &Proxy,
        to: SocketAddr,
        payload: &[u8],
        isolation: &Isolation,
    ) -> Result<(), DialError> {
        let source = proxy.dialer.source_for(to.ip(), isolation)?;
        let outside = proxy.dialer.stack().addresses().is_inner(source.address);
        let side = &mut self.0[2 * usize::from(outside) + usize::from(to.is_ipv6())];
        // Our addresses may have changed.
        if side.as_ref().is_none_or(|socket| socket.local().ip() != source.address) {
            *side = Some(proxy.dialer.stack().bind_udp(source.address, None)?);
        }
        if let Some(socket) = side {
            socket.send(to, payload);
        }
        Ok(())
    }

    /// The next datagram from any side.
    async fn receive(&mut self) -> (SocketAddr, Vec<u8>) {
        async fn one(side: &mut Option<UdpSocket>) -> (SocketAddr, Vec<u8>) {
            match side {
                Some(socket) => match socket.receive().await {
                    Some(received) => received,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        }
        let [a, b, c, d] = &mut self.0;
        tokio::select! {
            received = one(a) => received,
            received = one(b) => received,
            received = one(c) => received,
            received = one(d) => received,
        }
    }
}

/// Serves an association until the program closes the connection.
pub(super) async fn serve(
    proxy: &Proxy,
    control: &mut TcpStream,
    from: SocketAddr,
    isolation: Isolation,
) -> io::Result<()> {
    let host = HostSocket::bind(SocketAddr::new(control.local_addr()?.ip(), 0)).await?;
    control.write_all(&wire::reply(Reply::Succeeded, host.local_addr()?)).await?;
    let mut sides = Sides::default();
    let mut program: Option<SocketAddr> = None;
    let mut buffer = vec![0; MAX_DATAGRAM + 262];
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            read = control.read(&mut ignored) => if read? == 0 { return Ok(()) },
            received = host.recv_from(&mut buffer) => {
                // A datagram of ours that nobody took is told here.
                let Ok((length, sender)) = received else { continue };
                let known = program.is_none_or(|program| program == sender);
                if !known || sender.ip() != from.ip() {
                    continue;
                }
                let Some((to, payload)) = wire::datagram(&buffer[..length]) else { continue };
                program = Some(sender);
                // Looking a name up delays those behind it, but keeps their order.
                let found = proxy.dialer.resolve(&to, &isolation).await;
                let sent = found.and_then(|all| {
                    let first = all.first().copied().ok_or(DialError::UnknownName)?;
                    sides.send(proxy, first, payload, &isolation)
                });
                if let Err(error) = sent {
                    log_failure(&to, error);
                }
            }
            (sender, payload) = sides.receive() => {
                if let Some(program) = program {
                    // What a full queue loses, datagrams may lose.
                    let _lost = host.try_send_to(&wire::write_datagram(sender, &payload), program);
                }
            }
        }
    }
}

//! Published ports: what members open to this node's addresses is passed to
//! local sockets.
//!
//! Invariants: a connection is accepted only once the local socket has accepted
//! it, and refused as that was, so that a member sees what a local program
//! would; ports that are not published are refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::arrive::{Arrival, No, Request};
use super::packet::Protocol;
use super::proxy::join;
use super::relay::Relays;
use super::settings::Publish;
use super::stack::Stack;

/// How long a local socket may take to accept.
const LOCAL_PATIENCE: Duration = Duration::from_secs(5);

/// Serves what arrives, until the stack is gone.
pub(super) async fn serve(
    stack: Stack,
    mut arrivals: mpsc::Receiver<Arrival>,
    published: Vec<Publish>,
) {
    let find = |protocol, port| {
        let found = published.iter().find(|p| p.protocol == protocol && p.port == port);
        found.map(|publish| publish.to)
    };
    let relays = Arc::new(Relays::default());
    while let Some(arrival) = arrivals.recv().await {
        match arrival {
            Arrival::Connection(request) => match find(Protocol::Tcp, request.to().port()) {
                Some(local) => drop(tokio::spawn(pass(request, local))),
                None => request.refuse(No::Refused),
            },
            Arrival::Datagram(datagram) => match find(Protocol::Udp, datagram.to.port()) {
                Some(local) => relays.to_local(&stack, &datagram, local).await,
                None => datagram.refuse(No::Refused),
            },
            // The stack answers for our own addresses itself.
            Arrival::Echo { .. } => {}
        }
    }
}

async fn pass(request: Request, local: SocketAddr) {
    let mut inside = match timeout(LOCAL_PATIENCE, TcpStream::connect(local)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%local, %error, "a published port is not served");
            return request.refuse(No::Refused);
        }
        Err(_) => return request.refuse(No::Refused),
    };
    let _slower = inside.set_nodelay(true);
    match request.accept().await {
        Ok(mut outside) => {
            if let Err(error) = join(&mut inside, &mut outside).await {
                tracing::trace!(%local, %error, "published connection");
            }
        }
        Err(error) => tracing::debug!(%error, "not accepted"),
    }
}

//! The offering end: takes TLS over TCP on a port of its own.
//!
//! Invariants: strangers may come (a joiner is one), so their number is bounded
//! in all and per address, and a handshake has little time; whoever is refused
//! sees a closed connection and nothing else.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{Tunnels, carry};
use crate::transport::tls::{self, TlsError};

/// For the TLS handshake of a caller.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Tunnels at a time.
const MOST: usize = 256;
/// Tunnels at a time from one address; several nodes share one behind a NAT.
const MOST_PER_ADDRESS: usize = 32;
/// After a failure to accept (no descriptors left, say).
const PAUSE: Duration = Duration::from_millis(200);

/// Serves tunnels from `listener` for as long as the daemon runs.
///
/// # Errors
/// When TLS cannot be set up; what happens later is logged.
pub(crate) fn offer(
    tunnels: Arc<Tunnels>,
    listener: TcpListener,
    now: u64,
) -> Result<(), TlsError> {
    let acceptor = TlsAcceptor::from(tls::tunnel_server(now)?);
    tokio::spawn(async move {
        let callers = Arc::new(Callers::default());
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let Some(place) = callers.enter(from.ip().to_canonical()) else {
                        tracing::debug!(%from, "too many tunnels: refused");
                        continue;
                    };
                    let (tunnels, acceptor) = (tunnels.clone(), acceptor.clone());
                    tokio::spawn(async move {
                        let end = serve(&tunnels, &acceptor, stream).await;
                        tracing::debug!(%from, ?end, "tunnel ended");
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a tunnel");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

async fn serve(
    tunnels: &Arc<Tunnels>,
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> io::Result<carry::End> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let (socket, local) = tunnels.exit().await?;
    tunnels.state().local.insert(local);
    let end = carry::carry(stream, &socket).await;
    tunnels.state().local.remove(&local);
    Ok(end)
}

/// Who is inside, by address.
#[derive(Debug, Default)]
struct Callers(Mutex<HashMap<IpAddr, usize>>);

/// Counts as one until dropped.
struct Place {
    callers: Arc<Callers>,
    from: IpAddr,
}

impl Callers {
    fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = inside.get(&from).copied().unwrap_or(0);
        if mine >= MOST_PER_ADDRESS || inside.values().sum::<usize>() >= MOST {
            return None;
        }
        *inside.entry(from).or_default() += 1;
        Some(Place { callers: self.clone(), from })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.callers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = inside.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places() {
        let callers = Arc::new(Callers::default());
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut places: Vec<_> =
            (0..MOST_PER_ADDRESS).map(|_| callers.enter(from(1)).unwrap()).collect();
        assert!(callers.enter(from(1)).is_none());
        for n in 2..=(MOST / MOST_PER_ADDRESS) as u8 {
            places.extend((0..MOST_PER_ADDRESS).map(|_| callers.enter(from(n)).unwrap()));
        }
        assert!(callers.enter(from(200)).is_none());
        places.clear();
        assert!(callers.0.lock().unwrap().is_empty());
        assert!(callers.enter(from(1)).is_some());
    }
}

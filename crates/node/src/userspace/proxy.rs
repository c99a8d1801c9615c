//! What both proxies share: who may use them, how many at a time, and the
//! passing of bytes between a program and the stack.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::dial::Dialer;
use super::{DialError, Isolation};

/// Programs served at one time, by one proxy.
pub(super) const MAX_CLIENTS: usize = 1024;
/// How long a program may take to say what it wants.
pub(super) const GREETING_PATIENCE: Duration = Duration::from_secs(15);
/// Bytes moved at once.
const CHUNK: usize = 64 << 10;
/// After a failed accept (no descriptors left), so as not to spin.
const PAUSE: Duration = Duration::from_millis(200);

/// The password of the proxies.
#[derive(Clone)]
pub struct Password(Arc<Zeroizing<Vec<u8>>>);

impl Password {
    /// 1 to 255 bytes, as SOCKS can carry.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        let bytes = Zeroizing::new(bytes);
        (1..=255).contains(&bytes.len()).then(|| Self(Arc::new(bytes)))
    }

    fn is(&self, given: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, given).is_ok()
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// One proxy.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) dialer: Dialer,
    pub(super) password: Option<Password>,
}

impl Proxy {
    /// The isolation of a program that gave these, if it may come in. Without a
    /// password set, any is right.
    pub(super) fn admit(&self, user: &[u8], password: &[u8]) -> Option<Isolation> {
        let right = self.password.as_ref().is_none_or(|expected| expected.is(password));
        right.then(|| Isolation::of_user(user))
    }

    /// Serves programs one task each, for ever.
    pub(super) async fn serve<F>(
        self,
        listener: TcpListener,
        served: impl Fn(Arc<Self>, TcpStream, SocketAddr) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let proxy = Arc::new(self);
        let room = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            // The rest wait in the listener's queue.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) => {
                    // Answers of few bytes should not wait for more.
                    let _slower = stream.set_nodelay(true);
                    let work = served(proxy.clone(), stream, from);
                    tokio::spawn(async move {
                        work.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a proxy cannot accept");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Passes bytes both ways until both sides have ended, or one failed.
pub(super) async fn join(
    a: &mut (impl AsyncRead + AsyncWrite + Unpin),
    b: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    copy_bidirectional_with_sizes(a, b, CHUNK, CHUNK).await.map(drop)
}

/// One line in the log about a connection that did not come about. Where to is
/// the user's business: at debug level only.
pub(super) fn log_failure(to: &impl std::fmt::Display, error: DialError) {
    tracing::debug!(%to, %error, "proxy: no connection");
}

//! What both proxies share: who may use them, how many at a time, and the
//! passing of bytes between a program and the stack.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
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

/// As [`join`], ending with `TimedOut` when nothing has passed for `idle`.
pub(super) async fn join_until_idle(
    a: &mut (impl AsyncRead + AsyncWrite + Unpin),
    b: &mut (impl AsyncRead + AsyncWrite + Unpin),
    idle: Duration,
) -> io::Result<()> {
    let passed = AtomicU64::new(0);
    let (mut a, mut b) = (Noted { inner: a, passed: &passed }, Noted { inner: b, passed: &passed });
    let mut joined = std::pin::pin!(join(&mut a, &mut b));
    let mut before = 0;
    loop {
        if let Ok(ended) = tokio::time::timeout(idle, &mut joined).await {
            return ended;
        }
        let now = passed.load(Ordering::Relaxed);
        if now == before {
            return Err(io::ErrorKind::TimedOut.into());
        }
        before = now;
    }
}

/// A stream that counts its reads.
struct Noted<'a, S> {
    inner: &'a mut S,
    passed: &'a AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut *self.inner).poll_read(cx, buffer);
        if read.is_ready() {
            self.passed.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.inner).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(cx)
    }
}

/// One line in the log about a connection that did not come about. Where to is
/// the user's business: at debug level only.
pub(super) fn log_failure(to: &impl std::fmt::Display, error: DialError) {
    tracing::debug!(%to, %error, "proxy: no connection");
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[test]
    fn a_password_is_compared_whole() {
        let password = Password::new(b"secret".to_vec()).unwrap();
        assert!(password.is(b"secret"));
        for wrong in [&b""[..], b"secre", b"secrets", b"Secret"] {
            assert!(!password.is(wrong));
        }
        assert_eq!(format!("{password:?}"), "Password(..)");
        assert!(Password::new(Vec::new()).is_none() && Password::new(vec![1; 256]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_idle_ends_and_what_moves_does_not() {
        let (mut near, mut a) = duplex(64);
        let (mut b, mut far) = duplex(64);
        let joined =
            tokio::spawn(
                async move { join_until_idle(&mut a, &mut b, Duration::from_secs(10)).await },
            );
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(8)).await;
            near.write_all(b"x").await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), b'x');
        }
        let start = tokio::time::Instant::now();
        let error = joined.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() <= Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

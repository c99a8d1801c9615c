//! The stream of a tunnel: datagrams, each behind its length (2 bytes, big
//! endian), in both directions.
//!
//! Invariants: memory is two datagrams and two stream buffers, whatever the
//! other end sends; a datagram is never cut or joined. An empty one is skipped.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

/// Without a datagram either way for this long, nobody needs the tunnel.
/// Longer than the control transport's idle time.
const IDLE: Duration = Duration::from_secs(60);
/// A write that takes longer: the connection is dead.
const STALLED: Duration = Duration::from_secs(15);
/// Most datagrams written before they are pushed out.
const BURST: usize = 64;
/// Bytes buffered in each direction.
const BUFFER: usize = 64 * 1024;

/// Why a tunnel ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nothing passed for [`IDLE`].
    Idle,
    /// The other end closed it, or the network did.
    Closed(io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("not used any more"),
            Self::Closed(error) => error.fmt(f),
        }
    }
}

/// Carries datagrams between `stream` and `socket` until either end is over.
pub(super) async fn carry<S>(stream: S, socket: &UdpSocket) -> End
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    let start = Instant::now();
    // Milliseconds since `start` of the last datagram.
    let last = AtomicU64::new(0);
    let note = || last.store(millis(start.elapsed()), Ordering::Relaxed);
    let idle = async {
        loop {
            let quiet = millis(start.elapsed()).saturating_sub(last.load(Ordering::Relaxed));
            let left = IDLE.saturating_sub(Duration::from_millis(quiet));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    };
    tokio::select! {
        () = idle => End::Idle,
        error = inbound(reader, socket, &note) => End::Closed(error),
        error = outbound(writer, socket, &note) => End::Closed(error),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// From the stream to the daemon, until the stream ends.
async fn inbound(
    reader: impl AsyncRead + Unpin,
    socket: &UdpSocket,
    note: &impl Fn(),
) -> io::Error {
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let mut datagram = vec![0_u8; usize::from(u16::MAX)];
    loop {
        let length = match reader.read_u16().await {
            Ok(length) => usize::from(length),
            Err(error) => return error,
        };
        let Some(slot) = datagram.get_mut(..length) else { continue };
        if let Err(error) = reader.read_exact(slot).await {
            return error;
        }
        if length > 0 {
            note();
            // What the daemon does not take is lost, as on any network.
            let _ = socket.send(slot).await;
        }
    }
}

/// From the daemon to the stream, until the stream fails.
async fn outbound(
    writer: impl AsyncWrite + Unpin,
    socket: &UdpSocket,
    note: &impl Fn(),
) -> io::Error {
    let mut writer = BufWriter::with_capacity(BUFFER, writer);
    let mut datagram = vec![0_u8; usize::from(u16::MAX)];
    loop {
        let first = match socket.recv(&mut datagram).await {
            Ok(length) => length,
            // The daemon is not there at the moment (ICMP says so).
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        note();
        let burst = async {
            let mut length = first;
            for _ in 0..BURST {
                let Ok(prefix) = u16::try_from(length) else { break };
                writer.write_u16(prefix).await?;
                writer.write_all(&datagram[..length]).await?;
                match socket.try_recv(&mut datagram) {
                    Ok(next) => length = next,
                    Err(_) => break,
                }
            }
            writer.flush().await
        };
        match timeout(STALLED, burst).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return io::ErrorKind::TimedOut.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (UdpSocket, UdpSocket) {
        let a = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        a.connect(b.local_addr().unwrap()).await.unwrap();
        b.connect(a.local_addr().unwrap()).await.unwrap();
        (a, b)
    }

    #[tokio::test]
    async fn datagrams_keep_their_bounds_both_ways() {
        let (left, right) = tokio::io::duplex(4096);
        let (left_end, left_daemon) = pair().await;
        let (right_end, right_daemon) = pair().await;
        tokio::spawn(async move { carry(left, &left_end).await });
        tokio::spawn(async move { carry(right, &right_end).await });
        let mut buffer = vec![0; 65_535];
        for size in [1_usize, 1452, 9000, 3] {
            let data = vec![size as u8; size];
            left_daemon.send(&data).await.unwrap();
            let length = right_daemon.recv(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], data);
            right_daemon.send(&data).await.unwrap();
            let length = left_daemon.recv(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], data);
        }
    }

    #[tokio::test]
    async fn a_stream_that_lies_about_lengths_ends_the_tunnel() {
        let (left, mut right) = tokio::io::duplex(4096);
        let (end, daemon) = pair().await;
        let task = tokio::spawn(async move { carry(left, &end).await });
        right.write_all(&[0, 0, 0, 2, 7, 8, 0xff, 0xff, 1]).await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(daemon.recv(&mut buffer).await.unwrap(), 2);
        assert_eq!(buffer[..2], [7, 8]);
        drop(right);
        assert!(matches!(task.await.unwrap(), End::Closed(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_tunnel_ends() {
        let (left, _right) = tokio::io::duplex(64);
        let (end, _daemon) = pair().await;
        let before = Instant::now();
        assert!(matches!(carry(left, &end).await, End::Idle));
        assert!(before.elapsed() >= IDLE);
    }
}

//! Traffic that checks itself: a TCP stream whose every byte is verified, and
//! UDP echoes that count what came back.
//!
//! Invariants: nothing waits for ever; a stalled stream is an error after
//! [`STALLED`]. Deliberately not here: comparable throughput figures (the
//! bench uses iperf3 for those).

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::topology::Host;

/// A stream without progress for this long has failed.
pub const STALLED: Duration = Duration::from_secs(15);

/// Bytes generated and checked at once.
const BLOCK: usize = 32 << 10;

/// What a stream did.
#[derive(Debug, Clone, Copy)]
pub struct Streamed {
    /// Bytes received, each one checked.
    pub bytes: u64,
    /// From the first connection attempt to the last byte.
    pub took: Duration,
    /// The longest wait for data in between.
    pub longest_gap: Duration,
}

impl Streamed {
    /// Gigabits per second on average.
    #[must_use]
    pub fn gbps(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.took.as_secs_f64() / 1e9
    }
}

/// How long a stream goes on.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// That many bytes are sent (rounded up to whole blocks).
    Bytes(u64),
    /// That much time has passed.
    Elapsed(Duration),
}

/// Sends a TCP stream from one host to an address of another and checks every
/// byte that arrives.
///
/// # Errors
/// When it cannot connect, stalls, breaks off, or a byte is wrong.
pub fn stream(from: &Host, to: &Host, address: IpAddr, until: Until) -> Result<Streamed> {
    let listener = to
        .namespace()
        .run(|| TcpListener::bind((address, 0)))?
        .with_context(|| format!("cannot listen on {address}"))?;
    let target = listener.local_addr()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&listener));
        let sent = send(from, target, until);
        if sent.is_err() {
            // Lets the receiver out of `accept` when nothing ever connected.
            let _ = to.namespace().run(|| TcpStream::connect_timeout(&target, STALLED));
        }
        let received = receiver.join().unwrap_or_else(|_| bail!("the receiver panicked"));
        let sent = sent?;
        let (bytes, longest_gap) = received?;
        ensure!(bytes == sent, "{sent} bytes sent, {bytes} arrived");
        Ok(Streamed { bytes, took: start.elapsed(), longest_gap })
    })
}

fn send(from: &Host, target: SocketAddr, until: Until) -> Result<u64> {
    let mut stream = from
        .namespace()
        .run(|| TcpStream::connect_timeout(&target, STALLED))?
        .with_context(|| format!("{} cannot connect to {target}", from.name()))?;
    stream.set_write_timeout(Some(STALLED))?;
    stream.set_read_timeout(Some(STALLED))?;
    let start = Instant::now();
    let mut pattern = Pattern::default();
    let mut block = vec![0; BLOCK];
    let mut sent = 0;
    loop {
        let done = match until {
            Until::Bytes(bytes) => sent >= bytes,
            Until::Elapsed(time) => start.elapsed() >= time,
        };
        if done {
            break;
        }
        pattern.fill(&mut block);
        stream.write_all(&block).with_context(|| format!("stalled after {sent} bytes sent"))?;
        sent += block.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The receiver answers when it has everything.
    let mut answer = [0];
    stream.read_exact(&mut answer).context("the receiver did not confirm")?;
    Ok(sent)
}

fn receive(listener: &TcpListener) -> Result<(u64, Duration)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(STALLED))?;
    let mut pattern = Pattern::default();
    let (mut block, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
    let (mut received, mut longest_gap) = (0, Duration::ZERO);
    let mut last = Instant::now();
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            let n = stream
                .read(&mut block[filled..])
                .with_context(|| format!("stalled after {received} bytes received"))?;
            longest_gap = longest_gap.max(last.elapsed());
            last = Instant::now();
            if n == 0 {
                break;
            }
            filled += n;
        }
        if filled == 0 {
            stream.write_all(b"k")?;
            return Ok((received, longest_gap));
        }
        pattern.fill(&mut expected);
        ensure!(block[..filled] == expected[..filled], "wrong bytes after {received}");
        received += filled as u64;
    }
}

/// An endless reproducible sequence (xorshift64).
struct Pattern(u64);

impl Default for Pattern {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Pattern {
    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

/// What a series of echoes did.
#[derive(Debug, Clone, Copy)]
pub struct Echoed {
    /// Datagrams sent.
    pub sent: u32,
    /// Distinct ones that came back.
    pub returned: u32,
    /// Mean round-trip time of those.
    pub mean: Duration,
    /// Longest time between two that came back.
    pub longest_gap: Duration,
}

impl Echoed {
    /// Share that did not come back, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        1.0 - f64::from(self.returned) / f64::from(self.sent.max(1))
    }
}

/// Sends `count` UDP datagrams of `size` bytes (at least 4), one every
/// `interval`, to an address of another host, which echoes them.
///
/// # Errors
/// When the sockets cannot be made; lost datagrams are no error.
pub fn echo(
    from: &Host,
    to: &Host,
    address: IpAddr,
    count: u32,
    interval: Duration,
    size: usize,
) -> Result<Echoed> {
    let bind = |host: &Host, address| host.namespace().run(move || UdpSocket::bind((address, 0)));
    let server = bind(to, address)?.with_context(|| format!("no address {address} there"))?;
    let any: IpAddr = match address {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    let client = bind(from, any)?.context("cannot make a UDP socket")?;
    let target = server.local_addr()?;
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    client.set_read_timeout(Some(Duration::from_millis(20)))?;
    let start = Instant::now();
    let end = start + interval * count + Duration::from_secs(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; 2048];
            while Instant::now() < end {
                if let Ok((n, peer)) = server.recv_from(&mut buffer) {
                    // A reply the network refuses is one that is lost.
                    let _ = server.send_to(&buffer[..n], peer);
                }
            }
        });
        let sender = client.try_clone()?;
        scope.spawn(move || {
            let mut datagram = vec![0x5a; size.clamp(4, 2048)];
            for i in 0..count {
                datagram[..4].copy_from_slice(&i.to_be_bytes());
                let due = start + interval * i;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                // Likewise.
                let _ = sender.send_to(&datagram, target);
            }
        });
        collect(&client, count, start, interval, end)
    })
}

fn collect(
    client: &UdpSocket,
    count: u32,
    start: Instant,
    interval: Duration,
    end: Instant,
) -> Result<Echoed> {
    let mut seen = vec![false; count as usize];
    let (mut returned, mut sum, mut longest_gap) = (0, Duration::ZERO, Duration::ZERO);
    let mut last = start;
    let mut buffer = [0; 2048];
    while Instant::now() < end && returned < count {
        let n = match client.recv(&mut buffer) {
            Ok(n) => n,
            Err(error) if is_transient(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(number) = buffer[..n].first_chunk::<4>() else { continue };
        let number = u32::from_be_bytes(*number);
        let Some(first) = seen.get_mut(number as usize).filter(|seen| !**seen) else { continue };
        *first = true;
        returned += 1;
        let now = Instant::now();
        sum += now.saturating_duration_since(start + interval * number);
        longest_gap = longest_gap.max(now - last);
        last = now;
    }
    Ok(Echoed { sent: count, returned, mean: sum / returned.max(1), longest_gap })
}

/// Timeouts, and ICMP errors that say the other side is not there yet.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        WouldBlock | TimedOut | Interrupted | ConnectionRefused | HostUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Pair, Underlay};

    fn pair() -> Option<Pair> {
        if !warren_os::netns::is_privileged() {
            eprintln!("SKIPPED: no privilege for network namespaces");
            return None;
        }
        Some(Pair::create(1500, Underlay::Direct).unwrap())
    }

    #[test]
    fn streams_are_checked_and_end() {
        let Some(pair) = pair() else { return };
        let done = stream(&pair.left, &pair.right, Pair::RIGHT, Until::Bytes(3 << 20)).unwrap();
        assert_eq!(done.bytes, 3 << 20);
        let time = Duration::from_millis(200);
        let done = stream(&pair.right, &pair.left, Pair::LEFT, Until::Elapsed(time)).unwrap();
        assert!(done.bytes > 0 && done.took >= time);
    }

    #[test]
    fn echoes_are_counted() {
        let Some(pair) = pair() else { return };
        let every = Duration::from_millis(2);
        let done = echo(&pair.left, &pair.right, Pair::RIGHT, 50, every, 64).unwrap();
        assert_eq!((done.sent, done.returned), (50, 50));
        assert!(done.mean < Duration::from_millis(50));
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sender = std::thread::spawn(move || {
            let mut block = vec![0; BLOCK];
            Pattern::default().fill(&mut block);
            block[1000] ^= 1;
            TcpStream::connect(address).unwrap().write_all(&block)
        });
        let error = receive(&listener).unwrap_err();
        assert!(error.to_string().contains("wrong bytes"), "{error}");
        sender.join().unwrap().unwrap();
    }
}

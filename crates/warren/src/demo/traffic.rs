//! Real traffic between hosts, with nothing but sockets: pings, a file over
//! HTTP, and TCP streams at full speed.
//!
//! Invariants: sockets live in the namespace of their host; every wait has an
//! end; what arrives is compared with what was sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest;
use warren_lab::netem::Dice;
use warren_lab::topology::Host;
use warren_os::icmp::Pinger;

/// No single read or write may take longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes written at once.
const BLOCK: usize = 128 * 1024;

/// In every kilobyte of the file, so that an eavesdropper could find it.
pub(super) const MARKER: &str = "warren demo: this text travels in every kilobyte of the file";

/// Pings an address from a host, up to `tries` times.
pub(super) fn ping(from: &Host, to: IpAddr, tries: u32) -> Result<Duration> {
    let mut pinger = from
        .namespace()
        .run(|| Pinger::open(to, std::process::id() as u16))?
        .with_context(|| format!("{}: cannot ping", from.name()))?;
    let mut last = None;
    for _ in 0..tries.max(1) {
        match pinger.ping(56, Duration::from_secs(1)) {
            Ok(took) => return Ok(took),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let error = last.map_or_else(|| "no try".to_owned(), |error| error.to_string());
    bail!("no answer from {to} to {}: {error}", from.name())
}

/// The file: random bytes, with the marker at the start of each kilobyte.
#[derive(Debug)]
pub(super) struct Document {
    content: Vec<u8>,
}

impl Document {
    /// A file of some kilobytes.
    pub(super) fn new(seed: u64, kilobytes: usize) -> Self {
        let mut dice = Dice::new(seed);
        let mut content = Vec::with_capacity(kilobytes * 1024);
        for _ in 0..kilobytes {
            let start = content.len();
            content.extend_from_slice(MARKER.as_bytes());
            while content.len() < start + 1024 {
                content.extend_from_slice(&dice.next_u64().to_le_bytes());
            }
            content.truncate(start + 1024);
        }
        Self { content }
    }

    /// Its length, bytes.
    pub(super) fn len(&self) -> usize {
        self.content.len()
    }

    /// Its SHA-256 in hexadecimal.
    pub(super) fn sha256(&self) -> String {
        hex(digest::digest(&digest::SHA256, &self.content).as_ref())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a download brought.
#[derive(Debug)]
pub(super) struct Download {
    /// SHA-256 of what arrived.
    pub sha256: String,
    /// Bytes that arrived.
    pub bytes: usize,
    /// From connecting to the last byte.
    pub took: Duration,
    /// Who came, as the server saw it.
    pub seen_as: IpAddr,
}

/// Serves the document on one host and fetches it from another over HTTP/1.1.
/// `progress` hears how many bytes are there.
pub(super) fn download(
    document: &Document,
    server: (&Host, IpAddr),
    client: &Host,
    mut progress: impl FnMut(usize),
) -> Result<Download> {
    let listener = server.0.namespace().run(|| TcpListener::bind((server.1, 0)))??;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve_once(&listener, document));
        let fetched = fetch(client, address, &mut progress);
        if fetched.is_err() {
            // Wakes a server that nobody reached.
            let _ = server.0.namespace().run(|| TcpStream::connect(address));
        }
        let served = serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))?;
        let (sha256, bytes, took) = fetched?;
        let seen_as = served.context("HTTP server")?;
        Ok(Download { sha256, bytes, took, seen_as })
    })
}

/// The address of whom it served.
fn serve_once(listener: &TcpListener, document: &Document) -> Result<IpAddr> {
    let (mut stream, from) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("GET /file "), "unexpected request {line:?}");
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        document.len()
    )?;
    stream.write_all(&document.content)?;
    Ok(from.ip())
}

/// SHA-256, length and time taken.
fn fetch(
    client: &Host,
    address: SocketAddr,
    progress: &mut impl FnMut(usize),
) -> Result<(String, usize, Duration)> {
    let start = Instant::now();
    let mut stream =
        client.namespace().run(|| TcpStream::connect_timeout(&address, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /file HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(BLOCK, stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "unexpected answer {line:?}");
    let mut expected = None;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                expected = Some(value.trim().parse::<usize>()?);
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut bytes = 0;
    loop {
        let count = match reader.fill_buf()? {
            [] => break,
            part => {
                hash.update(part);
                part.len()
            }
        };
        reader.consume(count);
        bytes += count;
        progress(bytes);
    }
    ensure!(Some(bytes) == expected, "{bytes} bytes arrived instead of {expected:?}");
    Ok((hex(hash.finish().as_ref()), bytes, start.elapsed()))
}

/// What streams carried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// Bits per second after the warm-up.
    pub rate: f64,
    /// Bytes received in all.
    pub bytes: u64,
}

/// Sends over `streams` TCP connections at once for `duration`, of which the
/// first `warm_up` does not count. `progress` hears the share of time done and
/// the latest rate.
pub(super) fn stream(
    from: &Host,
    to: (&Host, IpAddr),
    streams: usize,
    (warm_up, duration): (Duration, Duration),
    quit: &AtomicBool,
    mut progress: impl FnMut(f64, f64),
) -> Result<Measured> {
    let listener = to.0.namespace().run(|| TcpListener::bind((to.1, 0)))??;
    let address = listener.local_addr()?;
    let received = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let connected = (|| {
            let mut ends = Vec::new();
            for _ in 0..streams.max(1) {
                let near =
                    from.namespace().run(|| TcpStream::connect_timeout(&address, PATIENCE))??;
                let (far, _) = listener.accept()?;
                near.set_write_timeout(Some(PATIENCE))?;
                far.set_read_timeout(Some(PATIENCE))?;
                ends.push((near, far));
            }
            Ok::<_, anyhow::Error>(ends)
        })()?;
        for (mut near, mut far) in connected {
            let (received, stop) = (&received, &stop);
            scope.spawn(move || {
                let block = vec![0x5a; BLOCK];
                while !stop.load(Ordering::Relaxed) && near.write_all(&block).is_ok() {}
            });
            scope.spawn(move || {
                let mut block = vec![0; BLOCK];
                while let Ok(count @ 1..) = far.read(&mut block) {
                    received.fetch_add(count as u64, Ordering::Relaxed);
                }
            });
        }
        let start = Instant::now();
        let mut counted_from = None;
        let mut last = (start, 0);
        while start.elapsed() < duration && !quit.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            let (now, bytes) = (Instant::now(), received.load(Ordering::Relaxed));
            if counted_from.is_none() && now - start >= warm_up {
                counted_from = Some((now, bytes));
            }
            let rate = bits_per_second(bytes - last.1, now - last.0);
            last = (now, bytes);
            progress((now - start).as_secs_f64() / duration.as_secs_f64(), rate);
        }
        let (end, bytes) = last;
        stop.store(true, Ordering::Relaxed);
        let (begin, before) = counted_from.unwrap_or((start, 0));
        Ok(Measured { rate: bits_per_second(bytes - before, end - begin), bytes })
    })
}

fn bits_per_second(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { bytes as f64 * 8.0 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_it_says() {
        let document = Document::new(1, 3);
        assert_eq!(document.len(), 3072);
        let text = String::from_utf8_lossy(&document.content);
        assert_eq!(text.matches(MARKER).count(), 3);
        assert_eq!(document.sha256().len(), 64);
        assert_eq!(document.sha256(), Document::new(1, 3).sha256());
        assert_ne!(document.sha256(), Document::new(2, 3).sha256());
    }

    #[test]
    fn a_file_and_streams_travel_on_one_host() {
        let Ok(host) = Host::create("alone") else {
            println!("SKIPPED: no privilege for namespaces here");
            return;
        };
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(ping(&host, here, 1).unwrap() < Duration::from_secs(1));
        let document = Document::new(7, 500);
        let mut heard = 0;
        let got = download(&document, (&host, here), &host, |bytes| heard = bytes).unwrap();
        assert_eq!((got.bytes, heard), (document.len(), document.len()));
        assert_eq!(got.sha256, document.sha256());
        assert_eq!(got.seen_as, here);
        let quit = AtomicBool::new(false);
        let times = (Duration::from_millis(100), Duration::from_millis(400));
        let measured = stream(&host, (&host, here), 2, times, &quit, |_, _| {}).unwrap();
        assert!(measured.rate > 1e6 && measured.bytes > 0);
    }

    #[test]
    fn a_download_from_nobody_ends() {
        let Ok(host) = Host::create("alone") else {
            println!("SKIPPED: no privilege for namespaces here");
            return;
        };
        let nowhere: IpAddr = "192.0.2.1".parse().unwrap();
        let document = Document::new(7, 1);
        assert!(download(&document, (&host, nowhere), &host, |_| {}).is_err());
        assert!(ping(&host, nowhere, 1).is_err());
    }
}

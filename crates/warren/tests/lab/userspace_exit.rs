//! An exit without privileges: what comes from a lease reaches servers by
//! ordinary sockets, as far as the policy goes.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_lab::topology::{Pair, Underlay};
use warren_node::userspace::exit::{Proto, RESOLVER, leases};
use warren_node::userspace::{Addresses, ConnectError, Exit, Source, Stack, Stream};
use warren_os::tun::{TunQueue, memory};

use crate::proxies::Server;

const LEASE: [u8; 4] = [240, 0, 0, 5];
const MTU: usize = 1280;

/// Carries frames between the lease's stack and the exit's, as circuits would.
async fn carry(near: TunQueue, far: TunQueue) {
    let mut buffer = vec![0; 70_000];
    loop {
        let mut moved = false;
        for (from, to) in [(&near, &far), (&far, &near)] {
            while let Ok(len) = from.read(&mut buffer) {
                moved = true;
                // A full queue loses packets, as a network may.
                let _lost = to.write(&buffer[..len]);
            }
        }
        if moved {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
}

struct Session {
    stack: Stack,
    exit: Stack,
    _exit: Exit,
}

impl Session {
    fn start(allow: impl Fn(IpAddr, u16, Proto) -> bool + Send + Sync + 'static) -> Result<Self> {
        let (mut near, near_end) = memory::pair(1)?;
        let (mut far, far_end) = memory::pair(1)?;
        let own = Addresses { onion: vec![LEASE.into()], ..Addresses::default() };
        let stack = Stack::new(near_end, own, 1100);
        let exit = Stack::new(far_end, Addresses::default(), 1100);
        for stack in [stack.clone(), exit.clone()] {
            tokio::spawn(async move { stack.run().await });
        }
        tokio::spawn(carry(near.remove(0), far.remove(0)));
        let handle = tokio::runtime::Handle::current();
        let resolver = Some("10.99.0.2:5300".parse()?);
        let running = Exit::start(&handle, &exit, leases(), resolver, Arc::new(allow));
        Ok(Self { stack, exit, _exit: running })
    }

    async fn connect(&self, to: SocketAddr) -> Result<Stream, ConnectError> {
        let source = Source { address: LEASE.into(), mtu: MTU };
        self.stack.connect(source, to).await
    }

    async fn fetch(&self, to: SocketAddr, bytes: usize) -> Result<()> {
        let mut stream = self.connect(to).await?;
        stream.write_all(format!("{bytes}\n").as_bytes()).await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        stream.shutdown().await?;
        ensure!(all.len() == bytes, "{} of {bytes} bytes", all.len());
        Ok(())
    }
}

/// RFC 1071.
fn write_checksum(bytes: &mut [u8], at: usize) {
    let pairs = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = pairs.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    bytes[at..at + 2].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// An echo request over IPv4 from the lease, as a frame.
fn echo_request(to: [u8; 4], sequence: u8) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend_from_slice(&[0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0]);
    frame.extend_from_slice(&LEASE);
    frame.extend_from_slice(&to);
    write_checksum(&mut frame[10..30], 10);
    frame.extend_from_slice(&[8, 0, 0, 0, 0x12, 0x34, 0, sequence]);
    frame.extend_from_slice(b"payload!");
    write_checksum(&mut frame[30..], 2);
    frame
}

/// Pings through an exit of its own, from the frames that come back.
async fn pings(host: IpAddr) -> Result<()> {
    let IpAddr::V4(host) = host else { anyhow::bail!("an IPv4 address") };
    let (mut queues, end) = memory::pair(1)?;
    let stack = Stack::new(end, Addresses::default(), 16);
    let driven = stack.clone();
    tokio::spawn(async move { driven.run().await });
    let handle = tokio::runtime::Handle::current();
    let allow = |ip, _, proto| ip == Pair::RIGHT && proto == Proto::Echo;
    let _exit = Exit::start(&handle, &stack, leases(), None, Arc::new(allow));
    let queue = queues.remove(0);
    for sequence in 1..=3 {
        stack.inject(&echo_request(host.octets(), sequence));
        let mut buffer = [0; 2000];
        let mut tries = 0;
        let length = loop {
            match queue.read(&mut buffer) {
                Ok(length) => break length,
                Err(_) if tries < 2000 => tries += 1,
                Err(error) => return Err(error).context("no reply"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let reply = &buffer[10..length];
        ensure!(reply[12..16] == host.octets() && reply[16..20] == LEASE, "{reply:?}");
        ensure!(reply[20..22] == [0, 0], "no echo reply: {reply:?}");
        ensure!(reply[24..28] == [0x12, 0x34, 0, sequence], "another's: {reply:?}");
        ensure!(&reply[28..] == b"payload!", "{reply:?}");
    }
    // Where the policy does not allow it, nothing comes back; it is counted.
    stack.inject(&echo_request([10, 99, 0, 1], 4));
    tokio::time::sleep(Duration::from_millis(100)).await;
    ensure!(queue.read(&mut [0; 2000]).is_err(), "answered");
    ensure!(stack.counters().refused.load(Ordering::Relaxed) == 1);
    Ok(())
}

pub(crate) fn serves_leases() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    // Echo sockets for everybody, as most distributions have it.
    let range = "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range";
    pair.left.run("sh", &["-c", range])?;
    let server = Server::start(&pair.right, SocketAddr::new(Pair::RIGHT, 8000))?;
    let bind = |port| -> Result<UdpSocket> {
        let at = SocketAddr::new(Pair::RIGHT, port);
        Ok(pair.right.namespace().run(|| UdpSocket::bind(at))??)
    };
    for socket in [bind(7)?, bind(5300)?] {
        // Echoes until the test's process ends; the last round tells it to.
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut buffer = [0; 2048];
            loop {
                let (n, from) = socket.recv_from(&mut buffer)?;
                socket.send_to(&buffer[..n], from)?;
                if &buffer[..n] == b"end" {
                    return Ok(());
                }
            }
        });
    }
    let address = server.address;
    let test = async move {
        let session = Session::start(|ip, port, proto| {
            ip == Pair::RIGHT && port != 25 && (proto != Proto::Udp || port == 7)
        })?;
        // One large transfer, then many at once: each by a socket of its own.
        session.fetch(address, 20_000_000).await.context("one connection")?;
        let session = Arc::new(session);
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..300 {
            let session = session.clone();
            all.spawn(async move { session.fetch(address, 50_000).await });
        }
        while let Some(one) = all.join_next().await {
            one?.context("one of 300")?;
        }

        // Nobody listens; the policy says no; no way there.
        for (to, expected) in [
            (SocketAddr::new(Pair::RIGHT, 8001), ConnectError::Refused),
            (SocketAddr::new(Pair::RIGHT, 25), ConnectError::Refused),
            ("10.99.0.1:80".parse()?, ConnectError::Refused),
        ] {
            let refused = session.connect(to).await.err();
            ensure!(refused == Some(expected), "{to}: {refused:?}");
        }
        let refused = session.exit.counters().refused.load(Ordering::Relaxed);
        ensure!(refused == 2, "{refused} refused by the policy");

        // Datagrams, and the resolver's address inside.
        let mut socket = session.stack.bind_udp(LEASE.into(), None)?;
        for to in [SocketAddr::new(Pair::RIGHT, 7), RESOLVER] {
            for text in [&b"first"[..], b"second", b"end"] {
                ensure!(socket.send(to, text));
                let answer = tokio::time::timeout(Duration::from_secs(5), socket.receive());
                let (from, data) = answer.await.context("no answer")?.context("gone")?;
                ensure!((from, &data[..]) == (to, text), "{from}: {data:?}");
            }
        }
        ensure!(socket.send(SocketAddr::new(Pair::RIGHT, 9), b"x"), "sent, to be refused");

        pings(Pair::RIGHT).await.context("echo requests")?;

        // All of it ends with the exit.
        let mut open = session.connect(address).await?;
        ensure!(session.exit.connections() > 0);
        let session = Arc::into_inner(session).context("still in use")?;
        let Session { stack: _stack, exit, _exit: running } = session;
        drop(running);
        let error = open.read_u8().await.err().context("still there")?;
        ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
        ensure!(exit.connections() == 0);
        Ok(())
    };
    pair.left.namespace().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(90), test).await? })
    })?
}

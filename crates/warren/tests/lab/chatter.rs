//! Everybody talks with everybody: small datagrams inside the network between
//! all pairs, until each has had its answer.
//!
//! Sockets are bound to no address, so they outlive the daemons under them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use warren_lab::topology::Host;

const PORT: u16 = 7777;
const ASK: u8 = 1;
const ANSWER: u8 = 2;

/// Between two questions to somebody who has not answered.
const AGAIN: Duration = Duration::from_millis(200);

/// A pair that must talk: who asks, who answers.
pub(crate) type Pair = (usize, usize);

/// A talker on each host.
pub(crate) struct Chatter {
    sockets: Vec<UdpSocket>,
    round: Arc<AtomicU32>,
    heard: Arc<Mutex<BTreeSet<Pair>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Chatter {
    pub(crate) fn start(hosts: &[Host]) -> Result<Self> {
        let mut chatter = Self {
            sockets: vec![],
            round: Arc::default(),
            heard: Arc::default(),
            stop: Arc::default(),
            threads: vec![],
        };
        for (own, host) in hosts.iter().enumerate() {
            let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT));
            let socket = host.namespace().run(bind)?.context("cannot make a UDP socket")?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            let listener = socket.try_clone()?;
            chatter.sockets.push(socket);
            let (round, heard, stop) =
                (chatter.round.clone(), chatter.heard.clone(), chatter.stop.clone());
            chatter.threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((7, from)) = listener.recv_from(&mut buffer) else { continue };
                    if buffer[0] == ASK {
                        buffer[0] = ANSWER;
                        // One the network refuses is one that is lost.
                        let _ = listener.send_to(&buffer[..7], from);
                    } else if buffer[2..6] == round.load(Ordering::Relaxed).to_be_bytes() {
                        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                        heard.insert((own, usize::from(buffer[1])));
                    }
                }
            }));
        }
        Ok(chatter)
    }

    /// Asks until all `pairs` have talked; how long that took since `since`,
    /// or the pairs that have not within `patience` from now.
    pub(crate) fn talk(
        &self,
        pairs: &[Pair],
        addresses: &[IpAddr],
        since: Instant,
        patience: Duration,
    ) -> Result<Duration, BTreeSet<Pair>> {
        let round = self.round.fetch_add(1, Ordering::Relaxed) + 1;
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let end = Instant::now() + patience;
        let mut silent: BTreeSet<Pair> = pairs.iter().copied().collect();
        loop {
            let asked = Instant::now();
            for (from, to) in &silent {
                let mut datagram = [0; 7];
                (datagram[0], datagram[1]) = (ASK, *to as u8);
                datagram[2..6].copy_from_slice(&round.to_be_bytes());
                let target = SocketAddr::new(addresses[*to], PORT);
                // Likewise; a daemon that is not up yet has no route.
                let _ = self.sockets[*from].send_to(&datagram, target);
            }
            while asked.elapsed() < AGAIN {
                std::thread::sleep(Duration::from_millis(10));
                {
                    let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                    silent.retain(|pair| !heard.contains(pair));
                }
                if silent.is_empty() {
                    return Ok(since.elapsed());
                }
            }
            if Instant::now() > end {
                return Err(silent);
            }
        }
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing more to clean up.
            let _ = thread.join();
        }
    }
}

/// All ordered pairs of these.
pub(crate) fn all_pairs(among: &[usize]) -> Vec<Pair> {
    let others = |a: usize| among.iter().filter(move |b| **b != a).map(move |b| (a, *b));
    among.iter().flat_map(|a| others(*a)).collect()
}

//! Sessions: what outlives circuits. A session has a secret, addresses inside
//! and one sequence of numbers each way; circuits are linked to it, and any of
//! them may carry any packet, since the receiver takes each number once.
//!
//! All clients have the same inner addresses. The exit tells them apart by
//! session, and gives each a lease, under which its own kernel knows them: so
//! nothing in an inner packet names a client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;

use super::circuit::{ClientCircuit, HopCircuit};
use super::payload::MAX_SEQUENCE;
use crate::link::replay::ReplayWindow;

/// Every client's inner IPv4 address (RFC 7335).
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// Every exit's inner IPv4 address, where its resolver answers.
pub const EXIT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// Every client's inner IPv6 address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x6172, 0x7265, 0x6e00, 0, 0, 0, 2);
/// Every exit's inner IPv6 address.
pub const EXIT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x6172, 0x7265, 0x6e00, 0, 0, 0, 1);

/// Every client's inner address of a family.
#[inline]
pub fn client_address(v6: bool) -> IpAddr {
    if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() }
}

/// Most sessions at one exit.
pub const MAX_SESSIONS: usize = 0xfffe;

/// A session's place in an exit's address range: 1 to [`MAX_SESSIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease(u16);

impl Lease {
    /// `None` for 0 and 65535.
    pub fn new(index: u16) -> Option<Self> {
        (1..=MAX_SESSIONS as u16).contains(&index).then_some(Self(index))
    }

    /// The place.
    pub fn index(self) -> u16 {
        self.0
    }

    /// In 240.0.0.0/16 (RFC 1112 class E, which no network has).
    pub fn v4(self) -> Ipv4Addr {
        let [a, b] = self.0.to_be_bytes();
        Ipv4Addr::new(240, 0, a, b)
    }

    /// In fd77:6172:7265:6e01::/64.
    pub fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0x6172, 0x7265, 0x6e01, 0, 0, 0, self.0)
    }

    /// Its address of a family.
    #[inline]
    pub fn address(self, v6: bool) -> IpAddr {
        if v6 { self.v6().into() } else { self.v4().into() }
    }

    /// The lease that an address belongs to.
    #[inline]
    pub fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(v4) => match v4.octets() {
                [240, 0, a, b] => Self::new(u16::from_be_bytes([a, b])),
                _ => None,
            },
            IpAddr::V6(v6) => match v6.segments() {
                [0xfd77, 0x6172, 0x7265, 0x6e01, 0, 0, 0, index] => Self::new(index),
                _ => None,
            },
        }
    }
}

/// What both ends of a session have.
#[derive(Debug, Default)]
pub struct Stream {
    sequence: AtomicU64,
    window: Mutex<ReplayWindow>,
    /// Packets and their bytes, sent and received.
    pub tx_packets: AtomicU64,
    /// See `tx_packets`.
    pub tx_bytes: AtomicU64,
    /// See `tx_packets`.
    pub rx_packets: AtomicU64,
    /// See `tx_packets`.
    pub rx_bytes: AtomicU64,
    /// Texts that came twice, over two circuits.
    pub duplicates: AtomicU64,
    /// Last data sent and received, ms on the engine's clock.
    pub last_tx_ms: AtomicU64,
    /// See `last_tx_ms`.
    pub last_rx_ms: AtomicU64,
}

impl Stream {
    /// The number of the next text.
    pub fn next_sequence(&self) -> u64 {
        // 2^56 texts take centuries.
        self.sequence.fetch_add(1, Ordering::Relaxed) & MAX_SEQUENCE
    }

    fn window(&self) -> MutexGuard<'_, ReplayWindow> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True for a number that comes for the first time.
    pub fn accept(&self, sequence: u64) -> bool {
        let fresh = self.window().accept(sequence);
        if !fresh {
            self.duplicates.fetch_add(1, Ordering::Relaxed);
        }
        fresh
    }

    /// Numbers the other end has used, and those that came.
    pub fn progress(&self) -> (u64, u64) {
        self.window().progress()
    }

    /// Counts what was sent.
    pub fn note_sent(&self, packets: u64, bytes: u64, now_ms: u64) {
        self.tx_packets.fetch_add(packets, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_tx_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Counts what was received.
    pub fn note_received(&self, packets: u64, bytes: u64, now_ms: u64) {
        self.rx_packets.fetch_add(packets, Ordering::Relaxed);
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_rx_ms.store(now_ms, Ordering::Relaxed);
    }
}

/// A session at its exit.
#[derive(Debug)]
pub struct ExitSession {
    /// Its addresses here.
    pub lease: Lease,
    /// Numbers and counters.
    pub stream: Stream,
    /// Where texts to the client go.
    pub active: ArcSwapOption<HopCircuit>,
    /// The number of the text by which the client last chose it, plus one.
    chosen: AtomicU64,
}

impl ExitSession {
    /// A session without a circuit.
    pub fn new(lease: Lease) -> Self {
        Self {
            lease,
            stream: Stream::default(),
            active: ArcSwapOption::empty(),
            chosen: AtomicU64::new(0),
        }
    }

    /// The client wants answers over `circuit`, it says with number `sequence`.
    /// What it said later counts, in whatever order it arrives.
    pub fn choose(&self, circuit: &Arc<HopCircuit>, sequence: u64) {
        if self.chosen.fetch_max(sequence + 1, Ordering::Relaxed) > sequence {
            return;
        }
        let active = self.active.load();
        if !active.as_ref().is_some_and(|active| Arc::ptr_eq(active, circuit)) {
            self.active.store(Some(circuit.clone()));
        }
    }
}

/// A session at its client.
#[derive(Debug, Default)]
pub struct ClientSession {
    /// Numbers and counters.
    pub stream: Stream,
    /// What texts go over, and answers come over. Without one packets are
    /// refused, never sent elsewhere.
    pub active: ArcSwapOption<ClientCircuit>,
    /// While in doubt: every text goes over this one as well.
    pub also: ArcSwapOption<ClientCircuit>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_found_by_their_addresses() {
        for index in [1, 255, 256, 0xfffe] {
            let lease = Lease::new(index).unwrap();
            assert_eq!(Lease::of(lease.v4().into()), Some(lease));
            assert_eq!(Lease::of(lease.v6().into()), Some(lease));
        }
        for other in ["240.0.0.0", "240.0.255.255", "240.1.0.1", "10.0.0.1", "fd77::1"] {
            assert_eq!(Lease::of(other.parse().unwrap()), None, "{other}");
        }
        assert_eq!(Lease::of(CLIENT_V6.into()), None);
    }

    #[test]
    fn each_number_counts_once_over_whatever_circuit() {
        let stream = Stream::default();
        assert!(stream.accept(0) && stream.accept(5) && stream.accept(1));
        assert!(!stream.accept(5));
        assert_eq!(stream.duplicates.load(Ordering::Relaxed), 1);
        assert_eq!((stream.next_sequence(), stream.next_sequence()), (0, 1));
    }
}

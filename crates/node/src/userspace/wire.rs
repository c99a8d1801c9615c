//! Where the stack's packets go: to the workers, or, for an own address, back
//! into the stack. To the TCP library it is a network device that segments.
//!
//! Invariants: both ways out are bounded, and a connection asks for room before
//! it sends, so nothing of it is lost on this machine; datagrams and ICMP that
//! find no room are dropped and counted.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use smoltcp::phy::{
    Checksum, Device, DeviceCapabilities, Medium, RxToken, SegmentationCapabilities, TxToken,
};
use smoltcp::time::Instant as StackTime;
use tokio::sync::Notify;
use warren_os::tun::memory::StackEnd;
use warren_proto::packet::ip::Ip;
use warren_proto::packet::rewrite::clamp_mss;
use warren_proto::packet::vnet::VNET_LEN;

use super::address::Addresses;
use super::flow::FlowKey;
use super::packet::leave_checksum;

/// Most bytes on their way to ourselves.
const LOOPBACK: usize = 1 << 20;

/// Longest TCP super-packet, bytes: what leaves in one send of the link, which
/// takes 65,507 bytes with its own headers.
const SUPER_PACKET: usize = 61_000;

/// Packets the stack did not take or make.
#[derive(Debug, Default)]
pub struct Counters {
    /// Neither for an address of ours nor from a lease of an exit.
    pub not_ours: AtomicU64,
    /// Cut short, of an unknown protocol, or with a wrong checksum.
    pub malformed: AtomicU64,
    /// Fragments: not put together here.
    pub fragments: AtomicU64,
    /// No room: too many connections, or full queues.
    pub no_room: AtomicU64,
    /// Refused by the exit's policy.
    pub refused: AtomicU64,
}

impl Counters {
    /// Those that are not zero, by the labels that `warren status` shows.
    pub fn non_zero(&self) -> impl Iterator<Item = (String, u64)> {
        let all = [
            ("stack_not_ours", &self.not_ours),
            ("stack_malformed", &self.malformed),
            ("stack_fragments", &self.fragments),
            ("stack_no_room", &self.no_room),
            ("stack_refused", &self.refused),
        ];
        let read = all.map(|(label, count)| (label.to_owned(), count.load(Ordering::Relaxed)));
        read.into_iter().filter(|(_, count)| *count > 0)
    }

    pub(super) fn count(&self, which: fn(&Self) -> &AtomicU64) {
        which(self).fetch_add(1, Ordering::Relaxed);
    }
}

/// The way out.
#[derive(Debug)]
pub(super) struct Wire {
    end: StackEnd,
    own: ArcSwap<Addresses>,
    loopback: Mutex<Loopback>,
    /// Something is in the loopback.
    pub(super) looped: Notify,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
struct Loopback {
    frames: Vec<Vec<u8>>,
    bytes: usize,
}

impl Wire {
    pub(super) fn new(end: StackEnd, own: Addresses) -> Self {
        Self {
            end,
            own: ArcSwap::from_pointee(own),
            loopback: Mutex::default(),
            looped: Notify::new(),
            counters: Counters::default(),
        }
    }

    pub(super) fn end(&self) -> &StackEnd {
        &self.end
    }

    pub(super) fn own(&self) -> Arc<Addresses> {
        self.own.load_full()
    }

    pub(super) fn set_own(&self, own: Addresses) {
        self.own.store(Arc::new(own));
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.own.load().is_own(address)
    }

    fn loopback(&self) -> std::sync::MutexGuard<'_, Loopback> {
        self.loopback.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_room(&self, to: IpAddr, lane: usize) -> bool {
        if self.is_own(to) { self.loopback().bytes < LOOPBACK } else { self.end.has_room(lane) }
    }

    /// Sends a frame, room or not.
    pub(super) fn send(&self, to: IpAddr, lane: usize, frame: Vec<u8>) {
        if !self.is_own(to) {
            return self.end.send(lane, frame);
        }
        let mut loopback = self.loopback();
        loopback.bytes += frame.len();
        loopback.frames.push(frame);
        drop(loopback);
        self.looped.notify_one();
    }

    /// Sends a frame that nothing depends on; false when there is no room.
    pub(super) fn offer(&self, to: IpAddr, lane: usize, frame: Vec<u8>) -> bool {
        let room = self.has_room(to, lane);
        if room {
            self.send(to, lane, frame);
        } else {
            self.counters.count(|c| &c.no_room);
        }
        room
    }

    /// Takes what was sent to ourselves.
    pub(super) fn take_looped(&self, into: &mut Vec<Vec<u8>>) {
        let mut loopback = self.loopback();
        loopback.bytes = 0;
        into.append(&mut loopback.frames);
    }
}

/// The device of one connection, for one call of the library.
pub(super) struct Port<'a> {
    pub(super) wire: &'a Wire,
    /// The peer.
    pub(super) to: IpAddr,
    pub(super) lane: usize,
    /// Longest packet that gets through, bytes.
    pub(super) path_mtu: usize,
    /// Longest segment the peer takes, bytes.
    pub(super) segment: u16,
    /// The packet that came, if one did.
    pub(super) received: Option<&'a [u8]>,
    /// Set when a packet could not leave.
    pub(super) blocked: bool,
}

impl<'p> Port<'p> {
    pub(super) fn new(wire: &'p Wire, key: FlowKey, path_mtu: usize, segment: u16) -> Self {
        let (to, lane) = (key.remote.ip(), key.lane());
        Self { wire, to, lane, path_mtu, segment, received: None, blocked: false }
    }

    fn token(&self) -> Out<'p> {
        Out {
            wire: self.wire,
            to: self.to,
            lane: self.lane,
            path_mtu: self.path_mtu,
            segment: self.segment,
        }
    }
}

impl<'p> Device for Port<'p> {
    type RxToken<'a>
        = In<'p>
    where
        Self: 'a;
    type TxToken<'a>
        = Out<'p>
    where
        Self: 'a;

    fn receive(&mut self, _: StackTime) -> Option<(In<'p>, Out<'p>)> {
        let packet = self.received.take()?;
        // One packet may be answered by one at once, room or not.
        Some((In(packet), self.token()))
    }

    fn transmit(&mut self, _: StackTime) -> Option<Out<'p>> {
        if !self.wire.has_room(self.to, self.lane) {
            self.blocked = true;
            return None;
        }
        Some(self.token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // The library would not let longer packets through over IPv6, and asks
        // for no segmentation there. So it is told that anything goes, and what
        // does not is seen to when it leaves.
        capabilities.max_transmission_unit = usize::from(u16::MAX);
        // Verified before, and completed by whoever sends it on.
        capabilities.checksum.tcp = Checksum::None;
        let mut segmentation = SegmentationCapabilities::default();
        segmentation.tcpv4 = NonZeroUsize::new(SUPER_PACKET);
        segmentation.tcpv6 = NonZeroUsize::new(SUPER_PACKET);
        capabilities.segmentation = segmentation;
        capabilities
    }
}

/// A packet that came.
pub(super) struct In<'a>(&'a [u8]);

impl RxToken for In<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Leave to send a packet.
pub(super) struct Out<'a> {
    wire: &'a Wire,
    to: IpAddr,
    lane: usize,
    path_mtu: usize,
    segment: u16,
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; VNET_LEN + len];
        let result = f(&mut frame[VNET_LEN..]);
        let packet = &mut frame[VNET_LEN..];
        if let Some(ip) = Ip::parse(packet) {
            clamp_mss(&ip, packet, self.path_mtu, true);
        }
        let headers = if self.to.is_ipv4() { 40 } else { 60 };
        let fits = u16::try_from(self.path_mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
        leave_checksum(&mut frame, Some(self.segment.min(fits).max(1)));
        self.wire.send(self.to, self.lane, frame);
        result
    }
}

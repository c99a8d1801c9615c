//! Which of several paths a peer's packets take: a state machine for each peer.
//!
//! A path is a remote address: a socket address, or the mesh address that means
//! "over other nodes". In: candidate addresses (configured, told by the peer, or
//! heard from), answers to probes, the time. Out: which address to probe now
//! (`Paths::due`), where data goes (`Paths::choose`), and figures.
//!
//! - `admissible`: which addresses may be probed at all.
//! - `candidate`: one path: its probes, round trip, loss and state.
//! - `choice`: cost, hysteresis and damping.
//! - `progress`: a path that answers probes but loses data.
//! - `schedule`: when which path is probed, and how many probes strangers get.
//!
//! Invariants: at most `MAX_PATHS` paths; a path carries data only after it
//! answered a probe whose token went nowhere else, or carried a handshake; an
//! address that never answered gets few, small probes, ever more seldom, out of
//! one budget for each peer. Times are ms on the engine's clock (0 is never),
//! round trips µs. Deliberately not here: sealing, sending, frames, clocks.

pub mod admissible;
mod candidate;
mod choice;
mod progress;
mod schedule;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

pub(crate) use candidate::Answer;
use candidate::{Candidate, Phase};
use progress::Progress;
use schedule::Budget;
pub(crate) use schedule::Pace;
use warren_types::mesh_node;

use crate::link::frame::Tally;

/// Addresses a peer may tell of itself; more are ignored.
pub const MAX_TOLD: usize = 16;
/// Paths kept for one peer, from all sources.
pub const MAX_PATHS: usize = 24;
/// Of them, ones only known because something came from there.
const MAX_HEARD: usize = 6;
/// A path that does not work is tried again at most this often because
/// something came from there.
const HEARD_AGAIN_MS: u64 = 1_000;

/// Who named an address; a path may have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Our own side: descriptors, configuration, control connections, routing.
    Configured = 1,
    /// The peer, inside the session.
    Told = 2,
    /// An authenticated message came from there.
    Heard = 4,
}

/// How a path gets to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// Straight, by UDP.
    Direct,
    /// Over other nodes.
    Relay,
    /// Through a local proxy that wraps datagrams in TLS over TCP.
    Tcp,
}

impl PathKind {
    /// Which kind an address is for.
    pub fn of(address: SocketAddr) -> Self {
        if mesh_node(address).is_some() {
            Self::Relay
        } else if address.ip().is_loopback() {
            Self::Tcp
        } else {
            Self::Direct
        }
    }

    /// One word, as in `warren status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Tcp => "tcp",
        }
    }
}

/// State of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// Not probed yet.
    Untried,
    /// Probes are out, none was answered yet.
    Probing,
    /// It answers.
    Valid,
    /// It answered, and has now missed probes in a row.
    Suspect,
    /// Nothing comes back; tried again ever more seldom.
    Dead,
}

impl PathState {
    /// One word, as in `warren path explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Untried => "untried",
            Self::Probing => "probing",
            Self::Valid => "valid",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}

/// Why traffic moved to another path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathReason {
    /// A handshake came over it, and nothing better was known.
    #[error("a handshake came this way")]
    Handshake,
    /// It answers, and the one before did not (yet).
    #[error("the first path that answers")]
    First,
    /// Direct instead of over other nodes.
    #[error("a direct path was found")]
    Direct,
    /// The one before stopped answering.
    #[error("the path before stopped answering")]
    Silent,
    /// The one before answered probes, but data did not arrive.
    #[error("the path before answered but lost all data")]
    DataLost,
    /// The one before lost packets.
    #[error("the path before lost packets")]
    Lossy,
    /// The round trip of the one before was longer.
    #[error("its round trip is shorter")]
    Faster,
    /// The peer is heard from there and no more at the address before.
    #[error("the peer moved")]
    Moved,
    /// Our own side said so.
    #[error("as configured")]
    Configured,
}

/// One path's figures, for `warren path explain`.
#[derive(Debug, Clone, PartialEq)]
pub struct PathStats {
    /// Remote address; a mesh address when over other nodes.
    pub address: SocketAddr,
    /// How it gets there.
    pub kind: PathKind,
    /// Data goes here.
    pub active: bool,
    /// Whether it works.
    pub state: PathState,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Share lost of what went this way lately, 0 to 1.
    pub loss: Option<f64>,
    /// What paths are compared by: round trip plus what loss and relaying are
    /// held to be worth; `None` until measured.
    pub cost: Option<Duration>,
    /// Our own address as the peer sees it over this path.
    pub observed: Option<SocketAddr>,
    /// Since the last answer.
    pub answered: Option<Duration>,
    /// How much longer it has to prove itself, after failures, before traffic
    /// may come back to it.
    pub held_back: Option<Duration>,
}

/// The paths of one peer.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    list: Vec<Candidate>,
    active: Option<SocketAddr>,
    budget: Budget,
    progress: Progress,
    /// Last change of the active path.
    switched_ms: u64,
    /// Changes because of silence lately: (how many, the last one).
    unrest: (u32, u64),
    /// A path that is better than the active one, for how long, as of when.
    better: Option<(SocketAddr, u64, u64)>,
    /// Something came from a new address.
    moved: Option<(SocketAddr, u64)>,
    /// All paths were asked at once, because the active one missed a probe.
    alarm_ms: u64,
    /// Bursts were started over because the peer told its addresses.
    burst_ms: u64,
    /// Dead direct paths are being tried again: the peer should do so too.
    punch: bool,
    /// [`Self::lost`] was true.
    lost: bool,
}

impl Paths {
    fn find(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.list.iter_mut().find(|path| path.address == address)
    }

    fn get(&self, address: SocketAddr) -> Option<&Candidate> {
        self.list.iter().find(|path| path.address == address)
    }

    fn current(&self) -> Option<&Candidate> {
        self.active.and_then(|active| self.get(active))
    }

    /// Adds `address`, or its further origin; false when there is no room.
    fn add(&mut self, address: SocketAddr, origin: Origin) -> bool {
        if let Some(path) = self.find(address) {
            path.origins |= origin as u8;
            return true;
        }
        if self.list.len() >= MAX_PATHS && !self.make_room() {
            return false;
        }
        self.list.push(Candidate::new(address, origin));
        true
    }

    /// Removes the path that is missed least; false when all are in use.
    fn make_room(&mut self) -> bool {
        let active = self.active;
        let worst = self
            .list
            .iter()
            .enumerate()
            .filter(|(_, path)| {
                Some(path.address) != active
                    && path.phase != Phase::Proven
                    && path.origins & Origin::Configured as u8 == 0
            })
            .min_by_key(|(_, path)| (path.origins & Origin::Told as u8, path.last_sent_ms))
            .map(|(at, _)| at);
        worst.map(|at| self.list.remove(at)).is_some()
    }

    /// Replaces the addresses of one origin; all are [`admissible`].
    pub(crate) fn set(&mut self, origin: Origin, addresses: impl IntoIterator<Item = SocketAddr>) {
        for path in &mut self.list {
            path.origins &= !(origin as u8);
        }
        for address in addresses.into_iter().take(MAX_TOLD) {
            self.add(address, origin);
        }
        let active = self.active;
        self.list.retain(|path| {
            path.origins != 0 || Some(path.address) == active || path.phase == Phase::Proven
        });
    }

    /// The peer told its addresses and is probing ours: what has not answered
    /// is tried afresh, at most every 5 s.
    pub(crate) fn punch(&mut self, now_ms: u64) {
        if self.burst_ms > 0 && now_ms < self.burst_ms + schedule::BURST_AGAIN_MS {
            return;
        }
        self.burst_ms = now_ms;
        for path in &mut self.list {
            if !path.detour() && matches!(path.phase, Phase::Burst { .. } | Phase::Lapsed { .. }) {
                path.phase = Phase::Fresh;
            }
        }
    }

    /// An authenticated message came from `from`. If that is not known to work,
    /// it and the active path are probed at once. True when it is a new address.
    pub(crate) fn heard(&mut self, from: SocketAddr, now_ms: u64) -> bool {
        if self.active == Some(from) {
            return false;
        }
        let known = self.get(from).map(|path| {
            let works = path.phase == Phase::Proven && path.misses == 0 && path.fresh(now_ms);
            works || now_ms < path.last_sent_ms + HEARD_AGAIN_MS
        });
        if known == Some(true) {
            return false;
        }
        if known.is_none() {
            let heard = |path: &Candidate| path.origins == Origin::Heard as u8;
            if self.list.iter().filter(|path| heard(path)).count() >= MAX_HEARD {
                let active = self.active;
                let oldest = self
                    .list
                    .iter()
                    .enumerate()
                    .filter(|(_, path)| heard(path) && Some(path.address) != active)
                    .min_by_key(|(_, path)| path.last_sent_ms)
                    .map(|(at, _)| at);
                oldest.map(|at| self.list.remove(at));
            }
        }
        if !self.add(from, Origin::Heard) {
            return false;
        }
        self.moved = Some((from, now_ms));
        let active = self.active;
        for path in &mut self.list {
            if path.address == from {
                path.wake(now_ms);
            } else if Some(path.address) == active {
                path.due_ms = Some(now_ms);
            }
        }
        known.is_none()
    }

    /// Data goes to `to` from now on, whatever the choice would be.
    pub(crate) fn force(&mut self, to: SocketAddr, now_ms: u64) {
        if self.get(to).is_none() && !self.add(to, Origin::Heard) {
            // All in use: the newest evidence counts more than the last of them.
            self.list.pop();
            self.add(to, Origin::Heard);
        }
        if self.active != Some(to) {
            self.active = Some(to);
            self.switched_ms = now_ms;
            self.progress.restart();
            self.better = None;
        }
    }

    /// A handshake's response came from `from`, `rtt_us` after what it answers
    /// (`None` when that is not certain).
    pub(crate) fn proven(&mut self, from: SocketAddr, rtt_us: Option<u64>, now_ms: u64) {
        if self.add(from, Origin::Heard)
            && let Some(path) = self.find(from)
        {
            path.proven(rtt_us, now_ms);
        }
    }

    /// True when the active path answered within the last 3 s.
    pub(crate) fn settled(&self, now_ms: u64) -> bool {
        self.current().is_some_and(|path| {
            path.phase == Phase::Proven && path.misses == 0 && path.fresh(now_ms)
        })
    }

    /// True when the active path answered whatever it was asked last.
    pub(crate) fn trusted(&self) -> bool {
        self.current().is_some_and(|path| path.phase == Phase::Proven && path.misses == 0)
    }

    /// The session is a new first one: probes under the last one are void.
    pub(crate) fn new_session(&mut self) {
        self.progress.restart();
        for path in &mut self.list {
            path.forget_probes();
        }
    }

    /// Takes an answer; see [`Answer`]. `None` when no such probe is out.
    pub(crate) fn answered(
        &mut self,
        id: u32,
        token: u64,
        received: Tally,
        observed: Option<SocketAddr>,
        now_ms: u64,
        now_us: u64,
    ) -> Option<Answer> {
        let active = self.active;
        let (path, mut answer) = self
            .list
            .iter_mut()
            .find_map(|path| path.answered(id, token, now_ms, now_us).map(|a| (path, a)))?;
        if observed.is_some() {
            answer.observed = path.note_observed(observed, now_ms);
        }
        if active == Some(path.address) {
            answer.active = true;
            self.progress.note(answer.sent, received, now_ms);
        }
        Some(answer)
    }

    /// Smoothed round trip of the active path.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.current().and_then(Candidate::rtt)
    }

    /// Share of our data lost on the active path, if enough flows to know.
    pub(crate) fn data_loss(&self, now_ms: u64) -> Option<f64> {
        self.progress.loss(now_ms)
    }

    /// Share of echoes lost on the active path, there and back.
    pub(crate) fn echo_loss(&self, now_ms: u64) -> Option<f64> {
        self.current().and_then(|path| path.echo_loss(now_ms))
    }

    /// What the path to `address` was found to carry, inner bytes.
    pub(crate) fn mtu(&self, address: SocketAddr) -> Option<u32> {
        self.get(address).and_then(|path| path.mtu)
    }

    /// Remembers it.
    pub(crate) fn set_mtu(&mut self, address: SocketAddr, mtu: u32) {
        if let Some(path) = self.find(address) {
            path.mtu = Some(mtu);
        }
    }

    /// True when the active path leads over other nodes or a local proxy.
    pub(crate) fn is_detour(&self) -> bool {
        self.current().is_some_and(|path| path.detour())
    }

    /// Addresses a handshake may be tried at beside the active one: first those
    /// over other nodes (they work at once), then in order of cost.
    pub(crate) fn others(&self, now_ms: u64) -> Vec<SocketAddr> {
        let mut others: Vec<&Candidate> =
            self.list.iter().filter(|path| Some(path.address) != self.active).collect();
        others.sort_by_key(|path| (!path.detour(), path.cost_us(now_ms).unwrap_or(u64::MAX)));
        others.into_iter().map(|path| path.address).take(MAX_TOLD).collect()
    }

    /// All paths, the active one first, then by cost.
    pub(crate) fn stats(&self, now_ms: u64) -> Vec<PathStats> {
        let mut stats: Vec<PathStats> = self
            .list
            .iter()
            .map(|path| {
                let active = Some(path.address) == self.active;
                let data_loss = if active { self.progress.loss(now_ms) } else { None };
                PathStats {
                    active,
                    loss: data_loss.or_else(|| path.loss(now_ms)),
                    ..path.stats(now_ms)
                }
            })
            .collect();
        stats.sort_by_key(|path| (!path.active, path.cost.unwrap_or(Duration::MAX)));
        stats
    }
}

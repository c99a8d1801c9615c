//! Figures of this node for Prometheus: `GET /metrics`, where the operator asks
//! for it.
//!
//! In: a [`Snapshot`] of what the daemon counts anyway, taken by its loop at
//! most once a second. Out: the text of OpenMetrics 1.0, or of Prometheus 0.0.4
//! for those that know no better, served over TCP on loopback or on one of this
//! node's own mesh addresses. `docs/metrics.md` lists every metric; a test holds
//! it against [`families`].
//!
//! Invariants: no label holds an address, an endpoint, a destination, a user
//! name or a circuit's name, whatever the snapshot holds; a node with a role in
//! onion paths shows no series of single peers, so that nothing can be joined
//! with what passes through it; only peers with a session have series, however
//! many members there are. Deliberately not here: counting (that is done where
//! things happen), authentication, and TLS: who is to scrape from elsewhere does
//! so over the mesh or behind a reverse proxy.

pub mod families;
mod place;
mod serve;
mod text;

use std::time::Duration;

use warren_types::api::{OnionReport, Status};

pub use place::{bind, check, host_is_meant};
pub use serve::serve;
pub use text::{Format, text};

/// Why an onion session moved to another circuit: values of the label `reason`.
pub const MOVES: [&str; 5] = ["silent", "ended", "slower", "lossy", "rotation"];

/// How often things happened that the reports only tell the state of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Happened {
    /// Moves of the onion session to another circuit, as [`MOVES`].
    pub moves: [u64; MOVES.len()],
    /// No circuit of it was left.
    pub interruptions: u64,
    /// Its exit was lost, and its connections with it.
    pub exits_lost: u64,
}

/// What all metrics are made of.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// As of `GET /v1/status`, but only with the peers that have a session.
    pub status: Status,
    /// As of `GET /v1/onion`.
    pub onion: OnionReport,
    /// Members of the network that are known, this node included.
    pub members: usize,
    /// WireGuard clients of this node.
    pub clients: usize,
    /// Frames passed on between other members.
    pub relayed_frames: u64,
    /// When this node's certificate ends, seconds since 1970.
    pub certificate_end_s: Option<u64>,
    /// Counted since the start.
    pub happened: Happened,
    /// User and system time of the process.
    pub cpu: Option<Duration>,
    /// Memory resident now, bytes.
    pub resident: Option<u64>,
}

#[cfg(test)]
mod tests;

//! What `bench scale` found, as a table and as JSON.

use std::fmt;

use serde::Serialize;
use warren_lab::bench::Spread;

use super::farm::Progress;

/// Throughput of the daemon under test, times that with one peer, at least.
const BAR: f64 = 0.9;

/// Figures of one daemon.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    /// From its start until it answers, s.
    pub(super) start_s: f64,
    /// Resident memory before load, MB (10^6 bytes).
    pub(super) resident_mb: f64,
    /// And after the throughput rounds.
    pub(super) resident_after_mb: f64,
    /// Percent of one core without traffic of users.
    pub(super) idle_cpu: f64,
    /// `warren status --json`, program start included, ms.
    pub(super) status_ms: f64,
    /// Bytes it printed.
    pub(super) status_bytes: usize,
    /// One TCP stream.
    pub(super) gbps: Option<Spread>,
}

/// The whole.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    known: usize,
    active: usize,
    /// Processor cores.
    cores: usize,
    /// Kernel release.
    kernel: String,
    /// Runnable processes on average in the minute before.
    load_before: f64,
    /// A daemon with one peer.
    pub(super) small: Figures,
    /// The daemon under test, with all its active peers.
    pub(super) large: Figures,
    /// Its memory with all known and none active, MB.
    pub(super) known_resident_mb: f64,
    /// And its CPU, percent of one core.
    pub(super) known_idle_cpu: f64,
    /// From the start of the farm to the last link, s.
    pub(super) connect_s: f64,
    /// The daemon's CPU for each of them, ms.
    pub(super) connect_cpu_ms: f64,
    /// Answers to the farm's pings.
    pub(super) pongs_per_second: f64,
    /// Peers in `warren status`.
    pub(super) peers_listed: usize,
    /// Those with a link that is up.
    pub(super) peers_up: usize,
    /// Throughput with all, times that with one peer, round by round.
    pub(super) ratio: Option<Spread>,
    /// What the farm saw in the end.
    pub(super) farm: Option<Progress>,
}

impl Report {
    pub(super) fn new(known: usize, active: usize) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let load = read("/proc/loadavg");
        Self {
            known,
            active,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: load.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN),
            ..Self::default()
        }
    }

    pub(super) fn met(&self) -> bool {
        self.ratio.is_some_and(|ratio| ratio.median >= BAR)
    }
}

fn range(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |s| format!("{:.2} ({:.2}-{:.2})", s.median, s.min, s.max))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} cores, Linux {}, load before {}",
            self.cores, self.kernel, self.load_before
        )?;
        writeln!(f, "\n| | one peer | {} known | and {} active |", self.known, self.active)?;
        writeln!(f, "|---|---|---|---|")?;
        let (small, large) = (&self.small, &self.large);
        writeln!(f, "| start, s | {:.2} | {:.2} | |", small.start_s, large.start_s)?;
        writeln!(
            f,
            "| resident, MB | {:.1} | {:.1} | {:.1} |",
            small.resident_mb, self.known_resident_mb, large.resident_mb
        )?;
        writeln!(
            f,
            "| after load, MB | {:.1} | | {:.1} |",
            small.resident_after_mb, large.resident_after_mb
        )?;
        writeln!(
            f,
            "| idle, % of a core | {:.2} | {:.2} | {:.2} |",
            small.idle_cpu, self.known_idle_cpu, large.idle_cpu
        )?;
        writeln!(
            f,
            "| `warren status --json`, ms | {:.1} | | {:.1} ({} kB) |",
            small.status_ms,
            large.status_ms,
            large.status_bytes / 1000
        )?;
        writeln!(f, "| one TCP stream, Gb/s | {} | | {} |", range(small.gbps), range(large.gbps))?;
        writeln!(f, "\nthroughput with all, times that with one peer: {}", range(self.ratio))?;
        writeln!(
            f,
            "{} links in {:.2} s ({:.2} ms of CPU each); {} of {} peers up, {:.0} pongs a second",
            self.active,
            self.connect_s,
            self.connect_cpu_ms,
            self.peers_up,
            self.peers_listed,
            self.pongs_per_second
        )
    }
}

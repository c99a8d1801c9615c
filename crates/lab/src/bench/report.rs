//! Medians and ranges, their ratios against the bars the project set itself,
//! as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::Serialize;

use super::measure::Run;
use super::{Contender, Plan};
use crate::topology::Underlay;

/// Outcome of a [`Plan`].
#[derive(Debug, Serialize)]
pub struct Report {
    /// Processor cores of the machine.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Runnable processes on average in the minute before: figures of a busy
    /// machine say little, above all its worst pings.
    pub load_before: f64,
    /// `direct`, `nic` or `off`.
    pub underlay: &'static str,
    /// Rounds.
    pub repeat: u32,
    /// Seconds of each TCP measurement.
    pub seconds: u32,
    /// Contenders in the order of the table.
    pub results: Vec<Row>,
    /// Ratios against the bars.
    pub bars: Vec<Bar>,
    /// Contenders without a program, and how to get it.
    pub missing: BTreeMap<String, String>,
    /// Contenders that did not work, and why.
    pub failed: BTreeMap<String, String>,
}

/// One contender's figures.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub contender: &'static str,
    /// Median and range of each figure that was measured.
    pub figures: BTreeMap<&'static str, Spread>,
    /// Every round.
    pub runs: Vec<Run>,
}

/// Median and range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Median (of an even number: the mean of the middle two).
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of values in any order; `None` without any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self { median, min, max })
    }
}

/// One requirement and what was reached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bar {
    /// What is compared.
    pub what: String,
    /// Reached.
    pub value: f64,
    /// Required: at least this, or at most if `at_most`.
    pub required: f64,
    /// True when smaller is better.
    pub at_most: bool,
    /// Whether it is met.
    pub met: bool,
}

type Figure = (&'static str, fn(&Run) -> Option<f64>);

/// Figures in the order of the table.
const FIGURES: &[Figure] = &[
    ("tcp_one_gbps", |run| Some(run.tcp_one.gbps)),
    ("tcp_one_cpu_s_per_gb", |run| Some(run.tcp_one.cpu_s_per_gb)),
    ("tcp_four_gbps", |run| Some(run.tcp_four.gbps)),
    ("tcp_both_gbps", |run| Some(run.tcp_both.gbps)),
    ("udp_64_kpps", |run| run.udp_64_kpps),
    ("udp_1200_kpps", |run| run.udp_1200_kpps),
    ("ping_mean_ms", |run| Some(run.ping_mean_ms)),
    ("ping_worst_ms", |run| Some(run.ping_worst_ms)),
    ("resident_mb", |run| run.resident_mb),
    ("resident_after_mb", |run| run.resident_after_mb),
    ("idle_peer_kib", |run| run.idle_peer_kib),
];

/// Columns of the table: figure, heading, digits.
const COLUMNS: &[(&str, &str, usize)] = &[
    ("tcp_one_gbps", "Gb/s", 2),
    ("tcp_one_cpu_s_per_gb", "CPU s/GB", 2),
    ("tcp_four_gbps", "4 streams", 2),
    ("tcp_both_gbps", "both ways", 2),
    ("udp_64_kpps", "64 B kpps", 0),
    ("udp_1200_kpps", "1200 B kpps", 0),
    ("ping_mean_ms", "ping ms", 3),
    ("ping_worst_ms", "worst ms", 3),
    ("resident_mb", "MB", 1),
    ("resident_after_mb", "MB after", 1),
    ("idle_peer_kib", "KiB/peer", 1),
];

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            load_before: load.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
            underlay: plan.underlay.name(),
            repeat: plan.repeat,
            seconds: plan.seconds,
            results: vec![],
            bars: vec![],
            missing: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    pub(super) fn conclude(&mut self, runs: BTreeMap<Contender, Vec<Run>>) {
        self.results = runs
            .into_iter()
            .map(|(contender, runs)| Row {
                contender: contender.name(),
                figures: FIGURES
                    .iter()
                    .filter_map(|(name, figure)| {
                        Some((*name, Spread::of(runs.iter().filter_map(figure))?))
                    })
                    .collect(),
                runs,
            })
            .collect();
        self.bars = self.compare();
    }

    fn median(&self, contender: Contender, figure: &str) -> Option<f64> {
        let row = self.results.iter().find(|row| row.contender == contender.name())?;
        row.figures.get(figure).map(|spread| spread.median)
    }

    /// The bars that the measured contenders allow to judge.
    fn compare(&self) -> Vec<Bar> {
        use Contender::{
            Boringtun, Gotatun, Nebula, WarrenAes, WarrenChacha, WarrenToWireguardGo, WireguardGo,
        };
        let mut bars = Vec::new();
        let mut bar = |what: &str, value: Option<f64>, required: f64, at_most: bool| {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                let met = if at_most { value <= required } else { value >= required };
                bars.push(Bar { what: what.to_owned(), value, required, at_most, met });
            }
        };
        let of = |contender, figure| self.median(contender, figure);
        let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
        let (speed, cpu) = ("tcp_one_gbps", "tcp_one_cpu_s_per_gb");

        // A link without offloads leaves less to win.
        let (faster, cheaper) = match self.underlay {
            name if name == Underlay::Nic.name() => (2.5, 2.5),
            name if name == Underlay::Off.name() => (2.0, 2.0),
            _ => (3.0, 3.5),
        };
        bar(
            "AES, one stream: times wireguard-go's Gb/s",
            ratio(of(WarrenAes, speed), of(WireguardGo, speed)),
            faster,
            false,
        );
        bar(
            "AES, one stream: times wireguard-go's bytes per CPU second",
            ratio(of(WireguardGo, cpu), of(WarrenAes, cpu)),
            cheaper,
            false,
        );
        bar(
            "AES: four streams, times one",
            ratio(of(WarrenAes, "tcp_four_gbps"), of(WarrenAes, speed)),
            1.0,
            false,
        );
        // The rest is asked of the link with all its offloads.
        if self.underlay != Underlay::Direct.name() {
            return bars;
        }
        bar(
            "AES: both directions at once, times one",
            ratio(of(WarrenAes, "tcp_both_gbps"), of(WarrenAes, speed)),
            1.3,
            false,
        );
        bar(
            "ChaCha20, one stream: times wireguard-go's Gb/s",
            ratio(of(WarrenChacha, speed), of(WireguardGo, speed)),
            1.7,
            false,
        );
        bar(
            "Warren to wireguard-go: times wireguard-go with itself",
            ratio(of(WarrenToWireguardGo, speed), of(WireguardGo, speed)),
            1.0,
            false,
        );
        for (figure, size) in [("udp_64_kpps", 64), ("udp_1200_kpps", 1200)] {
            bar(
                &format!("UDP {size} B: times nebula's packets per second"),
                ratio(of(WarrenAes, figure), of(Nebula, figure)),
                1.1,
                false,
            );
        }
        let pings = [WireguardGo, Gotatun, Boringtun].map(|peer| of(peer, "ping_mean_ms"));
        let lowest = pings.into_iter().flatten().min_by(f64::total_cmp);
        bar(
            "ping mean: times the lowest of wireguard-go, gotatun, boringtun",
            ratio(of(WarrenAes, "ping_mean_ms"), lowest),
            1.0,
            true,
        );
        bar("ping, worst of 100, ms", of(WarrenAes, "ping_worst_ms"), 1.0, true);
        bar("resident with one peer, MB", of(WarrenAes, "resident_mb"), 20.0, true);
        bar("resident after load, MB", of(WarrenAes, "resident_after_mb"), 20.0, true);
        bar("memory per idle peer, KiB", of(WarrenAes, "idle_peer_kib"), 12.0, true);
        bars
    }

    /// True when every bar that could be judged is met and nothing of ours failed.
    #[must_use]
    pub fn all_met(&self) -> bool {
        self.bars.iter().all(|bar| bar.met)
            && !Contender::ALL
                .iter()
                .any(|contender| contender.is_ours() && self.failed.contains_key(contender.name()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} cores, Linux {}, load {:.1} before, underlay {}, median (range) of {}, {} s each",
            self.cores, self.kernel, self.load_before, self.underlay, self.repeat, self.seconds
        )?;
        write!(f, "| {:22} |", "")?;
        for (_, heading, _) in COLUMNS {
            write!(f, " {heading} |")?;
        }
        write!(f, "\n|---|{}\n", "---|".repeat(COLUMNS.len()))?;
        for row in &self.results {
            write!(f, "| {:22} |", row.contender)?;
            for (figure, heading, digits) in COLUMNS {
                let mut cell = String::new();
                match row.figures.get(figure) {
                    Some(spread) => {
                        write!(cell, "{:.digits$}", spread.median)?;
                        if row.runs.len() > 1 && *figure != "idle_peer_kib" {
                            write!(cell, " ({:.digits$}-{:.digits$})", spread.min, spread.max)?;
                        }
                    }
                    None => cell.push('-'),
                }
                write!(f, " {cell:width$} |", width = heading.len())?;
            }
            writeln!(f)?;
        }
        for bar in &self.bars {
            let (verdict, relation) =
                (if bar.met { "met   " } else { "MISSED" }, if bar.at_most { "<=" } else { ">=" });
            writeln!(f, "{verdict} {:.2} {relation} {}: {}", bar.value, bar.required, bar.what)?;
        }
        for (name, why) in &self.missing {
            writeln!(f, "missing {name}: {why}")?;
        }
        for (name, why) in &self.failed {
            writeln!(f, "failed  {name}: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::Tcp;
    use super::*;

    fn run(gbps: f64, ping: f64) -> Run {
        let tcp = Tcp { gbps, cpu_s_per_gb: 4.0 / gbps, retransmits: 0 };
        Run {
            tcp_one: tcp,
            tcp_four: tcp,
            tcp_both: Tcp { gbps: gbps * 1.5, ..tcp },
            udp_64_kpps: None,
            udp_1200_kpps: None,
            ping_mean_ms: ping,
            ping_worst_ms: ping * 2.0,
            resident_mb: Some(12.0),
            resident_after_mb: Some(14.0),
            idle_peer_kib: None,
        }
    }

    fn report(ours: &[f64]) -> Report {
        let plan = Plan {
            contenders: vec![],
            underlay: Underlay::Direct,
            repeat: 3,
            seconds: 1,
            tcp_only: true,
            peer_paths: vec![],
        };
        let mut report = Report::new(&plan);
        report.conclude(BTreeMap::from([
            (Contender::WarrenAes, ours.iter().map(|gbps| run(*gbps, 0.1)).collect()),
            (Contender::WireguardGo, vec![run(2.0, 0.4), run(2.0, 0.2), run(2.5, 0.3)]),
        ]));
        report
    }

    #[test]
    fn medians_are_compared_and_outliers_ignored() {
        let report = report(&[8.0, 1.0, 9.0]);
        let bar = &report.bars[0];
        assert!((bar.value - 4.0).abs() < 1e-9, "{bar:?}");
        assert!(report.all_met(), "{report}");
        assert!(report.to_string().contains("8.00 (1.00-9.00)"), "{report}");
        assert!(!report.bars.iter().any(|bar| bar.what.contains("nebula")));
    }

    #[test]
    fn a_missed_bar_is_loud() {
        let report = report(&[3.0]);
        assert!(!report.all_met());
        assert!(report.to_string().contains("MISSED 1.50 >= 3"), "{report}");
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert!(Spread::of([]).is_none());
    }
}

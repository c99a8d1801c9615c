//! Drawing nodes by weight.
//!
//! The weight of a node is its residual capacity, times how long it has been up,
//! times its reputation. Capacity is the owner's claim, so it counts up to ten
//! times the median only: nobody draws the network to itself by a large number.

use super::candidate::Candidate;
use super::draw::Draws;

/// What a node that does not say is taken to give, bits per second.
const UNSAID_BANDWIDTH: f64 = 100e6;
/// A claim counts up to this many times the median.
const MEDIANS: f64 = 10.0;
/// Up for a day counts half of what up for ever does.
const HALF_UPTIME_S: f64 = 86_400.0;
/// The least that being up counts: a fresh network must work.
const MIN_UPTIME: f64 = 0.05;
/// The least that load leaves: a full node is a last resort, not none.
const MIN_RESIDUAL: f64 = 0.02;
/// Draws that may meet a node that does not fit before all are looked at.
const TRIES: usize = 12;

fn capacity(node: &Candidate) -> f64 {
    node.bandwidth.map_or(UNSAID_BANDWIDTH, |b| b.bits_per_second() as f64)
}

/// A share as given, with what is no number as `otherwise`.
pub(super) fn share(value: f32, otherwise: f64) -> f64 {
    if value.is_finite() { f64::from(value).clamp(0.0, 1.0) } else { otherwise }
}

/// The weight of each candidate, in their order.
pub(super) fn weights(candidates: &[Candidate]) -> Vec<f64> {
    let mut claims: Vec<f64> = candidates.iter().map(capacity).collect();
    claims.sort_by(f64::total_cmp);
    let cap = claims.get(claims.len() / 2).copied().unwrap_or(UNSAID_BANDWIDTH) * MEDIANS;
    let of = |node: &Candidate| {
        let residual = (1.0 - share(node.load, 1.0)).max(MIN_RESIDUAL);
        let uptime = node.uptime_s as f64;
        let uptime = (uptime / (uptime + HALF_UPTIME_S)).max(MIN_UPTIME);
        // In Mbit/s, so that the numbers can be read.
        capacity(node).min(cap) / 1e6 * residual * uptime * share(node.reputation, 0.0)
    };
    candidates.iter().map(of).collect()
}

/// Some candidates, by index, with their weights.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    members: Vec<usize>,
    /// Sums of the weights up to each.
    sums: Vec<f64>,
}

impl Pool {
    /// `members` with the weights of each; where all are zero, all are alike.
    pub(super) fn new(members: Vec<usize>, weights: &[f64]) -> Self {
        let none = members.iter().all(|at| weights[*at] <= 0.0);
        let mut total = 0.0;
        let sums = members
            .iter()
            .map(|at| {
                total += if none { 1.0 } else { weights[*at] };
                total
            })
            .collect();
        Self { members, sums }
    }

    /// `members`, each as likely.
    pub(super) fn even(members: Vec<usize>) -> Self {
        let sums = (1..=members.len()).map(|n| n as f64).collect();
        Self { members, sums }
    }

    pub(super) fn members(&self) -> &[usize] {
        &self.members
    }

    fn at(&self, point: f64) -> Option<usize> {
        let at = self.sums.partition_point(|sum| *sum <= point);
        self.members.get(at.min(self.members.len().saturating_sub(1))).copied()
    }

    /// One that fits, by weight among those that do; `None` when none does.
    pub(super) fn draw(&self, draws: &mut Draws, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let total = *self.sums.last()?;
        for _ in 0..TRIES {
            let found = self.at(draws.unit() * total)?;
            if fits(found) {
                return Some(found);
            }
        }
        let mut before = 0.0;
        let mut rest: Vec<(usize, f64)> = Vec::new();
        let mut sum = 0.0;
        for (member, upto) in self.members.iter().zip(&self.sums) {
            let weight = upto - before;
            before = *upto;
            if fits(*member) {
                sum += weight;
                rest.push((*member, sum));
            }
        }
        let point = draws.unit() * sum;
        let at = rest.partition_point(|(_, upto)| *upto <= point);
        rest.get(at.min(rest.len().saturating_sub(1))).map(|(member, _)| *member)
    }
}

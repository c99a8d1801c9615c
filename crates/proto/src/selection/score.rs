//! What a path is expected to do.

use serde::{Deserialize, Serialize};

use super::candidate::{Candidate, Measure, Measurements, Own};
use super::constraints::ExitChoice;
use super::geography::{UNKNOWN_RTT_US, estimated_rtt_us};
use super::pool::share;

/// One per cent of loss is as bad as this many milliseconds.
const MS_PER_PERCENT_LOSS: f64 = 20.0;
/// A path whose busiest hop is full is as bad as one this much slower,
/// milliseconds; half full, a quarter of it.
const MS_FULL_LOAD: f64 = 100.0;
/// How far above the best a path may be and still be likely, as a share of the
/// best's cost: paths that much worse are e times less likely.
const SPREAD: f64 = 0.2;
/// And at least, milliseconds: estimates are not better than that.
const MIN_SPREAD_MS: f64 = 5.0;

/// What a path is expected to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Round trip from us to the exit (and on to the point asked for, with
    /// `nearest`), microseconds: measured where it was, else by distance.
    pub rtt_us: u32,
    /// How many of its segments were measured.
    pub measured: u8,
    /// Share of packets lost, 0 to 1.
    pub loss: f32,
    /// Load of the busiest hop, 0 to 1.
    pub load: f32,
    /// All of it in one number, milliseconds: smaller is better.
    pub cost_ms: f64,
}

fn segment(
    measured: Option<Measure>,
    a: Option<&warren_types::Place>,
    b: Option<&warren_types::Place>,
) -> (u32, f64, bool) {
    match (measured, a, b) {
        (Some(m), ..) => (m.rtt_us, share(m.loss, 1.0), true),
        (None, Some(a), Some(b)) => {
            (estimated_rtt_us(a.coordinates(), b.coordinates()), 0.0, false)
        }
        _ => (UNKNOWN_RTT_US, 0.0, false),
    }
}

/// Predicts the path over `hops`, entry first.
pub(super) fn predict(
    own: &Own,
    hops: &[&Candidate],
    measurements: &Measurements,
    exit: ExitChoice,
) -> Predicted {
    let (mut rtt_us, mut arriving, mut measured, mut load) = (0_u32, 1.0, 0, 0.0_f64);
    let mut before: Option<&Candidate> = None;
    for hop in hops {
        let (known, from) = match before {
            None => {
                let known = hop.direct.or_else(|| measurements.get(own.id, hop.id));
                (known, own.place.as_ref())
            }
            Some(last) => (measurements.get(last.id, hop.id), last.place.as_ref()),
        };
        let (rtt, loss, was_measured) = segment(known, from, hop.place.as_ref());
        rtt_us = rtt_us.saturating_add(rtt);
        arriving *= 1.0 - loss;
        measured += u8::from(was_measured);
        load = load.max(share(hop.load, 1.0));
        before = Some(hop);
    }
    if let (ExitChoice::Nearest(point), Some(last)) = (exit, before) {
        let onward = last
            .place
            .as_ref()
            .map_or(UNKNOWN_RTT_US, |place| estimated_rtt_us(place.coordinates(), point));
        rtt_us = rtt_us.saturating_add(onward);
    }
    let loss = 1.0 - arriving;
    let cost_ms =
        f64::from(rtt_us) / 1e3 + loss * 100.0 * MS_PER_PERCENT_LOSS + load * load * MS_FULL_LOAD;
    Predicted { rtt_us, measured, loss: loss as f32, load: load as f32, cost_ms }
}

/// The probability of each path, by its cost and how often it was sampled.
pub(super) fn soft_min(paths: &[(f64, u32)]) -> Vec<f64> {
    let best = paths.iter().map(|(cost, _)| *cost).fold(f64::INFINITY, f64::min);
    let spread = (best * SPREAD).max(MIN_SPREAD_MS);
    let raw: Vec<f64> = paths
        .iter()
        .map(|(cost, times)| f64::from(*times) * ((best - cost) / spread).exp())
        .collect();
    let total: f64 = raw.iter().sum();
    raw.into_iter().map(|p| p / total).collect()
}

//! Which nodes make an onion path.
//!
//! In: what is known of all members ([`Candidate`]), of ourselves ([`Own`]),
//! what was measured ([`Measurements`]), what the user wants ([`Constraints`]),
//! the pinned guards ([`GuardState`]) and a seed. Out: a [`Choice`], or a
//! [`SelectionError`] that says which rule left nothing over and what would relax
//! it; and an [`Explanation`] that anyone can recompute.
//! Invariants: a path has exactly as many hops as asked, all different, none of
//! them ourselves, no two of one family or one public network; every rule of the
//! constraints holds for every path returned; the same inputs and the same seed
//! give the same choice. Where a path exists, one is found. Times in seconds and
//! microseconds as named, bandwidth in bits per second. Deliberately not here:
//! building circuits, measuring, telling when a circuit is dead, and which nodes
//! a further path keeps apart from (it is another choice, that avoids them).
//!
//! The parts: `filter` judges each candidate alone, `pool` draws by weight,
//! `search` puts whole paths together, `score` predicts what they do, `choose`
//! joins these, `blame` says why there is nothing, `guards` keeps the entries,
//! `explain` writes it all down.

mod blame;
mod candidate;
mod choose;
mod constraints;
mod draw;
mod error;
mod explain;
mod filter;
mod geography;
mod guards;
mod pool;
mod score;
mod search;

pub use candidate::{Candidate, Measure, Measurements, Own};
pub use choose::{Choice, Hop, Input, Sampled, choose};
pub use constraints::{Avoid, Constraints, EntryChoice, ExitChoice, MAX_HOPS, PortNeed};
pub use draw::Seed;
pub use error::SelectionError;
pub use explain::{
    Explanation, Mismatch, Outcome, PositionReport, Removal, explain, recompute, verify,
};
pub use filter::{Position, Rule, STALE_AFTER_S};
pub use geography::{distance_km, estimated_rtt_us};
pub use guards::{Guard, GuardState};
pub use score::Predicted;

#[cfg(test)]
mod tests;

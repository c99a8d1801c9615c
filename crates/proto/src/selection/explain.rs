//! A choice written down so that anyone can make it again.

use serde::{Deserialize, Serialize};

use super::candidate::{Candidate, Measurements, Own};
use super::choose::{Choice, Input, Run, Sampled};
use super::constraints::Constraints;
use super::draw::Seed;
use super::error::SelectionError;
use super::filter::{Position, Rule};
use super::guards::GuardState;

/// Largest difference between a recorded and a recomputed figure, as a share:
/// machines round `exp` and `sin` differently in the last digits.
const TOLERANCE: f64 = 1e-9;

/// How many candidates one rule removed at one position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The rule.
    pub rule: Rule,
    /// How many it was the first to refuse.
    pub count: usize,
}

/// What the rules left at one position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionReport {
    /// The position.
    pub position: Position,
    /// Candidates looked at.
    pub considered: usize,
    /// Candidates left.
    pub left: usize,
    /// Who removed the rest.
    pub removed: Vec<Removal>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A path.
    Chosen(Choice),
    /// None, and why.
    Failed(SelectionError),
}

/// A choice with everything that went into it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Ourselves, as far as it counted.
    pub own: Own,
    /// Every candidate as it was known.
    pub candidates: Vec<Candidate>,
    /// Every measurement.
    pub measurements: Measurements,
    /// What was wanted.
    pub constraints: Constraints,
    /// The guards.
    pub guards: Option<GuardState>,
    /// What all draws follow from.
    pub seed: Seed,
    /// What the rules left at each position.
    pub positions: Vec<PositionReport>,
    /// The weight of each candidate, in their order.
    pub weights: Vec<f64>,
    /// The paths sampled.
    pub sampled: Vec<Sampled>,
    /// What came out.
    pub outcome: Outcome,
}

/// Where a recorded choice and a recomputed one part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The rules leave other candidates.
    #[error("the rules do not leave the candidates that are recorded")]
    Positions,
    /// Weights differ.
    #[error("the weights are not those recorded")]
    Weights,
    /// Other paths, or with other figures, are sampled.
    #[error("the sampled paths or their figures are not those recorded")]
    Sampled,
    /// Another path is chosen.
    #[error("the inputs recorded give another path than the one recorded")]
    Outcome,
}

/// Makes a choice as [`super::choose`] does, and writes all of it down.
pub fn explain(input: &Input<'_>, seed: Seed) -> Explanation {
    let run = Run::new(input);
    let (sampled, result) = run.finish(seed);
    Explanation {
        own: input.own.clone(),
        candidates: input.candidates.to_vec(),
        measurements: input.measurements.clone(),
        constraints: input.constraints.clone(),
        guards: input.guards.cloned(),
        seed,
        positions: run.reports(),
        weights: run.weights,
        sampled,
        outcome: match result {
            Ok(choice) => Outcome::Chosen(choice),
            Err(error) => Outcome::Failed(error),
        },
    }
}

/// Makes the choice again, from the recorded inputs and seed alone.
pub fn recompute(recorded: &Explanation) -> Explanation {
    let input = Input {
        own: &recorded.own,
        candidates: &recorded.candidates,
        measurements: &recorded.measurements,
        constraints: &recorded.constraints,
        guards: recorded.guards.as_ref(),
    };
    explain(&input, recorded.seed)
}

/// Checks that everything recorded follows from the recorded inputs.
///
/// # Errors
/// [`Mismatch`]: the first thing that does not.
pub fn verify(recorded: &Explanation) -> Result<(), Mismatch> {
    let again = recompute(recorded);
    if again.positions != recorded.positions {
        return Err(Mismatch::Positions);
    }
    let near = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1.0);
    let same_weights = again.weights.len() == recorded.weights.len()
        && again.weights.iter().zip(&recorded.weights).all(|(a, b)| near(*a, *b));
    if !same_weights {
        return Err(Mismatch::Weights);
    }
    let same = |a: &Sampled, b: &Sampled| {
        a.hops == b.hops
            && a.times == b.times
            && near(a.probability, b.probability)
            && near(a.predicted.cost_ms, b.predicted.cost_ms)
            && a.predicted.rtt_us.abs_diff(b.predicted.rtt_us) <= 4
    };
    let same_paths = again.sampled.len() == recorded.sampled.len()
        && again.sampled.iter().zip(&recorded.sampled).all(|(a, b)| same(a, b));
    if !same_paths {
        return Err(Mismatch::Sampled);
    }
    let hops = |choice: &Choice| -> Vec<_> { choice.hops.iter().map(|hop| hop.id).collect() };
    let equal = match (&again.outcome, &recorded.outcome) {
        (Outcome::Chosen(a), Outcome::Chosen(b)) => {
            hops(a) == hops(b) && near(a.probability, b.probability)
        }
        (Outcome::Failed(a), Outcome::Failed(b)) => a == b,
        _ => false,
    };
    if equal { Ok(()) } else { Err(Mismatch::Outcome) }
}

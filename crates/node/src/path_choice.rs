//! The explanation of a path's choice for people, and made again from a file.

use std::fmt::Write;

use warren_proto::selection::{Explanation, Outcome, verify};

use crate::fault::{Fault, FaultKind};

/// Most sampled paths that are shown.
const SHOWN: usize = 8;

/// Makes a recorded choice again.
///
/// # Errors
/// When it is none, or does not follow from its inputs.
pub fn recompute(text: &str) -> Result<(), Fault> {
    let recorded: Explanation = serde_json::from_str(text).map_err(|e| {
        Fault::new(FaultKind::Usage, format!("this is no explanation of a path: {e}"))
            .remedy("`warren path explain --json` writes one")
    })?;
    verify(&recorded).map_err(|e| Fault::new(FaultKind::Refused, e.to_string()))
}

/// What was wanted, what was left out and why, what was drawn, what was taken.
pub fn describe(explanation: &Explanation) -> String {
    let mut text = String::new();
    let name = |id: &warren_types::NodeId| {
        explanation
            .candidates
            .iter()
            .find(|candidate| candidate.id == *id)
            .map_or_else(|| id.to_string(), |candidate| candidate.name.to_string())
    };
    match &explanation.outcome {
        Outcome::Chosen(choice) => {
            let hops: Vec<&str> = choice.hops.iter().map(|hop| hop.name.as_str()).collect();
            let _ = writeln!(text, "chosen: {}", hops.join(" > "));
            let _ = writeln!(
                text,
                "  expected: {:.1} ms to the exit and back, {:.1} % lost, load {:.0} %; cost {:.1} \
                 (lower is better), taken with probability {:.0} %",
                f64::from(choice.predicted.rtt_us) / 1e3,
                choice.predicted.loss * 100.0,
                choice.predicted.load * 100.0,
                choice.predicted.cost_ms,
                choice.probability * 100.0
            );
        }
        Outcome::Failed(error) => {
            let _ = writeln!(text, "no path: {error}");
        }
    }
    text.push_str("\nCandidates\n");
    for position in &explanation.positions {
        let _ = write!(
            text,
            "  {}: {} of {} can be used",
            position.position.as_str(),
            position.left,
            position.considered
        );
        for removal in &position.removed {
            let _ = write!(text, "; {} not: {}", removal.count, removal.rule.as_str());
        }
        text.push('\n');
    }
    if let Some(guards) = &explanation.guards {
        let names: Vec<&str> = guards.guards().iter().map(|guard| guard.name.as_str()).collect();
        let _ = writeln!(text, "  guards (entries pinned for months): {}", names.join(", "));
    }
    text.push_str("\nWeights (what it gives x uptime x reputation)\n");
    let mut weights: Vec<_> = explanation.candidates.iter().zip(&explanation.weights).collect();
    weights.sort_by(|a, b| b.1.total_cmp(a.1));
    for (candidate, weight) in weights.iter().take(SHOWN) {
        let _ = writeln!(text, "  {:<20} {weight:.3}", candidate.name.as_str());
    }
    text.push_str("\nPaths drawn by weight, and how likely each was then by its expected cost\n");
    let mut sampled: Vec<_> = explanation.sampled.iter().collect();
    sampled.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    for path in sampled.iter().take(SHOWN) {
        let hops: Vec<String> = path.hops.iter().map(name).collect();
        let _ = writeln!(
            text,
            "  {:>5.1} %  {:>7.1} ms  drawn {:>2} times  {}",
            path.probability * 100.0,
            path.predicted.cost_ms,
            path.times,
            hops.join(" > ")
        );
    }
    if sampled.len() > SHOWN {
        let _ = writeln!(text, "  and {} more", sampled.len() - SHOWN);
    }
    text.push_str(
        "\n`warren path explain --json` has every input; `warren path explain --recompute FILE` \
         makes the choice again from it\n",
    );
    text
}

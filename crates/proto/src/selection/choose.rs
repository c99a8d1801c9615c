//! From candidates to one path.

use serde::{Deserialize, Serialize};
use warren_types::{NodeId, NodeName, Place};

use super::blame::removals;
use super::candidate::{Candidate, Measurements, Own};
use super::constraints::{Constraints, ExitChoice, MAX_HOPS};
use super::draw::{Draws, Seed};
use super::error::SelectionError;
use super::explain::PositionReport;
use super::filter::{Position, Refusals, Rule, judge};
use super::geography::distance_km;
use super::guards::GuardState;
use super::pool::{Pool, weights};
use super::score::{self, Predicted, soft_min};
use super::search::{Conflicts, Positions, by_chance, exhaustively};

/// Paths sampled for one choice.
const SAMPLES: usize = 64;
/// Least number of exits among which `nearest` chooses.
pub(super) const NEAREST: usize = 8;

/// All that a choice depends on, besides the seed.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Ourselves.
    pub own: &'a Own,
    /// All members with a role; ids are different.
    pub candidates: &'a [Candidate],
    /// What was measured between them.
    pub measurements: &'a Measurements,
    /// What the user wants.
    pub constraints: &'a Constraints,
    /// The pinned guards; `None`: any entry will do.
    pub guards: Option<&'a GuardState>,
}

/// One hop of a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Where it says it is.
    pub place: Option<Place>,
    /// What it does here.
    pub position: Position,
}

/// A path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Its hops, entry first.
    pub hops: Vec<Hop>,
    /// What it is expected to do.
    pub predicted: Predicted,
    /// With which probability it was chosen among the paths sampled.
    pub probability: f64,
}

/// A sampled path and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// The nodes, entry first.
    pub hops: Vec<NodeId>,
    /// How often it was sampled.
    pub times: u32,
    /// What it is expected to do.
    pub predicted: Predicted,
    /// The probability it was given.
    pub probability: f64,
}

/// Chooses a path.
///
/// # Errors
/// [`SelectionError`] when no path keeps all rules; it names the rule.
pub fn choose(input: &Input<'_>, seed: Seed) -> Result<Choice, SelectionError> {
    Run::new(input).finish(seed).1
}

/// One choice under way.
pub(super) struct Run<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) weights: Vec<f64>,
    /// What refuses each candidate, by position.
    pub(super) entry: Vec<Refusals>,
    pub(super) relay: Vec<Refusals>,
    pub(super) exit: Vec<Refusals>,
}

pub(super) fn left(refusals: &[Refusals]) -> Vec<usize> {
    (0..refusals.len()).filter(|at| refusals[*at].is_empty()).collect()
}

impl<'a> Run<'a> {
    pub(super) fn new(input: &'a Input<'a>) -> Self {
        let of = |position| -> Vec<Refusals> {
            // A path of one hop has no entry of its own.
            let guards = input.guards.filter(|_| input.constraints.hops >= 2);
            let all = input.candidates.iter();
            all.map(|node| judge(node, position, input.own, input.constraints, guards)).collect()
        };
        let mut run = Self {
            input,
            weights: weights(input.candidates),
            entry: of(Position::Entry),
            relay: of(Position::Relay),
            exit: of(Position::Exit),
        };
        run.keep_nearest();
        run
    }

    /// Leaves the eight nearest exits, and those that are as near as the eighth.
    fn keep_nearest(&mut self) {
        let ExitChoice::Nearest(point) = self.input.constraints.exit else { return };
        let distance = |at: usize| {
            let place = self.input.candidates[at].place.as_ref();
            place.map_or(f64::INFINITY, |place| distance_km(place.coordinates(), point))
        };
        let mut exits: Vec<(f64, usize)> =
            left(&self.exit).into_iter().map(|at| (distance(at), at)).collect();
        exits.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let Some(edge) = exits.get(NEAREST - 1).map(|(km, _)| *km) else { return };
        for (km, at) in exits {
            if km > edge {
                self.exit[at].add(Rule::NotNearest);
            }
        }
    }

    fn positions(&self) -> Vec<(Position, &[Refusals])> {
        let hops = self.input.constraints.hops;
        let mut all: Vec<(Position, &[Refusals])> = vec![(Position::Exit, &self.exit)];
        if hops >= 2 {
            all.push((Position::Entry, &self.entry));
        }
        if hops >= 3 {
            all.push((Position::Relay, &self.relay));
        }
        all
    }

    /// What each rule removed at each position that the path has.
    pub(super) fn reports(&self) -> Vec<PositionReport> {
        self.positions()
            .into_iter()
            .map(|(position, refusals)| PositionReport {
                position,
                considered: refusals.len(),
                left: left(refusals).len(),
                removed: removals(refusals),
            })
            .collect()
    }

    /// The whole choice: sampled paths, and the result.
    pub(super) fn finish(&self, seed: Seed) -> (Vec<Sampled>, Result<Choice, SelectionError>) {
        let constraints = self.input.constraints;
        if !(1..=MAX_HOPS).contains(&constraints.hops) {
            return (Vec::new(), Err(SelectionError::Hops(constraints.hops)));
        }
        for (position, refusals) in self.positions() {
            if left(refusals).is_empty() {
                return (Vec::new(), Err(self.empty(position, refusals)));
            }
        }
        let mut draws = Draws::new(seed);
        let Some(paths) = self.sample(&self.conflicts(None), &mut draws) else {
            return (Vec::new(), Err(self.no_path()));
        };
        let scored: Vec<(Vec<usize>, u32, Predicted)> = paths
            .into_iter()
            .map(|(path, times)| {
                let predicted = self.predict(&path);
                (path, times, predicted)
            })
            .collect();
        let costs: Vec<(f64, u32)> = scored.iter().map(|(_, n, p)| (p.cost_ms, *n)).collect();
        let probabilities = soft_min(&costs);
        let chosen = pick(&probabilities, draws.unit());
        let sampled = scored
            .iter()
            .zip(&probabilities)
            .map(|((path, times, predicted), probability)| Sampled {
                hops: path.iter().map(|at| self.input.candidates[*at].id).collect(),
                times: *times,
                predicted: *predicted,
                probability: *probability,
            })
            .collect();
        let (path, _, predicted) = &scored[chosen];
        let choice = Choice {
            hops: self.hops(path),
            predicted: *predicted,
            probability: probabilities[chosen],
        };
        (sampled, Ok(choice))
    }

    pub(super) fn conflicts(&self, lifted: Option<Rule>) -> Conflicts {
        let usable = (0..self.exit.len()).filter(|at| {
            [&self.exit, &self.entry, &self.relay].iter().any(|refusals| refusals[*at].is_empty())
                // Lifted guards bring other entries in.
                || lifted == Some(Rule::NotGuard)
        });
        Conflicts::new(self.input.candidates, usable, self.input.constraints, lifted)
    }

    /// Entries first in line: guards, or the reserve while those do not serve.
    fn entries(&self) -> Vec<Vec<usize>> {
        let all = left(&self.entry);
        let (Some(guards), None) = (self.input.guards, self.input.constraints.entry) else {
            return vec![all];
        };
        let is_primary = |at: &usize| guards.is_primary(self.input.candidates[*at].id);
        let primary: Vec<usize> = all.iter().copied().filter(is_primary).collect();
        if primary.is_empty() { vec![all] } else { vec![primary, all] }
    }

    /// Whom each hop is drawn from, if the first is one of `entries`.
    pub(super) fn pools(&self, entries: Vec<usize>) -> Positions {
        Positions {
            entry: Pool::new(entries, &self.weights),
            relay: Pool::new(left(&self.relay), &self.weights),
            exit: match self.input.constraints.exit {
                ExitChoice::Random | ExitChoice::Nearest(_) => Pool::even(left(&self.exit)),
                _ => Pool::new(left(&self.exit), &self.weights),
            },
        }
    }

    /// Different paths with how often each was sampled.
    fn sample(&self, conflicts: &Conflicts, draws: &mut Draws) -> Option<Vec<(Vec<usize>, u32)>> {
        let hops = self.input.constraints.hops;
        for entries in self.entries() {
            let mut positions = self.pools(entries);
            let Some(first) = by_chance(&positions, hops, conflicts, draws)
                .or_else(|| exhaustively(&positions, hops, conflicts))
            else {
                continue;
            };
            if let ExitChoice::Random | ExitChoice::Nearest(_) = self.input.constraints.exit {
                // The draw of the exit is the choice: what it costs must not
                // undo it.
                positions.exit = Pool::even(first.last().copied().into_iter().collect());
            }
            let mut paths = vec![(first, 1)];
            for _ in 1..SAMPLES {
                let Some(path) = by_chance(&positions, hops, conflicts, draws) else { continue };
                match paths.iter_mut().find(|(known, _)| *known == path) {
                    Some((_, times)) => *times += 1,
                    None => paths.push((path, 1)),
                }
            }
            return Some(paths);
        }
        None
    }

    fn predict(&self, path: &[usize]) -> Predicted {
        let nodes: Vec<&Candidate> = path.iter().map(|at| &self.input.candidates[*at]).collect();
        score::predict(self.input.own, &nodes, self.input.measurements, self.input.constraints.exit)
    }

    fn hops(&self, path: &[usize]) -> Vec<Hop> {
        let last = path.len() - 1;
        path.iter()
            .enumerate()
            .map(|(number, at)| {
                let node = &self.input.candidates[*at];
                let position = match number {
                    n if n == last => Position::Exit,
                    0 => Position::Entry,
                    _ => Position::Relay,
                };
                Hop { id: node.id, name: node.name.clone(), place: node.place.clone(), position }
            })
            .collect()
    }
}

/// The index that a draw in [0, 1) falls on.
fn pick(probabilities: &[f64], point: f64) -> usize {
    let mut sum = 0.0;
    for (at, probability) in probabilities.iter().enumerate() {
        sum += probability;
        if point < sum {
            return at;
        }
    }
    probabilities.len().saturating_sub(1)
}

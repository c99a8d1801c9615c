//! From candidates to one path and its standbys.

use serde::{Deserialize, Serialize};
use warren_types::{NodeId, NodeName, Place};

use super::candidate::{Candidate, Measurements, Own};
use super::constraints::{Constraints, ExitChoice, MAX_HOPS};
use super::draw::{Draws, Seed};
use super::error::{SelectionError, remedy};
use super::explain::{PositionReport, Removal};
use super::filter::{Position, Refusals, Rule, judge};
use super::geography::distance_km;
use super::guards::GuardState;
use super::pool::{Pool, weights};
use super::score::{self, Predicted, soft_min};
use super::search::{Conflicts, Positions, by_chance, exhaustively};

/// Paths sampled for one choice.
const SAMPLES: usize = 64;
/// And for each standby.
const STANDBY_SAMPLES: usize = 24;
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
    /// Standbys wanted: the first over the same exit, the rest over others.
    pub standbys: u8,
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

/// What a standby is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StandbyKind {
    /// The same exit over other nodes: takes over at once.
    SameExit,
    /// Another exit, for when the exit itself dies; relays are others too, and
    /// the entry where there is a choice.
    OtherExit,
}

/// A further path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standby {
    /// What it is for.
    pub kind: StandbyKind,
    /// Its hops, entry first.
    pub hops: Vec<Hop>,
    /// True when it has the entry of the chosen path, because there is no other.
    pub shares_entry: bool,
    /// What it is expected to do.
    pub predicted: Predicted,
}

/// A path, and what stands by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Its hops, entry first.
    pub hops: Vec<Hop>,
    /// What it is expected to do.
    pub predicted: Predicted,
    /// With which probability it was chosen among the paths sampled.
    pub probability: f64,
    /// Fewer than wanted where there are no more.
    pub standbys: Vec<Standby>,
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

/// What a path over these nodes (entry first) is expected to do with the
/// measurements as they are now; `None` when one of them is no candidate.
pub fn predict(input: &Input<'_>, hops: &[NodeId]) -> Option<Predicted> {
    let nodes: Option<Vec<&Candidate>> =
        hops.iter().map(|id| input.candidates.iter().find(|node| node.id == *id)).collect();
    Some(score::predict(input.own, &nodes?, input.measurements, input.constraints.exit))
}

/// One choice under way.
pub(super) struct Run<'a> {
    input: &'a Input<'a>,
    pub(super) weights: Vec<f64>,
    /// What refuses each candidate, by position.
    entry: Vec<Refusals>,
    relay: Vec<Refusals>,
    exit: Vec<Refusals>,
}

fn left(refusals: &[Refusals]) -> Vec<usize> {
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
        let conflicts = self.conflicts(None);
        let Some(paths) = self.sample(&conflicts, &mut draws) else {
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
            standbys: self.standbys(path, &conflicts, &mut draws),
        };
        (sampled, Ok(choice))
    }

    fn conflicts(&self, lifted: Option<Rule>) -> Conflicts {
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

    fn pools(&self, entries: Vec<usize>, relays: Vec<usize>, exits: Pool) -> Positions {
        Positions {
            entry: Pool::new(entries, &self.weights),
            relay: Pool::new(relays, &self.weights),
            exit: exits,
        }
    }

    fn exits(&self) -> Pool {
        match self.input.constraints.exit {
            ExitChoice::Random | ExitChoice::Nearest(_) => Pool::even(left(&self.exit)),
            _ => Pool::new(left(&self.exit), &self.weights),
        }
    }

    /// Different paths with how often each was sampled.
    fn sample(&self, conflicts: &Conflicts, draws: &mut Draws) -> Option<Vec<(Vec<usize>, u32)>> {
        let hops = self.input.constraints.hops;
        for entries in self.entries() {
            let mut positions = self.pools(entries, left(&self.relay), self.exits());
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

    /// Paths that keep apart from `path`.
    fn standbys(&self, path: &[usize], conflicts: &Conflicts, draws: &mut Draws) -> Vec<Standby> {
        let Some((exit, others)) = path.split_last() else { return Vec::new() };
        let without = |from: Vec<usize>, taken: &[usize]| -> Vec<usize> {
            from.into_iter().filter(|at| !taken.contains(at)).collect()
        };
        let mut standbys: Vec<Standby> = Vec::new();
        let mut taken = path.to_vec();
        for number in 0..self.input.standbys {
            let kind = if number == 0 { StandbyKind::SameExit } else { StandbyKind::OtherExit };
            if kind == StandbyKind::SameExit && others.is_empty() {
                continue;
            }
            // Another entry if there is one that fits.
            let apart = without(left(&self.entry), path);
            let shared = others.first().copied().into_iter().collect();
            let found = [apart, shared].into_iter().find_map(|entries| {
                let exits = match kind {
                    StandbyKind::SameExit => Pool::even(vec![*exit]),
                    StandbyKind::OtherExit => {
                        Pool::new(without(left(&self.exit), &taken), &self.weights)
                    }
                };
                let positions = self.pools(entries, without(left(&self.relay), path), exits);
                self.best(&positions, conflicts, draws)
            });
            let Some((hops, predicted)) = found else { continue };
            taken.extend(hops.last());
            standbys.push(Standby {
                kind,
                shares_entry: hops.len() > 1 && hops.first() == others.first(),
                hops: self.hops(&hops),
                predicted,
            });
        }
        standbys
    }

    /// The best of some sampled paths.
    fn best(
        &self,
        positions: &Positions,
        conflicts: &Conflicts,
        draws: &mut Draws,
    ) -> Option<(Vec<usize>, Predicted)> {
        let hops = self.input.constraints.hops;
        let first = by_chance(positions, hops, conflicts, draws)
            .or_else(|| exhaustively(positions, hops, conflicts))?;
        let mut paths = vec![first];
        paths.extend(
            (1..STANDBY_SAMPLES).filter_map(|_| by_chance(positions, hops, conflicts, draws)),
        );
        paths
            .into_iter()
            .map(|path| {
                let predicted = self.predict(&path);
                (path, predicted)
            })
            .min_by(|a, b| a.1.cost_ms.total_cmp(&b.1.cost_ms))
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

    /// Who stood in the way at a position where nobody is left.
    fn empty(&self, position: Position, refusals: &[Refusals]) -> SelectionError {
        let culprits = culprits(refusals);
        let mut relax: Vec<String> = culprits.iter().map(|rule| remedy(*rule, position)).collect();
        if culprits.is_empty() {
            relax.push(remedy(Rule::NoRole, position));
        }
        let only = |wanted: Rule| {
            (0..refusals.len())
                .filter(move |at| refusals[*at].len() == 1 && refusals[*at].first() == Some(wanted))
        };
        if let [rule @ (Rule::OtherCountry | Rule::OtherRegion | Rule::OtherNode)] = culprits[..] {
            let mut there: Vec<String> = only(rule)
                .filter_map(|at| {
                    let node = &self.input.candidates[at];
                    match rule {
                        Rule::OtherNode => Some(node.name.to_string()),
                        Rule::OtherRegion => node.place.as_ref().map(|p| p.region().to_string()),
                        _ => node.place.as_ref().map(|p| p.country.to_string()),
                    }
                })
                .collect();
            there.sort();
            there.dedup();
            there.truncate(20);
            if !there.is_empty() {
                relax.push(format!("to be had: {}", there.join(", ")));
            }
        }
        if let (Position::Entry, Some(guards), None) =
            (position, self.input.guards, self.input.constraints.entry)
        {
            relax.push(self.about_guards(guards));
        }
        SelectionError::Empty {
            position,
            considered: refusals.len(),
            removed: removals(refusals),
            culprits,
            relax: relax.join("; "),
        }
    }

    /// Why none of the guards serves.
    fn about_guards(&self, guards: &GuardState) -> String {
        if guards.guards().is_empty() {
            return "no guard is pinned: no member can be one".to_owned();
        }
        let each: Vec<String> = guards
            .guards()
            .iter()
            .map(|guard| {
                let at = self.input.candidates.iter().position(|node| node.id == guard.id);
                let why = match at.and_then(|at| self.entry[at].first()) {
                    Some(rule) => rule.as_str(),
                    None => "it is no member any more",
                };
                format!("{}: {why}", guard.name)
            })
            .collect();
        format!("all guards are out ({})", each.join("; "))
    }

    /// Which rule keeps nodes from being a path together.
    fn no_path(&self) -> SelectionError {
        let hops = self.input.constraints.hops;
        let works = |lifted: Option<Rule>, hops: u8| {
            let entries = match lifted {
                Some(Rule::NotGuard) => (0..self.entry.len())
                    .filter(|at| self.entry[*at].iter().all(|rule| rule == Rule::NotGuard))
                    .collect(),
                _ => left(&self.entry),
            };
            let positions = self.pools(entries, left(&self.relay), self.exits());
            exhaustively(&positions, hops, &self.conflicts(lifted)).is_some()
        };
        let culprit = [Rule::SameCountry, Rule::NotGuard, Rule::SameNetwork, Rule::SameFamily]
            .into_iter()
            .find(|rule| works(Some(*rule), hops));
        let shorter = (1..hops).rev().find(|hops| works(None, *hops));
        let mut relax: Vec<String> =
            culprit.iter().map(|rule| remedy(*rule, Position::Entry)).collect();
        if culprit.is_none() {
            relax.push("more nodes with a role are needed".to_owned());
        }
        if let Some(shorter) = shorter {
            relax.push(format!("with --hops {shorter} there is a path"));
        }
        SelectionError::NoPath {
            hops,
            entries: left(&self.entry).len(),
            relays: left(&self.relay).len(),
            exits: left(&self.exit).len(),
            culprit,
            relax: relax.join("; "),
        }
    }
}

/// How many each rule removed, each candidate by the first that refused it.
fn removals(refusals: &[Refusals]) -> Vec<Removal> {
    let mut counts = vec![0; Rule::ALL.len()];
    for rule in refusals.iter().filter_map(|refusals| refusals.first()) {
        counts[rule as usize] += 1;
    }
    let all = Rule::ALL.iter().zip(counts);
    all.filter(|(_, count)| *count > 0)
        .map(|(rule, count)| Removal { rule: *rule, count })
        .collect()
}

/// The rule that alone stood in the way of most candidates, else the fewest that
/// together did. A missing role is named only where nobody has it: the user can
/// change what was asked for, not what others do.
fn culprits(refusals: &[Refusals]) -> Vec<Rule> {
    let has = |set: Refusals, rule| set.iter().any(|other| other == rule);
    let strangers = refusals.iter().copied().filter(|set| !has(*set, Rule::Own));
    let (able, unable): (Vec<Refusals>, Vec<Refusals>) =
        strangers.partition(|set| !has(*set, Rule::NoRole));
    if able.is_empty() {
        return if unable.is_empty() { Vec::new() } else { vec![Rule::NoRole] };
    }
    let mut alone = vec![0; Rule::ALL.len()];
    for set in able.iter().filter(|set| set.len() == 1) {
        if let Some(rule) = set.first() {
            alone[rule as usize] += 1;
        }
    }
    let most = Rule::ALL.iter().rev().max_by_key(|rule| alone[**rule as usize]);
    match most {
        Some(rule) if alone[*rule as usize] > 0 => vec![*rule],
        _ => able
            .iter()
            .min_by_key(|set| set.len())
            .map_or_else(Vec::new, |set| set.iter().collect()),
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

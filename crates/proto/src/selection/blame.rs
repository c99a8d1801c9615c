//! Whom to blame when nothing is left.
//!
//! In: what refused each candidate. Out: the error that names the rule without
//! which there would be a path, and what the user can do about it. Deliberately
//! not here: the words for each rule (`error`, `filter`).

use super::choose::{Run, left};
use super::error::{SelectionError, remedy};
use super::explain::Removal;
use super::filter::{Position, Refusals, Rule};
use super::guards::GuardState;
use super::search::exhaustively;

impl Run<'_> {
    /// Who stood in the way at a position where nobody is left.
    pub(super) fn empty(&self, position: Position, refusals: &[Refusals]) -> SelectionError {
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
    pub(super) fn no_path(&self) -> SelectionError {
        let hops = self.input.constraints.hops;
        let works = |lifted: Option<Rule>, hops: u8| {
            let entries = match lifted {
                Some(Rule::NotGuard) => (0..self.entry.len())
                    .filter(|at| self.entry[*at].iter().all(|rule| rule == Rule::NotGuard))
                    .collect(),
                _ => left(&self.entry),
            };
            let positions = self.pools(entries);
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
pub(super) fn removals(refusals: &[Refusals]) -> Vec<Removal> {
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

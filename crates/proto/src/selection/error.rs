//! Why there is no path, and what would help.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::explain::Removal;
use super::filter::{Position, Rule};

/// There is no path that keeps all rules. None is ever made that breaks one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum SelectionError {
    /// Not 1 to 4 hops.
    #[error("a path of {0} hops is not possible: use 1 to 4")]
    Hops(u8),
    /// No node may be at one position.
    #[error("no {} can be used: {}; {relax}", position.as_str(), told(*considered, removed))]
    Empty {
        /// The position.
        position: Position,
        /// Candidates looked at.
        considered: usize,
        /// How many each rule refused; each candidate counts once, by the first
        /// rule that refused it.
        removed: Vec<Removal>,
        /// The rule that alone stood in the way of most, or the fewest rules
        /// that together did.
        culprits: Vec<Rule>,
        /// What would help.
        relax: String,
    },
    /// Nodes there are, but no path of them.
    #[error(
        "no path of {hops} hops fits together from {entries} entries, {relays} relays and {exits} \
         exits{}; {relax}",
        because(*culprit)
    )]
    NoPath {
        /// Hops asked for.
        hops: u8,
        /// Entries that could be used alone.
        entries: usize,
        /// Relays that could.
        relays: usize,
        /// Exits that could.
        exits: usize,
        /// The rule without which there is a path; `None` when there are too few
        /// nodes.
        culprit: Option<Rule>,
        /// What would help.
        relax: String,
    },
}

fn because(culprit: Option<Rule>) -> String {
    culprit
        .map_or_else(String::new, |rule| format!(", because of the rule against {}", rule.as_str()))
}

fn told(considered: usize, removed: &[Removal]) -> String {
    if considered == 0 {
        return "no member has a role".to_owned();
    }
    let mut text = format!("of {considered} members with a role");
    for (at, removal) in removed.iter().enumerate() {
        let mark = if at == 0 { "" } else { "," };
        let _ =
            write!(text, "{mark} {} do not count because {}", removal.count, removal.rule.as_str());
    }
    text
}

/// What the user can do about a rule.
pub(super) fn remedy(rule: Rule, position: Position) -> String {
    let word = position.as_str();
    match rule {
        Rule::Own => "other members must offer the role".into(),
        Rule::NoRole => format!(
            "start one with `warren up --roles {word}`, or give a member the role with `warren \
             roles set --roles {word}`"
        ),
        Rule::Stale => "check this machine's clock and that it is connected to other members: the \
                        directory is out of date"
            .into(),
        Rule::NoKey => "check the clocks of this machine and of the members; keys are published \
                        daily"
            .into(),
        Rule::Draining => "wait until they are back, or choose others".into(),
        Rule::Unreachable => "check this machine's connection; they are tried again".into(),
        Rule::OwnFamily => "use nodes of another operator, or take this node's own family away \
                            with `warren roles set --family none`"
            .into(),
        Rule::OwnAddress => "use nodes that are not behind this machine's own address".into(),
        Rule::AvoidedNode | Rule::AvoidedCountry | Rule::AvoidedFamily => {
            "avoid less (--avoid)".into()
        }
        Rule::OtherNode => format!("choose another node with --{word}, or none"),
        Rule::OtherCountry | Rule::OtherRegion => format!("choose another place with --{word}"),
        Rule::NoPlace => "use --exit auto: none says where it is".into(),
        Rule::Policy => "choose another port, or members whose exit policy lets it out".into(),
        Rule::NotNearest => "use --exit auto".into(),
        Rule::NotGuard => "name another entry with --entry, or wait for the guards".into(),
        Rule::SameFamily => "more nodes of other operators, or fewer hops (--hops)".into(),
        Rule::SameNetwork => "more nodes in other networks, or fewer hops (--hops)".into(),
        Rule::SameCountry => "do without distinct countries, or use fewer hops (--hops)".into(),
    }
}

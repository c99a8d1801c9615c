//! Rules that judge one candidate alone, each with its name.
//!
//! Every candidate gets the set of rules that refuse it at a position, so that
//! it can be told afterwards which rule alone stood in the way.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use warren_types::{Role, is_public_destination};

use super::candidate::{Candidate, Own};
use super::constraints::{Constraints, EntryChoice, ExitChoice};
use super::guards::GuardState;

/// A descriptor older than this is not used, seconds: owners renew theirs every
/// 2.3 days, so three days mean that the node or our directory is behind.
pub const STALE_AFTER_S: u64 = 3 * 86_400;

/// Where in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// First.
    Entry,
    /// Between.
    Relay,
    /// Last.
    Exit,
}

impl Position {
    fn role(self) -> Role {
        match self {
            Self::Entry => Role::Entry,
            Self::Relay => Role::Relay,
            Self::Exit => Role::Exit,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        self.role().as_str()
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A rule by which a node is no hop, or two are not of one path.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Rule { $($(#[$doc])* $name,)* }

        impl Rule {
            /// All, in the order in which they are applied.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// For people: what is the matter with the node.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

rules! {
    /// It is us.
    Own = "it is this node itself",
    /// It does not have the role.
    NoRole = "it does not have the role",
    /// Its descriptor is old.
    Stale = "its descriptor is more than three days old",
    /// It has no key that is good now.
    NoKey = "it has no onion key that is good now",
    /// It drains.
    Draining = "it is draining",
    /// It does not answer.
    Unreachable = "it did not answer lately",
    /// Of our own family.
    OwnFamily = "it is of this node's own family",
    /// At an address of ours.
    OwnAddress = "it shares a public address with this node",
    /// Named by `--avoid`.
    AvoidedNode = "it is a node to avoid",
    /// In a country named by `--avoid`.
    AvoidedCountry = "it is in a country to avoid",
    /// Of a family named by `--avoid`.
    AvoidedFamily = "it is of a family to avoid",
    /// Not the node asked for.
    OtherNode = "it is not the node asked for",
    /// Not in the country asked for.
    OtherCountry = "it is not in the country asked for",
    /// Not in the region asked for.
    OtherRegion = "it is not in the region asked for",
    /// It does not say where it is.
    NoPlace = "it does not say where it is",
    /// Its exit policy.
    Policy = "its exit policy refuses the port",
    /// Not among the nearest.
    NotNearest = "it is not among the nearest",
    /// Not a pinned guard.
    NotGuard = "it is not one of the pinned guards",
    /// Of two hops: one family.
    SameFamily = "two hops of one family",
    /// Of two hops: one public /16 or /32.
    SameNetwork = "two hops in one public network (/16, IPv6 /32)",
    /// Of two hops: one country.
    SameCountry = "two hops in one country",
}

/// The set of rules that refuse a candidate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Refusals(u32);

impl Refusals {
    pub(super) fn add(&mut self, rule: Rule) {
        self.0 |= 1 << rule as u32;
    }

    fn note(&mut self, rule: Rule, refused: bool) {
        if refused {
            self.add(rule);
        }
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The first rule, in the order of [`Rule::ALL`].
    pub(super) fn first(self) -> Option<Rule> {
        self.iter().next()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Rule> {
        Rule::ALL.iter().copied().filter(move |rule| self.0 & (1 << *rule as u32) != 0)
    }

    pub(super) fn len(self) -> u32 {
        self.0.count_ones()
    }
}

fn is_public(address: IpAddr) -> bool {
    is_public_destination(address)
}

/// The public network an address is in: /16 of IPv4, /32 of IPv6. Private
/// addresses tell nothing: every home has the same.
pub(super) fn network(address: IpAddr) -> Option<u64> {
    if !is_public(address) {
        return None;
    }
    match address.to_canonical() {
        IpAddr::V4(v4) => Some(u64::from(u32::from(v4) >> 16)),
        IpAddr::V6(v6) => Some(1 << 32 | (u128::from(v6) >> 96) as u64),
    }
}

/// What refuses a node at any position.
fn anywhere(node: &Candidate, own: &Own, constraints: &Constraints) -> Refusals {
    let mut refusals = Refusals::default();
    let avoid = &constraints.avoid;
    refusals.note(Rule::Own, node.id == own.id);
    refusals.note(Rule::Stale, node.age_s > STALE_AFTER_S);
    refusals.note(Rule::NoKey, !node.has_key);
    refusals.note(Rule::Draining, node.draining);
    refusals.note(Rule::Unreachable, node.unreachable);
    refusals.note(Rule::OwnFamily, node.family.is_some() && node.family == own.family);
    let shared = |address: &IpAddr| is_public(*address) && own.addresses.contains(address);
    refusals.note(Rule::OwnAddress, node.addresses.iter().any(shared));
    refusals.note(Rule::AvoidedNode, avoid.nodes.contains(&node.id));
    let country = node.place.as_ref().map(|place| place.country);
    refusals.note(Rule::AvoidedCountry, country.is_some_and(|c| avoid.countries.contains(&c)));
    let family = node.family.as_ref();
    refusals.note(Rule::AvoidedFamily, family.is_some_and(|f| avoid.families.contains(f)));
    refusals
}

/// What refuses a node at a position. Which are the nearest is not decided here.
pub(super) fn judge(
    node: &Candidate,
    position: Position,
    own: &Own,
    constraints: &Constraints,
    guards: Option<&GuardState>,
) -> Refusals {
    let mut refusals = anywhere(node, own, constraints);
    refusals.note(Rule::NoRole, !node.roles.has(position.role()));
    let in_country = |country| node.place.as_ref().is_some_and(|place| place.country == country);
    match position {
        Position::Relay => {}
        Position::Entry => match (constraints.entry, guards) {
            (Some(EntryChoice::Node(id)), _) => refusals.note(Rule::OtherNode, node.id != id),
            (Some(EntryChoice::Country(country)), _) => {
                refusals.note(Rule::OtherCountry, !in_country(country));
            }
            (None, Some(guards)) => refusals.note(Rule::NotGuard, !guards.holds(node.id)),
            (None, None) => {}
        },
        Position::Exit => {
            match constraints.exit {
                ExitChoice::Auto | ExitChoice::Random => {}
                ExitChoice::Country(country) => {
                    refusals.note(Rule::OtherCountry, !in_country(country));
                }
                ExitChoice::Region(region) => {
                    let there = node.place.as_ref().is_some_and(|p| p.region() == region);
                    refusals.note(Rule::OtherRegion, !there);
                }
                ExitChoice::Nearest(_) => refusals.note(Rule::NoPlace, node.place.is_none()),
                ExitChoice::Node(id) => refusals.note(Rule::OtherNode, node.id != id),
            }
            if let Some(need) = constraints.port {
                let lets = match &node.exit_policy {
                    Some(policy) => policy.allows_port(need.port, need.protocol()),
                    // The default policy.
                    None => need.port != 25,
                };
                refusals.note(Rule::Policy, !lets);
            }
        }
    }
    refusals
}

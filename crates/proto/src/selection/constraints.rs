//! What a user wants of a path.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use warren_types::{Coordinates, Country, Family, NodeId, Protocol, Region};

/// Most hops of a path: as many as a cell has room for.
pub const MAX_HOPS: u8 = 4;

/// Which exit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExitChoice {
    /// The one that makes the best path, by and large.
    #[default]
    Auto,
    /// In this country.
    Country(Country),
    /// In this region.
    Region(Region),
    /// One of the eight or more nearest to this point, at random.
    Nearest(Coordinates),
    /// Any, each as likely.
    Random,
    /// This node.
    Node(NodeId),
}

/// Which entry, instead of the pinned guards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryChoice {
    /// In this country.
    Country(Country),
    /// This node.
    Node(NodeId),
}

/// What no hop may be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Avoid {
    /// These nodes.
    #[serde(default)]
    pub nodes: BTreeSet<NodeId>,
    /// Nodes that say they are in these countries.
    #[serde(default)]
    pub countries: BTreeSet<Country>,
    /// Nodes of these families.
    #[serde(default)]
    pub families: BTreeSet<Family>,
}

/// A port that the exit has to let traffic out to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PortNeed {
    /// The port.
    pub port: u16,
    /// True for UDP.
    pub udp: bool,
}

impl PortNeed {
    pub(super) fn protocol(self) -> Protocol {
        if self.udp { Protocol::Udp } else { Protocol::Tcp }
    }
}

/// All of it. The default: three hops, guards first, the best exit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Constraints {
    /// Hops, 1 to [`MAX_HOPS`]. With one, the exit is all there is and sees both
    /// ends; guards do not count then.
    pub hops: u8,
    /// Which exit.
    pub exit: ExitChoice,
    /// Which entry; `None`: a guard.
    pub entry: Option<EntryChoice>,
    /// What no hop may be.
    pub avoid: Avoid,
    /// What the exit has to let out.
    pub port: Option<PortNeed>,
    /// No two hops in one country; hops that do not say where they are count as
    /// each in its own.
    pub distinct_countries: bool,
}

impl Default for Constraints {
    fn default() -> Self {
        Self {
            hops: 3,
            exit: ExitChoice::Auto,
            entry: None,
            avoid: Avoid::default(),
            port: None,
            distinct_countries: false,
        }
    }
}

//! What is known of a node that may become a hop, and of ourselves.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use warren_types::{Bandwidth, ExitPolicy, Family, NodeId, NodeName, Place, Roles};

/// What was measured between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Round-trip time, microseconds.
    pub rtt_us: u32,
    /// Share of packets lost, 0 to 1.
    pub loss: f32,
}

/// A member that may become a hop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its key.
    pub id: NodeId,
    /// Its name, for people.
    pub name: NodeName,
    /// What it does.
    pub roles: Roles,
    /// Where it says it is.
    pub place: Option<Place>,
    /// Who runs it, by its own word.
    pub family: Option<Family>,
    /// Its underlay addresses. Of public ones no two hops share a /16 or /32.
    pub addresses: Vec<IpAddr>,
    /// What it gives to paths; `None`: it did not say.
    pub bandwidth: Option<Bandwidth>,
    /// How much of that is in use, 0 to 1.
    pub load: f32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// It takes no new sessions.
    pub draining: bool,
    /// Where it lets traffic out; `None`: the default policy.
    pub exit_policy: Option<ExitPolicy>,
    /// What experience says of it, 0 (never) to 1 (the default).
    pub reputation: f32,
    /// Measured from us to it.
    pub direct: Option<Measure>,
    /// Its descriptor holds an onion key that is good now.
    pub has_key: bool,
    /// It did not answer lately.
    pub unreachable: bool,
    /// Seconds since its descriptor was made.
    pub age_s: u64,
}

/// Ourselves: never a hop of our own paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// Our key.
    pub id: NodeId,
    /// Our family, if we have one: its nodes are no hops for us.
    pub family: Option<Family>,
    /// Our public underlay addresses: a node at one of them is our own machine
    /// or shares our connection.
    pub addresses: Vec<IpAddr>,
    /// Where we are, if known; for estimates.
    pub place: Option<Place>,
}

/// What was measured between members, in either direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<Pair>", into = "Vec<Pair>")]
pub struct Measurements(BTreeMap<(NodeId, NodeId), Measure>);

/// One entry as it is written.
#[derive(Serialize, Deserialize)]
struct Pair {
    a: NodeId,
    b: NodeId,
    #[serde(flatten)]
    measure: Measure,
}

impl From<Vec<Pair>> for Measurements {
    fn from(pairs: Vec<Pair>) -> Self {
        let mut all = Self::default();
        for pair in pairs {
            all.insert(pair.a, pair.b, pair.measure);
        }
        all
    }
}

impl From<Measurements> for Vec<Pair> {
    fn from(all: Measurements) -> Self {
        all.0.into_iter().map(|((a, b), measure)| Pair { a, b, measure }).collect()
    }
}

impl Measurements {
    /// Notes a measurement between two nodes; it replaces an older one.
    pub fn insert(&mut self, a: NodeId, b: NodeId, measure: Measure) {
        self.0.insert((a.min(b), a.max(b)), measure);
    }

    /// What was measured between two nodes.
    pub fn get(&self, a: NodeId, b: NodeId) -> Option<Measure> {
        self.0.get(&(a.min(b), a.max(b))).copied()
    }
}

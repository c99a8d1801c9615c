//! From the directory to the choice of paths, which do not know each other.

use warren_control::directory::NodeView;
use warren_proto::selection::{Candidate, Measure};

/// What is known of a member besides its descriptor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    /// How much of what it gives is in use, 0 to 1.
    pub load: f32,
    /// What experience says of it, 0 to 1.
    pub reputation: f32,
    /// Measured from us to it.
    pub direct: Option<Measure>,
    /// It did not answer lately.
    pub unreachable: bool,
}

impl Default for Observed {
    fn default() -> Self {
        Self { load: 0.0, reputation: 1.0, direct: None, unreachable: false }
    }
}

/// A member as a candidate at `now` (seconds since 1970); `None` where it has
/// no role.
pub fn candidate(view: &NodeView, observed: &Observed, now: u64) -> Option<Candidate> {
    let onion = view.onion()?;
    let body = &view.descriptor.body;
    let mut addresses: Vec<_> =
        body.endpoints.iter().chain(&body.tcp).map(|endpoint| endpoint.ip()).collect();
    addresses.sort();
    addresses.dedup();
    Some(Candidate {
        id: view.id(),
        name: view.name.clone(),
        roles: onion.roles,
        place: onion.place.clone(),
        family: onion.family.clone(),
        addresses,
        bandwidth: onion.bandwidth,
        load: observed.load,
        uptime_s: onion.uptime(now),
        draining: onion.draining,
        exit_policy: onion.exit_policy.clone(),
        reputation: observed.reputation,
        direct: observed.direct,
        has_key: onion.key_at(now).is_some(),
        unreachable: observed.unreachable,
        age_s: now.saturating_sub(body.issued),
    })
}

//! What a node does for onion paths: `GET` and `POST /v1/roles`.

use serde::{Deserialize, Serialize};

use crate::{Bandwidth, City, Country, ExitPolicy, Family, OnionKey, Place, Roles};

/// What an operator decides about a node's part in onion paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleSettings {
    /// What it does; none by default.
    #[serde(default)]
    pub roles: Roles,
    /// Where it is.
    #[serde(default)]
    pub place: Option<Place>,
    /// What it gives; absent: not limited.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// Who runs it.
    #[serde(default)]
    pub family: Option<Family>,
    /// Where it lets traffic out; absent: the default policy.
    #[serde(default)]
    pub exit_policy: Option<ExitPolicy>,
}

/// `GET /v1/roles`, and the answer to a change; part of [`super::NodeStatus`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolesReport {
    /// What is in force.
    #[serde(flatten)]
    pub settings: RoleSettings,
    /// No new sessions are taken.
    #[serde(default)]
    pub draining: bool,
    /// Onion keys that others may use now, the youngest first.
    #[serde(default)]
    pub onion_keys: Vec<OnionKey>,
    /// What the operator should know, such as an exit without a region.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What becomes of one setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change<T> {
    /// Back to the default.
    Clear,
    /// To this.
    Set(T),
}

/// `POST /v1/roles`: absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleChange {
    /// The roles; an empty list takes all away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Roles>,
    /// The country. Another one than before takes the city away too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Change<Country>>,
    /// The city, in the country that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<Change<City>>,
    /// What it gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Change<Bandwidth>>,
    /// Who runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Change<Family>>,
    /// Where it lets traffic out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_policy: Option<Change<ExitPolicy>>,
    /// Whether new sessions are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
}

/// What a peer does for onion paths, as its descriptor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRoles {
    /// What it does.
    pub roles: Roles,
    /// Where it says it is.
    pub place: Option<Place>,
    /// Who runs it.
    pub family: Option<Family>,
    /// What it gives.
    pub bandwidth: Option<Bandwidth>,
    /// It takes no new sessions.
    pub draining: bool,
    /// Seconds since it started, by its own word.
    pub uptime_s: u64,
}

impl RoleSettings {
    /// True when nothing was decided.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

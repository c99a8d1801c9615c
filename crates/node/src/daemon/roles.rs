//! This node's part in onion paths: its roles, what goes with them, its keys.
//!
//! In: configuration, requests of the operator, the clock. Out: the onion
//! section of our descriptor, and the secret keys of circuit handshakes.
//! Invariants: of configuration and `warren roles set` the last word counts,
//! across restarts too; a node without a role publishes nothing and has no
//! keys; nothing is published before it is stored. Deliberately not here:
//! circuits.

use std::io::Read;

use warren_control::onion::OnionSection;
use warren_types::api::{Change, Event, PeerRoles, RoleChange, RoleSettings, RolesReport};
use warren_types::{Action, ExitPolicy, Place, Role};

use super::{Daemon, unix_now};
use crate::api::ApiError;
use crate::config::Config;
use crate::fault::{Fault, FaultKind};
use crate::onion_keys::{OnionKeyPair, OnionKeyring};
use crate::random::OsRandom;
use crate::store::{Store, StoredRoles};

/// Largest exit policy file read, bytes.
const MAX_POLICY_FILE: u64 = 64 * 1024;

/// What this node does for onion paths.
#[derive(Debug)]
pub(super) struct OnionRoles {
    stored: StoredRoles,
    keys: OnionKeyring,
    /// When the daemon started, seconds since 1970.
    since: u64,
}

/// What file and flags say about roles.
pub(super) fn configured(config: &Config) -> Result<RoleSettings, Fault> {
    let roles = &config.roles;
    let policy = match &roles.exit_policy {
        Some(path) => Some(read_policy(path)?),
        None => None,
    };
    Ok(RoleSettings {
        roles: roles.roles.unwrap_or_default(),
        place: roles.region.map(|country| Place { country, city: roles.city.clone() }),
        bandwidth: roles.bandwidth,
        family: roles.family.clone(),
        exit_policy: policy,
    })
}

fn read_policy(path: &std::path::Path) -> Result<ExitPolicy, Fault> {
    let wrong = |reason: String| {
        Fault::new(FaultKind::Config, format!("the exit policy {}: {reason}", path.display()))
            .remedy("one rule a line, such as `reject *:25` or `accept *:443`; the first that fits decides")
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_POLICY_FILE).read_to_string(&mut text))
        .map_err(|e| wrong(e.to_string()))?;
    text.parse().map_err(|e: warren_types::ExitPolicyError| wrong(e.to_string()))
}

impl OnionRoles {
    /// What was decided last: by the configuration, where it says another thing
    /// than it did then, else by the operator at run time.
    pub(super) fn load(store: &Store, configured: RoleSettings, now: u64) -> Result<Self, Fault> {
        let mut stored = store.roles()?;
        if !configured.is_default() && configured != stored.configured {
            stored.settings = configured.clone();
            stored.configured = configured;
            store.save_roles(&stored)?;
        }
        let mut roles = Self { stored, keys: store.onion_keys()?, since: now };
        roles.renew_keys(store, now)?;
        for warning in warnings(&roles.stored.settings) {
            tracing::warn!("{warning}");
        }
        Ok(roles)
    }

    /// Keys as they should be now. True when they changed.
    fn renew_keys(&mut self, store: &Store, now: u64) -> Result<bool, Fault> {
        let mut keys = self.keys.clone();
        let changed = if self.stored.settings.roles.is_empty() {
            let had = !keys.pairs().is_empty();
            keys = OnionKeyring::default();
            had
        } else {
            keys.renew(now, &mut OsRandom)
        };
        if changed {
            store.save_onion_keys(&keys)?;
            self.keys = keys;
        }
        Ok(changed)
    }

    /// What our descriptor says; `None` without a role.
    pub(super) fn section(&self) -> Option<Box<OnionSection>> {
        let settings = &self.stored.settings;
        if settings.roles.is_empty() {
            return None;
        }
        Some(Box::new(OnionSection {
            roles: settings.roles,
            place: settings.place.clone(),
            family: settings.family.clone(),
            bandwidth: settings.bandwidth,
            exit_policy: settings.exit_policy.clone().filter(|_| settings.roles.has(Role::Exit)),
            draining: self.stored.draining,
            keys: self.keys.records(),
            since: self.since,
        }))
    }

    /// What is in force.
    pub(super) fn settings(&self) -> &RoleSettings {
        &self.stored.settings
    }

    fn report(&self, now: u64) -> RolesReport {
        RolesReport {
            settings: self.stored.settings.clone(),
            draining: self.stored.draining,
            onion_keys: self.keys.good(now).map(|pair| pair.record.key).collect(),
            warnings: warnings(&self.stored.settings),
        }
    }
}

/// What is allowed and yet likely a mistake.
fn warnings(settings: &RoleSettings) -> Vec<String> {
    let mut warnings = Vec::new();
    let exit = settings.roles.has(Role::Exit);
    if exit && settings.place.is_none() {
        warnings.push(
            "this exit tells no region, so nobody who asks for a country or region gets it: \
             `warren roles set --region de`"
                .to_owned(),
        );
    }
    if !exit && settings.exit_policy.is_some() {
        warnings.push("the exit policy has no effect without the role exit".to_owned());
    }
    if exit && settings.exit_policy.as_ref().is_some_and(ExitPolicy::allows_private) {
        warnings.push(
            "the exit policy leaves private destinations to its rules: strangers may reach this \
             machine's own networks"
                .to_owned(),
        );
    }
    let accepts = |policy: &ExitPolicy| policy.rules().iter().any(|r| r.action == Action::Accept);
    if exit && settings.exit_policy.as_ref().is_some_and(|policy| !accepts(policy)) {
        warnings.push(
            "the exit policy accepts nothing, so nobody can use this exit: what no rule accepts \
             is refused; add `accept *:*` at its end to let the rest out"
                .to_owned(),
        );
    }
    if settings.roles.is_empty() && !settings.is_default() {
        warnings.push(
            "region, bandwidth, family and exit policy have no effect without a role: \
             `warren roles set --roles entry,relay,exit`"
                .to_owned(),
        );
    }
    warnings
}

fn apply<T>(change: Option<Change<T>>, to: &mut Option<T>) {
    match change {
        None => {}
        Some(Change::Clear) => *to = None,
        Some(Change::Set(value)) => *to = Some(value),
    }
}

/// The settings after a change.
fn changed(mut settings: RoleSettings, change: RoleChange) -> Result<RoleSettings, ApiError> {
    if let Some(roles) = change.roles {
        settings.roles = roles;
    }
    match change.region {
        None => {}
        Some(Change::Clear) => settings.place = None,
        Some(Change::Set(country)) => match &mut settings.place {
            Some(place) if place.country == country => {}
            place => *place = Some(Place { country, city: None }),
        },
    }
    match (change.city, &mut settings.place) {
        (None, _) | (Some(Change::Clear), None) => {}
        (Some(Change::Clear), Some(place)) => place.city = None,
        (Some(Change::Set(city)), Some(place)) => place.city = Some(city),
        (Some(Change::Set(city)), None) => {
            return Err(ApiError::Invalid(format!(
                "a city needs a country: `warren roles set --region de --city {city}`"
            )));
        }
    }
    apply(change.bandwidth, &mut settings.bandwidth);
    apply(change.family, &mut settings.family);
    apply(change.exit_policy, &mut settings.exit_policy);
    Ok(settings)
}

/// What a member's descriptor says of its roles.
pub(super) fn peer_roles(section: &OnionSection, now: u64) -> PeerRoles {
    PeerRoles {
        roles: section.roles,
        place: section.place.clone(),
        family: section.family.clone(),
        bandwidth: section.bandwidth,
        draining: section.draining,
        uptime_s: section.uptime(now),
    }
}

impl Daemon {
    /// The secret keys of circuit handshakes that are good now, the youngest
    /// first; none without a role.
    pub(super) fn onion_keys(&self) -> impl Iterator<Item = &OnionKeyPair> {
        self.roles.keys.good(unix_now().as_secs())
    }

    pub(super) fn roles_report(&self) -> RolesReport {
        self.roles.report(unix_now().as_secs())
    }

    /// Changes roles at run time and for the next starts.
    pub(super) fn change_roles(&mut self, change: RoleChange) -> Result<RolesReport, ApiError> {
        let mut stored = self.roles.stored.clone();
        stored.draining = change.draining.unwrap_or(stored.draining);
        stored.settings = changed(stored.settings, change)?;
        if stored != self.roles.stored {
            let failed = |fault: Fault| ApiError::Failed(fault.to_string());
            self.store.save_roles(&stored).map_err(failed)?;
            self.roles.stored = stored;
            self.roles.renew_keys(&self.store, unix_now().as_secs()).map_err(failed)?;
            let stored = &self.roles.stored;
            tracing::info!(roles = %stored.settings.roles, draining = stored.draining, "roles changed");
            self.events.publish(Event::RolesChanged {
                roles: stored.settings.roles.to_string(),
                draining: stored.draining,
            });
            self.announce();
            self.apply_duties();
        }
        Ok(self.roles_report())
    }

    /// Makes the next onion key when it is due, and tells the others.
    pub(super) fn keep_onion_keys(&mut self) {
        match self.roles.renew_keys(&self.store, unix_now().as_secs()) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("onion keys renewed");
                self.notices.remove("onion keys");
                self.announce();
                self.apply_duties();
            }
            Err(error) => {
                self.notices.insert("onion keys", format!("onion keys were not renewed: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;

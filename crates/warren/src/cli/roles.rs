//! `warren roles` and `warren drain`: a node's part in onion paths.

use std::fmt::Write;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use warren_node::config::RoleConfig;
use warren_node::fault::{Fault, FaultKind};
use warren_types::api::{Change, RoleChange, RolesReport};
use warren_types::{Bandwidth, City, Country, ExitPolicy, Family, Role, Roles};

use super::{State, out};

/// Flags of `up` and `join` about roles.
#[derive(Debug, Clone, Args)]
pub(super) struct RoleFlags {
    /// What this node does for onion paths of others: entry, relay, exit, or
    /// several with commas [default: none].
    #[arg(long, value_name = "ROLES")]
    roles: Option<Roles>,
    /// The country it is in, two letters (ISO 3166-1).
    #[arg(long, value_name = "COUNTRY")]
    region: Option<Country>,
    /// The city, a short name such as fra.
    #[arg(long, value_name = "CITY", requires = "region")]
    city: Option<City>,
    /// What it gives to paths of others, such as 500mbit [default: no limit].
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Bandwidth>,
    /// Rules where an exit lets traffic out [default: public addresses, not
    /// port 25].
    #[arg(long, value_name = "FILE")]
    exit_policy: Option<PathBuf>,
    /// The operator's name for all its nodes: no path goes over two of them.
    #[arg(long, value_name = "NAME")]
    family: Option<Family>,
}

impl From<RoleFlags> for RoleConfig {
    fn from(flags: RoleFlags) -> Self {
        Self {
            roles: flags.roles,
            region: flags.region,
            city: flags.city,
            bandwidth: flags.bandwidth,
            family: flags.family,
            exit_policy: flags.exit_policy,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum RolesCommand {
    /// Change them, now and for the next starts.
    Set(SetRoles),
    /// Show them.
    Show {
        /// JSON with stable keys.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
}

/// A value, or `none` to go back to the default.
#[derive(Debug, Clone)]
struct OrNone<T>(Option<T>);

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;
    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))) }
    }
}

impl<T> From<OrNone<T>> for Change<T> {
    fn from(value: OrNone<T>) -> Self {
        value.0.map_or(Self::Clear, Self::Set)
    }
}

#[derive(Debug, Clone, Args)]
#[group(id = "change", required = true, multiple = true, args = ["roles", "region", "city", "bandwidth", "exit_policy", "family"])]
pub(super) struct SetRoles {
    /// entry, relay, exit, several with commas, or none.
    #[arg(long, value_name = "ROLES")]
    roles: Option<Roles>,
    /// The country, two letters (ISO 3166-1), or none.
    #[arg(long, value_name = "COUNTRY")]
    region: Option<OrNone<Country>>,
    /// The city, a short name such as fra, or none.
    #[arg(long, value_name = "CITY")]
    city: Option<OrNone<City>>,
    /// What it gives to paths of others, such as 500mbit, or none for no limit.
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<OrNone<Bandwidth>>,
    /// File of rules where an exit lets traffic out, or none for the default.
    #[arg(long, value_name = "FILE")]
    exit_policy: Option<PathBuf>,
    /// The operator's name for all its nodes, or none.
    #[arg(long, value_name = "NAME")]
    family: Option<OrNone<Family>>,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Drain {
    /// Take new sessions again.
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    state: State,
}

/// Runs one of `warren roles`.
pub(super) async fn run(command: RolesCommand) -> Result<(), Fault> {
    match command {
        RolesCommand::Set(set) => {
            let exit_policy = match &set.exit_policy {
                None => None,
                Some(path) if path.as_os_str() == "none" => Some(Change::Clear),
                Some(path) => Some(Change::Set(read_policy(path)?)),
            };
            let change = RoleChange {
                roles: set.roles,
                region: set.region.map(Change::from),
                city: set.city.map(Change::from),
                bandwidth: set.bandwidth.map(Change::from),
                family: set.family.map(Change::from),
                exit_policy,
                draining: None,
            };
            let report = set.state.client().change_roles(&change).await?;
            show(&report)
        }
        RolesCommand::Show { json, state } => {
            let report = state.client().roles().await?;
            if json {
                let text =
                    serde_json::to_string_pretty(&report).map_err(|e| Fault::internal(&e))?;
                return out(&format!("{text}\n"));
            }
            show(&report)
        }
    }
}

/// Runs `warren drain`.
pub(super) async fn drain(drain: Drain) -> Result<(), Fault> {
    let change = RoleChange { draining: Some(!drain.off), ..RoleChange::default() };
    let report = drain.state.client().change_roles(&change).await?;
    out(match (report.draining, report.settings.roles.is_empty()) {
        (false, _) => "New sessions are taken again.\n",
        (true, false) => {
            "Draining: no new sessions are taken, those that are there go on; `warren drain --off` \
             ends it.\n"
        }
        (true, true) => "Draining, although this node has no role.\n",
    })
}

fn read_policy(path: &std::path::Path) -> Result<ExitPolicy, Fault> {
    let wrong = |reason: String| {
        Fault::new(FaultKind::Usage, format!("the exit policy {}: {reason}", path.display()))
            .remedy("one rule a line, such as `reject *:25` or `accept *:443`")
    };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    text.parse().map_err(|e: warren_types::ExitPolicyError| wrong(e.to_string()))
}

fn show(report: &RolesReport) -> Result<(), Fault> {
    out(&render(report))?;
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn render(report: &RolesReport) -> String {
    let settings = &report.settings;
    let mut text = String::new();
    let mut row = |key: &str, value: String| {
        let _ = writeln!(text, "{key:<11} {value}");
    };
    let draining = if report.draining { " (draining: no new sessions)" } else { "" };
    row("roles", format!("{}{draining}", settings.roles));
    if let Some(place) = &settings.place {
        let city = place.city.as_ref().map(|city| format!(", {city}")).unwrap_or_default();
        row("region", format!("{} ({}{city})", place.country, place.country.name()));
    }
    let unlimited = || "not limited".to_owned();
    row("bandwidth", settings.bandwidth.map_or_else(unlimited, |rate| rate.to_string()));
    if let Some(family) = &settings.family {
        row("family", family.to_string());
    }
    if settings.roles.has(Role::Exit) {
        let default = || "the default: all public addresses, not port 25".to_owned();
        let rules = settings
            .exit_policy
            .as_ref()
            .map(|policy| policy.to_string().lines().collect::<Vec<_>>().join("; "));
        row("exit policy", rules.unwrap_or_else(default));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_types::api::RoleSettings;

    #[test]
    fn what_is_in_force_is_shown() {
        let report = RolesReport {
            settings: RoleSettings {
                roles: "relay,exit".parse().unwrap(),
                place: Some("de-fra".parse().unwrap()),
                bandwidth: Some("500mbit".parse().unwrap()),
                family: Some("example.org".parse().unwrap()),
                exit_policy: Some("reject *:25\naccept *:*".parse().unwrap()),
            },
            draining: true,
            ..RolesReport::default()
        };
        let text = render(&report);
        for part in [
            "relay,exit (draining",
            "de (Germany, fra)",
            "500mbit",
            "example.org",
            "reject *:25; accept *:*",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(render(&RolesReport::default()).contains("none"));
    }
}

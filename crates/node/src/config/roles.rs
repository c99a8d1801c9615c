//! What file and flags say about a node's part in onion paths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use warren_types::{Bandwidth, City, Country, Family, Roles};

use super::parse::File;
use super::{ConfigError, Source, raw};

/// Each `None` where nothing is said: then what was decided at run time stays,
/// else the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoleConfig {
    /// `roles`: `entry`, `relay`, `exit`, separated by commas, or `none` (the
    /// default).
    pub roles: Option<Roles>,
    /// `region`: the country this node is in, two letters of ISO 3166-1.
    pub region: Option<Country>,
    /// `city`: a short name such as `fra`; needs `region`.
    pub city: Option<City>,
    /// `bandwidth`: what it gives to paths of others, such as `500mbit`.
    /// Default: not limited.
    pub bandwidth: Option<Bandwidth>,
    /// `family`: the operator's name for all its nodes.
    pub family: Option<Family>,
    /// `exit_policy`: path of a file of rules, relative to the configuration
    /// file. Default: all public destinations but port 25.
    pub exit_policy: Option<PathBuf>,
}

impl RoleConfig {
    /// The file's values, under those of the flags.
    pub(super) fn parse(
        file: &File<'_>,
        raw: &raw::RawConfig,
        flags: Self,
        sources: &mut BTreeMap<&'static str, Source>,
    ) -> Result<Self, ConfigError> {
        macro_rules! pick {
            ($key:literal, $field:ident) => {{
                let value = match &raw.$field {
                    Some(v) => {
                        sources.insert($key, Source::File(file.line(v.span().start)));
                        Some(file.parse($key, v)?)
                    }
                    None => None,
                };
                if flags.$field.is_some() {
                    sources.insert($key, Source::Flag);
                }
                flags.$field.or(value)
            }};
        }
        let folder = file.path.parent().unwrap_or(Path::new(""));
        let policy = raw.exit_policy.as_ref().map(|v| {
            sources.insert("exit_policy", Source::File(file.line(v.span().start)));
            folder.join(v.get_ref())
        });
        if flags.exit_policy.is_some() {
            sources.insert("exit_policy", Source::Flag);
        }
        let roles = Self {
            roles: pick!("roles", roles),
            region: pick!("region", region),
            city: pick!("city", city),
            bandwidth: pick!("bandwidth", bandwidth),
            family: pick!("family", family),
            exit_policy: flags.exit_policy.or(policy),
        };
        if let (Some(city), None) = (&roles.city, roles.region) {
            return Err(ConfigError::Setting(format!(
                "the city `{city}` needs a country: set region too, such as `--region de`"
            )));
        }
        Ok(roles)
    }
}

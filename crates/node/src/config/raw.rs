//! The configuration file as written: serde types without meaning. Unknown
//! fields are refused; every value keeps its place in the file, so that what
//! is wrong with it can be pointed at. [`super::Config`] gives them meaning.

use serde::Deserialize;
use toml::Spanned;

/// One value with its byte range in the file.
pub(super) type Value<T> = Option<Spanned<T>>;

/// The whole file. Fields are documented at [`super::Config`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub name: Value<String>,
    pub network: Value<String>,
    pub listen: Value<String>,
    pub interface: Value<String>,
    pub suite: Value<String>,
    #[serde(default)]
    pub endpoints: Vec<Spanned<String>>,
    #[serde(default)]
    pub bootstrap: Vec<Spanned<String>>,
    pub tcp_listen: Value<String>,
    pub tcp_fallback: Value<bool>,
    pub metrics: Value<String>,
    pub workers: Value<i64>,
    pub mtu: Value<i64>,
    pub pq: Value<String>,
    pub relay: Value<bool>,
    pub roles: Value<String>,
    pub region: Value<String>,
    pub city: Value<String>,
    pub bandwidth: Value<String>,
    pub family: Value<String>,
    pub exit_policy: Value<String>,
    pub dns: Value<bool>,
    pub lan_discovery: Value<bool>,
    pub port_mapping: Value<bool>,
    pub log_format: Value<String>,
    pub log_level: Value<String>,
    #[serde(default)]
    pub auth: RawAuth,
    #[serde(default)]
    pub peer: Vec<Spanned<RawPeer>>,
    #[serde(default)]
    pub exit: RawExit,
    #[serde(default)]
    pub userspace: RawUserspace,
    #[serde(default)]
    pub dangerous: RawDangerous,
}

/// `[exit]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExit {
    pub resolver: Value<String>,
}

/// `[auth]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    pub mode: Value<String>,
    pub psk_file: Value<String>,
}

/// One `[[peer]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPeer {
    pub name: Spanned<String>,
    pub public_key: Spanned<String>,
    pub endpoint: Value<String>,
}

/// `[userspace]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUserspace {
    pub enabled: Value<bool>,
    pub socks: Value<String>,
    pub http: Value<String>,
    pub password_file: Value<String>,
    #[serde(default)]
    pub publish: Vec<Spanned<RawPublish>>,
}

/// One `[[userspace.publish]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPublish {
    #[serde(default)]
    pub protocol: Option<String>,
    pub port: i64,
    pub to: String,
}

/// `[dangerous]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDangerous {
    pub keep_privileges: Value<bool>,
    pub certificate_life: Value<i64>,
    pub open_proxy: Value<bool>,
}

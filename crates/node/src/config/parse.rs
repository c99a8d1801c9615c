//! From the text of a file and the flags to a [`Config`]: every value parsed,
//! every refusal with its line, and settings that contradict each other found.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;

use toml::Spanned;
use warren_control::ca::NODE_CERTIFICATE_LIFE;
use warren_types::{NodeId, NodeName};

use super::{
    Auth, Config, ConfigError, Dangerous, Endpoint, MAX_MTU, MAX_WORKERS, MIN_MTU, Overrides,
    PinnedPeer, RoleConfig, Source, default_state_dir, raw, userspace,
};

/// The file while it is being checked: text for line numbers, name for messages.
pub(super) struct File<'a> {
    pub(super) path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    pub(super) fn line(&self, offset: usize) -> usize {
        let end = offset.min(self.text.len());
        self.text.as_bytes()[..end].iter().filter(|b| **b == b'\n').count() + 1
    }

    pub(super) fn refuse(
        &self,
        key: &str,
        offset: usize,
        reason: impl fmt::Display,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.path.display().to_string(),
            line: self.line(offset),
            key: key.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(super) fn parse<T>(&self, key: &str, value: &Spanned<String>) -> Result<T, ConfigError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        value.get_ref().parse().map_err(|e: T::Err| self.refuse(key, value.span().start, e))
    }

    fn range(
        &self,
        key: &str,
        value: &Spanned<i64>,
        unit: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Result<i64, ConfigError> {
        if range.contains(value.get_ref()) {
            return Ok(*value.get_ref());
        }
        let reason = format!(
            "{} is out of range: use {} to {} {unit}",
            value.get_ref(),
            range.start(),
            range.end()
        );
        Err(self.refuse(key, value.span().start, reason))
    }
}

impl Config {
    /// As [`Config::load`], with the file's text already read; `path` is used
    /// in messages and to resolve relative paths.
    ///
    /// # Errors
    /// [`ConfigError`] when anything is not allowed.
    pub fn from_text(path: &Path, text: &str, flags: Overrides) -> Result<Self, ConfigError> {
        let raw: raw::RawConfig = toml::from_str(text).map_err(|e| ConfigError::Syntax {
            path: path.display().to_string(),
            detail: e.to_string().trim_end().to_owned(),
        })?;
        let file = File { path, text };
        let mut sources = BTreeMap::new();
        let open_proxy = raw.dangerous.open_proxy.as_ref().is_some_and(|v| *v.get_ref());
        let userspace = userspace::parse(&file, &raw.userspace, &flags, open_proxy, &mut sources)?;

        /// A scalar: flag, else file, else default; notes where it came from.
        macro_rules! pick {
            ($key:literal, $flag:expr, $raw:expr) => {{
                let from_file = match &$raw {
                    Some(v) => Some((file.parse($key, v)?, file.line(v.span().start))),
                    None => None,
                };
                match ($flag, from_file) {
                    (Some(v), _) => {
                        sources.insert($key, Source::Flag);
                        Some(v)
                    }
                    (None, Some((v, line))) => {
                        sources.insert($key, Source::File(line));
                        Some(v)
                    }
                    (None, None) => None,
                }
            }};
        }

        let name = pick!("name", flags.name, raw.name);
        let network = pick!("network", flags.network, raw.network);
        let listen = pick!("listen", flags.listen, raw.listen).unwrap_or_default();
        let tcp_listen = pick!("tcp_listen", flags.tcp_listen, raw.tcp_listen);
        let metrics = pick!("metrics", flags.metrics, raw.metrics);
        let interface = pick!("interface", flags.interface, raw.interface).unwrap_or_default();
        let suite = pick!("suite", flags.suite, raw.suite);
        let pq = pick!("pq", None, raw.pq).unwrap_or_default();
        let log_format = pick!("log_format", flags.log_format, raw.log_format).unwrap_or_default();
        let log_level = pick!("log_level", flags.log_level, raw.log_level).unwrap_or_default();

        let mut endpoints = parse_list(&file, "endpoints", &raw.endpoints, &mut sources)?;
        if !flags.endpoints.is_empty() {
            sources.insert("endpoints", Source::Flag);
            endpoints = flags.endpoints;
        }
        let bootstrap = parse_list(&file, "bootstrap", &raw.bootstrap, &mut sources)?;

        let mut workers = None;
        if let Some(v) = &raw.workers {
            let n = file.range("workers", v, "worker pairs", 1..=MAX_WORKERS as i64)?;
            sources.insert("workers", Source::File(file.line(v.span().start)));
            workers = NonZeroUsize::new(n as usize);
        }
        if let Some(n) = flags.workers {
            if !(1..=MAX_WORKERS).contains(&n) {
                return Err(ConfigError::Setting(format!(
                    "--workers {n} is out of range: use 1 to {MAX_WORKERS} worker pairs"
                )));
            }
            sources.insert("workers", Source::Flag);
            workers = NonZeroUsize::new(n);
        }
        let mut mtu = None;
        if let Some(v) = &raw.mtu {
            let n = file.range("mtu", v, "bytes", MIN_MTU.into()..=MAX_MTU.into())?;
            sources.insert("mtu", Source::File(file.line(v.span().start)));
            mtu = u32::try_from(n).ok();
        }

        let mut switch = |key: &'static str, raw: &raw::Value<bool>, off: bool| {
            if let Some(v) = raw {
                sources.insert(key, Source::File(file.line(v.span().start)));
            }
            if off {
                sources.insert(key, Source::Flag);
            }
            !off && raw.as_ref().is_none_or(|v| *v.get_ref())
        };
        let relay = switch("relay", &raw.relay, false);
        let dns = switch("dns", &raw.dns, flags.no_dns);
        let lan_discovery = switch("lan_discovery", &raw.lan_discovery, flags.no_lan_discovery);
        let port_mapping = switch("port_mapping", &raw.port_mapping, flags.no_port_mapping);
        let tcp_fallback = switch("tcp_fallback", &raw.tcp_fallback, false);

        let roles = RoleConfig::parse(&file, &raw, flags.roles, &mut sources)?;
        let auth = parse_auth(&file, &raw, &mut sources)?;
        let exit_resolver: Option<IpAddr> = pick!("exit.resolver", None, raw.exit.resolver);
        if let (Some(address), Some(value)) = (exit_resolver, &raw.exit.resolver)
            // In userspace mode it is this machine that asks.
            && userspace.is_none()
            && address.is_loopback()
        {
            let reason = format!("{address} answers this machine only: name one others can ask");
            return Err(file.refuse("exit.resolver", value.span().start, reason));
        }
        let mut dangerous = Dangerous::default();
        if let Some(v) = &raw.dangerous.keep_privileges {
            sources.insert("dangerous.keep_privileges", Source::File(file.line(v.span().start)));
            dangerous.keep_privileges = *v.get_ref();
        }
        if let Some(v) = &raw.dangerous.certificate_life {
            let key = "dangerous.certificate_life";
            let most = NODE_CERTIFICATE_LIFE.cast_signed();
            let n = file.range(key, v, "seconds", 20..=most)?;
            sources.insert(key, Source::File(file.line(v.span().start)));
            dangerous.certificate_life = u64::try_from(n).ok();
        }
        if let Some(v) = &raw.dangerous.open_proxy {
            sources.insert("dangerous.open_proxy", Source::File(file.line(v.span().start)));
            dangerous.open_proxy = *v.get_ref();
        }
        if userspace.is_some() && sources.contains_key("interface") {
            return Err(ConfigError::Setting(
                "`interface` has no effect in userspace mode, which makes none: remove one of them"
                    .to_owned(),
            ));
        }
        if flags.state_dir.is_some() {
            sources.insert("state_dir", Source::Flag);
        }
        Ok(Self {
            state_dir: flags.state_dir.unwrap_or_else(default_state_dir),
            name,
            network,
            listen,
            interface,
            suite,
            endpoints,
            bootstrap,
            tcp_listen,
            tcp_fallback,
            metrics,
            workers,
            mtu,
            pq,
            relay,
            roles,
            dns,
            lan_discovery,
            port_mapping,
            log_format,
            log_level,
            auth,
            exit_resolver,
            userspace,
            dangerous,
            sources,
        })
    }
}

fn parse_list(
    file: &File<'_>,
    key: &'static str,
    values: &[Spanned<String>],
    sources: &mut BTreeMap<&'static str, Source>,
) -> Result<Vec<Endpoint>, ConfigError> {
    let mut parsed = Vec::with_capacity(values.len());
    for value in values {
        sources.entry(key).or_insert_with(|| Source::File(file.line(value.span().start)));
        let endpoint = file.parse(key, value)?;
        if !parsed.contains(&endpoint) {
            parsed.push(endpoint);
        }
    }
    Ok(parsed)
}

fn parse_auth(
    file: &File<'_>,
    raw: &raw::RawConfig,
    sources: &mut BTreeMap<&'static str, Source>,
) -> Result<Auth, ConfigError> {
    let mode = raw.auth.mode.as_ref();
    let word = mode.map_or("certificate", |m| m.get_ref().as_str());
    if let Some(m) = mode {
        sources.insert("auth.mode", Source::File(file.line(m.span().start)));
    }
    if word != "psk"
        && let Some(v) = &raw.auth.psk_file
    {
        return Err(file.refuse(
            "psk_file",
            v.span().start,
            format!("has no effect with mode = \"{word}\": remove it, or set mode = \"psk\""),
        ));
    }
    if word != "key"
        && let Some(peer) = raw.peer.first()
    {
        return Err(file.refuse(
            "peer",
            peer.span().start,
            format!(
                "pinned peers have no effect with mode = \"{word}\": remove them, or set mode = \"key\" under [auth]"
            ),
        ));
    }
    match word {
        "certificate" => Ok(Auth::Certificate),
        "psk" => {
            let Some(v) = &raw.auth.psk_file else {
                return Err(file.refuse(
                    "mode",
                    mode.map_or(0, |m| m.span().start),
                    "\"psk\" needs psk_file: the path of a file made by `warren psk generate`",
                ));
            };
            sources.insert("auth.psk_file", Source::File(file.line(v.span().start)));
            let folder = file.path.parent().unwrap_or(Path::new(""));
            Ok(Auth::Psk { file: folder.join(v.get_ref()) })
        }
        "key" => {
            if raw.peer.is_empty() {
                return Err(file.refuse(
                    "mode",
                    mode.map_or(0, |m| m.span().start),
                    "\"key\" needs at least one [[peer]] with name and public_key",
                ));
            }
            Ok(Auth::Key { peers: parse_peers(file, &raw.peer)? })
        }
        _ => Err(file.refuse(
            "mode",
            mode.map_or(0, |m| m.span().start),
            "use \"certificate\", \"key\" or \"psk\"",
        )),
    }
}

fn parse_peers(
    file: &File<'_>,
    raw: &[Spanned<raw::RawPeer>],
) -> Result<Vec<PinnedPeer>, ConfigError> {
    let mut peers: Vec<PinnedPeer> = Vec::with_capacity(raw.len());
    for peer in raw {
        let at = peer.get_ref();
        let name: NodeName = file.parse("name", &at.name)?;
        let public_key: NodeId = at.public_key.get_ref().parse().map_err(|e| {
            let hint = "copy what `warren key` prints on that node (52 letters and digits)";
            file.refuse("public_key", at.public_key.span().start, format!("{e}; {hint}"))
        })?;
        let endpoint = match &at.endpoint {
            Some(v) => Some(file.parse("endpoint", v)?),
            None => None,
        };
        if peers.iter().any(|p| p.name == name) {
            return Err(file.refuse(
                "name",
                at.name.span().start,
                format!("a second peer named `{name}`: names are unique in a network"),
            ));
        }
        if peers.iter().any(|p| p.public_key == public_key) {
            return Err(file.refuse(
                "public_key",
                at.public_key.span().start,
                "a second peer with this key: every node has its own",
            ));
        }
        peers.push(PinnedPeer { name, public_key, endpoint });
    }
    Ok(peers)
}

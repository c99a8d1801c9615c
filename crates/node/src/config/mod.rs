//! Configuration of one daemon: file, then flags over it, then validation.
//!
//! In: the text of a TOML file and the [`Overrides`] of the command line.
//! Out: [`Config`], whose every value is usable as it stands, or a
//! [`ConfigError`] that names the file, the line, and what is allowed.
//! Invariants: unknown fields are refused; a flag always wins over the file;
//! two settings that contradict each other are an error, never a silent choice.
//! Deliberately not here: secrets (only the path of the pre-shared key is), and
//! anything read from the environment.

mod effective;
mod raw;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use warren_types::{NetworkName, NodeId, NodeName, Suite};

pub use value::{
    BadValue, DEFAULT_PORT, Endpoint, InterfaceName, Listen, LogFormat, LogLevel, PostQuantum,
};

use crate::fault::{Fault, FaultKind};

/// Smallest MTU of the overlay interface, bytes: IPv6 needs 1280 (RFC 8200 section 5).
pub const MIN_MTU: u32 = 1280;
/// Largest MTU of the overlay interface, bytes.
pub const MAX_MTU: u32 = 9000;
/// Largest number of worker pairs.
pub const MAX_WORKERS: usize = 64;

/// Everything the daemon is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// `--state-dir`: keys, state and the API socket. Default: `/var/lib/warren`
    /// for root, else `$XDG_STATE_HOME/warren`. One daemon per directory.
    pub state_dir: PathBuf,
    /// `name`: this node's name, one DNS label, unique in the network. Default:
    /// the one stored at the first start, else the host name. Fixed once stored.
    pub name: Option<NodeName>,
    /// `network`: the network's name, one DNS label. Default: `warren` when a
    /// network is created; members take it from the join code.
    pub network: Option<NetworkName>,
    /// `listen`: UDP address, `ADDR:PORT`. Default `[::]:9277` (IPv4 as well).
    /// Links and control connections share this one port.
    pub listen: Listen,
    /// `interface`: name of the TUN interface. Default `warren0`.
    pub interface: InterfaceName,
    /// `suite`: `aes256gcm` (default) or `chacha20poly1305`; fixed when the
    /// network is created, members follow and may not contradict it.
    pub suite: Option<Suite>,
    /// `endpoints`: where others reach this node, `HOST:PORT`, best first.
    /// Default: the addresses of its own interfaces with the listen port.
    /// Needed behind a port forwarding.
    pub endpoints: Vec<Endpoint>,
    /// `bootstrap`: `HOST:PORT` of nodes to contact at start, besides those
    /// remembered. Default: none.
    pub bootstrap: Vec<Endpoint>,
    /// `workers`: pairs of data-path threads, 1 to 64. Default: 1 on up to two
    /// cores, else half the cores, at most 4. One flow uses one pair.
    pub workers: Option<NonZeroUsize>,
    /// `mtu`: of the overlay interface, bytes, 1280 to 9000. Default 1420, which
    /// fits an underlay of 1500; the path MTU of each peer is probed below it.
    pub mtu: Option<u32>,
    /// `pq`: `preferred` (default) or `required`: whether a link between nodes
    /// waits for the post-quantum secret before it carries data.
    pub pq: PostQuantum,
    /// `log_format`: `text` (default) or `json`, on standard error.
    pub log_format: LogFormat,
    /// `log_level`: `error`, `warn` (default), `info`, `debug` or `trace`.
    pub log_level: LogLevel,
    /// `[auth]` and `[[peer]]`: how nodes prove who they are.
    pub auth: Auth,
    /// `[dangerous]`: options that weaken security.
    pub dangerous: Dangerous,
    sources: BTreeMap<&'static str, Source>,
}

/// How nodes prove to each other who they are. All three are mutual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// `mode = "certificate"` (default): certificates of the network's CA.
    Certificate,
    /// `mode = "key"`: only the nodes listed here, by their public keys.
    Key {
        /// At least one.
        peers: Vec<PinnedPeer>,
    },
    /// `mode = "psk"`: whoever holds the 256-bit key in this file.
    Psk {
        /// Path of the key file (`warren psk generate` prints one), relative
        /// to the configuration file.
        file: PathBuf,
    },
}

impl Auth {
    /// The word in the file and the API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Key { .. } => "key",
            Self::Psk { .. } => "psk",
        }
    }
}

/// A `[[peer]]` of key mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedPeer {
    /// `name`: its name, one DNS label.
    pub name: NodeName,
    /// `public_key`: its identity as `warren key` prints it there.
    pub public_key: NodeId,
    /// `endpoint`: `HOST:PORT` to contact it at. Default: wait until it calls.
    pub endpoint: Option<Endpoint>,
}

/// Options that weaken security; each is logged at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dangerous {
    /// `keep_privileges`: do not drop capabilities and do not confine the
    /// daemon after its start. Default false.
    pub keep_privileges: bool,
}

/// What the command line sets; each wins over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--name`.
    pub name: Option<NodeName>,
    /// `--network`.
    pub network: Option<NetworkName>,
    /// `--listen`.
    pub listen: Option<Listen>,
    /// `--interface`.
    pub interface: Option<InterfaceName>,
    /// `--suite`.
    pub suite: Option<Suite>,
    /// `--endpoint`, repeatable; replaces the file's list.
    pub endpoints: Vec<Endpoint>,
    /// `--workers`.
    pub workers: Option<usize>,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
    /// `--log-level`.
    pub log_level: Option<LogLevel>,
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// This line of the file, from 1.
    File(usize),
    /// The flag of that name.
    Flag,
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {path}: {reason}")]
    Read {
        /// The file.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// Not TOML, a value of the wrong kind, or an unknown field.
    #[error("{path}: {detail}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, column, excerpt and what was expected.
        detail: String,
    },
    /// A value in the file is not allowed.
    #[error("{path}:{line}: `{key}`: {reason}")]
    Value {
        /// The file.
        path: String,
        /// Line in it, from 1.
        line: usize,
        /// The key.
        key: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// A flag's value is not allowed, or settings contradict each other.
    #[error("{0}")]
    Setting(String),
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        let fault = Fault::new(FaultKind::Config, error.to_string());
        match error {
            ConfigError::Read { .. } => fault.remedy("check the path given to --config"),
            _ => fault.remedy(
                "correct it; `warren config show --effective` prints the result without starting anything",
            ),
        }
    }
}

/// The file while it is being checked: text for line numbers, name for messages.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn line(&self, offset: usize) -> usize {
        let end = offset.min(self.text.len());
        self.text.as_bytes()[..end].iter().filter(|b| **b == b'\n').count() + 1
    }

    fn refuse(&self, key: &str, offset: usize, reason: impl fmt::Display) -> ConfigError {
        ConfigError::Value {
            path: self.path.display().to_string(),
            line: self.line(offset),
            key: key.to_owned(),
            reason: reason.to_string(),
        }
    }

    fn parse<T>(&self, key: &str, value: &Spanned<String>) -> Result<T, ConfigError>
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
    /// Reads `file` (if given) and applies `overrides`.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read or anything in it or in the
    /// flags is not allowed.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        match file {
            None => Self::from_text(Path::new("(no file)"), "", overrides),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| ConfigError::Read {
                    path: path.display().to_string(),
                    reason: e.to_string(),
                })?;
                Self::from_text(path, &text, overrides)
            }
        }
    }

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

        let auth = parse_auth(&file, &raw, &mut sources)?;
        let mut dangerous = Dangerous::default();
        if let Some(v) = &raw.dangerous.keep_privileges {
            sources.insert("dangerous.keep_privileges", Source::File(file.line(v.span().start)));
            dangerous.keep_privileges = *v.get_ref();
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
            workers,
            mtu,
            pq,
            log_format,
            log_level,
            auth,
            dangerous,
            sources,
        })
    }

    /// Where the value of `key` came from.
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).copied().unwrap_or(Source::Default)
    }

    /// Worker pairs to start: as configured, else by the number of cores.
    pub fn worker_pairs(&self, cores: usize) -> usize {
        match self.workers {
            Some(n) => n.get(),
            None if cores <= 2 => 1,
            None => (cores / 2).min(4),
        }
    }

    /// MTU of the overlay interface, bytes.
    pub fn interface_mtu(&self) -> u32 {
        self.mtu.unwrap_or(warren_proto::link::peer::DEFAULT_MTU)
    }

    /// The daemon's API socket.
    pub fn api_socket(&self) -> PathBuf {
        api_socket(&self.state_dir)
    }
}

/// The API socket of the daemon that owns `state_dir`.
pub fn api_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("api.sock")
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

/// `/var/lib/warren` for root, else `$XDG_STATE_HOME/warren`, else
/// `~/.local/state/warren` (XDG base directory specification 0.8).
pub fn default_state_dir() -> PathBuf {
    let absolute =
        |var: &str| std::env::var_os(var).map(PathBuf::from).filter(|p: &PathBuf| p.is_absolute());
    if is_root() {
        return PathBuf::from("/var/lib/warren");
    }
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("warren")
}

/// True when the effective user is root, as the kernel reports it (works for a
/// binary with file capabilities too, whose `/proc/self` belongs to root).
fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|uids| uids.split_whitespace().nth(1))
        .is_some_and(|effective| effective == "0")
}

#[cfg(test)]
mod tests;

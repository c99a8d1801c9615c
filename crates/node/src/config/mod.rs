//! Configuration of one daemon: file, then flags over it, then validation.
//!
//! In: the text of a TOML file and the [`Overrides`] of the command line.
//! Out: [`Config`], whose every value is usable as it stands, or a
//! [`ConfigError`] that names the file, the line, and what is allowed.
//! Invariants: unknown fields are refused; a flag always wins over the file;
//! two settings that contradict each other are an error, never a silent choice.
//! Of the environment only what names the default state directory is read.
//! Deliberately not here: secrets (only the path of the pre-shared key is).

mod effective;
mod parse;
mod raw;
mod roles;
mod userspace;
mod value;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use warren_control::ca::NODE_CERTIFICATE_LIFE;
use warren_types::{NetworkName, NodeId, NodeName, Suite};

pub use roles::RoleConfig;
pub use value::{
    BadValue, DEFAULT_PORT, Endpoint, InterfaceName, Listen, LogFormat, LogLevel, MetricsListen,
    PostQuantum,
};

use crate::fault::{Fault, FaultKind};
use crate::userspace::{Publish, Settings};

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
    /// `tcp_listen`: `ADDR:PORT` where this node offers TLS over TCP to nodes
    /// whose UDP is blocked; 443 passes most firewalls. Default: not offered.
    pub tcp_listen: Option<Listen>,
    /// `tcp_fallback`: reach members that offer it over TCP where UDP does not
    /// get through. Default true; with false such members stay unreachable.
    pub tcp_fallback: bool,
    /// `metrics`: `ADDR:PORT` where figures of this node are served for
    /// Prometheus; on loopback or one of its mesh addresses. Default: not served.
    pub metrics: Option<MetricsListen>,
    /// `workers`: pairs of data-path threads, 1 to 64. Default: 1 on up to two
    /// cores, else half the cores, at most 4. One flow uses one pair.
    pub workers: Option<NonZeroUsize>,
    /// `mtu`: of the overlay interface, bytes, 1280 to 9000. Default 1420, which
    /// fits an underlay of 1500; the path MTU of each peer is probed below it.
    pub mtu: Option<u32>,
    /// `pq`: `preferred` (default) or `required`: whether a link between nodes
    /// waits for the post-quantum secret before it carries data.
    pub pq: PostQuantum,
    /// `relay`: `true` (default) passes on datagrams between other members that
    /// cannot reach each other directly; this node sees who talks to whom, not
    /// what. With `false` they find another way or none; its own traffic still
    /// goes over others.
    pub relay: bool,
    /// `roles`, `region`, `city`, `bandwidth`, `family` and `exit_policy`: what
    /// this node does for onion paths of others. Default: nothing.
    pub roles: RoleConfig,
    /// `dns`: answer `NODE.NETWORK.warren` on port 53 of the overlay addresses
    /// and tell systemd-resolved. Default true.
    pub dns: bool,
    /// `lan_discovery`: find members on the local network by mDNS, and be found.
    /// Default true.
    pub lan_discovery: bool,
    /// `port_mapping`: ask the router for a port (PCP, NAT-PMP, UPnP). Default
    /// true; without effect where `endpoints` are set.
    pub port_mapping: bool,
    /// `log_format`: `text` (default) or `json`, on standard error.
    pub log_format: LogFormat,
    /// `log_level`: `error`, `warn` (default), `info`, `debug` or `trace`.
    pub log_level: LogLevel,
    /// `[auth]` and `[[peer]]`: how nodes prove who they are.
    pub auth: Auth,
    /// `exit.resolver`: address of the DNS server that answers an exit's
    /// clients, port 53; not one of this machine's loopback. Default: the first
    /// of this machine's `resolv.conf` (behind systemd-resolved, of what that
    /// asks).
    pub exit_resolver: Option<IpAddr>,
    /// `[userspace]`: run without a TUN interface and without privileges.
    /// Default: with one.
    pub userspace: Option<Settings>,
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
    /// `certificate_life`: of node certificates this node issues, seconds, 20 to
    /// 7776000 (90 days, the default). Short ones end while an admin is down.
    pub certificate_life: Option<u64>,
    /// `open_proxy`: let a proxy of userspace mode listen on other addresses
    /// than loopback without a password. Default false.
    pub open_proxy: bool,
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
    /// `--tcp-listen`.
    pub tcp_listen: Option<Listen>,
    /// `--metrics`.
    pub metrics: Option<MetricsListen>,
    /// `--suite`.
    pub suite: Option<Suite>,
    /// `--endpoint`, repeatable; replaces the file's list.
    pub endpoints: Vec<Endpoint>,
    /// `--workers`.
    pub workers: Option<usize>,
    /// `--roles` and what goes with it.
    pub roles: RoleConfig,
    /// `--no-dns`.
    pub no_dns: bool,
    /// `--no-lan-discovery`.
    pub no_lan_discovery: bool,
    /// `--no-port-mapping`.
    pub no_port_mapping: bool,
    /// `--userspace`.
    pub userspace: bool,
    /// `--socks`.
    pub socks: Option<SocketAddr>,
    /// `--http`.
    pub http: Option<SocketAddr>,
    /// `--proxy-password-file`.
    pub proxy_password_file: Option<PathBuf>,
    /// `--publish`, repeatable; replaces the file's list.
    pub publish: Vec<Publish>,
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

    /// Where the value of `key` came from.
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).copied().unwrap_or(Source::Default)
    }

    /// Worker pairs to start: as configured, else by the number of cores.
    pub fn worker_pairs(&self, cores: usize) -> usize {
        match self.workers {
            Some(n) => n.get(),
            None => crate::workers::default_workers(cores),
        }
    }

    /// Life of the node certificates that this node issues, seconds.
    pub fn certificate_life(&self) -> u64 {
        self.dangerous.certificate_life.unwrap_or(NODE_CERTIFICATE_LIFE)
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

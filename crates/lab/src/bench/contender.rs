//! Who can take part, where its programs are, and how to get them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use warren_types::Suite;

use super::tunnel::Tunnel;
use super::{nebula, warren, wireguard};
use crate::topology::Pair;

/// A VPN, or a way to run one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// No VPN: what the link itself carries.
    Direct,
    /// Warren on both ends, suite `aes256gcm`.
    WarrenAes,
    /// Warren on both ends, suite `chacha20poly1305`.
    WarrenChacha,
    /// Warren on the sending end, wireguard-go on the other.
    WarrenToWireguardGo,
    /// wireguard-go on both ends.
    WireguardGo,
    /// boringtun on both ends, one thread (on two cores more are slower).
    Boringtun,
    /// gotatun on both ends.
    Gotatun,
    /// nebula on both ends, AES.
    Nebula,
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Direct,
        Self::WarrenAes,
        Self::WarrenChacha,
        Self::WarrenToWireguardGo,
        Self::WireguardGo,
        Self::Boringtun,
        Self::Gotatun,
        Self::Nebula,
    ];

    /// Name in tables and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::WarrenAes => "warren-aes",
            Self::WarrenChacha => "warren-chacha",
            Self::WarrenToWireguardGo => "warren-to-wireguard-go",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Gotatun => "gotatun",
            Self::Nebula => "nebula",
        }
    }

    /// True for Warren's own rows.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::WarrenAes | Self::WarrenChacha | Self::WarrenToWireguardGo)
    }

    /// Programs it takes, each with the way to get it from public packages.
    fn needs(self) -> &'static [(&'static str, &'static str)] {
        const WG: (&str, &str) = ("wg", "Debian: apt install wireguard-tools");
        const WIREGUARD_GO: (&str, &str) = (
            "wireguard-go",
            "Debian 13 or later: apt install wireguard-go (Debian 12's of 2022 has no offloads \
             and is half as fast)",
        );
        match self {
            Self::Direct => &[],
            Self::WarrenAes | Self::WarrenChacha => {
                const { &[("warren", "cargo build --release -p warren")] }
            }
            Self::WarrenToWireguardGo => {
                const { &[("warren", "cargo build --release -p warren"), WIREGUARD_GO, WG] }
            }
            Self::WireguardGo => const { &[WIREGUARD_GO, WG] },
            Self::Boringtun => {
                const { &[("boringtun-cli", "crates.io: cargo install boringtun-cli"), WG] }
            }
            Self::Gotatun => {
                const {
                    &[
                        (
                            "gotatun",
                            "from source: clone the repository mullvad/gotatun from GitHub, \
                             cargo build --release -p gotatun-cli, --peer-path target/release",
                        ),
                        WG,
                    ]
                }
            }
            Self::Nebula => {
                const {
                    &[
                        ("nebula", "Debian: apt install nebula"),
                        ("nebula-cert", "Debian: apt install nebula"),
                    ]
                }
            }
        }
    }

    /// What is missing and how to get it; none when all is there.
    #[must_use]
    pub fn missing(self, programs: &Programs) -> Option<String> {
        let missing: Vec<String> = self
            .needs()
            .iter()
            .filter(|(program, _)| programs.find(program).is_none())
            .map(|(program, hint)| format!("no {program} found; {hint}"))
            .collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// Starts and configures it on both hosts; returns once packets pass.
    pub(super) fn start<'p>(
        self,
        pair: &'p Pair,
        programs: &Programs,
        scratch: &Path,
    ) -> Result<Tunnel<'p>> {
        match self {
            Self::Direct => Ok(Tunnel::direct(pair)),
            Self::WarrenAes => warren::start(pair, programs, scratch, Suite::Aes256Gcm),
            Self::WarrenChacha => warren::start(pair, programs, scratch, Suite::ChaCha20Poly1305),
            Self::WarrenToWireguardGo => warren::start_with_wireguard_go(pair, programs, scratch),
            Self::WireguardGo => wireguard::start(pair, programs, scratch, "wireguard-go", &["-f"]),
            Self::Boringtun => wireguard::start(
                pair,
                programs,
                scratch,
                "boringtun-cli",
                &["--foreground", "--disable-drop-privileges", "--threads", "1"],
            ),
            Self::Gotatun => wireguard::start(
                pair,
                programs,
                scratch,
                "gotatun",
                &["--foreground", "--disable-drop-privileges"],
            ),
            Self::Nebula => nebula::start(pair, programs, scratch),
        }
    }
}

impl std::str::FromStr for Contender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|contender| contender.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("unknown contender {text}: one of {names}")
        })
    }
}

/// Where programs are looked for.
#[derive(Debug, Clone)]
pub struct Programs {
    directories: Vec<PathBuf>,
}

impl Programs {
    /// The given directories (or files) first, then the directory of the
    /// running program, then `PATH` and the system directories.
    #[must_use]
    pub fn new(first: &[PathBuf]) -> Self {
        let mut directories = first.to_vec();
        let own = std::env::current_exe().ok();
        directories.extend(own.and_then(|path| path.parent().map(Path::to_owned)));
        let path = std::env::var_os("PATH").unwrap_or_default();
        directories.extend(std::env::split_paths(&path));
        directories.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        Self { directories }
    }

    /// The first program of this name.
    #[must_use]
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        self.directories.iter().find_map(|directory| {
            if directory.file_name().is_some_and(|name| name == program) && directory.is_file() {
                return Some(directory.clone());
            }
            Some(directory.join(program)).filter(|path| path.is_file())
        })
    }

    /// As [`Programs::find`], for one known to be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn get(&self, program: &str) -> Result<PathBuf> {
        self.find(program).ok_or_else(|| anyhow::anyhow!("no {program} found"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for contender in Contender::ALL {
            assert_eq!(contender.name().parse(), Ok(contender));
        }
        assert!("openvpn".parse::<Contender>().unwrap_err().contains("wireguard-go"));
    }

    #[test]
    fn missing_programs_come_with_the_way_to_get_them() {
        let nothing = Programs { directories: vec![] };
        for contender in Contender::ALL {
            let missing = contender.missing(&nothing);
            assert_eq!(missing.is_none(), contender == Contender::Direct);
        }
        let hint = Contender::Boringtun.missing(&nothing).unwrap();
        assert!(hint.contains("cargo install boringtun-cli"), "{hint}");
    }
}

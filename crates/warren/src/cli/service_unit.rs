//! `warren service-unit`: a systemd unit with only what the daemon needs.

use std::path::{Path, PathBuf};

use clap::Args;
use warren_node::fault::{Fault, FaultKind};

/// Arguments of `warren service-unit`.
#[derive(Debug, Args)]
pub(super) struct ServiceUnit {
    /// The state directory of the node.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/warren")]
    state_dir: PathBuf,
    /// Configuration file of the node.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The program [default: this one].
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

impl ServiceUnit {
    /// The unit file.
    pub(super) fn render(&self) -> Result<String, Fault> {
        let binary = match &self.binary {
            Some(path) => path.clone(),
            None => std::env::current_exe().map_err(|e| Fault::internal(&e))?,
        };
        let mut start = format!("{} up --state-dir {}", word(&binary)?, word(&self.state_dir)?);
        if let Some(config) = &self.config {
            start.push_str(&format!(" --config {}", word(config)?));
        }
        let state = word(&self.state_dir)?;
        let directory = if self.state_dir == Path::new("/var/lib/warren") {
            "StateDirectory=warren\nStateDirectoryMode=0700".to_owned()
        } else {
            format!("ReadWritePaths={state}")
        };
        Ok(format!(
            "\
# /etc/systemd/system/warren.service, printed by `warren service-unit`.
# First make or join a network (`warren up` or `warren join CODE`), stop it with
# `warren down`, then: systemctl daemon-reload && systemctl enable --now warren
[Unit]
Description=Warren mesh VPN
After=network-online.target systemd-resolved.service
Wants=network-online.target

[Service]
ExecStart={start}
Restart=on-failure
RestartSec=2
# Wrong usage, wrong configuration and refusals do not mend themselves.
RestartPreventExitStatus=2 3 7

# Its own files, and nothing else of the system.
{directory}
RuntimeDirectory=wireguard
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
UMask=0077
ProtectSystem=strict
# While connected through an exit, where systemd-resolved does not answer.
ReadWritePaths=-/etc/resolv.conf
ProtectHome=yes
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw

# Interface and routes; port 53 of the overlay addresses (given up once bound).
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE
AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
# Forwarding for an exit, marks for a client; the daemon itself is kept from
# them by its own confinement, its helper process makes the change.
ProtectKernelTunables=no
ProtectProc=invisible
SystemCallArchitectures=native
# Its own confinement (Landlock, seccomp) needs these besides the usual ones.
SystemCallFilter=@system-service seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self

[Install]
WantedBy=multi-user.target
"
        ))
    }
}

/// A path as one word of `ExecStart=` (systemd.service(5), "Command lines").
fn word(path: &Path) -> Result<String, Fault> {
    let text = path.to_str().filter(|t| !t.chars().any(|c| c.is_control())).ok_or_else(|| {
        Fault::new(FaultKind::Usage, format!("{} cannot stand in a unit file", path.display()))
            .remedy("use a path of ordinary characters")
    })?;
    if !path.is_absolute() {
        let what = format!("{text} is a relative path");
        return Err(Fault::new(FaultKind::Usage, what).remedy("give the full path"));
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    let escaped = escaped.replace('$', "$$");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,=%$".contains(c);
    Ok(if escaped.chars().all(plain) { escaped } else { format!("\"{escaped}\"") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(state_dir: &str) -> Result<String, Fault> {
        ServiceUnit {
            state_dir: state_dir.into(),
            config: Some("/etc/warren/warren.toml".into()),
            binary: Some("/usr/bin/warren".into()),
        }
        .render()
    }

    #[test]
    fn few_capabilities_and_the_right_command() {
        let text = unit("/var/lib/warren").unwrap();
        assert!(text.contains(
            "ExecStart=/usr/bin/warren up --state-dir /var/lib/warren --config /etc/warren/warren.toml\n"
        ));
        assert!(text.contains("CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE\n"));
        assert!(text.contains("StateDirectory=warren\n"));
        assert!(unit("/srv/w").unwrap().contains("ReadWritePaths=/srv/w\n"));
    }

    #[test]
    fn odd_paths_are_quoted_or_refused() {
        assert!(unit("/srv/a b%c").unwrap().contains("--state-dir \"/srv/a b%%c\""));
        assert!(unit("relative").is_err());
        assert!(unit("/a\nExecStartPre=/bin/evil").is_err());
    }
}

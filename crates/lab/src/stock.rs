//! Unmodified WireGuard programs: starting one on a host, and configuring it
//! by the `wg` tool as its users do.
//!
//! Userspace WireGuards all put their control sockets into `/run/wireguard`,
//! whatever their network namespace: see [`crate::topology::hide_run`], and
//! give each interface of a lab a name of its own.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ipnet::IpNet;
use warren_os::files::write_private;
use warren_os::netlink::LinkSettings;

use crate::bench::Programs;
use crate::process::KilledOnDrop;
use crate::topology::{Host, output_of};

/// Inner MTU, bytes: WireGuard's usual one.
pub const MTU: u32 = 1420;

/// A WireGuard process on a host; ends with this value.
pub struct Device {
    child: KilledOnDrop,
    interface: String,
}

impl Device {
    /// Starts a userspace WireGuard and waits for its control socket.
    ///
    /// # Errors
    /// When the program is missing or does not come up.
    pub fn spawn(
        host: &Host,
        programs: &Programs,
        program: &str,
        arguments: &[&str],
        interface: &str,
    ) -> Result<Self> {
        let mut command = host.command(programs.get(program)?);
        command.args(arguments).arg(interface);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = KilledOnDrop(command.spawn()?);
        let socket = format!("/run/wireguard/{interface}.sock");
        // Connected to rather than looked at: `wg` deletes a socket nobody
        // listens on.
        wait_for(program, &mut child.0, || UnixStream::connect(&socket).is_ok())?;
        Ok(Self { child, interface: interface.to_owned() })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Name of its interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The process itself.
    #[must_use]
    pub fn into_child(self) -> KilledOnDrop {
        self.child
    }
}

/// The keys of a `wg-quick` configuration as `warren wg add-client` prints it.
#[derive(Default, Clone)]
pub struct QuickConfig {
    /// Secret key of the client.
    pub private_key: String,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Key of the server.
    pub public_key: String,
    /// Shared by both, if used.
    pub preshared_key: Option<String>,
    /// Where the server is.
    pub endpoint: String,
    /// What goes through the tunnel, separated by commas.
    pub allowed: String,
}

impl QuickConfig {
    /// Reads the keys it knows and skips the rest.
    ///
    /// # Errors
    /// When one that a client cannot do without is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let mut config = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim();
            match key.trim() {
                "PrivateKey" => config.private_key = value.to_owned(),
                "PublicKey" => config.public_key = value.to_owned(),
                "PresharedKey" => config.preshared_key = Some(value.to_owned()),
                "Endpoint" => config.endpoint = value.to_owned(),
                "AllowedIPs" => config.allowed = value.replace(' ', ""),
                "Address" => {
                    for address in value.split(',').map(str::trim) {
                        let net = match address.contains('/') {
                            true => address.parse()?,
                            false => IpNet::from(address.parse::<IpAddr>()?),
                        };
                        config.addresses.push(net);
                    }
                }
                _ => {}
            }
        }
        for (name, value) in [
            ("PrivateKey", &config.private_key),
            ("PublicKey", &config.public_key),
            ("Endpoint", &config.endpoint),
            ("AllowedIPs", &config.allowed),
        ] {
            anyhow::ensure!(!value.is_empty(), "the client configuration has no {name}");
        }
        Ok(config)
    }

    /// Configures a running WireGuard with it, as `wg-quick` would: keys,
    /// addresses, routes (with cubic, for comparable figures). Secrets go
    /// through private files in `scratch`.
    ///
    /// # Errors
    /// When `wg` or the kernel refuses.
    pub fn apply(&self, host: &Host, wg: &Path, interface: &str, scratch: &Path) -> Result<()> {
        let secret = scratch.join("client.key");
        write_private(&secret, self.private_key.as_bytes())?;
        let mut command = host.command(wg);
        command.args(["set", interface, "private-key"]).arg(&secret);
        command.args(["peer", &self.public_key, "endpoint", &self.endpoint]);
        command.args(["allowed-ips", &self.allowed]);
        if let Some(preshared) = &self.preshared_key {
            let file = scratch.join("client.psk");
            write_private(&file, preshared.as_bytes())?;
            command.arg("preshared-key").arg(&file);
        }
        output_of(&mut command)?;
        let settings = LinkSettings { mtu: Some(MTU), ..LinkSettings::default() };
        host.configure(interface, &self.addresses, &settings, None)?;
        let mut netlink = host.netlink()?;
        let index = netlink.link_index(interface)?;
        for prefix in self.allowed.split(',') {
            let mut route = warren_os::netlink::Route::direct(prefix.parse()?, index);
            route.congestion_control = Some("cubic".to_owned());
            netlink.add_route(&route)?;
        }
        Ok(())
    }
}

/// Waits until `ready` says so, while the child lives.
pub(crate) fn wait_for(
    what: &str,
    child: &mut Child,
    mut ready: impl FnMut() -> bool,
) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !ready() {
        if let Some(status) = child.try_wait()? {
            bail!("{what} ended: {status}");
        }
        if Instant::now() > deadline {
            bail!("{what} was not ready within 10 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_configurations_are_read() {
        let config = QuickConfig::parse(
            "[Interface]\nPrivateKey = abc=\nAddress = 100.64.0.9, fd00::9/128\nMTU = 1420\n\
             [Peer]\nPublicKey = def=\nEndpoint = [::1]:51820\nAllowedIPs = 100.64.0.0/10, fd00::/48\n",
        )
        .unwrap();
        assert_eq!(config.private_key, "abc=");
        assert_eq!(config.addresses[0], "100.64.0.9/32".parse().unwrap());
        assert_eq!(config.endpoint, "[::1]:51820");
        assert_eq!(config.allowed, "100.64.0.0/10,fd00::/48");
        assert!(config.preshared_key.is_none());
        assert!(QuickConfig::parse("[Interface]\n").is_err());
    }
}

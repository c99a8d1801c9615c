//! Userspace WireGuards, configured by the `wg` tool over their control socket.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use warren_os::files::write_private;
use warren_os::netlink::LinkSettings;
use warren_types::LinkPublicKey;

use super::contender::Programs;
use super::tunnel::{KilledOnDrop, Tunnel, wait_for};
use crate::topology::{Host, Pair, output_of};

/// Inner MTU, bytes: WireGuard's usual one.
pub(super) const MTU: u32 = 1420;

/// A WireGuard process on a host.
pub(super) struct Device {
    pub child: KilledOnDrop,
    pub interface: String,
}

/// Starts a userspace WireGuard and waits for its control socket. Interface
/// names must differ between the hosts: the sockets share a directory.
pub(super) fn spawn(
    host: &Host,
    programs: &Programs,
    program: &str,
    arguments: &[&str],
    interface: &str,
) -> Result<Device> {
    let mut command = host.command(programs.get(program)?);
    command.args(arguments).arg(interface);
    // wireguard-go stays in the foreground with -f, but says so at length.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = KilledOnDrop(command.spawn()?);
    let socket = format!("/run/wireguard/{interface}.sock");
    // Connected to rather than looked at: `wg` deletes a socket nobody listens on.
    wait_for(program, &mut child.0, || UnixStream::connect(&socket).is_ok())?;
    Ok(Device { child, interface: interface.to_owned() })
}

/// One program on both ends.
pub(super) fn start<'p>(
    pair: &'p Pair,
    programs: &Programs,
    scratch: &Path,
    program: &str,
    arguments: &[&str],
) -> Result<Tunnel<'p>> {
    let wg = programs.get("wg")?;
    let ends = [(&pair.left, "wgl", 1, Pair::LEFT), (&pair.right, "wgr", 2, Pair::RIGHT)];
    let mut keys = Vec::new();
    for (host, ..) in &ends {
        let secret = host.run(&wg.to_string_lossy(), &["genkey"])?;
        let file = scratch.join(host.name());
        write_private(&file, secret.as_bytes())?;
        let mut command = host.command(&wg);
        command.arg("pubkey").stdin(std::fs::File::open(&file)?);
        keys.push((file, output_of(&mut command)?.trim().to_owned()));
    }
    let mut devices = Vec::new();
    for (i, (host, interface, last, _)) in ends.iter().enumerate() {
        let device = spawn(host, programs, program, arguments, interface)?;
        let other = &ends[1 - i];
        let endpoint = format!("{}:51820", other.3);
        let allowed = format!("10.200.0.{}/32", other.2);
        let mut command = host.command(&wg);
        command.args(["set", interface, "listen-port", "51820"]);
        command.arg("private-key").arg(&keys[i].0);
        command.args(["peer", &keys[1 - i].1, "endpoint", &endpoint, "allowed-ips", &allowed]);
        output_of(&mut command)?;
        let address: IpNet = format!("10.200.0.{last}/24").parse()?;
        let settings = LinkSettings { mtu: Some(MTU), ..LinkSettings::default() };
        host.configure(interface, &[address], &settings, Some("cubic"))?;
        devices.push(device);
    }
    let pids: Vec<u32> = devices.iter().map(|device| device.child.0.id()).collect();
    let left = pair.left.clone();
    let interface = devices[0].interface.clone();
    let file = scratch.join("idle.conf");
    let tunnel = Tunnel {
        right: IpAddr::from([10, 200, 0, 2]),
        left_pid: pids.first().copied(),
        pids,
        add_idle_peers: Some(Box::new(move |count| {
            let mut config = String::new();
            for i in 0..count {
                let key = idle_key(i);
                let address = format!("10.201.{}.{}/32", i / 250, i % 250 + 1);
                config += &format!("[Peer]\nPublicKey = {key}\nAllowedIPs = {address}\n");
            }
            write_private(&file, config.as_bytes())?;
            let file = file.to_string_lossy();
            left.run(&wg.to_string_lossy(), &["addconf", &interface, &file])?;
            Ok(())
        })),
        children: devices.into_iter().map(|device| device.child).collect(),
        ..Tunnel::direct(pair)
    };
    tunnel.wait_reachable(Duration::from_secs(10))?;
    Ok(tunnel)
}

/// Any 32 bytes are an X25519 public key; these peers never call.
fn idle_key(i: u32) -> LinkPublicKey {
    let mut key = [9; 32];
    key[..4].copy_from_slice(&i.to_be_bytes());
    LinkPublicKey(key)
}

/// The keys of a `wg-quick` configuration as `warren wg add-client` prints it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct QuickConfig {
    pub private_key: String,
    pub addresses: Vec<IpNet>,
    pub public_key: String,
    pub preshared_key: Option<String>,
    pub endpoint: String,
    pub allowed: String,
}

impl QuickConfig {
    /// Reads the keys it knows and skips the rest.
    pub(super) fn parse(text: &str) -> Result<Self> {
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

    /// Brings a userspace WireGuard up with it.
    pub(super) fn apply(
        &self,
        host: &Host,
        wg: &Path,
        interface: &str,
        scratch: &Path,
    ) -> Result<()> {
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

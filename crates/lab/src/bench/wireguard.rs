//! Userspace WireGuards, configured by the `wg` tool over their control socket.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use warren_os::files::write_private;
use warren_os::netlink::LinkSettings;
use warren_types::LinkPublicKey;

use super::contender::Programs;
use super::tunnel::Tunnel;
use crate::stock::{Device, MTU};
use crate::topology::{Pair, output_of};

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
        let device = Device::spawn(host, programs, program, arguments, interface)?;
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
    let pids: Vec<u32> = devices.iter().map(Device::pid).collect();
    let left = pair.left.clone();
    let interface = devices[0].interface().to_owned();
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
        children: devices.into_iter().map(Device::into_child).collect(),
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

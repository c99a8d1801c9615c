//! nebula: its own certificates, one static host each way, AES.

use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use warren_os::files::write_private;
use warren_os::netlink::Route;

use super::contender::Programs;
use super::tunnel::Tunnel;
use crate::process::KilledOnDrop;
use crate::stock::{MTU, wait_for};
use crate::topology::{Pair, output_of};

pub(super) fn start<'p>(pair: &'p Pair, programs: &Programs, scratch: &Path) -> Result<Tunnel<'p>> {
    let nebula_cert = programs.get("nebula-cert")?;
    let sign = |arguments: &[&str]| {
        let mut command = pair.left.command(&nebula_cert);
        output_of(command.current_dir(scratch).args(arguments))
    };
    sign(&["ca", "-name", "bench"])?;
    let ends = [(&pair.left, 1, Pair::LEFT), (&pair.right, 2, Pair::RIGHT)];
    let mut children = Vec::new();
    for (i, (host, last, _)) in ends.iter().enumerate() {
        let name = host.name();
        sign(&["sign", "-name", name, "-ip", &format!("10.200.0.{last}/24")])?;
        let (_, other, underlay) = ends[1 - i];
        let directory = scratch.display();
        let config = format!(
            "pki: {{ca: {directory}/ca.crt, cert: {directory}/{name}.crt, \
             key: {directory}/{name}.key}}\n\
             static_host_map: {{\"10.200.0.{other}\": [\"{underlay}:4242\"]}}\n\
             lighthouse: {{am_lighthouse: false}}\n\
             listen: {{host: 0.0.0.0, port: 4242, read_buffer: 10485760, \
             write_buffer: 10485760}}\n\
             cipher: aes\n\
             tun: {{dev: neb, mtu: {MTU}, tx_queue: 500}}\n\
             logging: {{level: error}}\n\
             firewall: {{outbound: [{{port: any, proto: any, host: any}}], \
             inbound: [{{port: any, proto: any, host: any}}]}}\n"
        );
        let file = scratch.join(format!("{name}.yml"));
        write_private(&file, config.as_bytes())?;
        let mut command = host.command(programs.get("nebula")?);
        command.arg("-config").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = KilledOnDrop(command.spawn()?);
        let mut netlink = host.netlink()?;
        wait_for("nebula", &mut child.0, || {
            netlink
                .links()
                .is_ok_and(|links| links.iter().any(|link| link.name == "neb" && link.up))
        })?;
        let index = netlink.link_index("neb")?;
        let mut route = Route::direct(format!("10.200.0.{other}/32").parse()?, index);
        route.congestion_control = Some("cubic".to_owned());
        netlink.add_route(&route)?;
        children.push(child);
    }
    let pids: Vec<u32> = children.iter().map(|child| child.0.id()).collect();
    let tunnel = Tunnel {
        right: IpAddr::from([10, 200, 0, 2]),
        left_pid: pids.first().copied(),
        pids,
        children,
        ..Tunnel::direct(pair)
    };
    tunnel.wait_reachable(Duration::from_secs(10))?;
    Ok(tunnel)
}

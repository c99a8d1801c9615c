//! Warren itself, by the two commands its users type.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use warren_os::netlink::Route;
use warren_types::Suite;

use super::contender::Programs;
use super::tunnel::Tunnel;
use crate::process::{Node, NodeSpec};
use crate::stock::{Device, QuickConfig};
use crate::topology::{Host, Pair, output_of};

const PATIENCE: Duration = Duration::from_secs(20);

fn spec(host: &Host, address: IpAddr, programs: &Programs, scratch: &Path) -> Result<NodeSpec> {
    let name = host.name().to_owned();
    Ok(NodeSpec {
        binary: programs.get("warren")?,
        host: host.clone(),
        state_dir: scratch.join(&name),
        listen: SocketAddr::new(address, 51820),
        interface: format!("warren-{name}"),
        name,
        arguments: vec![],
        environment: vec![],
    })
}

/// Warren on both ends.
pub(super) fn start<'p>(
    pair: &'p Pair,
    programs: &Programs,
    scratch: &Path,
    suite: Suite,
) -> Result<Tunnel<'p>> {
    let left = spec(&pair.left, Pair::LEFT, programs, scratch)?;
    let mut left = left.up(Some(suite), PATIENCE)?;
    let code = left.join_code(PATIENCE)?;
    let right = spec(&pair.right, Pair::RIGHT, programs, scratch)?.join(&code, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    let to = right.overlay_address(false)?;
    use_cubic(&left, to)?;
    use_cubic(&right, left.overlay_address(false)?)?;
    let pids = vec![left.pid(), right.pid()];
    let tunnel = Tunnel {
        right: to,
        left_pid: Some(left.pid()),
        pids,
        add_idle_peers: Some(add_clients(&left)),
        nodes: vec![left, right],
        ..Tunnel::direct(pair)
    };
    tunnel.wait_reachable(PATIENCE)?;
    Ok(tunnel)
}

/// Warren on the left, wireguard-go on the right.
pub(super) fn start_with_wireguard_go<'p>(
    pair: &'p Pair,
    programs: &Programs,
    scratch: &Path,
) -> Result<Tunnel<'p>> {
    let left = spec(&pair.left, Pair::LEFT, programs, scratch)?;
    let left = left.up(Some(Suite::ChaCha20Poly1305), PATIENCE)?;
    let config = left.warren(&["wg", "add-client", "right"])?;
    let config = QuickConfig::parse(&config)?;
    let device = Device::spawn(&pair.right, programs, "wireguard-go", &["-f"], "wgr")?;
    config.apply(&pair.right, &programs.get("wg")?, "wgr", scratch)?;
    let to = config.addresses.iter().map(ipnet::IpNet::addr).find(IpAddr::is_ipv4);
    let to = to.context("the client has no IPv4 address")?;
    use_cubic(&left, to)?;
    // The client knows where the server is, not the other way round.
    let server = left.overlay_address(false)?.to_string();
    pair.right.run("ping", &["-c1", "-W5", &server]).context("from the client")?;
    let pids = vec![left.pid(), device.pid()];
    let tunnel = Tunnel {
        right: to,
        left_pid: Some(left.pid()),
        pids,
        children: vec![device.into_child()],
        nodes: vec![left],
        ..Tunnel::direct(pair)
    };
    tunnel.wait_reachable(PATIENCE)?;
    Ok(tunnel)
}

/// Only the route to the measured peer changes; the daemon's own stay.
fn use_cubic(node: &Node, to: IpAddr) -> Result<()> {
    let mut netlink = node.spec().host.netlink()?;
    let index = netlink.link_index(&node.spec().interface)?;
    let mut route = Route::direct(to.into(), index);
    route.source = Some(node.overlay_address(to.is_ipv6())?);
    route.congestion_control = Some("cubic".to_owned());
    Ok(netlink.add_route(&route)?)
}

/// Idle peers are stock WireGuard clients that never call.
fn add_clients(node: &Node) -> super::tunnel::AddIdlePeers {
    let spec = node.spec().clone();
    Box::new(move |count| {
        for i in 0..count {
            let mut command = spec.host.command(&spec.binary);
            command.args(["wg", "add-client", &format!("idle-{i}")]);
            output_of(command.arg("--state-dir").arg(&spec.state_dir))?;
        }
        Ok(())
    })
}

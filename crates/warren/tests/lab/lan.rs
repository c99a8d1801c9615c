//! Finding each other on a local network: a switch, and nobody who knows where
//! anybody is.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::IpNet;
use warren_lab::process::{Node, NodeSpec};
use warren_lab::topology::Host;
use warren_os::files::TemporaryDir;
use warren_os::netlink::LinkSettings;

use crate::story::{PATIENCE, spec};

/// Hosts on one Ethernet switch, with addresses in 10.97.0.0/24.
struct Lan {
    hosts: Vec<Host>,
    _switch: Host,
    scratch: TemporaryDir,
}

fn address(last: usize) -> Result<IpNet> {
    Ok(format!("10.97.0.{last}/24").parse()?)
}

impl Lan {
    /// The first host gets 10.97.0.1, and so on.
    fn create(names: &[&str]) -> Result<Self> {
        let switch = Host::create("switch")?;
        switch.run("ip", &["link", "add", "br0", "type", "bridge"])?;
        switch.run("ip", &["link", "set", "br0", "up"])?;
        let mut hosts = Vec::new();
        for (n, name) in names.iter().enumerate() {
            let host = Host::create(name)?;
            let port = format!("port{n}");
            switch.netlink()?.add_veth(&port, "eth0", Some(host.namespace().as_fd()))?;
            switch.run("ip", &["link", "set", &port, "master", "br0", "up"])?;
            host.configure("eth0", &[address(n + 1)?], &LinkSettings::default(), None)?;
            hosts.push(host);
        }
        Ok(Self { hosts, _switch: switch, scratch: TemporaryDir::create("warren-lab")? })
    }

    fn spec(&self, n: usize) -> NodeSpec {
        spec(&self.hosts[n], [0, 0, 0, 0].into(), &self.scratch)
    }

    /// Gives host `n` another address.
    fn renumber(&self, n: usize, from: usize, to: usize) -> Result<()> {
        let mut netlink = self.hosts[n].netlink()?;
        let index = netlink.link_index("eth0")?;
        netlink.delete_address(index, address(from)?)?;
        Ok(netlink.add_address(index, address(to)?)?)
    }
}

/// Two members, stopped and moved, so that what they remember of each other is
/// wrong.
fn moved(lan: &Lan) -> Result<(NodeSpec, NodeSpec)> {
    let left = lan.spec(0).up(None, PATIENCE)?;
    let code = left.join_code(PATIENCE)?;
    let mut right = lan.spec(1).join(&code, PATIENCE)?;
    right.wait_connected("left", PATIENCE)?;
    let specs = (left.stop(PATIENCE)?, right.stop(PATIENCE)?);
    lan.renumber(0, 1, 101)?;
    lan.renumber(1, 2, 102)?;
    Ok(specs)
}

pub(crate) fn moved_nodes_find_each_other() -> Result<()> {
    let lan = Lan::create(&["left", "right"])?;
    let (left, right) = moved(&lan)?;
    let mut left = left.up(None, PATIENCE)?;
    let mut right = right.up(None, PATIENCE)?;
    let peer = right.wait_connected("left", PATIENCE)?;
    let at = peer.endpoint.map(|e| e.ip().to_canonical().to_string());
    ensure!(at.as_deref() == Some("10.97.0.101"), "connected by {at:?}");
    left.wait_connected("right", PATIENCE)?;
    let seen = [left.status()?.lan, right.status()?.lan];
    ensure!(seen.iter().all(|lan| lan.on) && seen.iter().any(|lan| lan.seen > 0), "{seen:?}");

    // Switched off, they do not find each other: what worked was this.
    let (mut left, mut right) = (left.stop(PATIENCE)?, right.stop(PATIENCE)?);
    lan.renumber(0, 101, 1)?;
    lan.renumber(1, 102, 2)?;
    for spec in [&mut left, &mut right] {
        spec.arguments.push("--no-lan-discovery".into());
    }
    let left = left.up(None, PATIENCE)?;
    let right = right.up(None, PATIENCE)?;
    std::thread::sleep(Duration::from_secs(4));
    let connected = |node: &Node| -> Result<bool> {
        Ok(node.status()?.peers.iter().any(|peer| peer.handshake_age_s.is_some()))
    };
    ensure!(!connected(&left)? && !connected(&right)?, "found without looking");
    ensure!(!left.status()?.lan.on, "{:?}", left.status()?.lan);
    Ok(())
}

pub(crate) fn an_old_code_admits() -> Result<()> {
    let lan = Lan::create(&["left", "right"])?;
    let left = lan.spec(0).up(None, PATIENCE)?;
    let code = left.join_code(PATIENCE)?;
    let left = left.stop(PATIENCE)?;
    // The addresses in the code are wrong from here on.
    lan.renumber(0, 1, 101)?;
    let mut left = left.up(None, PATIENCE)?;
    let mut right = lan.spec(1).join(&code, PATIENCE)?;
    right.wait_connected("left", PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    Ok(())
}

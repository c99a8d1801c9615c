//! Meshes across a world that is far apart, narrow and lossy.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::netem::Profile;
use warren_lab::process::Node;
use warren_lab::topology::Host;
use warren_lab::traffic::{Until, stream};
use warren_lab::wan::{Attachment, Region, Wan};
use warren_os::files::TemporaryDir;
use warren_os::icmp::Pinger;

use crate::story::{PATIENCE, spec};

/// Daemons on hosts of the WAN, joined by codes of the first.
struct Mesh {
    hosts: Vec<Host>,
    nodes: Vec<Node>,
    _wan: Wan,
    _scratch: TemporaryDir,
}

impl Mesh {
    /// Hosts with their daemons; all links changed before the first starts.
    fn start(
        cast: &[(&str, Attachment)],
        ipv6: bool,
        weather: impl Fn(&mut Profile),
    ) -> Result<Self> {
        let mut wan = Wan::new(11)?;
        let scratch = TemporaryDir::create("warren-lab")?;
        let (mut hosts, mut places) = (Vec::new(), Vec::new());
        for (name, attachment) in cast {
            let host = Host::create(name)?;
            places.push(wan.attach(host.namespace(), *attachment)?);
            hosts.push(host);
        }
        wan.change_all(weather)?;
        let mut nodes: Vec<Node> = Vec::new();
        for (host, place) in hosts.iter().zip(&places) {
            let address: IpAddr = if ipv6 { place.ipv6().into() } else { place.ipv4().into() };
            let spec = spec(host, address, &scratch);
            nodes.push(match nodes.first() {
                None => spec.up(None, PATIENCE)?,
                Some(founder) => spec.join(&founder.invite()?, PATIENCE)?,
            });
        }
        let mut mesh = Self { hosts, nodes, _wan: wan, _scratch: scratch };
        for from in 0..mesh.nodes.len() {
            for to in (0..mesh.nodes.len()).filter(|to| *to != from) {
                // Links open on the first packet.
                mesh.ping(from, to, false, 56, 20)?;
                let name = mesh.hosts[to].name().to_owned();
                let peer = mesh.nodes[from].wait_connected(&name, PATIENCE)?;
                let endpoint = peer.endpoint.context("no endpoint")?;
                // In bad weather the way over another may be the better one.
                let relayed = warren_types::mesh_node(endpoint).is_some();
                let family = endpoint.ip().to_canonical().is_ipv6() == ipv6;
                ensure!(relayed || family, "it uses {endpoint}");
            }
        }
        Ok(mesh)
    }

    /// Pings until an answer comes, as `ping -c TRIES` does; the first of a
    /// size may be lost to learning the path's MTU.
    fn ping(&self, from: usize, to: usize, ipv6: bool, payload: usize, tries: u32) -> Result<()> {
        let address = self.nodes[to].overlay_address(ipv6)?;
        let mut pinger =
            self.hosts[from].namespace().run(|| Pinger::open(address, from as u16 + 1))??;
        let mut last = None;
        for _ in 0..tries {
            match pinger.ping(payload, Duration::from_secs(1)) {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no tries")?)
            .with_context(|| format!("{from} to {to}, IPv6: {ipv6}, {payload} bytes"))
    }

    fn expect_streams(&self, bytes: u64) -> Result<()> {
        for ipv6 in [false, true] {
            let to = self.nodes[1].overlay_address(ipv6)?;
            stream(&self.hosts[0], &self.hosts[1], to, Until::Bytes(bytes))
                .with_context(|| format!("IPv6 inside: {ipv6}"))?;
        }
        Ok(())
    }
}

/// Two hosts a short way apart.
fn neighbours(mtu: u32) -> [(&'static str, Attachment); 2] {
    let at = |region| Attachment { region: Some(region), mtu, ..Attachment::default() };
    [("london", at(Region::Uk)), ("amsterdam", at(Region::Netherlands))]
}

pub(crate) fn ipv6_alone_carries_a_mesh() -> Result<()> {
    let mesh = Mesh::start(&neighbours(1500), true, |link| link.loss = 0.005)?;
    mesh.expect_streams(4 << 20)
}

pub(crate) fn large_pings_cross_a_small_underlay() -> Result<()> {
    // Interfaces that say 1280, and ones that say 1500 before a middle that
    // eats what is longer than 1280 without a word.
    for (name, mtu, hole) in [("interface", 1280, None), ("silent hole", 1500, Some(1280))] {
        for ipv6 in [false, true] {
            let outside = if ipv6 { "IPv6" } else { "IPv4" };
            let what = || format!("{name} of 1280, {outside} outside");
            let mesh =
                Mesh::start(&neighbours(mtu), ipv6, |link| link.mtu = hole).with_context(what)?;
            mesh.expect_streams(4 << 20).with_context(what)?;
            // Between 1200 and 1280 bytes an IPv6 path that neither carries
            // nor reports what is too long is beyond help: the kernel splits
            // datagrams by what it knows of the path.
            let payloads: &[usize] =
                if ipv6 && hole.is_some() { &[56, 1100] } else { &[1100, 1232, 1400] };
            for inside in [false, true] {
                for &payload in payloads {
                    mesh.ping(0, 1, inside, payload, 5).with_context(what)?;
                    mesh.ping(1, 0, inside, payload, 5).with_context(what)?;
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn a_mesh_forms_in_bad_weather() -> Result<()> {
    let at = |region| Attachment { region: Some(region), ..Attachment::default() };
    let cast = [
        ("virginia", at(Region::UsEast)),
        ("frankfurt", at(Region::Germany)),
        ("singapore", at(Region::Singapore)),
    ];
    let mesh = Mesh::start(&cast, false, |link| {
        link.loss = 0.1;
        link.reorder = 0.05;
        link.duplicate = 0.05;
    })?;
    mesh.expect_streams(128 << 10)
}

//! A cast of daemons on the WAN emulator, for the stories about meshes.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::netem::Profile;
use warren_lab::process::{Node, NodeSpec};
use warren_lab::pulse::Pulse;
use warren_lab::topology::Host;
use warren_lab::wan::{Attachment, Firewall, Wan, WanHost};
use warren_os::files::TemporaryDir;
use warren_types::api::PeerStatus;

use crate::story::{PATIENCE, spec};

/// How often a status is asked while waiting.
const GLANCE: Duration = Duration::from_millis(50);

/// A host to be.
pub(crate) struct Actor<'a> {
    pub name: &'a str,
    pub attachment: Attachment,
    pub firewall: Firewall,
}

impl<'a> Actor<'a> {
    /// One with a public address and no firewall.
    pub(crate) fn public(name: &'a str) -> Self {
        Self { name, attachment: Attachment::default(), firewall: Firewall::default() }
    }
}

/// Hosts with their daemons; the first founds the network and the others join
/// with its codes.
pub(crate) struct Mesh {
    pub wan: Wan,
    pub places: Vec<WanHost>,
    pub hosts: Vec<Host>,
    /// `None` while it does not run.
    pub nodes: Vec<Option<Node>>,
    pub specs: Vec<NodeSpec>,
    pub scratch: TemporaryDir,
}

impl Mesh {
    /// The hosts alone, every two of them `rtt` apart.
    pub(crate) fn hosts(cast: &[Actor<'_>], rtt: Duration) -> Result<Self> {
        let mut wan = Wan::new(31)?;
        let scratch = TemporaryDir::create("warren-lab")?;
        let (mut hosts, mut places, mut specs) = (Vec::new(), Vec::new(), Vec::new());
        for actor in cast {
            let host = Host::create(actor.name)?;
            let place = wan.attach(host.namespace(), actor.attachment)?;
            wan.set_firewall(place, actor.firewall.clone())?;
            specs.push(spec(&host, Ipv4Addr::UNSPECIFIED.into(), &scratch));
            hosts.push(host);
            places.push(place);
        }
        wan.change_all(|link| *link = Profile::delayed(rtt / 2))?;
        let nodes = hosts.iter().map(|_| None).collect();
        Ok(Self { wan, places, hosts, nodes, specs, scratch })
    }

    /// Hosts and daemons, all of which know each other when this returns.
    pub(crate) fn start(cast: &[Actor<'_>], rtt: Duration) -> Result<Self> {
        let mut mesh = Self::hosts(cast, rtt)?;
        mesh.found_and_join()?;
        Ok(mesh)
    }

    /// Starts the first daemon, and the others with its codes.
    pub(crate) fn found_and_join(&mut self) -> Result<()> {
        self.found(self.specs.len())
    }

    /// The same for the first `count` hosts.
    pub(crate) fn found(&mut self, count: usize) -> Result<()> {
        self.nodes[0] = Some(self.specs[0].clone().up(None, PATIENCE)?);
        for i in 1..count {
            self.join(i, 0)?;
        }
        self.wait_acquainted(PATIENCE).map(drop)
    }

    /// Starts a daemon with a code of another.
    pub(crate) fn join(&mut self, i: usize, by: usize) -> Result<()> {
        let code = self.node(by).invite()?;
        let node = self.specs[i].clone().join(&code, PATIENCE);
        self.nodes[i] = Some(node.with_context(|| format!("{} joins", self.specs[i].name))?);
        Ok(())
    }

    /// Starts a daemon again on its state directory and waits until it serves.
    pub(crate) fn restart(&mut self, i: usize) -> Result<()> {
        self.crash(i)?;
        self.launch(i)?;
        self.nodes[i].as_mut().context("not launched")?.wait_serves(PATIENCE)
    }

    /// A daemon that must be running.
    pub(crate) fn node(&self, i: usize) -> &Node {
        self.nodes[i].as_ref().expect("the story has it running")
    }

    /// Running ones.
    pub(crate) fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, node.as_ref()?)))
    }

    /// Kills a daemon.
    pub(crate) fn crash(&mut self, i: usize) -> Result<()> {
        if let Some(node) = self.nodes[i].take() {
            node.crash()?;
        }
        Ok(())
    }

    /// Starts a daemon again on its state directory, without waiting.
    pub(crate) fn launch(&mut self, i: usize) -> Result<()> {
        self.nodes[i] = Some(self.specs[i].clone().launch()?);
        Ok(())
    }

    /// Waits until every running daemon lists every other running one; how
    /// long that took.
    pub(crate) fn wait_acquainted(&self, patience: Duration) -> Result<Duration> {
        let start = Instant::now();
        let names: Vec<&str> = self.running().map(|(i, _)| self.hosts[i].name()).collect();
        for (i, node) in self.running() {
            loop {
                let known: Vec<String> = match node.status() {
                    Ok(status) => status.peers.into_iter().map(|peer| peer.name).collect(),
                    Err(_) => vec![],
                };
                let own = self.hosts[i].name();
                let missing: Vec<_> = names
                    .iter()
                    .filter(|name| **name != own && !known.iter().any(|known| known == *name))
                    .collect();
                if missing.is_empty() {
                    break;
                }
                ensure!(
                    start.elapsed() < patience,
                    "{own} does not know {missing:?} after {patience:?}:\n{}",
                    node.log()
                );
                std::thread::sleep(GLANCE);
            }
        }
        Ok(start.elapsed())
    }

    /// IPv4 overlay address of a daemon.
    pub(crate) fn address(&self, i: usize) -> Result<IpAddr> {
        self.node(i).overlay_address(false)
    }

    /// What a daemon says of another.
    pub(crate) fn peer(&self, of: usize, other: usize) -> Result<PeerStatus> {
        let status = self.node(of).status()?;
        let name = self.hosts[other].name();
        let found = status.peers.into_iter().find(|peer| peer.name == name);
        found.with_context(|| format!("{} does not know {name}", self.hosts[of].name()))
    }

    /// Waits until the path from one to another, as `status` names it, is what
    /// `wanted` says; how long that took.
    pub(crate) fn wait_path(
        &self,
        of: usize,
        other: usize,
        patience: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let peer = self.peer(of, other);
            if peer.as_ref().is_ok_and(|peer| wanted(&peer.path)) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > patience {
                let path = peer.map(|peer| format!("{} {:?}", peer.path, peer.endpoint));
                let node = self.node(of);
                let events = node.warren(&["events"]).unwrap_or_default();
                let explained = node.warren(&["path", "explain", self.hosts[other].name()]);
                anyhow::bail!(
                    "{} to {} is {path:?} after {patience:?}\n{}\n{events}\n{}",
                    self.hosts[of].name(),
                    self.hosts[other].name(),
                    explained.unwrap_or_else(|error| format!("{error:#}")),
                    node.log()
                );
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// A pulse of small datagrams from one to another and back.
    pub(crate) fn pulse(&self, from: usize, to: usize, every: Duration) -> Result<Pulse> {
        Pulse::start(&self.hosts[from], &self.hosts[to], self.address(to)?, every, 100)
    }
}

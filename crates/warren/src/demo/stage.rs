//! The stage: hosts in their regions on the emulated WAN, the daemons on them,
//! and the place where these keep their state.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use warren_lab::process::{Node, NodeSpec};
use warren_lab::topology::Host;
use warren_lab::wan::{Attachment, Region, Wan, WanHost};
use warren_os::netns::hide_directory;

/// Name, three letters, place. The first founds the network; the first two are
/// neighbours, between which speed is measured.
pub(super) const CAST: [(&str, &str, Region); 5] = [
    ("london", "LON", Region::Uk),
    ("amsterdam", "AMS", Region::Netherlands),
    ("virginia", "VIR", Region::UsEast),
    ("saopaulo", "SAO", Region::Brazil),
    ("tokyo", "TOK", Region::Japan),
];

/// UDP port of the daemons.
const PORT: u16 = 9277;

/// How long a daemon may take to serve, joining over half the world included.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Hidden by a private file system that vanishes with the process. Daemons put
/// their sockets for `wg` below it too.
const HIDDEN: &str = "/run";

/// Where the daemons keep their state. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct StateRoot {
    path: Arc<PathBuf>,
}

impl StateRoot {
    /// In a private file system where mounting is allowed, else a directory
    /// for temporary files. Call before any thread starts.
    pub(super) fn create() -> Result<Self> {
        let base = match hide_directory(Path::new(HIDDEN)) {
            Ok(()) => PathBuf::from(HIDDEN),
            Err(_) => std::env::temp_dir(),
        };
        let path = base.join(format!("warren-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path: Arc::new(path) })
    }

    /// Removes it; that it is gone already is fine.
    pub(super) fn remove(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(self.path.as_path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for StateRoot {
    fn drop(&mut self) {
        // The last holder cleans up, on the way out of a panic too.
        if Arc::strong_count(&self.path) == 1 {
            let _ = self.remove();
        }
    }
}

/// An actor: its host on the WAN and, once started, its daemon.
#[derive(Debug)]
pub(super) struct Actor {
    /// Its host.
    pub host: Host,
    /// Its place on the WAN.
    pub place: WanHost,
    /// Its region.
    pub region: Region,
    /// Its daemon.
    pub node: Option<Node>,
    /// Overlay addresses of its daemon.
    pub addresses: Vec<IpAddr>,
}

impl Actor {
    /// Its overlay address of one family.
    pub(super) fn address(&self, ipv6: bool) -> Result<IpAddr> {
        let mut addresses = self.addresses.iter().copied();
        addresses
            .find(|address| address.is_ipv6() == ipv6)
            .with_context(|| format!("{} has no such address", self.host.name()))
    }

    /// Its daemon.
    pub(super) fn node(&mut self) -> Result<&mut Node> {
        let name = self.host.name().to_owned();
        self.node.as_mut().with_context(|| format!("{name} does not run"))
    }
}

/// Everything the demo made.
#[derive(Debug)]
pub(super) struct Stage {
    /// In the order of [`CAST`]. Before the WAN, so that daemons end while
    /// their interfaces are still there.
    pub actors: Vec<Actor>,
    /// The WAN between them.
    pub wan: Wan,
    state: StateRoot,
    binary: PathBuf,
}

impl Stage {
    /// Hosts and WAN; daemons start later, by [`Stage::start`].
    pub(super) fn build(seed: u64, state: &StateRoot) -> Result<Self> {
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let mut wan = Wan::new(seed)?;
        let mut actors = Vec::new();
        for (name, _, region) in CAST {
            let host = Host::create(name)?;
            let attachment = Attachment { region: Some(region), ..Attachment::default() };
            let place = wan.attach(host.namespace(), attachment)?;
            actors.push(Actor { host, place, region, node: None, addresses: Vec::new() });
        }
        Ok(Self { actors, wan, state: state.clone(), binary })
    }

    /// Where the daemon of this name keeps its state.
    pub(super) fn state_dir(&self, name: &str) -> PathBuf {
        self.state.of(name)
    }

    /// Starts the daemon of an actor; without a code it founds the network.
    /// Call from the main thread: the daemon dies with the thread.
    pub(super) fn start(&mut self, index: usize, code: Option<&str>) -> Result<()> {
        let actor = &mut self.actors[index];
        let name = actor.host.name().to_owned();
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        for address in [actor.place.ipv4().into(), IpAddr::V6(actor.place.ipv6())] {
            arguments.push("--endpoint".into());
            arguments.push(SocketAddr::new(address, PORT).to_string().into());
        }
        if code.is_none() {
            arguments.extend(["--network".into(), "demo".into()]);
        }
        let spec = NodeSpec {
            binary: self.binary.clone(),
            host: actor.host.clone(),
            state_dir: self.state.of(&name),
            interface: format!("wr-{name}"),
            name,
            listen: SocketAddr::from(([0u16; 8], PORT)),
            arguments,
            environment: vec![],
        };
        let node = match code {
            None => spec.up(None, PATIENCE)?,
            Some(code) => spec.join(code, PATIENCE)?,
        };
        actor.addresses = node.status()?.node.addresses;
        actor.node = Some(node);
        Ok(())
    }
}

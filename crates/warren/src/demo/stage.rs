//! The stage: hosts in their regions on the emulated WAN, the daemons on them,
//! and the place where these keep their state.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use warren_lab::process::{Node, NodeSpec};
use warren_lab::topology::Host;
use warren_lab::wan::{Attachment, INTERFACE, Region, Wan, WanHost};
use warren_os::netlink::Route;
use warren_os::netns::hide_directory;

use super::cast::CAST;

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

/// A machine outside of the network, as any server of the Internet.
#[derive(Debug)]
pub(super) struct Outsider {
    /// Its host.
    pub host: Host,
    /// Its place on the WAN.
    pub place: WanHost,
}

/// Everything the demo made.
#[derive(Debug)]
pub(super) struct Stage {
    /// In the order of [`CAST`]. Before the WAN, so that daemons end while
    /// their interfaces are still there.
    pub actors: Vec<Actor>,
    /// A web server in Frankfurt that knows nothing of the network.
    pub server: Outsider,
    /// The WAN between them.
    pub wan: Wan,
    /// Why there can be no onion paths on this machine, if so.
    pub no_paths: Option<String>,
    /// Daemons that were killed.
    dead: Vec<(usize, NodeSpec)>,
    state: StateRoot,
    binary: PathBuf,
}

impl Stage {
    /// Hosts and WAN; daemons start later, by [`Stage::start`].
    pub(super) fn build(seed: u64, state: &StateRoot) -> Result<Self> {
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let mut wan = Wan::new(seed)?;
        let mut actors = Vec::new();
        for member in CAST {
            let (host, place) = attach(&mut wan, member.name, member.region)?;
            let region = member.region;
            actors.push(Actor { host, place, region, node: None, addresses: Vec::new() });
        }
        let (host, place) = attach(&mut wan, "server", Region::Germany)?;
        let server = Outsider { host, place };
        let no_paths = actors.first().and_then(|actor| missing_for_paths(&actor.host));
        let (dead, state) = (Vec::new(), state.clone());
        let stage = Self { actors, server, wan, no_paths, dead, state, binary };
        stage.write_files()?;
        Ok(stage)
    }

    /// What exits are told: the emulated WAN has addresses of a range that exits
    /// refuse by default, and its clients' names are not resolved here.
    fn write_files(&self) -> Result<()> {
        std::fs::write(
            self.policy_file(),
            "allow-private-destinations\nreject *:25\naccept *:*\n",
        )?;
        let resolver = self.server.place.ipv4();
        std::fs::write(self.exit_config(), format!("[exit]\nresolver = \"{resolver}\"\n"))?;
        Ok(())
    }

    fn policy_file(&self) -> PathBuf {
        self.state.of("exit.rules")
    }

    fn exit_config(&self) -> PathBuf {
        self.state.of("exit.toml")
    }

    /// A file of this name beside the daemons' state.
    pub(super) fn scratch_file(&self, name: &str) -> PathBuf {
        self.state.of(name)
    }

    /// Where the daemon of this name keeps its state.
    pub(super) fn state_dir(&self, name: &str) -> PathBuf {
        self.state.of(name)
    }

    /// Starts the daemon of an actor; without a code it founds the network.
    /// Call from the main thread: the daemon dies with the thread.
    pub(super) fn start(&mut self, index: usize, code: Option<&str>) -> Result<()> {
        let mut arguments: Vec<OsString> = Vec::new();
        let member = CAST[index];
        if self.no_paths.is_none() && !member.roles.is_empty() {
            arguments.extend(["--roles", member.roles].map(Into::into));
            arguments.extend(["--region", member.country, "--city", member.city].map(Into::into));
            if member.roles.contains("exit") {
                arguments.extend(["--exit-policy".into(), self.policy_file().into()]);
                arguments.extend(["--config".into(), self.exit_config().into()]);
            }
        }
        if code.is_none() {
            arguments.extend(["--network".into(), "demo".into()]);
        }
        let spec = self.spec(&self.actors[index].host, self.actors[index].place, arguments);
        let node = match code {
            None => spec.up(None, PATIENCE)?,
            Some(code) => spec.join(code, PATIENCE)?,
        };
        let actor = &mut self.actors[index];
        actor.addresses = node.status()?.node.addresses;
        actor.node = Some(node);
        Ok(())
    }

    /// Kills the daemon of an actor, without a chance to clean up.
    pub(super) fn kill(&mut self, index: usize) -> Result<()> {
        let actor = &mut self.actors[index];
        let node = actor.node.take();
        let node = node.with_context(|| format!("{} does not run", actor.host.name()))?;
        self.dead.push((index, node.crash()?));
        Ok(())
    }

    /// Starts the daemons that were killed on the state they left.
    pub(super) fn revive_all(&mut self) -> Result<()> {
        for (index, spec) in std::mem::take(&mut self.dead) {
            let mut node = spec.launch()?;
            node.wait_serves(PATIENCE)?;
            self.actors[index].node = Some(node);
        }
        Ok(())
    }

    /// A newcomer in Japan that joins with a code; it is not one of the actors.
    pub(super) fn guest(&mut self, code: &str) -> Result<Node> {
        let (host, place) = attach(&mut self.wan, "newcomer", Region::Japan)?;
        self.spec(&host, place, Vec::new()).join(code, PATIENCE)
    }

    fn spec(&self, host: &Host, place: WanHost, mut arguments: Vec<OsString>) -> NodeSpec {
        for address in [place.ipv4().into(), IpAddr::V6(place.ipv6())] {
            arguments.push("--endpoint".into());
            arguments.push(SocketAddr::new(address, PORT).to_string().into());
        }
        let name = host.name().to_owned();
        NodeSpec {
            binary: self.binary.clone(),
            host: host.clone(),
            state_dir: self.state.of(&name),
            interface: format!("wr-{name}"),
            name,
            listen: SocketAddr::from(([0u16; 8], PORT)),
            arguments,
            environment: vec![],
        }
    }
}

/// A host in a region, with a default route into the WAN as any machine on the
/// Internet has.
fn attach(wan: &mut Wan, name: &str, region: Region) -> Result<(Host, WanHost)> {
    let host = Host::create(name)?;
    let attachment = Attachment { region: Some(region), ..Attachment::default() };
    let place = wan.attach(host.namespace(), attachment)?;
    let mut netlink = host.netlink()?;
    let index = netlink.link_index(INTERFACE)?;
    let everywhere = IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0)?;
    netlink.add_route(&Route::direct(everywhere, index))?;
    Ok((host, place))
}

/// What exits and the kill switch do with the kernel, tried out on a host: why
/// it cannot be done, if so.
fn missing_for_paths(host: &Host) -> Option<String> {
    const TRIAL: &str = "add table inet trial; \
         add chain inet trial nat { type nat hook postrouting priority 100; }; \
         add rule inet trial nat masquerade; delete table inet trial";
    // As the daemons look for it: users often lack the system's own programs.
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    match host.command("nft").arg(TRIAL).env("PATH", path).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            let first = words.lines().next().unwrap_or("no reason given").to_owned();
            return Some(format!("`nft` may not set packet filter rules here: {first}"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Some(
                "exits and the kill switch need the program `nft`; install it (the package is \
                 called nftables)"
                    .to_owned(),
            );
        }
        Err(error) => return Some(format!("cannot run `nft`: {error}")),
    }
    let switch = "/proc/sys/net/ipv4/ip_forward";
    let opened = host.namespace().run(|| std::fs::File::options().write(true).open(switch));
    match opened {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("exits have to write {switch}, and may not: {error}")),
        Err(error) => Some(error.to_string()),
    }
}

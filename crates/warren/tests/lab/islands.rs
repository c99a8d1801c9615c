//! The mesh without a centre: nodes that cannot reach each other do so over
//! others, relays and founders die, networks behind nodes are reached.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use warren_lab::process::{Node, NodeSpec};
use warren_lab::topology::Host;
use warren_lab::traffic::{Until, echo, stream};
use warren_lab::wan::{Attachment, Wan, WanHost};
use warren_os::files::TemporaryDir;
use warren_os::icmp::Pinger;
use warren_os::netlink::{LinkSettings, Route};

use crate::story::{PATIENCE, spec};

/// One way between any two hosts.
const DELAY: Duration = Duration::from_millis(12);

/// Daemons on hosts of the WAN; the first founds the network and admits the
/// others. Some pairs of hosts cannot reach each other.
struct Islands {
    wan: Wan,
    hosts: Vec<Host>,
    places: Vec<WanHost>,
    nodes: Vec<Option<Node>>,
    _scratch: TemporaryDir,
}

impl Islands {
    fn start(names: &[&str], apart: &[(usize, usize)]) -> Result<Self> {
        let mut wan = Wan::new(5)?;
        let scratch = TemporaryDir::create("warren-lab")?;
        let (mut hosts, mut places) = (Vec::new(), Vec::new());
        for name in names {
            let host = Host::create(name)?;
            places.push(wan.attach(host.namespace(), Attachment::default())?);
            hosts.push(host);
        }
        wan.change_all(|link| link.delay = DELAY)?;
        for (a, b) in apart {
            wan.change(places[*a], places[*b], |link| link.cut = true)?;
        }
        let mut nodes: Vec<Option<Node>> = Vec::new();
        for (host, place) in hosts.iter().zip(&places) {
            let spec = spec(host, place.ipv4().into(), &scratch);
            nodes.push(Some(match nodes.first() {
                None => spec.up(None, PATIENCE)?,
                Some(Some(founder)) => spec.join(&founder.invite()?, PATIENCE)?,
                Some(None) => bail!("the founder is gone"),
            }));
        }
        Ok(Self { wan, hosts, places, nodes, _scratch: scratch })
    }

    fn node(&mut self, at: usize) -> Result<&mut Node> {
        self.nodes[at].as_mut().context("this daemon is dead")
    }

    fn address(&mut self, at: usize) -> Result<IpAddr> {
        self.node(at)?.overlay_address(false)
    }

    fn crash(&mut self, at: usize) -> Result<NodeSpec> {
        self.nodes[at].take().context("dead already")?.crash()
    }

    fn at(&self, name: &str) -> Result<usize> {
        self.hosts.iter().position(|host| host.name() == name).context("no such host")
    }

    /// The path from one node to another once it is one of a kind.
    fn path(
        &mut self,
        from: usize,
        to: usize,
        patience: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let name = self.hosts[to].name().to_owned();
        let path = |status: &warren_types::api::Status| {
            let peer = status.peers.iter().find(|peer| peer.name == name)?;
            Some(peer.path.clone())
        };
        let node = self.node(from)?;
        let status = node.wait_until(&format!("path to {name}"), patience, |status| {
            path(status).is_some_and(|path| wanted(&path))
        })?;
        path(&status).context("the peer went away again")
    }

    /// Time until the first echo comes back.
    fn first_echo(&mut self, from: usize, to: usize) -> Result<Duration> {
        let address = self.address(to)?;
        let start = Instant::now();
        let mut pinger =
            self.hosts[from].namespace().run(|| Pinger::open(address, from as u16 + 1))??;
        while start.elapsed() < PATIENCE {
            if pinger.ping(56, Duration::from_millis(200)).is_ok() {
                return Ok(start.elapsed());
            }
        }
        bail!("{from} to {to}: no echo within {PATIENCE:?}")
    }
}

fn via(path: &str) -> Option<&str> {
    path.strip_prefix("via ")
}

/// Two nodes without a direct path: a relay is found by itself; when it dies,
/// another takes over; when a direct path appears, it is taken.
pub(crate) fn a_relay_is_found_and_replaced() -> Result<()> {
    let mut lab = Islands::start(&["rome", "oslo", "left", "right"], &[(2, 3)])?;
    let (left, right) = (2, 3);
    let first = lab.first_echo(left, right)?;
    println!("first echo over a relay after {first:?}");
    let path = lab.path(left, right, PATIENCE, |path| via(path).is_some())?;
    let relay = lab.at(via(&path).context("no relay")?)?;
    println!("{path}");
    lab.path(right, left, PATIENCE, |path| via(path).is_some())?;
    let to = lab.address(right)?;

    // The relay dies under a stream.
    let (from, onto) = (lab.hosts[left].clone(), lab.hosts[right].clone());
    let time = Until::Elapsed(Duration::from_secs(10));
    let streamed = std::thread::scope(|scope| {
        let streaming = scope.spawn(|| stream(&from, &onto, to, time));
        std::thread::sleep(Duration::from_secs(4));
        let crashed = lab.crash(relay);
        let streamed = streaming.join().unwrap_or_else(|_| bail!("panicked"));
        crashed?;
        streamed
    })
    .context("the stream broke when the relay died")?;
    println!("{streamed:?}");
    let other = lab.path(left, right, PATIENCE, |path| via(path).is_some())?;
    ensure!(other != path, "still {other}");
    ensure!(streamed.longest_gap < Duration::from_secs(2), "{streamed:?}");

    let told = lab.node(left)?.warren(&["path", "explain", "right"])?;
    println!("{told}");
    ensure!(told.contains(&other) && told.contains("over other nodes"), "{told}");
    let json = lab.node(left)?.warren(&["path", "explain", "right", "--json"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(json.pointer("/routes/0/via/0").is_some(), "{json}");
    ensure!(json["connected_by"] == "relay", "{json}");

    // A direct path appears under traffic and is taken without a loss. What
    // never answered is tried again every 40 s by now.
    let (a, b) = (lab.places[left], lab.places[right]);
    let every = Duration::from_millis(30);
    let echoed = std::thread::scope(|scope| {
        let echoing = scope.spawn(|| echo(&from, &onto, to, 1500, every, 100));
        std::thread::sleep(Duration::from_secs(1));
        lab.wan.change(a, b, |link| link.cut = false)?;
        let begun = Instant::now();
        lab.path(left, right, Duration::from_secs(44), |path| path == "direct")?;
        println!("direct after {:?}", begun.elapsed());
        echoing.join().unwrap_or_else(|_| bail!("panicked"))
    })?;
    ensure!(echoed.loss() < 0.002, "{echoed:?}");

    // So does the control connection, which would keep the relay busy.
    let begun = Instant::now();
    loop {
        let told = lab.node(left)?.warren(&["path", "explain", "right", "--json"])?;
        let json: serde_json::Value = serde_json::from_str(&told)?;
        if json["connected_by"] == "direct" {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "the control connection stays: {told}");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("and the control connection after {:?}", begun.elapsed());
    Ok(())
}

/// The founder dies for good; the others neither notice nor need it.
pub(crate) fn the_founder_is_no_centre() -> Result<()> {
    let mut lab = Islands::start(&["founder", "a", "b", "c"], &[])?;
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        lab.first_echo(from, to)?;
    }
    let to = lab.address(2)?;
    let (from, onto) = (lab.hosts[1].clone(), lab.hosts[2].clone());
    let time = Until::Elapsed(Duration::from_secs(6));
    let streamed = std::thread::scope(|scope| {
        let streaming = scope.spawn(|| stream(&from, &onto, to, time));
        std::thread::sleep(Duration::from_secs(2));
        lab.crash(0)?;
        streaming.join().unwrap_or_else(|_| bail!("panicked"))
    })?;
    ensure!(streamed.longest_gap < Duration::from_millis(900), "{streamed:?}");
    // A member that restarts finds the others without it.
    let spec = lab.crash(3)?;
    lab.nodes[3] = Some(spec.up(None, PATIENCE)?);
    for to in [1, 2] {
        let first = lab.first_echo(3, to)?;
        println!("first echo after the restart: {first:?}");
    }
    // And one that leaves is forgotten.
    lab.node(3)?.warren(&["leave"])?;
    lab.node(1)?.wait_until("c is forgotten", PATIENCE, |status| {
        !status.peers.iter().any(|peer| peer.name == "c")
    })?;
    Ok(())
}

/// An Ethernet link between two hosts, with an address at each end.
fn wire(a: &Host, b: &Host, name: &str, ends: [&str; 2]) -> Result<()> {
    use std::os::fd::AsFd;
    a.netlink()?.add_veth(name, name, Some(b.namespace().as_fd()))?;
    for (host, end) in [(a, ends[0]), (b, ends[1])] {
        host.configure(name, &[end.parse::<IpNet>()?], &LinkSettings::default(), None)?;
    }
    Ok(())
}

fn add_route(host: &Host, to: &str, interface: &str, gateway: &str) -> Result<()> {
    let mut netlink = host.netlink()?;
    let mut route = Route::direct(to.parse()?, netlink.link_index(interface)?);
    route.gateway = Some(gateway.parse()?);
    Ok(netlink.add_route(&route)?)
}

/// A network behind two nodes is reached once approved; when the node in use
/// dies, over the other.
pub(crate) fn a_network_behind_nodes_is_reached() -> Result<()> {
    const SITE: &str = "192.168.77.0/24";
    let inside: IpAddr = "192.168.77.9".parse()?;
    let mut lab = Islands::start(&["admin", "one", "two", "user"], &[])?;
    let site = Host::create("site")?;
    let lo = site.netlink()?.link_index("lo")?;
    site.netlink()?.add_address(lo, "192.168.77.9/32".parse()?)?;
    for (at, wire_name, ours, theirs) in
        [(1, "s1", "10.201.1.1", "10.201.1.2"), (2, "s2", "10.201.2.1", "10.201.2.2")]
    {
        let router = &lab.hosts[at];
        wire(router, &site, wire_name, [&format!("{ours}/30"), &format!("{theirs}/30")])?;
        add_route(router, SITE, wire_name, theirs)?;
    }
    // Refusals name the reason.
    for (bad, words) in [("0.0.0.0/0", "too large"), ("100.64.0.0/16", "own addresses")] {
        let error = lab.node(1)?.warren(&["route", "advertise", bad]).unwrap_err();
        ensure!(format!("{error:#}").contains(words), "{bad}: {error:#}");
    }
    let error = lab.node(1)?.warren(&["route", "approve", "one", SITE]).unwrap_err();
    ensure!(format!("{error:#}").contains("admits others"), "{error:#}");
    for at in [1, 2] {
        lab.node(at)?.warren(&["route", "advertise", SITE])?;
    }
    let listed = lab.node(1)?.warren(&["route", "list"])?;
    ensure!(listed.contains("does not forward IPv4"), "no hint:\n{listed}");
    for at in [1, 2] {
        lab.hosts[at].run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
    }

    // Advertised is not enough.
    let seen = |lab: &mut Islands, words: &str| -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let listed = lab.node(3)?.warren(&["route", "list"])?;
            if listed.contains(words) {
                return Ok(listed);
            }
            ensure!(Instant::now() < deadline, "never {words:?}:\n{listed}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    seen(&mut lab, "two")?;
    let user = lab.hosts[3].clone();
    let reach = |tries: u32| -> Result<Duration> {
        let start = Instant::now();
        for _ in 0..tries {
            let mut pinger = user.namespace().run(|| Pinger::open(inside, 9))??;
            if pinger.ping(56, Duration::from_millis(250)).is_ok() {
                return Ok(start.elapsed());
            }
        }
        bail!("{inside} does not answer")
    };
    ensure!(reach(4).is_err(), "reached without an approval");
    for name in ["one", "two"] {
        lab.node(0)?.warren(&["route", "approve", name, SITE])?;
    }
    let listed = seen(&mut lab, "stands by")?;
    // The site's own way back is the site's matter.
    let used = listed.lines().find(|line| !line.contains("stands by") && line.contains(SITE));
    let used = if used.context("none is used")?.contains("one") { 0 } else { 1 };
    let ways_back = [("s1", "10.201.1.1"), ("s2", "10.201.2.1")];
    let back = |by: usize| add_route(&site, "100.64.0.0/10", ways_back[by].0, ways_back[by].1);
    back(used)?;
    println!("  reached after {:.2?}", reach(80)?);

    // The router in use dies.
    lab.crash(1 + used)?;
    back(1 - used)?;
    let took = reach(80).context("the other router does not take over")?;
    println!("  over the other router after {took:.2?}");
    ensure!(took < Duration::from_secs(10), "{took:?}");

    // Denied again.
    let other = if used == 0 { "two" } else { "one" };
    lab.node(0)?.warren(&["route", "deny", other, SITE])?;
    seen(&mut lab, "denied by an admin")?;
    ensure!(reach(4).is_err(), "still reached");
    Ok(())
}

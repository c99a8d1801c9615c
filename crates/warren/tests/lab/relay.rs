//! Nodes that reach each other only over others.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use warren_lab::process::Node;
use warren_lab::sessions::{Iperf, Ssh};
use warren_lab::topology::Host;
use warren_lab::traffic::{Until, echo, stream};
use warren_os::files::TemporaryDir;
use warren_os::netlink::LinkSettings;

use crate::story::{PATIENCE, spec};

/// Hosts in a row, each on an Ethernet link with the next and with nobody
/// else, a daemon on each. The second is the founder.
struct Row {
    hosts: Vec<Host>,
    nodes: Vec<Node>,
    scratch: TemporaryDir,
}

/// The address of the host at one end of link `link`.
fn address(link: usize, right: bool) -> Result<IpNet> {
    let address = Ipv4Addr::new(10, 98, u8::try_from(link)?, if right { 2 } else { 1 });
    Ok(IpNet::new(IpAddr::V4(address), 24)?)
}

/// A cable between two hosts: interfaces `ethN`.
fn cable(left: &Host, right: &Host, link: usize) -> Result<()> {
    let name = format!("eth{link}");
    left.netlink()?.add_veth(&name, &name, Some(right.namespace().as_fd()))?;
    let settings = LinkSettings { mtu: Some(1500), ..LinkSettings::default() };
    left.configure(&name, &[address(link, false)?], &settings, Some("cubic"))?;
    right.configure(&name, &[address(link, true)?], &settings, Some("cubic"))
}

impl Row {
    /// Hosts beyond the founder's neighbours join over a cable to the founder,
    /// which is taken away when all have joined.
    fn start(names: &[&str]) -> Result<Self> {
        let hosts = names.iter().map(|name| Host::create(name)).collect::<Result<Vec<_>>>()?;
        for (link, pair) in hosts.windows(2).enumerate() {
            cable(&pair[0], &pair[1], link)?;
        }
        for (i, host) in hosts.iter().enumerate().skip(3) {
            cable(&hosts[1], host, 10 + i)?;
        }
        let scratch = TemporaryDir::create("warren-lab")?;
        let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        let mut founder = spec(&hosts[1], any, &scratch).up(None, PATIENCE)?;
        founder.join_code(PATIENCE)?;
        let mut nodes = Vec::new();
        for host in hosts.iter().take(1).chain(hosts.iter().skip(2)) {
            nodes.push(spec(host, any, &scratch).join(&founder.invite()?, PATIENCE)?);
            founder.wait_connected(host.name(), PATIENCE)?;
        }
        nodes.insert(1, founder);
        for (i, host) in hosts.iter().enumerate().skip(3) {
            let mut netlink = host.netlink()?;
            let index = netlink.link_index(&format!("eth{}", 10 + i))?;
            netlink.delete_link(index)?;
        }
        Ok(Self { hosts, nodes, scratch })
    }

    fn last(&self) -> usize {
        self.nodes.len() - 1
    }

    fn end(&self, ipv6: bool) -> Result<IpAddr> {
        self.nodes[self.last()].overlay_address(ipv6)
    }

    /// Waits until the two ends reach each other.
    fn wait_reachable(&self) -> Result<Duration> {
        let (first, last) = (&self.hosts[0], &self.hosts[self.last()]);
        let start = Instant::now();
        let to = self.end(true)?;
        while start.elapsed() < PATIENCE {
            if echo(first, last, to, 5, Duration::from_millis(20), 100)?.returned > 0 {
                return Ok(start.elapsed());
            }
        }
        let logs: Vec<String> = self.nodes.iter().map(Node::log).collect();
        anyhow::bail!("the ends do not reach each other:\n{}", logs.join("\n---\n"))
    }

    /// Each relay passed the traffic on, and the first end says that it goes
    /// over them.
    fn expect_all_relayed(&self) -> Result<()> {
        for relay in &self.nodes[1..self.last()] {
            let bytes = relay.status()?.node.relayed_bytes;
            ensure!(bytes > 100 << 20, "{} relayed {bytes} bytes", relay.spec().name);
        }
        let relays: Vec<&str> = self.hosts[1..self.last()].iter().map(Host::name).collect();
        let peers = self.nodes[0].status()?.peers;
        let last = peers.iter().find(|peer| peer.name == self.hosts[self.last()].name());
        let last = last.context("the other end is unknown")?;
        ensure!(last.path == format!("via {}", relays.join(", ")), "{last:?}");
        // Two headers of the path's 1500 bytes, one of them with the list.
        ensure!((1200..=1374).contains(&last.path_mtu), "{last:?}");
        Ok(())
    }

    fn expect_traffic(&self) -> Result<()> {
        let (first, last) = (&self.hosts[0], &self.hosts[self.last()]);
        for ipv6 in [false, true] {
            let to = self.end(ipv6)?;
            let what = || format!("IPv6 inside: {ipv6}");
            let echoed = echo(first, last, to, 100, Duration::from_millis(5), 1200)?;
            ensure!(echoed.returned >= 95, "echoes were lost, IPv6: {ipv6}: {echoed:?}");
            stream(first, last, to, Until::Bytes(32 << 20)).with_context(what)?;
            let back = self.nodes[0].overlay_address(ipv6)?;
            stream(last, first, back, Until::Bytes(32 << 20)).with_context(what)?;
        }
        let iperf = Iperf::start(first, last, self.end(false)?, 3)?.finish()?;
        ensure!(iperf.longest_gap < Duration::from_secs(1), "{iperf:?}");
        println!("  {} relays: {:.2} Gb/s", self.nodes.len() - 2, iperf.gbps);
        self.expect_all_relayed()?;
        if Ssh::is_here() {
            let ssh = Ssh::start(first, last, self.end(true)?, self.scratch.path())?;
            std::thread::sleep(Duration::from_secs(2));
            let shell = ssh.finish()?;
            ensure!(shell.longest_gap < Duration::from_secs(1), "{shell:?}");
        }
        Ok(())
    }
}

/// Bytes that went through an interface, both ways.
fn through(host: &Host, interface: &str) -> Result<u64> {
    let text = host.run("cat", &["/proc/net/dev"])?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{interface}:")));
    let fields: Vec<&str> = line.context("no such interface")?.split_whitespace().collect();
    let bytes = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Ok(bytes(0).context("no count")? + bytes(8).context("no count")?)
}

/// How often `marker` stands in the memory of a process; `None` when we may
/// not look.
fn in_memory(pid: u32, marker: &[u8]) -> Option<usize> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let (mut found, mut read) = (0, 0);
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, mode) = (fields.next()?, fields.next()?);
        if !mode.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-')?;
        let bounds = [start, end].map(|hex| u64::from_str_radix(hex, 16));
        let [Ok(start), Ok(end)] = bounds else { continue };
        let mut block = vec![0; (end - start) as usize];
        // Some ranges cannot be read; those of the data path can.
        if memory.read_exact_at(&mut block, start).is_ok() {
            read += block.len();
            found += memmem(&block, marker);
        }
    }
    (read > 0).then_some(found)
}

fn memmem(block: &[u8], marker: &[u8]) -> usize {
    let first = |from: usize| block[from..].iter().position(|byte| *byte == marker[0]);
    let (mut at, mut found) = (0, 0);
    while let Some(skip) = first(at) {
        at += skip;
        found += usize::from(block[at..].starts_with(marker));
        at += 1;
    }
    found
}

/// The two ends' own session is inside: nothing of it reaches the relay's
/// interface, nor is it to be found in the relay's memory.
pub(crate) fn a_relay_learns_nothing_of_what_it_passes_on() -> Result<()> {
    let row = Row::start(&["rl-a", "rl-b", "rl-c"])?;
    row.wait_reachable()?;
    let (first, relay, last) = (&row.hosts[0], &row.hosts[1], &row.hosts[2]);
    let interface = &row.nodes[1].spec().interface;
    let before = (through(relay, interface)?, row.nodes[1].status()?.node.relayed_bytes);
    // A marker that is in no program: it is made here, at this moment.
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let marker: Vec<u8> = (0..4u128)
        .flat_map(|i| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * i)).to_le_bytes())
        .collect();
    let payload = marker.repeat(16);
    let to = row.end(true)?;
    let server = last.namespace().run(|| UdpSocket::bind((to, 0)))??;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    let client = first.namespace().run(|| UdpSocket::bind("[::]:0"))??;
    let mut buffer = [0; 2048];
    for _ in 0..1000 {
        client.send_to(&payload, server.local_addr()?)?;
        let (n, _) = server.recv_from(&mut buffer)?;
        ensure!(buffer[..n] == payload, "changed on its way");
    }
    let after = (through(relay, interface)?, row.nodes[1].status()?.node.relayed_bytes);
    ensure!(after.1 - before.1 > 1000 * payload.len() as u64, "it was not the relay: {after:?}");
    ensure!(
        after.0 - before.0 < 100 * payload.len() as u64,
        "the relay's own interface saw {} bytes",
        after.0 - before.0
    );
    let Some(at_the_end) = in_memory(row.nodes[2].pid(), &marker) else {
        println!("  SKIPPED: the memory of other processes cannot be read here");
        return Ok(());
    };
    ensure!(at_the_end > 0, "the search finds nothing where there is something");
    let at_the_relay = in_memory(row.nodes[1].pid(), &marker).context("unreadable")?;
    ensure!(at_the_relay == 0, "the relay has it in its memory {at_the_relay} times");
    Ok(())
}

/// Two ends with two relays between them; the one in use dies under traffic.
pub(crate) fn a_dead_relay_is_left_for_another() -> Result<()> {
    let names = ["rd-a", "rd-b1", "rd-b2", "rd-c"];
    let hosts = names.iter().map(|name| Host::create(name)).collect::<Result<Vec<_>>>()?;
    for (link, (left, right)) in [(0, 1), (1, 3), (0, 2), (2, 3), (1, 2)].into_iter().enumerate() {
        cable(&hosts[left], &hosts[right], link)?;
    }
    let scratch = TemporaryDir::create("warren-lab")?;
    let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
    let mut founder = spec(&hosts[1], any, &scratch).up(None, PATIENCE)?;
    founder.join_code(PATIENCE)?;
    let mut nodes = Vec::new();
    for host in [&hosts[0], &hosts[2], &hosts[3]] {
        nodes.push(spec(host, any, &scratch).join(&founder.invite()?, PATIENCE)?);
        founder.wait_connected(host.name(), PATIENCE)?;
    }
    nodes.insert(1, founder);
    let mut row = Row { hosts, nodes, scratch };
    row.wait_reachable()?;
    // Both relays are known to be ones by now.
    std::thread::sleep(Duration::from_secs(3));
    let path = |row: &Row| -> Result<String> {
        let peers = row.nodes[0].status()?.peers;
        Ok(peers.into_iter().find(|p| p.name == "rd-c").context("unknown")?.path)
    };
    let iperf = Iperf::start(&row.hosts[0], &row.hosts[3], row.end(false)?, 8)?;
    std::thread::sleep(Duration::from_secs(3));
    let before = path(&row)?;
    let used = if before.contains("rd-b1") { 1 } else { 2 };
    row.nodes.remove(used).crash()?;
    let streamed = iperf.finish().context("the stream broke")?;
    let peers = row.nodes[0].status()?.peers;
    let after = peers.into_iter().find(|p| p.name == "rd-c").context("unknown")?.path;
    println!("  {before} to {after}: {streamed:?}");
    ensure!(before != after, "still {after}");
    ensure!(streamed.longest_gap <= Duration::from_millis(1500), "{streamed:?}");
    Ok(())
}

/// One TCP stream over one relay beside one on a direct link, in turns; prints
/// both, since what they are is the machine's affair.
pub(crate) fn the_price_of_a_relay() -> Result<()> {
    let row = Row::start(&["rl-a", "rl-b", "rl-c"])?;
    row.wait_reachable()?;
    let (mut direct, mut relayed) = (Vec::new(), Vec::new());
    for round in 0..5 {
        for (to, figures) in [(1, &mut direct), (2, &mut relayed)] {
            let address = row.nodes[to].overlay_address(false)?;
            let streamed = Iperf::start(&row.hosts[0], &row.hosts[to], address, 3)?.finish()?;
            println!("  round {round}: {to} hops, {:.2} Gb/s", streamed.gbps);
            figures.push(streamed.gbps);
        }
    }
    let median = |figures: &mut Vec<f64>| {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let (direct, relayed) = (median(&mut direct), median(&mut relayed));
    println!(
        "  direct {direct:.2} Gb/s, over one relay {relayed:.2} Gb/s: {:.0} %",
        relayed / direct * 100.0
    );
    ensure!(relayed > direct / 10.0, "relays are slower than they can be");
    Ok(())
}

pub(crate) fn traffic_goes_over_one_relay() -> Result<()> {
    let row = Row::start(&["rl-a", "rl-b", "rl-c"])?;
    println!("  reached after {:?}", row.wait_reachable()?);
    row.expect_traffic()
}

pub(crate) fn traffic_goes_over_two_relays() -> Result<()> {
    let row = Row::start(&["rl-a", "rl-b1", "rl-b2", "rl-c"])?;
    println!("  reached after {:?}", row.wait_reachable()?);
    row.expect_traffic()
}

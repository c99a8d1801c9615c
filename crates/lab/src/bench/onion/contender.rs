//! Who carries the stream: Warren's circuits, or WireGuard tunnels inside each
//! other.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use warren_os::files::write_private;
use warren_os::netlink::LinkSettings;
use warren_os::process::cost;
use warren_types::Suite;

use super::super::Programs;
use super::chain::{Chain, address};
use crate::process::{KilledOnDrop, Node, NodeSpec};
use crate::stock::Device;
use crate::topology::{Host, output_of};

const PATIENCE: Duration = Duration::from_secs(30);

/// One way from client to server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnionContender {
    /// No VPN, over the chain of three hops.
    Direct,
    /// wireguard-go to each of three hops, one tunnel inside the other.
    WireguardGoNested,
    /// wireguard-go to one hop.
    WireguardGo,
    /// Warren over so many hops.
    Warren(usize, Suite),
}

impl OnionContender {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Direct,
        Self::WireguardGoNested,
        Self::WireguardGo,
        Self::Warren(3, Suite::Aes256Gcm),
        Self::Warren(3, Suite::ChaCha20Poly1305),
        Self::Warren(1, Suite::Aes256Gcm),
    ];

    /// Its name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::WireguardGoNested => "wireguard-go-nested-3",
            Self::WireguardGo => "wireguard-go-1",
            Self::Warren(1, Suite::Aes256Gcm) => "warren-1-aes",
            Self::Warren(1, _) => "warren-1-chacha",
            Self::Warren(_, Suite::Aes256Gcm) => "warren-3-aes",
            Self::Warren(..) => "warren-3-chacha",
        }
    }

    pub(super) fn hops(self) -> usize {
        match self {
            Self::WireguardGo => 1,
            Self::Warren(hops, _) => hops,
            Self::Direct | Self::WireguardGoNested => 3,
        }
    }

    pub(super) fn start<'c>(
        self,
        chain: &'c Chain,
        programs: &Programs,
        scratch: &Path,
    ) -> Result<Carried<'c>> {
        match self {
            Self::Direct => Ok(Carried::new(chain)),
            Self::WireguardGo | Self::WireguardGoNested => wireguard(chain, programs, scratch),
            Self::Warren(hops, suite) => warren(chain, hops, suite, programs, scratch),
        }
    }
}

impl std::str::FromStr for OnionContender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|one| one.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|one| one.name()).collect();
            format!("unknown contender {text}: {}", names.join(", "))
        })
    }
}

/// A way that stands.
pub(super) struct Carried<'c> {
    chain: &'c Chain,
    /// Processes by role.
    pids: Vec<(String, u32)>,
    /// Held, so that the processes live.
    children: Vec<KilledOnDrop>,
    /// Likewise.
    nodes: Vec<Node>,
}

impl<'c> Carried<'c> {
    fn new(chain: &'c Chain) -> Self {
        Self { chain, pids: Vec::new(), children: Vec::new(), nodes: Vec::new() }
    }

    pub(super) fn wait_reachable(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let to = self.chain.server_address().to_string();
        loop {
            match self.chain.client().run("ping", &["-c1", "-W1", &to]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("no packet passes"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn cpu(&self) -> Result<BTreeMap<String, Duration>> {
        let mut all = BTreeMap::<String, Duration>::new();
        for (role, pid) in &self.pids {
            *all.entry(role.clone()).or_default() += cost(*pid)?.cpu;
        }
        Ok(all)
    }

    /// One TCP stream of so many seconds, Gb/s, and the CPU seconds per GB of
    /// each role.
    pub(super) fn stream(&self, seconds: u32, back: bool) -> Result<(f64, BTreeMap<String, f64>)> {
        let to = self.chain.server_address().to_string();
        let mut server = self.chain.server().command("iperf3");
        server.args(["-s", "-1", "-B", &to]).stdout(Stdio::null()).stderr(Stdio::null());
        let _server = KilledOnDrop(server.spawn()?);
        std::thread::sleep(Duration::from_millis(300));
        let before = self.cpu()?;
        let mut command = self.chain.client().command("timeout");
        command.args(["60", "iperf3", "-J", "-C", "cubic", "-t", &seconds.to_string(), "-c", &to]);
        if back {
            command.arg("-R");
        }
        let output = command.output()?;
        let after = self.cpu()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let result: Value = serde_json::from_str(&text).context("iperf3 printed no JSON")?;
        if let Some(error) = result["error"].as_str() {
            bail!("iperf3: {error}");
        }
        let received = &result["end"]["sum_received"];
        let gbps = received["bits_per_second"].as_f64().context("no rate")? / 1e9;
        let bytes = received["bytes"].as_f64().context("no bytes")?;
        let cpu = after
            .into_iter()
            .map(|(role, now)| {
                let used = now.saturating_sub(before.get(&role).copied().unwrap_or_default());
                (role, used.as_secs_f64() / (bytes / 1e9))
            })
            .collect();
        Ok((gbps, cpu))
    }
}

fn role(i: usize, hops: usize) -> String {
    match i {
        0 => "client".to_owned(),
        i if i == hops => format!("{i}-exit"),
        1 => "1-entry".to_owned(),
        i => format!("{i}-relay"),
    }
}

fn keys(
    host: &Host,
    wg: &Path,
    scratch: &Path,
    name: &str,
) -> Result<(std::path::PathBuf, String)> {
    let secret = host.run(&wg.to_string_lossy(), &["genkey"])?;
    let file = scratch.join(name);
    write_private(&file, secret.as_bytes())?;
    let mut command = host.command(wg);
    command.arg("pubkey").stdin(std::fs::File::open(&file)?);
    Ok((file, output_of(&mut command)?.trim().to_owned()))
}

/// A tunnel from the client to each hop, the one to hop i + 1 inside the one to
/// hop i; the innermost leads to the server.
fn wireguard<'c>(chain: &'c Chain, programs: &Programs, scratch: &Path) -> Result<Carried<'c>> {
    let wg = programs.get("wg")?;
    let hops = chain.hosts.len() - 2;
    let mut carried = Carried::new(chain);
    for i in 1..=hops {
        let (client, hop) = (chain.client(), &chain.hosts[i]);
        let mtu = 1420 - 80 * (i as u32 - 1);
        let settings = LinkSettings { mtu: Some(mtu), ..LinkSettings::default() };
        let (client_file, client_key) = keys(client, &wg, scratch, &format!("client{i}"))?;
        let (hop_file, hop_key) = keys(hop, &wg, scratch, &format!("hop{i}"))?;
        let port = 51_820 + i;
        let ends = [
            (
                client,
                format!("c{i}"),
                client_file,
                hop_key,
                format!("10.20{i}.0.1/24"),
                "0.0.0.0/0",
            ),
            (hop, format!("h{i}"), hop_file, client_key, format!("10.20{i}.0.2/24"), "0.0.0.0/0"),
        ];
        for (at, (host, interface, file, key, inner, allowed)) in ends.into_iter().enumerate() {
            let device = Device::spawn(host, programs, "wireguard-go", &["-f"], &interface)?;
            let mut command = host.command(&wg);
            command.args(["set", &interface, "listen-port", &port.to_string()]);
            command.arg("private-key").arg(&file);
            command.args(["peer", &key, "allowed-ips", allowed]);
            if at == 0 {
                command.args(["endpoint", &format!("{}:{port}", address(i))]);
            }
            output_of(&mut command)?;
            host.configure(&interface, &[inner.parse()?], &settings, Some("cubic"))?;
            let role = if at == 0 { role(0, hops) } else { role(i, hops) };
            carried.pids.push((role, device.pid()));
            carried.children.push(device.into_child());
        }
        // What comes out of this tunnel goes back into it.
        for host in &chain.hosts[i + 1..] {
            let net = format!("10.20{i}.0.0/24");
            let at = chain.hosts.iter().position(|h| h.name() == host.name()).unwrap_or(i);
            let via = format!("10.98.{at}.1");
            host.run("ip", &["route", "add", &net, "via", &via])?;
        }
        // The next hop, or the server, is reached through this tunnel.
        let target = format!("{}/32", address(i + 1));
        client.run("ip", &["route", "add", &target, "dev", &format!("c{i}")])?;
    }
    Ok(carried)
}

fn warren<'c>(
    chain: &'c Chain,
    hops: usize,
    suite: Suite,
    programs: &Programs,
    scratch: &Path,
) -> Result<Carried<'c>> {
    let rules = scratch.join("exit.rules");
    std::fs::write(&rules, "allow-private-destinations\naccept *:*\n")?;
    let exit = &chain.hosts[hops];
    // Towards the server: what an exit forwards to.
    exit.run("ip", &["route", "add", "default", "via", &chain.server_address().to_string()])?;
    let spec = |i: usize| -> Result<NodeSpec> {
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        if i > 0 {
            let roles = if i == hops { "exit" } else { "entry,relay" };
            arguments.extend(["--roles", roles, "--region", "de"].map(Into::into));
        }
        if i == hops {
            arguments.extend(["--exit-policy".into(), rules.clone().into_os_string()]);
            // None is needed, but an exit wants to know one.
            let config = scratch.join("exit.toml");
            std::fs::write(&config, "[exit]\nresolver = \"10.98.1.1\"\n")?;
            arguments.extend(["--config".into(), config.into_os_string()]);
        }
        let name =
            role(i, hops).trim_start_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
        let name = if i > 1 && i < hops { format!("{name}{i}") } else { name };
        Ok(NodeSpec {
            binary: programs.get("warren")?,
            host: chain.hosts[i].clone(),
            state_dir: scratch.join(format!("node{i}")),
            listen: "0.0.0.0:51820".parse()?,
            interface: format!("w{i}"),
            name,
            arguments,
            environment: vec![],
        })
    };
    let founder = spec(1)?.up(Some(suite), PATIENCE)?;
    let mut nodes = vec![founder];
    let mut carried = Carried::new(chain);
    for i in (0..=hops).filter(|i| *i != 1) {
        let code = nodes[0].invite()?;
        nodes.push(spec(i)?.join(&code, PATIENCE)?);
    }
    let client = nodes.iter().position(|node| node.spec().name == "client").context("no client")?;
    let deadline = Instant::now() + PATIENCE;
    let mut arguments = vec!["connect", "--kill-switch", "--exit", "exit"];
    let count = hops.to_string();
    arguments.extend(["--hops", &count]);
    if hops > 1 {
        arguments.extend(["--entry", "entry"]);
    }
    // Until the directory has everybody, there may be no path.
    while let Err(error) = nodes[client].warren(&arguments) {
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    for node in &nodes {
        let i = chain.hosts.iter().position(|host| host.name() == node.spec().host.name());
        carried.pids.push((role(i.unwrap_or(0), hops), node.pid()));
    }
    carried.nodes = nodes;
    Ok(carried)
}

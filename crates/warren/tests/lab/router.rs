//! Routers at home: a private network behind one address, and a port asked of
//! the router. Whoever is outside knows only that address.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::natpmp::NatPmpRouter;
use warren_lab::process::{KilledOnDrop, Node, NodeSpec};
use warren_lab::topology::Host;
use warren_os::files::TemporaryDir;
use warren_os::netlink::LinkSettings;
use warren_types::api::{PortMappingProtocol, PortMappingState};

use crate::names::{eventually, have};
use crate::story::{PATIENCE, spec};

/// The router's address outside. Not one reserved for documentation: real
/// routers' software refuses those. It exists in the lab's namespaces only.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);

/// `inside` (192.168.77.2) behind `router`, and `outside` (203.0.114.9).
struct Home {
    inside: Host,
    router: Host,
    outside: Host,
    scratch: TemporaryDir,
}

impl Home {
    fn create() -> Result<Self> {
        let home = Self {
            inside: Host::create("inside")?,
            router: Host::create("router")?,
            outside: Host::create("outside")?,
            scratch: TemporaryDir::create("warren-lab")?,
        };
        let plain = LinkSettings::default();
        let router = &home.router;
        router.netlink()?.add_veth("eth0", "eth0", Some(home.inside.namespace().as_fd()))?;
        router.netlink()?.add_veth("eth1", "eth0", Some(home.outside.namespace().as_fd()))?;
        router.configure("eth0", &["192.168.77.1/24".parse()?], &plain, None)?;
        router.configure("eth1", &[format!("{OUTSIDE}/24").parse()?], &plain, None)?;
        home.inside.configure("eth0", &["192.168.77.2/24".parse()?], &plain, None)?;
        home.outside.configure("eth0", &["203.0.114.9/24".parse()?], &plain, None)?;
        home.inside.run("ip", &["route", "add", "default", "via", "192.168.77.1"])?;
        router.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
        Ok(home)
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let file = self.scratch.path().join("rules.nft");
        std::fs::write(&file, rules)?;
        self.router.run("nft", &["-f".as_ref(), file.as_os_str()]).map(drop)
    }

    fn spec(&self, host: &Host) -> NodeSpec {
        spec(host, [0, 0, 0, 0].into(), &self.scratch)
    }

    /// Starts a node inside and waits for its port on the router.
    fn start(&self, protocol: PortMappingProtocol) -> Result<Node> {
        let mut node = self.spec(&self.inside).up(None, PATIENCE)?;
        let status = node.wait_until("a port on the router", PATIENCE, |status| {
            status.port_mapping.state == PortMappingState::Mapped
        })?;
        let mapping = status.port_mapping;
        ensure!(mapping.protocol == Some(protocol), "{mapping:?}");
        ensure!(mapping.external.is_some_and(|e| e.ip() == OUTSIDE), "{mapping:?}");
        ensure!(mapping.gateway == Some([192, 168, 77, 1].into()), "{mapping:?}");
        let text = node.warren(&["status"])?;
        ensure!(text.contains(&format!("forwards {OUTSIDE}")), "{text}");
        Ok(node)
    }

    /// A machine outside joins by a code of the node inside: the only address
    /// in it that it can reach is the mapped one.
    fn expect_reachable(&self, inside: &Node) -> Result<()> {
        let code = inside.invite()?;
        let mut outside = self.spec(&self.outside).join(&code, PATIENCE)?;
        let peer = outside.wait_connected("inside", PATIENCE)?;
        let at = peer.endpoint.context("no endpoint")?;
        ensure!(at.ip().to_canonical() == OUTSIDE, "reached at {at}");
        outside.warren(&["leave"])?;
        Ok(())
    }
}

pub(crate) fn nat_pmp() -> Result<()> {
    let home = Home::create()?;
    // The lab's router only grants; the forwarding is set up beforehand.
    home.nft(
        "table ip home {
            chain in { type nat hook prerouting priority -100;
                iifname eth1 udp dport 52820 dnat to 192.168.77.2:51820; }
            chain out { type nat hook postrouting priority 100;
                oifname eth1 ip saddr 192.168.77.0/24 masquerade; }
        }",
    )?;
    let router = NatPmpRouter::start(&home.router, OUTSIDE)?;
    let node = home.start(PortMappingProtocol::NatPmp)?;
    ensure!(router.mappings().values().any(|(port, _)| *port == 52820), "{:?}", router.mappings());
    home.expect_reachable(&node)?;
    // Taken back at the end.
    let mut spec = node.stop(PATIENCE)?;
    eventually("the mapping is gone", || Ok(router.mappings().is_empty()))?;
    // Not asked where that is not wanted.
    spec.arguments.push("--no-port-mapping".into());
    let node = spec.up(None, PATIENCE)?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(node.status()?.port_mapping.state == PortMappingState::Off, "asked all the same");
    ensure!(router.mappings().is_empty(), "{:?}", router.mappings());
    Ok(())
}

pub(crate) fn miniupnpd() -> Result<()> {
    if !have("miniupnpd", "miniupnpd-nftables") {
        return Ok(());
    }
    for (protocol, pcp, upnp) in
        [(PortMappingProtocol::Pcp, "yes", "no"), (PortMappingProtocol::Upnp, "no", "yes")]
    {
        by_miniupnpd(protocol, pcp, upnp).with_context(|| format!("by {protocol}"))?;
    }
    Ok(())
}

fn by_miniupnpd(protocol: PortMappingProtocol, pcp: &str, upnp: &str) -> Result<()> {
    let home = Home::create()?;
    // The chains it fills, as its own script makes them.
    home.nft(
        "table inet filter {
            chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; }
            chain miniupnpd { }
            chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
            chain postrouting { type nat hook postrouting priority 100;
                jump postrouting_miniupnpd;
                oifname eth1 ip saddr 192.168.77.0/24 masquerade; }
            chain prerouting_miniupnpd { }
            chain postrouting_miniupnpd { }
        }",
    )?;
    let mut config = String::new();
    for (key, value) in [
        ("ext_ifname", "eth1"),
        ("listening_ip", "eth0"),
        ("enable_natpmp", pcp),
        ("enable_upnp", upnp),
        ("secure_mode", "yes"),
        ("upnp_table_name", "filter"),
        ("upnp_nat_table_name", "filter"),
        ("upnp_forward_chain", "miniupnpd"),
        ("upnp_nat_chain", "prerouting_miniupnpd"),
        ("upnp_nat_postrouting_chain", "postrouting_miniupnpd"),
        ("uuid", "6c3e1b52-0a56-4f5e-9a3c-2d1f6f8f4f10"),
    ] {
        writeln!(config, "{key}={value}")?;
    }
    config
        .push_str("allow 1024-65535 192.168.77.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n");
    let file = home.scratch.path().join("miniupnpd.conf");
    std::fs::write(&file, config)?;
    let mut daemon = home.router.command("miniupnpd");
    daemon.arg("-d").arg("-f").arg(&file).arg("-P").arg(home.scratch.path().join("pid"));
    daemon.stdout(Stdio::null()).stderr(Stdio::null());
    let _daemon = KilledOnDrop(daemon.spawn().context("cannot start miniupnpd")?);
    std::thread::sleep(Duration::from_millis(500));

    let node = home.start(protocol)?;
    let mapped = || -> Result<bool> {
        let chain = ["list", "chain", "inet", "filter", "prerouting_miniupnpd"];
        Ok(home.router.run("nft", &chain)?.contains("192.168.77.2"))
    };
    ensure!(mapped()?, "the router has no rule");
    home.expect_reachable(&node)?;
    node.stop(PATIENCE)?;
    eventually("the rule is gone", || Ok(!mapped()?))
}

//! Unmodified WireGuard programs against Warren. Each scenario says so when
//! its program is not installed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::bench::Programs;
use warren_lab::stock::{Device, QuickConfig};
use warren_lab::topology::{Host, Pair};
use warren_lab::traffic::{Until, echo, stream};
use warren_types::Suite;

use crate::story::{PATIENCE, Two};

/// Directories besides `PATH`, as the bench has with `--peer-path`.
fn programs() -> Programs {
    let more = std::env::var_os("WARREN_PEER_PATH").unwrap_or_default();
    Programs::new(&std::env::split_paths(&more).collect::<Vec<_>>())
}

pub(crate) fn wireguard_go_reaches_the_mesh() -> Result<()> {
    client_reaches_the_mesh("wireguard-go", &["-f"])
}

pub(crate) fn boringtun_reaches_the_mesh() -> Result<()> {
    client_reaches_the_mesh(
        "boringtun-cli",
        &["--foreground", "--disable-drop-privileges", "--threads", "1"],
    )
}

/// A stock client on the right host, next to a member node, enters through the
/// left node and reaches both.
fn client_reaches_the_mesh(program: &str, arguments: &[&str]) -> Result<()> {
    let programs = programs();
    if programs.find(program).is_none() || programs.find("wg").is_none() {
        println!("SKIPPED: {program} or wg is not installed");
        return Ok(());
    }
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    let client = client_host(&two.pair)?;
    let text = two.left.warren(&["wg", "add-client", "phone"])?;
    let config = QuickConfig::parse(&text).with_context(|| text.clone())?;
    let interface = format!("wgc{}", std::process::id());
    let _device = Device::spawn(&client, &programs, program, arguments, &interface)?;
    config.apply(&client, &programs.get("wg")?, &interface, two.scratch.path())?;

    let entry = two.left.overlay_address(false)?;
    let beyond = two.right.overlay_address(false)?;
    let every = Duration::from_millis(10);
    // The first packets start the handshake.
    let deadline = Instant::now() + PATIENCE;
    while echo(&client, &two.pair.left, entry, 3, every, 64)?.returned == 0 {
        ensure!(Instant::now() < deadline, "the client does not reach its node");
    }
    let echoed = echo(&client, &two.pair.right, beyond, 100, every, 500)?;
    ensure!(echoed.returned >= 98, "through the node: {echoed:?}");
    let bytes = Until::Bytes(8 << 20);
    stream(&client, &two.pair.left, entry, bytes).context("to its node")?;
    stream(&client, &two.pair.right, beyond, bytes).context("to another member")?;
    let own = config.addresses.iter().map(ipnet::IpNet::addr).find(std::net::IpAddr::is_ipv4);
    let own = own.context("the client has no IPv4 address")?;
    stream(&two.pair.left, &client, own, bytes).context("to the client")?;
    stream(&two.pair.right, &client, own, bytes).context("from a member to the client")?;

    let listed = two.left.warren(&["wg", "list"])?;
    ensure!(listed.contains("phone"), "not listed: {listed}");
    two.left.warren(&["wg", "remove", "phone"])?;
    two.left.wait_until("forgets the client", PATIENCE, |status| {
        !status.peers.iter().any(|peer| peer.name == "phone")
    })?;
    let echoed = echo(&client, &two.pair.left, entry, 20, every, 64)?;
    ensure!(echoed.returned == 0, "a removed client still gets in: {echoed:?}");
    Ok(())
}

/// A third host, linked to the left one.
fn client_host(pair: &Pair) -> Result<Host> {
    use std::os::fd::AsFd;
    use warren_os::netlink::{LinkSettings, Route};
    let client = Host::create("client")?;
    let namespace = client.namespace().as_fd();
    pair.left.netlink()?.add_veth("eth1", "eth0", Some(namespace))?;
    let settings = LinkSettings::default();
    pair.left.configure("eth1", &["10.98.0.1/24".parse()?], &settings, None)?;
    client.configure("eth0", &["10.98.0.2/24".parse()?], &settings, None)?;
    let mut netlink = client.netlink()?;
    let index = netlink.link_index("eth0")?;
    let mut route = Route::direct("10.99.0.0/24".parse()?, index);
    route.gateway = Some("10.98.0.1".parse()?);
    netlink.add_route(&route)?;
    Ok(client)
}

pub(crate) fn stock_wg_shows_a_warren_interface() -> Result<()> {
    let programs = programs();
    let Some(wg) = programs.find("wg") else {
        println!("SKIPPED: wg is not installed");
        return Ok(());
    };
    let two = Two::start(1500, Suite::ChaCha20Poly1305)?;
    let show = |arguments: &[&str]| -> Result<String> {
        let mut command = two.pair.left.command(&wg);
        let output = command.args(arguments).stderr(Stdio::piped()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = show(&["show", "w-left"])?;
    let key = two.right.status()?.node.public_key.to_string();
    ensure!(text.contains(&key), "the peer is not shown: {text}");
    ensure!(text.contains("latest handshake"), "{text}");
    let dump = show(&["show", "w-left", "dump"])?;
    let secret = std::fs::read(two.scratch.path().join("left/link.key"))?;
    let secret = String::from_utf8_lossy(&secret).trim().to_owned();
    ensure!(secret.is_empty() || !dump.contains(&secret), "the private key is shown");
    // Read-only: changes are refused.
    ensure!(show(&["set", "w-left", "listen-port", "1"]).is_err(), "wg set was accepted");
    Ok(())
}

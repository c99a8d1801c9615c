//! What every user does: found, join, use, restart, leave.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::process::{Node, NodeSpec};
use warren_lab::topology::{Host, Pair, Underlay};
use warren_lab::traffic::{Until, echo, stream};
use warren_os::files::TemporaryDir;
use warren_types::Suite;

/// How long setting up may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    // Another build of it, such as the released one, for figures.
    let named = std::env::var_os("WARREN_BIN").map(PathBuf::from);
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_warren").into())
}

/// A daemon to be, on one end of a pair.
pub(crate) fn spec(host: &Host, address: IpAddr, scratch: &TemporaryDir) -> NodeSpec {
    NodeSpec {
        binary: binary(),
        host: host.clone(),
        name: host.name().to_owned(),
        state_dir: scratch.path().join(host.name()),
        listen: SocketAddr::new(address, 51820),
        interface: format!("w-{}", host.name()),
        arguments: vec![],
        environment: vec![],
    }
}

/// Two daemons on an Ethernet link, connected.
pub(crate) struct Two {
    pub left: Node,
    pub right: Node,
    pub scratch: TemporaryDir,
    pub pair: Pair,
}

impl Two {
    /// Founds a network on the left and joins it on the right.
    pub(crate) fn start(mtu: u32, suite: Suite) -> Result<Self> {
        let pair = Pair::create(mtu, Underlay::Direct)?;
        let scratch = TemporaryDir::create("warren-lab")?;
        let mut left = spec(&pair.left, Pair::LEFT, &scratch).up(Some(suite), PATIENCE)?;
        let code = left.join_code(PATIENCE)?;
        let right = spec(&pair.right, Pair::RIGHT, &scratch).join(&code, PATIENCE)?;
        left.wait_connected("right", PATIENCE)?;
        Ok(Self { left, right, scratch, pair })
    }

    /// Echoes from left to right inside the network; none may be lost.
    pub(crate) fn expect_echoes(&self, ipv6: bool) -> Result<()> {
        let to = self.right.overlay_address(ipv6)?;
        let every = Duration::from_millis(5);
        let echoed = echo(&self.pair.left, &self.pair.right, to, 100, every, 200)?;
        ensure!(echoed.returned == echoed.sent, "echoes were lost: {echoed:?}");
        Ok(())
    }

    /// A checked stream each way.
    pub(crate) fn expect_streams(&self, ipv6: bool, bytes: u64) -> Result<()> {
        let (left, right) = (&self.pair.left, &self.pair.right);
        let bytes = Until::Bytes(bytes);
        stream(left, right, self.right.overlay_address(ipv6)?, bytes).context("left to right")?;
        stream(right, left, self.left.overlay_address(ipv6)?, bytes).context("right to left")?;
        Ok(())
    }
}

pub(crate) fn two_machines_two_commands() -> Result<()> {
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    two.expect_echoes(false)?;
    two.expect_echoes(true)?;
    two.expect_streams(false, 50 << 20)?;

    let peer = two.left.wait_connected("right", PATIENCE)?;
    ensure!(peer.rtt_ms.is_some_and(|rtt| rtt < 1000.0), "no round-trip time: {peer:?}");
    ensure!(peer.rx_bytes > 50 << 20 && peer.tx_bytes > 50 << 20, "not counted: {peer:?}");
    ensure!(peer.suite == Suite::Aes256Gcm && peer.endpoint.is_some(), "{peer:?}");
    let status = two.left.status()?;
    ensure!(status.node.mode.contains("vnet_hdr"), "no offloads: {}", status.node.mode);

    // Scripts depend on these keys.
    let json: serde_json::Value = serde_json::from_str(&two.left.warren(&["status", "--json"])?)?;
    for key in ["/node/name", "/node/addresses/0", "/node/mode", "/peers/0/name"] {
        ensure!(json.pointer(key).is_some(), "status has no {key}");
    }
    for key in ["addresses", "endpoint", "path", "rtt_ms", "handshake_age_s", "suite"] {
        ensure!(json.pointer(&format!("/peers/0/{key}")).is_some(), "a peer has no {key}");
    }
    two.right.stop(PATIENCE).context("the right node does not end in order")?;
    two.left.stop(PATIENCE).context("the left node does not end in order")?;
    Ok(())
}

pub(crate) fn both_suites_and_both_families_work() -> Result<()> {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let two = Two::start(1500, suite)?;
        for ipv6 in [false, true] {
            two.expect_streams(ipv6, 8 << 20).with_context(|| format!("{suite}, v6: {ipv6}"))?;
        }
    }
    Ok(())
}

pub(crate) fn a_killed_node_comes_back_by_itself() -> Result<()> {
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    let before = two.right.status()?.node;
    let spec = two.right.crash()?;
    // No join: the state directory knows the network.
    two.right = spec.up(None, PATIENCE)?;
    let after = two.right.status()?.node;
    ensure!(before.id == after.id, "another identity after the restart");
    ensure!(before.addresses == after.addresses, "other addresses after the restart");
    two.right.wait_connected("left", PATIENCE)?;
    two.expect_echoes(false)?;

    // And the founder.
    let spec = two.left.crash()?;
    two.left = spec.up(None, PATIENCE)?;
    two.left.wait_connected("right", PATIENCE)?;
    two.expect_streams(true, 4 << 20)
}

pub(crate) fn a_node_that_leaves_leaves_nothing() -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    two.right.warren(&["leave"])?;
    let deadline = std::time::Instant::now() + PATIENCE;
    let left_behind = || -> Result<Option<String>> {
        let links = two.pair.right.netlink()?.links()?;
        if let Some(link) = links.into_iter().find(|link| link.name == "w-right") {
            return Ok(Some(format!("interface {}", link.name)));
        }
        let Ok(entries) = std::fs::read_dir(two.scratch.path().join("right")) else {
            return Ok(None);
        };
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        Ok((!names.is_empty()).then(|| format!("files {names:?}")))
    };
    while let Some(what) = left_behind()? {
        ensure!(std::time::Instant::now() < deadline, "left behind: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

pub(crate) fn a_rekey_loses_nothing() -> Result<()> {
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    let to = two.right.overlay_address(false)?;
    // Sessions live 120 s: this crosses a rekey for sure.
    let (left, right) = (&two.pair.left, &two.pair.right);
    let time = Until::Elapsed(Duration::from_secs(130));
    let (streamed, echoed) = std::thread::scope(|scope| {
        let streaming = scope.spawn(|| stream(left, right, to, time));
        let echoed = echo(left, right, to, 12_500, Duration::from_millis(10), 100);
        (streaming.join(), echoed)
    });
    let streamed = streamed.unwrap_or_else(|_| anyhow::bail!("the stream panicked"))?;
    let echoed = echoed?;
    let peer = two.left.wait_connected("right", PATIENCE)?;
    ensure!(peer.handshake_age_s.is_some_and(|age| age < 60), "no rekey happened: {peer:?}");
    ensure!(streamed.longest_gap < Duration::from_secs(1), "the stream paused: {streamed:?}");
    ensure!(echoed.loss() < 0.001, "echoes were lost: {echoed:?}");
    Ok(())
}

//! Networks that let no UDP through.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::topology::{Host, Pair, Underlay};
use warren_lab::traffic::{Until, echo, stream};
use warren_os::files::TemporaryDir;

use crate::story::{PATIENCE, spec};

/// Drops what UDP the host sends or gets on its Ethernet interface.
const BLOCK: &str = "table inet firewall {
    chain in { type filter hook input priority 0; iifname \"eth0\" meta l4proto udp drop; }
    chain out { type filter hook output priority 0; oifname \"eth0\" meta l4proto udp drop; }
}";

fn unblock(host: &Host) -> Result<()> {
    host.run("nft", &["delete table inet firewall"]).map(|_| ())
}

fn block_udp(host: &Host) -> Result<()> {
    host.run("nft", &[BLOCK]).map(|_| ()).context("nft (package nftables) is needed")
}

/// Joins, talks, streams and restarts with every UDP packet dropped; goes back
/// to UDP when it returns, without losing its connection.
pub(crate) fn blocked_udp_is_replaced_by_tls() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let mut left = spec(&pair.left, Pair::LEFT, &scratch);
    left.arguments = vec!["--tcp-listen".into(), "10.99.0.1:443".into()];
    let mut left = left.up(None, PATIENCE)?;
    let code = left.join_code(PATIENCE)?;
    block_udp(&pair.right)?;

    let started = Instant::now();
    let mut right = spec(&pair.right, Pair::RIGHT, &scratch)
        .join(&code, PATIENCE)
        .context("joining over TCP alone")?;
    right.wait_connected("left", PATIENCE).context("over TCP alone")?;
    println!("  joined over TCP in {:.1} s", started.elapsed().as_secs_f64());
    let to = left.overlay_address(false)?;
    let echoed = echo(&pair.right, &pair.left, to, 50, Duration::from_millis(10), 1000)?;
    ensure!(echoed.returned >= 49, "{echoed:?}");
    let streamed = stream(&pair.right, &pair.left, to, Until::Bytes(32 << 20))?;
    println!("  {:.2} Gb/s over TCP", streamed.gbps());
    stream(&pair.left, &pair.right, right.overlay_address(true)?, Until::Bytes(8 << 20))?;

    // What was learnt is enough for a restart.
    let spec = right.crash()?;
    let mut right = spec.up(None, PATIENCE)?;
    right.wait_connected("left", PATIENCE).context("after kill -9")?;
    let advertised = left.status()?;
    ensure!(
        !format!("{advertised:?}").contains("observed: Some(127.0.0.1"),
        "an address inside a tunnel was taken for one outside"
    );

    // UDP returns under a stream: it must not notice.
    let streamed = std::thread::scope(|scope| {
        let time = Until::Elapsed(Duration::from_secs(12));
        let (right, left) = (&pair.right, &pair.left);
        let streaming = scope.spawn(move || stream(right, left, to, time));
        std::thread::sleep(Duration::from_secs(1));
        unblock(&pair.right)?;
        streaming.join().unwrap_or_else(|_| anyhow::bail!("panicked"))
    })?;
    ensure!(streamed.longest_gap < Duration::from_secs(2), "{streamed:?}");
    right.wait_until("a link over UDP again", PATIENCE, |status| {
        status.peers.iter().any(|peer| {
            peer.name == "left"
                && peer.endpoint.is_some_and(|e| !e.ip().to_canonical().is_loopback())
        })
    })?;
    left.wait_connected("right", PATIENCE)?;
    Ok(())
}

//! What networks do to packets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::netem::Profile;
use warren_lab::topology::Host;
use warren_lab::traffic::{Until, echo, stream};
use warren_lab::wan::{Attachment, Wan, WanHost};
use warren_os::files::TemporaryDir;
use warren_types::Suite;

use crate::story::{PATIENCE, Two, spec};
use warren_lab::process::Node;

pub(crate) fn a_moved_node_keeps_its_connections() -> Result<()> {
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    // Bound to no address, so that it can move.
    let mut spec = two.right.stop(PATIENCE)?;
    spec.listen = "0.0.0.0:51820".parse()?;
    two.right = spec.up(None, PATIENCE)?;
    two.right.wait_connected("left", PATIENCE)?;
    let to = two.left.overlay_address(false)?;
    let (left, right) = (&two.pair.left, &two.pair.right);
    let mut netlink = right.netlink()?;
    let index = netlink.link_index("eth0")?;
    let streamed = std::thread::scope(|scope| {
        let time = Until::Elapsed(Duration::from_secs(8));
        let streaming = scope.spawn(move || stream(right, left, to, time));
        std::thread::sleep(Duration::from_secs(2));
        // Another network: the old address goes, a new one comes.
        let moved = netlink
            .delete_address(index, "10.99.0.2/24".parse()?)
            .and_then(|()| netlink.add_address(index, "10.99.0.77/24".parse().expect("constant")));
        let streamed = streaming.join().unwrap_or_else(|_| anyhow::bail!("panicked"));
        moved?;
        streamed
    })
    .context("the stream broke when the node moved")?;
    ensure!(streamed.longest_gap < Duration::from_secs(5), "{streamed:?}");
    let peer = two.left.wait_connected("right", PATIENCE)?;
    let endpoint = peer.endpoint.context("no endpoint")?.to_string();
    ensure!(endpoint.starts_with("10.99.0.77:"), "the old endpoint stays: {endpoint}");
    Ok(())
}

/// Two daemons over the WAN emulator.
struct OverWan {
    wan: Wan,
    hosts: [Host; 2],
    places: [WanHost; 2],
    left: Node,
    right: Node,
    _scratch: TemporaryDir,
}

impl OverWan {
    fn start(profile: Profile) -> Result<Self> {
        let mut wan = Wan::new(7)?;
        let hosts = [Host::create("left")?, Host::create("right")?];
        let left_place = wan.attach(hosts[0].namespace(), Attachment::default())?;
        let right_place = wan.attach(hosts[1].namespace(), Attachment::default())?;
        wan.change(left_place, right_place, |link| *link = profile)?;
        let scratch = TemporaryDir::create("warren-lab")?;
        let mut left = spec(&hosts[0], left_place.ipv4().into(), &scratch).up(None, PATIENCE)?;
        let code = left.join_code(PATIENCE)?;
        let right = spec(&hosts[1], right_place.ipv4().into(), &scratch).join(&code, PATIENCE)?;
        left.wait_connected("right", PATIENCE)?;
        let places = [left_place, right_place];
        Ok(Self { wan, hosts, places, left, right, _scratch: scratch })
    }

    fn set(&self, profile: Profile) -> Result<()> {
        Ok(self.wan.change(self.places[0], self.places[1], |link| *link = profile)?)
    }
}

pub(crate) fn streams_survive_a_bad_network() -> Result<()> {
    let delay = Profile::delayed(Duration::from_millis(5));
    let lab = OverWan::start(delay)?;
    let to = lab.right.overlay_address(false)?;
    let [left, right] = &lab.hosts;
    let weather = [
        ("1 % loss", Profile { loss: 0.01, ..delay }, 4 << 20),
        ("10 % loss", Profile { loss: 0.1, ..delay }, 512 << 10),
        ("reordering", Profile { reorder: 0.05, ..delay }, 4 << 20),
        ("duplication", Profile { duplicate: 0.1, ..delay }, 4 << 20),
        ("jitter", Profile { jitter: Duration::from_millis(4), ..delay }, 4 << 20),
        ("a thin line", Profile { rate: Some(5_000_000), queue: 64 << 10, ..delay }, 1 << 20),
    ];
    for (name, profile, bytes) in weather {
        lab.set(profile)?;
        stream(left, right, to, Until::Bytes(bytes)).context(name)?;
    }

    // Losses inside are those outside, no more: both ways of 20 % make 36 %.
    lab.set(Profile { loss: 0.2, ..delay })?;
    let echoed = echo(left, right, to, 600, Duration::from_millis(4), 100)?;
    ensure!((0.25..0.47).contains(&echoed.loss()), "losses were multiplied: {echoed:?}");
    // Duplicates outside are none inside (the replay window takes them).
    lab.set(Profile { duplicate: 1.0, ..delay })?;
    let before = peer_bytes(&lab.right)?;
    let echoed = echo(left, right, to, 200, Duration::from_millis(4), 1000)?;
    ensure!(echoed.returned >= 198, "{echoed:?}");
    let received = peer_bytes(&lab.right)? - before;
    ensure!(received < 300 * 1028, "duplicates were delivered: {received} bytes");

    // A cut cable and its repair.
    lab.set(Profile { cut: true, ..delay })?;
    std::thread::sleep(Duration::from_secs(2));
    lab.set(delay)?;
    stream(left, right, to, Until::Bytes(1 << 20)).context("after the repair")?;
    Ok(())
}

fn peer_bytes(node: &Node) -> Result<u64> {
    let status = node.status()?;
    let peer = status.peers.first().context("no peer")?;
    Ok(peer.rx_bytes)
}

pub(crate) fn a_small_mtu_underlay() -> Result<()> {
    let two = Two::start(1280, Suite::Aes256Gcm)?;
    for ipv6 in [false, true] {
        two.expect_streams(ipv6, 8 << 20).with_context(|| format!("v6: {ipv6}"))?;
    }
    // Datagrams that fit the interface but not the path: IPv6 ones of 1280
    // bytes must always pass (RFC 8200 section 5).
    let to = two.right.overlay_address(true)?;
    let every = Duration::from_millis(10);
    let echoed = echo(&two.pair.left, &two.pair.right, to, 50, every, 1232)?;
    ensure!(echoed.returned >= 48, "full-size IPv6 packets are lost: {echoed:?}");
    Ok(())
}

pub(crate) fn a_silent_mtu_hole_is_found() -> Result<()> {
    // Interfaces say 1500, but the middle eats what is over 1400 without a word.
    let hole = Profile { mtu: Some(1400), ..Profile::delayed(Duration::from_millis(2)) };
    let mut lab = OverWan::start(hole)?;
    let to = lab.right.overlay_address(false)?;
    let [left, right] = &lab.hosts;
    stream(left, right, to, Until::Bytes(4 << 20)).context("through the hole")?;
    let peer = lab.left.wait_connected("right", PATIENCE)?;
    ensure!(peer.path_mtu <= 1340, "path MTU not found: {}", peer.path_mtu);
    Ok(())
}

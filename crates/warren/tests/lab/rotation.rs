//! Keys, certificates and roots that change under traffic; admins that come and
//! go.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::process::{Node, NodeSpec};
use warren_lab::sessions::{Iperf, Ssh};
use warren_lab::topology::{Pair, Underlay};
use warren_lab::traffic::{Until, stream};
use warren_os::files::{TemporaryDir, write_private};
use warren_types::Suite;

use crate::Scenario;
use crate::story::{PATIENCE, Two, spec};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("rotations_are_not_noticed", rotations_are_not_noticed),
    ("no_node_is_special", no_node_is_special),
    ("an_absent_node_catches_up_with_new_roots", an_absent_node_catches_up),
    ("short_certificates_renew_themselves", short_certificates_renew_themselves),
];

pub(crate) const LONG: &[Scenario] =
    &[("a_soak_of_rotations_is_not_noticed", a_soak_of_rotations_is_not_noticed)];

const SECOND: Duration = Duration::from_secs(1);

/// How often what is replaced, while streams flow.
struct Plan {
    ticks: u32,
    every: Duration,
    /// Node keys at both ends at once, each so many ticks.
    node_keys: u32,
    /// The CA, each so many ticks.
    roots: u32,
    /// Link keys at both ends at once, each so many ticks.
    link_keys: u32,
}

fn rotations_are_not_noticed() -> Result<()> {
    soak(&Plan {
        ticks: 12,
        every: Duration::from_millis(700),
        node_keys: 5,
        roots: 7,
        link_keys: 6,
    })
}

/// 100 session keys, 10 node keys, 3 roots: the bar.
fn a_soak_of_rotations_is_not_noticed() -> Result<()> {
    soak(&Plan {
        ticks: 100,
        every: Duration::from_millis(700),
        node_keys: 10,
        roots: 33,
        link_keys: 25,
    })
}

/// Runs commands at once and waits for all.
fn at_once(nodes: [&Node; 2], arguments: &[&str]) -> Result<()> {
    let run = |node: &Node| -> Result<std::process::Child> {
        let spec = node.spec();
        let mut command: Command = spec.host.command(&spec.binary);
        command.args(arguments).arg("--state-dir").arg(&spec.state_dir);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        Ok(command.spawn()?)
    };
    let children = [run(nodes[0])?, run(nodes[1])?];
    for (child, node) in children.into_iter().zip(nodes) {
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = &node.spec().name;
        ensure!(output.status.success(), "{arguments:?} on {name}: {said}");
    }
    Ok(())
}

/// How many connection attempts a node refused so far.
fn refused(node: &Node) -> Result<Vec<String>> {
    let events = node.warren(&["events", "--json"])?;
    Ok(events.lines().filter(|line| line.contains("\"refused\"")).map(str::to_owned).collect())
}

fn soak(plan: &Plan) -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    let (left, right) = (&two.pair.left, &two.pair.right);
    let to = two.right.overlay_address(false)?;
    let before = two.right.status()?.node;
    let ssh = match Ssh::is_here() {
        true => Some(Ssh::start(left, right, to, two.scratch.path())?),
        false => None,
    };
    let length = plan.every * plan.ticks * 2 + 10 * SECOND;
    let seconds = u32::try_from(length.as_secs()).unwrap_or(u32::MAX);
    let iperf = Iperf::start(left, right, to, seconds)?;
    let started = Instant::now();
    let nodes = [&two.left, &two.right];
    let mut counts = [0; 4];
    for tick in 1..=plan.ticks {
        at_once(nodes, &["rotate", "session-keys"])?;
        counts[0] += 1;
        if tick % plan.node_keys == 0 {
            at_once(nodes, &["rotate", "node-key"])?;
            counts[1] += 1;
        }
        if tick % plan.roots == 0 {
            two.left.warren(&["ca", "rotate"])?;
            counts[2] += 1;
        }
        if tick % plan.link_keys == 0 {
            at_once(nodes, &["rotate", "link-key"])?;
            counts[3] += 1;
        }
        std::thread::sleep(plan.every);
        ensure!(started.elapsed() < length, "the commands take too long");
    }
    let streamed = iperf.finish();
    let shell = ssh.map(Ssh::finish).transpose();
    println!(
        "  session keys {}, node keys {}, roots {}, link keys {}: iperf3 {streamed:.2?}; ssh {shell:.2?}",
        counts[0], counts[1], counts[2], counts[3]
    );
    ensure!(streamed?.longest_gap < 2 * SECOND, "the stream paused");
    if let Some(shell) = shell? {
        ensure!(shell.longest_gap < 2 * SECOND, "the shell paused");
    }
    let after = two.right.status()?.node;
    ensure!(before.id != after.id, "the identity is the same");
    ensure!(before.public_key != after.public_key, "the link key is the same");
    ensure!((&before.name, &before.addresses) == (&after.name, &after.addresses), "{after:?}");
    for node in nodes {
        let refused = refused(node)?;
        ensure!(refused.is_empty(), "refused by {}: {refused:?}", node.spec().name);
        let status = node.status()?;
        ensure!(status.warnings.is_empty(), "{:?}", status.warnings);
        ensure!(status.peers.len() == 1, "a former self stays: {:?}", status.peers);
    }
    // What comes from disk is what is in force.
    let Two { left, right, pair, scratch } = two;
    let mut left = left.stop(PATIENCE)?.up(None, PATIENCE)?;
    let right = right.crash()?.up(None, PATIENCE)?;
    ensure!(right.status()?.node.id == after.id, "another identity after the restart");
    left.wait_connected("right", PATIENCE)?;
    stream(&pair.left, &pair.right, to, Until::Bytes(1 << 20))?;
    drop((right, scratch));
    Ok(())
}

/// Three daemons to be: two on the hosts, and a third beside the right one.
fn three(pair: &Pair, scratch: &TemporaryDir) -> [NodeSpec; 3] {
    let left = spec(&pair.left, Pair::LEFT, scratch);
    let right = spec(&pair.right, Pair::RIGHT, scratch);
    let mut third = right.clone();
    third.name = "third".to_owned();
    third.state_dir = scratch.path().join("third");
    third.interface = "w-third".to_owned();
    third.listen.set_port(51999);
    [left, right, third]
}

fn no_node_is_special() -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    let [.., third] = three(&two.pair, &two.scratch);
    let error = two.right.warren(&["invite"]).err().context("a member invited")?;
    ensure!(format!("{error:#}").contains("ca delegate"), "no remedy: {error:#}");
    two.left.warren(&["ca", "delegate", "right"])?;
    let listed = two.right.warren(&["ca", "list"])?;
    ensure!(listed.contains("root") && listed.contains("delegated"), "{listed}");
    // The root goes offline, and with it the founder.
    let secret = two.scratch.path().join("passphrase");
    write_private(&secret, b"correct horse battery\n")?;
    let file = two.scratch.path().join("root.pem");
    let (secret, file) = (secret.display().to_string(), file.display().to_string());
    two.left.warren(&["ca", "export", &file, "--remove", "--passphrase-file", &secret])?;
    ensure!(!two.scratch.path().join("left/ca.key").exists(), "the key is still there");
    ensure!(two.left.warren(&["ca", "rotate"]).is_err(), "rotated without the root");
    let Two { left, right, pair, scratch } = two;
    let founder = left.crash()?;
    // The rest admit, renew and revoke.
    let code = right.invite()?;
    let mut third = third;
    third.arguments = vec!["--log-level".into(), "debug".into()];
    let mut third = third.join(&code, PATIENCE)?;
    third.wait_connected("right", PATIENCE)?;
    let renewed = third.warren(&["rotate", "certificate"]);
    renewed.with_context(|| format!("by the delegate:\n{}\n{}", third.log(), right.log()))?;
    third.warren(&["rotate", "node-key"]).context("rotated by the delegate")?;
    // A restart changes nothing, and the root comes back where it is wanted.
    let mut right = right.crash()?.up(None, PATIENCE)?;
    right.wait_connected("third", PATIENCE)?;
    right.warren(&["ca", "import", &file, "--passphrase-file", &secret])?;
    right.warren(&["ca", "rotate"])?;
    right.warren(&["revoke", "third"])?;
    third.wait_until("hears of it", PATIENCE, |status| {
        status.warnings.iter().any(|warning| warning.contains("revoked"))
    })?;
    // The founder comes back as one of many.
    let mut left = founder.up(None, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    let peers = left.status()?.peers;
    ensure!(!peers.iter().any(|peer| peer.name == "third"), "a revoked node is served: {peers:?}");
    drop((pair, scratch));
    Ok(())
}

fn an_absent_node_catches_up() -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    let Two { mut left, right, pair, scratch } = two;
    let away = right.stop(PATIENCE)?;
    for _ in 0..2 {
        left.warren(&["ca", "rotate", "--overlap", "1s"])?;
    }
    std::thread::sleep(2 * SECOND);
    let right = away.up(None, PATIENCE)?;
    left.wait_connected("right", PATIENCE).context("after the overlap")?;
    let to = right.overlay_address(false)?;
    stream(&pair.left, &pair.right, to, Until::Bytes(1 << 20))?;
    let listed = right.warren(&["ca", "list"])?;
    ensure!(listed.contains("rotated 2 times"), "{listed}");
    drop(scratch);
    Ok(())
}

fn short_certificates_renew_themselves() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let [mut left, right, _] = three(&pair, &scratch);
    let config = scratch.path().join("left.toml");
    write_private(&config, b"[dangerous]\ncertificate_life = 20\n")?;
    left.arguments = vec!["--config".into(), config.into()];
    let mut left = left.up(None, PATIENCE)?;
    let right = right.join(&left.join_code(PATIENCE)?, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    let to = right.overlay_address(false)?;
    let time = Until::Elapsed(45 * SECOND);
    let streamed = stream(&pair.left, &pair.right, to, time).context("the stream broke")?;
    ensure!(streamed.longest_gap < 2 * SECOND, "the stream paused: {streamed:?}");
    for node in [&left, &right] {
        let left = node.status()?.node.certificate_expires_s;
        ensure!(left.is_some_and(|s| s > 0), "expired: {left:?}");
        let refused = refused(node)?;
        ensure!(refused.is_empty(), "refused: {refused:?}");
    }
    Ok(())
}

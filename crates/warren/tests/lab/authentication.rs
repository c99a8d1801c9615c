//! The three ways to prove who one is: each joins, and a stranger gets nothing
//! but a line in the operator's log.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::process::{Node, NodeSpec};
use warren_lab::topology::{Pair, Underlay, output_of};
use warren_lab::traffic::{Until, stream};
use warren_os::files::{TemporaryDir, write_private};
use warren_types::Suite;

use crate::story::{PATIENCE, Two, binary, spec};

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

/// Gives a daemon a configuration file.
fn configure(spec: &mut NodeSpec, scratch: &TemporaryDir, config: &str) -> Result<()> {
    let file = scratch.path().join(format!("{}.toml", spec.name));
    write_private(&file, config.as_bytes())?;
    spec.arguments = vec!["--config".into(), file.into()];
    Ok(())
}

/// The stranger must stay without a link, and the other's log must say why.
fn expect_refused(stranger: &Node, node: &Node, reasons: &[&str]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = node.warren(&["events", "--json"])?;
        let refused = events.lines().filter(|line| line.contains("\"refused\""));
        let told = refused
            .map(str::to_lowercase)
            .any(|line| reasons.iter().any(|reason| line.contains(reason)));
        if told {
            break;
        }
        ensure!(Instant::now() < deadline, "no refusal for {reasons:?} in the log:\n{events}");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (asked, about) in [(stranger, "left"), (node, "third")] {
        let peers = asked.status()?.peers;
        let linked = peers.iter().find(|peer| peer.name == about && peer.handshake_age_s.is_some());
        ensure!(linked.is_none(), "{about} got a link: {linked:?}");
    }
    Ok(())
}

/// The reason is for the operator who refuses, not for the one refused.
fn expect_told_nothing(stranger: &Node) -> Result<()> {
    let log = stranger.log();
    ensure!(log.contains("its log says why"), "not told where to look: {log}");
    for word in ["pre-shared", "psk", "pinned", "unknown"] {
        ensure!(!log.to_lowercase().contains(word), "told the reason ({word}): {log}");
    }
    Ok(())
}

fn expect_stream(from: &Node, to: &Node) -> Result<()> {
    let address = to.overlay_address(false)?;
    let bytes = Until::Bytes(2 << 20);
    stream(&from.spec().host, &to.spec().host, address, bytes)?;
    Ok(())
}

pub(crate) fn a_preshared_key_admits_only_its_holders() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let [mut left, mut right, mut third] = three(&pair, &scratch);
    for name in ["right.psk", "wrong.psk"] {
        let mut command = pair.left.command(binary());
        output_of(command.args(["psk", "generate", "--out"]).arg(scratch.path().join(name)))?;
    }
    let config = |file: &str| {
        let file = scratch.path().join(file);
        format!(
            "network = \"lab\"\nbootstrap = [\"{}:51820\"]\n[auth]\nmode = \"psk\"\n\
             psk_file = \"{}\"\n",
            Pair::LEFT,
            file.display()
        )
    };
    configure(&mut left, &scratch, &config("right.psk"))?;
    configure(&mut right, &scratch, &config("right.psk"))?;
    configure(&mut third, &scratch, &config("wrong.psk"))?;
    let mut left = left.up(None, PATIENCE)?;
    let right = right.up(None, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    expect_stream(&left, &right)?;
    let third = third.up(None, PATIENCE)?;
    expect_refused(&third, &left, &["pre-shared", "preshared", "psk"])?;
    expect_told_nothing(&third)
}

fn public_identity(spec: &NodeSpec) -> Result<String> {
    let mut command = spec.host.command(&spec.binary);
    let text = output_of(command.arg("key").arg("--state-dir").arg(&spec.state_dir))?;
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let key = words.find(|word| word.len() == 52).map(str::to_owned);
    key.with_context(|| format!("no identity in {text}"))
}

pub(crate) fn pinned_keys_admit_only_the_pinned() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let [mut left, mut right, mut third] = three(&pair, &scratch);
    let (left_key, right_key) = (public_identity(&left)?, public_identity(&right)?);
    let config = |name: &str, key: &str, endpoint: &str| {
        format!(
            "network = \"lab\"\n[auth]\nmode = \"key\"\n[[peer]]\nname = \"{name}\"\n\
             public_key = \"{key}\"\nendpoint = \"{endpoint}\"\n"
        )
    };
    configure(&mut left, &scratch, &config("right", &right_key, "10.99.0.2:51820"))?;
    configure(&mut right, &scratch, &config("left", &left_key, "10.99.0.1:51820"))?;
    // Knows the left node, but is not known to it.
    configure(&mut third, &scratch, &config("left", &left_key, "10.99.0.1:51820"))?;
    let mut left = left.up(None, PATIENCE)?;
    let right = right.up(None, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    expect_stream(&left, &right)?;
    let third = third.up(None, PATIENCE)?;
    expect_refused(&third, &left, &["key", "pinned", "known"])?;
    expect_told_nothing(&third)
}

pub(crate) fn another_authority_admits_nobody() -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    let [.., mut third] = three(&two.pair, &two.scratch);
    // A network of its own, with the name of ours, that calls at our door.
    let name = two.left.status()?.network.name;
    let config = format!("network = \"{name}\"\nbootstrap = [\"{}:51820\"]\n", Pair::LEFT);
    configure(&mut third, &two.scratch, &config)?;
    let third = third.up(None, PATIENCE)?;
    expect_refused(&third, &two.left, &["certificate", "authority", "network", "ca "])
}

pub(crate) fn a_revoked_node_is_out_at_once_and_for_good() -> Result<()> {
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    let to = two.right.overlay_address(false)?;
    two.left.warren(&["revoke", "right"])?;
    two.left.wait_until("forgets the revoked node", PATIENCE, |status| {
        !status.peers.iter().any(|peer| peer.name == "right" && peer.handshake_age_s.is_some())
    })?;
    let (left, right) = (&two.pair.left, &two.pair.right);
    let every = Duration::from_millis(10);
    let echoed = warren_lab::traffic::echo(left, right, to, 20, every, 100)?;
    ensure!(echoed.returned == 0, "a revoked node still gets packets: {echoed:?}");
    // Nor does a restart help it.
    let spec = two.right.crash()?;
    let again = spec.up(None, PATIENCE);
    std::thread::sleep(Duration::from_secs(3));
    let peers = two.left.status()?.peers;
    let linked = peers.iter().find(|peer| peer.name == "right" && peer.handshake_age_s.is_some());
    ensure!(linked.is_none(), "it is back: {linked:?}");
    drop(again);
    Ok(())
}

pub(crate) fn a_name_is_given_once() -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    let [.., mut third] = three(&two.pair, &two.scratch);
    third.name = "right".to_owned();
    let code = two.left.invite()?;
    let error = third.clone().join(&code, PATIENCE).err().context("a second node named right")?;
    let error = format!("{error:#}").to_lowercase();
    ensure!(error.contains("name") && error.contains("--name"), "no remedy: {error}");
    ensure!(!Path::new(&third.state_dir).join("network.json").exists(), "half-made state");
    // The code is not used up by the refusal.
    third.name = "third".to_owned();
    third.join(&code, PATIENCE)?;
    Ok(())
}

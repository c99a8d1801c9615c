//! What goes wrong in life: clocks, disks, backups, and paths that lie.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::netem::Profile;
use warren_lab::process::Node;
use warren_lab::pulse::Pulse;
use warren_lab::topology::output_of;

use crate::Scenario;
use crate::chatter::{Chatter, all_pairs};
use crate::mesh::{Actor, Mesh};
use crate::story::PATIENCE;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("the_founder_is_not_needed", the_founder_is_not_needed),
    ("clocks_may_be_an_hour_off", clocks_may_be_an_hour_off),
    ("an_old_backup_comes_back", an_old_backup_comes_back),
    ("a_disk_that_fills_up_stops_nothing", a_disk_that_fills_up_stops_nothing),
    ("a_path_that_drops_data_is_left", a_path_that_drops_data_is_left),
    ("a_relay_that_drops_packets_is_left", a_relay_that_drops_packets_is_left),
    ("a_split_brain_heals_by_itself", a_split_brain_heals_by_itself),
];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Between any two hosts.
const RTT: Duration = Duration::from_millis(10);

/// Debian's and Fedora's places of libfaketime, the build for threads.
const FAKETIME: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// Everybody who runs talks with everybody.
fn expect_talk(mesh: &Mesh, patience: Duration) -> Result<Duration> {
    let alive: Vec<usize> = mesh.running().map(|(i, _)| i).collect();
    let mut addresses = vec![[0, 0, 0, 0].into(); mesh.hosts.len()];
    for i in &alive {
        addresses[*i] = mesh.address(*i)?;
    }
    let chatter = Chatter::start(&mesh.hosts)?;
    chatter.talk(&all_pairs(&alive), &addresses, Instant::now(), patience).map_err(|silent| {
        let (a, b) = silent.first().copied().unwrap_or_default();
        let say = |i: usize| {
            let node = mesh.node(i);
            let status = node.warren(&["status"]).unwrap_or_else(|error| format!("{error:#}"));
            let events = node.warren(&["events"]).unwrap_or_default();
            format!("{status}\n{events}\n{}", node.log())
        };
        anyhow::anyhow!("silent after {patience:?}: {silent:?}\n{}\n{}", say(a), say(b))
    })
}

fn four() -> Result<Mesh> {
    Mesh::start(&["founder", "anna", "bert", "carl"].map(Actor::public), RTT)
}

fn the_founder_is_not_needed() -> Result<()> {
    let cast = ["founder", "anna", "bert", "carl", "dora"].map(Actor::public);
    let mut mesh = Mesh::hosts(&cast, RTT)?;
    mesh.found(4)?;
    mesh.node(0).warren(&["ca", "delegate", "anna"])?;
    wait_until(&mesh, 1, "is an admin", |node| Ok(node.status()?.network.admin))?;
    mesh.crash(0)?;
    expect_talk(&mesh, 5 * SECOND).context("without the founder")?;
    // And none of them knows anything but its own state.
    for i in 1..4 {
        mesh.crash(i)?;
    }
    for i in 1..4 {
        mesh.restart(i)?;
    }
    expect_talk(&mesh, 10 * SECOND).context("started again without the founder")?;
    mesh.join(4, 1).context("admitted without the founder")?;
    expect_talk(&mesh, 10 * SECOND).context("with a member admitted without the founder")?;
    Ok(())
}

fn clocks_may_be_an_hour_off() -> Result<()> {
    let Some(library) = FAKETIME.iter().find(|path| Path::new(path).exists()) else {
        println!("SKIPPED: no libfaketime on this machine (Debian: apt install faketime)");
        return Ok(());
    };
    let mut mesh = four()?;
    for (i, offset) in [(1, "+1h"), (2, "-1h"), (0, "+1h")] {
        mesh.crash(i)?;
        // The monotonic clock runs as ever, as on a machine with a wrong date.
        mesh.specs[i].environment = vec![
            ("LD_PRELOAD".into(), (*library).into()),
            ("FAKETIME".into(), offset.into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
            ("FAKETIME_NO_CACHE".into(), "1".into()),
        ];
        mesh.launch(i)?;
        mesh.nodes[i].as_mut().context("not launched")?.wait_serves(PATIENCE)?;
        expect_talk(&mesh, 10 * SECOND)
            .with_context(|| format!("{} at {offset}", mesh.hosts[i].name()))?;
    }
    // Admission is stricter, and says so.
    mesh.crash(3)?;
    mesh.specs[3].state_dir = mesh.scratch.path().join("dora");
    mesh.specs[3].name = "dora".to_owned();
    let code = mesh.node(0).invite()?;
    let refused = mesh.specs[3].clone().join(&code, PATIENCE);
    let refused = refused.err().context("admitted by a clock an hour ahead")?;
    ensure!(format!("{refused:#}").contains("clock"), "does not name the clock: {refused:#}");
    // Clocks that are set right disturb nobody.
    for i in [0, 1, 2] {
        mesh.specs[i].environment.clear();
        mesh.restart(i)?;
    }
    let code = mesh.node(0).invite()?;
    mesh.nodes[3] = Some(mesh.specs[3].clone().join(&code, PATIENCE).context("dora joins")?);
    expect_talk(&mesh, 10 * SECOND).context("clocks set right again")?;
    Ok(())
}

fn an_old_backup_comes_back() -> Result<()> {
    let mut mesh = four()?;
    expect_talk(&mesh, 10 * SECOND)?;
    // A copy while it runs, as backups are made.
    let state = mesh.specs[1].state_dir.clone();
    let backup = mesh.scratch.path().join("backup");
    output_of(Command::new("cp").arg("-a").arg(&state).arg(&backup))?;
    // Life goes on: restarts, each on another port, so that what the node says
    // of itself changes and is known everywhere.
    for port in [51901, 51902, 51903] {
        mesh.specs[1].listen.set_port(port);
        mesh.restart(1)?;
        expect_talk(&mesh, 10 * SECOND).with_context(|| format!("on port {port}"))?;
    }
    let id = mesh.node(1).status()?.node.id;
    mesh.crash(1)?;
    std::fs::remove_dir_all(&state)?;
    output_of(Command::new("cp").arg("-a").arg(&backup).arg(&state))?;
    mesh.specs[1].listen.set_port(51904);
    mesh.launch(1)?;
    mesh.nodes[1].as_mut().context("not launched")?.wait_serves(PATIENCE)?;
    let took = expect_talk(&mesh, 10 * SECOND).context("restored from the backup")?;
    ensure!(mesh.node(1).status()?.node.id == id, "another identity");
    println!("  every pair talked {took:.2?} after the restored node served");
    // What it says of itself now must win, although it had said more before:
    // somebody who starts afresh learns the new port.
    mesh.restart(3)?;
    expect_talk(&mesh, 10 * SECOND).context("after a restart elsewhere")?;
    Ok(())
}

fn a_disk_that_fills_up_stops_nothing() -> Result<()> {
    let cast = ["founder", "anna", "bert"].map(Actor::public);
    let mut mesh = Mesh::hosts(&cast, RTT)?;
    // In the mount namespace of this test, so it goes with it at the latest.
    let state = mesh.specs[1].state_dir.clone();
    std::fs::create_dir(&state)?;
    let options = ["-t", "tmpfs", "-o", "size=512k,mode=0700", "none"];
    output_of(Command::new("mount").args(options).arg(&state))?;
    let told = (|| {
        mesh.found_and_join()?;
        // Nothing fits any more.
        let filler = state.join("filler");
        for size in [1 << 16, 1 << 12, 1] {
            let mut grown = std::fs::read(&filler).unwrap_or_default();
            while std::fs::write(&filler, &grown).is_ok() && grown.len() < 1 << 20 {
                grown.resize(grown.len() + size, 0);
            }
            grown.truncate(grown.len().saturating_sub(size));
            std::fs::write(&filler, &grown)?;
        }
        expect_talk(&mesh, 10 * SECOND).context("on a full disk")?;
        // News that would be written down: another member, and one that moved.
        mesh.specs[2].listen.set_port(51905);
        mesh.restart(2)?;
        expect_talk(&mesh, 10 * SECOND).context("news on a full disk")?;
        std::fs::remove_file(&filler)?;
        // Killed while it was full, then started with room again.
        mesh.restart(1)?;
        expect_talk(&mesh, 10 * SECOND).context("with room again")
    })();
    mesh.crash(1)?;
    output_of(Command::new("umount").arg(&state))?;
    told.map(drop)
}

fn a_path_that_drops_data_is_left() -> Result<()> {
    let mesh = Mesh::start(&["middle", "left", "right"].map(Actor::public), RTT)?;
    let (left, right) = (&mesh.hosts[1], &mesh.hosts[2]);
    let pulse = Pulse::start(left, right, mesh.address(2)?, 10 * MS, 1000)?;
    pulse.wait_first(15 * SECOND).context("never connected")?;
    mesh.wait_path(1, 2, 20 * SECOND, |path| path == "direct")?;
    std::thread::sleep(2 * SECOND);
    // Probes are small and pass; data are not and do not.
    let broken = pulse.now();
    mesh.wan.change(mesh.places[1], mesh.places[2], |link| link.mtu = Some(400))?;
    let left = mesh.wait_path(1, 2, 10 * SECOND, |path| path.starts_with("via "));
    std::thread::sleep(3 * SECOND);
    let beats = pulse.so_far();
    let silence = beats.longest_silence(broken, broken + 4 * SECOND);
    println!("  silent for {silence:.2?}; status after {left:.2?}");
    left?;
    ensure!(silence <= 2 * SECOND, "no data for {silence:?}");
    let end = pulse.now();
    let (lost, sent) = beats.lost(end - 2 * SECOND, end - 300 * MS);
    ensure!(lost * 50 <= sent, "{lost} of {sent} lost on the other path");
    Ok(())
}

fn a_relay_that_drops_packets_is_left() -> Result<()> {
    let cast = ["middle", "left", "right", "other"].map(Actor::public);
    let mut mesh = Mesh::hosts(&cast, RTT)?;
    let [middle, left, right, other] = [0, 1, 2, 3].map(|i| mesh.places[i]);
    mesh.wan.change(left, right, |link| link.cut = true)?;
    // A little farther, so that the first is taken at first.
    for end in [left, right] {
        mesh.wan.change(other, end, |link| *link = Profile::delayed(10 * MS))?;
    }
    mesh.found_and_join()?;
    let pulse = mesh.pulse(1, 2, 10 * MS)?;
    pulse.wait_first(15 * SECOND).context("never connected over a relay")?;
    // The first measurements are of a machine that starts four daemons, and may mislead; the
    // shorter way is soon taken and then kept.
    mesh.wait_path(1, 2, 20 * SECOND, |path| path == "via middle")?;
    std::thread::sleep(3 * SECOND);
    mesh.wait_path(1, 2, 30 * SECOND, |path| path == "via middle")?;
    std::thread::sleep(3 * SECOND);
    let before = mesh.peer(1, 2)?.path;
    ensure!(before == "via middle", "it takes the longer way by itself: {before}");
    for end in [left, right] {
        mesh.wan.change(middle, end, |link| link.loss = 0.15)?;
    }
    let moved = mesh.wait_path(1, 2, 20 * SECOND, |path| path == "via other")?;
    // Each end decides for itself, and sees the loss of what it sends: the other
    // one may take its five seconds.
    mesh.wait_path(2, 1, 20 * SECOND, |path| path == "via other")?;
    std::thread::sleep(3 * SECOND);
    let end = pulse.now();
    let (lost, sent) = pulse.so_far().lost(end - 2 * SECOND, end - 300 * MS);
    println!("  left after {moved:.2?}; {lost} of {sent} lost then");
    ensure!(lost * 50 <= sent, "{lost} of {sent} are still lost");
    // What is said of a loss that is over must not keep traffic on the longer way.
    for end in [left, right] {
        mesh.wan.change(middle, end, |link| link.loss = 0.0)?;
    }
    let back = mesh.wait_path(1, 2, 60 * SECOND, |path| path == "via middle")?;
    println!("  taken again after {back:.2?}");
    Ok(())
}

fn a_split_brain_heals_by_itself() -> Result<()> {
    let cast = ["founder", "anna", "bert", "carl", "dora", "emil"].map(Actor::public);
    let mut mesh = Mesh::hosts(&cast, RTT)?;
    mesh.found(4)?;
    mesh.node(0).warren(&["ca", "delegate", "bert"])?;
    wait_until(&mesh, 2, "is an admin", |node| Ok(node.status()?.network.admin))?;
    let [founder, anna, bert, carl, dora, emil] = [0, 1, 2, 3, 4, 5].map(|i| mesh.places[i]);
    mesh.wan.partition(&[&[founder, anna, dora], &[bert, carl, emil]])?;
    // Both halves change meanwhile: new ports, known to one's own half only,
    for (i, port) in [(1, 51906), (3, 51907)] {
        mesh.specs[i].listen.set_port(port);
        mesh.restart(i)?;
    }
    // a new member in each, of the same name,
    for (i, by) in [(4, 0), (5, 2)] {
        mesh.specs[i].name = "twin".to_owned();
        mesh.join(i, by)?;
    }
    // and a new route in each.
    for (i, name, by, prefix) in [(1, "anna", 0, "10.1.0.0/24"), (3, "carl", 2, "10.2.0.0/24")] {
        mesh.node(i).warren(&["route", "advertise", prefix])?;
        wait_said(&mesh, by, &["route", "list"], prefix)?;
        mesh.node(by).warren(&["route", "approve", name, prefix])?;
    }
    std::thread::sleep(10 * SECOND);
    let known = mesh.node(3).warren(&["route", "list"])?;
    ensure!(!known.contains("10.1.0.0/24"), "news crossed a partition: {known}");
    mesh.wan.heal()?;
    let healed = Instant::now();
    let took = expect_talk(&mesh, 30 * SECOND).context("after the partition")?;
    wait_said(&mesh, 2, &["route", "list"], "10.1.0.0/24")?;
    wait_said(&mesh, 1, &["route", "list"], "10.2.0.0/24")?;
    let routes = healed.elapsed();
    println!("  every pair talked {took:.2?} after the split healed, routes known {routes:.2?}");
    // Everybody gives the name to the same one of the two, and the other goes
    // by another name.
    let mut holders = Vec::new();
    for i in [0, 1, 2, 3] {
        let peers = mesh.node(i).status()?.peers;
        let twins: Vec<_> = peers.iter().filter(|peer| peer.name.starts_with("twin")).collect();
        ensure!(twins.len() == 2, "{} knows {} twins", mesh.hosts[i].name(), twins.len());
        let mut bearers = twins.iter().filter(|peer| peer.name == "twin");
        holders.push(bearers.next().context("nobody has the name")?.id);
        ensure!(bearers.next().is_none(), "two of one name");
    }
    ensure!(holders.windows(2).all(|pair| pair[0] == pair[1]), "they differ: {holders:?}");
    Ok(())
}

/// Waits until a daemon says so.
fn wait_until(
    mesh: &Mesh,
    node: usize,
    what: &str,
    condition: impl Fn(&Node) -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + 30 * SECOND;
    while !condition(mesh.node(node))? {
        let name = mesh.hosts[node].name();
        ensure!(Instant::now() < end, "{name}: not seen: {what}\n{}", mesh.node(node).log());
        std::thread::sleep(100 * MS);
    }
    Ok(())
}

/// Waits until a command says a word.
fn wait_said(mesh: &Mesh, node: usize, command: &[&str], word: &str) -> Result<()> {
    wait_until(mesh, node, word, |node| Ok(node.warren(command)?.contains(word)))
}

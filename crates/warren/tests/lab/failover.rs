//! Paths that die, degrade, flap and come back under traffic.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::netem::Profile;
use warren_lab::sessions::{Iperf, Ssh};

use crate::Scenario;
use crate::mesh::{Actor, Mesh};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("a_dead_path_is_left_at_once", a_dead_path_is_left_at_once),
    ("an_upgrade_to_direct_loses_nothing", an_upgrade_to_direct_loses_nothing),
    ("a_degraded_path_is_left", a_degraded_path_is_left),
    ("flapping_is_damped", flapping_is_damped),
];

pub(crate) const LONG: &[Scenario] = &[
    ("every_dead_path_is_left_within_a_second", every_dead_path_is_left_within_a_second),
    ("every_degraded_path_is_left_within_five", every_degraded_path_is_left_within_five),
];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Sent that often by the pulses here.
const BEAT: Duration = Duration::from_millis(10);

/// Two hosts and one in the middle, all public: 20 ms between the two, 30 ms
/// by way of the third.
fn triangle() -> Result<Mesh> {
    let cast = ["middle", "left", "right"].map(Actor::public);
    let mut mesh = Mesh::hosts(&cast, 15 * MS)?;
    weather(&mesh, |link| *link = Profile::delayed(10 * MS))?;
    mesh.found_and_join()?;
    Ok(mesh)
}

/// Changes the path between the two.
fn weather(mesh: &Mesh, change: impl Fn(&mut Profile)) -> Result<()> {
    Ok(mesh.wan.change(mesh.places[1], mesh.places[2], change)?)
}

/// Waits for traffic on the direct path.
fn settle(mesh: &Mesh) -> Result<()> {
    for (of, other) in [(1, 2), (2, 1)] {
        mesh.wait_path(of, other, 20 * SECOND, |path| path == "direct")?;
    }
    Ok(())
}

fn a_dead_path_is_left_at_once() -> Result<()> {
    dead_path(1500 * MS)
}

fn every_dead_path_is_left_within_a_second() -> Result<()> {
    for _ in 0..5 {
        dead_path(SECOND)?;
    }
    Ok(())
}

fn dead_path(bar: Duration) -> Result<()> {
    let mesh = triangle()?;
    // Narrow enough that the machine is not what limits the stream.
    mesh.wan.change_all(|link| {
        link.rate = Some(30_000_000);
        link.queue = 60_000;
    })?;
    let pulse = mesh.pulse(1, 2, BEAT)?;
    pulse.wait_first(15 * SECOND).context("never connected")?;
    settle(&mesh)?;
    let (left, right, to) = (&mesh.hosts[1], &mesh.hosts[2], mesh.address(2)?);
    let ssh = match Ssh::is_here() {
        true => Some(Ssh::start(left, right, to, mesh.scratch.path())?),
        false => {
            println!("SKIPPED in part: no ssh on this machine");
            None
        }
    };
    let iperf = Iperf::start(left, right, to, 12)?;
    std::thread::sleep(4 * SECOND);
    let cut = pulse.now();
    weather(&mesh, |link| link.cut = true)?;
    let moved = mesh.wait_path(1, 2, 5 * SECOND, |path| path.starts_with("via "));
    std::thread::sleep(5 * SECOND);
    let silence = pulse.so_far().longest_silence(cut, cut + 4 * SECOND);
    let streamed = iperf.finish();
    let shell = ssh.map(Ssh::finish).transpose();
    println!(
        "  silent for {silence:.2?}; status after {moved:.2?}; iperf3 {streamed:.2?}; ssh {shell:.2?}"
    );
    ensure!(silence <= bar, "no traffic for {silence:?}");
    moved?;
    streamed?;
    shell?;
    // The cable is mended: back to the direct path, and nobody notices.
    let mended = pulse.now();
    weather(&mesh, |link| link.cut = false)?;
    let back = mesh.wait_path(1, 2, 60 * SECOND, |path| path == "direct")?;
    std::thread::sleep(SECOND);
    let beats = pulse.so_far();
    let (lost, sent) = beats.lost(mended, pulse.now() - 300 * MS);
    println!("  direct again {back:.2?} after the repair; {lost} of {sent} lost on the way back");
    ensure!(lost * 200 <= sent, "{lost} of {sent} datagrams were lost on the way back");
    Ok(())
}

fn an_upgrade_to_direct_loses_nothing() -> Result<()> {
    let cast = ["middle", "left", "right"].map(Actor::public);
    let mut mesh = Mesh::hosts(&cast, 15 * MS)?;
    weather(&mesh, |link| *link = Profile { cut: true, ..Profile::delayed(10 * MS) })?;
    mesh.found_and_join()?;
    let pulse = mesh.pulse(1, 2, 5 * MS)?;
    let first = pulse.wait_first(15 * SECOND).context("never connected over the middle")?;
    mesh.wait_path(1, 2, 5 * SECOND, |path| path == "via middle")?;
    std::thread::sleep(SECOND);
    let mended = pulse.now();
    weather(&mesh, |link| link.cut = false)?;
    let direct = mesh.wait_path(1, 2, 60 * SECOND, |path| path == "direct")?;
    std::thread::sleep(2 * SECOND);
    let beats = pulse.so_far();
    let until = pulse.now() - 500 * MS;
    let (lost, sent) = beats.lost(mended, until);
    let rtt = beats.median_rtt(until.saturating_sub(SECOND), until);
    println!(
        "  first byte {first:.2?}; direct {direct:.2?} after the repair; {lost} of {sent} lost; RTT {rtt:.1?}"
    );
    ensure!(lost == 0, "{lost} of {sent} datagrams were lost by the upgrade");
    Ok(())
}

fn a_degraded_path_is_left() -> Result<()> {
    degraded(8 * SECOND)
}

fn every_degraded_path_is_left_within_five() -> Result<()> {
    for _ in 0..3 {
        degraded(5 * SECOND)?;
    }
    Ok(())
}

fn degraded(bar: Duration) -> Result<()> {
    let mesh = triangle()?;
    let pulse = mesh.pulse(1, 2, BEAT)?;
    pulse.wait_first(15 * SECOND).context("never connected")?;
    settle(&mesh)?;
    let good = Profile::delayed(10 * MS);
    let slow = Profile { delay: good.delay + 50 * MS, ..good };
    let lossy = Profile { loss: 0.05, ..good };
    for (name, spell) in [("100 ms more", slow), ("5 % loss", lossy)] {
        // Some history on the good path.
        std::thread::sleep(3 * SECOND);
        weather(&mesh, |link| *link = spell)?;
        let left = mesh.wait_path(1, 2, 15 * SECOND, |path| path.starts_with("via "));
        let left = left.with_context(|| name)?;
        println!("  {name}: left after {left:.2?}");
        ensure!(left <= bar, "{name}: left after {left:?} only");
        weather(&mesh, |link| *link = good)?;
        let back =
            mesh.wait_path(1, 2, 90 * SECOND, |path| path == "direct").with_context(|| name)?;
        println!("  {name}: direct again {back:.2?} after it passed");
    }
    Ok(())
}

fn flapping_is_damped() -> Result<()> {
    let mesh = triangle()?;
    let pulse = mesh.pulse(1, 2, BEAT)?;
    pulse.wait_first(15 * SECOND).context("never connected")?;
    settle(&mesh)?;
    let start = pulse.now();
    let changes = |mesh: &Mesh| -> Result<usize> {
        let events = mesh.node(1).warren(&["events", "--json"])?;
        let about = |line: &&str| line.contains("path_") && line.contains("\"right\"");
        Ok(events.lines().filter(about).count())
    };
    let before = changes(&mesh)?;
    const FLAPS: usize = 10;
    for _ in 0..FLAPS {
        weather(&mesh, |link| link.cut = true)?;
        std::thread::sleep(2 * SECOND);
        weather(&mesh, |link| link.cut = false)?;
        std::thread::sleep(2 * SECOND);
    }
    let end = pulse.now();
    let beats = pulse.so_far();
    let silence = beats.longest_silence(start, end);
    let (lost, sent) = beats.lost(start, end - 300 * MS);
    let changed = changes(&mesh)? - before;
    println!(
        "  {FLAPS} flaps: {changed} changes of path, silent for {silence:.2?} at most, {lost} of {sent} lost"
    );
    ensure!(changed <= FLAPS, "{changed} changes of path for {FLAPS} flaps");
    ensure!(silence <= 1500 * MS, "silent for {silence:?}");
    Ok(())
}

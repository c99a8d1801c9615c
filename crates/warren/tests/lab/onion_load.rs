//! Onion paths under load, on links that are narrow: what bulk traffic does to
//! the latency of the rest, and how much of a link a path makes use of.
//!
//! Streams use CUBIC: the queue of a link that a sender without an eye for
//! delay fills is the point.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::netem::Profile;
use warren_lab::pulse::Pulse;
use warren_lab::sessions::Iperf;

use crate::Scenario;
use crate::mesh::Mesh;
use crate::onion::{CLIENT, cast, outside, path, place, report, server};

pub(crate) const SCENARIOS: &[Scenario] =
    &[("onion_bulk_traffic_delays_the_rest_less", || latency_under_bulk(false))];

/// With bounds that only an optimised build on a machine without other work keeps.
pub(crate) const LONG: &[Scenario] = &[
    ("onion_bulk_traffic_does_not_delay_the_rest", || latency_under_bulk(true)),
    ("onion_paths_use_most_of_a_link", goodput),
];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// What a stream needs to find its rate.
const SETTLE: Duration = Duration::from_secs(3);

/// Makes every link of the client one of `rate` bits per second, with a megabyte
/// of queue at either end.
fn narrow(mesh: &Mesh, rate: u64, rtt: Duration) -> Result<()> {
    for other in 1..mesh.hosts.len() {
        let set = |link: &mut Profile| {
            *link = Profile { rate: Some(rate), ..Profile::delayed(rtt / 2) };
        };
        mesh.wan.change(mesh.places[CLIENT], mesh.places[other], set)?;
    }
    Ok(())
}

fn connect(mesh: &Mesh) -> Result<()> {
    mesh.node(CLIENT).warren(&["connect", "--exit", "de", "--kill-switch", "--keep-dns"])?;
    Ok(())
}

/// Bits per second of one stream between the client and a host, in Mbit/s.
fn stream(mesh: &Mesh, host: usize, to: IpAddr, options: &[&str]) -> Result<f64> {
    let all: Vec<_> = ["-C", "cubic"].iter().chain(options).copied().collect();
    let iperf = Iperf::start_with(&mesh.hosts[CLIENT], &mesh.hosts[host], to, &all)?;
    Ok(iperf.finish()?.gbps * 1e3)
}

/// What small packets between the client and the server take, 19 of 20 of them,
/// when nothing else goes on and beside a stream; and the stream's Mbit/s.
fn latency(mesh: &Mesh, seconds: u32, option: &str) -> Result<(Duration, Duration, f64)> {
    let (client, to) = (&mesh.hosts[CLIENT], &mesh.hosts[outside(mesh)]);
    let pulse = Pulse::start(client, to, server(mesh).into(), 20 * MS, 100)?;
    pulse.wait_first(5 * SECOND).context("nothing comes back")?;
    let idle = pulse.now();
    std::thread::sleep(2 * SECOND);
    let busy = pulse.now();
    let options = ["-t", &seconds.to_string(), option];
    let mbps = stream(mesh, outside(mesh), server(mesh).into(), &options)?;
    let end = pulse.now();
    let beats = pulse.so_far();
    let p95 = |from, until| beats.rtt_quantile(0.95, from, until).context("no answers");
    Ok((p95(idle, busy)?, p95(busy + SETTLE, end - SECOND)?, mbps))
}

fn latency_under_bulk(strict: bool) -> Result<()> {
    /// Mbit/s.
    const RATE: u64 = 50;
    const WAYS: [(&str, &str); 2] = [("down", "-R"), ("up", "--get-server-output")];
    let seconds = if strict { 15 } else { 8 };
    let mesh = cast(15 * MS)?;
    narrow(&mesh, RATE * 1_000_000, 15 * MS)?;
    let mut straight = Vec::new();
    for (way, option) in WAYS {
        let (idle, busy, mbps) = latency(&mesh, seconds, option)?;
        println!("  straight, {way}: {idle:.1?} idle, {busy:.1?} beside {mbps:.1} Mbit/s");
        straight.push(busy - idle);
    }
    connect(&mesh)?;
    println!("  over {:?}", path(&report(&mesh, CLIENT)?));
    for ((way, option), straight) in WAYS.into_iter().zip(straight) {
        let (idle, busy, mbps) = latency(&mesh, seconds, option)?;
        println!("  three hops, {way}: {idle:.1?} idle, {busy:.1?} beside {mbps:.1} Mbit/s");
        let (most, least) = if strict { (30 * MS, 0.65) } else { (straight / 2, 0.3) };
        ensure!(busy <= idle + most, "{way}: {busy:?} beside a stream, {idle:?} without");
        ensure!(mbps >= least * RATE as f64, "{way}: only {mbps} Mbit/s are left");
    }
    Ok(())
}

/// A link of 200 Mbit/s and 60 ms: what a stream gets straight, over a mesh link,
/// and over three hops that make 60 ms together.
fn goodput() -> Result<()> {
    const RATE: u64 = 200;
    let mesh = cast(15 * MS)?;
    let mean = |host: usize, to: IpAddr| -> Result<f64> {
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(stream(&mesh, host, to, &["-R", "-t", "20", "-O", "4"])?);
        }
        all.sort_unstable_by(f64::total_cmp);
        Ok(all[1])
    };
    narrow(&mesh, RATE * 1_000_000, 60 * MS)?;
    let straight = mean(outside(&mesh), server(&mesh).into())?;
    let exit = place(&mesh, "exit-de");
    // Of the family that the straight way has.
    let addresses = mesh.peer(CLIENT, exit)?.addresses;
    let peer = addresses.into_iter().find(IpAddr::is_ipv4).context("no overlay address")?;
    let link = mean(exit, peer)?;
    narrow(&mesh, RATE * 1_000_000, 15 * MS)?;
    connect(&mesh)?;
    println!("  over {:?}", path(&report(&mesh, CLIENT)?));
    let hops = mean(outside(&mesh), server(&mesh).into())?;
    println!(
        "  straight {straight:.1} Mbit/s; mesh link {link:.1}, {:.3} of it; three hops {hops:.1}, {:.3} of it",
        link / straight,
        hops / straight
    );
    // Headers alone leave 0.957; 0.93 is the aim.
    ensure!(link >= 0.88 * straight, "a mesh link carries {link} of {straight} Mbit/s");
    ensure!(hops >= 0.85 * straight, "three hops carry {hops} of {straight} Mbit/s");
    Ok(())
}

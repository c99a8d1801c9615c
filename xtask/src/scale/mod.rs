//! `cargo xtask bench scale`: one real daemon in a network of thousands.
//!
//! Two pairs of hosts side by side. On one, two daemons that know each other and
//! nobody else. On the other, the daemon under test (`hub`), which starts with
//! descriptors of `--known` members on disk, one more real daemon (`right`), and
//! the farm, a process of `--active` nodes that are all connected and linked to
//! the hub and ping it. The rest of the members exist on paper only.
//!
//! Invariants: throughput of both pairs is measured in turn while everything
//! runs, so that the farm and whatever else the machine does hit both alike.
//! Deliberately not here: other VPNs (`bench link`), and whether thousands of
//! nodes find each other (the simulation in `warren-discovery`).

mod farm;
mod members;
mod report;

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ipnet::IpNet;
use warren_lab::bench::{Programs, Spread, tcp_stream};
use warren_lab::process::{KilledOnDrop, Node, NodeSpec};
use warren_lab::topology::{Pair, Privilege, Underlay, find_privilege, hide_run};
use warren_os::files::TemporaryDir;
use warren_types::NodeId;

use farm::Progress;
use members::{AHEAD, Maker};
use report::{Figures, Report};

/// Where daemons listen.
const PORT: u16 = 51820;
/// The farm's first port; members that never run are said to be above it.
const FARM_PORT: u16 = 20_000;
/// How many addresses the farm has.
const FARM_ADDRESSES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long everything gets to come to rest before it is measured idle.
const SETTLE: Duration = Duration::from_secs(20);

/// Options of `bench scale`.
#[derive(Args)]
pub(crate) struct Scale {
    /// Members the daemon knows.
    #[arg(long, default_value_t = 5000)]
    known: usize,
    /// How many of them are connected and linked to it and ping it.
    #[arg(long, default_value_t = 200)]
    active: usize,
    /// Rounds of throughput; the median counts.
    #[arg(long, default_value_t = 5)]
    repeat: u32,
    /// Seconds of each.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Seconds over which idle CPU is measured.
    #[arg(long, default_value_t = 20)]
    idle: u64,
    /// Write the report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to look for the `warren` binary instead of building one.
    #[arg(long)]
    warren: Option<PathBuf>,
    /// End with status 1 when throughput falls by more than a tenth.
    #[arg(long)]
    check: bool,
}

/// Options of the farm.
#[derive(Args)]
pub(crate) struct Farm {
    /// Directory with one state directory per node.
    directory: PathBuf,
    /// How many.
    count: usize,
    /// The daemon under test.
    hub: NodeId,
    /// Where it listens.
    hub_address: SocketAddr,
}

/// Runs the farm until killed.
pub(crate) fn farm(options: &Farm) -> Result<ExitCode> {
    let directories: Vec<PathBuf> =
        (0..options.count).map(|i| options.directory.join(i.to_string())).collect();
    let places: Vec<SocketAddr> = (0..options.count).map(place).collect::<Result<_>>()?;
    let nodes = directories.into_iter().zip(places);
    farm::run(nodes, (options.hub, options.hub_address))?;
    Ok(ExitCode::SUCCESS)
}

/// The benchmark.
pub(crate) fn scale(options: &Scale) -> Result<ExitCode> {
    ensure!(options.known > options.active + 1, "--known counts the active ones too");
    let mut places = Vec::new();
    match &options.warren {
        Some(place) => places.push(place.clone()),
        // Before a user namespace is entered, in which cargo's cache is not ours.
        None => places.push(crate::bench::build_warren()?),
    }
    if let Privilege::Delegated(code) = find_privilege()? {
        return Ok(code);
    }
    hide_run()?;
    let programs = Programs::new(&places);
    programs.find("iperf3").context("iperf3 is needed to measure: apt install iperf3")?;
    let report = measure(options, &programs.get("warren")?)?;
    print!("{report}");
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(match report.met() || !options.check {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Where a node of the farm is, and where members that never run are said to
/// be. On many addresses, since a daemon lets few strangers in from one.
fn place(i: usize) -> Result<SocketAddr> {
    let port = FARM_PORT.checked_add(u16::try_from(i)?).context("too many members")?;
    let last = 10 + u8::try_from(i % FARM_ADDRESSES)?;
    Ok(SocketAddr::from(([10, 99, 0, last], port)))
}

fn spec(binary: &Path, scratch: &Path, left: bool, pair: &Pair, name: &str) -> NodeSpec {
    let (host, address) = if left { (&pair.left, Pair::LEFT) } else { (&pair.right, Pair::RIGHT) };
    NodeSpec {
        binary: binary.to_owned(),
        host: host.clone(),
        state_dir: scratch.join(name),
        listen: SocketAddr::new(address, PORT),
        interface: "warren0".to_owned(),
        name: name.to_owned(),
        arguments: vec![],
        environment: vec![],
    }
}

/// Starts a daemon and tells how long it took to serve.
fn launch(spec: NodeSpec) -> Result<(Node, f64)> {
    let begin = Instant::now();
    let mut node = spec.launch()?;
    node.wait_serves(PATIENCE)?;
    Ok((node, begin.elapsed().as_secs_f64()))
}

/// Share of one core that a daemon takes, percent.
fn cpu_percent(node: &Node, time: Duration) -> Result<f64> {
    let (before, begin) = (node.cost()?.cpu, Instant::now());
    std::thread::sleep(time);
    let used = node.cost()?.cpu.saturating_sub(before);
    Ok(used.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0)
}

fn resident_mb(node: &Node) -> Result<f64> {
    Ok(node.cost()?.resident as f64 / 1e6)
}

/// Median time of `warren status --json`, milliseconds, and its size, bytes.
fn status_ms(node: &Node) -> Result<(f64, usize)> {
    let mut times = Vec::new();
    let mut size = 0;
    for _ in 0..5 {
        let begin = Instant::now();
        size = node.warren(&["status", "--json"])?.len();
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let spread = Spread::of(times).context("no times")?;
    Ok((spread.median, size))
}

/// Gives the network its members on disk.
struct Network {
    hub: NodeId,
    /// Directory of the farm.
    farm: PathBuf,
}

fn make_network(options: &Scale, scratch: &Path) -> Result<Network> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let maker = Maker::new(now)?;
    let farm = scratch.join("farm");
    std::fs::create_dir(&farm)?;
    let hub = maker.running("hub", &scratch.join("hub"))?;
    let right = maker.running("right", &scratch.join("right"))?;
    // What the farm says later is newer, though its clock is late.
    let before = -7200;
    let mut known = vec![
        maker.describe(&hub, SocketAddr::new(Pair::LEFT, PORT), before)?,
        maker.describe(&right, SocketAddr::new(Pair::RIGHT, PORT), before)?,
    ];
    for i in 0..options.active {
        let node = maker.running(&format!("active-{i}"), &farm.join(i.to_string()))?;
        known.push(maker.describe(&node, place(i)?, before)?);
    }
    for i in options.active..options.known - 1 {
        let node = maker.idle(&format!("idle-{i}"))?;
        known.push(maker.describe(&node, place(i)?, AHEAD as i64)?);
    }
    for name in ["hub", "right"] {
        members::store_known(&scratch.join(name), &known)?;
    }
    Ok(Network { hub: hub.id, farm })
}

/// The running farm and what it said last.
struct Running {
    _process: KilledOnDrop,
    last: Arc<Mutex<Progress>>,
}

impl Running {
    fn start(options: &Scale, network: &Network, pair: &Pair) -> Result<Self> {
        let mut command = pair.right.command(std::env::current_exe()?);
        command.args(["bench", "farm"]).arg(&network.farm).arg(options.active.to_string());
        command.arg(network.hub.to_string());
        command.arg(SocketAddr::new(Pair::LEFT, PORT).to_string());
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let last = Arc::new(Mutex::new(Progress::default()));
        let told = last.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(progress) = serde_json::from_str(&line) {
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = progress;
                }
            }
        });
        Ok(Self { _process: KilledOnDrop(process), last })
    }

    fn progress(&self) -> Progress {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `count` links are up; how long that took.
    fn wait_linked(&self, count: usize) -> Result<f64> {
        let begin = Instant::now();
        loop {
            let progress = self.progress();
            if progress.linked >= count {
                return Ok(begin.elapsed().as_secs_f64());
            }
            if begin.elapsed() > PATIENCE * 2 {
                bail!("{count} links were to come up: {progress:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn measure(options: &Scale, binary: &Path) -> Result<Report> {
    let say = |line: String| eprintln!("{line}");
    let mut report = Report::new(options.known, options.active);
    let scratch = TemporaryDir::create("warren-scale")?;
    let scratch = scratch.path();
    let begin = Instant::now();
    let network = make_network(options, scratch)?;
    say(format!("{} members signed in {:.1} s", options.known, begin.elapsed().as_secs_f64()));

    let small = Pair::create(1500, Underlay::Direct)?;
    let (first, start) = launch(spec(binary, scratch, true, &small, "first"))?;
    let code = first.join_code(PATIENCE)?;
    let second = spec(binary, scratch, false, &small, "second").join(&code, PATIENCE)?;
    report.small = Figures { start_s: start, ..Figures::default() };

    let large = Pair::create(1500, Underlay::Direct)?;
    let mut netlink = large.right.netlink()?;
    let index = netlink.link_index("eth0")?;
    for i in 0..FARM_ADDRESSES.min(options.active) {
        netlink.add_address(index, IpNet::new(place(i)?.ip(), 24)?)?;
    }
    let (mut hub, start) = launch(spec(binary, scratch, true, &large, "hub"))?;
    report.large.start_s = start;
    say(format!("the daemon with {} known serves after {start:.2} s", options.known));
    let mut first = first;
    first.wait_connected("second", PATIENCE)?;
    std::thread::sleep(SETTLE);
    let idle = Duration::from_secs(options.idle);
    report.small.resident_mb = resident_mb(&first)?;
    report.small.idle_cpu = cpu_percent(&first, idle)?;
    (report.small.status_ms, report.small.status_bytes) = status_ms(&first)?;
    report.known_resident_mb = resident_mb(&hub)?;
    report.known_idle_cpu = cpu_percent(&hub, idle)?;
    say(format!(
        "known only: {:.1} MB, {:.2} % of a core",
        report.known_resident_mb, report.known_idle_cpu
    ));

    let cpu = hub.cost()?.cpu;
    let farm = Running::start(options, &network, &large)?;
    report.connect_s = farm.wait_linked(options.active)?;
    report.connect_cpu_ms =
        (hub.cost()?.cpu - cpu).as_secs_f64() * 1e3 / options.active.max(1) as f64;
    say(format!("{} links after {:.2} s", options.active, report.connect_s));
    let (right, _) = launch(spec(binary, scratch, false, &large, "right"))?;
    hub.wait_connected("right", PATIENCE).or_else(|error| {
        // Nobody dials anybody in a large network before there is traffic.
        let to = hub.overlay_address(false)?.to_string();
        right.spec().host.run("ping", &["-c3", "-W5", &to]).map_err(|_| error)?;
        hub.wait_connected("right", PATIENCE)
    })?;
    std::thread::sleep(SETTLE);
    let before = farm.progress();
    report.large.resident_mb = resident_mb(&hub)?;
    report.large.idle_cpu = cpu_percent(&hub, idle)?;
    (report.large.status_ms, report.large.status_bytes) = status_ms(&hub)?;
    let after = farm.progress();
    let status = hub.status()?;
    report.peers_listed = status.peers.len();
    report.peers_up = status.peers.iter().filter(|p| p.path == "direct").count();
    report.pongs_per_second = (after.pongs - before.pongs) as f64 / idle.as_secs_f64();
    say(format!("active: {:.1} MB, {:.2} %", report.large.resident_mb, report.large.idle_cpu));

    let mut rounds = [Vec::new(), Vec::new()];
    let pairs: [(&Pair, IpAddr, &Node); 2] = [
        (&small, second.overlay_address(false)?, &first),
        (&large, right.overlay_address(false)?, &hub),
    ];
    for round in 1..=options.repeat {
        for (values, (pair, to, _)) in rounds.iter_mut().zip(&pairs) {
            values.push(tcp_stream(pair, *to, options.seconds)?.gbps);
        }
        let last = |values: &Vec<f64>| values.last().copied().unwrap_or_default();
        let (one, many) = (last(&rounds[0]), last(&rounds[1]));
        say(format!("round {round}: {one:.2} Gb/s with one peer, {many:.2} with all"));
    }
    report.small.gbps = Spread::of(rounds[0].iter().copied());
    report.large.gbps = Spread::of(rounds[1].iter().copied());
    report.ratio = Spread::of(rounds[0].iter().zip(&rounds[1]).map(|(one, many)| many / one));
    report.small.resident_after_mb = resident_mb(&first)?;
    report.large.resident_after_mb = resident_mb(&hub)?;
    report.farm = Some(farm.progress());
    Ok(report)
}

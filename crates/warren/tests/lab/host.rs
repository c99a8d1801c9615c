//! What a client's machine lets out: whole-machine routing, the kill switch,
//! the resolver and split rules, by the helper process that daemons use, on a
//! host whose only neighbour counts what arrives.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_lab::topology::{Host, Pair, Underlay};
use warren_node::host::plan::{ControlGroup, RESOLVER_V4, SplitMode};
use warren_node::host::{
    Companion, ConnectPlan, KillSwitchPlan, ResolverPlan, Split, TakeoverPlan,
};
use warren_os::files::TemporaryDir;
use warren_os::icmp::Pinger;
use warren_os::mark::mark;
use warren_os::netlink::{LinkSettings, Route};
use warren_os::process::{Signal, signal};
use warren_os::tun::Tun;
use warren_types::Suite;

use crate::Scenario;
use crate::names::{eventually, have};
use crate::story::{PATIENCE, Two, binary};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("nothing_leaves_beside_the_tunnel", || nothing_leaves(20)),
    ("the_resolver_comes_back_after_kill_9", the_resolver_comes_back),
    ("split_rules_choose_what_is_tunnelled", split_rules),
    ("the_kill_switch_outlives_the_daemon", the_kill_switch_outlives),
];

pub(crate) const LONG: &[Scenario] =
    &[("nothing_leaves_beside_the_tunnel_in_200_kills", || nothing_leaves(200))];

/// The tunnel's interface.
const TUNNEL: &str = "w-client";
/// Somewhere outside, by way of the neighbour.
const OUTSIDE: &str = "203.0.113.9";
const OUTSIDE_V6: &str = "2001:db8::9";
/// Port of what carries the tunnel.
const CARRIER: u16 = 51_820;

/// Numbers that look random; the same in every run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below.max(1)
    }
}

/// A client's host, and a neighbour that is its way out.
struct Client {
    pair: Pair,
    scratch: TemporaryDir,
    tun: Option<Tun>,
}

impl Client {
    fn start() -> Result<Self> {
        let pair = Pair::create(1500, Underlay::Direct)?;
        let mut netlink = pair.left.netlink()?;
        let index = netlink.link_index("eth0")?;
        for (all, gateway) in [("0.0.0.0/0", "10.99.0.2"), ("::/0", "fd99::2")] {
            let mut route = Route::direct(all.parse()?, index);
            route.gateway = Some(gateway.parse()?);
            netlink.add_route(&route)?;
        }
        let outside = [format!("{OUTSIDE}/32").parse()?, format!("{OUTSIDE_V6}/128").parse()?];
        pair.right.configure("lo", &outside, &LinkSettings::default(), None)?;
        let scratch = TemporaryDir::create("warren-lab")?;
        let mut client = Self { pair, scratch, tun: None };
        client.raise_tunnel()?;
        Ok(client)
    }

    fn host(&self) -> &Host {
        &self.pair.left
    }

    fn state_dir(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    /// The tunnel's interface, as a daemon has it: it goes with its process.
    fn raise_tunnel(&mut self) -> Result<()> {
        self.tun = None;
        let tun = self.host().namespace().run(|| Tun::open(TUNNEL, 1))??;
        self.tun = Some(tun);
        let up = LinkSettings { mtu: Some(1420), ..LinkSettings::default() };
        self.host().configure(TUNNEL, &["100.64.0.7/10".parse()?], &up, None)
    }

    /// The helper of a daemon that begins. `before` is shell text run first, in
    /// mounts of its own.
    fn helper(&self, before: &str) -> Result<Companion> {
        let mut command = self.host().command("unshare");
        command.args(["-m", "sh", "-c"]).arg(format!("{before}\nexec \"$@\""));
        command.arg("sh").arg(binary()).arg("host-helper").arg("--state-dir");
        command.arg(self.state_dir());
        Ok(Companion::start_as(command)?.0)
    }

    /// A container on the client, whose packets the client passes on.
    fn container(&self) -> Result<Host> {
        let container = Host::create("container")?;
        let (host, up) = (self.host(), LinkSettings::default());
        host.netlink()?.add_veth("c0", "eth0", Some(container.namespace().as_fd()))?;
        host.configure("c0", &["10.77.0.1/24".parse()?, "fd77::1/64".parse()?], &up, None)?;
        let own = ["10.77.0.2/24".parse()?, "fd77::2/64".parse()?];
        container.configure("eth0", &own, &up, None)?;
        let mut netlink = container.netlink()?;
        let index = netlink.link_index("eth0")?;
        for (all, gateway) in [("0.0.0.0/0", "10.77.0.1"), ("::/0", "fd77::1")] {
            let mut route = Route::direct(all.parse()?, index);
            route.gateway = Some(gateway.parse()?);
            netlink.add_route(&route)?;
        }
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            host.run("sysctl", &["-w", setting])?;
        }
        Ok(container)
    }

    fn takeover(&self) -> Result<TakeoverPlan> {
        Ok(TakeoverPlan::new(TUNNEL, vec!["100.64.0.0/10".parse()?]))
    }

    fn plan(&self, lan: bool) -> Result<ConnectPlan> {
        let split = Split::default();
        let kill_switch = Some(KillSwitchPlan { interface: TUNNEL.into(), lan, split });
        Ok(ConnectPlan { kill_switch, takeover: self.takeover()?, resolver: None })
    }

    fn warren(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host().command(binary());
        command.args(arguments).arg("--state-dir").arg(self.state_dir());
        warren_lab::topology::output_of(&mut command)
    }
}

/// Counts, on the neighbour's side of the wire, before anything else there has
/// seen the packets.
struct Watch<'h>(&'h Host);

/// What arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    carried: u64,
    names: u64,
    v4: u64,
    v6: u64,
}

impl Seen {
    fn others(self) -> u64 {
        self.names + self.v4 + self.v6
    }
}

impl<'h> Watch<'h> {
    fn start(host: &'h Host) -> Result<Self> {
        let rules = format!(
            "table netdev watch {{
                counter carried {{ }}
                counter names {{ }}
                counter v4 {{ }}
                counter v6 {{ }}
                chain arriving {{
                    type filter hook ingress device \"eth0\" priority 0; policy accept;
                    meta protocol arp accept
                    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, \
                        mld-listener-report, mld-listener-reduction, mld2-listener-report }} accept
                    ip saddr 10.99.0.1 udp dport {CARRIER} counter name carried accept
                    meta l4proto {{ tcp, udp }} th dport {{ 53, 853 }} counter name names accept
                    meta protocol ip counter name v4 accept
                    meta protocol ip6 counter name v6 accept
                }}
            }}"
        );
        let mut nft = host.command("nft");
        let mut child = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().context("no input")?.write_all(rules.as_bytes())?;
        ensure!(child.wait()?.success(), "nft on the neighbour");
        Ok(Self(host))
    }

    /// What arrived since the last question.
    fn seen(&self) -> Result<Seen> {
        let text = self.0.run("nft", &["-j", "reset", "counters", "table", "netdev", "watch"])?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let count = |name: &str| {
            let all = json["nftables"].as_array().into_iter().flatten();
            let mut found = all.filter(|entry| entry["counter"]["name"] == name);
            found.next().and_then(|entry| entry["counter"]["packets"].as_u64()).context("counter")
        };
        Ok(Seen {
            carried: count("carried")?,
            names: count("names")?,
            v4: count("v4")?,
            v6: count("v6")?,
        })
    }
}

/// Programs that try to get out, each way, all the time; and the carrier.
fn chatter(stop: &AtomicBool) {
    let outside: IpAddr = OUTSIDE.parse().expect("an address");
    let outside_v6: IpAddr = OUTSIDE_V6.parse().expect("an address");
    let lan: IpAddr = Pair::RIGHT;
    let send = |to: SocketAddr, marked: bool| {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
        };
        let Ok(socket) = UdpSocket::bind(any) else { return };
        if marked && mark(&socket).is_err() {
            return;
        }
        // Refusals are what is hoped for.
        let _refused = socket.send_to(b"here I am", to);
    };
    // Old sockets, with the routes and addresses of before the tunnel.
    let old: Vec<UdpSocket> = [(outside, 7), (outside, 53), (outside_v6, 7)]
        .into_iter()
        .filter_map(|(to, port)| {
            let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
            let socket = UdpSocket::bind((any, 0)).ok()?;
            socket.connect((to, port)).ok()?;
            Some(socket)
        })
        .collect();
    while !stop.load(Ordering::Relaxed) {
        send((outside, CARRIER).into(), true);
        for (to, port) in
            [(outside, 7), (outside, 53), (lan, 53), (outside_v6, 7), (outside_v6, 53)]
        {
            send((to, port).into(), false);
        }
        for socket in &old {
            let _refused = socket.send(b"still here");
        }
        for to in [outside, outside_v6] {
            let _refused = TcpStream::connect_timeout(&(to, 80).into(), Duration::from_millis(2));
            if let Ok(mut pinger) = Pinger::open(to, 7) {
                let _refused = pinger.ping(8, Duration::from_millis(1));
            }
        }
    }
}

fn nothing_leaves(rounds: u32) -> Result<()> {
    if !have("nft", "nftables") {
        return Ok(());
    }
    let mut client = Client::start()?;
    let neighbour = client.pair.right.clone();
    let watch = Watch::start(&neighbour)?;
    let container = client.container()?;
    let stop = AtomicBool::new(false);
    let programs = client.host().namespace().clone();
    std::thread::scope(|scope| {
        for place in [&programs, &programs, container.namespace()] {
            let stop = &stop;
            scope.spawn(move || place.run(|| chatter(stop)));
        }
        let result = kills(&mut client, &watch, rounds);
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn kills(client: &mut Client, watch: &Watch<'_>, rounds: u32) -> Result<()> {
    let mut dice = Dice(0x5eed_1e55);
    // The watch sees what there is to see.
    let mut all = Seen::default();
    eventually("all kinds of packets without a tunnel", || {
        let seen = watch.seen()?;
        all.carried += seen.carried;
        all.names += seen.names;
        (all.v4, all.v6) = (all.v4 + seen.v4, all.v6 + seen.v6);
        Ok(all.carried > 0 && all.names > 0 && all.v4 > 0 && all.v6 > 0)
    })?;

    let mut helper = client.helper("")?;
    helper.connect(&client.plan(false)?)?;
    // What was on its way when the filter came into force.
    std::thread::sleep(Duration::from_millis(20));
    watch.seen()?;
    let (mut carried, mut slowest) = (0, Duration::ZERO);
    for round in 0..rounds {
        // Killed at a moment of its own choosing, while it changes things.
        let pid = helper.pid();
        let after = Duration::from_micros(dice.roll(40_000));
        let step = dice.roll(4);
        let plan = client.plan(dice.roll(2) == 1)?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(after);
                let _ended_already = signal(pid, Signal::Kill);
            });
            // Most are never answered.
            let _killed = match step {
                0 => helper.connect(&plan),
                1 => helper.disconnect(true),
                2 => helper.kill_switch_on(plan.kill_switch.as_ref().expect("it has one")),
                _ => helper.disconnect(true).and_then(|_| helper.connect(&plan)),
            };
        });
        drop(helper);
        // Now and then the daemon has gone as well, and its interface with it.
        if dice.roll(3) == 0 {
            client.tun = None;
            std::thread::sleep(Duration::from_millis(dice.roll(30)));
            client.raise_tunnel()?;
        }
        helper = client.helper("").with_context(|| format!("round {round}"))?;
        let began = Instant::now();
        helper.connect(&plan).with_context(|| format!("round {round}"))?;
        slowest = slowest.max(began.elapsed());
        std::thread::sleep(Duration::from_millis(dice.roll(20)));
        let seen = watch.seen()?;
        ensure!(seen.others() == 0, "round {round}, step {step} after {after:?}: {seen:?}");
        carried += seen.carried;
    }
    ensure!(carried > u64::from(rounds), "the carrier was held back: {carried} packets");
    println!("{rounds} kills, {carried} packets of the carrier, slowest connect {slowest:?}");

    // Without any process: still nothing. Lifted: as before.
    drop(helper);
    client.tun = None;
    watch.seen()?;
    std::thread::sleep(Duration::from_millis(200));
    let closed = watch.seen()?;
    ensure!(closed.others() == 0 && closed.carried > 0, "without a daemon: {closed:?}");
    let left = client.host().netlink()?.own_rules()?;
    ensure!(left.is_empty(), "rules are left: {left:?}");
    let said = client.warren(&["kill-switch", "status"])?;
    ensure!(said.contains("is on"), "{said}");
    client.warren(&["kill-switch", "off"])?;
    std::thread::sleep(Duration::from_millis(200));
    let open = watch.seen()?;
    ensure!(open.names > 0 && open.v4 > 0 && open.v6 > 0, "not lifted: {open:?}");
    let tables = client.host().run("nft", &["list", "ruleset"])?;
    ensure!(tables.trim().is_empty(), "tables are left: {tables}");
    Ok(())
}

fn the_resolver_comes_back() -> Result<()> {
    if !have("nft", "nftables") {
        return Ok(());
    }
    let client = Client::start()?;
    // As `ip netns exec` does with /etc/netns/NAME/resolv.conf.
    let file = client.scratch.path().join("resolv.conf");
    let former = "# the operator's\nsearch lan\nnameserver 10.99.0.2\n";
    std::fs::write(&file, former)?;
    let mounted = format!("mount --bind {} /etc/resolv.conf", file.display());
    let mut plan = client.plan(false)?;
    plan.resolver = Some(ResolverPlan {
        interface: TUNNEL.into(),
        servers: plan.takeover.resolvers.clone(),
        mesh: None,
    });
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    let ours = |text: &str| {
        text.lines().any(|line| line == format!("nameserver {RESOLVER_V4}"))
            && !text.lines().any(|line| line == "nameserver 10.99.0.2")
    };
    let mut helper = client.helper(&mounted)?;
    let state = helper.connect(&plan)?;
    ensure!(state.resolver && ours(&read()), "{}", read());
    // Killed: the next start puts it back.
    signal(helper.pid(), Signal::Kill)?;
    drop(helper);
    ensure!(ours(&read()), "nobody was left to put it back");
    let mut helper = client.helper(&mounted)?;
    ensure!(read() == former, "{}", read());
    // Connected twice, with a change in between, and disconnected.
    helper.connect(&plan)?;
    helper.connect(&plan)?;
    ensure!(ours(&read()), "{}", read());
    helper.disconnect(true)?;
    ensure!(read() == former, "{}", read());
    // Other programs clean up: seen, and put back.
    helper.connect(&plan)?;
    ensure!(helper.keep()?.put_back.is_empty(), "nothing was missing");
    std::fs::write(&file, "nameserver 10.99.0.77\n")?;
    client.host().run("ip", &["rule", "del", "pref", "30550"])?;
    client.host().run("nft", &["flush", "ruleset"])?;
    ensure!(helper.keep()?.put_back.len() == 2, "not all was missed");
    ensure!(helper.keep()?.put_back.is_empty() && ours(&read()), "not all was put back");
    std::fs::write(&file, former)?;
    // The daemon is killed, the helper is not.
    helper.connect(&plan)?;
    ensure!(ours(&read()), "{}", read());
    drop(helper);
    ensure!(read() == former, "{}", read());
    // Both are, and nothing starts again: the switch that opens the way out
    // gives the names back, too.
    let mut helper = client.helper(&mounted)?;
    helper.connect(&plan)?;
    signal(helper.pid(), Signal::Kill)?;
    drop(helper);
    let mut off = client.host().command("unshare");
    off.args(["-m", "sh", "-c"]).arg(format!("{mounted}\nexec \"$@\"")).arg("sh");
    off.arg(binary()).args(["kill-switch", "off", "--state-dir"]).arg(client.state_dir());
    warren_lab::topology::output_of(&mut off)?;
    ensure!(read() == former, "{}", read());
    ensure!(!client.state_dir().join("host.json").exists(), "something is left to undo");
    let rules = client.host().netlink()?.own_rules()?;
    ensure!(rules.is_empty(), "{rules:?}");
    Ok(())
}

/// An ordinary user of the client's.
const USER: u32 = 1234;

/// Asks a port outside and returns whether the answer came, as a program of the
/// given user and control group.
fn asks(host: &Host, port: u16, user: Option<u32>, group: Option<&Path>) -> Result<bool> {
    let join = group.map_or_else(String::new, |group| {
        format!("echo $$ > {}/cgroup.procs || exit 9; ", group.display())
    });
    let script = format!(
        "{join}exec 3<>/dev/udp/{OUTSIDE}/{port} || exit 1; echo ask >&3 || exit 1; \
         timeout 0.4 head -c 3 <&3 || exit 1"
    );
    let mut command = match user {
        None => host.command("bash"),
        Some(user) => {
            let mut command = host.command("setpriv");
            command.arg(format!("--reuid={user}")).args(["--clear-groups", "bash"]);
            command
        }
    };
    command.args(["-c", &script]).stderr(Stdio::null());
    let output = command.output()?;
    ensure!(output.status.code() != Some(9), "cannot join {group:?}");
    Ok(output.stdout == b"ask")
}

/// A control group of our own, removed at the end.
struct Group(PathBuf);

impl Group {
    fn create() -> Option<Self> {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .map(Path::new)
            .find(|root| root.join("cgroup.controllers").exists())?;
        let path = root.join(format!("warren-lab-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn name(&self) -> Result<ControlGroup> {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ControlGroup::try_from(name).map_err(anyhow::Error::msg)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may be ending.
        for _ in 0..50 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn split_rules() -> Result<()> {
    if !have("nft", "nftables") {
        return Ok(());
    }
    let client = Client::start()?;
    let host = client.host().clone();
    // The kernel's strictest check of where packets come from.
    for setting in ["all", "eth0"] {
        let value = format!("net.ipv4.conf.{setting}.rp_filter=1");
        host.run("sysctl", &["-w", &value])?;
    }
    // Outside, everything is answered.
    let socket = client.pair.right.namespace().run(|| UdpSocket::bind((OUTSIDE, 7)))??;
    let echo = socket.try_clone()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((len, from)) = echo.recv_from(&mut buffer) {
            if &buffer[..len] == b"end" {
                return;
            }
            let _unreachable = echo.send_to(&buffer[..len], from);
        }
    });
    let group = Group::create();
    if group.is_none() {
        println!("SKIPPED in part: no control groups can be made here");
    }
    let users = asks(&host, 7, Some(USER), None).unwrap_or(false);
    if !users {
        println!("SKIPPED in part: no other users here");
    }
    ensure!(asks(&host, 7, None, None)?, "no answer without a tunnel");

    let mut helper = client.helper("")?;
    let mut connect = |split: &Split, kill_switch: bool| -> Result<()> {
        let mut plan = client.plan(false)?;
        plan.takeover.split = split.clone();
        match &mut plan.kill_switch {
            Some(switch) if kill_switch => switch.split = split.clone(),
            switch => *switch = None,
        }
        helper.connect(&plan)?;
        if !kill_switch {
            helper.kill_switch_off()?;
        }
        Ok(())
    };
    for kill_switch in [false, true] {
        for mode in [SplitMode::Exclude, SplitMode::Include] {
            // What is selected goes outside when excluded.
            let outside = mode == SplitMode::Exclude;
            let nothing = Split { mode, ..Split::default() };
            let what = format!("{mode:?}, kill switch: {kill_switch}");
            connect(&nothing, kill_switch)?;
            ensure!(asks(&host, 7, None, None)? != outside, "{what}: nothing selected");
            let subnets = vec!["203.0.113.0/24".parse()?];
            connect(&Split { subnets, ..nothing.clone() }, kill_switch)?;
            ensure!(asks(&host, 7, None, None)? == outside, "{what}: by subnet");
            if users {
                connect(&Split { users: vec![USER], ..nothing.clone() }, kill_switch)?;
                ensure!(asks(&host, 7, Some(USER), None)? == outside, "{what}: by user");
                ensure!(asks(&host, 7, None, None)? != outside, "{what}: another user");
            }
            if let Some(group) = &group {
                let groups = vec![group.name()?];
                connect(&Split { groups, ..nothing.clone() }, kill_switch)?;
                let inside = asks(&host, 7, None, Some(&group.0))?;
                ensure!(inside == outside, "{what}: by control group");
                ensure!(asks(&host, 7, None, None)? != outside, "{what}: another group");
            }
        }
    }
    // A packet of the carrier, and its answer under the strict check.
    connect(&Split::default(), true)?;
    let carrier = host.namespace().run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        mark(&socket)?;
        socket.connect((OUTSIDE, 7))?;
        Ok(socket)
    })??;
    carrier.set_read_timeout(Some(Duration::from_secs(2)))?;
    carrier.send(b"carrier")?;
    let mut buffer = [0; 16];
    ensure!(carrier.recv(&mut buffer).context("no answer to the carrier")? == 7);
    carrier.send(b"end")?;
    // A control group that is not there is named, and changes nothing.
    let missing = ControlGroup::try_from("nowhere.slice".to_owned()).map_err(anyhow::Error::msg)?;
    let Err(error) = connect(&Split { groups: vec![missing], ..Split::default() }, true) else {
        bail!("a missing control group was taken");
    };
    ensure!(error.to_string().contains("control group"), "{error}");
    ensure!(!asks(&host, 7, None, None)?, "the failure opened the way out");
    Ok(())
}

fn the_kill_switch_outlives() -> Result<()> {
    if !have("nft", "nftables") {
        return Ok(());
    }
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    let left = two.pair.left.clone();
    let reaches = |to: IpAddr| -> Result<bool> {
        let mut pinger = left.namespace().run(|| Pinger::open(to, 9))??;
        Ok(pinger.ping(56, Duration::from_secs(1)).is_ok())
    };
    ensure!(reaches(Pair::RIGHT)?, "no underlay");
    // Its interface is the daemon's, found by asking it.
    two.left.warren(&["kill-switch", "on"])?;
    ensure!(!reaches(Pair::RIGHT)?, "the underlay is open");
    two.expect_echoes(false)?;
    two.expect_streams(true, 4 << 20)?;
    let spec = two.left.crash()?;
    ensure!(!reaches(Pair::RIGHT)?, "open after kill -9");
    two.left = spec.up(None, PATIENCE)?;
    ensure!(!reaches(Pair::RIGHT)?, "open after a restart");
    let warnings = two.left.status()?.warnings;
    ensure!(warnings.iter().any(|w| w.contains("kill switch is on")), "{warnings:?}");
    two.left.wait_connected("right", PATIENCE)?;
    two.expect_echoes(true)?;
    // Somebody cleans the packet filters: the daemon finds out, or the next.
    left.run("nft", &["flush", "ruleset"])?;
    ensure!(reaches(Pair::RIGHT)?, "it is off");
    eventually("it is on again by itself", || Ok(!reaches(Pair::RIGHT)?))?;
    let spec = two.left.stop(PATIENCE)?;
    left.run("nft", &["flush", "ruleset"])?;
    let said = std::fs::read_to_string(spec.state_dir.join("kill-switch.json"))?;
    ensure!(said.contains(&spec.interface), "{said}");
    two.left = spec.up(None, PATIENCE)?;
    ensure!(!reaches(Pair::RIGHT)?, "not put back");
    two.left.warren(&["kill-switch", "on", "--lan"])?;
    ensure!(reaches(Pair::RIGHT)?, "the local network is not reached");
    two.left.warren(&["kill-switch", "off"])?;
    let spec = two.left.stop(PATIENCE)?;
    let rest = left.run("nft", &["list", "ruleset"])?;
    ensure!(rest.trim().is_empty(), "{rest}");
    // Nor does the helper stay behind.
    eventually("the helper has ended", || {
        let marker = spec.state_dir.display().to_string();
        Ok(!helpers()?.iter().any(|line| line.contains(&marker)))
    })?;
    two.left = spec.up(None, PATIENCE)?;
    Ok(())
}

/// Command lines of helper processes.
fn helpers() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let mut line = String::new();
        let read = std::fs::File::open(entry.path().join("cmdline"))
            .and_then(|mut file| file.read_to_string(&mut line));
        if read.is_ok() && line.contains("host-helper") {
            found.push(line.replace('\0', " "));
        }
    }
    Ok(found)
}

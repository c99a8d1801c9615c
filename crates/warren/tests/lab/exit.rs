//! An exit's address translation and policy: a session's packets, as the worker
//! writes them, leave with the exit's own address or are refused at once.
//!
//! Three hosts: `inside` stands for the worker (its packets have leases as
//! their sources), `exit`, and `server`, which is the world.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_lab::topology::Host;
use warren_node::host::plan::{PolicyRule, Transport};
use warren_node::host::{Companion, ConnectPlan, ExitPlan, KillSwitchPlan, Split, TakeoverPlan};
use warren_os::files::TemporaryDir;
use warren_os::netlink::{LinkSettings, Route};

use crate::Scenario;
use crate::names::{eventually, have};
use crate::story::binary;

pub(crate) const SCENARIOS: &[Scenario] =
    &[("an_exit_translates_and_refuses", an_exit_translates_and_refuses)];

const TUNNEL: &str = "w-exit";
const LEASE: &str = "240.0.0.5";
const LEASE_V6: &str = "fd77:6172:7265:6e01::5";
const EXIT: &str = "203.0.113.1";
const EXIT_V6: &str = "2001:db8::1";
const SERVER: &str = "203.0.113.9";
const SERVER_V6: &str = "2001:db8::9";
/// The server's other address: private, and the exit's resolver.
const PRIVATE: &str = "10.5.0.9";
/// What is refused is refused sooner than this; a silent drop takes seconds.
const AT_ONCE: Duration = Duration::from_millis(500);

struct World {
    inside: Host,
    exit: Host,
    server: Host,
    scratch: TemporaryDir,
}

impl World {
    fn start() -> Result<Self> {
        let world = Self {
            inside: Host::create("inside")?,
            exit: Host::create("exit")?,
            server: Host::create("server")?,
            scratch: TemporaryDir::create("warren-lab")?,
        };
        let (inside, exit, server) = (&world.inside, &world.exit, &world.server);
        let up = LinkSettings::default();
        inside.netlink()?.add_veth("t0", TUNNEL, Some(exit.namespace().as_fd()))?;
        exit.netlink()?.add_veth("eth0", "eth0", Some(server.namespace().as_fd()))?;
        // The worker knows no neighbours: all it writes is taken by the exit.
        let (near, far) = ("02:00:00:00:00:05", "02:00:00:00:00:01");
        inside.run("ip", &["link", "set", "t0", "address", near])?;
        exit.run("ip", &["link", "set", TUNNEL, "address", far])?;
        let leases = [format!("{LEASE}/32").parse()?, format!("{LEASE_V6}/128").parse()?];
        inside.configure("t0", &leases, &up, None)?;
        exit.configure(TUNNEL, &["100.64.0.1/10".parse()?], &up, None)?;
        for gateway in ["240.0.0.1", "fd77:6172:7265:6e01::1"] {
            inside.run("ip", &["route", "add", gateway, "dev", "t0"])?;
            inside.run("ip", &["neigh", "add", gateway, "lladdr", far, "dev", "t0"])?;
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            inside.run("ip", &[family, "route", "add", "default", "via", gateway])?;
        }
        for lease in [LEASE, LEASE_V6] {
            exit.run("ip", &["neigh", "add", lease, "lladdr", near, "dev", TUNNEL])?;
        }
        exit.configure(
            "eth0",
            &[format!("{EXIT}/24").parse()?, format!("{EXIT_V6}/64").parse()?],
            &up,
            None,
        )?;
        server.configure(
            "eth0",
            &[
                format!("{SERVER}/24").parse()?,
                format!("{SERVER_V6}/64").parse()?,
                format!("{PRIVATE}/32").parse()?,
            ],
            &up,
            None,
        )?;
        let mut netlink = exit.netlink()?;
        let index = netlink.link_index("eth0")?;
        for (all, gateway) in [("0.0.0.0/0", SERVER), ("::/0", SERVER_V6)] {
            let mut route = Route::direct(all.parse()?, index);
            route.gateway = Some(gateway.parse()?);
            netlink.add_route(&route)?;
        }
        // So that answers to leases would come back if they were not translated.
        server.run("ip", &["route", "add", "240.0.0.0/16", "via", EXIT])?;
        // Link-local addresses are not used before they are known to be unique.
        eventually("link-local addresses", || {
            let mut waiting = String::new();
            for host in [inside, exit, server] {
                waiting += &host.run("ip", &["-6", "address", "show", "tentative"])?;
            }
            Ok(waiting.trim().is_empty())
        })?;
        Ok(world)
    }

    fn helper(&self) -> Result<Companion> {
        let mut command = self.exit.command(binary());
        command.arg("host-helper").arg("--state-dir").arg(self.scratch.path().join("state"));
        Ok(Companion::start_as(command)?.0)
    }

    fn plan(&self) -> Result<ExitPlan> {
        let mut plan = ExitPlan::new(TUNNEL, vec!["100.64.0.0/10".parse()?]);
        plan.resolver = Some(PRIVATE.parse()?);
        Ok(plan)
    }

    /// What a server learns of who connects: the address it says it saw.
    fn tcp(&self, to: &str, port: u16) -> std::io::Result<String> {
        let to = SocketAddr::new(to.parse().expect("an address"), port);
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(2));
        let mut stream = self.inside.namespace().run(connect).map_err(std::io::Error::other)??;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut seen = String::new();
        stream.read_to_string(&mut seen)?;
        Ok(seen)
    }

    /// The answer to a datagram and who gave it.
    fn udp(&self, to: &str, port: u16) -> Result<std::io::Result<(String, IpAddr)>> {
        self.ask(to, port, Duration::from_secs(2))
    }

    /// The same where silence is expected.
    fn udp_silent(&self, to: &str, port: u16) -> Result<std::io::Result<(String, IpAddr)>> {
        self.ask(to, port, Duration::from_millis(50))
    }

    fn ask(
        &self,
        to: &str,
        port: u16,
        patience: Duration,
    ) -> Result<std::io::Result<(String, IpAddr)>> {
        let to = SocketAddr::new(to.parse()?, port);
        self.inside
            .namespace()
            .run(|| {
                let any: IpAddr =
                    if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(patience))?;
                socket.send(b"who am I")?;
                let mut buffer = [0; 64];
                let (len, from) = socket.recv_from(&mut buffer)?;
                Ok((String::from_utf8_lossy(&buffer[..len]).into_owned(), from.ip()))
            })
            .map_err(Into::into)
    }

    fn refused(&self, to: &str, port: u16) -> Result<()> {
        let began = Instant::now();
        let answer = self.tcp(to, port);
        let took = began.elapsed();
        ensure!(answer.is_err(), "TCP to {to}:{port} went through: {answer:?}");
        ensure!(took < AT_ONCE, "TCP to {to}:{port} was not refused but dropped: {answer:?}");
        Ok(())
    }

    /// The same for UDP. The kernel sends one host six ICMP errors and then one
    /// a second, so this is for few.
    fn refused_udp(&self, to: &str, port: u16) -> Result<()> {
        let began = Instant::now();
        let answer = self.udp(to, port)?;
        let took = began.elapsed();
        ensure!(answer.is_err(), "UDP to {to}:{port} went through: {answer:?}");
        ensure!(took < AT_ONCE, "UDP to {to}:{port} was not refused but dropped: {answer:?}");
        Ok(())
    }
}

/// Tells everybody who asks, on these addresses and ports, over TCP and UDP,
/// which address it sees.
fn answer_all(host: &Host, addresses: &[&str], ports: &[u16]) -> Result<()> {
    for address in addresses {
        for port in ports {
            let at = SocketAddr::new(address.parse()?, *port);
            let (tcp, udp) = host.namespace().run(|| -> std::io::Result<_> {
                Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?))
            })??;
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let Ok(mut stream) = stream else { return };
                    let Ok(peer) = stream.peer_addr() else { continue };
                    let _gone = stream.write_all(peer.ip().to_string().as_bytes());
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    let _gone = udp.send_to(from.ip().to_string().as_bytes(), from);
                }
            });
        }
    }
    Ok(())
}

fn an_exit_translates_and_refuses() -> Result<()> {
    if !have("nft", "nftables") || !have("ip", "iproute2") {
        return Ok(());
    }
    let world = World::start()?;
    answer_all(&world.server, &[SERVER, SERVER_V6, PRIVATE], &[25, 53, 443, 8080])?;
    answer_all(&world.exit, &[EXIT, EXIT_V6, "100.64.0.1"], &[53, 8080])?;
    let settings = |host: &Host| host.run("sysctl", &["-a", "--pattern", "forwarding|accept_ra$"]);
    let before = settings(&world.exit)?;

    let mut helper = world.helper()?;
    let began = Instant::now();
    let state = helper.exit_up(&world.plan()?)?;
    println!("the exit was up after {:?}", began.elapsed());
    ensure!(state.exit.as_deref() == Some(TUNNEL), "{state:?}");
    for (to, as_) in [(SERVER, EXIT), (SERVER_V6, EXIT_V6)] {
        let seen = world.tcp(to, 8080).with_context(|| format!("TCP to {to}"))?;
        ensure!(seen == as_, "TCP to {to} came from {seen}");
        let (seen, from) = world.udp(to, 8080)?.with_context(|| format!("UDP to {to}"))?;
        ensure!(seen == as_ && from.to_string() == to, "UDP to {to} came from {seen}");
    }
    // Names, by a resolver that is nobody else's to reach.
    let (seen, from) = world.udp("192.0.0.1", 53)?.context("no answer about names")?;
    ensure!(seen == EXIT && from.to_string() == "192.0.0.1", "{seen} from {from}");
    ensure!(world.tcp("192.0.0.1", 53).context("names over TCP")? == EXIT);
    // What the default policy refuses, with a server behind each.
    for (to, port) in [(PRIVATE, 8080), (SERVER, 25), (EXIT, 8080), ("100.64.0.9", 8080)] {
        world.refused_udp(to, port)?;
    }
    for (to, port) in [
        (PRIVATE, 8080),
        (PRIVATE, 53),
        (SERVER, 25),
        (SERVER_V6, 25),
        (EXIT, 8080),
        (EXIT_V6, 8080),
        (EXIT, 53),
        ("100.64.0.1", 8080),
        ("100.64.0.9", 8080),
        ("240.0.0.77", 8080),
        ("192.0.0.1", 8080),
        ("192.168.7.7", 80),
        ("169.254.169.254", 80),
        ("fd00::1", 80),
    ] {
        world.refused(to, port)?;
        let answer = world.udp_silent(to, port)?;
        ensure!(answer.is_err(), "UDP to {to}:{port} went through: {answer:?}");
    }
    // From outside nobody begins a conversation with a lease, or passes for one.
    let told = world.inside.namespace().run(|| UdpSocket::bind((LEASE, 9000)))??;
    told.set_read_timeout(Some(Duration::from_millis(300)))?;
    let caller = world.server.namespace().run(|| UdpSocket::bind((SERVER, 0)))??;
    caller.send_to(b"hello", (LEASE, 9000))?;
    ensure!(told.recv(&mut [0; 16]).is_err(), "a lease was reached from outside");

    // Large answers are cut to what a cell's packet holds: refused on the way,
    // the sender learns the size.
    let route = world.exit.run("ip", &["route", "show", "240.0.0.0/16"])?;
    ensure!(route.contains("mtu lock 1280"), "{route}");

    // Another policy, while sessions run.
    let mut plan = world.plan()?;
    plan.policy = vec![
        PolicyRule {
            accept: true,
            to: Some("10.5.0.0/16".parse()?),
            transport: Some(Transport::Tcp),
            ports: Some(443..=443),
        },
        PolicyRule { accept: false, to: None, transport: None, ports: Some(8000..=8999) },
    ];
    helper.exit_up(&plan)?;
    ensure!(world.tcp(PRIVATE, 443)? == EXIT, "opened by the policy");
    world.refused(SERVER, 8080)?;
    ensure!(world.tcp(SERVER, 443)? == EXIT, "not named by the policy");

    // A resolver that cannot answer clients is refused, and nothing changes.
    let mut bad = plan.clone();
    bad.resolver = Some([127, 0, 0, 1].into());
    let Err(fault) = helper.exit_up(&bad) else { bail!("a loopback resolver was taken") };
    ensure!(fault.to_string().contains("exit.resolver"), "{fault}");
    ensure!(world.tcp(SERVER, 443)? == EXIT, "the failure changed something");

    // An exit's own machine may be shut, or use another exit itself; sessions
    // go on, and not in circles.
    let own = world.exit.namespace().run(|| UdpSocket::bind("0.0.0.0:0"))??;
    own.set_read_timeout(Some(Duration::from_millis(300)))?;
    let reaches = || {
        let sent = own.send_to(b"who am I", (SERVER, 8080));
        sent.is_ok() && own.recv(&mut [0; 64]).is_ok()
    };
    ensure!(reaches(), "the exit's own way out");
    let kill_switch =
        KillSwitchPlan { interface: TUNNEL.into(), lan: false, split: Split::default() };
    helper.connect(&ConnectPlan {
        kill_switch: Some(kill_switch),
        takeover: TakeoverPlan::new(TUNNEL, plan.mesh.clone()),
        resolver: None,
    })?;
    ensure!(!reaches(), "the exit's own traffic goes beside its tunnel");
    ensure!(world.tcp(SERVER, 443)? == EXIT, "a session is held back");
    ensure!(world.udp("192.0.0.1", 53)?.context("names")?.0 == EXIT);
    helper.disconnect(false)?;
    ensure!(reaches(), "the exit's own way out after that");

    world.exit.run("nft", &["flush", "ruleset"])?;
    ensure!(helper.keep()?.put_back.len() == 1, "a flushed table was not missed");
    ensure!(world.tcp(SERVER, 443)? == EXIT && helper.keep()?.put_back.is_empty());

    // The daemon ends, however: all is as before.
    drop(helper);
    ensure!(world.tcp(SERVER, 443).is_err(), "still an exit");
    let after = settings(&world.exit)?;
    ensure!(before == after, "settings were not put back:\n{before}\n{after}");
    let rest = world.exit.run("nft", &["list", "ruleset"])?;
    ensure!(rest.trim().is_empty(), "{rest}");
    let routes = world.exit.run("ip", &["route", "show", "240.0.0.0/16"])?;
    ensure!(routes.trim().is_empty(), "{routes}");

    // Killed with its helper: the next start puts things back.
    let mut helper = world.helper()?;
    helper.exit_up(&world.plan()?)?;
    warren_os::process::signal(helper.pid(), warren_os::process::Signal::Kill)?;
    drop(helper);
    ensure!(world.tcp(SERVER, 443)? == EXIT, "the rules are there without a process");
    drop(world.helper()?);
    ensure!(settings(&world.exit)? == before, "settings were not put back after kill -9");
    let rest = world.exit.run("nft", &["list", "ruleset"])?;
    ensure!(rest.trim().is_empty(), "{rest}");
    Ok(())
}

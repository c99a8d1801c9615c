//! The command line: what can be asked, and who answers.

mod ca;
mod clients;
mod daemon;
mod events;
mod keys;
mod kill_switch;
mod network;
mod onion;
mod path;
mod private;
mod qr;
mod roles;
mod route;
mod service_unit;
mod status;
mod story;
mod top;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use warren_node::api::Client;
use warren_node::config::{
    Config, Endpoint, InterfaceName, Listen, LogFormat, LogLevel, MetricsListen, Overrides,
    api_socket, default_state_dir,
};
use warren_node::fault::{Fault, FaultKind};
use warren_node::userspace::Publish;
use warren_types::{NetworkName, NodeName, Suite};

use crate::demo;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 wrong configuration, \
4 not permitted, 5 port or interface not available, 6 state directory, \
7 refused by the network, 8 no daemon running, 9 other machine not reachable.";

/// A mesh VPN without a central server: two machines, two commands.
#[derive(Debug, Parser)]
#[command(name = "warren", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start this node; creates a network when the state directory is fresh.
    Up(Run),
    /// Join a network with the code another member printed.
    Join {
        /// The code: one line that starts with `warren1`.
        code: String,
        #[command(flatten)]
        run: Run,
    },
    /// Print a code that admits another machine.
    Invite {
        /// How long the code is good: a number with s, m, h or d.
        #[arg(long, default_value = "15m", value_parser = duration)]
        expires: Duration,
        /// How many machines may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
        /// Print a QR code too when standard output is not a terminal.
        #[arg(long)]
        qr: bool,
        #[command(flatten)]
        state: State,
    },
    /// Send this machine's traffic through hops of the network to an exit.
    Connect(Box<onion::Connect>),
    /// Named wishes for `connect`.
    #[command(subcommand)]
    Profile(onion::ProfileCommand),
    /// End that; traffic leaves as before, and the kill switch is lifted.
    Disconnect(State),
    /// Stop the daemon; its identity and network stay.
    Down(State),
    /// Leave the network and remove everything this node made.
    Leave {
        /// Even as the last node that can admit others, or that holds the root.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        state: State,
    },
    /// The certificate authority: who may admit, the root and its key.
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Replace a key of this node; nothing is cut off.
    Rotate {
        /// Which.
        what: ca::Rotated,
        #[command(flatten)]
        state: State,
    },
    /// Show this node and its peers.
    Status {
        /// JSON with stable keys.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
    /// Watch this node, its onion path and its peers on the terminal.
    Top(top::Top),
    /// Show what happened.
    Events {
        /// Go on as things happen.
        #[arg(long, short)]
        follow: bool,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
        /// Show changes of the onion path on the desktop, too.
        #[arg(long, requires = "follow")]
        notify: bool,
        #[command(flatten)]
        state: State,
    },
    /// The onion path, and how this node reaches others.
    #[command(subcommand)]
    Path(path::PathCommand),
    /// Networks behind nodes: offer, approve and list them.
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// What this node does for onion paths: entry, relay, exit.
    #[command(subcommand)]
    Roles(roles::RolesCommand),
    /// Take no new sessions of onion paths; those that are there go on.
    Drain(roles::Drain),
    /// Let stock WireGuard clients in through this node.
    #[command(subcommand)]
    Wg(clients::WgCommand),
    /// Keep everything in that does not go through the tunnel.
    #[command(subcommand)]
    KillSwitch(kill_switch::KillSwitchCommand),
    /// Changes this machine for a daemon, which starts it itself.
    #[command(hide = true)]
    HostHelper(State),
    /// Expel a node from the network.
    Revoke {
        /// Its name.
        name: NodeName,
        #[command(flatten)]
        state: State,
    },
    /// Print this node's public identity, for the configuration of others.
    Key(State),
    /// Pre-shared keys.
    #[command(subcommand)]
    Psk(keys::PskCommand),
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a hardened systemd unit.
    ServiceUnit(service_unit::ServiceUnit),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Show Warren at work: a mesh on this machine, with real traffic.
    #[command(long_about = demo::ABOUT)]
    Demo(demo::Args),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print what the file and the flags set, or with --effective everything.
    Show {
        /// With all defaults.
        #[arg(long)]
        effective: bool,
        #[command(flatten)]
        flags: Flags,
    },
}

/// Which daemon.
#[derive(Debug, Clone, Args)]
pub(crate) struct State {
    /// Keys, state and API socket [default: /var/lib/warren for root, else ~/.local/state/warren].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl State {
    fn dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(default_state_dir)
    }

    fn client(&self) -> Client {
        Client::new(api_socket(&self.dir()))
    }
}

/// Flags that go over the configuration file.
#[derive(Debug, Clone, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    state: State,
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name [default: the host name].
    #[arg(long)]
    name: Option<NodeName>,
    /// The network's name, when it is created [default: warren].
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkName>,
    /// UDP address to listen on [default: `[::]:9277`, IPv4 as well].
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<Listen>,

    /// Offer TLS over TCP here, for nodes whose UDP is blocked; 443 passes most
    /// firewalls [default: not offered].
    #[arg(long, value_name = "ADDR:PORT")]
    tcp_listen: Option<Listen>,
    /// Serve metrics for Prometheus here, on loopback or an address of this node
    /// in the mesh, such as 127.0.0.1:9586 [default: not served].
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<MetricsListen>,
    /// Interface to create [default: warren0].
    #[arg(long, value_name = "NAME")]
    interface: Option<InterfaceName>,
    /// The network's cipher suite, when it is created: aes256gcm (default) or chacha20poly1305.
    #[arg(long)]
    suite: Option<Suite>,
    /// Where others reach this node; can be repeated [default: its own addresses].
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Vec<Endpoint>,
    #[command(flatten)]
    roles: roles::RoleFlags,
    /// Pairs of data-path threads, 1 to 64 [default: by the number of cores].
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Do not serve names of members (NODE.NETWORK.warren) as DNS.
    #[arg(long)]
    no_dns: bool,
    /// Neither look for members on the local network by mDNS nor be found there.
    #[arg(long)]
    no_lan_discovery: bool,
    /// Do not ask the router for a port.
    #[arg(long)]
    no_port_mapping: bool,
    /// Run without an interface and without privileges; programs use the mesh through
    /// --socks and --http.
    #[arg(long)]
    userspace: bool,
    /// Serve SOCKS5 here (with --userspace), such as 127.0.0.1:1080. Each user
    /// name given to it has a path out of the mesh of its own.
    #[arg(long, value_name = "ADDR:PORT")]
    socks: Option<SocketAddr>,
    /// Serve HTTP CONNECT here (with --userspace), such as 127.0.0.1:8080.
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,
    /// File whose first line is the password of both proxies.
    #[arg(long, value_name = "FILE")]
    proxy_password_file: Option<PathBuf>,
    /// Pass a port of this node's addresses to a local socket (with --userspace), such as
    /// tcp:80=127.0.0.1:8080; can be repeated.
    #[arg(long, value_name = "PROTOCOL:PORT=ADDR:PORT")]
    publish: Vec<Publish>,
    /// Form of log lines on standard error: text (default) or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Least important log lines to print: error, warn (default), info, debug, trace.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

impl Flags {
    fn load(self) -> Result<Config, Fault> {
        let overrides = Overrides {
            state_dir: self.state.state_dir,
            name: self.name,
            network: self.network,
            listen: self.listen,
            tcp_listen: self.tcp_listen,
            metrics: self.metrics,
            interface: self.interface,
            suite: self.suite,
            endpoints: self.endpoint,
            workers: self.workers,
            roles: self.roles.into(),
            no_dns: self.no_dns,
            no_lan_discovery: self.no_lan_discovery,
            no_port_mapping: self.no_port_mapping,
            userspace: self.userspace,
            socks: self.socks,
            http: self.http,
            proxy_password_file: self.proxy_password_file,
            publish: self.publish,
            log_format: self.log_format,
            log_level: self.log_level,
        };
        Ok(Config::load(self.config.as_deref(), overrides)?)
    }
}

/// Flags of `up` and `join`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    flags: Flags,
    /// Return once the node serves; it goes on in the background and writes to
    /// daemon.log in its state directory.
    #[arg(long)]
    detach: bool,
}

/// Reads `15m`: a whole number and its unit, one second to 365 days.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a duration: use a number with s, m, h or d, such as 15m");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    let total = number.checked_mul(seconds).ok_or_else(bad)?;
    if (1..=365 * 86_400).contains(&total) {
        Ok(Duration::from_secs(total))
    } else {
        Err(format!("`{text}` is out of range: use 1s to 365d"))
    }
}

/// Runs one command to its end.
pub(crate) fn run(cli: Cli) -> Result<(), Fault> {
    match cli.command {
        Command::Up(run) => daemon::up(run),
        Command::Join { code, run } => daemon::join(code, run),
        Command::Invite { expires, uses, qr, state } => {
            wait(network::invite(&state, expires, uses, qr))
        }
        Command::Down(state) => wait(network::down(&state)),
        Command::Leave { force, state } => wait(network::leave(&state, force)),
        Command::Ca(command) => wait(ca::run(command)),
        Command::Rotate { what, state } => wait(ca::rotate(&state, what)),
        Command::Status { json, state } => wait(status::show(&state, json)),
        Command::Top(command) => wait(top::show(&command)),
        Command::Events { follow, json, notify, state } => {
            wait(events::show(&state, follow, json, notify))
        }
        Command::Connect(command) => wait(onion::connect(*command)),
        Command::Profile(command) => wait(onion::profile(command)),
        Command::Disconnect(state) => wait(onion::disconnect(&state)),
        Command::Path(command) => wait(path::run(command)),
        Command::Route(command) => wait(route::run(command)),
        Command::Roles(command) => wait(roles::run(command)),
        Command::Drain(drain) => wait(roles::drain(drain)),
        Command::Wg(command) => wait(clients::run(command)),
        Command::KillSwitch(command) => wait(kill_switch::run(command)),
        Command::HostHelper(state) => kill_switch::help_daemon(&state),
        Command::Revoke { name, state } => wait(network::revoke(&state, &name)),
        Command::Key(state) => wait(keys::show(&state)),
        Command::Psk(command) => keys::psk(&command),
        Command::Config(ConfigCommand::Show { effective, flags }) => {
            let config = flags.load()?;
            let cores = cores();
            out(&if effective { config.render_effective(cores) } else { config.render_set(cores) })
        }
        Command::ServiceUnit(unit) => out(&unit.render()?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "warren", &mut script);
            out(&String::from_utf8_lossy(&script))
        }
        Command::Demo(args) => demo::run(args),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Runs a future of the local API on this thread.
fn wait<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    runtime()?.block_on(work)
}

fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fault::internal(&e))
}

/// Prints to standard output. A reader that went away (`warren … | head`) ends
/// the output quietly; a full disk does not.
fn out(text: &str) -> Result<(), Fault> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Fault::new(FaultKind::Internal, format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_documentation_parse() {
        for line in [
            "up",
            "up --state-dir /tmp/a --name gpu-1 --listen 0.0.0.0:7000 --interface wr0 --detach",
            "up --suite chacha20poly1305 --network lab --config w.toml --log-format json",
            "up --no-dns --no-lan-discovery --no-port-mapping",
            "up --endpoint vpn.example.org:9277 --endpoint 192.0.2.1:9277 --workers 2",
            "join warren1abc --name gpu-2",
            "up --userspace --socks 127.0.0.1:1080 --http 127.0.0.1:8080",
            "up --userspace --socks 0.0.0.0:1080 --proxy-password-file p",
            "up --userspace --publish tcp:80=127.0.0.1:8080 --publish udp:53=[::1]:5353",
            "invite --expires 1h --uses 3 --qr",
            "status --json",
            "top --interval 0.5s",
            "events --follow --json",
            "path explain gpu-2 --json",
            "route advertise 192.168.7.0/24 fd77::/48",
            "route withdraw 192.168.7.0/24",
            "route withdraw --all",
            "route approve gpu-2 192.168.7.0/24",
            "route deny gpu-2 192.168.7.0/24",
            "route list --json",
            "up --roles entry,relay,exit --region de --city fra --bandwidth 500mbit",
            "join warren1abc --roles exit --region nl --exit-policy exit.rules --family example.org",
            "roles show --json",
            "roles set --roles relay --bandwidth none",
            "roles set --roles none",
            "drain",
            "drain --off",
            "wg add-client phone --endpoint vpn.example.org:9277",
            "wg list",
            "wg remove phone",
            "kill-switch on --lan --interface warren0",
            "kill-switch off",
            "kill-switch status --json",
            "host-helper --state-dir /tmp/a",
            "revoke gpu-2",
            "key",
            "psk generate --out net.psk",
            "config show --effective --config w.toml",
            "service-unit",
            "completions bash",
            "leave --state-dir /tmp/a",
            "leave --force",
            "ca list",
            "ca delegate b",
            "ca undelegate b",
            "ca rotate --overlap 2d",
            "ca export root.pem --remove --passphrase-file p",
            "ca import root.pem",
            "rotate node-key",
            "rotate link-key",
            "rotate session-keys",
            "rotate certificate",
            "down",
            "demo",
        ] {
            let words = std::iter::once("warren").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    /// The operations manual names every command and flag there is.
    #[test]
    fn the_manual_is_complete() {
        let manual = include_str!("../../../../docs/operations.md");
        let mut todo = vec![("warren".to_owned(), Cli::command())];
        while let Some((path, command)) = todo.pop() {
            for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
                todo.push((format!("{path} {}", sub.get_name()), sub.clone()));
            }
            if command.get_subcommands().next().is_none() {
                assert!(manual.contains(&format!("`{path}")), "no {path}");
            }
            for long in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(manual.contains(&format!("--{long}")), "no --{long} ({path})");
            }
        }
        for kind in FaultKind::ALL {
            assert!(manual.contains(&format!("\n| {} | ", kind.exit_code())), "{kind:?}");
        }
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_allowed() {
        for (line, words) in [
            ("up --name a_b", "letters, digits and hyphens"),
            ("up --suite rot13", "aes256gcm or chacha20poly1305"),
            ("up --listen nowhere", "ADDR:PORT"),
            ("up --interface a/b", "1 to 15"),
            ("up --roles guard", "entry, relay and exit"),
            ("up --region zz", "known are ad ae"),
            ("up --region Germany", "did you mean `de`"),
            ("up --bandwidth 5", "500mbit"),
            ("roles set", "--roles"),
            ("roles set --region zz", "known are"),
            ("invite --expires 15", "s, m, h or d"),
            ("invite --expires 0s", "1s to 365d"),
            ("invite --uses 0", "1..=10000"),
        ] {
            let error = Cli::try_parse_from(std::iter::once("warren").chain(line.split(' ')));
            let text = error.unwrap_err().to_string();
            assert!(text.contains(words), "{line}: {text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "m", "-1s", "1.5h", "1w", "99999999999999999999d", "400d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        for kind in FaultKind::ALL {
            assert!(EXIT_CODES.contains(&format!(" {} ", kind.exit_code())), "{kind:?}");
        }
    }
}

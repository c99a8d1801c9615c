//! `warren demo`: twelve real daemons in twelve regions of an emulated WAN on
//! this machine, joined by their codes, with real traffic between them, and an
//! onion-routed path through three of them that outlives one of its relays.
//!
//! In: a terminal or none. Out: with a terminal a live picture until the user
//! ends it; without one, lines that say what is shown, each checked, and exit
//! status 0 when everything held or 1.
//!
//! Invariants: works as root and, where user namespaces are allowed, without;
//! touches nothing outside of its own namespaces; nothing is left behind,
//! however it ends: children die with the thread that started them, namespaces
//! and interfaces with their last holder, and the daemons' state lies in a
//! file system of its own that ends with the process.
//!
//! - [`cast`]: who takes part. [`stage`]: namespaces, WAN, daemons. [`story`]: what is shown
//!   and checked; [`onion`]: the part about paths; [`encore`]: what follows.
//! - [`traffic`]: pings, a download, streams. [`watcher`]: asks the daemons.
//! - [`scene`]: what is known. [`picture`], [`canvas`], [`map`], [`labels`]:
//!   how it looks.
//! - [`screen`]: the terminal.

mod canvas;
mod cast;
mod encore;
mod labels;
mod map;
mod onion;
mod picture;
mod scene;
mod screen;
mod stage;
mod story;
mod traffic;
mod watcher;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use warren_lab::topology::{Privilege, find_privilege};
use warren_node::fault::{Fault, FaultKind};
use warren_os::process::{catch_interrupts, terminal_size};

use scene::{Narrator, Scene};
use screen::Screen;
use stage::Stage;

/// What `warren demo --help` says.
pub(crate) const ABOUT: &str = "\
Shows Warren at work on this machine.\n\n\
Makes thirteen network namespaces, joins them by an emulated WAN with the delays of \
real regions (US, Canada, UK, Germany, Netherlands, France, Singapore, Japan, Hong \
Kong, Australia, Brazil), starts a real daemon in twelve of them (`warren up`, then \
`warren join` with the codes these print), and sends real traffic through the mesh: \
pings between all pairs over IPv4 and IPv6, a file over HTTP whose SHA-256 is verified \
while an eavesdropper on the wire looks for its text, and an encrypted TCP stream \
measured in Gb/s.

Then one of them, a user's laptop, runs `warren connect --exit de --kill-switch` and \
downloads a file from a server outside of the network through three others. The server \
sees the exit's address. In the middle of the download the relay is killed with kill \
-9; the download goes on over another path in the same connection, and its SHA-256 \
must match. The hops sign that they carry the path, and another machine checks that. \
Last, the founder of the network is killed, and the rest goes on and admits a newcomer.

With a terminal of at least 80x24 it shows a live picture until `q` or Ctrl-C. \
Without one, or with --plain, it prints a line for everything it shows and checks, \
and ends by itself in about a minute.

No root is needed where the system allows user namespaces and /dev/net/tun is open \
to all (the default of most distributions). Nothing outside of the demonstration's \
own namespaces is touched, and nothing is left behind. Onion paths need the program \
nft (package nftables); without it they are SKIPPED, and the rest is shown.

Exit status: 0 when everything shown held, 1 otherwise.";

/// Arguments of `warren demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Tell lines and end by itself even with a terminal.
    #[arg(long)]
    plain: bool,
    /// End the live picture after this many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Seed of the WAN's jitter.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Runs the demonstration to its end.
pub(crate) fn run(args: Args) -> Result<(), Fault> {
    match perform(&args) {
        Ok(code) if code == ExitCode::SUCCESS => Ok(()),
        // What went wrong has been told.
        Ok(_) => std::process::exit(1),
        Err(error) => Err(Fault::new(FaultKind::Internal, format!("{error:#}"))),
    }
}

fn perform(args: &Args) -> Result<ExitCode> {
    check_tun_device()?;
    if let Privilege::Delegated(code) = find_privilege()? {
        return Ok(code);
    }
    let quit = catch_interrupts()?;
    // Before any thread: mounts are private to the thread that made them and
    // those it starts.
    let state = stage::StateRoot::create()?;
    let live = !args.plain && is_capable_terminal();
    let narrator = Narrator::new(Scene::new(&cast::CAST, story::CLAIMS), !live);
    let screen = if live { Some(Screen::open(narrator.clone(), quit)?) } else { None };
    let janitor = Janitor::hire(quit, state.clone(), screen.clone(), narrator.clone());
    let outcome = (|| {
        let mut stage = Stage::build(args.seed, &state)?;
        let patience = live.then(|| args.seconds.map_or(Duration::MAX, Duration::from_secs));
        story::tell(&mut stage, &narrator, quit, patience)
    })();
    if let Some(screen) = &screen {
        screen.close();
    }
    let gone = state.remove();
    janitor.dismiss();
    let told = outcome?;
    gone.context("cannot remove the daemons' state")?;
    scene::print_line(&told.to_string());
    Ok(if told.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The picture needs a terminal that moves its cursor, 80 by 24.
fn is_capable_terminal() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if dumb || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return false;
    }
    let (columns, rows) = terminal_size().unwrap_or((0, 0));
    let fits = usize::from(columns) >= picture::COLUMNS && usize::from(rows) >= picture::ROWS;
    if !fits {
        let note = "(the picture needs a terminal of 80x24; this one has";
        scene::print_line(&format!("{note} {columns}x{rows})"));
    }
    fits
}

/// Says what to do about a TUN device that is missing or closed to us before
/// anything is made.
fn check_tun_device() -> Result<()> {
    let path = "/dev/net/tun";
    match std::fs::File::options().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            std::io::ErrorKind::PermissionDenied => anyhow!(
                "no permission to open {path}: run `sudo chmod 666 {path}` (it only opens the \
                 device; creating interfaces still takes privilege), or run the demo as root"
            ),
            _ => anyhow!(
                "cannot open {path} ({error}): load the driver (`sudo modprobe tun`), or pass the \
                 device into the container (`--device {path}`)"
            ),
        }),
    }
}

/// Ends the process when it was asked to end and does not within two seconds,
/// because some step has more patience than the user.
struct Janitor {
    done: std::sync::Arc<AtomicBool>,
}

impl Janitor {
    fn hire(
        quit: &'static AtomicBool,
        state: stage::StateRoot,
        screen: Option<Screen>,
        narrator: Narrator,
    ) -> Self {
        let done = std::sync::Arc::new(AtomicBool::new(false));
        let finished = done.clone();
        std::thread::spawn(move || {
            let pause = Duration::from_millis(50);
            let mut grace = 40;
            while !finished.load(Ordering::Relaxed) {
                std::thread::sleep(pause);
                if !quit.load(Ordering::Relaxed) {
                    continue;
                }
                grace -= 1;
                if grace == 0 {
                    if let Some(screen) = &screen {
                        screen.close();
                    }
                    let _ = state.remove();
                    scene::print_line("Ended on request. Nothing is left behind.");
                    let failed = narrator.scene().any_failed() || screen.is_none();
                    std::process::exit(failed.into());
                }
            }
        });
        Self { done }
    }

    fn dismiss(&self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.dismiss();
    }
}

//! `warren top` in a pseudo-terminal (`script` of util-linux) at a real daemon.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::process::Node;
use warren_os::process::{Signal, signal};
use warren_types::Suite;

use crate::story::{Two, binary};

/// How long a change on the screen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// What switches a terminal to its second screen, and back.
const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";
/// What shows the cursor.
const CURSOR: &str = "\u{1b}[?25h";

/// A terminal of 80x24 in which a shell runs `warren top` and then says how the
/// terminal was left.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn open(node: &Node) -> Result<Self> {
        let spec = node.spec();
        let line = format!(
            "stty cols 80 rows 24; before=$(stty -g); {} top --interval 0.5s --state-dir {}; \
             echo code=$?; test \"$before\" = \"$(stty -g)\" && echo as-before",
            binary().display(),
            spec.state_dir.display()
        );
        let mut command = spec.host.command("script");
        command.args(["-qefc", &line, "/dev/null"]);
        command.env("TERM", "xterm").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("script (util-linux) cannot be started")?;
        let keys = child.stdin.take().context("no input")?;
        let mut output = child.stdout.take().context("no output")?;
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..n]);
            }
        });
        Ok(Self { child, keys, screen })
    }

    fn seen(&self) -> String {
        let bytes = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the screen shows it.
    fn wait_for(&self, what: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = picture(&self.seen());
            if shown.contains(what) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{what:?} is not drawn:\n{shown}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until all has ended; the terminal must be as it was.
    fn ended(mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen().contains("as-before") {
            ensure!(Instant::now() < deadline, "its modes were not put back: {:?}", self.seen());
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = self.child.wait()?;
        let seen = self.seen();
        ensure!(seen.contains("code=0"), "it failed: {seen:?}");
        ensure!(status.success() && status.signal().is_none(), "{status}");
        let left = seen.rfind(LEAVE).context("the second screen was not left")?;
        ensure!(seen.rfind(ENTER).is_some_and(|at| at < left), "{seen:?}");
        ensure!(seen.contains(CURSOR), "the cursor stays hidden: {seen:?}");
        Ok(())
    }
}

/// What a terminal shows that was sent this: as much of one as `warren top` uses.
fn picture(sent: &str) -> String {
    let mut cells = vec![vec![' '; 80]; 24];
    let (mut x, mut y) = (0, 0);
    let drawn = sent.rfind(ENTER).map_or("", |at| &sent[at + ENTER.len()..]);
    let mut rest = drawn.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => {
                // Only sequences of this form come: CSI, parameters, a letter.
                let sequence: String = rest.by_ref().take_while(|c| !c.is_alphabetic()).collect();
                let consumed = drawn.len() - rest.as_str().len();
                let letter = drawn[..consumed].chars().next_back();
                let mut numbers = sequence.trim_start_matches('[').split(';').map(str::parse);
                if letter == Some('H') {
                    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(1_usize) - 1;
                    (y, x) = (next(), next());
                } else if letter == Some('J') {
                    cells.iter_mut().for_each(|line| line.fill(' '));
                }
            }
            c if c.is_control() => {}
            c => {
                if let Some(cell) =
                    cells.get_mut(y).and_then(|line: &mut Vec<char>| line.get_mut(x))
                {
                    *cell = c;
                }
                x += 1;
            }
        }
    }
    cells.into_iter().map(|line| line.into_iter().collect::<String>() + "\n").collect()
}

/// The process of `warren top`, a child of a child of `script`.
fn find_top(node: &Node) -> Result<u32> {
    let wanted = node.spec().state_dir.to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        if words.get(1).is_some_and(|word| word == "top") && words.iter().any(|w| *w == wanted) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of warren top")
}

pub(crate) fn top_draws_and_puts_the_terminal_back() -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    let mut terminal = Terminal::open(&two.left)?;
    for what in ["left in warren, up", "not connected: ", "Peers: 1, by name"] {
        terminal.wait_for(what)?;
    }
    terminal.wait_for("right            direct")?;
    terminal.wait_for("Z right joined")?;
    // What happens is there within a second, without being asked for.
    two.left.warren(&["roles", "set", "--roles", "relay", "--region", "de"])?;
    let happened = Instant::now();
    terminal.wait_for("Z this node's roles in onion paths: relay")?;
    ensure!(happened.elapsed() < Duration::from_secs(1), "{:?}", happened.elapsed());
    terminal.keys.write_all(b"s")?;
    terminal.wait_for("Peers: 1, by RTT")?;
    terminal.keys.write_all(b"/zz")?;
    terminal.wait_for("no name has `zz` in it")?;
    terminal.keys.write_all(b"\r")?;
    terminal.wait_for("q quit  Tab pane")?;
    terminal.keys.write_all(b"q")?;
    terminal.ended().context("after q")?;

    // A signal, too, and a daemon that goes away meanwhile is waited for.
    let terminal = Terminal::open(&two.left)?;
    terminal.wait_for("Peers: 1")?;
    let top = find_top(&two.left)?;
    let spec = two.left.crash()?;
    terminal.wait_for(", STALE")?;
    let _left = spec.launch()?;
    terminal.wait_for(", live ")?;
    signal(top, Signal::Terminate)?;
    terminal.ended().context("after SIGTERM")
}

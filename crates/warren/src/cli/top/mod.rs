//! `warren top`: the node, its onion path, its peers and what happens, live.
//!
//! In: answers and events of the daemon over the local API, keys. Out: frames
//! on the terminal. This file is the shell around the pure parts (`model`,
//! `keys`, `view`): it owns the terminal, the clock and the loop.
//! Invariants: the terminal is put back however the program ends (a key, an
//! error, a panic, SIGTERM, SIGHUP, SIGINT); a daemon that is gone is waited
//! for. Deliberately not here: changes of anything; this only looks.

#[cfg(test)]
mod examples;
mod feed;
mod keys;
mod look;
mod model;
mod view;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::Event as Input;
use ratatui::crossterm::terminal::is_raw_mode_enabled;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use warren_node::fault::{Fault, FaultKind};

use self::feed::News;
use self::look::Look;
use self::model::{Model, Snapshot};
use super::State;

/// News that wait to be shown; who brings more waits.
const WAITING: usize = 256;
/// How often the screen is drawn when nothing comes: ages grow.
const TICK: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Top {
    /// How often to ask the daemon: seconds, 0.5s to 60s.
    #[arg(long, default_value = "1s", value_parser = interval, value_name = "SECONDS")]
    interval: Duration,
    #[command(flatten)]
    state: State,
}

/// Reads `0.5s` or `2`: seconds, half a one to sixty.
fn interval(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(seconds) if (0.5..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("`{text}` is no interval: use 0.5s to 60s")),
    }
}

/// The terminal while it is ours.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Self, Fault> {
        // Has a panic put the terminal back before it prints its message.
        ratatui::try_init().map(Self).map_err(|error| unusable(&error))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Where the terminal is gone, there is nobody to tell.
        let _ = self.0.show_cursor();
        // After a panic it is done, and once more would move the cursor back
        // over the message.
        if is_raw_mode_enabled().unwrap_or(true) {
            let _ = ratatui::try_restore();
        }
    }
}

fn unusable(error: &io::Error) -> Fault {
    Fault::new(FaultKind::Resource, format!("cannot draw on this terminal: {error}"))
        .remedy("`warren status` and `warren events --follow` need none")
}

fn broke(ended: &Result<(), tokio::task::JoinError>) -> Fault {
    let why = ended.as_ref().err().map_or_else(String::new, |error| format!(": {error}"));
    Fault::new(FaultKind::Internal, format!("the daemon is not asked any more{why}"))
}

/// Says why nothing can be drawn here, if so.
fn check_terminal() -> Result<(), Fault> {
    if !io::stdout().is_terminal() {
        return Err(Fault::new(FaultKind::Usage, "standard output is not a terminal").remedy(
            "`warren status --json` and `warren path show --json` tell programs the same, \
             `warren events --follow --json` what happens",
        ));
    }
    match std::env::var("TERM").as_deref() {
        Ok("dumb" | "") | Err(_) => Err(Fault::new(
            FaultKind::Usage,
            "this terminal cannot move its cursor (TERM is not set, or dumb)",
        )
        .remedy("set TERM, such as TERM=xterm, or use `warren status`")),
        Ok(_) => Ok(()),
    }
}

/// What asks this program to end from outside.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> Result<Self, Fault> {
        let on = |kind| signal(kind).map_err(|error| Fault::internal(&error));
        let kinds = (SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt());
        Ok(Self([on(kinds.0)?, on(kinds.1)?, on(kinds.2)?]))
    }

    async fn come(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// Shows it until a key or a signal ends it.
pub(super) async fn show(top: &Top) -> Result<(), Fault> {
    check_terminal()?;
    let look = Look::of(|name| std::env::var(name).ok());
    let mut ends = Ends::new()?;
    let (sender, mut news) = mpsc::channel(WAITING);
    let mut screen = Screen::open()?;
    let mut asking = tokio::spawn(feed::ask(top.state.client(), top.interval, sender.clone()));
    let mut listening = tokio::spawn(feed::listen(top.state.client(), sender.clone()));
    // Ends with the process: a read of the terminal cannot be called off.
    std::thread::spawn(move || feed::read_keys(&sender));

    let began = Instant::now();
    let mut model = Model::default();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = began.elapsed();
        screen
            .0
            .draw(|frame| view::draw(frame, &mut model, look, now))
            .map_err(|error| unusable(&error))?;
        let mut next = tokio::select! {
            one = news.recv() => one,
            _ = tick.tick() => None,
            () = ends.come() => return Ok(()),
            // They end before us only by a panic, which has left our screen.
            ended = &mut asking => return Err(broke(&ended)),
            ended = &mut listening => return Err(broke(&ended)),
        };
        // All that came meanwhile is one frame.
        while let Some(one) = next {
            if take(&mut model, one, began.elapsed())? {
                return Ok(());
            }
            next = news.try_recv().ok();
        }
    }
}

/// Applies one of the news; true when it ends the program.
fn take(model: &mut Model, news: News, now: Duration) -> Result<bool, Fault> {
    match news {
        News::Answer(answer) => {
            let (status, onion) = *answer;
            model.answered(Snapshot { status, onion, at: now });
        }
        News::NoAnswer(why) => model.failed(why, now),
        News::Happened(record) => model.happened(record),
        News::Input(Ok(Input::Key(key))) => return Ok(keys::press(model, key)),
        // A changed size is seen when the next frame is drawn.
        News::Input(Ok(_)) => {}
        News::Input(Err(error)) => return Err(unusable(&error)),
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_half_a_second_to_a_minute() {
        assert_eq!(interval("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("60"), Ok(Duration::from_secs(60)));
        for bad in ["0.4s", "61s", "-1s", "NaN", "inf", "1m", "", "s"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}

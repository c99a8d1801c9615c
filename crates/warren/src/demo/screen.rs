//! The terminal: shows the picture some times a second, listens for keys, and
//! leaves the terminal as it was, also after a panic.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use warren_os::process::terminal_size;
use warren_os::terminal::KeyInput;

use super::picture;
use super::scene::Narrator;

/// Time between two pictures.
const FRAME: Duration = Duration::from_millis(100);

/// Ctrl-C, as a key.
const CTRL_C: u8 = 3;

/// Other screen, no cursor, no wrapping; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The terminal while the picture is on it. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    keys: Arc<Mutex<Option<KeyInput>>>,
}

impl Screen {
    /// Takes the terminal over and shows the scene until closed. `q` and
    /// Ctrl-C set `quit`.
    pub(super) fn open(narrator: Narrator, quit: &'static AtomicBool) -> Result<Self> {
        let keys = KeyInput::take().context("cannot read keys from the terminal")?;
        let screen = Self { keys: Arc::new(Mutex::new(Some(keys))) };
        write(ENTER);
        let for_panics = screen.clone();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            for_panics.close();
            before(info);
        }));
        let drawing = screen.clone();
        std::thread::Builder::new()
            .name("picture".to_owned())
            .spawn(move || drawing.show(&narrator, quit))
            .context("cannot start a thread")?;
        Ok(screen)
    }

    fn show(&self, narrator: &Narrator, quit: &AtomicBool) {
        let mut size = None;
        loop {
            let scene = narrator.scene().clone();
            let now = terminal_size();
            let rows = now.map_or(picture::ROWS, |(_, rows)| usize::from(rows));
            let picture = picture::draw(&scene, scene.started.elapsed(), rows).to_ansi();
            {
                let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
                // Closed: nothing may be drawn any more.
                let Some(keys) = keys.as_ref() else { return };
                if size != now {
                    write("\x1b[2J");
                    size = now;
                }
                write(&picture);
                match keys.key(Duration::ZERO) {
                    Ok(Some(b'q' | b'Q' | CTRL_C)) | Err(_) => quit.store(true, Ordering::Relaxed),
                    Ok(_) => {}
                }
            }
            std::thread::sleep(FRAME);
        }
    }

    /// Gives the terminal back; a second call does nothing.
    pub(super) fn close(&self) {
        // A panic may come while the lock is held by the same thread; then the
        // keys stay as they are but the screen is given back.
        match self.keys.try_lock() {
            Ok(mut keys) => {
                if keys.take().is_some() {
                    write(LEAVE);
                }
            }
            Err(std::sync::TryLockError::Poisoned(keys)) => {
                if keys.into_inner().take().is_some() {
                    write(LEAVE);
                }
            }
            Err(std::sync::TryLockError::WouldBlock) => {
                // Drawing takes well below this long.
                std::thread::sleep(FRAME);
                if let Ok(mut keys) = self.keys.try_lock() {
                    keys.take();
                }
                write(LEAVE);
            }
        }
    }
}

/// A terminal that is gone shows nothing anyway.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

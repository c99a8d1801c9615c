//! The terminal on standard input and output: single keys without Enter and
//! without echo, given back as it was found.
//!
//! Deliberately not here: what is drawn.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use crate::wait::{Ready, Waker, wait_readable_for};

/// Keys arrive one by one while this lives; Ctrl-C is a key too, signals from
/// the keyboard are off. Dropping it restores the terminal.
pub struct KeyInput {
    before: libc::termios,
    idle: Waker,
}

impl std::fmt::Debug for KeyInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyInput")
    }
}

impl KeyInput {
    /// Takes over the terminal on standard input.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub fn take() -> io::Result<Self> {
        let input = io::stdin().as_raw_fd();
        // SAFETY: termios is plain integers, all zero is valid.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: tcgetattr writes one termios, which outlives the call.
        if unsafe { libc::tcgetattr(input, &raw mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut keys = before;
        keys.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
        keys.c_cc[libc::VMIN] = 0;
        keys.c_cc[libc::VTIME] = 0;
        // SAFETY: tcsetattr reads one termios, which outlives the call.
        if unsafe { libc::tcsetattr(input, libc::TCSANOW, &raw const keys) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { before, idle: Waker::new()? })
    }

    /// A key, as the byte the terminal sent, if one comes in time.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn key(&self, patience: Duration) -> io::Result<Option<u8>> {
        let input = io::stdin();
        match wait_readable_for(&[input.as_fd()], &self.idle, Some(patience))? {
            Some(Ready::Readable(_)) => {}
            _ => return Ok(None),
        }
        let mut byte = 0u8;
        // SAFETY: read writes at most one byte to `byte`. Standard input's
        // own buffer is passed by, since it would hold keys back.
        match unsafe { libc::read(input.as_raw_fd(), (&raw mut byte).cast(), 1) } {
            1 => Ok(Some(byte)),
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for KeyInput {
    fn drop(&mut self) {
        // SAFETY: tcsetattr reads one termios, which outlives the call. A
        // terminal that is gone needs no restoring.
        unsafe {
            libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, &raw const self.before);
        }
    }
}

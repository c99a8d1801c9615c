//! Waiting for readiness, with a way to be woken: what a worker thread blocks
//! on. One [`Waker`] may wake any number of threads.
//!
//! Invariant: a wake is never lost; once woken, every later wait returns
//! [`Ready::Woken`] at once (it is used to stop threads, so it is not reset).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Wakes threads that wait with [`wait_readable`].
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// The descriptor has something to read, or an error to report; the bits
    /// are the positions in the list given.
    Readable(u32),
    /// The waker was used.
    Woken,
}

impl Waker {
    /// A waker that was not used yet.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nothing else owns it.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Wakes everyone who waits or will wait on this waker.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the pointer and length describe the live array `one`. A full
        // counter (EAGAIN) is as good as a wake.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// Waits until one of at most 7 descriptors is readable or `waker` was used.
///
/// # Errors
/// The kernel's; an interrupted wait is taken up again.
pub fn wait_readable(fds: &[BorrowedFd<'_>], waker: &Waker) -> io::Result<Ready> {
    loop {
        if let Some(ready) = wait_readable_for(fds, waker, None)? {
            return Ok(ready);
        }
    }
}

/// As [`wait_readable`], for at most `limit` if one is given: `None` when the
/// time was up first, or a signal came. The kernel may add its timer slack
/// (as a rule 50 us).
///
/// # Errors
/// The kernel's.
pub fn wait_readable_for(
    fds: &[BorrowedFd<'_>],
    waker: &Waker,
    limit: Option<Duration>,
) -> io::Result<Option<Ready>> {
    let entry = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut list = [entry(-1); 8];
    list[0] = entry(waker.0.as_raw_fd());
    for (slot, fd) in list[1..].iter_mut().zip(fds) {
        *slot = entry(fd.as_raw_fd());
    }
    let used = 1 + fds.len().min(7);
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the pointer and count describe the first `used` (at most 8)
    // elements of the live array `list`; `limit` is null or points to a live
    // timespec; a null signal mask leaves the mask alone.
    let n =
        unsafe { libc::ppoll(list.as_mut_ptr(), used as libc::nfds_t, limit, std::ptr::null()) };
    if n < 0 {
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted {
            return Ok(None);
        }
        return Err(error);
    }
    if list[0].revents != 0 {
        return Ok(Some(Ready::Woken));
    }
    let mut bits = 0;
    for (i, slot) in list[1..used].iter().enumerate() {
        if slot.revents != 0 {
            bits |= 1 << i;
        }
    }
    Ok((bits != 0).then_some(Ready::Readable(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_wake_ends_this_and_every_later_wait() {
        let waker = Waker::new().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let thread = {
            let waker = waker.clone();
            std::thread::spawn(move || {
                let first = wait_readable(&[reader.as_fd()], &waker).unwrap();
                (first, wait_readable(&[reader.as_fd()], &waker).unwrap())
            })
        };
        waker.wake();
        assert_eq!(thread.join().unwrap(), (Ready::Woken, Ready::Woken));
    }

    #[test]
    fn readable_descriptors_are_named() {
        use std::io::Write;
        let waker = Waker::new().unwrap();
        let (a, _wa) = std::io::pipe().unwrap();
        let (b, mut wb) = std::io::pipe().unwrap();
        wb.write_all(b"x").unwrap();
        assert_eq!(wait_readable(&[a.as_fd(), b.as_fd()], &waker).unwrap(), Ready::Readable(0b10));
    }

    #[test]
    fn a_limited_wait_ends_in_time() {
        let waker = Waker::new().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let limit = Duration::from_millis(20);
        let start = std::time::Instant::now();
        assert_eq!(wait_readable_for(&[reader.as_fd()], &waker, Some(limit)).unwrap(), None);
        assert!(start.elapsed() >= limit);
        waker.wake();
        assert_eq!(
            wait_readable_for(&[reader.as_fd()], &waker, Some(limit)).unwrap(),
            Some(Ready::Woken)
        );
    }
}

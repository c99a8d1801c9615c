//! Processes: detaching a daemon, tying children to their parent, signals,
//! liveness, and what `/proc` says of a process's cost.
//!
//! Deliberately not here: supervision policy (when to restart what).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

/// Number of threads of this process; 1 when the kernel does not tell.
#[must_use]
pub fn thread_count() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Which side of [`detach`] the caller is on.
pub enum Detached {
    /// The process the user started: wait for the daemon, then exit.
    Parent(Readiness),
    /// The daemon: set up, then report.
    Daemon(ReadinessReport),
}

/// Forks the daemon off. It starts its own session but keeps the terminal's
/// output until it reports readiness, so its progress and errors are seen.
///
/// # Errors
/// Fails when this process has more than one thread: a fork would copy the
/// locks the other threads hold, but not the threads.
pub fn detach() -> io::Result<Detached> {
    if thread_count() != 1 {
        return Err(io::Error::other("detaching must happen before any thread starts"));
    }
    let (reader, writer) = io::pipe()?;
    // SAFETY: the process has one thread (checked above), so the child sees
    // consistent memory and may go on as an ordinary process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            // SAFETY: setsid takes no arguments; failure (already a leader)
            // is impossible in a fresh child and harmless.
            unsafe { libc::setsid() };
            Ok(Detached::Daemon(ReadinessReport { pipe: File::from(OwnedFd::from(writer)) }))
        }
        pid => Ok(Detached::Parent(Readiness {
            pid: pid.unsigned_abs(),
            pipe: File::from(OwnedFd::from(reader)),
        })),
    }
}

/// The waiting end.
pub struct Readiness {
    /// Process id of the daemon.
    pub pid: u32,
    pipe: File,
}

impl Readiness {
    /// Waits until the daemon is ready.
    ///
    /// # Errors
    /// The daemon's exit code, when it ended first; it has printed why. A
    /// daemon ended by a signal counts as exit code 1.
    pub fn wait(mut self) -> Result<(), u8> {
        let mut byte = [0];
        if matches!(self.pipe.read(&mut byte), Ok(1)) {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).map_err(|_| 1)?;
        let mut status = 0;
        // SAFETY: `pid` is our own child, which nothing else waits for, and
        // `status` is a live integer. The pipe is closed, so it is ending.
        let ended = unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid;
        match ended && libc::WIFEXITED(status) {
            true => Err(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(1).max(1)),
            false => Err(1),
        }
    }
}

/// The reporting end; dropping it unreported tells the parent of failure.
pub struct ReadinessReport {
    pipe: File,
}

impl ReadinessReport {
    /// Lets go of the terminal (output goes to `log` from here on, or
    /// nowhere) and tells the parent that the daemon serves.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub fn ready(mut self, log: Option<&Path>) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let output = match log {
            Some(path) => OpenOptions::new().create(true).append(true).open(path)?,
            None => null.try_clone()?,
        };
        for (from, to) in [(&null, 0), (&output, 1), (&output, 2)] {
            // SAFETY: both descriptors are open; dup2 onto a standard stream
            // replaces it at once, and nothing here owns 0, 1 or 2.
            if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        self.pipe.write_all(b"R")
    }
}

/// Kills the child when the thread that spawned it ends: spawn from a thread
/// that lives as long as the child should (as a rule the main thread).
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: runs between fork and exec; prctl and getppid are
    // async-signal-safe and nothing allocates.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have gone before the line above.
            if libc::getppid().unsigned_abs() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// A signal to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ask to end (SIGTERM).
    Terminate,
    /// Ask to end as Ctrl-C does (SIGINT).
    Interrupt,
    /// End at once (SIGKILL).
    Kill,
}

/// Sends a signal to one process.
///
/// # Errors
/// When it is gone or not ours.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let number = match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Interrupt => libc::SIGINT,
        Signal::Kill => libc::SIGKILL,
    };
    kill(pid, number)
}

/// True while a process with this id exists.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    match kill(pid, 0) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() == Some(libc::EPERM),
    }
}

fn kill(pid: u32, number: i32) -> io::Result<()> {
    // 0 and negative ids address groups, which nobody here means.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let Some(pid) = pid else {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    };
    // SAFETY: kill takes two integers.
    match unsafe { libc::kill(pid, number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on Ctrl-C, SIGTERM and SIGHUP only set the returned flag, so the
/// caller's loop can end in order. For programs without an async runtime.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn catch_interrupts() -> io::Result<&'static AtomicBool> {
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: an all-zero sigaction is a valid value (empty mask, no flags).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = note_interrupt as extern "C" fn(i32) as usize;
        // SAFETY: the handler only stores to an atomic, which is
        // async-signal-safe; `action` outlives the call.
        if unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(&INTERRUPTED)
}

/// What a process has cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessCost {
    /// User and system time of all its threads, those that ended included.
    pub cpu: Duration,
    /// Memory resident now, bytes.
    pub resident: u64,
}

/// Raises this process's limit of open descriptors as far as it may go by
/// itself; returns it.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit, which the call fills in.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 0;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: the pointer is to a live rlimit, which the call only reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    limit.rlim_cur
}

/// Reads the cost of a process.
///
/// # Errors
/// When it is gone.
pub fn cost(pid: u32) -> io::Result<ProcessCost> {
    static TICKS: AtomicI32 = AtomicI32::new(0);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut per_second = TICKS.load(Ordering::Relaxed);
    if per_second == 0 {
        // SAFETY: sysconf takes an integer and returns one.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        per_second = i32::try_from(ticks).unwrap_or(100).max(1);
        TICKS.store(per_second, Ordering::Relaxed);
    }
    parse_cost(&stat, &status, f64::from(per_second))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc format"))
}

/// Fields 14 and 15 of proc_pid_stat(5), counted after the command name, which
/// may itself hold spaces and parentheses; `VmRSS` of proc_pid_status(5) in kB
/// (absent for zombies).
fn parse_cost(stat: &str, status: &str, ticks_per_second: f64) -> Option<ProcessCost> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .map_or(Some(0), |number| number.parse::<u64>().ok())?;
    Some(ProcessCost {
        cpu: Duration::from_secs_f64((f64::from(user) + f64::from(system)) / ticks_per_second),
        resident: resident * 1024,
    })
}

/// Columns and rows of the terminal on standard output, if there is one.
#[must_use]
pub fn terminal_size() -> Option<(u16, u16)> {
    // SAFETY: winsize is plain integers, all zero is valid.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    let result = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Takes ownership of the read end of a descriptor handed over by a parent.
///
/// # Errors
/// When the number is no open descriptor.
pub fn inherited_file(descriptor: i32) -> io::Result<File> {
    // SAFETY: F_GETFD only reads flags and fails for closed numbers.
    if descriptor < 3 || unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open, and by the function's contract nothing
    // else in this process owns it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_limit_is_raised_once() {
        let raised = raise_descriptor_limit();
        assert!(raised > 0);
        assert_eq!(raise_descriptor_limit(), raised);
    }

    #[test]
    fn children_are_seen_alive_and_dead() {
        let mut command = Command::new("sleep");
        let mut child = die_with_parent(command.arg("60")).spawn().unwrap();
        assert!(is_alive(child.id()));
        assert!(cost(child.id()).unwrap().resident > 0);
        signal(child.id(), Signal::Kill).unwrap();
        child.wait().unwrap();
        assert!(!is_alive(child.id()));
        assert!(!is_alive(0), "process groups are not processes");
    }

    #[test]
    fn a_child_ends_with_the_thread_that_made_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            die_with_parent(command.arg("60")).spawn().unwrap()
        })
        .join()
        .unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn cost_survives_odd_command_names() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0";
        let cost = parse_cost(stat, "Name:\tx\nVmRSS:\t  2048 kB\n", 100.0).unwrap();
        assert_eq!(cost.cpu, Duration::from_secs(2));
        assert_eq!(cost.resident, 2 << 20);
        assert!(parse_cost("7 (x", "", 100.0).is_none());
    }

    #[test]
    fn a_threaded_process_does_not_fork() {
        let error =
            std::thread::spawn(|| detach().err().map(|error| error.to_string())).join().unwrap();
        assert!(error.unwrap().contains("before any thread"));
    }
}

//! A packet queue without a kernel interface: what a worker reads and writes in
//! place of a TUN queue where a TCP/IP stack in this process takes the frames.
//!
//! Frames are those of a TUN queue (a `virtio_net_hdr`, then one packet or
//! super-packet). One [`StackEnd`] serves any number of worker queues, its
//! *lanes*.
//!
//! Invariants: both directions are bounded in bytes and frames; what a worker
//! writes to a full queue is refused, as a kernel drops what finds no room; the
//! stack asks for room first and is woken once there is some again. A worker
//! waits on a descriptor that is readable while there is something for it, so
//! its loop is the same as with a TUN; the stack is woken as a task. No frame is
//! lost or reordered within a lane. Not here: what is in the frames.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{TunOffloads, TunQueue};

/// Most bytes and frames that wait for the stack, per lane.
const TO_STACK: Limit = Limit { bytes: 8 << 20, frames: 8192 };
/// Likewise for the worker: less, since the stack's connections can wait, and
/// what waits here is delay for all of them.
const TO_WORKER: Limit = Limit { bytes: 1 << 20, frames: 1024 };

#[derive(Debug, Clone, Copy)]
struct Limit {
    bytes: usize,
    frames: usize,
}

/// Frames on their way in one direction.
#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The other side found no room and wants to know when there is.
    starved: bool,
}

impl Waiting {
    fn has_room(&self, limit: Limit) -> bool {
        self.bytes < limit.bytes && self.frames.len() < limit.frames
    }

    /// True when the queue was empty.
    fn push(&mut self, frame: Vec<u8>) -> bool {
        self.bytes += frame.len();
        self.frames.push_back(frame);
        self.frames.len() == 1
    }
}

/// A descriptor that is readable from [`Signal::raise`] to [`Signal::lower`].
#[derive(Debug)]
struct Signal(OwnedFd);

impl Signal {
    fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn raise(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the pointer and length describe the live array `one`. A full
        // counter (EAGAIN) is as good as a raise.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    fn lower(&self) {
        let mut count = [0u8; 8];
        // SAFETY: the pointer and length describe the live array `count`. EAGAIN
        // means it was lowered already.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// Wakes the stack's task.
#[derive(Debug, Default)]
struct Bell {
    rung: AtomicBool,
    sleeper: Mutex<Option<Waker>>,
}

impl Bell {
    fn ring(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let sleeper = self.sleeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut sleeper = self.sleeper.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: whoever rings after this finds the waker.
        if self.rung.swap(false, Ordering::AcqRel) {
            *sleeper = None;
            return Poll::Ready(());
        }
        *sleeper = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[derive(Debug)]
struct Lane {
    to_stack: Mutex<Waiting>,
    to_worker: Mutex<Waiting>,
    worker_signal: Signal,
    stack_bell: Arc<Bell>,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The worker's side of a lane; behind a [`TunQueue`].
#[derive(Debug)]
pub(super) struct MemoryQueue(Arc<Lane>);

impl MemoryQueue {
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut waiting = lock(&self.0.to_worker);
        let Some(frame) = waiting.frames.pop_front() else {
            // Under the lock: a frame that comes now raises it again.
            self.0.worker_signal.lower();
            return Err(io::ErrorKind::WouldBlock.into());
        };
        waiting.bytes -= frame.len();
        let wake = waiting.starved && waiting.bytes <= TO_WORKER.bytes / 2;
        if wake {
            waiting.starved = false;
        }
        drop(waiting);
        if wake {
            self.0.stack_bell.ring();
        }
        let len = frame.len().min(buffer.len());
        buffer[..len].copy_from_slice(&frame[..len]);
        Ok(len)
    }

    pub(super) fn write(&self, frame: &[u8]) -> io::Result<()> {
        let mut waiting = lock(&self.0.to_stack);
        if !waiting.has_room(TO_STACK) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let first = waiting.push(frame.to_vec());
        drop(waiting);
        if first {
            self.0.stack_bell.ring();
        }
        Ok(())
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.worker_signal.0.as_fd()
    }
}

/// The stack's side of all lanes.
#[derive(Debug)]
pub struct StackEnd {
    lanes: Vec<Arc<Lane>>,
    bell: Arc<Bell>,
}

/// Makes `lanes` queues for workers, and the other end of them. The offloads are
/// all that frames can express: both ends are ours.
///
/// # Errors
/// When the process has no descriptors left.
pub fn pair(lanes: usize) -> io::Result<(Vec<TunQueue>, StackEnd)> {
    let bell = Arc::<Bell>::default();
    let mut all = Vec::new();
    for _ in 0..lanes.max(1) {
        all.push(Arc::new(Lane {
            to_stack: Mutex::default(),
            to_worker: Mutex::default(),
            worker_signal: Signal::new()?,
            stack_bell: bell.clone(),
        }));
    }
    let queues = all.iter().map(|lane| TunQueue::memory(MemoryQueue(lane.clone()))).collect();
    Ok((queues, StackEnd { lanes: all, bell }))
}

/// What the frames of a memory queue may use. UDP super-packets are left out:
/// the stack takes datagrams one by one.
pub const OFFLOADS: TunOffloads =
    TunOffloads { vnet_hdr: true, checksum: true, tso: true, uso: false };

impl StackEnd {
    /// Ready when frames came, or when there is room again after
    /// [`StackEnd::has_room`] said there is none; once for each time. For one
    /// task.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.bell.poll(cx)
    }

    /// Takes all frames that wait.
    pub fn receive(&self, into: &mut Vec<Vec<u8>>) {
        for lane in &self.lanes {
            let mut waiting = lock(&lane.to_stack);
            waiting.bytes = 0;
            into.extend(waiting.frames.drain(..));
        }
    }

    /// True when lane `hash` (modulo their number) takes another frame. After
    /// `false`, [`StackEnd::poll_ready`] tells when it does.
    pub fn has_room(&self, hash: usize) -> bool {
        let mut waiting = lock(&self.lanes[hash % self.lanes.len()].to_worker);
        let room = waiting.has_room(TO_WORKER);
        waiting.starved |= !room;
        room
    }

    /// Hands a frame to the worker of lane `hash` (modulo their number), also
    /// when it has no room: whoever sends more than a frame asks first.
    pub fn send(&self, hash: usize, frame: Vec<u8>) {
        let lane = &self.lanes[hash % self.lanes.len()];
        let first = lock(&lane.to_worker).push(frame);
        if first {
            lane.worker_signal.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{self, Ready, wait_readable_for};
    use std::time::Duration;

    fn readable(fd: BorrowedFd<'_>) -> bool {
        let waker = wait::Waker::new().unwrap();
        let found = wait_readable_for(&[fd], &waker, Some(Duration::ZERO)).unwrap();
        found == Some(Ready::Readable(1))
    }

    fn rung(end: &StackEnd) -> bool {
        end.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn frames_pass_in_order_and_wake_each_side() {
        let (queues, end) = pair(2).unwrap();
        assert!(!readable(queues[0].as_fd()) && !rung(&end));
        for n in 0..3u8 {
            queues[1].write(&[n; 20]).unwrap();
        }
        assert!(rung(&end));
        let mut got = Vec::new();
        end.receive(&mut got);
        assert_eq!(got, [[0; 20], [1; 20], [2; 20]]);
        assert!(!rung(&end));

        end.send(3, vec![7; 30]);
        end.send(3, vec![8; 30]);
        assert!(readable(queues[1].as_fd()) && !readable(queues[0].as_fd()));
        let mut buffer = [0; 100];
        for n in [7, 8] {
            assert_eq!(queues[1].read(&mut buffer).unwrap(), 30);
            assert_eq!(buffer[..30], [n; 30]);
        }
        let empty = queues[1].read(&mut buffer).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        assert!(!readable(queues[1].as_fd()));
    }

    #[test]
    fn a_full_queue_refuses_and_tells_when_there_is_room() {
        let (queues, end) = pair(1).unwrap();
        let frame = vec![1; 64 << 10];
        let mut sent = 0;
        while end.has_room(0) {
            end.send(0, frame.clone());
            sent += 1;
        }
        assert_eq!(sent, TO_WORKER.bytes / frame.len());
        assert!(!rung(&end));
        let mut buffer = vec![0; 66 << 10];
        for _ in 0..sent {
            queues[0].read(&mut buffer).unwrap();
        }
        assert!(rung(&end) && end.has_room(0));

        let mut taken = 0;
        while queues[0].write(&frame).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, TO_STACK.bytes / frame.len());
        let mut got = Vec::new();
        end.receive(&mut got);
        assert_eq!(got.len(), taken);
        queues[0].write(&frame).unwrap();
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        const FRAMES: u32 = 20_000;
        let (mut queues, end) = pair(1).unwrap();
        let queue = queues.remove(0);
        let waker = wait::Waker::new().unwrap();
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let unpark = Arc::new(Unpark(std::thread::current())).into();
                for n in 0..FRAMES {
                    while !end.has_room(0) {
                        while end.poll_ready(&mut Context::from_waker(&unpark)).is_pending() {
                            std::thread::park();
                        }
                    }
                    end.send(0, n.to_ne_bytes().to_vec());
                }
            });
            let mut buffer = [0; 16];
            let mut next = 0;
            while next < FRAMES {
                match queue.read(&mut buffer) {
                    Ok(4) => {
                        assert_eq!(buffer[..4], next.to_ne_bytes());
                        next += 1;
                    }
                    Ok(n) => panic!("{n} bytes"),
                    Err(_) => {
                        let patience = Some(Duration::from_secs(5));
                        assert!(
                            wait_readable_for(&[queue.as_fd()], &waker, patience)
                                .unwrap()
                                .is_some()
                        );
                    }
                }
            }
        });
    }
}

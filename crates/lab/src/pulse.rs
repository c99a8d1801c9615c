//! A pulse: small UDP datagrams from one host to another and back at a steady
//! beat, each one accounted for, while a story unfolds.
//!
//! Shows what programs would see of a path: when the first answer came, how
//! long nothing came, how many were lost and when the round-trip time changed.
//! Invariants: never waits for an answer before the next beat; ends with its
//! handle. Deliberately not here: judging the figures.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::topology::Host;

/// How long threads sleep at most before they look whether to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// One datagram: when it was sent and when it was back, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// When it was sent.
    pub sent: Duration,
    /// When it was back, if it was.
    pub back: Option<Duration>,
}

/// All of them, in the order of sending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beats(pub Vec<Beat>);

impl Beats {
    /// When the first answer came.
    #[must_use]
    pub fn first(&self) -> Option<Duration> {
        self.0.iter().filter_map(|beat| beat.back).min()
    }

    /// The longest time without an answer that lies at least in part after
    /// `from` and before `until`.
    #[must_use]
    pub fn longest_silence(&self, from: Duration, until: Duration) -> Duration {
        let mut times: Vec<Duration> = self.0.iter().filter_map(|beat| beat.back).collect();
        times.sort_unstable();
        let before = times.iter().rev().find(|time| **time <= from).copied().unwrap_or(from);
        let within = times.iter().copied().filter(|time| *time > from && *time < until);
        let after = times.iter().find(|time| **time >= until).copied().unwrap_or(until);
        let marks: Vec<Duration> = [before].into_iter().chain(within).chain([after]).collect();
        marks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// How many of those sent in between did not come back, and how many were
    /// sent.
    #[must_use]
    pub fn lost(&self, from: Duration, until: Duration) -> (usize, usize) {
        let within = self.0.iter().filter(|beat| (from..until).contains(&beat.sent));
        let (mut lost, mut sent) = (0, 0);
        for beat in within {
            sent += 1;
            lost += usize::from(beat.back.is_none());
        }
        (lost, sent)
    }

    /// Median round-trip time of those sent in between.
    #[must_use]
    pub fn median_rtt(&self, from: Duration, until: Duration) -> Option<Duration> {
        self.rtt_quantile(0.5, from, until)
    }

    /// The round-trip time that this share (0 to below 1) of those sent in between
    /// did not exceed.
    #[must_use]
    pub fn rtt_quantile(&self, share: f64, from: Duration, until: Duration) -> Option<Duration> {
        let within = self.0.iter().filter(|beat| (from..until).contains(&beat.sent));
        let mut times: Vec<Duration> =
            within.filter_map(|beat| Some(beat.back?.saturating_sub(beat.sent))).collect();
        times.sort_unstable();
        times.get((times.len() as f64 * share) as usize).copied()
    }

    /// When an answer first took less than `rtt`.
    #[must_use]
    pub fn first_faster_than(&self, rtt: Duration) -> Option<Duration> {
        let fast = |beat: &Beat| beat.back.filter(|back| back.saturating_sub(beat.sent) < rtt);
        self.0.iter().filter_map(fast).min()
    }
}

/// A pulse in progress.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    stop: Arc<AtomicBool>,
    beats: Arc<Mutex<Vec<Beat>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pulse {
    /// Sends a datagram of `size` bytes (at least 4) every `interval` from one
    /// host to an address of another, which echoes it.
    ///
    /// # Errors
    /// When the sockets cannot be made.
    pub fn start(
        from: &Host,
        to: &Host,
        address: IpAddr,
        interval: Duration,
        size: usize,
    ) -> Result<Self> {
        let bind =
            |host: &Host, address: IpAddr| host.namespace().run(|| UdpSocket::bind((address, 0)));
        let server = bind(to, address)?.with_context(|| format!("no address {address} there"))?;
        let any: IpAddr = match address {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        let client = bind(from, any)?.context("cannot make a UDP socket")?;
        let target = server.local_addr()?;
        server.set_read_timeout(Some(GLANCE))?;
        client.set_read_timeout(Some(GLANCE))?;
        let listener = client.try_clone()?;
        let (stop, beats) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<Beat>>>::default());
        let start = Instant::now();
        let mut pulse = Self { start, stop: stop.clone(), beats: beats.clone(), threads: vec![] };
        let stopped = stop.clone();
        pulse.threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = server.recv_from(&mut buffer) {
                    // An answer the network refuses is one that is lost.
                    let _ = server.send_to(&buffer[..length], peer);
                }
            }
        }));
        let (stopped, recorded) = (stop.clone(), beats.clone());
        pulse.threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = listener.recv(&mut buffer) else { continue };
                let back = start.elapsed();
                let Some(number) = buffer[..length].first_chunk::<4>() else { continue };
                let number = u32::from_be_bytes(*number) as usize;
                let mut beats = recorded.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(beat) = beats.get_mut(number) {
                    beat.back.get_or_insert(back);
                }
            }
        }));
        pulse.threads.push(std::thread::spawn(move || {
            let mut datagram = vec![0x5a; size.clamp(4, 2048)];
            for i in 0u32.. {
                while !stop.load(Ordering::Relaxed) {
                    let left = (start + interval * i).saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    std::thread::sleep(left.min(GLANCE));
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                datagram[..4].copy_from_slice(&i.to_be_bytes());
                let beat = Beat { sent: start.elapsed(), back: None };
                beats.lock().unwrap_or_else(PoisonError::into_inner).push(beat);
                // Likewise.
                let _ = client.send_to(&datagram, target);
            }
        }));
        Ok(pulse)
    }

    /// Time since it started, the clock of its beats.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The beats until now.
    #[must_use]
    pub fn so_far(&self) -> Beats {
        Beats(self.beats.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Waits until an answer came.
    #[must_use]
    pub fn wait_first(&self, patience: Duration) -> Option<Duration> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(first) = self.so_far().first() {
                return Some(first);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing more to clean up.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Pair, Underlay};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn silences_losses_and_times_are_found() {
        let beat = |sent, back: Option<u64>| Beat { sent: ms(sent), back: back.map(ms) };
        let beats = Beats(vec![
            beat(0, None),
            beat(10, Some(110)),
            beat(20, Some(120)),
            beat(30, None),
            beat(500, Some(550)),
            beat(510, Some(560)),
        ]);
        assert_eq!(beats.first(), Some(ms(110)));
        assert_eq!(beats.lost(ms(0), ms(1000)), (2, 6));
        assert_eq!(beats.lost(ms(10), ms(30)), (0, 2));
        assert_eq!(beats.median_rtt(ms(10), ms(30)), Some(ms(100)));
        assert_eq!(beats.first_faster_than(ms(60)), Some(ms(550)));
        assert_eq!(beats.longest_silence(ms(115), ms(600)), ms(430));
        assert_eq!(beats.longest_silence(ms(555), ms(600)), ms(40));
        assert_eq!(beats.longest_silence(ms(600), ms(900)), ms(340));
        assert_eq!(beats.longest_silence(ms(0), ms(50)), ms(110));
    }

    #[test]
    fn a_pulse_beats_and_ends() {
        if !warren_os::netns::is_privileged() {
            eprintln!("SKIPPED: no privilege for network namespaces");
            return;
        }
        let pair = Pair::create(1500, Underlay::Direct).unwrap();
        let pulse = Pulse::start(&pair.left, &pair.right, Pair::RIGHT, ms(5), 64).unwrap();
        assert!(pulse.wait_first(Duration::from_secs(5)).is_some());
        std::thread::sleep(ms(200));
        let beats = pulse.so_far();
        drop(pulse);
        assert!(beats.0.len() > 10);
        let (lost, sent) = beats.lost(ms(0), ms(100));
        assert!(sent > 5 && lost == 0, "{lost} of {sent}");
    }
}

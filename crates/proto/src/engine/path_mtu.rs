//! Search for the largest inner packet a path carries, by padded echoes sent
//! with DF set (in the manner of RFC 8899). Sizes are inner bytes, times
//! milliseconds on the engine's clock.
//!
//! A search starts with a few likely sizes at once. When the largest is
//! answered, one round trip settles it; else the largest answered counts at
//! once and halving finds the rest. Losing a probe proves nothing, so each size
//! gets [`TRIES`] tries.
//!
//! Between searches, while packets flow, one full-size echo every 10 s (a
//! canary) notices a path that has begun to swallow large packets.

/// Inner size every path must carry: IPv6's minimum link of 1280 bytes minus
/// IPv6, UDP and link overhead. Nothing below is tried.
pub(super) const FLOOR: u32 = 1200;
/// Inner packets of this size must pass for IPv6 to work without outer
/// fragments.
const IPV6_MIN: u32 = 1280;
/// Tries of one size before it counts as too large.
const TRIES: u32 = 4;
/// The search ends when it knows the size to this many bytes.
const GRAIN: u32 = 8;
/// Between two searches.
const AGAIN_MS: u64 = 600_000;
/// When nothing at all came back.
const DEAD_AGAIN_MS: u64 = 10_000;
/// Between canaries while packets flow.
const CANARY_MS: u64 = 10_000;
/// Canaries lost in a row that start a search.
const CANARY_TRIES: u32 = 3;
/// After a search that ended below the wanted size, or in doubt: once, soon.
const CONFIRM_MS: u64 = 60_000;

#[derive(Debug)]
struct Probe {
    size: u32,
    tries: u32,
    next_ms: u64,
}

/// Path-MTU search of one link.
#[derive(Debug)]
pub(super) struct PathMtu {
    ceiling: u32,
    current: u32,
    /// Largest size answered in this search.
    good: u32,
    /// Smallest size that failed in this search.
    bad: u32,
    probes: Vec<Probe>,
    sent: Vec<(u32, u32)>,
    /// When the next search starts, while none runs.
    next_search_ms: u64,
    rechecked: bool,
    canary: Canary,
}

#[derive(Debug, Default)]
struct Canary {
    id: Option<u32>,
    lost: u32,
    next_ms: u64,
}

impl PathMtu {
    /// Starts at once; `current` is what is assumed until then, `ceiling` the
    /// largest size of interest (the interface's MTU).
    pub(super) fn new(current: u32, ceiling: u32, now_ms: u64) -> Self {
        let mut this = Self {
            ceiling: ceiling.max(FLOOR),
            current,
            good: 0,
            bad: 0,
            probes: Vec::new(),
            sent: Vec::new(),
            next_search_ms: now_ms,
            rechecked: false,
            canary: Canary::default(),
        };
        this.begin(now_ms);
        this
    }

    /// Starts a search: the path changed, or large packets seem to vanish.
    pub(super) fn begin(&mut self, now_ms: u64) {
        self.good = 0;
        self.bad = self.ceiling + 1;
        self.next_search_ms = u64::MAX;
        self.sent.clear();
        self.probes.clear();
        for size in [FLOOR, IPV6_MIN, self.current, self.ceiling] {
            if (FLOOR..=self.ceiling).contains(&size)
                && self.probes.iter().all(|probe| probe.size != size)
            {
                self.probes.push(Probe { size, tries: 0, next_ms: now_ms });
            }
        }
    }

    /// The size to probe now, if any; call again until `None`.
    pub(super) fn due(&mut self, now_ms: u64, gap_ms: u64) -> Option<u32> {
        if now_ms >= self.next_search_ms {
            self.begin(now_ms);
        }
        let probe = self.probes.iter_mut().find(|p| p.tries < TRIES && now_ms >= p.next_ms)?;
        probe.tries += 1;
        probe.next_ms = now_ms + gap_ms;
        Some(probe.size)
    }

    /// A probe of `size` went out as echo `id`.
    pub(super) fn sent(&mut self, id: u32, size: u32) {
        self.sent.push((id, size));
    }

    /// Call while packets flow and no search is under way; true when a canary
    /// is to be sent now (report it by [`Self::canary_sent`]).
    pub(super) fn canary_due(&mut self, now_ms: u64, gap_ms: u64) -> bool {
        if self.next_search_ms == u64::MAX || now_ms < self.canary.next_ms {
            return false;
        }
        if self.canary.id.take().is_some() {
            self.canary.lost += 1;
            if self.canary.lost >= CANARY_TRIES {
                self.begin(now_ms);
                return false;
            }
        }
        self.canary.next_ms = now_ms + gap_ms;
        true
    }

    /// The canary went out as echo `id`, of [`Self::current`] bytes.
    pub(super) fn canary_sent(&mut self, id: u32) {
        self.canary.id = Some(id);
    }

    /// When the next canary is due; never during a search.
    pub(super) fn canary_ms(&self) -> u64 {
        if self.next_search_ms == u64::MAX { u64::MAX } else { self.canary.next_ms }
    }

    /// The size taken to pass.
    pub(super) fn current(&self) -> u32 {
        self.current
    }

    /// An echo was answered at `now_ms`; true when it was one of ours.
    pub(super) fn answered(&mut self, id: u32, now_ms: u64) -> bool {
        if self.canary.id == Some(id) {
            self.canary = Canary { id: None, lost: 0, next_ms: now_ms + CANARY_MS };
            return true;
        }
        let Some((_, size)) = self.sent.iter().copied().find(|(sent, _)| *sent == id) else {
            return false;
        };
        self.good = self.good.max(size);
        let good = self.good;
        self.probes.retain(|probe| probe.size > good);
        self.sent.retain(|(_, size)| *size > good);
        true
    }

    /// Draws conclusions; the new path MTU when it changed.
    pub(super) fn conclude(&mut self, now_ms: u64) -> Option<u32> {
        if self.probes.is_empty() && self.good == 0 {
            return None;
        }
        let failed: Vec<u32> = self
            .probes
            .iter()
            .filter(|p| p.tries >= TRIES && now_ms >= p.next_ms)
            .map(|p| p.size)
            .collect();
        self.probes.retain(|p| !failed.contains(&p.size));
        if self.good == 0 && self.probes.is_empty() {
            // Not even the smallest came back: the path is dead or the peer
            // does not answer, which is not about size.
            self.finish(now_ms, DEAD_AGAIN_MS);
            return None;
        }
        self.bad = failed.into_iter().min().map_or(self.bad, |size| self.bad.min(size));
        let before = self.current;
        if self.good > self.current || (self.bad <= self.current && self.good > 0) {
            self.current = self.good;
        }
        if self.probes.is_empty() && self.good > 0 {
            if self.good + GRAIN >= self.bad || self.good == self.ceiling {
                let soon = self.good < self.ceiling && !self.rechecked;
                self.rechecked = soon;
                self.finish(now_ms, if soon { CONFIRM_MS } else { AGAIN_MS });
            } else {
                let size = (self.good + self.bad) / 2;
                self.probes.push(Probe { size, tries: 0, next_ms: now_ms });
            }
        }
        (self.current != before).then_some(self.current)
    }

    fn finish(&mut self, now_ms: u64, again_ms: u64) {
        self.canary = Canary { id: None, lost: 0, next_ms: now_ms + CANARY_MS };
        self.probes.clear();
        self.sent.clear();
        self.good = 0;
        self.next_search_ms = now_ms + again_ms;
    }

    /// True while a search is under way.
    #[cfg(test)]
    fn searching(&self) -> bool {
        !self.probes.is_empty()
    }

    /// When to call [`Self::due`] and [`Self::conclude`] next.
    pub(super) fn next_ms(&self) -> u64 {
        self.probes.iter().map(|p| p.next_ms).min().unwrap_or(self.next_search_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search over a path that carries `path` bytes and loses what
    /// `lose` says; gives (result, time taken, probes sent).
    fn run(
        mtu: &mut PathMtu,
        path: u32,
        mut now: u64,
        mut lose: impl FnMut() -> bool,
    ) -> (u32, u64, u32) {
        let (start, mut probes, mut id) = (now, 0, 0);
        loop {
            while let Some(size) = mtu.due(now, 200) {
                id += 1;
                probes += 1;
                mtu.sent(id, size);
                if size <= path && !lose() {
                    assert!(mtu.answered(id, now));
                }
            }
            mtu.conclude(now);
            if !mtu.searching() {
                return (mtu.current, now - start, probes);
            }
            now = now.max(mtu.next_ms());
        }
    }

    #[test]
    fn a_full_size_path_takes_one_round() {
        let mut mtu = PathMtu::new(1420, 1420, 1);
        let (found, took, probes) = run(&mut mtu, 1500, 1, || false);
        assert_eq!((found, took, probes), (1420, 0, 3));
        assert!(mtu.next_ms() >= AGAIN_MS);
    }

    #[test]
    fn every_size_is_found_to_the_grain_and_never_exceeded() {
        for path in FLOOR..=1500 {
            let mut mtu = PathMtu::new(1420, 1420, 1);
            let (found, took, _) = run(&mut mtu, path, 1, || false);
            assert!(found <= path && found + GRAIN >= path.min(1420), "{path}: {found}");
            assert!(took <= 6 * 4 * 200, "{path}: {took} ms");
        }
    }

    #[test]
    fn a_fall_is_noticed_and_a_rise_too() {
        let mut mtu = PathMtu::new(1420, 1420, 1);
        run(&mut mtu, 1500, 1, || false);
        mtu.begin(1000);
        let found = run(&mut mtu, 1220, 1000, || false).0;
        assert!((1212..=1220).contains(&found), "{found}");
        let again = mtu.next_ms();
        assert!(again <= 1000 + 10_000 + CONFIRM_MS, "a fall is confirmed soon");
        assert_eq!(run(&mut mtu, 1500, again, || false).0, 1420);
    }

    #[test]
    fn canaries_notice_a_fall_and_one_lost_does_not_matter() {
        let mut mtu = PathMtu::new(1420, 1420, 1);
        run(&mut mtu, 1500, 1, || false);
        let mut now = mtu.canary_ms();
        assert!(!mtu.canary_due(now - 1, 200));
        assert!(mtu.canary_due(now, 200));
        mtu.canary_sent(1000);
        now += 200;
        assert!(mtu.canary_due(now, 200), "repeated at once");
        mtu.canary_sent(1001);
        assert!(mtu.answered(1001, now));
        assert!(!mtu.searching());
        now = mtu.canary_ms();
        for id in 1002..1005 {
            assert!(mtu.canary_due(now, 200));
            mtu.canary_sent(id);
            now = mtu.canary_ms();
        }
        assert!(!mtu.canary_due(now, 200));
        assert!(mtu.searching());
        assert!(!mtu.canary_due(now, 200), "none during a search");
    }

    #[test]
    fn a_dead_path_changes_nothing() {
        let mut mtu = PathMtu::new(1420, 1420, 1);
        assert_eq!(run(&mut mtu, 0, 1, || false).0, 1420);
    }

    #[test]
    fn ten_percent_loss_seldom_misleads_and_never_for_long() {
        let mut state = 1u64;
        let mut lose = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % 10 < 2
        };
        let mut wrong = 0;
        for _ in 0..1000 {
            let mut mtu = PathMtu::new(1420, 1420, 1);
            if run(&mut mtu, 1500, 1, &mut lose).0 != 1420 {
                wrong += 1;
                let again = mtu.next_ms();
                assert!(again < 2 * CONFIRM_MS);
            }
        }
        assert!(wrong < 20, "{wrong} of 1000");
    }
}

//! Anti-replay window of 8192 counters (RFC 6479, as WireGuard section 5.4.6).

/// Counters accepted behind the highest seen one.
pub const WINDOW: u64 = 8192;
const WORDS: usize = (WINDOW / 64) as usize + 1;

/// Remembers which counters of one session were accepted.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// One more than the highest accepted counter; 0 when none was.
    next: u64,
    /// Accepted counters in all, for the loss estimate.
    accepted: u64,
    bits: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, accepted: 0, bits: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// True when `counter` could still be accepted. Cheap; call before opening.
    pub fn would_accept(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        if self.next - counter > WINDOW {
            return false;
        }
        let word = (counter / 64) as usize % WORDS;
        self.bits[word] & (1 << (counter % 64)) == 0
    }

    /// Marks `counter` as seen; call only after the packet authenticated.
    /// False when it was seen already or is too old.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.would_accept(counter) {
            return false;
        }
        if counter >= self.next {
            // Clear the words entered since the highest counter so far.
            let first = if self.next == 0 { 0 } else { (self.next - 1) / 64 + 1 };
            let last = counter / 64;
            let span = (last + 1).saturating_sub(first).min(WORDS as u64);
            for word in 0..span {
                self.bits[((last - word) as usize) % WORDS] = 0;
            }
            self.next = counter + 1;
        }
        self.bits[(counter / 64) as usize % WORDS] |= 1 << (counter % 64);
        self.accepted += 1;
        true
    }

    /// (counters the peer has used, counters accepted): the gap is loss or
    /// reordering still under way.
    pub fn progress(&self) -> (u64, u64) {
        (self.next, self.accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_once_within_the_window() {
        let mut window = ReplayWindow::default();
        for counter in [0, 1, 5, 4, 8191, 8192, 100_000, 100_000 - (WINDOW - 1)] {
            assert!(window.accept(counter), "{counter}");
            assert!(!window.accept(counter), "{counter} again");
        }
        assert!(!window.accept(100_000 - WINDOW));
        assert!(!window.accept(2));
    }

    #[test]
    fn a_jump_clears_what_it_enters() {
        let mut window = ReplayWindow::default();
        for counter in 0..200 {
            assert!(window.accept(counter));
        }
        let far = 200 + 3 * WINDOW;
        assert!(window.accept(far));
        for back in 1..WINDOW {
            assert!(window.accept(far - back), "{back}");
        }
    }

    #[test]
    fn agrees_with_a_plain_set() {
        let mut window = ReplayWindow::default();
        let mut seen = std::collections::BTreeSet::new();
        let mut state = 1u64;
        let mut base = 0u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            base += state >> 62;
            let counter = (base + (state >> 40) % 20_000).saturating_sub(10_000);
            let highest = seen.last().copied();
            let fresh = !seen.contains(&counter)
                && highest.is_none_or(|h| counter > h || h - counter < WINDOW);
            assert_eq!(window.accept(counter), fresh, "{counter}");
            if fresh {
                seen.insert(counter);
            }
        }
    }
}

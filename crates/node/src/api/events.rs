//! What happened, kept for whoever asks: the last records, and a live feed.
//! Publishing never waits: a reader that cannot keep up misses records and is
//! told how many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use warren_types::api::{Event, EventRecord};

/// Records kept for late readers.
const KEPT: usize = 512;

/// A shared log of events. Clones write to and read from the same log.
#[derive(Debug, Clone)]
pub struct EventLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Mutex<VecDeque<EventRecord>>,
    live: broadcast::Sender<EventRecord>,
}

impl Default for EventLog {
    fn default() -> Self {
        let (live, _) = broadcast::channel(KEPT);
        Self(Arc::new(Inner { kept: Mutex::new(VecDeque::with_capacity(KEPT)), live }))
    }
}

impl EventLog {
    /// Records `event` with the wall clock's time.
    pub fn publish(&self, event: Event) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        self.publish_at(event, at);
    }

    /// Records `event` at `at` seconds since the Unix epoch.
    pub fn publish_at(&self, event: Event, at: f64) {
        let record = EventRecord { at, event };
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(record.clone());
        // Sent under the lock, so that a new subscriber sees each record once.
        let _no_reader_is_fine = self.0.live.send(record);
    }

    /// The kept records, oldest first, and a feed of those that follow, with
    /// neither gap nor repeat between the two.
    pub fn subscribe(&self) -> (Vec<EventRecord>, broadcast::Receiver<EventRecord>) {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.0.live.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Event {
        Event::PeerDiscovered { name: name.to_owned() }
    }

    #[test]
    fn subscribers_see_history_then_news_without_repeats() {
        let log = EventLog::default();
        log.publish_at(found("a"), 1.0);
        let (past, mut live) = log.subscribe();
        log.publish_at(found("b"), 2.0);
        assert_eq!(past.iter().map(|r| &r.event).collect::<Vec<_>>(), [&found("a")]);
        assert_eq!(live.try_recv().unwrap().event, found("b"));
        assert!(live.try_recv().is_err());
    }

    #[test]
    fn history_is_bounded_and_keeps_the_newest() {
        let log = EventLog::default();
        for i in 0..KEPT + 3 {
            log.publish_at(found(&i.to_string()), 0.0);
        }
        let (past, _) = log.subscribe();
        assert_eq!(past.len(), KEPT);
        assert_eq!(past[0].event, found("3"));
    }
}

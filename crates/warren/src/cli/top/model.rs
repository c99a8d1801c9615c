//! What `warren top` knows and where the person looks: pure.
//!
//! In: answers of the daemon with the time they came at, events, keys' effects.
//! Out: throughput, its history, and the peers' rows as sorted and filtered.
//! Times are since the program's start, from a clock that never goes back.
//! Invariants: histories and events are bounded; rows are worked out when
//! something changed, not when they are drawn, so that drawing costs what is
//! visible. Deliberately not here: anything about terminals.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use warren_types::api::{EventRecord, OnionReport, PeerStatus, Status};

/// Samples of throughput that are kept: as many as the widest graph shows.
const SAMPLES: usize = 240;
/// Events that are kept, as the daemon does.
const EVENTS: usize = 512;
/// Longest filter, characters: as long as the longest name.
const MAX_FILTER: usize = 63;

/// Bytes per second, from this node and to it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) up: f64,
    pub(super) down: f64,
}

/// What to order peers by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    /// The nearest first; those without a measurement last.
    Rtt,
    /// The busiest first.
    Traffic,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Rtt,
            Self::Rtt => Self::Traffic,
            Self::Traffic => Self::Name,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Rtt => "RTT",
            Self::Traffic => "traffic",
        }
    }
}

/// The parts of the screen that scroll.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Pane {
    Path,
    #[default]
    Peers,
    Events,
}

impl Pane {
    pub(super) const ALL: [Self; 3] = [Self::Path, Self::Peers, Self::Events];

    fn step(self, by: usize) -> Self {
        Self::ALL[(self as usize + by) % Self::ALL.len()]
    }
}

/// How far to scroll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scroll {
    Lines(isize),
    Start,
    End,
}

/// One answer of the daemon.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) status: Status,
    pub(super) onion: OnionReport,
    /// When it came.
    pub(super) at: Duration,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) why: String,
    /// Since when.
    pub(super) since: Duration,
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Model {
    latest: Option<Snapshot>,
    trouble: Option<Trouble>,
    rates: HashMap<String, Rates>,
    session: Rates,
    history: VecDeque<Rates>,
    events: VecDeque<EventRecord>,
    rows: Vec<usize>,
    sort: Sort,
    filter: String,
    /// The filter is being typed.
    pub(super) typing: bool,
    /// The keys are shown.
    pub(super) help: bool,
    pub(super) pane: Pane,
    offsets: [usize; Pane::ALL.len()],
}

/// Bytes per second; none where a counter began anew.
fn rate(before: u64, after: u64, seconds: f64) -> f64 {
    after.checked_sub(before).map_or(0.0, |bytes| bytes as f64 / seconds)
}

impl Model {
    /// Takes an answer.
    pub(super) fn answered(&mut self, snapshot: Snapshot) {
        self.trouble = None;
        if let Some(before) = &self.latest {
            let seconds = snapshot.at.saturating_sub(before.at).as_secs_f64().max(1e-3);
            let known: HashMap<&str, &PeerStatus> =
                before.status.peers.iter().map(|peer| (peer.name.as_str(), peer)).collect();
            self.rates = snapshot
                .status
                .peers
                .iter()
                .filter_map(|peer| {
                    let before = known.get(peer.name.as_str())?;
                    let rates = Rates {
                        up: rate(before.tx_bytes, peer.tx_bytes, seconds),
                        down: rate(before.rx_bytes, peer.rx_bytes, seconds),
                    };
                    Some((peer.name.clone(), rates))
                })
                .collect();
            self.session = Rates {
                up: rate(before.onion.tx_bytes, snapshot.onion.tx_bytes, seconds),
                down: rate(before.onion.rx_bytes, snapshot.onion.rx_bytes, seconds),
            };
            let total = self.rates.values().fold(Rates::default(), |sum, one| Rates {
                up: sum.up + one.up,
                down: sum.down + one.down,
            });
            if self.history.len() == SAMPLES {
                self.history.pop_front();
            }
            self.history.push_back(total);
        }
        self.latest = Some(snapshot);
        self.arrange();
    }

    /// There was no answer; what was last known stays.
    pub(super) fn failed(&mut self, why: String, now: Duration) {
        let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
        self.trouble = Some(Trouble { why, since });
    }

    /// Takes an event; those that are known already change nothing, since the
    /// daemon tells what it kept whenever somebody begins to listen.
    pub(super) fn happened(&mut self, record: EventRecord) {
        if self.events.contains(&record) {
            return;
        }
        if self.events.len() == EVENTS {
            self.events.pop_back();
        }
        self.events.push_front(record);
        // Who has scrolled to older ones goes on looking at the same.
        let offset = &mut self.offsets[Pane::Events as usize];
        if *offset > 0 {
            *offset += 1;
        }
    }

    /// Works out which peers are shown, in which order.
    fn arrange(&mut self) {
        let peers = self.latest.as_ref().map_or(&[][..], |latest| &latest.status.peers);
        let wanted = self.filter.to_lowercase();
        self.rows = (0..peers.len())
            .filter(|&row| peers[row].name.to_lowercase().contains(&wanted))
            .collect();
        let rates = |row: usize| self.rates.get(&peers[row].name).copied().unwrap_or_default();
        let busy = |row: usize| rates(row).up + rates(row).down;
        let far = |row: usize| peers[row].rtt_ms.unwrap_or(f64::INFINITY);
        self.rows.sort_by(|&a, &b| peers[a].name.cmp(&peers[b].name));
        match self.sort {
            Sort::Name => {}
            Sort::Rtt => self.rows.sort_by(|&a, &b| far(a).total_cmp(&far(b))),
            Sort::Traffic => self.rows.sort_by_cached_key(|&row| {
                // Whole bits per second order as the numbers do.
                std::cmp::Reverse((busy(row) * 8.0) as u64)
            }),
        }
    }

    pub(super) fn sort_on(&mut self) {
        self.sort = self.sort.next();
        self.arrange();
    }

    pub(super) fn sort(&self) -> Sort {
        self.sort
    }

    /// Adds a character to the filter, or takes the last one away.
    pub(super) fn edit_filter(&mut self, add: Option<char>) {
        match add {
            Some(c) if self.filter.chars().count() < MAX_FILTER && !c.is_control() => {
                self.filter.push(c);
            }
            Some(_) => {}
            None => drop(self.filter.pop()),
        }
        self.offsets[Pane::Peers as usize] = 0;
        self.arrange();
    }

    pub(super) fn clear_filter(&mut self) {
        self.filter.clear();
        self.arrange();
    }

    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    /// Goes to the next pane, or with `back` to the one before.
    pub(super) fn other_pane(&mut self, back: bool) {
        self.pane = self.pane.step(if back { Pane::ALL.len() - 1 } else { 1 });
    }

    /// Scrolls the chosen pane. The view bounds the end, which it alone knows.
    pub(super) fn scroll(&mut self, by: Scroll) {
        let offset = &mut self.offsets[self.pane as usize];
        *offset = match by {
            Scroll::Lines(lines) => offset.saturating_add_signed(lines),
            Scroll::Start => 0,
            Scroll::End => usize::MAX,
        };
    }

    /// The first line of a pane that is shown, where `visible` of `lines` fit.
    pub(super) fn offset(&mut self, pane: Pane, lines: usize, visible: usize) -> usize {
        let offset = &mut self.offsets[pane as usize];
        *offset = (*offset).min(lines.saturating_sub(visible));
        *offset
    }

    pub(super) fn latest(&self) -> Option<&Snapshot> {
        self.latest.as_ref()
    }

    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Bytes per second of the onion path's session.
    pub(super) fn session(&self) -> Rates {
        self.session
    }

    /// Bytes per second of all peers together, oldest first.
    pub(super) fn history(&self) -> &VecDeque<Rates> {
        &self.history
    }

    /// Newest first.
    pub(super) fn events(&self) -> &VecDeque<EventRecord> {
        &self.events
    }

    /// How many peers are shown.
    pub(super) fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// A part of the peers' rows.
    pub(super) fn rows(
        &self,
        first: usize,
        count: usize,
    ) -> impl Iterator<Item = (&PeerStatus, Rates)> {
        let peers = self.latest.as_ref().map_or(&[][..], |latest| &latest.status.peers);
        self.rows.iter().skip(first).take(count).filter_map(|&row| {
            let peer = peers.get(row)?;
            Some((peer, self.rates.get(&peer.name).copied().unwrap_or_default()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::examples::{answer, event, peer};
    use super::*;

    fn shown(model: &Model) -> Vec<&str> {
        model.rows(0, usize::MAX).map(|(peer, _)| peer.name.as_str()).collect()
    }

    fn three() -> Model {
        let mut model = Model::default();
        let at = |bytes| {
            vec![
                peer("c", Some(5.0), 0, 0),
                peer("a", None, bytes, 0),
                peer("b", Some(9.0), 0, bytes * 4),
            ]
        };
        model.answered(answer(1.0, at(0)));
        model.answered(answer(3.0, at(2000)));
        model
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let model = three();
        let rates: Vec<Rates> = model.rows(0, 9).map(|(_, rates)| rates).collect();
        assert_eq!(rates[0], Rates { up: 1000.0, down: 0.0 });
        assert_eq!(rates[1], Rates { up: 0.0, down: 4000.0 });
        assert_eq!(model.history().back(), Some(&Rates { up: 1000.0, down: 4000.0 }));
    }

    #[test]
    fn counters_that_began_anew_and_new_peers_have_no_rate() {
        let mut model = three();
        let peers = vec![peer("a", None, 5, 0), peer("new", None, 1 << 40, 0)];
        model.answered(answer(4.0, peers));
        assert!(model.rows(0, 9).all(|(_, rates)| rates == Rates::default()));
        assert_eq!(model.history().back(), Some(&Rates::default()));
    }

    #[test]
    fn histories_are_bounded() {
        let mut model = Model::default();
        for i in 0..SAMPLES + 9 {
            model.answered(answer(i as f64, vec![]));
        }
        assert_eq!(model.history().len(), SAMPLES);
        for i in 0..EVENTS + 9 {
            model.happened(event(i as f64, "x"));
        }
        assert_eq!(model.events().len(), EVENTS);
        assert_eq!(model.events()[0], event((EVENTS + 8) as f64, "x"));
    }

    #[test]
    fn peers_are_sorted_by_name_rtt_and_traffic() {
        let mut model = three();
        assert_eq!(shown(&model), ["a", "b", "c"]);
        model.sort_on();
        assert_eq!((model.sort(), shown(&model)), (Sort::Rtt, vec!["c", "b", "a"]));
        model.sort_on();
        assert_eq!((model.sort(), shown(&model)), (Sort::Traffic, vec!["b", "a", "c"]));
        model.sort_on();
        assert_eq!(model.sort(), Sort::Name);
    }

    #[test]
    fn the_filter_keeps_names_that_have_it() {
        let mut model = Model::default();
        model.answered(answer(1.0, vec![peer("gpu-1", None, 0, 0), peer("nas", None, 0, 0)]));
        model.edit_filter(Some('G'));
        assert_eq!(shown(&model), ["gpu-1"]);
        model.answered(answer(2.0, vec![peer("nas", None, 0, 0)]));
        assert_eq!(model.row_count(), 0);
        model.clear_filter();
        assert_eq!(shown(&model), ["nas"]);
    }

    #[test]
    fn told_twice_is_listed_once_and_what_is_looked_at_stays() {
        let mut model = Model { pane: Pane::Events, ..Model::default() };
        for name in ["a", "b", "a"] {
            model.happened(event(1.0, name));
        }
        assert_eq!(model.events(), &[event(1.0, "b"), event(1.0, "a")]);
        model.scroll(Scroll::Lines(1));
        model.happened(event(2.0, "c"));
        assert_eq!(model.offset(Pane::Events, 3, 1), 2);
    }

    #[test]
    fn scrolling_ends_at_both_ends() {
        let mut model = Model::default();
        model.scroll(Scroll::Lines(-3));
        assert_eq!(model.offset(Pane::Peers, 20, 5), 0);
        model.scroll(Scroll::End);
        assert_eq!(model.offset(Pane::Peers, 20, 5), 15);
        model.scroll(Scroll::Lines(-1));
        assert_eq!(model.offset(Pane::Peers, 20, 5), 14);
        assert_eq!(model.offset(Pane::Peers, 3, 5), 0);
    }

    #[test]
    fn trouble_is_counted_from_its_begin_and_ends_with_an_answer() {
        let mut model = three();
        model.failed("gone".into(), Duration::from_secs(4));
        model.failed("still gone".into(), Duration::from_secs(6));
        let trouble = model.trouble().unwrap();
        assert_eq!((trouble.why.as_str(), trouble.since), ("still gone", Duration::from_secs(4)));
        assert_eq!(shown(&model), ["a", "b", "c"]);
        model.answered(answer(7.0, vec![]));
        assert!(model.trouble().is_none());
    }
}

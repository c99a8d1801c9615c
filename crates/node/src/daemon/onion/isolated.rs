//! Sessions of their own for the user names that programs give to the proxies.
//!
//! In: user names that want a path, events of their clients, the time. Out: a
//! client for each in a compartment of its own, addresses of the stack.
//! Invariants: a user name has one session and shares it with nobody; there are
//! at most [`MAX_ISOLATED`], and whoever finds no place is told so; a session
//! ends when nothing went over it for [`IDLE_MINUTES`] minutes; they exist only
//! while the node's own session is wanted; no compartment is used again until
//! all others were. User names are told to the local API and to nobody else.
//! Deliberately not here: which nodes they use (`choose`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use warren_proto::onion::client::{Client, ClientEvent};
use warren_proto::onion::compartment::Compartment;
use warren_types::api::Event;

use super::super::Daemon;
use super::Onion;
use super::connect::SPARES;
use crate::random::OsRandom;
use crate::userspace::isolation::{IDLE_MINUTES, Isolation, IsolationError, MAX_ISOLATED, Wanted};

/// One such session.
pub(super) struct Isolated {
    pub(super) user: Isolation,
    pub(super) client: Client,
    pub(super) ipv6: bool,
    pub(super) problem: Option<String>,
    /// The exit has it, and the stack its addresses.
    ready: bool,
    /// When it was last asked for, ms.
    asked_ms: u64,
    waiting: Vec<oneshot::Sender<Result<(), IsolationError>>>,
}

impl Isolated {
    /// For how long nobody has used it, ms.
    pub(super) fn idle_ms(&self, now_ms: u64) -> u64 {
        let last = self.client.session().map_or(0, |session| {
            let sent = session.stream.last_tx_ms.load(Ordering::Relaxed);
            sent.max(session.stream.last_rx_ms.load(Ordering::Relaxed))
        });
        now_ms.saturating_sub(last.max(self.asked_ms))
    }

    fn addresses(&self, compartment: Compartment) -> Vec<IpAddr> {
        let families: &[bool] = if self.ipv6 { &[false, true] } else { &[false] };
        families.iter().map(|v6| compartment.address(*v6)).collect()
    }
}

/// The one after `last` that is not in use.
fn next_compartment(last: u16, used: impl Fn(Compartment) -> bool) -> Compartment {
    let mut index = last;
    loop {
        index = index.wrapping_add(1);
        if let Some(free) = Compartment::isolated(index).filter(|free| !used(*free)) {
            return free;
        }
    }
}

impl Onion {
    /// Addresses inside this machine, by whose they are.
    pub(super) fn isolated_addresses(&self) -> BTreeMap<Isolation, Vec<IpAddr>> {
        let ready = self.isolated.iter().filter(|(_, one)| one.ready);
        ready.map(|(at, one)| (one.user.clone(), one.addresses(*at))).collect()
    }
}

impl Daemon {
    /// A program wants the path of its user name.
    pub(in super::super) fn isolate(&mut self, wanted: Wanted) {
        let Wanted { isolation: user, reply } = wanted;
        let (now_us, now_ms) = (self.now_us(), self.now_ms());
        if !self.onion.client.is_on() || user.is_default() {
            let _ = reply.send(Err(IsolationError::NotConnected));
            return;
        }
        if let Some(known) = self.onion.isolated.values_mut().find(|known| known.user == user) {
            known.asked_ms = now_ms;
            if known.ready {
                let _ = reply.send(Ok(()));
            } else {
                known.waiting.retain(|waiting| !waiting.is_closed());
                known.waiting.push(reply);
            }
            return;
        }
        if self.onion.isolated.len() >= MAX_ISOLATED {
            tracing::info!("a proxy was given one user name too many: it gets no path");
            let _ = reply.send(Err(IsolationError::TooMany));
            return;
        }
        let isolated = &self.onion.isolated;
        let compartment =
            next_compartment(self.onion.last_compartment, |at| isolated.contains_key(&at));
        self.onion.last_compartment = compartment.index();
        let tables = self.onion.tables.onion.clone();
        let mut client = Client::in_compartment(self.onion.suite, tables, compartment);
        client.connect(SPARES, now_us, &mut OsRandom);
        let session = Isolated {
            user,
            client,
            ipv6: false,
            problem: None,
            ready: false,
            asked_ms: now_ms,
            waiting: vec![reply],
        };
        self.onion.isolated.insert(compartment, session);
        tracing::info!(compartment = compartment.index(), "a user name gets a path of its own");
        self.flush_onion();
    }

    /// What happens to the path of a user name.
    pub(super) fn isolated_event(&mut self, compartment: Compartment, event: ClientEvent) {
        let at = compartment.index();
        match event {
            ClientEvent::NeedPath { purpose, exit, failed, used, strict } => {
                self.choose_path(compartment, purpose, exit, &failed, &used, strict);
            }
            ClientEvent::Connected { serial, ipv6 } => {
                let Some(session) = self.onion.isolated.get_mut(&compartment) else { return };
                (session.ready, session.ipv6, session.problem) = (true, ipv6, None);
                let waiting = std::mem::take(&mut session.waiting);
                // They may connect as soon as they hear of it.
                self.readdress_paths();
                for reply in waiting {
                    let _ = reply.send(Ok(()));
                }
                tracing::info!(compartment = at, "the path of a user name is up");
                let path = self.circuit_names(compartment, serial);
                let user = self.user_of(compartment);
                self.events.publish(Event::OnionConnected { path, user });
            }
            ClientEvent::Moved { from, to, reason, silent_ms } => {
                self.tell_moved(compartment, (from, to), reason, silent_ms);
                if let Some(session) = self.onion.isolated.get_mut(&compartment) {
                    session.problem = None;
                }
            }
            ClientEvent::Interrupted => self.tell_interrupted(self.user_of(compartment)),
            ClientEvent::ExitLost { exit } => {
                // Its connections end with its addresses; whoever connects again
                // waits for the new session.
                if let Some(session) = self.onion.isolated.get_mut(&compartment) {
                    (session.ready, session.ipv6) = (false, false);
                }
                self.readdress_paths();
                let (exit, user) = (self.suffix_name(&exit), self.user_of(compartment));
                self.events.publish(Event::OnionExitLost { exit, user });
            }
            ClientEvent::Failed { node, reason, was_up, .. } => {
                self.hop_failed(&node, reason, was_up);
            }
            ClientEvent::Proof { .. } => {}
        }
    }

    /// The user name of a compartment; none for the node's own session.
    pub(super) fn user_of(&self, at: Compartment) -> Option<String> {
        self.onion.isolated.get(&at).map(|one| one.user.shown())
    }

    /// Ends those that nobody uses any more.
    pub(in super::super) fn keep_isolated(&mut self) {
        const IDLE_MS: u64 = IDLE_MINUTES * 60_000;
        let now_ms = self.now_ms();
        let idle = |one: &Isolated| one.idle_ms(now_ms) >= IDLE_MS;
        let over = self.onion.isolated.extract_if(.., |_, one| idle(one)).collect();
        self.end_sessions(over);
    }

    /// Ends all.
    pub(super) fn end_isolated(&mut self) {
        let over = std::mem::take(&mut self.onion.isolated);
        self.end_sessions(over);
    }

    /// Whoever waits for one of them learns that there is no path.
    fn end_sessions(&mut self, over: BTreeMap<Compartment, Isolated>) {
        if over.is_empty() {
            return;
        }
        // Connections first: nothing is sent into a session that is ending.
        self.readdress_paths();
        let now_us = self.now_us();
        for (compartment, mut session) in over {
            self.onion.names.retain(|(at, _), _| *at != compartment);
            session.client.disconnect(now_us);
            while let Some((peer, cell)) = session.client.poll_transmit() {
                self.send_cell(&peer, cell);
            }
            tracing::info!(compartment = compartment.index(), "the path of a user name ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use warren_proto::onion::tables::OnionTables;
    use warren_types::Suite;

    #[test]
    fn compartments_come_round_only_after_all_others() {
        let used = [1, 2, 65_534].map(|at| Compartment::isolated(at).unwrap());
        let next = |last| next_compartment(last, |at| used.contains(&at)).index();
        assert_eq!([0, 2, 3, 65_533, 65_534].map(next), [3, 3, 4, 3, 3]);
    }

    #[test]
    fn a_session_is_idle_when_neither_asked_for_nor_used() {
        let tables = Arc::new(OnionTables::default());
        let compartment = Compartment::isolated(7).unwrap();
        let client = Client::in_compartment(Suite::Aes256Gcm, tables, compartment);
        let mut session = Isolated {
            user: Isolation::of_user(b"anna"),
            client,
            ipv6: false,
            problem: None,
            ready: true,
            asked_ms: 1_000,
            waiting: Vec::new(),
        };
        assert_eq!(session.idle_ms(601_000), 600_000);
        session.client.connect(SPARES, 0, &mut OsRandom);
        session.client.session().unwrap().stream.note_sent(1, 1, 300_000);
        assert_eq!(session.idle_ms(601_000), 301_000);
        session.client.session().unwrap().stream.note_received(1, 1, 400_000);
        assert_eq!(session.idle_ms(601_000), 201_000);
        session.asked_ms = 600_000;
        assert_eq!(session.idle_ms(601_000), 1_000);
        assert_eq!(session.addresses(compartment), ["240.1.0.7".parse::<IpAddr>().unwrap()]);
        session.ipv6 = true;
        assert_eq!(session.addresses(compartment).len(), 2);
    }
}

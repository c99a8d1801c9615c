//! Hot link state shared between the engine (which writes it) and the worker
//! threads (which seal and open with it).
//!
//! - [`session`]: transport keys, counters and the replay window of one handshake.
//! - [`frame`]: what two Warren nodes say to each other inside a session.
//! - [`peer`]: what workers need of one peer: endpoint, current session, limits,
//!   traffic counters.
//! - [`tables`]: destination address to peer, receiver index to session.
//!
//! Ownership: the engine alone creates sessions and publishes tables; workers
//! only read them, add to counters, and move a peer's endpoint when it roams.

pub mod frame;
pub mod peer;
pub mod replay;
pub mod session;
pub mod tables;

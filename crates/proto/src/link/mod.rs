//! Hot link state shared between the engine (which writes it) and the worker
//! threads (which seal and open with it).
//!
//! - [`session`]: transport keys, counters and the replay window of one handshake.
//! - [`frame`]: what two Warren nodes say to each other inside a session.
//! - [`relay`]: datagrams carried over other nodes: format, checks, routes.
//! - [`peer`]: what workers need of one peer: endpoint, current session, limits,
//!   traffic counters.
//! - [`tables`]: destination address to peer, receiver index to session.
//! - [`transmit`], [`receive`]: the fast path itself, batch by batch: pure
//!   functions over the above, with [`event`] for what comes out of them.
//! - `cells`, `cell_address`: what workers do with the cells of circuits, and by
//!   which addresses they know whose packets are in them.
//! - [`outbound`], [`seal`]: what both use to send.
//!
//! Ownership: the engine alone creates sessions and publishes tables; workers
//! only read them, add to counters, move a stock peer's endpoint when it roams,
//! and note the way back of what comes over other nodes.

mod cell_address;
mod cells;
pub mod event;
pub mod frame;
pub mod outbound;
pub mod peer;
pub mod receive;
pub mod relay;
mod relayed;
pub mod replay;
pub mod seal;
pub mod session;
pub mod tables;
pub mod transmit;

#[cfg(test)]
mod cell_tests;
#[cfg(test)]
mod fast_tests;
#[cfg(test)]
mod relay_tests;

//! Names of the network's members as DNS: `NODE.NETWORK.warren`.
//!
//! In: who is a member with which name and addresses ([`Zone`]), questions on
//! port 53 of the node's own overlay addresses. Out: authoritative answers,
//! and the system's resolver told where to ask ([`resolved`]).
//! Invariants: nothing is forwarded and nothing outside the network's own
//! zones is answered (`REFUSED`), so this is no open resolver; only this
//! machine and overlay addresses get an answer; `/etc/resolv.conf` is never
//! written. Deliberately not here: who may have which name (`warren-control`).

mod answer;
pub mod resolved;
mod server;
mod zone;

pub use answer::{MAX_QUERY, NEGATIVE_TTL, TTL, answer};
pub use server::{BindError, SharedZone, Sockets, bind, serve};
pub use zone::{Entry, Found, Lookup, Zone};

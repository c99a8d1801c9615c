//! Names of the network's members as DNS: `NODE.NETWORK.warren`.
//!
//! In: who is a member with which name and addresses ([`Zone`]), questions on
//! port 53 of the node's own overlay addresses. Out: authoritative answers,
//! and the system's resolver told where to ask ([`resolved`]).
//! Invariants: nothing outside the network's own zones is answered (`REFUSED`)
//! to anybody but this machine, and to this machine only while it is connected
//! through an exit ([`Forwarding`]), so this is no open resolver; only this
//! machine and overlay addresses get an answer; `/etc/resolv.conf` is not
//! written here. Deliberately not here: who may have which name (`warren-control`).

mod answer;
mod forward;
pub mod resolved;
mod server;
mod zone;

pub use answer::{MAX_QUERY, NEGATIVE_TTL, TTL, answer, is_outside};
pub use forward::Forwarding;
pub use server::{BindError, SharedZone, Sockets, bind, serve};
pub use zone::{Entry, Found, Lookup, Zone};

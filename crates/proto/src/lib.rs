//! Pure protocol code: packets, links (WireGuard and AES-256-GCM) and the
//! engine that drives them.
//!
//! - [`packet`]: checked views of IP, TCP and UDP; segmentation and coalescing.
//! - [`engine`]: handshakes, timers and sessions of all links.
//! - [`path`]: which of several ways to a peer its packets take.
//! - [`selection`]: which nodes make an onion path.
//! - [`noise`]: link handshakes.
//! - [`link`]: what worker threads share with the engine: sessions, peers, tables.
//!
//! Invariants: no I/O, no clocks, no randomness of its own: bytes, `now` and
//! an RNG are parameters. Nothing here panics on outside bytes.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests need some Instant to start from")
)]

pub mod engine;
pub mod link;
pub mod noise;
pub mod onion;
pub mod packet;
pub mod path;
pub mod selection;

#[cfg(test)]
mod test_rng;

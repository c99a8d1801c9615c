//! Onion-routed paths: cells, circuits and sessions.
//!
//! - [`cell`]: frames of one size and their parts.
//! - [`handshake`], [`keys`], [`layer`]: the cryptography of one hop, and of all
//!   in a row.
//! - [`payload`]: what is said under the layers.
//! - [`circuit`], [`session`], [`tables`]: what workers share with the slow path.
//! - [`aqm`]: which packets of a session are slowed down for the sake of others.
//! - [`compartment`]: several sessions of one client.
//!
//! Invariants: no I/O and no clock; nothing panics on outside bytes; a hop
//! knows its neighbours only.

pub mod aqm;
pub mod cell;
pub mod circuit;
pub mod client;
pub mod compartment;
pub mod handshake;
pub mod keys;
pub mod layer;
pub mod payload;
mod primitive;
pub mod relay;
pub mod session;
pub mod tables;

//! Onion-routed paths: cells, circuits and sessions.
//!
//! - [`cell`]: frames of one size and their parts.
//! - [`keys`], [`layer`]: the cryptography of one hop, and of all in a row.
//!
//! Invariants: no I/O and no clock; nothing panics on outside bytes; a hop
//! knows its neighbours only.

pub mod cell;
pub mod keys;
pub mod layer;
mod primitive;

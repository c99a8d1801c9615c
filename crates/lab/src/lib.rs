//! The lab: namespaces, WAN emulator, scenarios, peer benchmarks.
//!
//! - [`netem`]: what a bad network does to packets, on a clock of its own.

pub mod netem;

//! Control endpoints against each other over loopback UDP: what a member gets,
//! and that everybody else gets nothing, with the reason in our log.

mod admission;
mod membership;
mod net;
mod resilience;

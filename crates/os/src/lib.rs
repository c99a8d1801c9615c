//! Warren's operating-system seam: the only unsafe code and the only system
//! calls of the workspace.
//!
//! - [`tun`]: the virtual network interface's packet queues, with offloads.
//! - [`udp`]: UDP sockets that send and receive in batches.
//!
//! Invariants: every function is safe to call with any arguments; errors say
//! what was missing and what to do about it. No protocol knowledge.

#![allow(
    unsafe_code,
    reason = "system calls are made here and nowhere else; every block has a SAFETY comment"
)]

pub mod tun;
pub mod udp;
pub mod wait;

//! Warren's operating-system seam: the only unsafe code and the only system
//! calls of the workspace. A port to another system replaces this crate alone.
//!
//! - [`tun`]: the virtual network interface's packet queues, with offloads.
//! - [`udp`]: UDP sockets that send and receive in batches.
//! - [`wait`]: waiting for descriptors.
//! - [`icmp`]: echo requests.
//! - [`netlink`]: interfaces, addresses and routes.
//! - [`mark`]: telling our own packets from those of other programs.
//! - [`netns`]: network namespaces, also without root.
//! - [`files`]: private files and directories, locks.
//! - [`process`]: detaching, signals, what a process costs.
//! - [`privileges`]: giving up what a running daemon never needs.
//! - [`terminal`]: single keys.
//!
//! Invariants: every function is safe to call with any arguments; errors say
//! what was missing and what to do about it. No protocol knowledge, no policy.

#![allow(
    unsafe_code,
    reason = "system calls are made here and nowhere else; every block has a SAFETY comment"
)]

pub mod files;
pub mod icmp;
pub mod mark;
pub mod netlink;
pub mod netns;
pub mod privileges;
pub mod process;
pub mod terminal;
pub mod tun;
pub mod udp;
pub mod wait;

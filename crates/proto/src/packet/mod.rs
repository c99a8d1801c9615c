//! IP packets as bytes: checked views, checksums, segmentation, coalescing,
//! and the small rewrites a tunnel makes.
//!
//! - [`ip`]: where the headers of a packet are.
//! - [`checksum`]: the Internet checksum, whole and incremental.
//! - [`vnet`]: the `virtio_net_hdr` in front of a TUN frame.
//! - [`segment`]: one super-packet into packets the link can carry.
//! - [`gather`]: packets of one flow back into one super-packet.
//! - [`rewrite`]: ECN marks, hop limit, TCP MSS.
//! - [`icmp`]: "too big" and "unreachable" answers.
//!
//! Invariants: nothing here panics on any bytes; nothing allocates per packet
//! but the ICMP answers. Not here: what a packet's addresses mean.

pub mod checksum;
pub mod gather;
pub mod icmp;
pub mod ip;
pub mod nat;
pub mod rewrite;
pub mod segment;
pub mod vnet;

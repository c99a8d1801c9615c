//! The lab: hosts in network namespaces, real daemons on them, a WAN between
//! them, and benchmarks against other VPNs. For tests, demos and development.
//!
//! - [`topology`]: hosts and the links between them.
//! - [`process`]: a `warren` daemon on a host.
//! - [`nat`]: what routers do to addresses, seeded and virtual.
//! - [`netem`]: what a wide-area path does to packets, seeded and virtual.
//! - [`wan`]: hosts joined by such paths between the regions of the world.
//! - [`natpmp`]: a router that speaks NAT-PMP.
//! - [`stock`]: unmodified WireGuard programs on hosts.
//! - [`sessions`]: iperf3 and ssh, watched for pauses and breaks.
//! - [`pulse`]: a steady beat of datagrams, each accounted for.
//! - [`traffic`]: streams and echoes that check themselves.
//! - [`mod@bench`]: Warren beside other VPNs on the same link.
//!
//! Invariants: nothing outlives the process that made it, however it ends:
//! namespaces go with their last holder, children with their parent. Works as
//! root and, in a user namespace, without.

pub mod bench;
pub mod nat;
pub mod natpmp;
pub mod netem;
pub mod process;
pub mod pulse;
pub mod sessions;
pub mod stock;
pub mod topology;
pub mod traffic;
pub mod wan;

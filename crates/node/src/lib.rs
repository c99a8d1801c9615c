//! The Warren daemon: configuration, local API, and what ties the pure crates
//! to the operating system.
//!
//! Inputs: a [`config::Config`], a state directory, packets. Outputs: a TUN
//! interface that reaches every member of the network, and the local API.
//! Deliberately not here: protocol logic (`warren-proto`), admission logic
//! (`warren-control`), system calls (`warren-os`).

pub mod api;
pub mod config;
pub mod daemon;
pub mod dns;
pub mod fault;
pub mod host;
pub mod keys;
pub mod lan;
pub mod metrics;
pub mod onion_candidates;
pub mod onion_keys;
pub mod path_choice;
pub mod path_proof;
pub mod portmap;
pub mod random;
pub mod start;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod uapi;
pub mod userspace;
pub mod wg_client;
pub mod workers;

//! Warren's control plane without I/O: identity, certificates, join codes,
//! invite tokens, signed descriptors and the directory made of them, and the
//! changes of keys, certificates and roots over time.
//!
//! In: bytes, `now` (seconds since 1970) and random generators as parameters.
//! Out: values, changes as data, typed errors that name the failing check.
//! Invariants: nothing here opens a socket or a file, reads a clock, starts a
//! thread or asks the operating system for randomness; no input from outside
//! can make it panic; secrets are zeroised on drop and never printed.

pub mod address;
pub mod ca;
mod cbor;
pub mod descriptor;
pub mod directory;
pub mod identity;
pub mod join_code;
pub mod link_state;
pub mod membership;
pub mod network;
mod noise;
pub mod onion;
pub mod path_proof;
pub mod psk;
pub mod registry;
pub mod revocation;
pub mod route_approval;
pub mod sealed_key;
#[cfg(test)]
mod testing;
pub mod token;
pub mod trust;
pub mod verify;
pub mod wire;

//! Warren's vocabulary: identifiers, keys, addresses, suites, drop reasons and
//! the data of the local API. No logic beyond parsing, printing and redaction.
//!
//! Invariants: secrets are zeroised on drop and never appear in `Debug`; every
//! type that parses checks its whole input. Deliberately not here: protocol
//! behaviour, I/O, clocks, randomness.

pub mod api;
mod drop_reason;
mod id;
mod key;
mod mesh_address;
mod name;
mod onion;
mod suite;

pub use drop_reason::{DropCounters, DropReason};
pub use id::{NetworkId, NodeId};
pub use key::{LinkPublicKey, LinkSecretKey, OnionSecretKey, ParseKeyError, PresharedKey};
pub use mesh_address::{MESH_PORT, mesh_address, mesh_node};
pub use name::{NetworkName, NodeName, ParseNameError};
pub use onion::{
    Action, Bandwidth, City, Coordinates, Country, ExitPolicy, ExitPolicyError, ExitRule, Family,
    MAX_CITY, MAX_EXIT_RULES, OnionKey, ParseBandwidthError, ParseFamilyError, ParsePlaceError,
    ParseRegionError, ParseRoleError, Place, PortRange, Protocol, Region, Role, Roles,
    is_public_destination, private_prefixes,
};
pub use suite::{ParseSuiteError, Suite};

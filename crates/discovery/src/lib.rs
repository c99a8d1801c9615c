//! How nodes learn of each other, and of the ways to each other: gossip of
//! signed records, and routes over other nodes.
//!
//! Pure: messages, verdicts on signatures, `now` and randomness come in;
//! messages, routes and events come out. Deliberately not here: what a record
//! may say and who signed it (`warren-control`), probing of paths
//! (`warren-proto`), connections (`warren-node`).

pub mod gossip;
pub mod neighbours;
pub mod routing;

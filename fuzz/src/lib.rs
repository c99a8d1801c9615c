//! What the fuzz targets run. See `README.md`.

pub mod config;
pub mod control;
pub mod discovery;
pub mod dns;
pub mod onion;
pub mod path_proof;
pub mod proto;
pub mod selection;
pub mod userspace;

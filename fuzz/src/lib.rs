//! What the fuzz targets run. See `README.md`.

pub mod config;
pub mod control;
pub mod dns;
pub mod proto;

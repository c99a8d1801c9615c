//! The Warren daemon

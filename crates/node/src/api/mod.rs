//! The local API: JSON over HTTP/1.1 on the Unix socket `api.sock` of the
//! state directory. Types of the bodies: [`warren_types::api`].
//!
//! | route | does |
//! |---|---|
//! | `GET /v1/status` | state of node, network and peers |
//! | `GET /v1/events` | what happened so far, NDJSON; `?follow=1` goes on |
//! | `POST /v1/invites` | makes a join code |
//! | `GET /v1/wg/clients` | lists stock WireGuard clients |
//! | `POST /v1/wg/clients` | adds one, answers its configuration |
//! | `DELETE /v1/wg/clients/NAME` | removes one |
//! | `POST /v1/revoke` | expels a node |
//! | `POST /v1/ca` | delegates, rotates, exports and so on the CA |
//! | `POST /v1/rotate` | replaces a key of this node |
//! | `POST /v1/leave` | leaves the network, removes its state, ends the daemon |
//! | `POST /v1/shutdown` | ends the daemon |
//!
//! Requests become [`ApiRequest`]s on a channel to the daemon's loop, which
//! owns the answers. Invariants: only the daemon's own user and root are
//! served (checked by the kernel's peer credentials, besides file mode 0600);
//! head, body, time and number of connections are bounded. Deliberately not
//! here: TCP, authentication by token, and any state.

mod client;
mod events;
mod request;
mod server;

pub use client::{Client, ClientError, EventStream};
pub use events::EventLog;
pub use request::{ApiError, ApiRequest, Reply};
pub(crate) use server::one_request;
pub use server::{ApiSocket, bind, serve};

#[cfg(test)]
mod tests;

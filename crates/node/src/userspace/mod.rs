//! Userspace mode: a member without a TUN interface and without privileges.
//!
//! The workers' frames go to a TCP/IP stack in this process in place of the
//! kernel's. Programs use it through a SOCKS5 or an HTTP proxy; what others
//! open to this node's addresses is passed to local sockets.
//!
//! - [`address`]: own addresses, and from which of them a connection leaves.
//! - `packet`, `wire`: packets in, packets out.
//! - `flow`, [`stack`], `arrive`, [`stream`]: connections and datagrams.
//! - [`dial`], [`lookup`]: from a name to a connection.
//! - [`isolation`]: a path of its own for each user name.
//! - [`socks`], `http_connect`, `proxy`: what programs speak.
//! - `accept`, `relay`: published ports.
//! - [`exit`], `echo`: what leases send, on by ordinary sockets.
//! - [`settings`], [`service`]: what is set, and the thread.
//!
//! Invariants: connections, sockets and waiting bytes are bounded; it runs on
//! a thread of its own, so that neither the daemon's loop nor the workers wait
//! for it; idle, it sleeps. Deliberately not here: IP fragments are not put
//! together; nothing is forwarded between addresses.

mod accept;
pub mod address;
mod arrive;
pub mod dial;
mod echo;
pub mod exit;
mod flow;
mod http_connect;
pub mod isolation;
pub mod lookup;
mod packet;
mod proxy;
mod relay;
pub mod service;
pub mod settings;
pub mod socks;
pub mod stack;
pub mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use address::{Addresses, NoSource, ONION_MTU, Source};
pub use arrive::{Arrival, No, Request, Unclaimed};
pub use dial::{Destination, DialError, Dialer};
pub use exit::Exit;
pub use flow::ConnectError;
pub use isolation::{Isolation, IsolationError, Isolator};
pub use packet::{MAX_DATAGRAM, Protocol};
pub use proxy::Password;
pub use service::{Bound, Userspace};
pub use settings::{Publish, Settings};
pub use stack::Stack;
pub use stream::{Stream, UdpSocket};
pub use wire::Counters;

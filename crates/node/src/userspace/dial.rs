//! Outgoing connections: from a destination as a program names it to a stream.
//!
//! In: a [`Destination`] and an [`Isolation`]. Out: a [`Stream`], or a
//! [`DialError`] that says what stood in the way. Members' names are those of
//! the node's own zone, others are looked up through the path out of the mesh.
//! Nothing is ever looked up on the network this machine is in, and no
//! connection is made there: what has no way through the tunnel fails.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Name;

use super::address::{NoSource, Source};
use super::flow::ConnectError;
use super::lookup::{LookupError, look_up};
use super::{Isolation, IsolationError, Isolator, Stack, Stream};
use crate::dns::{Found, SharedZone};

/// Longest domain name, bytes (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;

/// Where to, as a program says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// An address and port.
    Address(SocketAddr),
    /// A name and port.
    Name(String, u16),
}

impl Destination {
    /// A host, an address or a name, and a port; `None` when it is neither.
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(SocketAddr::new(address.to_canonical(), port)));
        }
        let fine = (1..=MAX_NAME).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        fine.then(|| Self::Name(host.to_ascii_lowercase(), port))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name(_, port) => *port,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// It was tried.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// It cannot be tried.
    #[error("{0}")]
    NoSource(#[from] NoSource),
    /// No member has that name.
    #[error("no member has that name")]
    UnknownName,
    /// It was looked up outside the mesh, in vain.
    #[error("{0}")]
    Lookup(#[from] LookupError),
    /// A name outside the mesh, and no way to look it up.
    #[error("the name is not of the mesh, and there is no path out of the mesh to look it up")]
    ForeignName,
    /// No path of its own for this user name.
    #[error("{0}")]
    Isolation(#[from] IsolationError),
}

/// Dials through the stack. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dialer {
    stack: Stack,
    zone: Option<SharedZone>,
    isolator: Isolator,
}

impl Dialer {
    /// `zone`: the names of members. `isolator`: who gives user names paths of
    /// their own.
    pub fn new(stack: Stack, zone: Option<SharedZone>, isolator: Isolator) -> Self {
        Self { stack, zone, isolator }
    }

    /// The stack dialed through.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Waits for the path that goes with `isolation`.
    async fn path(&self, isolation: &Isolation) -> Result<(), IsolationError> {
        if isolation.is_default() || !self.stack.addresses().inner(isolation).is_empty() {
            return Ok(());
        }
        self.isolator.begin(isolation).await
    }

    /// The addresses of a destination, in the order to try them. The path that
    /// leads there is begun, if the user name has none yet.
    ///
    /// # Errors
    /// When a name has none, or the user name gets no path.
    pub async fn resolve(
        &self,
        to: &Destination,
        isolation: &Isolation,
    ) -> Result<Vec<SocketAddr>, DialError> {
        let (name, port) = match to {
            Destination::Address(address) => {
                if self.stack.addresses().is_outside(address.ip()) {
                    self.path(isolation).await?;
                }
                return Ok(vec![*address]);
            }
            Destination::Name(name, port) => (name, *port),
        };
        let all = match self.member(name) {
            Err(DialError::ForeignName) if !self.stack.addresses().onion.is_empty() => {
                self.path(isolation).await?;
                look_up(&self.stack, name, isolation).await?
            }
            known => known?,
        };
        Ok(all.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    /// The addresses of a member.
    fn member(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let zone = self.zone.as_ref().ok_or(DialError::ForeignName)?.lock();
        let bare = name.trim_end_matches('.');
        // A single label can only be a member's.
        let full = if bare.contains('.') {
            Name::from_ascii(bare).map_err(|_| DialError::UnknownName)?
        } else {
            zone.apex().prepend_label(bare).map_err(|_| DialError::UnknownName)?
        };
        match zone.look_up(&full).map(|lookup| lookup.found) {
            Some(Found::Addresses(all)) if !all.is_empty() => Ok(all),
            Some(_) => Err(DialError::UnknownName),
            None => Err(DialError::ForeignName),
        }
    }

    /// Where a connection to `to` leaves from.
    ///
    /// # Errors
    /// [`NoSource`].
    pub fn source_for(&self, to: IpAddr, isolation: &Isolation) -> Result<Source, NoSource> {
        self.stack.addresses().source_for(to, isolation)
    }

    /// Opens a connection. All addresses of a name are tried, one after the
    /// other; the first failure is told.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, to: &Destination, isolation: &Isolation) -> Result<Stream, DialError> {
        let mut first = None;
        for address in self.resolve(to, isolation).await? {
            let tried = match self.source_for(address.ip(), isolation) {
                Ok(source) => self.stack.connect(source, address).await.map_err(DialError::from),
                Err(error) => Err(error.into()),
            };
            match tried {
                Ok(stream) => return Ok(stream),
                // Another address of the same host would take as long.
                Err(error @ DialError::Connect(ConnectError::TimedOut)) => return Err(error),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(DialError::UnknownName))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_names() {
        let address = |text: &str| Some(Destination::Address(text.parse().unwrap()));
        assert_eq!(Destination::new("100.64.0.1", 80), address("100.64.0.1:80"));
        assert_eq!(Destination::new("[fd12::1]", 80), address("[fd12::1]:80"));
        assert_eq!(Destination::new("fd12::1", 80), address("[fd12::1]:80"));
        assert_eq!(Destination::new("::ffff:100.64.0.1", 80), address("100.64.0.1:80"));
        let name = Some(Destination::Name("gpu-2.lab.warren".into(), 22));
        assert_eq!(Destination::new("GPU-2.lab.warren", 22), name);
        for bad in ["", "a b", "a\n", "ä", "a/b", "a:1", &"a".repeat(254)] {
            assert_eq!(Destination::new(bad, 1), None, "{bad:?}");
        }
    }
}

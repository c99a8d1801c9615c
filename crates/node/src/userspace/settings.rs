//! What an operator sets of userspace mode, and its textual forms.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::packet::Protocol;
use crate::config::BadValue;

/// Userspace mode as configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where the SOCKS5 proxy listens.
    pub socks: Option<SocketAddr>,
    /// Where the HTTP proxy listens.
    pub http: Option<SocketAddr>,
    /// File with the password of both: its first line.
    pub password_file: Option<PathBuf>,
    /// Ports that members reach.
    pub publish: Vec<Publish>,
}

/// `PROTOCOL:PORT=ADDR:PORT`: a port of this node's addresses that is passed to
/// a local socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Port of the overlay addresses.
    pub port: u16,
    /// The local socket.
    pub to: SocketAddr,
}

impl FromStr for Publish {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let parse = || {
            let (outside, to) = text.split_once('=')?;
            let (protocol, port) = outside.split_once(':')?;
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return None,
            };
            let (port, to): (u16, SocketAddr) = (port.parse().ok()?, to.parse().ok()?);
            (port != 0 && to.port() != 0).then_some(Self { protocol, port, to })
        };
        parse().ok_or_else(|| {
            let cut: String = text.chars().take(80).collect();
            BadValue(format!(
                "`{cut}` is not a port to publish: use PROTOCOL:PORT=ADDR:PORT, such as \
                 tcp:80=127.0.0.1:8080 or udp:53=127.0.0.1:5353"
            ))
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}={}", self.protocol, self.port, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_read_and_written() {
        for text in ["tcp:80=127.0.0.1:8080", "udp:53=[::1]:5353"] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "80=127.0.0.1:80",
            "tcp:80",
            "tcp:0=127.0.0.1:1",
            "tcp:1=localhost:1",
            "icmp:1=1:1",
        ] {
            let error = bad.parse::<Publish>().unwrap_err().to_string();
            assert!(error.contains("tcp:80=127.0.0.1:8080"), "{error}");
        }
    }
}

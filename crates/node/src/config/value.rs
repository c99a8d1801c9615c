//! Validated values of the configuration: what parsed is usable. Each parser
//! checks its whole input and says what is allowed.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A value was refused; the text says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadValue(pub(crate) String);

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// UDP port used when none is given (the letters WARR on a phone's keypad).
pub const DEFAULT_PORT: u16 = 9277;

/// The UDP address the daemon listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// Address and port; port 0 lets the kernel choose. An unspecified IPv6
    /// address listens for IPv4 as well.
    pub address: SocketAddr,
    /// False for the built-in default: then the daemon may fall back to IPv4
    /// alone on machines without IPv6.
    pub explicit: bool,
}

impl Default for Listen {
    fn default() -> Self {
        let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        Self { address: SocketAddr::new(any, DEFAULT_PORT), explicit: false }
    }
}

impl FromStr for Listen {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let text = text.trim();
        let address = match text.strip_prefix(':') {
            Some(port) => port
                .parse()
                .ok()
                .map(|port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)),
            None => text.parse().ok(),
        };
        address.map(|address| Self { address, explicit: true }).ok_or_else(|| {
            BadValue(format!(
                "`{}` is not an address to listen on: use ADDR:PORT, such as 0.0.0.0:{DEFAULT_PORT}, \
                 [::]:{DEFAULT_PORT} or :{DEFAULT_PORT}",
                cut(text)
            ))
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// The TCP address that metrics are served on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsListen(SocketAddr);

impl MetricsListen {
    /// Address and port; the port is never 0.
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for MetricsListen {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let address: Option<SocketAddr> = text.trim().parse().ok();
        address.filter(|address| address.port() != 0).map(Self).ok_or_else(|| {
            BadValue(format!(
                "`{}` is not an address to serve metrics on: use ADDR:PORT, such as \
                 127.0.0.1:9586 or [::1]:9586",
                cut(text)
            ))
        })
    }
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `HOST:PORT` where others reach a node: an IP address or a DNS name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// Host: an IP address without brackets, or a DNS name.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// UDP port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
    /// The socket address, when the host is an IP address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for Endpoint {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let text = text.trim();
        let bad = || {
            BadValue(format!(
                "`{}` is not an endpoint: use HOST:PORT, such as vpn.example.org:{DEFAULT_PORT}, \
                 192.0.2.1:{DEFAULT_PORT} or [2001:db8::1]:{DEFAULT_PORT}",
                cut(text)
            ))
        };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 || address.ip().is_unspecified() {
                Err(bad())
            } else {
                Ok(address.into())
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(bad)?;
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // All digits and dots would be a mistyped IPv4 address.
        let is_name = host.len() <= 253
            && host.split('.').all(label)
            && host.bytes().any(|b| b.is_ascii_alphabetic());
        if is_name { Ok(Self { host: host.to_ascii_lowercase(), port }) } else { Err(bad()) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Name of the TUN interface: 1 to 15 bytes (Linux `IFNAMSIZ` - 1), letters,
/// digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InterfaceName {
    fn default() -> Self {
        Self("warren0".to_owned())
    }
}

impl FromStr for InterfaceName {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let ok = (1..=15).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !matches!(text, "." | ".." | "all" | "default" | "lo");
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadValue(format!(
                "`{}` is not an interface name: use 1 to 15 letters, digits, `-`, `_` or `.`, such as warren0",
                cut(text)
            )))
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum $type { $($(#[$vdoc])* $variant),+ }

        impl $type {
            /// The accepted words.
            pub const WORDS: &'static [&'static str] = &[$($text),+];
            /// The word used in files and flags.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $type {
            type Err = BadValue;
            fn from_str(text: &str) -> Result<Self, BadValue> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(BadValue(format!(
                        concat!("unknown ", $what, " `{}`: use {}"), cut(other), Self::WORDS.join(" or ")
                    ))),
                }
            }
        }
    };
}

choice!(
    /// Form of log lines.
    LogFormat, "log format" {
        /// One readable line per event.
        #[default]
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
);

choice!(
    /// Least important log lines to print.
    LogLevel, "log level" {
        /// Only what failed.
        Error = "error",
        /// Also what looks wrong, refused peers included.
        #[default]
        Warn = "warn",
        /// Also what happens.
        Info = "info",
        /// Also why it happens.
        Debug = "debug",
        /// Everything; slow.
        Trace = "trace",
    }
);

choice!(
    /// Whether links wait for the post-quantum secret of the control connection.
    PostQuantum, "pq policy" {
        /// Use it when the control connection has delivered it; carry data before that.
        #[default]
        Preferred = "preferred",
        /// Carry no data on a link between nodes without it.
        Required = "required",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        assert_eq!(":7000".parse::<Listen>().unwrap().to_string(), "[::]:7000");
        assert_eq!("10.0.0.1:0".parse::<Listen>().unwrap().to_string(), "10.0.0.1:0");
        for bad in ["", "9277", "10.0.0.1", "host:1", ":99999", "::1"] {
            let error = bad.parse::<Listen>().unwrap_err().to_string();
            assert!(error.contains("ADDR:PORT"), "{error}");
        }
    }

    #[test]
    fn metrics_need_an_address_and_a_port() {
        for good in ["127.0.0.1:9586", "[::1]:9586"] {
            assert_eq!(good.parse::<MetricsListen>().unwrap().to_string(), good);
        }
        for bad in ["", "9586", ":9586", "localhost:9586", "127.0.0.1:0", "::1"] {
            let error = bad.parse::<MetricsListen>().unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:9586"), "{error}");
        }
    }

    #[test]
    fn endpoints_round_trip() {
        for good in ["192.0.2.1:9277", "[2001:db8::1]:9277", "vpn.example.org:1"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        assert_eq!("VPN.example:5".parse::<Endpoint>().unwrap().host(), "vpn.example");
        for bad in
            ["", "host", "host:0", "1.2.3:4", "0.0.0.0:5", "a b:1", "2001:db8::1", "-:x", ":1"]
        {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn interface_names() {
        assert!("wg-0.b".parse::<InterfaceName>().is_ok());
        for bad in ["", "sixteen-letters0", "a/b", "a b", "lo", ".."] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn choices_list_what_is_allowed() {
        let error = "xml".parse::<LogFormat>().unwrap_err().to_string();
        assert_eq!(error, "unknown log format `xml`: use text or json");
        assert_eq!("required".parse(), Ok(PostQuantum::Required));
    }
}

//! WireGuard's cross-platform userspace API, read-only, so that `wg show` of
//! stock wireguard-tools works on Warren's interface.
//! Protocol: <https://www.wireguard.com/xplatform/>.
//!
//! In: a [`Snapshot`] asked of the daemon's loop for each `get=1`. Out: its
//! text form. Invariants: `private_key` and `preshared_key` are never sent;
//! `set=1` changes nothing and is answered `errno=1` (EPERM); a request is
//! bounded in size and time. Deliberately not here: other tools' writes.

mod serve;

use std::fmt::Write;
use std::net::SocketAddr;

use ipnet::IpNet;
use warren_types::LinkPublicKey;

pub use serve::{RUN_DIR, Socket, bind, serve};

/// EPERM: the request is understood and not allowed.
const EPERM: i32 = 1;
/// EINVAL: the request is not understood.
const EINVAL: i32 = 22;

/// The interface at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// UDP port.
    pub listen_port: u16,
    /// Every peer.
    pub peers: Vec<PeerSnapshot>,
}

/// One peer at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSnapshot {
    /// Its X25519 link key.
    pub public_key: LinkPublicKey,
    /// Where its packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Prefixes routed to it.
    pub allowed_ips: Vec<IpNet>,
    /// Wall-clock time of the last handshake since the Unix epoch; zero: none.
    pub last_handshake: std::time::Duration,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Seconds between keepalives; 0: none.
    pub keepalive_s: u16,
}

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Get,
    Set,
    Unknown,
}

/// Reads the first line of a request.
fn operation(line: &str) -> Operation {
    match line.trim_end_matches(['\r', '\n']) {
        "get=1" => Operation::Get,
        "set=1" => Operation::Set,
        _ => Operation::Unknown,
    }
}

impl Snapshot {
    /// The answer to `get=1`, with its closing `errno=0` and empty line.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "listen_port={}", self.listen_port);
        for peer in &self.peers {
            let key = data_encoding::HEXLOWER.encode(&peer.public_key.0);
            let _ = writeln!(out, "public_key={key}");
            if let Some(endpoint) = peer.endpoint {
                let _ = writeln!(out, "endpoint={}", plain(endpoint));
            }
            let _ = writeln!(out, "last_handshake_time_sec={}", peer.last_handshake.as_secs());
            let _ =
                writeln!(out, "last_handshake_time_nsec={}", peer.last_handshake.subsec_nanos());
            let _ = writeln!(out, "rx_bytes={}\ntx_bytes={}", peer.rx_bytes, peer.tx_bytes);
            let _ = writeln!(out, "persistent_keepalive_interval={}", peer.keepalive_s);
            for net in &peer.allowed_ips {
                let _ = writeln!(out, "allowed_ip={net}");
            }
            let _ = writeln!(out, "protocol_version=1");
        }
        out.push_str(&errno(0));
        out
    }
}

/// An IPv4 address seen by a dual-stack socket is shown as IPv4; scope ids,
/// which `wg` does not parse in numeric form, are left out.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn errno(code: i32) -> String {
    format!("errno={code}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_get_and_set_of_version_one_are_known() {
        assert_eq!(operation("get=1\n"), Operation::Get);
        assert_eq!(operation("set=1\n"), Operation::Set);
        for other in ["", "get=2\n", "get=1 \n", "GET=1\n", "private_key=00\n"] {
            assert_eq!(operation(other), Operation::Unknown, "{other:?}");
        }
    }

    #[test]
    fn the_text_has_no_secret_field_and_ends_as_the_protocol_says() {
        let snapshot = Snapshot {
            listen_port: 9277,
            peers: vec![PeerSnapshot {
                public_key: LinkPublicKey([0xab; 32]),
                endpoint: Some("[::ffff:192.0.2.1]:5".parse().unwrap()),
                allowed_ips: vec!["100.64.0.2/32".parse().unwrap()],
                last_handshake: std::time::Duration::new(1_700_000_000, 5),
                rx_bytes: 10,
                tx_bytes: 20,
                keepalive_s: 25,
            }],
        };
        let text = snapshot.render();
        assert!(text.ends_with("\nerrno=0\n\n"));
        assert!(text.contains(&format!("public_key={}\n", "ab".repeat(32))));
        assert!(text.contains("endpoint=192.0.2.1:5\n"));
        assert!(text.contains("last_handshake_time_nsec=5\n"));
        assert!(!text.contains("private_key") && !text.contains("preshared_key"));
    }

    proptest::proptest! {
        #[test]
        fn no_request_panics(line in "\\PC*") {
            let _ = operation(&line);
        }
    }
}

//! The configuration file of a stock WireGuard client, in the form `wg-quick`
//! and WireGuard's applications read (wg-quick(8)).
//!
//! In: keys and addresses the daemon chose. Out: text that holds the client's
//! secret keys, zeroised when dropped. Deliberately not here: choosing and
//! storing them.

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_types::{LinkPublicKey, LinkSecretKey, NetworkName, NodeName, PresharedKey};
use zeroize::Zeroizing;

use crate::config::Endpoint;

/// Seconds between the client's keepalives, so that a NAT keeps its mapping
/// (wg(8) recommends 25).
pub const KEEPALIVE_S: u16 = 25;

/// What goes into a client's file.
#[derive(Debug)]
pub struct ClientConfig<'a> {
    /// Name of the client.
    pub client: &'a NodeName,
    /// Name of the network.
    pub network: &'a NetworkName,
    /// The client's secret key.
    pub private_key: &'a LinkSecretKey,
    /// The client's overlay addresses.
    pub addresses: &'a [IpAddr],
    /// MTU of the client's interface, bytes.
    pub mtu: u32,
    /// Name of the node it enters the mesh through.
    pub node: &'a NodeName,
    /// That node's link key.
    pub node_key: LinkPublicKey,
    /// The key both mix in.
    pub preshared_key: &'a PresharedKey,
    /// The network's overlay prefixes.
    pub prefixes: &'a [IpNet],
    /// Where the client reaches the node.
    pub endpoint: &'a Endpoint,
    /// Where the node answers questions about members' names, if it does.
    pub names: Option<IpAddr>,
}

impl ClientConfig<'_> {
    /// The file.
    pub fn render(&self) -> Zeroizing<String> {
        // Room for the whole file: growing would leave copies of the keys in
        // freed memory.
        let mut out = Zeroizing::new(String::with_capacity(4096));
        let _ =
            writeln!(out, "# {} in {}.warren, by way of {}", self.client, self.network, self.node);
        let _ = writeln!(out, "[Interface]");
        let _ = writeln!(out, "PrivateKey = {}", *self.private_key.to_base64());
        let _ = writeln!(out, "Address = {}", joined(self.addresses.iter().map(host_prefix)));
        let _ = writeln!(out, "MTU = {}", self.mtu);
        if let Some(names) = self.names {
            // Not set: wg-quick and the applications would send it every
            // question, and it answers those about members only.
            let _ = writeln!(out, "# Members' names (NODE.{}.warren): ask {names}", self.network);
        }
        let _ = writeln!(out, "\n[Peer]");
        let _ = writeln!(out, "PublicKey = {}", self.node_key);
        let _ = writeln!(out, "PresharedKey = {}", *self.preshared_key.to_base64());
        let _ = writeln!(out, "AllowedIPs = {}", joined(self.prefixes.iter()));
        let _ = writeln!(out, "Endpoint = {}", self.endpoint);
        let _ = writeln!(out, "PersistentKeepalive = {KEEPALIVE_S}");
        out
    }
}

fn host_prefix(address: &IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn joined(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Zeroizing<String> {
        ClientConfig {
            client: &"phone".parse().unwrap(),
            network: &"lab".parse().unwrap(),
            private_key: &LinkSecretKey::from_bytes([0x40; 32]),
            addresses: &["100.64.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            mtu: 1420,
            node: &"gpu-1".parse().unwrap(),
            node_key: LinkPublicKey([2; 32]),
            preshared_key: &PresharedKey::from_bytes([3; 32]),
            prefixes: &["100.64.0.0/10".parse().unwrap(), "fd00::/48".parse().unwrap()],
            endpoint: &"[2001:db8::1]:9277".parse().unwrap(),
            names: Some("100.64.0.1".parse().unwrap()),
        }
        .render()
    }

    #[test]
    fn the_file_has_every_line_wg_quick_needs() {
        let text = example();
        for line in [
            "[Interface]",
            "Address = 100.64.0.9/32, fd00::9/128",
            "MTU = 1420",
            "[Peer]",
            "AllowedIPs = 100.64.0.0/10, fd00::/48",
            "Endpoint = [2001:db8::1]:9277",
            "PersistentKeepalive = 25",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{}", *text);
        }
        assert!(text.capacity() == 4096, "the buffer never grew");
    }

    #[test]
    fn the_real_wg_quick_reads_it() {
        let dir = std::env::temp_dir().join(format!("warren-wgq-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("phone.conf");
        std::fs::write(&file, example().as_bytes()).unwrap();
        let stripped = std::process::Command::new("wg-quick").arg("strip").arg(&file).output();
        std::fs::remove_dir_all(&dir).unwrap();
        let Ok(stripped) = stripped else {
            eprintln!("SKIPPED: wg-quick is not installed (package wireguard-tools)");
            return;
        };
        let text = String::from_utf8_lossy(&stripped.stdout);
        assert!(stripped.status.success(), "{}", String::from_utf8_lossy(&stripped.stderr));
        assert!(text.contains("PrivateKey") && !text.contains("Address"), "{text}");
    }
}

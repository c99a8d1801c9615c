//! Entry function for questions to the DNS server.

use warren_node::dns::{Zone, answer, is_outside};
use warren_types::{NodeId, NodeName};

/// One question, as a datagram and over TCP; the reply must fit and be a reply.
pub fn question(data: &[u8]) {
    let prefixes = ["100.64.0.0/10", "fd12:3456:789a::/48"].map(|p| p.parse().expect("constant"));
    let node: NodeName = "gpu-1".parse().expect("constant");
    let network = "lab".parse().expect("constant");
    let mut zone = Zone::new(&node, &network, prefixes.to_vec()).expect("valid names");
    let addresses = ["100.64.0.1", "fd12:3456:789a::1"].map(|a| a.parse().expect("constant"));
    zone.put(NodeId([1; 32]), vec![(node, addresses.to_vec())]);
    // What is ours is never passed on: it has another answer than a refusal.
    if is_outside(&zone, data) {
        let reply = answer(&zone, data, false).expect("a question");
        assert!(reply[3] & 15 == 5 || reply.len() > 12 && reply[3] & 15 == 0, "{reply:?}");
    }
    for (udp, most) in [(true, 1232), (false, usize::from(u16::MAX))] {
        if let Some(reply) = answer(&zone, data, udp) {
            assert!((12..=most).contains(&reply.len()), "{} bytes", reply.len());
            assert!(reply[..2] == data[..2] && reply[2] & 0x80 != 0, "not a reply to it");
        }
    }
}

//! Where nobody may be looked for: addresses that this machine's own routes lead
//! into the tunnel. Datagrams of the tunnel itself would go in circles there.

use std::net::IpAddr;

use ipnet::IpNet;

/// Underlay addresses that the kernel would send into the tunnel: nobody is to
/// be looked for there, or datagrams would go in circles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Looping {
    /// Subnet routes in the kernel.
    pub(crate) prefixes: Vec<IpNet>,
    /// Networks this machine is in itself, which the kernel prefers.
    pub(crate) except: Vec<IpNet>,
}

impl Looping {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let ip = address.to_canonical();
        self.prefixes.iter().any(|net| net.contains(&ip))
            && !self.except.iter().any(|net| net.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_networks_are_not_looping() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let looping =
            Looping { prefixes: vec![net("10.0.0.0/8")], except: vec![net("10.1.2.0/24")] };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(looping.contains(ip("10.9.9.9")) && looping.contains(ip("::ffff:10.9.9.9")));
        assert!(!looping.contains(ip("10.1.2.3")) && !looping.contains(ip("192.0.2.1")));
    }
}

//! Subnet routes: prefixes behind nodes, from the descriptors that offer them
//! and the admins' decisions to the engine and the kernel.
//!
//! In: members' offers, decisions, which members answer, the machine's own
//! networks. Out: which prefix goes to which node, and why others do not.
//! Invariants: nothing is in force that no admin approved; a prefix is never
//! used that would draw this machine's own network, or the path to a member,
//! into the tunnel; of several nodes that offer one prefix the one in use stays
//! until it does not answer; kernel routes are ours by their metric, and go with
//! the interface. Deliberately not here: setting up forwarding on the node that
//! offers a prefix, which is the operator's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_control::route_approval::{ApprovalBody, SignedApproval, check_route};
use warren_types::{NetworkId, NodeId};

/// Metric of our kernel routes: after everything that system and operator set
/// up by themselves.
pub(super) const METRIC: u32 = 9277;

/// What an admin decided about one prefix of one node.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    pub(super) approved: bool,
    sequence: u64,
    pub(super) expires: u64,
    /// As it travelled; none where each node decides for itself.
    signed: Option<SignedApproval>,
}

/// Why an offer is not used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unused {
    /// No admin has decided.
    NotApproved,
    /// An admin decided against it.
    Denied,
    /// It can never be one.
    Unfit(String),
    /// We offer an overlapping one ourselves.
    Own(IpNet),
    /// This machine is in that network itself.
    Local(IpNet),
    /// The way to a member leads through it.
    Underlay(String, IpAddr),
    /// Another node is used.
    Spare(String),
}

impl std::fmt::Display for Unused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotApproved => write!(f, "not approved yet: `warren route approve` on an admin"),
            Self::Denied => write!(f, "denied by an admin"),
            Self::Unfit(reason) => write!(f, "{reason}"),
            Self::Own(own) => write!(f, "this node offers {own} itself"),
            Self::Local(net) => write!(f, "this machine is in {net} itself"),
            Self::Underlay(name, address) => {
                write!(f, "the path to {name} leads through it ({address})")
            }
            Self::Spare(name) => write!(f, "{name} is used, this one stands by"),
        }
    }
}

/// What is kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteFile {
    /// What we offer.
    #[serde(default)]
    advertised: Vec<IpNet>,
    /// Decisions of admins, as they travelled, in base32.
    #[serde(default)]
    decisions: Vec<String>,
    /// Decisions for this node alone, in networks without admins.
    #[serde(default)]
    own: Vec<OwnDecision>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnDecision {
    router: Ipv6Addr,
    prefix: IpNet,
    approved: bool,
}

impl RouteFile {
    /// The admins' decisions, unchecked.
    pub(super) fn signed(&self) -> Vec<SignedApproval> {
        let decode = |text: &String| data_encoding::BASE32_NOPAD.decode(text.as_bytes()).ok();
        self.decisions
            .iter()
            .filter_map(decode)
            .filter_map(|bytes| SignedApproval::decode(&bytes).ok())
            .collect()
    }
}

/// What is known of the world when offers are judged.
pub(super) struct Circumstances<'a> {
    pub(super) network: NetworkId,
    /// Networks this machine is in.
    pub(super) local: &'a [IpNet],
    /// Where members are reached now.
    pub(super) underlay: &'a [(String, IpAddr)],
    /// A member's overlay address and name.
    pub(super) place: &'a dyn Fn(NodeId) -> Option<(Ipv6Addr, String)>,
    /// It answers, or nobody has tried.
    pub(super) answers: &'a dyn Fn(NodeId) -> bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Subnets {
    /// What we offer.
    pub(super) advertised: Vec<IpNet>,
    decisions: BTreeMap<(Ipv6Addr, IpNet), Decision>,
    offers: BTreeMap<IpNet, BTreeSet<NodeId>>,
    /// Which prefix goes to whom.
    pub(super) in_force: BTreeMap<IpNet, NodeId>,
    /// Why others do not.
    pub(super) unused: BTreeMap<(IpNet, NodeId), Unused>,
    /// What the kernel has.
    pub(super) installed: BTreeSet<IpNet>,
    /// What it refused.
    pub(super) refused: BTreeMap<IpNet, String>,
}

impl Subnets {
    pub(super) fn load(file: RouteFile) -> Self {
        let own = file.own.into_iter().map(|d| {
            let decision =
                Decision { approved: d.approved, sequence: 0, expires: u64::MAX, signed: None };
            ((d.router, d.prefix), decision)
        });
        Self { advertised: file.advertised, decisions: own.collect(), ..Self::default() }
    }

    pub(super) fn file(&self) -> RouteFile {
        let encode = |s: &SignedApproval| data_encoding::BASE32_NOPAD.encode(&s.encode());
        RouteFile {
            advertised: self.advertised.clone(),
            decisions: self
                .decisions
                .values()
                .filter_map(|d| d.signed.as_ref().map(encode))
                .collect(),
            own: self
                .decisions
                .iter()
                .filter(|(_, d)| d.signed.is_none())
                .map(|((router, prefix), d)| OwnDecision {
                    router: *router,
                    prefix: *prefix,
                    approved: d.approved,
                })
                .collect(),
        }
    }

    /// A member's offers are now these. True when that is news.
    pub(super) fn offer(&mut self, node: NodeId, prefixes: &[IpNet]) -> bool {
        let known = |subnets: &Self, prefix: &IpNet| {
            subnets.offers.get(prefix).is_some_and(|nodes| nodes.contains(&node))
        };
        let before = self.offers.values().filter(|nodes| nodes.contains(&node)).count();
        let distinct: BTreeSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
        if before == distinct.len() && distinct.iter().all(|prefix| known(self, prefix)) {
            return false;
        }
        self.offers.retain(|_, nodes| {
            nodes.remove(&node);
            !nodes.is_empty()
        });
        for prefix in distinct {
            self.offers.entry(prefix).or_default().insert(node);
        }
        true
    }

    /// An admin decided. False when a later decision is known.
    pub(super) fn decide(&mut self, body: &ApprovalBody, signed: Option<SignedApproval>) -> bool {
        let key = (body.router, body.prefix);
        if self.decisions.get(&key).is_some_and(|d| {
            d.signed.is_some() && (d.sequence, d.approved) >= (body.sequence, body.approved)
        }) {
            return false;
        }
        let (approved, sequence, expires) = (body.approved, body.sequence, body.expires);
        self.decisions.insert(key, Decision { approved, sequence, expires, signed });
        true
    }

    pub(super) fn decision(&self, router: Ipv6Addr, prefix: IpNet) -> Option<&Decision> {
        self.decisions.get(&(router, prefix))
    }

    /// Every decision in force that ends before `until` and may be renewed.
    pub(super) fn ending(&self, until: u64) -> Vec<(Ipv6Addr, IpNet)> {
        self.decisions
            .iter()
            .filter(|(_, d)| d.approved && d.signed.is_some() && d.expires < until)
            .map(|(key, _)| *key)
            .collect()
    }

    /// Forgets decisions that have ended.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let before = self.decisions.len();
        self.decisions.retain(|_, d| d.expires > now);
        self.decisions.len() != before
    }

    /// Who offers what, in order.
    pub(super) fn offers(&self) -> impl Iterator<Item = (IpNet, NodeId)> + '_ {
        self.offers.iter().flat_map(|(prefix, nodes)| nodes.iter().map(|node| (*prefix, *node)))
    }

    /// Judges all offers again. Returns the members whose prefixes changed.
    pub(super) fn judge(&mut self, around: &Circumstances<'_>) -> BTreeSet<NodeId> {
        let mut in_force = BTreeMap::new();
        let mut unused = BTreeMap::new();
        for (prefix, nodes) in &self.offers {
            let fit = self.fit(*prefix, around);
            let mut usable = Vec::new();
            for node in nodes {
                let Some((place, _)) = (around.place)(*node) else { continue };
                let reason = match (&fit, self.decisions.get(&(place, *prefix))) {
                    (_, None) => Unused::NotApproved,
                    (_, Some(decision)) if !decision.approved => Unused::Denied,
                    (Err(reason), _) => reason.clone(),
                    (Ok(()), _) => {
                        usable.push(*node);
                        continue;
                    }
                };
                unused.insert((*prefix, *node), reason);
            }
            let present = self.in_force.get(prefix).filter(|node| usable.contains(node));
            let chosen = present
                .filter(|node| (around.answers)(**node))
                .or_else(|| usable.iter().find(|node| (around.answers)(**node)))
                .or(present)
                .or(usable.first())
                .copied();
            let Some(chosen) = chosen else { continue };
            in_force.insert(*prefix, chosen);
            let name = (around.place)(chosen).map(|(_, name)| name).unwrap_or_default();
            for node in usable.into_iter().filter(|node| *node != chosen) {
                unused.insert((*prefix, node), Unused::Spare(name.clone()));
            }
        }
        self.unused = unused;
        let before = std::mem::replace(&mut self.in_force, in_force);
        let pairs = |map: &BTreeMap<IpNet, NodeId>| -> BTreeSet<(IpNet, NodeId)> {
            map.iter().map(|(prefix, node)| (*prefix, *node)).collect()
        };
        let (old, new) = (pairs(&before), pairs(&self.in_force));
        old.symmetric_difference(&new).map(|(_, node)| *node).collect()
    }

    /// Whether a prefix can be used on this machine, whoever offers it.
    fn fit(&self, prefix: IpNet, around: &Circumstances<'_>) -> Result<(), Unused> {
        check_route(around.network, prefix).map_err(|e| Unused::Unfit(e.to_string()))?;
        let overlap = |a: &IpNet| a.contains(&prefix) || prefix.contains(a);
        if let Some(own) = self.advertised.iter().find(|own| overlap(own)) {
            return Err(Unused::Own(*own));
        }
        if let Some(local) = around.local.iter().find(|local| local.contains(&prefix)) {
            return Err(Unused::Local(*local));
        }
        let through = around.underlay.iter().find(|(_, address)| {
            prefix.contains(address) && !around.local.iter().any(|local| local.contains(address))
        });
        match through {
            Some((name, address)) => Err(Unused::Underlay(name.clone(), *address)),
            None => Ok(()),
        }
    }

    /// Prefixes in force behind one member.
    pub(super) fn behind(&self, node: NodeId) -> Vec<IpNet> {
        self.in_force.iter().filter(|(_, n)| **n == node).map(|(prefix, _)| *prefix).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: NetworkId = NetworkId([1; 16]);

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn node(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    fn place(n: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into())
    }

    fn decision(n: u8, prefix: &str, approved: bool, sequence: u64) -> ApprovalBody {
        let (router, prefix) = (place(n), net(prefix));
        ApprovalBody { network: NET, router, prefix, approved, sequence, expires: u64::MAX }
    }

    fn signed() -> Option<SignedApproval> {
        Some(SignedApproval { body: vec![1], signature: [0; 64], chain: vec![] })
    }

    /// Judges in a world where the members in `silent` do not answer.
    fn judge(subnets: &mut Subnets, local: &[&str], silent: &[u8]) -> BTreeSet<NodeId> {
        let local: Vec<IpNet> = local.iter().map(|text| net(text)).collect();
        let underlay = [("far".to_owned(), "203.0.113.9".parse().unwrap())];
        subnets.judge(&Circumstances {
            network: NET,
            local: &local,
            underlay: &underlay,
            place: &|id| Some((place(id.0[0]), format!("n{}", id.0[0]))),
            answers: &|id| !silent.contains(&id.0[0]),
        })
    }

    #[test]
    fn what_is_not_approved_is_not_used() {
        let mut subnets = Subnets::default();
        assert!(subnets.offer(node(1), &[net("192.168.7.0/24"), net("10.9.0.0/16")]));
        assert!(!subnets.offer(node(1), &[net("192.168.7.1/24"), net("10.9.0.0/16")]), "the same");
        assert!(judge(&mut subnets, &[], &[]).is_empty());
        assert!(subnets.in_force.is_empty());
        assert!(subnets.decide(&decision(1, "192.168.7.0/24", true, 5), signed()));
        assert_eq!(judge(&mut subnets, &[], &[]), [node(1)].into());
        assert_eq!(subnets.behind(node(1)), [net("192.168.7.0/24")]);
        let other = subnets.unused[&(net("10.9.0.0/16"), node(1))].clone();
        assert_eq!(other, Unused::NotApproved);
        assert!(!subnets.decide(&decision(1, "192.168.7.0/24", false, 4), signed()), "older");
        assert!(subnets.decide(&decision(1, "192.168.7.0/24", false, 6), signed()));
        assert_eq!(judge(&mut subnets, &[], &[]), [node(1)].into());
        assert!(subnets.in_force.is_empty(), "denied again");
        subnets.decide(&decision(1, "192.168.7.0/24", true, 7), signed());
        judge(&mut subnets, &[], &[]);
        assert!(subnets.offer(node(1), &[]));
        assert_eq!(judge(&mut subnets, &[], &[]), [node(1)].into(), "withdrawn");
    }

    #[test]
    fn what_would_cut_this_machine_off_is_refused_with_the_reason() {
        let mut subnets = Subnets { advertised: vec![net("172.20.0.0/16")], ..Default::default() };
        for prefix in ["192.168.7.0/24", "172.20.5.0/24", "203.0.113.0/24", "10.0.0.0/8"] {
            subnets.decide(&decision(1, prefix, true, 1), signed());
        }
        let all = ["192.168.7.0/24", "172.20.5.0/24", "203.0.113.0/24", "10.0.0.0/8"].map(net);
        subnets.offer(node(1), &all);
        judge(&mut subnets, &["192.168.0.0/16", "10.1.2.0/24"], &[]);
        // Larger than the machine's own network: the kernel keeps the smaller.
        assert_eq!(subnets.behind(node(1)), [net("10.0.0.0/8")]);
        let why = |prefix: &str| subnets.unused[&(net(prefix), node(1))].to_string();
        assert!(why("192.168.7.0/24").contains("192.168.0.0/16 itself"));
        assert!(why("172.20.5.0/24").contains("offers 172.20.0.0/16"));
        assert!(why("203.0.113.0/24").contains("path to far"));
    }

    #[test]
    fn another_router_takes_over_and_keeps_it() {
        let mut subnets = Subnets::default();
        for n in [1, 2] {
            subnets.offer(node(n), &[net("192.168.7.0/24")]);
            subnets.decide(&decision(n, "192.168.7.0/24", true, 1), signed());
        }
        judge(&mut subnets, &[], &[]);
        assert_eq!(subnets.behind(node(1)).len(), 1);
        assert_eq!(judge(&mut subnets, &[], &[1]), [node(1), node(2)].into());
        assert_eq!(subnets.behind(node(2)).len(), 1);
        assert!(judge(&mut subnets, &[], &[]).is_empty(), "no flapping back");
        assert!(judge(&mut subnets, &[], &[1, 2]).is_empty(), "nobody answers: as it is");
        let why = subnets.unused[&(net("192.168.7.0/24"), node(1))].to_string();
        assert!(why.contains("n2 is used"), "{why}");
    }

    #[test]
    fn the_file_brings_everything_back() {
        let mut subnets = Subnets { advertised: vec![net("10.0.0.0/8")], ..Default::default() };
        subnets.decide(&decision(1, "192.168.7.0/24", true, 1), None);
        let record = SignedApproval { body: vec![7; 40], signature: [9; 64], chain: vec![] };
        subnets.decide(&decision(2, "192.168.7.0/24", true, 1), Some(record.clone()));
        let text = serde_json::to_string(&subnets.file()).unwrap();
        let file: RouteFile = serde_json::from_str(&text).unwrap();
        assert_eq!(file.signed(), [record]);
        let back = Subnets::load(file);
        assert_eq!(back.advertised, subnets.advertised);
        assert!(back.decision(place(1), net("192.168.7.0/24")).is_some_and(|d| d.approved));
        assert!(back.decision(place(2), net("192.168.7.0/24")).is_none(), "to be checked first");
    }
}

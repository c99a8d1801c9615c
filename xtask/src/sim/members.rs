//! Who is in the simulated network: keys, certificates, genuine records, and
//! the check of all others.
//!
//! Invariants: genuine records are those made here for their owner; every
//! record is checked by `warren-control`'s own code, once for the whole process,
//! since all nodes would find the same.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use warren_control::address;
use warren_control::ca::{Authority, CertificateRequest};
use warren_control::descriptor::{
    DESCRIPTOR_LIFE, DescriptorBody, DescriptorError, SignedDescriptor,
};
use warren_control::identity::IdentityKey;
use warren_control::link_state::{LinkReport, LinkStateBody, LinkStateError, SignedLinkState};
use warren_control::membership::Membership;
use warren_control::network::{NetworkParameters, fingerprint};
use warren_control::revocation::{
    RevocationBody, RevocationError, RevocationList, SignedRevocation,
};
use warren_control::trust::Trust;
use warren_discovery::gossip::{Kind, Record, Time, Verdict};
use warren_types::{LinkPublicKey, NodeId, Suite};

use super::random::Random;

/// Life of a link state, seconds.
const LINK_STATE_LIFE: u64 = 3600;

/// One member, honest or not.
pub(crate) struct Member {
    pub(crate) key: IdentityKey,
    pub(crate) id: NodeId,
    chain: Vec<Vec<u8>>,
    name: String,
    sequence: u64,
    /// Sequence of its last descriptor, and whether that said it leaves.
    pub(crate) latest: (u64, bool),
}

/// What a genuine record means to the simulation.
#[derive(Clone, Copy)]
pub(crate) enum Meaning {
    /// A descriptor of this member; true when it leaves.
    Descriptor(usize, bool),
    Revocation(usize),
    Other,
}

/// Everybody who is or will be a member.
pub(crate) struct Members {
    pub(crate) network: NetworkParameters,
    pub(crate) membership: Membership,
    authority: Authority,
    trust: Trust,
    /// Another network's, with which accusers sign.
    rogue: Authority,
    pub(crate) list: Vec<Member>,
    index: HashMap<NodeId, usize>,
    genuine: HashSet<u128>,
    checked: HashMap<u128, (Verdict, Meaning)>,
    /// Genuine records that were replaced.
    pub(crate) history: Vec<Arc<Record>>,
    pub(crate) verified: u64,
    pub(crate) forged_accepted: u64,
}

impl Members {
    pub(crate) fn new(count: usize, unix: u64, random: &mut Random) -> Result<Self> {
        let name = "sim".parse().context("a name")?;
        let key = IdentityKey::generate(random)?;
        let authority = Authority::create(key, &name, unix, random)?;
        let rogue = Authority::create(IdentityKey::generate(random)?, &name, unix, random)?;
        let print = fingerprint(authority.certificate());
        let network = NetworkParameters::certificate(name.clone(), Suite::Aes256Gcm, &print);
        let trust = Trust::new(authority.certificate().to_vec(), name, network.id)?;
        let mut list = Vec::with_capacity(count);
        for n in 0..count {
            let key = IdentityKey::generate(random)?;
            let id = key.id();
            let name = format!("node-{n}");
            let addresses = addresses(&network, id).to_vec();
            let request = CertificateRequest { id, name: name.parse()?, addresses, origin: None };
            let chain = vec![authority.issue(&request, unix, random)?];
            list.push(Member { key, id, chain, name, sequence: 0, latest: (0, false) });
        }
        list.sort_by_key(|m| m.id);
        let index = list.iter().enumerate().map(|(n, m)| (m.id, n)).collect();
        Ok(Self {
            network,
            membership: Membership::Certificate(trust.clone()),
            authority,
            trust,
            rogue,
            list,
            index,
            genuine: HashSet::new(),
            checked: HashMap::new(),
            history: Vec::new(),
            verified: 0,
            forged_accepted: 0,
        })
    }

    pub(crate) fn index(&self, id: NodeId) -> usize {
        self.index[&id]
    }

    fn sequence(&mut self, who: usize, now: Time) -> u64 {
        let member = &mut self.list[who];
        member.sequence = (member.sequence + 1).max(now.unix * 1000 + now.ms % 1000);
        member.sequence
    }

    fn note(&mut self, record: Option<Arc<Record>>) -> Arc<Record> {
        let record = record.expect("our records are not too large");
        self.genuine.insert(record.hash());
        if self.history.len() < 4000 {
            self.history.push(record.clone());
        }
        record
    }

    fn body(&self, who: usize, sequence: u64, unix: u64, port: u16) -> DescriptorBody {
        let member = &self.list[who];
        let at = |n: u8| SocketAddr::from(([198, 51, n, (who % 250) as u8], port));
        DescriptorBody {
            network: self.network.id,
            node: member.id,
            name: member.name.parse().expect("a name we made"),
            link_key: LinkPublicKey(member.id.0),
            addresses: addresses(&self.network, member.id).to_vec(),
            routes: Vec::new(),
            tcp: Vec::new(),
            keys: None,
            onion: None,
            clients: Vec::new(),
            endpoints: (0..6).map(at).collect(),
            sequence,
            issued: unix,
            expires: unix + DESCRIPTOR_LIFE,
            chain: member.chain.clone(),
            left: false,
            admin: false,
        }
    }

    /// A new descriptor by its owner.
    pub(crate) fn descriptor(&mut self, who: usize, now: Time, left: bool) -> Arc<Record> {
        let sequence = self.sequence(who, now);
        let mut body = self.body(who, sequence, now.unix, 1 + (sequence % 60_000) as u16);
        body.left = left;
        let signed = body.sign(&self.list[who].key, &self.membership);
        self.list[who].latest = (sequence, left);
        self.note(descriptor_record(&signed))
    }

    /// A descriptor signed by its owner, but of a sequence far ahead.
    pub(crate) fn far_ahead(&self, who: usize, now: Time) -> Option<Arc<Record>> {
        let body = self.body(who, (now.unix + 100_000) * 1000, now.unix, 1);
        descriptor_record(&body.sign(&self.list[who].key, &self.membership))
    }

    /// A descriptor of `victim` with a newer sequence, signed by `who`.
    pub(crate) fn impersonate(&self, who: usize, victim: usize, now: Time) -> Option<Arc<Record>> {
        let body = self.body(victim, now.unix * 1000 + 999, now.unix, 666);
        descriptor_record(&body.sign(&self.list[who].key, &self.membership))
    }

    /// A genuine record of another with some bytes changed and a newer header.
    pub(crate) fn tamper(&self, record: &Record, now: Time) -> Option<Arc<Record>> {
        let mut body = record.body().to_vec();
        let at = body.len() / 2;
        body[at] ^= 1;
        let sequence = now.unix * 1000 + 998;
        Record::new(record.kind(), *record.subject(), sequence, record.expires(), &body)
    }

    /// A revocation of `victim`: by an authority of another network, or with
    /// a signature that is none.
    pub(crate) fn accuse(&self, victim: usize, bad: bool, now: Time) -> Option<Arc<Record>> {
        let body = RevocationBody::of(self.network.id, self.list[victim].id, now.unix);
        let mut signed = SignedRevocation::sign(&self.rogue, &self.trust, &body);
        if bad {
            signed.chain = vec![self.list[victim].chain[0].clone()];
        }
        revocation_record(&signed)
    }

    /// A revocation by the CA.
    pub(crate) fn revoke(&mut self, who: usize, now: Time) -> Arc<Record> {
        let body = RevocationBody::of(self.network.id, self.list[who].id, now.unix);
        let signed = SignedRevocation::sign(&self.authority, &self.trust, &body);
        self.note(revocation_record(&signed))
    }

    /// What a member says of its links to `others`.
    pub(crate) fn link_state(&mut self, who: usize, others: &[usize], now: Time) -> Arc<Record> {
        let sequence = self.sequence(who, now);
        let report = |other: &usize| {
            let to = address::ipv6_of_node(self.network.id, self.list[*other].id);
            LinkReport::new(to, Duration::from_millis(20 + (*other % 90) as u64), 0.0)
        };
        let links: Vec<_> = others.iter().take(16).map(report).collect();
        let (network, id) = (self.network.id, self.list[who].id);
        let (at, life) = (now.unix, LINK_STATE_LIFE);
        let body = LinkStateBody::new(network, id, sequence, at, life, true, 0, false, &links);
        let bytes = body.sign(&self.list[who].key).encode();
        self.note(Record::new(Kind::LinkState, id.0, sequence, body.expires, &bytes))
    }

    /// Checks a record as the node does.
    pub(crate) fn check(&mut self, record: &Record, now: Time) -> (Verdict, Meaning) {
        if let Some(known) = self.checked.get(&record.hash()) {
            return *known;
        }
        self.verified += 1;
        let found = match record.kind() {
            Kind::Descriptor => self.check_descriptor(record, now),
            Kind::Revocation => self.check_revocation(record, now),
            Kind::LinkState => self.check_link_state(record, now),
            Kind::Trust | Kind::RouteApproval => (Verdict::Ignore, Meaning::Other),
        };
        if found.0 == Verdict::Accept && !self.genuine.contains(&record.hash()) {
            self.forged_accepted += 1;
        }
        if self.checked.len() < 1_000_000 {
            self.checked.insert(record.hash(), found);
        }
        found
    }

    fn check_descriptor(&self, record: &Record, now: Time) -> (Verdict, Meaning) {
        let forged = (Verdict::Forged, Meaning::Other);
        let Ok(signed) = SignedDescriptor::from_bytes(record.body()) else { return forged };
        if descriptor_record(&signed).as_deref() != Some(record) {
            return forged;
        }
        let none = RevocationList::default();
        match signed.verify(self.network.id, &self.membership, &none, now.unix) {
            Ok(it) => {
                let who = self.index(it.body.node);
                (Verdict::Accept, Meaning::Descriptor(who, it.body.left))
            }
            Err(
                DescriptorError::BadSignature
                | DescriptorError::BadMac
                | DescriptorError::WrongNetwork,
            ) => forged,
            Err(_) => (Verdict::Ignore, Meaning::Other),
        }
    }

    fn check_link_state(&self, record: &Record, now: Time) -> (Verdict, Meaning) {
        let forged = (Verdict::Forged, Meaning::Other);
        let Ok(signed) = SignedLinkState::decode(record.body()) else { return forged };
        match signed.verify(self.network.id, now.unix) {
            Ok(body) => {
                let header = (&body.node.0, body.sequence, body.expires);
                if header == (record.subject(), record.sequence(), record.expires()) {
                    (Verdict::Accept, Meaning::Other)
                } else {
                    forged
                }
            }
            Err(LinkStateError::BadSignature) => forged,
            Err(_) => (Verdict::Ignore, Meaning::Other),
        }
    }

    fn check_revocation(&self, record: &Record, now: Time) -> (Verdict, Meaning) {
        let forged = (Verdict::Forged, Meaning::Other);
        let Ok(signed) = SignedRevocation::from_bytes(record.body()) else { return forged };
        if revocation_record(&signed).as_deref() != Some(record) {
            return forged;
        }
        match RevocationList::default().insert(signed, &self.trust, now.unix) {
            Ok(_) => {
                let who = self.index(NodeId(*record.subject()));
                (Verdict::Accept, Meaning::Revocation(who))
            }
            Err(RevocationError::Over | RevocationError::Full | RevocationError::UnknownSigner) => {
                (Verdict::Ignore, Meaning::Other)
            }
            Err(_) => forged,
        }
    }
}

fn addresses(network: &NetworkParameters, id: NodeId) -> [std::net::IpAddr; 2] {
    [
        address::ipv6_of_node(network.id, id).into(),
        address::ipv4_of_key(network.id, &id.0, 0).into(),
    ]
}

/// As the node makes them.
fn descriptor_record(signed: &SignedDescriptor) -> Option<Arc<Record>> {
    let (node, sequence, expires) = signed.header().ok()?;
    Record::new(Kind::Descriptor, node.0, sequence, expires, &signed.to_bytes())
}

fn revocation_record(signed: &SignedRevocation) -> Option<Arc<Record>> {
    let body = signed.peek().ok()?;
    Record::new(Kind::Revocation, body.node.0, body.sequence(), body.ends(), &signed.to_bytes())
}

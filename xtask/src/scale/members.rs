//! A network of many members, made by signing for all of them at once.
//!
//! Out: the state directories of the nodes that will run, each with everybody's
//! descriptor stored, and the keys of the rest thrown away. Invariants: each
//! certificate and descriptor is what the member itself would have made. Members
//! that never run say they wrote their descriptors [`AHEAD`] seconds from now,
//! and the farm's clocks are [`LATE`] seconds behind: the daemon under test
//! takes such descriptors in, the farm does not, so that 200 farmed nodes do not
//! verify 5,000 descriptors each on the machine that is being measured.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use warren_control::address;
use warren_control::ca::{Authority, CertificateRequest};
use warren_control::descriptor::{DESCRIPTOR_LIFE, DescriptorBody, SignedDescriptor};
use warren_control::identity::IdentityKey;
use warren_control::membership::Membership;
use warren_control::network::{NetworkParameters, fingerprint};
use warren_control::trust::Trust;
use warren_node::random::OsRandom;
use warren_node::store::{Certificates, DirectorySnapshot, Member, Store};
use warren_proto::noise::StaticKey;
use warren_types::{LinkPublicKey, LinkSecretKey, NetworkName, NodeId, NodeName, Suite};

/// How far ahead of the clock the descriptors of members that never run are, s.
pub(super) const AHEAD: u64 = 3000;
/// How far behind it the farm's clocks are, s. Both together are more than the
/// hour that clocks may differ by.
pub(super) const LATE: u64 = 1000;
/// How long ago certificates began, s: before the latest clock.
const ISSUED: u64 = 4 * 3600;

/// Who signs for everybody.
pub(super) struct Maker {
    authority: Authority,
    network: NetworkParameters,
    membership: Membership,
    now: u64,
}

/// A member with its keys.
pub(super) struct Made {
    pub(super) id: NodeId,
    identity: IdentityKey,
    pub(super) member: Member,
    chain: Vec<Vec<u8>>,
    link: LinkPublicKey,
}

impl Maker {
    pub(super) fn new(now: u64) -> Result<Self> {
        let name: NetworkName = "scale".parse()?;
        let key = IdentityKey::generate(&mut OsRandom)?;
        let authority = Authority::create(key, &name, now - ISSUED, &mut OsRandom)?;
        let certificate = authority.certificate().to_vec();
        let print = fingerprint(&certificate);
        let network = NetworkParameters::certificate(name.clone(), Suite::default(), &print);
        let root = Trust::new(certificate, name, network.id)?;
        Ok(Self { authority, network, membership: Membership::Certificate(root), now })
    }

    fn certify(&self, identity: IdentityKey, name: &str, link: LinkPublicKey) -> Result<Made> {
        let (network, id) = (self.network.id, identity.id());
        let name: NodeName = name.parse()?;
        let addresses: Vec<IpAddr> = vec![
            address::ipv4_of_key(network, &id.0, 0).into(),
            address::ipv6_of_node(network, id).into(),
        ];
        let request = CertificateRequest {
            id,
            name: name.clone(),
            addresses: addresses.clone(),
            origin: None,
        };
        let leaf = self.authority.issue(&request, self.now - ISSUED, &mut OsRandom)?;
        let member = Member { network: self.network.clone(), name, addresses };
        Ok(Made { id, identity, member, chain: vec![leaf], link })
    }

    /// A member that will not run.
    pub(super) fn idle(&self, name: &str) -> Result<Made> {
        let identity = IdentityKey::generate(&mut OsRandom)?;
        let mut secret = [0; 32];
        rand_core::RngCore::fill_bytes(&mut OsRandom, &mut secret);
        let link = StaticKey::new(&LinkSecretKey::from_bytes(secret)).public();
        self.certify(identity, name, link)
    }

    /// A member that will, from the state directory `dir`.
    pub(super) fn running(&self, name: &str, dir: &Path) -> Result<Made> {
        let store = Store::open(dir)?;
        let identity = store.identity(&mut OsRandom)?;
        let link = StaticKey::new(&store.link_key(&mut OsRandom)?).public();
        let made = self.certify(identity, name, link)?;
        store.save_certificates(&Certificates {
            chain: made.chain.clone(),
            ca: self.authority.certificate().to_vec(),
        })?;
        store.save_member(&made.member)?;
        Ok(made)
    }

    /// What a member says about itself; `shift`: how far off its clock was, s.
    pub(super) fn describe(
        &self,
        made: &Made,
        endpoint: SocketAddr,
        shift: i64,
    ) -> Result<SignedDescriptor> {
        let issued = self.now.checked_add_signed(shift).context("the clock is wrong")?;
        let body = DescriptorBody {
            network: self.network.id,
            node: made.id,
            name: made.member.name.clone(),
            link_key: made.link,
            addresses: made.member.addresses.clone(),
            clients: vec![],
            endpoints: vec![endpoint],
            sequence: issued * 1000,
            issued,
            expires: issued + DESCRIPTOR_LIFE,
            chain: made.chain.clone(),
            left: false,
            admin: false,
            routes: vec![],
            tcp: vec![],
            keys: None,
            onion: None,
        };
        Ok(body.sign(&made.identity, &self.membership))
    }
}

/// Lets the node of `dir` know everybody from the start.
pub(super) fn store_known(dir: &Path, descriptors: &[SignedDescriptor]) -> Result<()> {
    let snapshot = DirectorySnapshot { descriptors: descriptors.to_vec(), revocations: vec![] };
    Ok(Store::open(dir)?.save_directory(&snapshot)?)
}

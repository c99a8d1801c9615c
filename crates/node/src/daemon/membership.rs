//! What this node is in its network: loaded from the state directory, created
//! by `warren up`, or about to be won by `warren join`.
//!
//! In: configuration and stored state. Out: a [`Standing`], or a fault that
//! says which setting contradicts what is stored. Invariants: settings that a
//! network fixes (name, suite, mode) are never changed behind the operator's
//! back; a new network is stored only after the data path could be set up.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use warren_control::address;
use warren_control::ca::{Authority, CertificateRequest};
use warren_control::identity::IdentityKey;
use warren_control::membership::Membership;
use warren_control::network::{AuthKind, NetworkParameters, fingerprint};
use warren_control::psk::PskKeys;
use warren_control::registry::Registry;
use warren_control::trust::{Trust, TrustChain};
use warren_control::verify::verify_authority;
use warren_types::{LinkPublicKey, NetworkName, NodeName, PresharedKey, Suite};
use zeroize::Zeroizing;

use crate::config::{Auth, Config};
use crate::fault::{Fault, FaultKind};
use crate::random::OsRandom;
use crate::store::{Certificates, Member, Store};
use crate::transport::Admin;

/// Network name when none is given.
const DEFAULT_NETWORK: &str = "warren";

/// A member with all that proves it.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) member: Member,
    pub(super) membership: Membership,
    /// Our certificate chain, leaf first; empty without certificates.
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) admin: Option<Admin>,
    /// What the operator should know of it from the start.
    pub(super) notice: Option<String>,
}

/// The prefixes of a network's overlay.
pub(super) fn prefixes(network: &NetworkParameters) -> Vec<IpNet> {
    vec![address::ipv4_prefix().into(), address::ipv6_prefix(network.id).into()]
}

/// This node's name: as told, else the host's name made a DNS label.
pub(super) fn choose_name(config: &Config) -> Result<NodeName, Fault> {
    if let Some(name) = &config.name {
        return Ok(name.clone());
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label: String = host
        .trim()
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    label.trim_matches('-').parse().map_err(|_| {
        Fault::new(FaultKind::Config, "this machine's host name is no usable node name")
            .remedy("choose one with --name")
    })
}

fn contradiction(what: &str, stored: &str, asked: &str) -> Fault {
    Fault::new(
        FaultKind::Config,
        format!("the {what} of this node is `{stored}`, but `{asked}` was asked for"),
    )
    .remedy(format!(
        "drop the setting, or give a fresh --state-dir to start a node with another {what}"
    ))
}

/// Settings of `config` must agree with what is stored.
pub(super) fn check_agreement(config: &Config, member: &Member) -> Result<(), Fault> {
    let network = &member.network;
    if let Some(name) = config.name.as_ref().filter(|n| **n != member.name) {
        return Err(contradiction("name", member.name.as_str(), name.as_str()));
    }
    if let Some(name) = config.network.as_ref().filter(|n| **n != network.name) {
        return Err(contradiction("network", network.name.as_str(), name.as_str()));
    }
    if let Some(suite) = config.suite.filter(|s| *s != network.suite) {
        return Err(contradiction("suite", network.suite.as_str(), suite.as_str()));
    }
    if config.auth.as_str() != network.auth.as_str()
        // The default says nothing about a node that runs in another mode.
        && config.source("auth.mode") != crate::config::Source::Default
    {
        return Err(contradiction("auth mode", network.auth.as_str(), config.auth.as_str()));
    }
    Ok(())
}

fn read_psk(file: &Path) -> Result<PresharedKey, Fault> {
    let content = warren_os::files::read_private(file, 4096).map_err(|e| {
        Fault::new(FaultKind::Config, format!("cannot use the pre-shared key file: {e}"))
            .remedy("`warren psk generate > FILE` makes one; keep it readable by its owner only (chmod 600)")
    })?;
    let content = Zeroizing::new(content);
    std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
        Fault::new(
            FaultKind::Config,
            format!(
                "{} holds no pre-shared key: 44 base64 characters are expected",
                file.display()
            ),
        )
        .remedy("make one with `warren psk generate > FILE` and copy it to every member")
    })
}

/// How members are recognised when each states it by itself (key and psk mode).
fn stated(config: &Config, own: &IdentityKey, name: &NodeName) -> Result<Membership, Fault> {
    match &config.auth {
        Auth::Key { peers } => {
            let mut pinned: std::collections::BTreeMap<_, _> =
                peers.iter().map(|p| (p.public_key, p.name.clone())).collect();
            pinned.insert(own.id(), name.clone());
            Ok(Membership::Key(pinned))
        }
        Auth::Psk { file } => Ok(Membership::Psk(PskKeys::derive(&read_psk(file)?))),
        Auth::Certificate => Err(Fault::new(
            FaultKind::Config,
            "this node belongs to a network without certificates, but its configuration file is missing",
        )
        .remedy("start it with the same --config FILE as before")),
    }
}

fn trust(ca: &[u8], chain: &TrustChain, network: &NetworkParameters) -> Result<Trust, Fault> {
    let damaged = |what: &str, e: &dyn std::fmt::Display| {
        Fault::new(FaultKind::State, format!("the stored {what}: {e}"))
    };
    let mut trust = Trust::new(ca.to_vec(), network.name.clone(), network.id)
        .map_err(|e| damaged("CA certificate", &e))?;
    // The clock may have gone back since they were taken in.
    trust.apply(chain, u64::MAX / 2).map_err(|e| damaged("rotations of the CA", &e))?;
    Ok(trust)
}

/// The authority that this node has: the root, or one that was delegated.
fn authority(
    store: &Store,
    config: &Config,
    trust: &Trust,
) -> Result<(Option<Admin>, Option<String>), Fault> {
    let wrong = |e: &dyn std::fmt::Display| Fault::new(FaultKind::State, e.to_string());
    let mut notice = None;
    let mut found = None;
    if let Some(key) = store.ca_key(trust.current().key)? {
        // Of two rotations at once one counts; who made the other holds a root
        // that does not.
        let root = trust.all().find(|root| root.key == key.id());
        if key.id() != trust.current().key {
            notice = Some(
                "the root key here is not the present one: `warren ca import` the key that was \
                 exported where the CA was rotated last, or let its holder delegate to this node"
                    .to_owned(),
            );
        }
        let certificate = root.map_or(trust.founding(), |root| root).certificate.clone();
        found = Some(Authority::load(key, certificate, &trust.network).map_err(|e| wrong(&e))?);
    }
    if found.is_none()
        && let Some((key, certificate)) = store.authority()?
        && verify_authority(&certificate, trust).is_ok()
    {
        let loaded = Authority::load_delegated(key, certificate, &trust.network);
        match loaded {
            Ok(authority) => found = Some(authority),
            Err(error) => tracing::warn!(%error, "the delegated authority is not usable"),
        }
    }
    let Some(authority) = found else { return Ok((None, notice)) };
    let admin = Admin {
        authority,
        certificate_life: config.certificate_life(),
        invites: store.list("invites")?,
        registry: store.list("registry")?,
    };
    Ok((Some(admin), notice))
}

/// Takes up the stored membership.
pub(super) fn load(
    store: &Store,
    config: &Config,
    identity: &IdentityKey,
    member: Member,
) -> Result<Standing, Fault> {
    check_agreement(config, &member)?;
    if member.network.auth != AuthKind::Certificate {
        let membership = stated(config, identity, &member.name)?;
        if let Membership::Psk(keys) = &membership
            && keys.network_id() != member.network.id
        {
            return Err(Fault::new(
                FaultKind::Config,
                "the pre-shared key is not the one this node was set up with",
            )
            .remedy(
                "restore the key file, or give a fresh --state-dir to join the other network",
            ));
        }
        return Ok(Standing { member, membership, chain: Vec::new(), admin: None, notice: None });
    }
    let certificates = store.certificates()?;
    let trust = trust(&certificates.ca, &store.trust()?, &member.network)?;
    let (admin, notice) = authority(store, config, &trust)?;
    let membership = Membership::Certificate(trust);
    Ok(Standing { member, membership, chain: certificates.chain, admin, notice })
}

/// A new network with this node as its first member (certificate mode), or
/// this node's place in one that its members state by themselves. Nothing is
/// stored yet; see [`save`].
pub(super) fn create(
    config: &Config,
    identity: &IdentityKey,
    link_key: LinkPublicKey,
    now: u64,
) -> Result<Standing, Fault> {
    let name = choose_name(config)?;
    let network: NetworkName = match &config.network {
        Some(network) => network.clone(),
        None => DEFAULT_NETWORK.parse().map_err(|e| Fault::internal(&e))?,
    };
    let suite: Suite = config.suite.unwrap_or_default();
    let internal = |e: &dyn std::fmt::Display| Fault::new(FaultKind::Internal, e.to_string());
    match &config.auth {
        Auth::Certificate => {
            let key = IdentityKey::generate(&mut OsRandom).map_err(|e| internal(&e))?;
            let authority =
                Authority::create(key, &network, now, &mut OsRandom).map_err(|e| internal(&e))?;
            let print = fingerprint(authority.certificate());
            let network = NetworkParameters::certificate(network, suite, &print);
            let mut registry = Registry::default();
            let place = registry
                .admit(network.id, identity.id(), &name, link_key, now, |_| false, |_| false)
                .map_err(|e| internal(&e))?;
            let request = CertificateRequest {
                id: identity.id(),
                name: name.clone(),
                addresses: place.addresses.clone(),
                origin: None,
            };
            let certificate_life = config.certificate_life();
            let leaf = authority
                .issue_for(&request, now, certificate_life, &mut OsRandom)
                .map_err(|e| internal(&e))?;
            let trust = trust(authority.certificate(), &TrustChain::default(), &network)?;
            let membership = Membership::Certificate(trust);
            let member = Member { network, name, addresses: place.addresses };
            let admin =
                Admin { authority, certificate_life, invites: Default::default(), registry };
            let chain = vec![leaf];
            Ok(Standing { member, membership, chain, admin: Some(admin), notice: None })
        }
        Auth::Key { .. } | Auth::Psk { .. } => {
            let network = match &config.auth {
                Auth::Psk { file } => NetworkParameters::psk(network, suite, &read_psk(file)?),
                _ => NetworkParameters::key(network, suite),
            };
            let membership = stated(config, identity, &name)?;
            let id = identity.id();
            let v6 = IpAddr::from(address::ipv6_of_node(network.id, id));
            // Collisions are settled in the directory: the loser does without.
            let v4 = address::ipv4_of_key(network.id, &id.0, 0).into();
            let member = Member { network, name, addresses: vec![v6, v4] };
            Ok(Standing { member, membership, chain: Vec::new(), admin: None, notice: None })
        }
    }
}

/// The standing of a node that was just admitted.
pub(super) fn joined(
    config: &Config,
    member: Member,
    chain: Vec<Vec<u8>>,
    ca: &[u8],
    records: &TrustChain,
) -> Result<Standing, Fault> {
    if let Some(suite) = config.suite.filter(|s| *s != member.network.suite) {
        tracing::warn!(
            asked = %suite, network = %member.network.suite,
            "the network's suite is fixed; the setting is ignored"
        );
    }
    let membership = Membership::Certificate(trust(ca, records, &member.network)?);
    Ok(Standing { member, membership, chain, admin: None, notice: None })
}

/// Stores a new standing; the mark of membership comes last.
pub(super) fn save(store: &Store, standing: &Standing) -> Result<(), Fault> {
    if let Membership::Certificate(root) = &standing.membership {
        store.save_certificates(&Certificates {
            chain: standing.chain.clone(),
            ca: root.founding().certificate.clone(),
        })?;
        if root.epoch() > 0 {
            store.save_trust(&root.chain())?;
        }
    }
    if let Some(admin) = &standing.admin {
        store.save_ca_key(admin.authority.key())?;
        store.save_list("registry", &admin.registry)?;
        store.save_list("invites", &admin.invites)?;
    }
    store.save_member(&standing.member)
}

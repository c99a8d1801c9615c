//! Stock WireGuard clients of this node: choosing keys and addresses, storing
//! them, and the file for the client's owner.
//!
//! Invariants: the client's secret key exists only in the file that is printed;
//! its addresses follow from its public key, so every node can check them.

use std::net::{IpAddr, Ipv4Addr};

use rand_core::RngCore;

use warren_control::address;
use warren_proto::noise::StaticKey;
use warren_types::api::{AddClientReply, AddClientRequest};
use warren_types::{LinkSecretKey, NetworkId, NodeName, PresharedKey};
use zeroize::Zeroizing;

use crate::api::ApiError;
use crate::config::Endpoint;
use crate::random::OsRandom;
use crate::store::StoredClient;
use crate::wg_client::ClientConfig;

/// MTU of a client's interface: WireGuard's own default.
const CLIENT_MTU: u32 = 1420;
/// A node's descriptor carries at most this many.
const MAX_CLIENTS: usize = warren_control::descriptor::MAX_CLIENTS;

/// What the file needs to know of this node.
pub(super) struct Host<'a> {
    pub(super) node: &'a NodeName,
    pub(super) network: &'a warren_types::NetworkName,
    pub(super) network_id: NetworkId,
    pub(super) key: warren_types::LinkPublicKey,
    pub(super) prefixes: &'a [ipnet::IpNet],
    /// Where clients reach us when the request names nothing better.
    pub(super) endpoint: Option<Endpoint>,
    /// Where this node answers for names.
    pub(super) names: Option<IpAddr>,
}

fn random_bytes() -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    OsRandom.fill_bytes(bytes.as_mut_slice());
    bytes
}

/// Makes a client: what to store, and the answer for its owner.
pub(super) fn create(
    request: &AddClientRequest,
    host: &Host<'_>,
    existing: usize,
    name_taken: impl Fn(&NodeName) -> bool,
    address_taken: impl Fn(IpAddr) -> bool,
) -> Result<(StoredClient, AddClientReply), ApiError> {
    let name: NodeName = request.name.parse().map_err(|e| ApiError::Invalid(format!("{e}")))?;
    if name_taken(&name) {
        return Err(ApiError::Conflict(format!(
            "the name `{name}` is taken in this network: choose another"
        )));
    }
    if existing >= MAX_CLIENTS {
        return Err(ApiError::Conflict(format!(
            "this node serves {MAX_CLIENTS} WireGuard clients, the most one node can: add the \
             client on another node"
        )));
    }
    let endpoint: Endpoint = match (&request.endpoint, &host.endpoint) {
        (Some(text), _) => text.parse().map_err(|e| ApiError::Invalid(format!("{e}")))?,
        (None, Some(endpoint)) => endpoint.clone(),
        (None, None) => {
            return Err(ApiError::Invalid(
                "this node knows no address that clients could reach it at: name one with \
                 --endpoint HOST:PORT"
                    .to_owned(),
            ));
        }
    };
    let secret = LinkSecretKey::from_bytes(*random_bytes());
    let public_key = StaticKey::new(&secret).public();
    let v6 = IpAddr::from(address::ipv6_of_key(host.network_id, &public_key.0));
    let v4 =
        address::free_ipv4(host.network_id, &public_key.0, |a: Ipv4Addr| address_taken(a.into()));
    let addresses: Vec<IpAddr> = v4.map(|(a, _)| a.into()).into_iter().chain([v6]).collect();
    let preshared_key = PresharedKey::from_bytes(*random_bytes());
    let config = ClientConfig {
        client: &name,
        network: host.network,
        private_key: &secret,
        addresses: &addresses,
        mtu: CLIENT_MTU,
        node: host.node,
        node_key: host.key,
        preshared_key: &preshared_key,
        prefixes: host.prefixes,
        endpoint: &endpoint,
        names: host.names,
    }
    .render();
    let reply = AddClientReply { name: name.to_string(), config: config.to_string() };
    Ok((StoredClient { name, public_key, preshared_key, addresses }, reply))
}

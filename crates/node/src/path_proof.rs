//! Checking a proof of path that was exported, anywhere: with the hops'
//! descriptors, which it contains, and nothing else.

use data_encoding::{BASE64, HEXLOWER};
use warren_control::descriptor::{DescriptorBody, SignedDescriptor};
use warren_control::path_proof::{self, Word};
use warren_types::api::{HopProof, PathProof};

use crate::fault::{Fault, FaultKind};

/// What a good proof says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The nodes' names, from the entry.
    pub hops: Vec<String>,
    /// When the first of them signed, seconds since 1970.
    pub time: u64,
}

fn bad(text: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Refused, text.into())
        .remedy("do not rely on this path: `warren path rotate` takes another")
}

fn hex<const N: usize>(text: &str, what: &str) -> Result<[u8; N], Fault> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| bad(format!("the proof's {what} is no {N} bytes in hex")))
}

/// A hop's word, once its descriptor is found to be its own and to say who it is.
fn word(network: &str, hop: &HopProof) -> Result<Word, Fault> {
    let name = &hop.name;
    let bytes = BASE64
        .decode(hop.descriptor.as_bytes())
        .map_err(|_| bad(format!("the descriptor of {name} is no base64")))?;
    let signed: SignedDescriptor = minicbor::decode(&bytes)
        .map_err(|_| bad(format!("the descriptor of {name} does not parse")))?;
    let body: DescriptorBody = minicbor::decode(&signed.body)
        .map_err(|_| bad(format!("the descriptor of {name} does not parse")))?;
    if !signed.is_signed_by(hop.id) || body.node != hop.id || body.name.as_str() != name {
        return Err(bad(format!("the descriptor of {name} is not its own")));
    }
    if body.network.to_string() != network {
        return Err(bad(format!("{name} is a node of another network")));
    }
    let node: [u8; 10] = hex(&hop.node, "node")?;
    let is_its = body.addresses.iter().any(|address| match address {
        std::net::IpAddr::V6(v6) => v6.octets()[6..] == node,
        std::net::IpAddr::V4(_) => false,
    });
    if !is_its {
        return Err(bad(format!("{name} does not have the address it is named by")));
    }
    Ok(Word {
        id: hop.id,
        node,
        circuit: hex(&hop.circuit, "circuit")?,
        time: hop.time,
        next: hex(&hop.next, "next node")?,
        signature: hex::<64>(&hop.signature, "signature")?.to_vec(),
    })
}

/// Checks a proof.
///
/// # Errors
/// With what is wrong with it.
pub fn check(proof: &PathProof) -> Result<Checked, Fault> {
    let words: Result<Vec<Word>, Fault> =
        proof.hops.iter().map(|hop| word(&proof.network, hop)).collect();
    let words = words?;
    path_proof::check(&words, proof.length, &hex(&proof.nonce, "nonce")?)
        .map_err(|error| bad(format!("the path is not proven: {error}")))?;
    Ok(Checked {
        hops: proof.hops.iter().map(|hop| hop.name.clone()).collect(),
        time: words.iter().map(|word| word.time).min().unwrap_or(0),
    })
}

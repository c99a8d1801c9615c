//! Entry function for proofs of path, which come from other machines.

use warren_node::path_proof::check;
use warren_types::api::PathProof;

/// A proof as JSON, checked as `warren path verify FILE` does. One that is
/// accepted is no longer so with another nonce, or without a hop.
pub fn path_proof(data: &[u8]) {
    let Ok(mut proof) = serde_json::from_slice::<PathProof>(data) else { return };
    if check(&proof).is_err() {
        return;
    }
    let nonce = proof.nonce.clone();
    proof.nonce = "00".repeat(32);
    assert!(nonce == proof.nonce || check(&proof).is_err());
    proof.nonce = nonce;
    proof.hops.pop();
    assert!(check(&proof).is_err());
    proof.length -= 1;
    assert!(check(&proof).is_err(), "the last hop named another one");
}

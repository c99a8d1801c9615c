//! Proofs of path: what each hop of a circuit signs, and checking it.
//!
//! In: the hops' words and descriptors. Out: whether exactly these nodes, in this
//! order, signed that they carry one circuit. What it shows: each node's holder
//! of the key answered a fresh nonce through that circuit and named its
//! successor. What it does not: that it did so for every packet, or that nodes
//! did not hand their part to others; see the threat model.

use warren_types::NodeId;

use crate::identity;

/// Domain of the signatures.
pub const LABEL: &str = "Warren v1 path proof";
/// Signatures of one proof are made within this time, seconds.
const SPREAD: u64 = 60;

/// The last 80 bits of an overlay IPv6 address.
pub type NodeSuffix = [u8; 10];

/// What a hop signs: `circuit 32 | nonce 32 | time 8 LE | next 10`.
pub fn body(circuit: &[u8; 32], nonce: &[u8; 32], time: u64, next: &NodeSuffix) -> Vec<u8> {
    [&circuit[..], nonce, &time.to_le_bytes(), next].concat()
}

/// One hop's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Its key.
    pub id: NodeId,
    /// Its own suffix.
    pub node: NodeSuffix,
    /// The circuit's name at this hop.
    pub circuit: [u8; 32],
    /// When it signed, seconds since 1970.
    pub time: u64,
    /// The node after it, by its word.
    pub next: NodeSuffix,
    /// Its signature.
    pub signature: Vec<u8>,
}

/// Why a proof is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// No or too few hops.
    #[error("{found} of {length} hops answered")]
    Incomplete {
        /// Hops that did.
        found: usize,
        /// Hops of the path.
        length: usize,
    },
    /// A signature is wrong.
    #[error("the signature of hop {0} is wrong")]
    BadSignature(usize),
    /// A hop names another successor.
    #[error("hop {0} passes cells to another node than the next hop")]
    WrongOrder(usize),
    /// Signed at very different times.
    #[error("the hops signed at times more than a minute apart")]
    Times,
    /// A node is on the path twice.
    #[error("a node is on the path twice")]
    Twice,
}

/// Checks the words of all hops, the entry first.
///
/// # Errors
/// [`ProofError`].
pub fn check(words: &[Word], length: usize, nonce: &[u8; 32]) -> Result<(), ProofError> {
    if words.is_empty() || words.len() != length {
        return Err(ProofError::Incomplete { found: words.len(), length });
    }
    for (i, word) in words.iter().enumerate() {
        let body = body(&word.circuit, nonce, word.time, &word.next);
        if !identity::verify(word.id, LABEL, &body, &word.signature) {
            return Err(ProofError::BadSignature(i + 1));
        }
        let expected = words.get(i + 1).map_or([0; 10], |next| next.node);
        if word.next != expected {
            return Err(ProofError::WrongOrder(i + 1));
        }
        if words[..i].iter().any(|other| other.id == word.id || other.node == word.node) {
            return Err(ProofError::Twice);
        }
    }
    let times = words.iter().map(|word| word.time);
    let (first, last) = (times.clone().min().unwrap_or(0), times.max().unwrap_or(0));
    if last - first > SPREAD {
        return Err(ProofError::Times);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::IdentityKey;
    use crate::testing::TestRng;

    fn words(nonce: &[u8; 32]) -> Vec<Word> {
        let mut rng = TestRng::new(4);
        (1..=3u8)
            .map(|i| {
                let key = IdentityKey::generate(&mut rng).unwrap();
                let next = if i == 3 { [0; 10] } else { [i + 1; 10] };
                let signature = key.sign(LABEL, &body(&[i; 32], nonce, 100, &next)).to_vec();
                Word { id: key.id(), node: [i; 10], circuit: [i; 32], time: 100, next, signature }
            })
            .collect()
    }

    #[test]
    fn the_whole_path_in_order_or_nothing() {
        let nonce = [9; 32];
        let good = words(&nonce);
        assert_eq!(check(&good, 3, &nonce), Ok(()));
        assert_eq!(check(&good, 3, &[8; 32]), Err(ProofError::BadSignature(1)));
        assert_eq!(
            check(&good[..2], 3, &nonce),
            Err(ProofError::Incomplete { found: 2, length: 3 })
        );
        let mut swapped = good.clone();
        swapped.swap(0, 1);
        assert_eq!(check(&swapped, 3, &nonce), Err(ProofError::WrongOrder(1)));
        for i in 0..3 {
            let mut altered = good.clone();
            altered[i].circuit[0] ^= 1;
            assert_eq!(check(&altered, 3, &nonce), Err(ProofError::BadSignature(i + 1)));
        }
        let mut shortened = good.clone();
        shortened.remove(1);
        assert_eq!(check(&shortened, 2, &nonce), Err(ProofError::WrongOrder(1)));
    }
}

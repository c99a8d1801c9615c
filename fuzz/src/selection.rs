//! Entry function for recorded choices of paths, which come from other machines.

use warren_proto::selection::{Explanation, recompute, verify};

/// A recorded choice as JSON: checked, and made again from its inputs; what is
/// made from them follows from them.
pub fn explanation(data: &[u8]) {
    let Ok(recorded) = serde_json::from_slice::<Explanation>(data) else { return };
    let _ = verify(&recorded);
    let again = recompute(&recorded);
    assert_eq!(verify(&again), Ok(()));
}

//! Invite tokens: what lets a machine be admitted, once (or a few times), for a
//! short while.
//!
//! In: randomness, `now`, tokens shown by joiners. Out: admissions or a typed
//! refusal. Invariants: only a hash is stored; comparison takes constant time;
//! a token past its uses or its end never admits anyone new. The node that used
//! a token may show it again before its end (its answer may have been lost on
//! the way): it gets in as the same node and no use is counted. Deliberately not
//! here: names and addresses (`registry`), files.

use aws_lc_rs::{constant_time, digest};
use minicbor::{Decode, Encode};
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use warren_types::NodeId;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Most invites kept at once.
pub const MAX_INVITES: usize = 1000;
/// Most uses one invite can have.
pub const MAX_USES: u32 = 1000;
/// Ended invites are remembered this long, seconds, so that a joiner is told
/// "expired" or "used" instead of nothing.
const REMEMBER: u64 = 7 * 86_400;

/// A token as the join code carries it: 128 secret bits under a public number.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Encode, Decode)]
pub struct InviteToken {
    /// Which invite; not secret.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub id: [u8; 8],
    /// What proves it.
    #[cbor(n(1), with = "minicbor::bytes")]
    secret: [u8; 16],
}

impl std::fmt::Debug for InviteToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InviteToken({}, secret redacted)", data_encoding::HEXLOWER.encode(&self.id))
    }
}

impl InviteToken {
    /// A fresh token.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut token = Self { id: [0; 8], secret: [0; 16] };
        rng.fill_bytes(&mut token.id);
        rng.fill_bytes(&mut token.secret);
        token
    }

    /// The secret has 128 bits of entropy, so a plain hash cannot be searched.
    fn hash(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"Warren v1 invite token\0");
        context.update(&self.id);
        context.update(&self.secret);
        let mut out = [0; 32];
        out.copy_from_slice(context.finish().as_ref());
        out
    }
}

/// One invite as its issuer keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Invite {
    id: String,
    hash: String,
    expires: u64,
    uses: u32,
    used_by: Vec<NodeId>,
}

/// Why a token admits nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not one of ours, or its secret is wrong. The peer is told nothing.
    #[error("the invite token is unknown or wrong")]
    Unknown,
    /// Its end has passed.
    #[error("the invite expired: run `warren invite` for a new one")]
    Expired,
    /// All its uses are taken.
    #[error("the invite was used already: run `warren invite` for a new one")]
    Used,
}

/// An invite could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// Bad parameters.
    #[error("an invite needs 1 to {MAX_USES} uses and at least one second")]
    Parameters,
    /// Too many invites are open.
    #[error("{MAX_INVITES} invites are open: wait until some expire")]
    TooMany,
}

/// All invites of one admitting node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invites {
    invites: Vec<Invite>,
}

impl Invites {
    /// Makes an invite for `uses` nodes that ends after `life` seconds. Returns
    /// the token and its end.
    ///
    /// # Errors
    /// On senseless parameters or too many open invites.
    pub fn issue(
        &mut self,
        life: u64,
        uses: u32,
        now: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<(InviteToken, u64), InviteError> {
        if uses == 0 || uses > MAX_USES || life == 0 {
            return Err(InviteError::Parameters);
        }
        self.forget_old(now);
        if self.invites.len() >= MAX_INVITES {
            return Err(InviteError::TooMany);
        }
        let token = InviteToken::generate(rng);
        let expires = now.saturating_add(life);
        self.invites.push(Invite {
            id: data_encoding::HEXLOWER.encode(&token.id),
            hash: data_encoding::HEXLOWER.encode(&token.hash()),
            expires,
            uses,
            used_by: Vec::new(),
        });
        Ok((token, expires))
    }

    /// Checks a token that `node` shows, without counting a use.
    ///
    /// # Errors
    /// Why it does not admit.
    pub fn check(&self, token: &InviteToken, node: NodeId, now: u64) -> Result<(), TokenError> {
        self.find(token).and_then(|at| Self::usable(&self.invites[at], node, now))
    }

    /// Counts a use of a token by `node`.
    ///
    /// # Errors
    /// Why it does not admit; nothing is counted then.
    pub fn redeem(
        &mut self,
        token: &InviteToken,
        node: NodeId,
        now: u64,
    ) -> Result<(), TokenError> {
        let at = self.find(token)?;
        let invite = &mut self.invites[at];
        Self::usable(invite, node, now)?;
        if !invite.used_by.contains(&node) {
            invite.used_by.push(node);
        }
        Ok(())
    }

    /// Forgets invites that ended more than a week ago.
    pub fn forget_old(&mut self, now: u64) {
        self.invites.retain(|i| i.expires.saturating_add(REMEMBER) > now);
    }

    /// The index of the invite that `token` proves.
    fn find(&self, token: &InviteToken) -> Result<usize, TokenError> {
        let id = data_encoding::HEXLOWER.encode(&token.id);
        let hash = data_encoding::HEXLOWER.encode(&token.hash());
        let at = self.invites.iter().position(|i| i.id == id).ok_or(TokenError::Unknown)?;
        constant_time::verify_slices_are_equal(self.invites[at].hash.as_bytes(), hash.as_bytes())
            .map_err(|_| TokenError::Unknown)?;
        Ok(at)
    }

    fn usable(invite: &Invite, node: NodeId, now: u64) -> Result<(), TokenError> {
        if now >= invite.expires {
            Err(TokenError::Expired)
        } else if invite.used_by.contains(&node)
            || (invite.used_by.len() as u64) < u64::from(invite.uses)
        {
            Ok(())
        } else {
            Err(TokenError::Used)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;

    const A: NodeId = NodeId([1; 32]);
    const B: NodeId = NodeId([2; 32]);
    const C: NodeId = NodeId([3; 32]);

    #[test]
    fn single_use_and_expiry() {
        let mut rng = TestRng::new(1);
        let mut invites = Invites::default();
        let (token, expires) = invites.issue(900, 1, 1000, &mut rng).unwrap();
        assert_eq!(expires, 1900);
        assert_eq!(invites.redeem(&token, A, 1001), Ok(()));
        assert_eq!(invites.redeem(&token, B, 1002), Err(TokenError::Used));
        assert_eq!(invites.redeem(&token, A, 1003), Ok(()), "a lost answer may be asked for again");
        assert_eq!(invites.redeem(&token, A, 1900), Err(TokenError::Expired));
        assert_eq!(invites.redeem(&token, B, 1900), Err(TokenError::Expired));
    }

    #[test]
    fn several_uses_and_wrong_secrets() {
        let mut rng = TestRng::new(1);
        let mut invites = Invites::default();
        let (token, _) = invites.issue(900, 2, 0, &mut rng).unwrap();
        let mut wrong = token.clone();
        wrong.secret[15] ^= 1;
        assert_eq!(invites.redeem(&wrong, A, 1), Err(TokenError::Unknown));
        assert_eq!(
            invites.redeem(&InviteToken::generate(&mut rng), A, 1),
            Err(TokenError::Unknown)
        );
        assert_eq!(invites.redeem(&token, A, 1), Ok(()));
        assert_eq!(invites.redeem(&token, B, 1), Ok(()));
        assert_eq!(invites.redeem(&token, C, 1), Err(TokenError::Used));
    }

    #[test]
    fn the_secret_is_not_stored_and_not_printed() {
        let mut rng = TestRng::new(1);
        let mut invites = Invites::default();
        let (token, _) = invites.issue(900, 1, 0, &mut rng).unwrap();
        let secret = data_encoding::HEXLOWER.encode(&token.secret);
        assert!(!format!("{invites:?}{token:?}").contains(&secret));
        assert_eq!(invites.issue(900, 0, 0, &mut rng), Err(InviteError::Parameters));
    }
}

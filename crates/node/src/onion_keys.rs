//! The keys of circuit handshakes: a new one each day, two good at a time.
//!
//! In: `now` (seconds since 1970), a random generator. Out: the secret keys that
//! are good now, and the public ones to publish. Invariants: a key is used for a
//! day and stays good for another, so that whoever has yesterday's descriptor
//! still gets through; after that its secret is wiped, and what was sent to it
//! cannot be opened any more; a clock that was set back never leaves the node
//! without a good key. Deliberately not here: storing (`store`), publishing
//! (`daemon::roles`).

use rand_core::CryptoRng;
use warren_control::onion::{MAX_ONION_KEYS, OnionKeyRecord};
use warren_proto::noise::StaticKey;
use warren_types::{LinkSecretKey, OnionKey, OnionSecretKey};
use zeroize::Zeroizing;

/// How long the youngest key is used, seconds: a day.
pub const KEY_PERIOD: u64 = 86_400;
/// How long before it is made a key counts as good, seconds: others' clocks
/// may be behind by an hour.
pub const KEY_BACKDATE: u64 = 3600;
/// Life of a key from when it is made, seconds.
pub const KEY_LIFE: u64 = 2 * KEY_PERIOD;

/// One key pair and when it is good.
#[derive(Debug, Clone)]
pub struct OnionKeyPair {
    /// The secret key; wiped when dropped.
    pub secret: OnionSecretKey,
    /// What others know of it.
    pub record: OnionKeyRecord,
}

impl OnionKeyPair {
    /// From the secret key.
    pub fn new(secret: OnionSecretKey, not_before: u64, not_after: u64) -> Self {
        // X25519 is the same for links; only the use of the key differs.
        let public = StaticKey::new(&LinkSecretKey::from_bytes(*secret.expose())).public();
        let key = OnionKey(public.0);
        Self { secret, record: OnionKeyRecord { key, not_before, not_after } }
    }
}

/// The keys of one node, the youngest first.
#[derive(Debug, Clone, Default)]
pub struct OnionKeyring(Vec<OnionKeyPair>);

impl OnionKeyring {
    /// From what was stored, in any order.
    pub fn from_pairs(mut pairs: Vec<OnionKeyPair>) -> Self {
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.record.not_before));
        pairs.truncate(MAX_ONION_KEYS);
        Self(pairs)
    }

    /// All keys, the youngest first; to be stored.
    pub fn pairs(&self) -> &[OnionKeyPair] {
        &self.0
    }

    /// The keys to open handshakes with, the youngest first.
    pub fn good(&self, now: u64) -> impl Iterator<Item = &OnionKeyPair> {
        self.0.iter().filter(move |pair| pair.record.is_good(now))
    }

    /// What a descriptor says of them.
    pub fn records(&self) -> Vec<OnionKeyRecord> {
        self.0.iter().map(|pair| pair.record).collect()
    }

    /// Wipes keys that have ended and makes the next when it is due. True when
    /// anything changed: then store, and publish.
    pub fn renew(&mut self, now: u64, rng: &mut impl CryptoRng) -> bool {
        let before = self.0.len();
        self.0.retain(|pair| pair.record.is_good(now));
        let due = self.0.first().is_none_or(|youngest| {
            now >= youngest.record.not_before.saturating_add(KEY_BACKDATE + KEY_PERIOD)
        });
        if due {
            let mut bytes = Zeroizing::new([0; 32]);
            rng.fill_bytes(bytes.as_mut_slice());
            let secret = OnionSecretKey::from_bytes(*bytes);
            let from = now.saturating_sub(KEY_BACKDATE);
            self.0.insert(0, OnionKeyPair::new(secret, from, now.saturating_add(KEY_LIFE)));
            self.0.truncate(MAX_ONION_KEYS);
        }
        due || self.0.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::OsRandom;
    use warren_control::onion::MAX_KEY_LIFE;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_key_is_made_each_day_and_the_last_stays_good_for_another() {
        let mut ring = OnionKeyring::default();
        let mut now = NOW;
        assert!(ring.renew(now, &mut OsRandom));
        let mut known = vec![ring.pairs()[0].record.key];
        for _ in 0..400 {
            now += 3600;
            let changed = ring.renew(now, &mut OsRandom);
            let good: Vec<OnionKey> = ring.good(now).map(|pair| pair.record.key).collect();
            let new = good[0] != known[0];
            assert!(!new || changed);
            if new {
                // Whoever has the last descriptor gets through.
                assert_eq!(good.get(1), known.first());
                assert!(!known.contains(&good[0]));
                known.insert(0, good[0]);
            }
            assert!((1..=2).contains(&good.len()));
        }
        assert_eq!(known.len(), 1 + 400 / 24);
        const { assert!(KEY_LIFE + KEY_BACKDATE <= MAX_KEY_LIFE) };
    }

    #[test]
    fn jumps_of_the_clock_leave_a_good_key() {
        let mut ring = OnionKeyring::default();
        ring.renew(NOW, &mut OsRandom);
        for now in [NOW - 10 * KEY_LIFE, NOW + 10 * KEY_LIFE, 0, NOW] {
            ring.renew(now, &mut OsRandom);
            assert_eq!(ring.good(now).count(), 1, "{now}");
            assert!(!ring.renew(now, &mut OsRandom));
        }
    }

    #[test]
    fn the_public_key_belongs_to_the_secret_one_and_the_secret_is_not_printed() {
        // RFC 7748 section 6.1, Bob.
        let hex = |text: &str| -> [u8; 32] {
            data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
        };
        let secret = hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let public = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        let pair = OnionKeyPair::new(OnionSecretKey::from_bytes(secret), 0, 1);
        assert_eq!(pair.record.key, OnionKey(public));
        assert!(format!("{pair:?}").contains("OnionSecretKey(redacted)"));
    }
}

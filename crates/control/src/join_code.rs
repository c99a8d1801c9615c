//! The one line that lets a machine join: `warren1` and base32.
//!
//! Form: the text `warren`, the version digit `1`, then lower-case base32
//! without padding (RFC 4648 section 6) of: length of the CBOR part (2 bytes,
//! big endian), the CBOR part, and the first 4 bytes of SHA-256 over
//! `warren1` || length || CBOR. The length makes a cut code and a mistyped code
//! distinct errors. Invariants: decoding never panics; every error carries a
//! remedy; a code is secret until used or expired, so `Debug` hides the token.
//! Deliberately not here: whether the token is still good (only the admitting
//! node knows).

use std::net::SocketAddr;

use aws_lc_rs::digest;
use minicbor::{Decode, Encode};
use warren_types::{NetworkId, NetworkName};

use crate::cbor;
use crate::token::InviteToken;

const PREFIX: &str = "warren";
const VERSION: char = '1';
const CHECKSUM: usize = 4;
/// Longest text accepted, characters.
const MAX_TEXT: usize = 4096;

/// What a join code says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JoinCode {
    /// The network.
    #[cbor(n(0), with = "cbor::network_id")]
    pub network_id: NetworkId,
    /// Its name.
    #[cbor(n(1), with = "cbor::network_name")]
    pub network: NetworkName,
    /// SHA-256 of the CA certificate: how the joiner knows the network.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub ca_fingerprint: [u8; 32],
    /// Where the admitting node listens, most likely first.
    #[cbor(n(3), with = "cbor::sockets")]
    pub endpoints: Vec<SocketAddr>,
    /// What the joiner shows to be admitted.
    #[n(4)]
    pub token: InviteToken,
    /// When the token ends, seconds since 1970.
    #[n(5)]
    pub expires: u64,
    /// Where the admitting node offers tunnels over TCP, for joiners whose UDP
    /// is blocked.
    #[cbor(n(6), with = "cbor::sockets", default, skip_if = "Vec::is_empty")]
    pub tcp: Vec<SocketAddr>,
}

/// A join code was refused; the text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinCodeError {
    /// Does not begin like a join code.
    #[error(
        "this is not a join code: it starts with `warren1`. Run `warren invite` on a member and \
         paste the whole line"
    )]
    NotACode,
    /// From another version of Warren.
    #[error(
        "the join code is of version {found}, this program knows version 1: install the same \
         version of Warren on both machines"
    )]
    WrongVersion {
        /// The version the code states.
        found: char,
    },
    /// A character that codes do not contain.
    #[error(
        "the join code is mistyped: `{found}` at character {position} cannot occur in it. \
         Paste it instead of typing it"
    )]
    WrongCharacter {
        /// The character.
        found: char,
        /// Its position, counted from 1.
        position: usize,
    },
    /// Shorter than it says.
    #[error(
        "the join code is cut short: {have} of {want} characters are here. Paste the whole line"
    )]
    Truncated {
        /// Characters given.
        have: usize,
        /// Characters expected.
        want: usize,
    },
    /// Longer than it says.
    #[error(
        "the join code has {have} characters instead of {want}: something else was pasted with \
         it, or its start is mistyped. Paste only the line that `warren invite` printed"
    )]
    TooLong {
        /// Characters given.
        have: usize,
        /// Characters expected.
        want: usize,
    },
    /// The checksum does not match.
    #[error("the join code is mistyped: its checksum does not match. Paste it again")]
    Mistyped,
    /// The checksum matches but the contents make no sense to us.
    #[error("the join code was made by another version of Warren: install the same on both")]
    Malformed,
    /// Its time is over.
    #[error(
        "the join code expired {minutes} minutes ago (if this machine's clock is right): run \
         `warren invite` on a member for a new one"
    )]
    Expired {
        /// Whole minutes since its end.
        minutes: u64,
    },
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(PREFIX.as_bytes());
    context.update(&[VERSION as u8]);
    context.update(payload);
    let mut out = [0; CHECKSUM];
    out.copy_from_slice(&context.finish().as_ref()[..CHECKSUM]);
    out
}

/// Base32 characters for `bytes` bytes.
fn chars_for(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

impl JoinCode {
    /// The line to paste. Keeps at most eight endpoints, so that it stays short.
    pub fn encode(&self) -> String {
        let mut short = self.clone();
        short.endpoints.truncate(8);
        short.tcp.truncate(2);
        let body = cbor::to_vec(&short);
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let mut payload = length.to_be_bytes().to_vec();
        payload.extend_from_slice(&body);
        let sum = checksum(&payload);
        payload.extend_from_slice(&sum);
        let text = data_encoding::BASE32_NOPAD.encode(&payload).to_ascii_lowercase();
        format!("{PREFIX}{VERSION}{text}")
    }

    /// Reads a pasted line; blanks, line breaks and upper case do not matter.
    ///
    /// # Errors
    /// What is wrong with it, with the remedy.
    pub fn decode(text: &str, now: u64) -> Result<Self, JoinCodeError> {
        let compact: Vec<char> = text
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| c.to_ascii_lowercase())
            .take(MAX_TEXT + 1)
            .collect();
        let rest = strip_prefix(&compact)?;
        let offset = PREFIX.len() + 1;
        if let Some((at, found)) =
            rest.iter().enumerate().find(|(_, c)| !matches!(c, 'a'..='z' | '2'..='7'))
        {
            return Err(JoinCodeError::WrongCharacter { found: *found, position: offset + at + 1 });
        }
        let value = |c: char| {
            if c.is_ascii_lowercase() { c as u32 - 97 } else { c as u32 - 24 }
        };
        // The first four characters hold 20 bits; the first 16 are the length.
        let have = offset + rest.len();
        let Some(head) = rest.get(..4) else {
            return Err(JoinCodeError::Truncated { have, want: offset + chars_for(2 + CHECKSUM) });
        };
        let length = head.iter().fold(0, |n, c| (n << 5) | value(*c)) >> 4;
        let want = offset + chars_for(2 + length as usize + CHECKSUM);
        if have < want {
            return Err(JoinCodeError::Truncated { have, want });
        }
        if have > want {
            return Err(JoinCodeError::TooLong { have, want });
        }
        let upper: String = rest.iter().map(char::to_ascii_uppercase).collect();
        let bytes = data_encoding::BASE32_NOPAD
            .decode(upper.as_bytes())
            .map_err(|_| JoinCodeError::Mistyped)?;
        let (payload, sum) =
            bytes.split_at_checked(bytes.len() - CHECKSUM).ok_or(JoinCodeError::Mistyped)?;
        if sum != checksum(payload) {
            return Err(JoinCodeError::Mistyped);
        }
        let code: Self = cbor::from_slice(&payload[2..]).map_err(|_| JoinCodeError::Malformed)?;
        if code.endpoints.is_empty() {
            return Err(JoinCodeError::Malformed);
        }
        if now >= code.expires {
            return Err(JoinCodeError::Expired { minutes: (now - code.expires) / 60 });
        }
        Ok(code)
    }
}

fn strip_prefix(text: &[char]) -> Result<&[char], JoinCodeError> {
    let matches = PREFIX.chars().zip(text).all(|(a, b)| a == *b) && text.len() > PREFIX.len();
    match text.get(PREFIX.len()) {
        Some(&VERSION) if matches => Ok(&text[PREFIX.len() + 1..]),
        Some(found) if matches && found.is_ascii_digit() => {
            Err(JoinCodeError::WrongVersion { found: *found })
        }
        _ => Err(JoinCodeError::NotACode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;
    use proptest::prelude::*;

    fn sample() -> JoinCode {
        JoinCode {
            network_id: NetworkId([3; 16]),
            network: "home".parse().unwrap(),
            ca_fingerprint: [8; 32],
            endpoints: vec!["192.0.2.1:4242".parse().unwrap(), "[2001:db8::1]:9".parse().unwrap()],
            token: InviteToken::generate(&mut TestRng::new(4)),
            expires: 2000,
            tcp: vec!["192.0.2.1:443".parse().unwrap()],
        }
    }

    #[test]
    fn round_trip_with_line_breaks_and_upper_case() {
        let text = sample().encode();
        assert_eq!(JoinCode::decode(&text, 1000), Ok(sample()));
        let upper = text.to_uppercase();
        let (a, b) = upper.split_at(40);
        assert_eq!(JoinCode::decode(&format!(" {a}\n  {b}\n"), 1000), Ok(sample()));
        assert!(text.len() < 260, "{} characters", text.len());
    }

    #[test]
    fn each_mistake_has_its_own_message() {
        let text = sample().encode();
        assert_eq!(JoinCode::decode("", 0), Err(JoinCodeError::NotACode));
        assert_eq!(JoinCode::decode("hello", 0), Err(JoinCodeError::NotACode));
        assert_eq!(JoinCode::decode("warren", 0), Err(JoinCodeError::NotACode));
        assert_eq!(
            JoinCode::decode(&text.replacen('1', "2", 1), 0),
            Err(JoinCodeError::WrongVersion { found: '2' })
        );
        for end in 7..text.len() {
            let result = JoinCode::decode(&text[..end], 1000);
            assert!(matches!(result, Err(JoinCodeError::Truncated { .. })), "{end}: {result:?}");
        }
        assert!(matches!(
            JoinCode::decode(&format!("{text}a"), 0),
            Err(JoinCodeError::TooLong { .. })
        ));
        let zero = format!("{}0{}", &text[..20], &text[21..]);
        assert_eq!(
            JoinCode::decode(&zero, 0),
            Err(JoinCodeError::WrongCharacter { found: '0', position: 21 })
        );
        assert_eq!(JoinCode::decode(&text, 2120), Err(JoinCodeError::Expired { minutes: 2 }));
    }

    #[test]
    fn every_single_mistyped_character_is_noticed() {
        let text = sample().encode();
        for at in 7..text.len() {
            for replacement in ['a', 'q', '7'] {
                let mut bad: Vec<char> = text.chars().collect();
                if bad[at] == replacement {
                    continue;
                }
                bad[at] = replacement;
                let bad: String = bad.into_iter().collect();
                assert!(JoinCode::decode(&bad, 1000).is_err(), "character {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in ".{0,200}", tail in "[a-z2-7]{0,200}") {
            let _ = JoinCode::decode(&text, 0);
            let code = format!("warren1{tail}");
            prop_assert!(JoinCode::decode(&code, 0).is_err());
        }
    }
}

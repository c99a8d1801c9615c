//! What is said inside circuits: the text under all layers of a cell.
//!
//! Every text begins `kind 1 | number 7 LE`. Session data (`number` is the
//! session's sequence) follows as records, one per inner packet:
//!
//! ```text
//! length 2 LE, highest bit: the checksum is unfinished | packet
//! ```
//! A length of zero ends them. All else is fixed-size fields after the head.
//! Unknown kinds are ignored.

use super::cell::FORWARD_LEN;
use super::handshake::{FIRST_LEN, HINT_LEN, SECOND_LEN};
use crate::link::relay::NodeSuffix;

/// Bytes before the fields or records.
pub const HEAD_LEN: usize = 8;
/// Bytes before a packet.
pub const RECORD_HEAD: usize = 2;
/// Largest inner packet, bytes: the smallest MTU that IPv6 allows.
pub const INNER_MTU: usize = 1280;
const PARTIAL: u16 = 0x8000;
/// Set in the kind of a client's cell: answer over the circuit it came by.
const ACTIVE: u8 = 0x80;
/// Sequence numbers of sessions end here.
pub const MAX_SEQUENCE: u64 = (1 << 56) - 1;

const DATA: u8 = 1;
const EXTEND: u8 = 2;
const EXTENDED: u8 = 3;
const ECHO: u8 = 4;
const ECHO_REPLY: u8 = 5;
const LINK: u8 = 6;
const LINKED: u8 = 7;
const ENDED: u8 = 8;
const CLOSE: u8 = 9;
const PROVE: u8 = 10;
const PROOF: u8 = 11;
const DRAINING: u8 = 12;

/// Why a circuit, an extension or a session was refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The client's wish, or the end of its life.
    Finished = 0,
    /// The next node cannot be reached or fell silent.
    Unreachable = 1,
    /// The handshake failed; often an onion key that is no longer known.
    Handshake = 2,
    /// This node does not play that role.
    Role = 3,
    /// Too many circuits, sessions or handshakes.
    Busy = 4,
    /// The node is being drained: nothing new.
    Draining = 5,
    /// What was asked for makes no sense.
    Protocol = 6,
}

impl Reason {
    fn read(byte: u8) -> Self {
        match byte {
            0 => Self::Finished,
            1 => Self::Unreachable,
            2 => Self::Handshake,
            3 => Self::Role,
            4 => Self::Busy,
            5 => Self::Draining,
            _ => Self::Protocol,
        }
    }

    /// In a few words.
    pub fn label(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Unreachable => "next node unreachable",
            Self::Handshake => "handshake failed",
            Self::Role => "role not offered",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Protocol => "protocol error",
        }
    }
}

/// Reads a reason out of a link's destroy cell.
pub fn reason_of(content: &[u8]) -> Reason {
    Reason::read(content.first().copied().unwrap_or(0))
}

/// What a client says to a hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Extend the circuit.
    Extend {
        /// To whom.
        next: NodeSuffix,
        /// Which of its onion keys is meant.
        hint: [u8; HINT_LEN],
        /// The first handshake message.
        first: Vec<u8>,
    },
    /// Answer with the same token.
    Echo {
        /// Chosen by the client.
        token: u64,
        /// To an exit: send over this circuit now. In order of `number`, which
        /// is the session's sequence; 0 to other hops.
        active: Option<u64>,
    },
    /// To an exit: this circuit belongs to the session with this secret, which
    /// begins if it is new.
    Link {
        /// The secret.
        secret: [u8; 32],
    },
    /// To an exit: end the session of this circuit.
    Close,
    /// Sign that you carry this circuit.
    Prove {
        /// Fresh.
        nonce: [u8; 32],
    },
}

/// What a hop says to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The circuit reaches one hop further.
    Extended {
        /// The second handshake message.
        second: Vec<u8>,
    },
    /// The answer to an echo.
    EchoReply {
        /// As in the request.
        token: u64,
        /// Forward cells that reached this hop, and numbers the client used.
        received: u64,
        /// See `received`.
        sent: u64,
    },
    /// The circuit belongs to the session.
    Linked {
        /// False for one that goes on.
        new: bool,
        /// The exit can reach IPv6 destinations.
        ipv6: bool,
    },
    /// What lies behind this hop has ended, or was refused.
    Ended {
        /// Why.
        reason: Reason,
    },
    /// This hop will end soon: move on.
    Draining,
    /// The answer to [`Request::Prove`].
    Proof {
        /// When it was signed, seconds since 1970.
        time: u64,
        /// The hop after it; zeros at the end.
        next: NodeSuffix,
        /// Over label, handshake hash, nonce, time and next.
        signature: [u8; 64],
    },
}

fn head(kind: u8, number: u64) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&number.to_le_bytes()[..7]);
    out
}

fn read_head(text: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (head, rest) = text.split_first_chunk::<HEAD_LEN>()?;
    let [kind, a, b, c, d, e, f, g] = *head;
    Some((kind, u64::from_le_bytes([a, b, c, d, e, f, g, 0]), rest))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Request {
    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Extend { next, hint, first } => {
                [head(EXTEND, 0), next.to_vec(), hint.to_vec(), first.clone()].concat()
            }
            Self::Echo { token, active } => {
                let kind = if active.is_some() { ECHO | ACTIVE } else { ECHO };
                [head(kind, active.unwrap_or(0)), token.to_le_bytes().to_vec()].concat()
            }
            Self::Link { secret } => [head(LINK, 0), secret.to_vec()].concat(),
            Self::Close => head(CLOSE, 0),
            Self::Prove { nonce } => [head(PROVE, 0), nonce.to_vec()].concat(),
        }
    }

    /// Reads a text that is no data; `None` when it is unknown or cut short.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (kind, number, rest) = read_head(text)?;
        Some(match kind {
            EXTEND => {
                let (next, rest) = rest.split_first_chunk()?;
                let (hint, rest) = rest.split_first_chunk()?;
                let first = rest.get(..FIRST_LEN)?.to_vec();
                Self::Extend { next: *next, hint: *hint, first }
            }
            ECHO => Self::Echo { token: read_u64(rest, 0)?, active: None },
            active if active == ECHO | ACTIVE => {
                Self::Echo { token: read_u64(rest, 0)?, active: Some(number) }
            }
            LINK => Self::Link { secret: *rest.first_chunk()? },
            CLOSE => Self::Close,
            PROVE => Self::Prove { nonce: *rest.first_chunk()? },
            _ => return None,
        })
    }
}

impl Answer {
    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Extended { second } => [head(EXTENDED, 0), second.clone()].concat(),
            Self::EchoReply { token, received, sent } => {
                let mut out = head(ECHO_REPLY, 0);
                for field in [token, received, sent] {
                    out.extend_from_slice(&field.to_le_bytes());
                }
                out
            }
            Self::Linked { new, ipv6 } => {
                [head(LINKED, 0), vec![u8::from(*new), u8::from(*ipv6)]].concat()
            }
            Self::Ended { reason } => [head(ENDED, 0), vec![*reason as u8]].concat(),
            Self::Draining => head(DRAINING, 0),
            Self::Proof { time, next, signature } => {
                let time = time.to_le_bytes().to_vec();
                [head(PROOF, 0), time, next.to_vec(), signature.to_vec()].concat()
            }
        }
    }

    /// Reads a text that is no data; `None` when it is unknown or cut short.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (kind, _, rest) = read_head(text)?;
        Some(match kind {
            EXTENDED => Self::Extended { second: rest.get(..SECOND_LEN)?.to_vec() },
            ECHO_REPLY => Self::EchoReply {
                token: read_u64(rest, 0)?,
                received: read_u64(rest, 8)?,
                sent: read_u64(rest, 16)?,
            },
            LINKED => Self::Linked { new: *rest.first()? != 0, ipv6: *rest.get(1)? != 0 },
            ENDED => Self::Ended { reason: Reason::read(*rest.first()?) },
            DRAINING => Self::Draining,
            PROOF => Self::Proof {
                time: read_u64(rest, 0)?,
                next: *rest.get(8..)?.first_chunk()?,
                signature: *rest.get(18..)?.first_chunk()?,
            },
            _ => return None,
        })
    }
}

/// The head of a text of session data: its sequence, and whether the exit is to
/// answer over this circuit.
#[inline]
pub fn parse_data(text: &[u8]) -> Option<(u64, bool)> {
    let (kind, number, _) = read_head(text)?;
    (kind & !ACTIVE == DATA).then_some((number, kind & ACTIVE != 0))
}

/// Writes the head of session data.
#[inline]
pub fn write_data_head(text: &mut [u8], sequence: u64, active: bool) {
    text[..HEAD_LEN].copy_from_slice(&(sequence << 8 | u64::from(DATA)).to_le_bytes());
    if active {
        text[0] |= ACTIVE;
    }
}

/// Writes the head of a record for a packet of `len` bytes.
#[inline]
pub fn write_record_head(text: &mut [u8], len: usize, partial: bool) {
    let value = len as u16 | if partial { PARTIAL } else { 0 };
    text[..RECORD_HEAD].copy_from_slice(&value.to_le_bytes());
}

/// The packets of a text of session data, with "checksum unfinished".
#[derive(Debug, Clone)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// Of a whole text.
    pub fn of(text: &'a [u8]) -> Self {
        Self(text.get(HEAD_LEN..).unwrap_or_default())
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (&'a [u8], bool);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_first_chunk::<RECORD_HEAD>()?;
        let head = u16::from_le_bytes(*head);
        let len = usize::from(head & !PARTIAL);
        let (packet, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        (len > 0).then_some((packet, head & PARTIAL != 0))
    }
}

const _: () = assert!(FORWARD_LEN >= HEAD_LEN + 10 + HINT_LEN + FIRST_LEN);
const _: () = assert!(FORWARD_LEN >= HEAD_LEN + RECORD_HEAD + INNER_MTU);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_and_answers_round_trip() {
        let requests = [
            Request::Extend { next: [1; 10], hint: [2; 4], first: vec![3; FIRST_LEN] },
            Request::Echo { token: 7, active: None },
            Request::Echo { token: 8, active: Some(MAX_SEQUENCE) },
            Request::Link { secret: [4; 32] },
            Request::Close,
            Request::Prove { nonce: [5; 32] },
        ];
        for request in requests {
            let mut text = request.encode();
            assert!(text.len() <= FORWARD_LEN);
            assert_eq!(parse_data(&text), None);
            for cut in 0..text.len() {
                assert_eq!(Request::parse(&text[..cut]), None);
            }
            text.resize(FORWARD_LEN, 0);
            assert_eq!(Request::parse(&text), Some(request));
        }
        let answers = [
            Answer::Extended { second: vec![6; SECOND_LEN] },
            Answer::EchoReply { token: 1, received: 2, sent: 3 },
            Answer::Linked { new: true, ipv6: false },
            Answer::Ended { reason: Reason::Busy },
            Answer::Draining,
            Answer::Proof { time: 9, next: [8; 10], signature: [7; 64] },
        ];
        for answer in answers {
            let mut text = answer.encode();
            for cut in 0..text.len() {
                assert_eq!(Answer::parse(&text[..cut]), None);
            }
            text.resize(super::super::cell::BACKWARD_LEN, 0);
            assert_eq!(Answer::parse(&text), Some(answer));
        }
    }

    #[test]
    fn records_are_read_as_written() {
        let mut text = vec![0; FORWARD_LEN];
        write_data_head(&mut text, 0x0012_3456_789a_bcde, true);
        assert_eq!(parse_data(&text), Some((0x0012_3456_789a_bcde, true)));
        assert_eq!(Records::of(&text).count(), 0);
        write_record_head(&mut text[8..], 3, true);
        text[10..13].copy_from_slice(b"abc");
        write_record_head(&mut text[13..], 1271, false);
        let records: Vec<_> = Records::of(&text).collect();
        assert_eq!(records.len(), 2);
        assert_eq!(records[0], (&b"abc"[..], true));
        assert_eq!((records[1].0.len(), records[1].1), (1271, false));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..1400)) {
            let _ = (Request::parse(&text), Answer::parse(&text), parse_data(&text));
            let total: usize = Records::of(&text).map(|(packet, _)| packet.len() + 2).sum();
            prop_assert!(total <= text.len());
        }
    }
}

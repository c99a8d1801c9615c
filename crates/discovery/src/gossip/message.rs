//! The messages of gossip and their bytes.
//!
//! A message is a CBOR array (RFC 8949) of its number and its fields; lists of
//! fixed-size items are byte strings of big-endian numbers. Invariants: parsing
//! never panics and allocates no more than a small multiple of the input;
//! bytes after the value are an error; a message of an unknown number and
//! records of unknown kinds are skipped, so that later versions can add some.

use std::sync::Arc;

use minicbor::{Decoder, Encoder};

use super::record::{Kind, Record, Tag};

/// Largest message, bytes: one record of the largest size fits.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most items of one message.
pub const MAX_ITEMS: usize = 2048;
/// Bytes of records from which on a message takes no more of them.
pub(crate) const FULL: usize = 12 * 1024;

/// One record, by name and age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// Which.
    pub tag: Tag,
    /// How new, see [`Record::version`].
    pub version: u64,
}

/// Which records: those of a set (0: urgent kinds, 1: the others) whose tags
/// begin with the first `4 * level` bits of `prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// 0 or 1.
    pub set: u8,
    /// 0: all, 1: a sixteenth, 2: a 256th.
    pub level: u8,
    /// The first bits; those beyond `level` are zero.
    pub prefix: u8,
}

impl Range {
    /// All records of a set.
    pub fn all(set: u8) -> Self {
        Self { set, level: 0, prefix: 0 }
    }

    /// The sixteen parts of a range above the lowest level.
    pub(crate) fn parts(self) -> impl Iterator<Item = Self> {
        let level = self.level + 1;
        let shift = 8 - 4 * u32::from(level.min(2));
        (0..16_u8).map(move |n| Self { level, prefix: self.prefix | n << shift, ..self })
    }

    /// First and last bucket.
    pub(crate) fn buckets(self) -> std::ops::RangeInclusive<usize> {
        let rest = match self.level {
            0 => 0xff,
            1 => 0x0f,
            _ => 0,
        };
        usize::from(self.prefix)..=usize::from(self.prefix | rest)
    }

    pub(crate) fn contains(self, tag: Tag) -> bool {
        let urgent = tag.kind().is_some_and(Kind::is_urgent);
        urgent == (self.set == 0) && self.buckets().contains(&usize::from(tag.bucket()))
    }

    fn valid(self) -> bool {
        let beyond = match self.level {
            0 => 0xff,
            1 => 0x0f,
            _ => 0,
        };
        self.set < 2 && self.level <= 2 && self.prefix & beyond == 0
    }
}

/// The sum over a range of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// Which records.
    pub range: Range,
    /// Sum of their hashes, folded to 64 bits.
    pub sum: u64,
}

/// What neighbours tell each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The sender has these and takes them for news.
    Announce(Vec<Item>),
    /// The sender asks for these.
    Want(Vec<Tag>),
    /// Records: news, or what was asked for.
    Records(Vec<Arc<Record>>),
    /// Sums over the sender's records; the receiver answers where its differ.
    Sums(Vec<Sum>),
    /// Everything the sender has in a range, in the order of tags.
    List {
        /// The range.
        range: Range,
        /// What is in it.
        items: Vec<Item>,
    },
    /// A number that this version does not know.
    Unknown(u8),
}

/// A gossip message does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a gossip message is malformed: {0}")]
pub struct CodecError(String);

impl From<minicbor::decode::Error> for CodecError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self(error.to_string())
    }
}

fn bad(text: &str) -> CodecError {
    CodecError(text.to_owned())
}

const ANNOUNCE: u8 = 0;
const WANT: u8 = 1;
const RECORDS: u8 = 2;
const SUMS: u8 = 3;
const LIST: u8 = 4;
const SUM_LEN: usize = 11;

impl Message {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        let mut e = Encoder::new(&mut out);
        let result = self.write(&mut e);
        debug_assert!(result.is_ok(), "writing to memory cannot fail");
        out
    }

    fn write(
        &self,
        e: &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        match self {
            Self::Announce(items) => {
                e.array(2)?.u8(ANNOUNCE)?.bytes(&items_bytes(items))?;
            }
            Self::Want(tags) => {
                let bytes: Vec<u8> = tags.iter().flat_map(|t| t.0.to_be_bytes()).collect();
                e.array(2)?.u8(WANT)?.bytes(&bytes)?;
            }
            Self::Records(records) => {
                e.array(2)?.u8(RECORDS)?.array(records.len() as u64)?;
                for r in records {
                    e.array(5)?.u8(r.kind().number())?.bytes(r.subject())?;
                    e.u64(r.sequence())?.u64(r.expires())?.bytes(r.body())?;
                }
            }
            Self::Sums(sums) => {
                let mut bytes = Vec::with_capacity(sums.len() * SUM_LEN);
                for s in sums {
                    bytes.extend([s.range.set, s.range.level, s.range.prefix]);
                    bytes.extend(s.sum.to_be_bytes());
                }
                e.array(2)?.u8(SUMS)?.bytes(&bytes)?;
            }
            Self::List { range, items } => {
                e.array(3)?.u8(LIST)?.bytes(&[range.set, range.level, range.prefix])?;
                e.bytes(&items_bytes(items))?;
            }
            Self::Unknown(number) => {
                e.array(1)?.u8(*number)?;
            }
        }
        Ok(())
    }

    /// Length of [`Message::encode`], bytes; some bytes more at most.
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Announce(items) => 5 + 16 * items.len(),
            Self::Want(tags) => 5 + 8 * tags.len(),
            Self::Records(records) => {
                let one = |r: &Arc<Record>| 54 + r.body().len();
                5 + records.iter().map(one).sum::<usize>()
            }
            Self::Sums(sums) => 5 + SUM_LEN * sums.len(),
            Self::List { items, .. } => 9 + 16 * items.len(),
            Self::Unknown(_) => 3,
        }
    }

    /// Parses one message.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(bad("too long"));
        }
        let mut d = Decoder::new(bytes);
        let fields = d.array()?.ok_or_else(|| bad("no length"))?;
        let number = d.u8()?;
        let message = match (number, fields) {
            (ANNOUNCE, 2) => Self::Announce(items(d.bytes()?)?),
            (WANT, 2) => Self::Want(tags(d.bytes()?)?),
            (RECORDS, 2) => Self::Records(records(&mut d)?),
            (SUMS, 2) => Self::Sums(sums(d.bytes()?)?),
            (LIST, 3) => Self::List { range: range(d.bytes()?)?, items: items(d.bytes()?)? },
            (ANNOUNCE..=LIST, _) => return Err(bad("wrong number of fields")),
            _ => {
                for _ in 1..fields {
                    d.skip()?;
                }
                Self::Unknown(number)
            }
        };
        if d.position() != bytes.len() {
            return Err(bad("bytes follow the message"));
        }
        Ok(message)
    }
}

fn items_bytes(items: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(items.len() * 16);
    for item in items {
        bytes.extend(item.tag.0.to_be_bytes());
        bytes.extend(item.version.to_be_bytes());
    }
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Cuts `bytes` into pieces of `size`, at most [`MAX_ITEMS`].
fn pieces(bytes: &[u8], size: usize) -> Result<std::slice::ChunksExact<'_, u8>, CodecError> {
    if !bytes.len().is_multiple_of(size) || bytes.len() / size > MAX_ITEMS {
        return Err(bad("a list of an impossible length"));
    }
    Ok(bytes.chunks_exact(size))
}

fn items(bytes: &[u8]) -> Result<Vec<Item>, CodecError> {
    let item = |b: &[u8]| Item { tag: Tag(number(&b[..8])), version: number(&b[8..]) };
    Ok(pieces(bytes, 16)?.map(item).collect())
}

fn tags(bytes: &[u8]) -> Result<Vec<Tag>, CodecError> {
    Ok(pieces(bytes, 8)?.map(|b| Tag(number(b))).collect())
}

fn range(bytes: &[u8]) -> Result<Range, CodecError> {
    let &[set, level, prefix] = bytes else { return Err(bad("a range has 3 bytes")) };
    let range = Range { set, level, prefix };
    if range.valid() { Ok(range) } else { Err(bad("no such range")) }
}

fn sums(bytes: &[u8]) -> Result<Vec<Sum>, CodecError> {
    pieces(bytes, SUM_LEN)?
        .map(|b| Ok(Sum { range: range(&b[..3])?, sum: number(&b[3..]) }))
        .collect()
}

fn records(d: &mut Decoder<'_>) -> Result<Vec<Arc<Record>>, CodecError> {
    let n = d.array()?.ok_or_else(|| bad("no length"))?;
    if n > MAX_ITEMS as u64 {
        return Err(bad("too many records"));
    }
    let mut list = Vec::new();
    for _ in 0..n {
        if d.array()? != Some(5) {
            return Err(bad("a record has 5 fields"));
        }
        let kind = Kind::from_number(d.u8()?);
        let subject: [u8; 32] = d.bytes()?.try_into().map_err(|_| bad("a subject has 32 bytes"))?;
        let (sequence, expires, body) = (d.u64()?, d.u64()?, d.bytes()?);
        let Some(kind) = kind else { continue };
        let record = Record::new(kind, subject, sequence, expires, body);
        list.push(record.ok_or_else(|| bad("a record is too large"))?);
    }
    Ok(list)
}

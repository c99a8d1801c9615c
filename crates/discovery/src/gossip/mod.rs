//! Gossip of signed records: what one node says, every node learns.
//!
//! In: messages of neighbours, records we publish, neighbours that come and go,
//! the time, and a [`Verifier`] that tells whether a record is genuine. Out:
//! messages to neighbours, and neighbours to part from.
//!
//! How news travels: revocations and changes of trust are passed on to every
//! neighbour at once. Of all other records a node sends its own to its
//! neighbours and *announces* those of others (8 bytes of identity, 8 of
//! sequence), a batch at a time; who lacks one asks one of those that announced
//! it. So each node gets each record about once, however many neighbours it
//! has, and a neighbour that announces and does not deliver costs some seconds.
//! What is lost (a message dropped for a limit, a network in two pieces) is
//! repaired by comparing sums over ranges of records with one neighbour after
//! the other: equal sums cost some 40 bytes, unequal ones are narrowed down.
//!
//! Invariants: of each subject and kind the record with the highest sequence
//! stays, of equal ones that with the greater hash, so all nodes end up with the
//! same; what is not newer is not verified; nothing expired and nothing older
//! than what has expired is taken in; every list, queue and rate that a
//! neighbour can grow is bounded; a neighbour that sends forged records is cut
//! off, one that passes on what others made badly is not. Deliberately not
//! here: signatures, connections, clocks.

mod limits;
mod machine;
mod message;
mod neighbour;
mod record;
mod repair;
mod store;
#[cfg(test)]
mod tests;
mod wants;

pub use self::limits::{Cause, Counters};
pub use self::machine::{Event, Gossip, Verdict, Verifier};
pub use self::message::{CodecError, Item, MAX_ITEMS, MAX_MESSAGE, Message, Range, Sum};
pub use self::record::{Kind, MAX_SKEW, Record, Tag, Time};

/// Seconds that pass at least between two link states of one node in a network
/// of so many: all nodes together make five a second at most, so what each of
/// them pays does not grow with the network.
pub fn link_state_pause(members: usize) -> u64 {
    (members as u64 / 5).max(30)
}

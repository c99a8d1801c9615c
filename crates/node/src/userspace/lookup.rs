//! Names outside the mesh, looked up through a path out of it: at the resolver
//! that every exit has inside the tunnel. This machine's own resolver is never
//! asked.
//!
//! Invariants: an answer counts only from the resolver's address, with the
//! question's number and the question itself; the number and the port are
//! random. Nothing is kept: the exit's resolver does that.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use rand_core::RngCore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::exit::RESOLVER;
use super::{Isolation, Source, Stack};
use crate::random::OsRandom;

/// Waits for an answer, each longer than the one before: paths are long.
const TRIES: [Duration; 3] =
    [Duration::from_millis(1500), Duration::from_secs(3), Duration::from_secs(5)];
/// Addresses taken of one name.
const MAX_ADDRESSES: usize = 16;
/// Longest message taken over TCP, bytes.
const MAX_MESSAGE: usize = 16 << 10;

/// Why a name has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// There is none.
    #[error("no such name, or it has no address")]
    Missing,
    /// The resolver failed, or cannot be reached.
    #[error("the resolver at the exit does not answer")]
    Failed,
}

/// What a message says to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, perhaps none.
    Addresses(Vec<IpAddr>),
    /// It did not fit: ask over TCP.
    Truncated,
    /// The resolver could not.
    Failed,
}

/// A question as bytes; `None` for what is no name.
pub fn question(name: &str, kind: RecordType, number: u16) -> Option<Vec<u8>> {
    let mut fqdn = Name::from_ascii(name).ok()?;
    fqdn.set_fqdn(true);
    let mut message = Message::new(number, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(fqdn, kind));
    message.to_vec().ok()
}

/// Reads the answer to `asked`, a message made by [`question`]; `None` for
/// anything else.
pub fn answer(asked: &[u8], reply: &[u8]) -> Option<Answer> {
    let (asked, reply) = (Message::from_vec(asked).ok()?, Message::from_vec(reply).ok()?);
    let matches = reply.metadata.id == asked.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && reply.queries == asked.queries;
    if !matches {
        return None;
    }
    Some(match reply.metadata.response_code {
        _ if reply.metadata.truncation => Answer::Truncated,
        ResponseCode::NoError | ResponseCode::NXDomain => {
            // Whatever leads there over aliases: the resolver has followed them.
            let addresses = reply.answers.iter().filter_map(|record| match &record.data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(a) => Some(IpAddr::V6(a.0)),
                _ => None,
            });
            Answer::Addresses(addresses.take(MAX_ADDRESSES).collect())
        }
        _ => Answer::Failed,
    })
}

/// The addresses of a name, of the families that this node can reach.
///
/// # Errors
/// [`LookupError`].
pub(super) async fn look_up(
    stack: &Stack,
    name: &str,
    isolation: &Isolation,
) -> Result<Vec<IpAddr>, LookupError> {
    let own = stack.addresses();
    let source = own.source_for(RESOLVER.ip(), isolation).map_err(|_| LookupError::Failed)?;
    let has = |v6: bool| own.inner(isolation).iter().any(|address| address.is_ipv6() == v6);
    let one = async |wanted: bool, kind| match wanted {
        true => ask(stack, source, name, kind).await,
        false => Ok(Vec::new()),
    };
    let (v4, v6) = tokio::join!(one(has(false), RecordType::A), one(has(true), RecordType::AAAA));
    let mut all = Vec::new();
    let mut failed = None;
    for found in [v4, v6] {
        match found {
            Ok(some) => all.extend(some),
            Err(error) => failed = Some(error),
        }
    }
    match (all.is_empty(), failed) {
        (false, _) => Ok(all),
        (true, failed) => Err(failed.unwrap_or(LookupError::Missing)),
    }
}

async fn ask(
    stack: &Stack,
    source: Source,
    name: &str,
    kind: RecordType,
) -> Result<Vec<IpAddr>, LookupError> {
    for patience in TRIES {
        // A number and a port of its own for each try.
        let asked = question(name, kind, OsRandom.next_u32() as u16).ok_or(LookupError::Missing)?;
        let mut socket = stack.bind_udp(source.address, None).map_err(|_| LookupError::Failed)?;
        socket.send(RESOLVER, &asked);
        let heard = timeout(patience, async {
            loop {
                let (from, reply) = socket.receive().await?;
                if from == RESOLVER
                    && let Some(answer) = answer(&asked, &reply)
                {
                    return Some(answer);
                }
            }
        });
        let mut heard = heard.await.ok().flatten();
        if heard == Some(Answer::Truncated) {
            heard = over_tcp(stack, source, &asked).await;
        }
        match heard {
            Some(Answer::Addresses(all)) => return Ok(all),
            Some(_) => return Err(LookupError::Failed),
            None => {}
        }
    }
    Err(LookupError::Failed)
}

async fn over_tcp(stack: &Stack, source: Source, asked: &[u8]) -> Option<Answer> {
    let to: SocketAddr = RESOLVER;
    let exchange = async {
        let mut stream = stack.connect(source, to).await.ok()?;
        let length = u16::try_from(asked.len()).ok()?;
        stream.write_all(&[&length.to_be_bytes()[..], asked].concat()).await.ok()?;
        let length = usize::from(stream.read_u16().await.ok()?).min(MAX_MESSAGE);
        let mut reply = vec![0; length];
        stream.read_exact(&mut reply).await.ok()?;
        answer(asked, &reply)
    };
    timeout(TRIES[2], exchange).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};

    fn reply(asked: &[u8], change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::from_vec(asked).unwrap();
        message.metadata.message_type = MessageType::Response;
        change(&mut message);
        message.to_vec().unwrap()
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let asked = question("example.org", RecordType::A, 7).unwrap();
        let name = Name::from_ascii("example.org.").unwrap();
        let alias = Name::from_ascii("www.example.org.").unwrap();
        let found = reply(&asked, |m| {
            m.add_answer(Record::from_rdata(name.clone(), 60, RData::CNAME(CNAME(alias.clone()))));
            m.add_answer(Record::from_rdata(alias.clone(), 60, RData::A(A::new(192, 0, 2, 1))));
        });
        let addresses = Answer::Addresses(vec!["192.0.2.1".parse().unwrap()]);
        assert_eq!(answer(&asked, &found), Some(addresses));
        assert_eq!(answer(&asked, &asked), None, "a question");
        let other = question("example.org", RecordType::A, 8).unwrap();
        assert_eq!(answer(&other, &found), None, "another number");
        let other = question("example.com", RecordType::A, 7).unwrap();
        assert_eq!(answer(&other, &found), None, "another name");
        let none = reply(&asked, |m| m.metadata.response_code = ResponseCode::NXDomain);
        assert_eq!(answer(&asked, &none), Some(Answer::Addresses(Vec::new())));
        let failed = reply(&asked, |m| m.metadata.response_code = ResponseCode::ServFail);
        assert_eq!(answer(&asked, &failed), Some(Answer::Failed));
        let cut = reply(&asked, |m| m.metadata.truncation = true);
        assert_eq!(answer(&asked, &cut), Some(Answer::Truncated));
        assert_eq!(question("a..b", RecordType::A, 1), None);
    }
}

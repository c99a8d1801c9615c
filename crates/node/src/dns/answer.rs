//! From a question to its answer, as bytes: pure, so that it can be fuzzed.
//!
//! In: a [`Zone`] and one datagram (or one TCP message). Out: the reply, or
//! none where a reply would do harm (to a reply, to too few bytes). Invariants:
//! never panics; a reply is at most as long as the asker takes; what is outside
//! the zone is `REFUSED` (RFC 1035 section 4.1.1), what is missing is `NXDOMAIN`
//! with a SOA record (RFC 2308). The library decodes only messages of the form
//! a question has, so no header makes it reserve room for thousands of records.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use super::zone::{Found, Lookup, Zone};

/// Seconds that an answer may be kept: a node that left is forgotten by all
/// within this time.
pub const TTL: u32 = 30;
/// Seconds that "no such name" may be kept: short, since nodes join.
pub const NEGATIVE_TTL: u32 = 10;
/// Longest question that is read, bytes; a real one has some hundred.
pub const MAX_QUERY: usize = 1232;
/// What we say we take, and the most we send in one datagram (RFC 9715).
const UDP_PAYLOAD: u16 = 1232;
/// Header of every message, bytes (RFC 1035 section 4.1.1).
const HEADER: usize = 12;

/// The reply to `query`, of at most `limit` bytes where the asker sets no lower
/// limit (512 over UDP without EDNS, RFC 6891). `None`: send nothing.
pub fn answer(zone: &Zone, query: &[u8], udp: bool) -> Option<Vec<u8>> {
    let header: [u8; HEADER] = query.get(..HEADER)?.try_into().ok()?;
    if header[2] & 0x80 != 0 {
        // A reply: answering it could start a dialogue without end.
        return None;
    }
    if OpCode::from_u8(header[2] >> 3 & 15) != OpCode::Query {
        return Some(bare(&header, ResponseCode::NotImp));
    }
    if !is_one_question(&header) || query.len() > MAX_QUERY {
        return Some(bare(&header, ResponseCode::FormErr));
    }
    let Ok(request) = Message::from_vec(query) else {
        return Some(bare(&header, ResponseCode::FormErr));
    };
    let reply = reply(zone, &request);
    let limit = match udp {
        true => request.max_payload().min(UDP_PAYLOAD),
        false => u16::MAX,
    };
    encode(&reply, limit).or_else(|| Some(bare(&header, ResponseCode::ServFail)))
}

/// True for an ordinary question about a name that no Warren network can have:
/// one that somebody else may be asked.
pub fn is_outside(zone: &Zone, query: &[u8]) -> bool {
    let Some(header) = query.first_chunk::<HEADER>() else { return false };
    // A question by both its bits and its counts.
    if header[2] & 0xf8 != 0 || !is_one_question(header) || query.len() > MAX_QUERY {
        return false;
    }
    let Ok(request) = Message::from_vec(query) else { return false };
    let [question] = &request.queries[..] else { return false };
    let transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
    let name = question.name();
    let last = name.iter().next_back();
    !transfer
        && question.query_class() == DNSClass::IN
        && !last.is_some_and(|label| label.eq_ignore_ascii_case(b"warren"))
        && zone.look_up(name).is_none()
}

/// One question, nothing answered, at most EDNS and a signature beside it.
fn is_one_question(header: &[u8; HEADER]) -> bool {
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    count(4) == 1 && count(6) == 0 && count(8) == 0 && count(10) <= 2
}

/// A reply without anything but its code.
fn bare(header: &[u8; HEADER], code: ResponseCode) -> Vec<u8> {
    let mut reply = vec![0; HEADER];
    reply[..2].copy_from_slice(&header[..2]);
    // It is a reply; operation and "recursion desired" as asked.
    reply[2] = 0x80 | header[2] & 0x79;
    reply[3] = code.low();
    reply
}

fn encode(reply: &Message, limit: u16) -> Option<Vec<u8>> {
    let write = |message: &Message| {
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(limit);
        message.emit(&mut encoder).ok()?;
        Some(bytes)
    };
    write(reply).or_else(|| write(&reply.truncate()))
}

fn reply(zone: &Zone, request: &Message) -> Message {
    let mut reply = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.queries.clone_from(&request.queries);
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        reply.set_edns(edns);
        if asked.version() > 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
            return reply;
        }
    }
    let refused = |mut reply: Message| {
        reply.metadata.response_code = ResponseCode::Refused;
        reply
    };
    let Some(question) = request.queries.first() else { return refused(reply) };
    let transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
    if transfer || !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
        return refused(reply);
    }
    let Some(Lookup { zone: at, found }) = zone.look_up(question.name()) else {
        return refused(reply);
    };
    reply.metadata.authoritative = true;
    let (name, kind) = (question.name(), question.query_type());
    match found {
        Found::Missing => reply.metadata.response_code = ResponseCode::NXDomain,
        Found::Empty => {}
        Found::Apex => match kind {
            RecordType::SOA | RecordType::ANY => {
                reply.add_answer(soa(zone, &at));
            }
            RecordType::NS => {
                let data = RData::NS(NS(zone.server().clone()));
                reply.add_answer(Record::from_rdata(name.clone(), TTL, data));
            }
            _ => {}
        },
        Found::Pointer(target) => {
            if matches!(kind, RecordType::PTR | RecordType::ANY) {
                let data = RData::PTR(PTR(target));
                reply.add_answer(Record::from_rdata(name.clone(), TTL, data));
            }
        }
        Found::Addresses(addresses) => {
            for address in addresses {
                let (own, data) = match address {
                    IpAddr::V4(v4) => (RecordType::A, RData::A(A(v4))),
                    IpAddr::V6(v6) => (RecordType::AAAA, RData::AAAA(AAAA(v6))),
                };
                if kind == own || kind == RecordType::ANY {
                    reply.add_answer(Record::from_rdata(name.clone(), TTL, data));
                }
            }
        }
    }
    if reply.answers.is_empty() {
        reply.add_authority(soa(zone, &at));
    }
    reply
}

fn soa(zone: &Zone, at: &Name) -> Record {
    let mailbox = zone.apex().prepend_label("hostmaster").unwrap_or_else(|_| zone.apex().clone());
    // Nobody transfers this zone; the times say how soon it changes.
    let data = SOA::new(
        zone.server().clone(),
        mailbox,
        zone.serial(),
        TTL as i32,
        TTL as i32,
        TTL as i32 * 10,
        NEGATIVE_TTL,
    );
    Record::from_rdata(at.clone(), NEGATIVE_TTL, RData::SOA(data))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::super::zone::tests::example;
    use super::*;

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name.parse().unwrap(), kind));
        message
    }

    fn ask(message: &Message) -> Message {
        let bytes = answer(&example(), &message.to_vec().unwrap(), true).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!((reply.metadata.id, reply.metadata.message_type), (7, MessageType::Response));
        assert!(!reply.metadata.recursion_available, "nothing is forwarded");
        reply
    }

    #[test]
    fn members_resolve_in_both_families_and_back() {
        let v4 = ask(&question("Gpu-2.Lab.warren.", RecordType::A));
        assert_eq!(v4.answers.len(), 1);
        assert_eq!(v4.answers[0].data, RData::A(A([100, 64, 0, 2].into())));
        assert_eq!(v4.answers[0].ttl, TTL);
        // Case as asked: some resolvers check (RFC 5452 section 9.3).
        assert!(v4.answers[0].name.eq_case(&"Gpu-2.Lab.warren.".parse().unwrap()));
        assert!(v4.metadata.authoritative);
        let v6 = ask(&question("phone.lab.warren.", RecordType::AAAA));
        assert_eq!(v6.answers[0].data, RData::AAAA(AAAA("fd12:3456:789a::9".parse().unwrap())));
        let back = ask(&question("9.0.64.100.in-addr.arpa.", RecordType::PTR));
        assert_eq!(back.answers[0].data, RData::PTR(PTR("phone.lab.warren.".parse().unwrap())));
        assert_eq!(ask(&question("gpu-2.lab.warren.", RecordType::ANY)).answers.len(), 2);
        assert_eq!(ask(&question("lab.warren.", RecordType::SOA)).answers.len(), 1);
        assert_eq!(ask(&question("lab.warren.", RecordType::NS)).answers.len(), 1);
    }

    #[test]
    fn what_is_missing_is_told_for_a_short_time() {
        for (name, kind, code) in [
            ("nobody.lab.warren.", RecordType::A, ResponseCode::NXDomain),
            ("gpu-2.lab.warren.", RecordType::TXT, ResponseCode::NoError),
            ("lab.warren.", RecordType::A, ResponseCode::NoError),
            ("8.8.64.100.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
        ] {
            let reply = ask(&question(name, kind));
            assert_eq!(reply.metadata.response_code, code, "{name}");
            assert!(reply.answers.is_empty());
            let RData::SOA(soa) = &reply.authorities[0].data else { panic!("{name}: no SOA") };
            assert_eq!((soa.minimum, reply.authorities[0].ttl), (NEGATIVE_TTL, NEGATIVE_TTL));
        }
    }

    #[test]
    fn the_rest_of_the_world_is_refused() {
        for (name, kind) in [
            ("example.org.", RecordType::A),
            (".", RecordType::NS),
            ("warren.", RecordType::SOA),
            ("gpu-2.other.warren.", RecordType::A),
            ("1.1.168.192.in-addr.arpa.", RecordType::PTR),
            ("lab.warren.", RecordType::AXFR),
        ] {
            let reply = ask(&question(name, kind));
            assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name} {kind}");
            assert!(!reply.metadata.authoritative && reply.answers.is_empty());
        }
        let mut chaos = question("gpu-2.lab.warren.", RecordType::A);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(ask(&chaos).metadata.response_code, ResponseCode::Refused);
    }

    #[test]
    fn edns_is_answered_in_kind() {
        let mut message = question("gpu-2.lab.warren.", RecordType::A);
        assert!(ask(&message).edns.is_none());
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns.clone());
        assert_eq!(ask(&message).edns.unwrap().max_payload(), UDP_PAYLOAD);
        edns.set_version(1);
        message.set_edns(edns);
        // 16, which TSIG calls BADSIG.
        assert_eq!(u16::from(ask(&message).metadata.response_code), 16);
    }

    #[test]
    fn replies_are_cut_to_what_the_asker_takes() {
        let mut zone = example();
        let many: Vec<IpAddr> = (0..200_u8).map(|n| IpAddr::from([100, 64, 9, n])).collect();
        zone.put(warren_types::NodeId([5; 32]), vec![("many".parse().unwrap(), many)]);
        let query = question("many.lab.warren.", RecordType::A).to_vec().unwrap();
        let small = answer(&zone, &query, true).unwrap();
        assert!(small.len() <= 512, "{}", small.len());
        assert!(Message::from_vec(&small).unwrap().metadata.truncation);
        let whole = Message::from_vec(&answer(&zone, &query, false).unwrap()).unwrap();
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
    }

    #[test]
    fn nonsense_gets_an_error_or_silence_and_never_a_panic() {
        let zone = example();
        let good = question("gpu-2.lab.warren.", RecordType::A).to_vec().unwrap();
        assert_eq!(answer(&zone, &good[..11], true), None);
        let reply = answer(&zone, &good, true).unwrap();
        assert_eq!(answer(&zone, &reply, true), None, "a reply is not answered");
        let code = |bytes: &[u8]| answer(&zone, bytes, true).map(|reply| reply[3] & 15);
        let mut update = good.clone();
        update[2] = 5 << 3;
        assert_eq!(code(&update), Some(ResponseCode::NotImp.low()));
        let mut greedy = good[..12].to_vec();
        greedy[4..6].fill(0xff);
        assert_eq!(code(&greedy), Some(ResponseCode::FormErr.low()));
        assert_eq!(code(&vec![0; 4000]), Some(ResponseCode::FormErr.low()));
        for cut in 12..good.len() {
            assert_eq!(code(&good[..cut]), Some(ResponseCode::FormErr.low()));
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bent = good.clone();
                bent[at] ^= 1 << bit;
                let _ = answer(&zone, &bent, true);
            }
        }
    }
}

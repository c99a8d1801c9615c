//! Entry functions for what userspace mode reads: programs at its proxies,
//! packets of other members and of leases, answers of a resolver.

use std::net::IpAddr;
use std::sync::OnceLock;

use warren_node::userspace::exit::leases;
use warren_node::userspace::lookup::{Answer, answer, question};
use warren_node::userspace::socks::wire;
use warren_node::userspace::{Addresses, Arrival, No, Stack};
use warren_os::tun::memory;

/// What a program says to the SOCKS proxy, and its datagrams.
pub fn socks(data: &[u8]) {
    let whole = [
        wire::greeting(data).map(|parsed| parsed.map(|(_, length)| length)),
        wire::user_password(data).map(|parsed| parsed.map(|(_, length)| length)),
        wire::request(data).map(|parsed| parsed.map(|(_, length)| length)),
    ];
    for length in whole.into_iter().flatten().flatten() {
        assert!(length <= data.len() && length <= wire::MAX_MESSAGE, "{length}");
    }
    if let Some((_, payload)) = wire::datagram(data) {
        assert!(payload.len() + 10 <= data.len());
    }
}

/// An answer to a question about a name.
pub fn lookup(data: &[u8]) {
    static ASKED: OnceLock<Vec<u8>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| {
        question("example.org", "A".parse().expect("a type"), 0x1234).expect("a name")
    });
    if let Some(Answer::Addresses(all)) = answer(asked, data) {
        assert!(all.len() <= 16);
    }
}

/// Frames to a stack that also is an exit: each with its length in front. What
/// arrives unasked is refused; all answers must be whole frames.
pub fn stack(data: &[u8]) {
    let (queues, end) = memory::pair(1).expect("descriptors");
    let own: Vec<IpAddr> = ["100.64.0.2", "fd12::2"].map(|a| a.parse().expect("constant")).to_vec();
    let stack = Stack::new(end, Addresses { mesh: own, ..Addresses::default() }, 16);
    let (member, mut for_member) = tokio::sync::mpsc::channel(16);
    let (exit, mut from_leases) = tokio::sync::mpsc::channel(16);
    stack.set_member(Some(member));
    stack.set_exit(Some((leases(), exit)));
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        stack.inject(&after[..length]);
        rest = &after[length..];
        for (arrivals, why) in [(&mut for_member, No::Refused), (&mut from_leases, No::Unreachable)]
        {
            while let Ok(arrival) = arrivals.try_recv() {
                match arrival {
                    Arrival::Connection(request) => request.refuse(why),
                    Arrival::Datagram(datagram) => {
                        assert!(datagram.payload().len() < length);
                        datagram.refuse(why);
                    }
                    Arrival::Echo { body, .. } => assert!(body.len() >= 4),
                }
            }
        }
    }
    let mut buffer = vec![0; 70_000];
    while let Ok(length) = queues[0].read(&mut buffer) {
        assert!(length >= 10 + 20 && matches!(buffer[10] >> 4, 4 | 6), "{length}");
    }
    assert_eq!(stack.connections(), 0);
}

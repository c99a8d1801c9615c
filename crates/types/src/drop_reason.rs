//! Why the data path dropped a packet. Drops are data: counted, shown by
//! `warren status`, never errors that end a batch.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $label:literal),+ $(,)?) => {
        /// Why one packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(usize)]
        pub enum DropReason { $($(#[$doc])* $variant),+ }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant),+];
            /// The stable label used in the API and in metrics.
            pub fn label(self) -> &'static str {
                match self { $(DropReason::$variant => $label),+ }
            }
        }
    };
}

reasons! {
    /// Shorter than its own headers, or with impossible lengths.
    Malformed = "malformed",
    /// First byte is no message type we know.
    UnknownType = "unknown_type",
    /// Receiver index names no session.
    UnknownSession = "unknown_session",
    /// The AEAD tag did not verify.
    BadTag = "bad_tag",
    /// Counter seen before or older than the window.
    Replay = "replay",
    /// The session is past its age or message limit.
    SessionExpired = "session_expired",
    /// Inner source address is not one the sender may use.
    SourceNotAllowed = "source_not_allowed",
    /// No peer owns the destination address.
    NoRoute = "no_route",
    /// The peer has no known endpoint.
    NoEndpoint = "no_endpoint",
    /// Too many packets wait for a handshake.
    StagingFull = "staging_full",
    /// The queue to the engine was full.
    QueueFull = "queue_full",
    /// mac1 of a handshake message did not verify.
    BadMac = "bad_mac",
    /// A handshake message did not authenticate or named an unknown key.
    BadHandshake = "bad_handshake",
    /// A handshake was refused for load; a cookie was sent.
    UnderLoad = "under_load",
    /// Larger than the path MTU; the sender was told by ICMP.
    TooBig = "too_big",
    /// Hop limit reached zero while forwarding.
    HopLimit = "hop_limit",
    /// A relay frame with an impossible list of nodes, or without a datagram.
    RelayMalformed = "relay_malformed",
    /// A relay frame from another node, or for another, than its list says.
    RelayForged = "relay_forged",
    /// A relay frame for another node while `relay = false`.
    RelayOff = "relay_off",
    /// A relay frame inside a relayed datagram, or for a node that is itself
    /// reached over others.
    RelayNested = "relay_nested",
    /// The next node of a relay frame is none we know.
    RelayNoHop = "relay_no_hop",
    /// A relay frame is larger than the next node's path carries.
    RelayTooBig = "relay_too_big",
    /// No way over other nodes to a node that is reached so.
    RelayNoRoute = "relay_no_route",
    /// A cell that was altered, or not made for its circuit.
    CellForged = "cell_forged",
    /// A cell that came before, or too late.
    CellReplay = "cell_replay",
    /// A cell of a circuit that is not known, or from a node it does not pass.
    CellUnknown = "cell_unknown",
    /// A cell for the next hop of a circuit that ends here, or for a neighbour
    /// that cannot be reached directly.
    CellNoHop = "cell_no_hop",
    /// An inner packet of a circuit from or to an address it may not have.
    CellAddress = "cell_address",
    /// A bulk packet through an onion path, so that its sender goes slower: the
    /// queue before the narrowest link grew while something interactive waited.
    Congestion = "congestion",
    /// No circuit is ready for a packet that may only leave through one.
    NoCircuit = "no_circuit",
    /// The kernel refused the datagram or frame.
    SendFailed = "send_failed",
}

/// One counter per [`DropReason`]; shared by all worker threads.
#[derive(Debug)]
pub struct DropCounters([AtomicU64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl DropCounters {
    /// Counts one packet.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }
    /// Counts `n` packets.
    pub fn add(&self, reason: DropReason, n: u64) {
        self.0[reason as usize].fetch_add(n, Ordering::Relaxed);
    }
    /// Packets dropped so far for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
    /// All counters that are not zero, by label.
    pub fn non_zero(&self) -> std::collections::BTreeMap<String, u64> {
        DropReason::ALL
            .iter()
            .map(|r| (r.label().to_owned(), self.get(*r)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }
}

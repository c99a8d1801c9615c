//! Entry functions for `warren-control`; each takes any bytes and must return.

use warren_control::descriptor::SignedDescriptor;
use warren_control::join_code::JoinCode;
use warren_control::link_state::SignedLinkState;
use warren_control::revocation::SignedRevocation;
use warren_control::route_approval::SignedApproval;
use warren_control::trust::TrustChain;
use warren_control::verify::subject_key;
use warren_control::wire::Message;
use warren_types::{NetworkId, NodeId};

/// The bytes are text, pasted by someone.
pub fn join_code(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(code) = JoinCode::decode(&text, 0) {
        let again = JoinCode::decode(&code.encode(), 0);
        assert_eq!(again.as_ref(), Ok(&code));
    }
}

/// A frame of the control transport.
pub fn control_wire(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        let bytes = message.encode();
        assert!(Message::decode(&bytes).is_ok());
    }
}

/// The body of a descriptor.
pub fn descriptor(data: &[u8]) {
    let signed = SignedDescriptor { body: data.to_vec(), signature: [0; 64], mac: Vec::new() };
    let _ = signed.peek();
    let _ = signed.endpoints();
}

/// A certificate.
pub fn certificate(data: &[u8]) {
    let _ = subject_key(data);
}

/// A signed record other than a descriptor; the first byte says of which sort.
/// Bodies are read before signatures are checked, so that seeds of any network
/// reach all of the parser.
pub fn record(data: &[u8]) {
    const NETWORK: NetworkId = NetworkId([1; 16]);
    const NOW: u64 = 1_800_000_000;
    let Some((sort, bytes)) = data.split_first() else { return };
    match sort % 4 {
        0 => {
            if let Ok(signed) = SignedLinkState::decode(bytes) {
                assert_eq!(SignedLinkState::decode(&signed.encode()).as_ref(), Ok(&signed));
                let _ = signed.verify(NETWORK, NOW);
            }
        }
        1 => {
            if let Ok(signed) = SignedApproval::decode(bytes) {
                let _ = signed.peek();
                let _ = signed.verify(&[NodeId([1; 32])], NETWORK, NOW);
            }
        }
        2 => {
            if let Ok(signed) = SignedRevocation::from_bytes(bytes) {
                let _ = signed.peek();
            }
        }
        _ => {
            if let Ok(chain) = TrustChain::from_bytes(bytes) {
                let _ = (chain.ends(), chain.sequence());
            }
        }
    }
}

//! Entry functions for `warren-control`; each takes any bytes and must return.

use warren_control::descriptor::SignedDescriptor;
use warren_control::join_code::JoinCode;
use warren_control::verify::subject_key;
use warren_control::wire::Message;

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

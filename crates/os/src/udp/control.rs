//! Control messages (`cmsg`) of UDP sends and receives, encoded and decoded as
//! bytes: type of service, segment size.

use std::mem::size_of;

const HEADER: usize = size_of::<libc::cmsghdr>();
const ALIGN: usize = size_of::<usize>();

/// Room for the control messages of one call, aligned as the kernel wants it.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy)]
pub(super) struct ControlBuffer {
    bytes: [u8; 128],
    len: usize,
}

/// What the kernel said about a received train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Received {
    /// Bytes of each datagram but the last; `None` for a single datagram.
    pub(super) segment: Option<usize>,
    /// Type of service or traffic class.
    pub(super) tos: u8,
}

impl ControlBuffer {
    /// Empty, to be filled by a receive.
    pub(super) const fn new() -> Self {
        Self { bytes: [0; 128], len: 0 }
    }

    /// The messages of one send; none when all is default.
    pub(super) fn for_send(v6: bool, tos: u8, segment: Option<u16>) -> Self {
        let mut control = Self::new();
        if let Some(segment) = segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if tos != 0 {
            let (level, kind) = if v6 {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            } else {
                (libc::IPPROTO_IP, libc::IP_TOS)
            };
            control.push(level, kind, &i32::from(tos).to_ne_bytes());
        }
        control
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let at = self.len;
        self.bytes[at..at + ALIGN].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        self.bytes[at + ALIGN..at + ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
        self.bytes[at + ALIGN + 4..at + ALIGN + 8].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[at + HEADER..at + HEADER + data.len()].copy_from_slice(data);
        self.len += HEADER + data.len().next_multiple_of(ALIGN);
    }

    /// Bytes in use.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes the kernel may fill.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// Reads what a receive left in the first `len` bytes.
    pub(super) fn parse(&self, len: usize) -> Received {
        let mut received = Received::default();
        let mut rest = &self.bytes[..len.min(self.bytes.len())];
        while rest.len() >= HEADER {
            let word = |at: usize| {
                i32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]])
            };
            let mut total = [0; ALIGN];
            total.copy_from_slice(&rest[..ALIGN]);
            let total = usize::from_ne_bytes(total);
            if total < HEADER || total > rest.len() {
                break;
            }
            let data = &rest[HEADER..total];
            match (word(ALIGN), word(ALIGN + 4)) {
                // The kernel passes the size as an int.
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = match data {
                        [a, b, c, d, ..] => i32::from_ne_bytes([*a, *b, *c, *d]),
                        [a, b] => i32::from(u16::from_ne_bytes([*a, *b])),
                        _ => 0,
                    };
                    received.segment = usize::try_from(size).ok().filter(|size| *size > 0);
                }
                // One byte for IPv4, an int for IPv6; the first byte in
                // little-endian, so take the int where there is one.
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    received.tos = data.first().copied().unwrap_or(0)
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    if let [a, b, c, d, ..] = data {
                        received.tos = i32::from_ne_bytes([*a, *b, *c, *d]) as u8;
                    }
                }
                _ => {}
            }
            let step = total.next_multiple_of(ALIGN);
            if step >= rest.len() {
                break;
            }
            rest = &rest[step..];
        }
        received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_parsed() {
        let mut control = ControlBuffer::new();
        control.push(libc::IPPROTO_IP, libc::IP_TOS, &[3]);
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes());
        assert_eq!(control.parse(control.len()), Received { segment: Some(1452), tos: 3 });
        let six = ControlBuffer::for_send(true, 1, Some(1200));
        assert_eq!(six.parse(six.len()).tos, 1);
        assert_eq!(ControlBuffer::for_send(false, 0, None).len(), 0);
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut control = ControlBuffer::new();
        for fill in 0..=255u8 {
            control.bytes = [fill; 128];
            for len in 0..=128 {
                control.parse(len);
            }
        }
    }
}

//! The Internet checksum (RFC 1071): sums over bytes, pseudo headers,
//! incremental updates (RFC 1624). Sums are kept in the machine's byte order,
//! which one's-complement arithmetic allows, and turned around only when a
//! field is written.

use super::ip::Ip;

/// A running one's-complement sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes. All calls but the last must add an even number of them.
    #[inline]
    #[must_use]
    pub fn bytes(self, data: &[u8]) -> Self {
        let mut sum = 0u64;
        let (words, rest) = data.as_chunks::<4>();
        // Words of 32 bits in 64-bit lanes: no carries to handle up to 16 GiB,
        // and the compiler turns it into vector code.
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
        Self(add(self.0, sum))
    }

    /// Adds a 16-bit number, as it stands in a header (big-endian).
    #[inline]
    #[must_use]
    pub fn number(self, value: u16) -> Self {
        Self(add(self.0, u64::from(value.to_be())))
    }

    /// Adds the pseudo header of a transport packet of `len` bytes (less than
    /// 65536, as everywhere here).
    #[inline]
    #[must_use]
    pub fn pseudo(self, addresses: &[u8], protocol: u8, len: usize) -> Self {
        self.bytes(addresses).number(u16::from(protocol)).number(len as u16)
    }

    /// The folded sum, to be written to a checksum field that someone else
    /// will complete.
    #[inline]
    pub fn partial(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The finished checksum.
    #[inline]
    pub fn complete(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// True when a range that includes its own checksum sums up right.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    #[inline]
    fn fold(self) -> u16 {
        let mut sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum as u16
    }
}

#[inline]
fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// The checksum field after one 16-bit field changed from `old` to `new`.
#[inline]
pub fn update(checksum: [u8; 2], old: [u8; 2], new: [u8; 2]) -> [u8; 2] {
    let inverted = |field: [u8; 2]| u64::from(!u16::from_ne_bytes(field));
    Sum(inverted(checksum) + inverted(old) + u64::from(u16::from_ne_bytes(new))).complete()
}

/// Writes the header checksum of an IPv4 packet whose header is `len` bytes.
#[inline]
pub fn write_ipv4_header(packet: &mut [u8], len: usize) {
    if let Some(header) = packet.get_mut(..len)
        && header.len() >= 20
    {
        header[10..12].fill(0);
        let sum = Sum::default().bytes(header).complete();
        header[10..12].copy_from_slice(&sum);
    }
}

/// True when the checksum of a whole TCP or UDP packet is right. A UDP
/// checksum of zero (none) counts as wrong here.
pub fn transport_is_valid(ip: &Ip, packet: &[u8]) -> bool {
    match packet.get(ip.transport..ip.total_len) {
        Some(rest) => Sum::default()
            .pseudo(ip.addresses(packet), ip.protocol, rest.len())
            .bytes(rest)
            .is_valid(),
        None => false,
    }
}

/// Completes a checksum of which the field at `start + offset` holds the
/// pseudo header's sum. Does nothing when the field lies outside.
pub fn complete(packet: &mut [u8], start: usize, offset: usize) {
    let Some(rest) = packet.get_mut(start..) else { return };
    if offset + 2 > rest.len() {
        return;
    }
    let mut sum = Sum::default().bytes(rest).complete();
    // Zero means "none" for UDP, and the two zeros are equal for the rest.
    if sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    rest[offset..offset + 2].copy_from_slice(&sum);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, as slow and plain as it is written.
    pub(crate) fn reference(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&data).partial(), [0xdd, 0xf2]);
    }

    #[test]
    fn large_sums_do_not_lose_carries() {
        let data = vec![0xff; 65_535];
        assert_eq!(Sum::default().bytes(&data).complete(), reference(&data).to_be_bytes());
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(data in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0..1500usize) {
            let cut = (cut * 2).min(data.len() & !1);
            let sum = Sum::default().bytes(&data[..cut]).bytes(&data[cut..]);
            prop_assert_eq!(sum.complete(), reference(&data).to_be_bytes());
        }

        #[test]
        fn an_update_equals_a_new_sum(mut data in proptest::collection::vec(any::<u8>(), 40..60), new in any::<[u8; 2]>()) {
            data[0..2].fill(0);
            // A header is never all zeros, where the two zeros would differ.
            data[4] = 1;
            let before = Sum::default().bytes(&data).complete();
            let old = [data[20], data[21]];
            data[20..22].copy_from_slice(&new);
            prop_assert_eq!(update(before, old, new), Sum::default().bytes(&data).complete());
        }
    }
}

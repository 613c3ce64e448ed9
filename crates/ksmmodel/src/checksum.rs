//! The checksums by which KSM has told (or might tell) whether a page changed: chosen by name.

use crate::PAGE_SIZE;

/// How a page is told apart from its earlier self. Never decides that two pages are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Bob Jenkins' `lookup3` over 32-bit words with the initial value 17: KSM until Linux 4.20.
    Jhash2,
    /// CRC-32C by the processor's instruction: proposed in 2017, never merged.
    Crc32c,
    /// xxHash, 64 bits, cut to 32: KSM since Linux 5.0.
    Xxh64,
}

impl Checksum {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Checksum); 3] = [
        ("jhash2", Checksum::Jhash2),
        ("crc32c", Checksum::Crc32c),
        ("xxh64", Checksum::Xxh64),
    ];

    /// The checksum of that name.
    pub fn from_name(name: &str) -> Option<Checksum> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, c)| *c)
    }

    /// The checksum of one page.
    pub fn of(self, page: &[u8]) -> u32 {
        debug_assert_eq!(page.len(), PAGE_SIZE);
        match self {
            Checksum::Jhash2 => jhash2(page, 17),
            Checksum::Crc32c => crc32c::crc32c(page),
            // Cut to its low half, as KSM does: its records hold 32 bits.
            Checksum::Xxh64 => xxhash_rust::xxh64::xxh64(page, 0) as u32,
        }
    }
}

/// `lookup3`'s `hashword` (Bob Jenkins, 2006, public domain algorithm) over the little-endian words of `bytes`,
/// whose length is a multiple of 4 and not 0.
fn jhash2(bytes: &[u8], initial: u32) -> u32 {
    let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let seed = 0xdead_beef_u32
        .wrapping_add(bytes.len() as u32)
        .wrapping_add(initial);
    let (mut a, mut b, mut c) = (seed, seed, seed);
    let mut at = 0;
    while bytes.len() - at > 12 {
        a = a.wrapping_add(word(at));
        b = b.wrapping_add(word(at + 4));
        c = c.wrapping_add(word(at + 8));
        for (round, shift) in [4, 6, 8, 16, 19, 4].into_iter().enumerate() {
            // The six steps of `keyhash` are one step with the roles of a, b, c going round.
            let (x, y, z) = match round % 3 {
                0 => (&mut a, &mut c, &mut b),
                1 => (&mut b, &mut a, &mut c),
                _ => (&mut c, &mut b, &mut a),
            };
            *x = x.wrapping_sub(*y) ^ y.rotate_left(shift);
            *y = y.wrapping_add(*z);
        }
        at += 12;
    }
    let left = (bytes.len() - at) / 4;
    if left > 2 {
        c = c.wrapping_add(word(at + 8));
    }
    if left > 1 {
        b = b.wrapping_add(word(at + 4));
    }
    a = a.wrapping_add(word(at));
    for (round, shift) in [14, 11, 25, 16, 4, 14, 24].into_iter().enumerate() {
        let (x, y) = match round % 3 {
            0 => (&mut c, b),
            1 => (&mut a, c),
            _ => (&mut b, a),
        };
        *x = (*x ^ y).wrapping_sub(y.rotate_left(shift));
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(seed: u64) -> Vec<u8> {
        let mut x = seed | 1;
        (0..PAGE_SIZE)
            .map(|_| {
                x = x
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (x >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn jhash2_agrees_with_an_independent_lookup3() {
        for seed in 0..20 {
            let bytes = page(seed);
            // Not the multiples of 12: that crate departs from the original in the last full block.
            for len in [4, 8, 16, 20, 28, 32, 4096] {
                let theirs = hashers::jenkins::lookup3(&bytes[..len]) as u32;
                assert_eq!(jhash2(&bytes[..len], 0), theirs, "{len} bytes");
            }
        }
    }

    #[test]
    fn crc32c_gives_the_published_check_value() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn xxh64_gives_the_published_value_of_the_empty_input() {
        assert_eq!(xxhash_rust::xxh64::xxh64(b"", 0), 0xef46_db37_51d8_e999);
    }

    #[test]
    fn every_checksum_sees_a_change_in_the_first_and_in_the_last_byte() {
        for (name, checksum) in Checksum::ALL {
            let mut bytes = page(7);
            let before = checksum.of(&bytes);
            bytes[PAGE_SIZE - 1] ^= 1;
            assert_ne!(checksum.of(&bytes), before, "{name}, last byte");
            bytes[PAGE_SIZE - 1] ^= 1;
            bytes[0] ^= 0x80;
            assert_ne!(checksum.of(&bytes), before, "{name}, first byte");
        }
    }
}

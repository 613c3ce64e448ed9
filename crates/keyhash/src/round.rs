//! One round of AES in plain Rust: what keys are made with, and the hash where there is no instruction for it.

/// Multiplies by x in the field of AES.
const fn xtime(a: u8) -> u8 {
    (a << 1) ^ (if a & 0x80 != 0 { 0x1b } else { 0 })
}

const fn gf_mul(mut a: u8, mut b: u8) -> u8 {
    let mut r = 0;
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = xtime(a);
        b >>= 1;
    }
    r
}

/// The S-box: inverse in the field, then the affine map.
const SBOX: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        // a^254 is the inverse of a, and 0 for 0.
        let a = i as u8;
        let mut inverse = 1u8;
        let mut k = 0;
        while k < 254 {
            inverse = gf_mul(inverse, a);
            k += 1;
        }
        let b = inverse;
        table[i] =
            b ^ b.rotate_left(1) ^ b.rotate_left(2) ^ b.rotate_left(3) ^ b.rotate_left(4) ^ 0x63;
        i += 1;
    }
    table
};

/// S-box and column mixing of one byte of row 0, as a little-endian column; other rows are rotations of it.
const COLUMN: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let s = SBOX[i];
        table[i] = u32::from_le_bytes([xtime(s), s, s, xtime(s) ^ s]);
        i += 1;
    }
    table
};

/// One AES round as the AESENC instruction does it: shift rows, substitute, mix columns, add the key.
#[inline]
pub(crate) fn round(x: [u8; 16], key: [u8; 16]) -> [u8; 16] {
    let mut y = [0u8; 16];
    for column in 0..4 {
        let mut word = 0u32;
        for row in 0..4 {
            let byte = x[((column + row) % 4) * 4 + row];
            word ^= COLUMN[byte as usize].rotate_left(8 * row as u32);
        }
        y[column * 4..column * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    xor(y, key)
}

/// Bit by bit.
#[inline]
pub(crate) fn xor(a: [u8; 16], b: [u8; 16]) -> [u8; 16] {
    (u128::from_ne_bytes(a) ^ u128::from_ne_bytes(b)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_is_that_of_the_aes_standard() {
        // FIPS 197, appendix B: the state at the start of round 1, the key of round 1, the state at the start of
        // round 2.
        let start = *b"\x19\x3d\xe3\xbe\xa0\xf4\xe2\x2b\x9a\xc6\x8d\x2a\xe9\xf8\x48\x08";
        let key = *b"\xa0\xfa\xfe\x17\x88\x54\x2c\xb1\x23\xa3\x39\x39\x2a\x6c\x76\x05";
        let end = *b"\xa4\x9c\x7f\xf2\x68\x9f\x35\x2b\x6b\x5b\xea\x43\x02\x6a\x50\x49";
        assert_eq!(round(start, key), end);
    }
}

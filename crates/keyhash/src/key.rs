//! The secret of a hash: one 128-bit word a block of a chunk, and the keys of the rounds around them.

use crate::round::{round as aes_round, xor};

/// Number of 16-byte blocks in a chunk.
pub(crate) const BLOCKS: usize = crate::CHUNK / 16;

/// The secret that a hash depends on: 4 KiB and a little, made from a seed. Share it by reference.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Key {
    /// `K_i`, one a block of a chunk.
    pub(crate) block: [[u8; 16]; BLOCKS],
    /// `M`, between the two rounds of a block; twice, so that a 256-bit load gets it in both halves.
    pub(crate) middle: [[u8; 16]; 2],
    /// The four rounds between chunks.
    pub(crate) chain: [[u8; 16]; 4],
    /// What is added to the sum of the last chunk, and the four rounds after it.
    pub(crate) last: [[u8; 16]; 5],
}

impl Key {
    /// Makes a key from a seed of any length. The same seed gives the same key; give at least 16 bytes of good
    /// randomness where an adversary may choose the data.
    pub fn from_seed(seed: &[u8]) -> Key {
        // Absorb the seed, 16 bytes at a time, the length first; then run in counter mode. Ten rounds of AES with
        // constants for round keys, fed forward so that the step cannot be run backwards.
        let mut state = step(xor([0x50; 16], length(seed.len())));
        for part in seed.chunks(16) {
            let mut block = [0u8; 16];
            block[..part.len()].copy_from_slice(part);
            state = step(xor(state, block));
        }
        let mut count = 0usize;
        let mut next = || {
            count += 1;
            step(xor(state, length(count)))
        };
        let mut key = Key {
            block: [[0; 16]; BLOCKS],
            middle: [[0; 16]; 2],
            chain: [[0; 16]; 4],
            last: [[0; 16]; 5],
        };
        key.block.iter_mut().for_each(|b| *b = next());
        key.middle = [next(); 2];
        key.chain.iter_mut().for_each(|b| *b = next());
        key.last.iter_mut().for_each(|b| *b = next());
        key
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// A 16-byte block that holds a length or count.
pub(crate) fn length(n: usize) -> [u8; 16] {
    (n as u128).to_le_bytes()
}

/// Ten rounds with different constants, fed forward.
fn step(x: [u8; 16]) -> [u8; 16] {
    let mut y = x;
    for round in 1..=10u8 {
        // The golden ratio's digits, told apart by the round number, so that no two rounds are alike.
        let constant =
            0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834u128.wrapping_mul(2 * round as u128 + 1);
        y = aes_round(y, constant.to_le_bytes());
    }
    xor(x, y)
}

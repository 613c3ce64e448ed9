//! The hash in plain Rust: what the fast paths are tested against, and what machines without AES run.

use crate::key::{length, BLOCKS};
use crate::round::{round, xor};
use crate::{Key, CHUNK};

/// The blocks of `data`, the last padded with zeros.
fn blocks(data: &[u8]) -> impl Iterator<Item = [u8; 16]> + '_ {
    data.chunks(16).map(|part| {
        let mut block = [0u8; 16];
        block[..part.len()].copy_from_slice(part);
        block
    })
}

fn sum(key: &Key, blocks: impl Iterator<Item = [u8; 16]>) -> [u8; 16] {
    let mut acc = [0u8; 16];
    for (i, m) in blocks.enumerate() {
        debug_assert!(i < BLOCKS);
        acc = xor(
            acc,
            round(round(xor(m, key.block[i]), key.middle[0]), [0; 16]),
        );
    }
    acc
}

fn finish(key: &Key, state: [u8; 16], len: usize) -> u64 {
    let mut x = xor(xor(state, key.last[0]), length(len));
    for k in &key.last[1..] {
        x = round(x, *k);
    }
    u64::from_le_bytes([x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]])
}

pub(crate) fn hash64(key: &Key, data: &[u8]) -> u64 {
    let mut state = [0u8; 16];
    let mut rest = data;
    while rest.len() > CHUNK {
        let (chunk, more) = rest.split_at(CHUNK);
        state = xor(state, sum(key, blocks(chunk)));
        for k in &key.chain {
            state = round(state, *k);
        }
        rest = more;
    }
    finish(key, xor(state, sum(key, blocks(rest))), data.len())
}

pub(crate) fn hash64_lines(key: &Key, data: &[u8], lines: &[u32]) -> u64 {
    let parts = lines.iter().flat_map(|&at| {
        let line = &data[at as usize..data.len().min(at as usize + 64)];
        let mut padded = [[0u8; 16]; 4];
        for (to, from) in padded.iter_mut().zip(blocks(line)) {
            *to = from;
        }
        padded
    });
    finish(key, sum(key, parts), data.len())
}

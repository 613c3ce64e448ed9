//! The mix with the AES instructions of x86-64.

use crate::{Key, CHUNK};
use std::arch::x86_64::*;

/// Loads one 16-byte block of the key.
#[inline]
#[target_feature(enable = "aes")]
fn key128(block: &[u8; 16]) -> __m128i {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}

/// Loads `data`, fewer than 16 bytes, padded with zeros.
#[inline]
#[target_feature(enable = "aes")]
fn padded(data: &[u8]) -> __m128i {
    let mut block = [0u8; 16];
    block[..data.len()].copy_from_slice(data);
    key128(&block)
}

#[inline]
#[target_feature(enable = "aes")]
fn absorb(m: __m128i, key: __m128i, middle: __m128i) -> __m128i {
    let x = _mm_aesenc_si128(_mm_xor_si128(m, key), middle);
    _mm_aesenc_si128(x, _mm_setzero_si128())
}

#[inline]
#[target_feature(enable = "aes")]
fn finish(key: &Key, state: __m128i, len: usize) -> u64 {
    let len = _mm_set_epi64x(0, len as i64);
    let mut x = _mm_xor_si128(_mm_xor_si128(state, key128(&key.last[0])), len);
    for k in &key.last[1..] {
        x = _mm_aesenc_si128(x, key128(k));
    }
    _mm_cvtsi128_si64(x) as u64
}

#[inline]
#[target_feature(enable = "aes")]
fn chain(key: &Key, mut state: __m128i) -> __m128i {
    for k in &key.chain {
        state = _mm_aesenc_si128(state, key128(k));
    }
    state
}

/// The sum over the blocks of a chunk from block `first` on, 128 bits at a time.
#[inline]
#[target_feature(enable = "aes")]
fn sum128(key: &Key, data: &[u8], first: usize) -> __m128i {
    let middle = key128(&key.middle[0]);
    // Four sums, so that four chains of rounds run at once.
    let mut acc = [_mm_setzero_si128(); 4];
    let mut at = first;
    let mut parts = data.chunks_exact(64);
    for part in &mut parts {
        let keys = &key.block[at..at + 4];
        for j in 0..4 {
            // SAFETY: `part` has 64 bytes; the load needs no alignment.
            let m = unsafe { _mm_loadu_si128(part.as_ptr().add(16 * j).cast()) };
            acc[j] = _mm_xor_si128(acc[j], absorb(m, key128(&keys[j]), middle));
        }
        at += 4;
    }
    for (j, part) in parts.remainder().chunks(16).enumerate() {
        let m = match part.try_into() {
            Ok(block) => key128(block),
            Err(_) => padded(part),
        };
        acc[j] = _mm_xor_si128(acc[j], absorb(m, key128(&key.block[at + j]), middle));
    }
    _mm_xor_si128(_mm_xor_si128(acc[0], acc[1]), _mm_xor_si128(acc[2], acc[3]))
}

/// The sum over the blocks of a chunk, 256 bits at a time.
#[inline]
#[target_feature(enable = "aes,avx2,vaes")]
fn sum256(key: &Key, data: &[u8]) -> __m128i {
    /// Bytes of one turn: eight vectors cover the latency of two dependent rounds.
    const TURN: usize = 256;
    let turns = data.len() / TURN;
    // SAFETY: `middle` has 32 bytes; the load needs no alignment.
    let middle = unsafe { _mm256_loadu_si256(key.middle.as_ptr().cast()) };
    let zero = _mm256_setzero_si256();
    let mut acc = [zero; 8];
    let keys: *const u8 = key.block.as_ptr().cast();
    for turn in 0..turns {
        for (j, acc) in acc.iter_mut().enumerate() {
            let at = turn * TURN + 32 * j;
            // SAFETY: `at + 32 <= data.len() <= CHUNK`, the number of bytes of `data` and at most those of
            // `key.block`; the loads need no alignment.
            let (m, k) = unsafe {
                (
                    _mm256_loadu_si256(data.as_ptr().add(at).cast()),
                    _mm256_loadu_si256(keys.add(at).cast()),
                )
            };
            let x = _mm256_aesenc_epi128(_mm256_xor_si256(m, k), middle);
            *acc = _mm256_xor_si256(*acc, _mm256_aesenc_epi128(x, zero));
        }
    }
    let a = _mm256_xor_si256(
        _mm256_xor_si256(
            _mm256_xor_si256(acc[0], acc[1]),
            _mm256_xor_si256(acc[2], acc[3]),
        ),
        _mm256_xor_si256(
            _mm256_xor_si256(acc[4], acc[5]),
            _mm256_xor_si256(acc[6], acc[7]),
        ),
    );
    let sum = _mm_xor_si128(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
    let done = turns * TURN;
    if done == data.len() {
        return sum;
    }
    _mm_xor_si128(sum, sum128(key, &data[done..], done / 16))
}

#[target_feature(enable = "aes")]
pub(super) fn mix64_aesni(key: &Key, data: &[u8]) -> u64 {
    let mut state = _mm_setzero_si128();
    let mut rest = data;
    while rest.len() > CHUNK {
        let (chunk, more) = rest.split_at(CHUNK);
        state = chain(key, _mm_xor_si128(state, sum128(key, chunk, 0)));
        rest = more;
    }
    finish(key, _mm_xor_si128(state, sum128(key, rest, 0)), data.len())
}

#[target_feature(enable = "aes,avx2,vaes")]
pub(super) fn mix64_vaes(key: &Key, data: &[u8]) -> u64 {
    let mut state = _mm_setzero_si128();
    let mut rest = data;
    while rest.len() > CHUNK {
        let (chunk, more) = rest.split_at(CHUNK);
        state = chain(key, _mm_xor_si128(state, sum256(key, chunk)));
        rest = more;
    }
    finish(key, _mm_xor_si128(state, sum256(key, rest)), data.len())
}

/// See [`crate::mix64_lines`].
#[target_feature(enable = "aes")]
pub(super) fn mix64_lines(key: &Key, data: &[u8], lines: &[u32]) -> u64 {
    let middle = key128(&key.middle[0]);
    let mut acc = [_mm_setzero_si128(); 4];
    for (i, &at) in lines.iter().enumerate() {
        let line = &data[at as usize..data.len().min(at as usize + 64)];
        let keys = &key.block[4 * i..4 * i + 4];
        if line.len() == 64 {
            for j in 0..4 {
                // SAFETY: `line` has 64 bytes; the load needs no alignment.
                let m = unsafe { _mm_loadu_si128(line.as_ptr().add(16 * j).cast()) };
                acc[j] = _mm_xor_si128(acc[j], absorb(m, key128(&keys[j]), middle));
            }
        } else {
            let mut full = [0u8; 64];
            full[..line.len()].copy_from_slice(line);
            for (j, part) in full.chunks_exact(16).enumerate() {
                acc[j] = _mm_xor_si128(acc[j], absorb(padded(part), key128(&keys[j]), middle));
            }
        }
    }
    let sum = _mm_xor_si128(_mm_xor_si128(acc[0], acc[1]), _mm_xor_si128(acc[2], acc[3]));
    finish(key, sum, data.len())
}

//! The hash with the AES instructions of x86-64.

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
pub(super) fn hash64_aesni(key: &Key, data: &[u8]) -> u64 {
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
pub(super) fn hash64_vaes(key: &Key, data: &[u8]) -> u64 {
    let mut state = _mm_setzero_si128();
    let mut rest = data;
    while rest.len() > CHUNK {
        let (chunk, more) = rest.split_at(CHUNK);
        state = chain(key, _mm_xor_si128(state, sum256(key, chunk)));
        rest = more;
    }
    finish(key, _mm_xor_si128(state, sum256(key, rest)), data.len())
}

/// See [`crate::hash64_four`]: `data` of one length, at most a chunk.
#[target_feature(enable = "aes,avx2,vaes")]
pub(super) fn hash64_four(key: &Key, data: [&[u8]; 4]) -> [u64; 4] {
    /// Bytes of each input in one turn: with four inputs, eight vectors, as in `sum256`.
    const TURN: usize = 64;
    let len = data[0].len();
    debug_assert!(len <= CHUNK && data.iter().all(|d| d.len() == len));
    let done = len / TURN * TURN;
    // SAFETY: `middle` has 32 bytes; the load needs no alignment.
    let middle = unsafe { _mm256_loadu_si256(key.middle.as_ptr().cast()) };
    let zero = _mm256_setzero_si256();
    let mut acc = [[zero; 2]; 4];
    let keys: *const u8 = key.block.as_ptr().cast();
    for at in (0..done).step_by(TURN) {
        for half in 0..2 {
            let at = at + 32 * half;
            // SAFETY: `at + 32 <= len <= CHUNK`, the number of bytes of each input and at most those of `key.block`;
            // the loads need no alignment.
            let k = unsafe { _mm256_loadu_si256(keys.add(at).cast()) };
            for (data, acc) in data.iter().zip(&mut acc) {
                // SAFETY: as above.
                let m = unsafe { _mm256_loadu_si256(data.as_ptr().add(at).cast()) };
                let x = _mm256_aesenc_epi128(_mm256_xor_si256(m, k), middle);
                acc[half] = _mm256_xor_si256(acc[half], _mm256_aesenc_epi128(x, zero));
            }
        }
    }
    let mut hashes = [0; 4];
    for ((hash, acc), data) in hashes.iter_mut().zip(acc).zip(data) {
        let a = _mm256_xor_si256(acc[0], acc[1]);
        let mut sum = _mm_xor_si128(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
        if done < len {
            sum = _mm_xor_si128(sum, sum128(key, &data[done..], done / 16));
        }
        *hash = finish(key, sum, len);
    }
    hashes
}

/// See [`crate::hash64_lines`].
#[target_feature(enable = "aes")]
pub(super) fn hash64_lines_aesni(key: &Key, data: &[u8], lines: &[u32]) -> u64 {
    let middle = key128(&key.middle[0]);
    let mut acc = [_mm_setzero_si128(); 4];
    for (&at, keys) in lines.iter().zip(key.block.as_chunks::<4>().0) {
        let line = line(data, at);
        for ((acc, part), key) in acc.iter_mut().zip(line.as_chunks::<16>().0).zip(keys) {
            *acc = _mm_xor_si128(*acc, absorb(key128(part), key128(key), middle));
        }
    }
    let sum = _mm_xor_si128(_mm_xor_si128(acc[0], acc[1]), _mm_xor_si128(acc[2], acc[3]));
    finish(key, sum, data.len())
}

/// See [`crate::hash64_lines`].
#[target_feature(enable = "aes,avx2,vaes")]
pub(super) fn hash64_lines_vaes(key: &Key, data: &[u8], lines: &[u32]) -> u64 {
    // SAFETY: `middle` has 32 bytes; the load needs no alignment.
    let middle = unsafe { _mm256_loadu_si256(key.middle.as_ptr().cast()) };
    let zero = _mm256_setzero_si256();
    // Two lines at a time have chains of rounds of their own.
    let mut acc = [[zero; 2]; 2];
    for (i, (&at, keys)) in lines.iter().zip(key.block.as_chunks::<4>().0).enumerate() {
        let line = line(data, at);
        for (half, acc) in acc[i % 2].iter_mut().enumerate() {
            // SAFETY: a line has 64 bytes, and so have four blocks of the key; the loads need no alignment.
            let (m, k) = unsafe {
                (
                    _mm256_loadu_si256(line.as_ptr().add(32 * half).cast()),
                    _mm256_loadu_si256(keys.as_ptr().add(2 * half).cast()),
                )
            };
            let x = _mm256_aesenc_epi128(_mm256_xor_si256(m, k), middle);
            *acc = _mm256_xor_si256(*acc, _mm256_aesenc_epi128(x, zero));
        }
    }
    let a = _mm256_xor_si256(
        _mm256_xor_si256(acc[0][0], acc[0][1]),
        _mm256_xor_si256(acc[1][0], acc[1][1]),
    );
    let sum = _mm_xor_si128(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
    finish(key, sum, data.len())
}

/// See [`crate::hash64_lines_four`]: `data` of one length, whole lines, as many as a chunk has at most.
#[target_feature(enable = "aes,avx2,vaes")]
pub(super) fn hash64_lines_four(key: &Key, data: [&[u8]; 4], lines: &[u32]) -> [u64; 4] {
    let len = data[0].len();
    // SAFETY: `middle` has 32 bytes; the load needs no alignment.
    let middle = unsafe { _mm256_loadu_si256(key.middle.as_ptr().cast()) };
    let zero = _mm256_setzero_si256();
    let mut acc = [[zero; 2]; 4];
    for (&at, keys) in lines.iter().zip(key.block.as_chunks::<4>().0) {
        debug_assert!(at as usize + 64 <= len);
        for half in 0..2 {
            // SAFETY: four blocks of the key have 64 bytes; the load needs no alignment.
            let k = unsafe { _mm256_loadu_si256(keys.as_ptr().add(2 * half).cast()) };
            for (data, acc) in data.iter().zip(&mut acc) {
                // SAFETY: the line lies within each of the inputs (given); the load needs no alignment.
                let m = unsafe {
                    _mm256_loadu_si256(data.as_ptr().add(at as usize + 32 * half).cast())
                };
                let x = _mm256_aesenc_epi128(_mm256_xor_si256(m, k), middle);
                acc[half] = _mm256_xor_si256(acc[half], _mm256_aesenc_epi128(x, zero));
            }
        }
    }
    acc.map(|acc| {
        let a = _mm256_xor_si256(acc[0], acc[1]);
        let sum = _mm_xor_si128(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
        finish(key, sum, len)
    })
}

/// The line of `data` that begins at `at`, padded with zeros.
#[inline]
fn line(data: &[u8], at: u32) -> std::borrow::Cow<'_, [u8; 64]> {
    use std::borrow::Cow;
    let rest = &data[at as usize..];
    match rest.first_chunk::<64>() {
        Some(line) => Cow::Borrowed(line),
        None => {
            let mut line = [0u8; 64];
            line[..rest.len()].copy_from_slice(rest);
            Cow::Owned(line)
        }
    }
}

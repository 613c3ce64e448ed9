//! A keyed hash of bytes to 64 bits for routing, and the byte kernels that go with it.
//!
//! For indexes and for keys of memory pages. It calls `std` only, makes no system
//! call, and knows neither its callers nor Python.
//!
//! # The hash
//!
//! The input is cut into blocks `m_i` of 16 bytes, the last padded with zeros. One *chunk* is up to 256 blocks:
//!
//! ```text
//! X = XOR over i of  R(R(m_i ^ K_i) ^ M)        R: one AES round, K_i, M: 128 secret bits each
//! ```
//!
//! Every block position has a secret of its own, so the sum needs no order and runs as wide as the machine does.
//! Two different chunks of one length differ in some block `j`; for a fixed rest they collide only if the output
//! difference of two AES rounds at `j` hits one value, over the uniform `K_j`: no input difference reaches an
//! output difference with an expected probability above 53/2^34, about 2^-28 (Keliher and Sui, two-round AES; the
//! bound averages over the middle key `M`, which here is one secret for all blocks). Four more keyed rounds spread
//! the sum, with the length in, over the 64 bits that are returned. Inputs longer than a chunk chain the sums
//! through four keyed rounds each.
//!
//! So for someone who does not know the key, no choice of two inputs makes them meet more often than about one key
//! in 2^28, and random inputs meet one in 2^64. **It is a route, not an identity**: nothing may conclude that two
//! inputs are equal because their hashes are. It is no message authentication code either.
//!
//! The result is the same for the same key on every machine: the portable path computes what the AES-NI and VAES
//! paths do. It is not stable between versions of this crate; do not store it.

#![doc = include_str!("../README.md")]
#![deny(missing_docs, missing_debug_implementations)]

mod aes;
mod bytes;
mod key;
mod round;

pub use aes::{path, Path};
pub use bytes::{equal_pairs, first_diff, first_diff_bit, is_zero};
pub use key::Key;

/// Bytes of one chunk: the block secrets of a [`Key`] repeat after so many.
pub const CHUNK: usize = 4096;

/// Returns 64 keyed bits of `data`, whose length is part of the input. Cost: every byte is read once; 4 KiB in the
/// second-level cache take about 50 ns with VAES, about 5 µs on the portable path.
#[inline]
pub fn hash64(key: &Key, data: &[u8]) -> u64 {
    aes::hash64(key, data, path())
}

/// As [`hash64`], on a given path: for tests that compare the paths. A path that this machine lacks falls back to
/// the portable one.
pub fn hash64_on(key: &Key, data: &[u8], path: Path) -> u64 {
    aes::hash64(key, data, path)
}

/// Hashes `rows` of `row_len` bytes each, laid end to end, into `out`, prefetching ahead.
///
/// # Panics
/// If `rows.len() != out.len() * row_len`.
pub fn hash64_rows(key: &Key, rows: &[u8], row_len: usize, out: &mut [u64]) {
    assert_eq!(
        rows.len(),
        out.len() * row_len,
        "rows must hold out.len() rows of row_len bytes"
    );
    let path = path();
    for (i, o) in out.iter_mut().enumerate() {
        *o = aes::hash64(key, &rows[i * row_len..(i + 1) * row_len], path);
    }
}

/// As [`hash64`] of four inputs that are read side by side, if they are of one length and not longer than a [`CHUNK`].
/// From memory that takes two thirds of the time (measured 2026-11-23: 168 to 216 ns for 4 KiB, one after the other 300):
/// the hardware follows four streams at once, and each begins anew at a page. Nothing need be prefetched; doing so costs.
#[inline]
pub fn hash64_four(key: &Key, data: [&[u8]; 4]) -> [u64; 4] {
    aes::hash64_four(key, data)
}

/// Returns 64 keyed bits of some 64-byte lines of `data`: those that start at the byte offsets `lines`, in that
/// order. The length of `data` is part of the input. A line that reaches past the end is padded with zeros.
///
/// # Panics
/// If there are more than 64 lines, or one starts past the end of `data`.
#[inline]
pub fn hash64_lines(key: &Key, data: &[u8], lines: &[u32]) -> u64 {
    aes::hash64_lines(key, data, lines, path())
}

/// As [`hash64_lines`] of four inputs at once, if they are of one length.
#[inline]
pub fn hash64_lines_four(key: &Key, data: [&[u8]; 4], lines: &[u32]) -> [u64; 4] {
    aes::hash64_lines_four(key, data, lines)
}

/// As [`hash64_lines`], on a given path: for tests that compare the paths.
pub fn hash64_lines_on(key: &Key, data: &[u8], lines: &[u32], path: Path) -> u64 {
    aes::hash64_lines(key, data, lines, path)
}

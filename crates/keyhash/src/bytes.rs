//! Kernels on plain bytes: is it all zero, where do two first differ.

/// Bytes of one stride of the wide loops: one test and branch a stride.
const STRIDE: usize = 256;

/// Returns whether every byte of `data` is zero; true for no bytes. Leaves at the first stride that is not.
#[inline]
pub fn is_zero(data: &[u8]) -> bool {
    // Most pages that are not zero show it in their first line.
    let (head, rest) = data.split_at(data.len().min(64));
    if !is_zero_words(head) {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was just found on this machine.
        return unsafe { avx2::is_zero(rest) };
    }
    rest.chunks(STRIDE).all(is_zero_words)
}

fn is_zero_words(data: &[u8]) -> bool {
    let mut words = data.chunks_exact(8);
    let mut any = 0u64;
    for w in &mut words {
        any |= u64::from_le_bytes(w.try_into().unwrap_or([0xff; 8]));
    }
    any == 0 && words.remainder().iter().all(|&b| b == 0)
}

/// Returns the index of the first byte in which `a` and `b` differ, over their common length; `None` if that is
/// equal.
#[inline]
pub fn first_diff(a: &[u8], b: &[u8]) -> Option<usize> {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    #[cfg(target_arch = "x86_64")]
    if n >= 32 && is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was just found on this machine; the slices have one length.
        return unsafe { avx2::first_diff(a, b) };
    }
    first_diff_words(a, b)
}

/// As [`first_diff`], but the index of the first differing bit; bit 0 is the most significant of byte 0, so that
/// the order of bits is the order of `memcmp`.
#[inline]
pub fn first_diff_bit(a: &[u8], b: &[u8]) -> Option<usize> {
    first_diff(a, b).map(|i| 8 * i + (a[i] ^ b[i]).leading_zeros() as usize)
}

/// Returns for each of two pairs of slices whether they are equal. Pairs of one length are read side by side, which from
/// memory is faster than one after the other (see [`crate::hash64_four`]).
#[inline]
pub fn equal_pairs(a: [&[u8]; 2], b: [&[u8]; 2]) -> [bool; 2] {
    #[cfg(target_arch = "x86_64")]
    {
        let n = a[0].len();
        if [a[1].len(), b[0].len(), b[1].len()] == [n; 3] && is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was just found on this machine; the slices have one length.
            return unsafe { avx2::equal_pairs(a, b) };
        }
    }
    [0, 1].map(|i| a[i].len() == b[i].len() && first_diff(a[i], b[i]).is_none())
}

/// The portable form; slices of one length.
fn first_diff_words(a: &[u8], b: &[u8]) -> Option<usize> {
    let mut at = 0;
    for (x, y) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        let d = u64::from_le_bytes(x.try_into().unwrap_or_default())
            ^ u64::from_le_bytes(y.try_into().unwrap_or_default());
        if d != 0 {
            return Some(at + d.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    (at..a.len()).find(|&i| a[i] != b[i])
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::STRIDE;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn is_zero(data: &[u8]) -> bool {
        let mut strides = data.chunks_exact(STRIDE);
        for s in &mut strides {
            let mut any = _mm256_setzero_si256();
            for j in 0..STRIDE / 32 {
                // SAFETY: `s` has STRIDE bytes; the load needs no alignment.
                any = _mm256_or_si256(any, unsafe {
                    _mm256_loadu_si256(s.as_ptr().add(32 * j).cast())
                });
            }
            if _mm256_testz_si256(any, any) == 0 {
                return false;
            }
        }
        super::is_zero_words(strides.remainder())
    }

    /// Bit i of the result says that byte i of the 32 at `a` and `b` differs.
    ///
    /// # Safety
    /// 32 bytes must be readable at both.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn differ(a: *const u8, b: *const u8) -> u32 {
        // SAFETY: given by the caller.
        let (x, y) = unsafe { (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast())) };
        !(_mm256_movemask_epi8(_mm256_cmpeq_epi8(x, y)) as u32)
    }

    /// Slices of one length, at least 32.
    #[target_feature(enable = "avx2")]
    pub(super) fn first_diff(a: &[u8], b: &[u8]) -> Option<usize> {
        let n = a.len();
        let (p, q) = (a.as_ptr(), b.as_ptr());
        let mut at = 0;
        // The first 64 bytes decide most pairs that differ.
        while at + 32 <= n.min(64) {
            // SAFETY: `at + 32 <= n`.
            let d = unsafe { differ(p.add(at), q.add(at)) };
            if d != 0 {
                return Some(at + d.trailing_zeros() as usize);
            }
            at += 32;
        }
        while at + 128 <= n {
            let mut same = _mm256_set1_epi8(-1);
            for j in 0..4 {
                // SAFETY: `at + 32 * j + 32 <= n`; the loads need no alignment.
                let (x, y) = unsafe {
                    (
                        _mm256_loadu_si256(p.add(at + 32 * j).cast()),
                        _mm256_loadu_si256(q.add(at + 32 * j).cast()),
                    )
                };
                same = _mm256_and_si256(same, _mm256_cmpeq_epi8(x, y));
            }
            if _mm256_movemask_epi8(same) != -1 {
                break;
            }
            at += 128;
        }
        while at + 32 <= n {
            // SAFETY: `at + 32 <= n`.
            let d = unsafe { differ(p.add(at), q.add(at)) };
            if d != 0 {
                return Some(at + d.trailing_zeros() as usize);
            }
            at += 32;
        }
        if at < n {
            // The last 32 bytes, some of them seen already and known equal.
            let at = n - 32;
            // SAFETY: `n >= 32`, so that 32 bytes follow `at`.
            let d = unsafe { differ(p.add(at), q.add(at)) };
            if d != 0 {
                return Some(at + d.trailing_zeros() as usize);
            }
        }
        None
    }

    /// Slices of one length.
    #[target_feature(enable = "avx2")]
    pub(super) fn equal_pairs(a: [&[u8]; 2], b: [&[u8]; 2]) -> [bool; 2] {
        let n = a[0].len();
        let mut at = 0;
        while at + 128 <= n {
            let mut same = [_mm256_set1_epi8(-1); 2];
            for ((a, b), same) in a.iter().zip(b).zip(&mut same) {
                for j in 0..4 {
                    // SAFETY: `at + 32 * j + 32 <= n`, the length of all; the loads need no alignment.
                    let (x, y) = unsafe {
                        (
                            _mm256_loadu_si256(a.as_ptr().add(at + 32 * j).cast()),
                            _mm256_loadu_si256(b.as_ptr().add(at + 32 * j).cast()),
                        )
                    };
                    *same = _mm256_and_si256(*same, _mm256_cmpeq_epi8(x, y));
                }
            }
            if _mm256_movemask_epi8(_mm256_and_si256(same[0], same[1])) != -1 {
                break;
            }
            at += 128;
        }
        // What is left, of both where one of them differs.
        [0, 1].map(|i| super::first_diff(&a[i][at..], &b[i][at..]).is_none())
    }
}

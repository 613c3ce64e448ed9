//! The hash on each kind of machine: portable, AES-NI (128 bits), VAES (256 bits).

pub(crate) mod soft;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::{Key, CHUNK};

/// A way to compute the hash. All give the same result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Tables and shifts; any machine.
    Portable,
    /// AES instructions on 128 bits (x86-64).
    AesNi,
    /// AES instructions on 256 bits (x86-64 with AVX2 and VAES).
    Vaes,
}

/// Returns the fastest path of this machine. Cost: a cached look at the processor's features.
#[inline]
pub fn path() -> Path {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("aes")
        {
            return Path::Vaes;
        }
        if is_x86_feature_detected!("aes") {
            return Path::AesNi;
        }
    }
    Path::Portable
}

/// Whether this machine can run `path`; the cached feature look-ups make it cheap.
#[cfg(target_arch = "x86_64")]
#[inline]
fn have(wanted: Path) -> bool {
    match (wanted, path()) {
        (Path::Vaes, Path::Vaes) => true,
        (Path::AesNi, Path::Vaes | Path::AesNi) => true,
        _ => wanted == Path::Portable,
    }
}

#[inline]
pub(crate) fn hash64(key: &Key, data: &[u8], path: Path) -> u64 {
    #[cfg(target_arch = "x86_64")]
    match path {
        // SAFETY: the features that the function is compiled for were just found on this machine.
        Path::Vaes if have(path) => return unsafe { x86::hash64_vaes(key, data) },
        // SAFETY: as above.
        Path::AesNi if have(path) => return unsafe { x86::hash64_aesni(key, data) },
        _ => {}
    }
    let _ = path;
    soft::hash64(key, data)
}

#[inline]
pub(crate) fn hash64_four(key: &Key, data: [&[u8]; 4]) -> [u64; 4] {
    let path = path();
    #[cfg(target_arch = "x86_64")]
    {
        let len = data[0].len();
        if path == Path::Vaes && len <= CHUNK && data.iter().all(|d| d.len() == len) {
            // SAFETY: the features that the function is compiled for were just found on this machine.
            return unsafe { x86::hash64_four(key, data) };
        }
    }
    data.map(|data| hash64(key, data, path))
}

#[inline]
pub(crate) fn hash64_lines(key: &Key, data: &[u8], lines: &[u32], path: Path) -> u64 {
    assert!(lines.len() * 64 <= CHUNK, "at most 64 lines");
    #[cfg(target_arch = "x86_64")]
    match path {
        // SAFETY: the features that the function is compiled for were just found on this machine.
        Path::Vaes if have(path) => return unsafe { x86::hash64_lines_vaes(key, data, lines) },
        // SAFETY: as above.
        Path::AesNi if have(path) => return unsafe { x86::hash64_lines_aesni(key, data, lines) },
        _ => {}
    }
    let _ = path;
    soft::hash64_lines(key, data, lines)
}

#[inline]
pub(crate) fn hash64_lines_four(key: &Key, data: [&[u8]; 4], lines: &[u32]) -> [u64; 4] {
    let path = path();
    #[cfg(target_arch = "x86_64")]
    {
        let len = data[0].len();
        let whole = |&at: &u32| at as usize + 64 <= len;
        if path == Path::Vaes
            && lines.len() * 64 <= CHUNK
            && lines.iter().all(whole)
            && data.iter().all(|d| d.len() == len)
        {
            // SAFETY: the features that the function is compiled for were just found on this machine.
            return unsafe { x86::hash64_lines_four(key, data, lines) };
        }
    }
    data.map(|data| hash64_lines(key, data, lines, path))
}

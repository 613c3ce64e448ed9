//! Keys of pages, by which equal ones are found: of bytes at hand, or read from a source and forgotten.
//!
//! Called by the bindings and by `duplicates`.

use std::io;

use keyhash::Key;

use super::chunks::{chunk_pages, each, with_scratch};
use super::{Source, CODE_GONE, CODE_OK, CODE_ZERO};

/// Keys and codes of pages that have been read into `bytes`: those whose code is not `CODE_GONE` already.
pub fn keys_of_read(key: &Key, bytes: &[u8], page_size: usize, keys: &mut [u64], code: &mut [u8]) {
    for ((page, key_out), code) in bytes.chunks_exact(page_size).zip(keys).zip(code) {
        *key_out = 0;
        if *code != CODE_GONE {
            if keyhash::is_zero(page) {
                *code = CODE_ZERO;
            } else {
                *key_out = keyhash::hash64(key, page);
            }
        }
    }
}

/// Reads the pages at `at` and computes the key of each, a keyed hash of all its bytes (0 for zero and gone pages),
/// and its code: `CODE_OK`, `CODE_ZERO` or `CODE_GONE`. The bytes are forgotten, or kept in `keep` (as `Source::read`
/// leaves them) if it is given.
///
/// # Errors
/// As [`Source::read`].
///
/// # Panics
/// If an array is not as long as `at` asks for, or `page_size` is 0.
#[allow(clippy::too_many_arguments)]
pub fn read_keys(
    source: &Source,
    at: &[u64],
    page_size: usize,
    key: &Key,
    keys: &mut [u64],
    code: &mut [u8],
    keep: Option<&mut [u8]>,
    threads: usize,
) -> io::Result<()> {
    assert_eq!(keys.len(), at.len(), "keys must hold one element a page");
    assert_eq!(code.len(), at.len(), "code must hold one element a page");
    let step = chunk_pages(page_size);
    let keys = keys.chunks_mut(step);
    let code = code.chunks_mut(step);
    let parts = at.chunks(step).zip(keys).zip(code);
    match keep {
        Some(keep) => {
            assert_eq!(
                keep.len(),
                at.len() * page_size,
                "keep must hold at.len() pages"
            );
            let items: Vec<_> = parts.zip(keep.chunks_mut(step * page_size)).collect();
            each(items, threads, |(((at, keys), code), bytes)| {
                source.read(at, None, page_size, bytes, code)?;
                keys_of_read(key, bytes, page_size, keys, code);
                Ok(())
            })
        }
        None => each(parts.collect(), threads, |((at, keys), code)| {
            with_scratch(at.len() * page_size, |bytes| {
                source.read(at, None, page_size, bytes, code)?;
                keys_of_read(key, bytes, page_size, keys, code);
                Ok(())
            })
        }),
    }
}

/// Keys and codes (`CODE_OK`, `CODE_ZERO`) of the pages of `bytes`; what is left behind the last whole page is not
/// looked at.
///
/// # Panics
/// If `keys` or `code` does not hold one element a whole page, or `page_size` is 0.
pub fn keys_of(
    bytes: &[u8],
    page_size: usize,
    key: &Key,
    keys: &mut [u64],
    code: &mut [u8],
    threads: usize,
) {
    let pages = bytes.len() / page_size;
    assert_eq!(keys.len(), pages, "keys must hold one element a page");
    assert_eq!(code.len(), pages, "code must hold one element a page");
    let step = chunk_pages(page_size);
    let bytes = bytes[..pages * page_size].chunks(step * page_size);
    let items: Vec<_> = bytes
        .zip(keys.chunks_mut(step))
        .zip(code.chunks_mut(step))
        .collect();
    let outcome = each(items, threads, |((bytes, keys), code)| {
        code.fill(CODE_OK);
        keys_of_read(key, bytes, page_size, keys, code);
        Ok(())
    });
    debug_assert!(outcome.is_ok(), "no part of this can fail");
}

//! Comparing pages of two sources, all their bytes.
//!
//! Called by the bindings; what is merged is compared in the stop, not here.

use std::io;

use super::chunks::{chunk_pages, with_scratch};
use super::{Source, CODE_OK};

/// Both were read and all bytes are equal.
pub const SAME: u8 = 0;
/// Both were read and some byte differs.
pub const DIFFERENT: u8 = 1;
/// One of the pages could not be read.
pub const UNREADABLE: u8 = 2;

/// Reads page `at_a[i]` of `a` and page `at_b[i]` of `b` and compares all their bytes: `SAME`, `DIFFERENT` or
/// `UNREADABLE` (one of them, or both) in `verdict[i]`.
///
/// # Errors
/// As [`Source::read`], of either.
///
/// # Panics
/// If `at_b` or `verdict` is not as long as `at_a`, or `page_size` is 0.
pub fn compare(
    (a, at_a): (&Source, &[u64]),
    (b, at_b): (&Source, &[u64]),
    page_size: usize,
    verdict: &mut [u8],
) -> io::Result<()> {
    assert_eq!(
        at_a.len(),
        at_b.len(),
        "both sides must hold one element a page"
    );
    assert_eq!(
        verdict.len(),
        at_a.len(),
        "verdict must hold one element a page"
    );
    // Half a chunk of each side, so that both stay in the cache.
    let step = chunk_pages(2 * page_size);
    for ((at_a, at_b), verdict) in at_a
        .chunks(step)
        .zip(at_b.chunks(step))
        .zip(verdict.chunks_mut(step))
    {
        let bytes = at_a.len() * page_size;
        with_scratch(2 * bytes, |both| {
            let (in_a, in_b) = both.split_at_mut(bytes);
            let mut code = vec![0u8; at_a.len()];
            a.read(at_a, None, page_size, in_a, verdict)?;
            b.read(at_b, None, page_size, in_b, &mut code)?;
            let pages = in_a
                .chunks_exact(page_size)
                .zip(in_b.chunks_exact(page_size));
            for ((page_a, page_b), (verdict, &code)) in pages.zip(verdict.iter_mut().zip(&code)) {
                *verdict = match (*verdict, code) {
                    (CODE_OK, CODE_OK) if page_a == page_b => SAME,
                    (CODE_OK, CODE_OK) => DIFFERENT,
                    _ => UNREADABLE,
                };
            }
            Ok::<(), io::Error>(())
        })?;
    }
    Ok(())
}

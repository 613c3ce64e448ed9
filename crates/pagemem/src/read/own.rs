//! Keys of pages that a process has alone: the others are told by their entries, and not read.

use std::io;
use std::os::fd::AsRawFd;

use keyhash::Key;

use super::chunks::{chunk_pages, with_scratch};
use super::keys::keys_of_read;
use super::{AddressSpace, CODE_GONE, PAGE};
use crate::hold;
use crate::pagemap::entries_of;

/// Shared with other processes since a fork (or by KSM): not read.
pub const CODE_SHARED: u8 = 3;

/// As [`super::read_keys`] for a process, but that pages shared with others are not read: their code is [`CODE_SHARED`].
/// Pages that hold no memory, or a file's, are gone: to read one of a file system that does not answer would take for ever. It costs no more, for whose a page is has to be known to read it.
///
/// # Errors
/// As [`super::Source::read`].
///
/// # Panics
/// If `keys` or `code` is not as long as `at`.
pub fn read_own_keys(
    process: &AddressSpace,
    at: &[u64],
    key: &Key,
    keys: &mut [u64],
    code: &mut [u8],
) -> io::Result<()> {
    assert_eq!(keys.len(), at.len(), "keys must hold one element a page");
    assert_eq!(code.len(), at.len(), "code must hold one element a page");
    let Some((pagemap, _)) = &process.files else {
        code.fill(CODE_GONE);
        return Ok(());
    };
    let step = chunk_pages(PAGE);
    let mut entries = Vec::with_capacity(step);
    for ((at, keys), code) in at
        .chunks(step)
        .zip(keys.chunks_mut(step))
        .zip(code.chunks_mut(step))
    {
        entries.clear();
        entries_of(pagemap.as_raw_fd(), at, &mut entries)?;
        let holds = hold::holds_of(pagemap.as_raw_fd(), at, &entries)?;
        let left = |h: &u8| matches!(*h, hold::SHARED | hold::NONE | hold::FILE);
        with_scratch(at.len() * PAGE, |bytes| -> io::Result<()> {
            if !holds.iter().any(left) {
                process.read(at, Some(&entries), bytes, code)?;
                keys_of_read(key, bytes, PAGE, keys, code);
                return Ok(());
            }
            let which: Vec<usize> = (0..at.len()).filter(|&i| !left(&holds[i])).collect();
            let pick = |column: &[u64]| -> Vec<u64> { which.iter().map(|&i| column[i]).collect() };
            let (mut its_keys, mut its_code) = (vec![0; which.len()], vec![0; which.len()]);
            let bytes = &mut bytes[..which.len() * PAGE];
            process.read(&pick(at), Some(&pick(&entries)), bytes, &mut its_code)?;
            keys_of_read(key, bytes, PAGE, &mut its_keys, &mut its_code);
            for (i, h) in holds.iter().enumerate() {
                keys[i] = 0;
                code[i] = if *h == hold::SHARED {
                    CODE_SHARED
                } else {
                    CODE_GONE
                };
            }
            for (n, &i) in which.iter().enumerate() {
                (keys[i], code[i]) = (its_keys[n], its_code[n]);
            }
            Ok(())
        })?;
    }
    Ok(())
}

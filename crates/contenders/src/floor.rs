//! No index at all: what it takes to read every byte of the rows once. No exact method that must read objects whole can
//! be faster; the tables and trees of this crate are to be read beside it.

use crate::peer::{Peer, Rows};
use std::hint::black_box;

/// Rows read side by side, a quarter of a group apart: the fastest way to read memory that we know of. The hardware
/// follows each as a stream of its own.
const STREAMS: usize = 4;
/// Rows of a group, as everywhere here.
const GROUP: usize = 32;

pub(crate) struct ReadOnce<'a>(pub(crate) Rows<'a>);

/// The XOR of all words of four rows of one length, or of one and three of none; what is left is added byte by byte.
#[inline]
fn sum(rows: [&[u8]; STREAMS]) -> u64 {
    /// Words of each row taken in turn: a line.
    const WORDS: usize = 8;
    let mut acc = [[0u64; WORDS]; STREAMS];
    let lines = rows.map(|row| row.as_chunks::<{ 8 * WORDS }>());
    for i in 0..lines[0].0.len() {
        for (acc, line) in acc.iter_mut().zip(lines) {
            let Some(line) = line.0.get(i) else { continue };
            for (acc, word) in acc.iter_mut().zip(line.as_chunks::<8>().0) {
                *acc ^= u64::from_le_bytes(*word);
            }
        }
    }
    let rest = lines.iter().flat_map(|l| l.1).map(|&b| b as u64);
    acc.iter().flatten().fold(rest.sum(), |a, b| a ^ b)
}

fn read(rows: Rows<'_>, range: std::ops::Range<usize>) -> usize {
    for start in range.clone().step_by(GROUP) {
        let n = GROUP.min(range.end - start);
        let apart = n / STREAMS;
        for k in 0..apart {
            black_box(sum(std::array::from_fn(|s| {
                rows.get(start + k + s * apart)
            })));
        }
        for k in apart * STREAMS..n {
            // One alone, fewer than four of a batch.
            black_box(sum([rows.get(start + k), &[], &[], &[]]));
        }
    }
    range.len()
}

impl Peer for ReadOnce<'_> {
    fn insert(&self, range: std::ops::Range<usize>) -> usize {
        read(self.0, range)
    }
    fn find(&self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize {
        read(other, range)
    }
    fn remove(&self, _range: std::ops::Range<usize>) -> Option<usize> {
        None
    }
}

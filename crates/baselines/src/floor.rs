//! No index at all: what it takes to read the rows. No exact method that must read objects whole can be faster than to
//! read every byte once. One that stops where it has seen enough might be, so that is here, too: it reads up to the second
//! line in which a row differs from one that is in the caches. The tables and trees of this crate are to be read beside
//! the faster of the two.

use crate::peer::{Peer, Rows};
use crate::table::prefetch;
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

/// Rows read side by side, each up to the second line that differs from that of the first row of all.
const LANES: usize = 8;
/// Lines of the next row of a lane that are asked for when it begins with one.
const AHEAD: usize = 8;
/// Lines compared at a time.
const BLOCK: usize = 4;

pub(crate) struct ReadApart<'a>(pub(crate) Rows<'a>);

type Line = [u8; 64];

/// Which of a block's lines differ, as bits.
#[inline]
fn differ(ours: &[Line], theirs: &[Line]) -> u32 {
    let mut bits = 0;
    for (k, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let pairs = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
        let words = pairs.map(|(x, y)| u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y));
        bits |= u32::from(words.fold(0, |all, word| all | word) != 0) << k;
    }
    bits
}

/// A lane: the row it is at, the first that is not its own, the next line, and the lines found to differ.
#[derive(Clone, Copy)]
struct Lane {
    row: usize,
    end: usize,
    line: usize,
    found: u32,
}

/// Reads groups of rows, whole lines only; what is past them is not looked at.
fn read_apart(rows: Rows<'_>, first: &[u8], range: std::ops::Range<usize>) -> usize {
    let first = first.as_chunks::<64>().0;
    for start in range.clone().step_by(2 * GROUP) {
        let n = (2 * GROUP).min(range.end - start);
        let bound = |k: usize| start + n * k / LANES;
        let mut lanes: [Lane; LANES] = std::array::from_fn(|k| Lane {
            row: bound(k),
            end: bound(k + 1),
            line: 0,
            found: 0,
        });
        while lanes.iter().any(|lane| lane.row < lane.end) {
            for lane in lanes.iter_mut().filter(|lane| lane.row < lane.end) {
                let lines = rows.get(lane.row).as_chunks::<64>().0;
                let to = lines.len().min(lane.line + BLOCK);
                let bits = differ(&lines[lane.line..to], &first[lane.line..to]);
                lane.found += bits.count_ones();
                lane.line = to;
                if lane.found >= 2 || to == lines.len() {
                    // What an index would be asked with.
                    black_box((bits, lane.line));
                    (lane.row, lane.line, lane.found) = (lane.row + 1, 0, 0);
                    if lane.row + 1 < lane.end {
                        let next = rows.get(lane.row + 1);
                        for line in next.as_chunks::<64>().0.iter().take(AHEAD) {
                            prefetch(line.as_ptr());
                        }
                    }
                }
            }
        }
    }
    range.len()
}

impl Peer for ReadApart<'_> {
    fn insert(&self, range: std::ops::Range<usize>) -> usize {
        read_apart(self.0, self.0.get(0), range)
    }
    fn find(&self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize {
        read_apart(other, self.0.get(0), range)
    }
    fn remove(&self, _range: std::ops::Range<usize>) -> Option<usize> {
        None
    }
}

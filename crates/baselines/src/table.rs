//! XXH3-64 and an open-addressing table: the usual way to find equal pages, written well.
//!
//! Linear probing in a presized table, half full at most; a slot holds the whole hash and the row number, so that
//! only rows of equal hash are compared, with `memcmp`. In batches, the hashes of a group are computed first (each
//! row's next lines come while the one before is hashed), their slots and then the rows they lead to prefetched.

use crate::peer::{Depth, Rows, Single};
use twox_hash::XxHash3_64;

/// Rows of a group.
const GROUP: usize = 32;
const EMPTY: u32 = u32::MAX;
/// What a removed row leaves, so that probes go on.
const GONE: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Slot {
    hash: u64,
    row: u32,
}

pub(crate) struct Table<'a> {
    rows: Rows<'a>,
    slots: Vec<Slot>,
    batched: bool,
}

#[inline]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch may be given any address.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

impl<'a> Table<'a> {
    pub(crate) fn new(rows: Rows<'a>, capacity: usize, batched: bool) -> Self {
        let slots = vec![
            Slot {
                hash: 0,
                row: EMPTY
            };
            (2 * capacity.max(1)).next_power_of_two()
        ];
        Table {
            rows,
            slots,
            batched,
        }
    }

    /// Calls `f` with each row of the range and its hash, with what it will touch on the way to the caches.
    #[inline]
    fn each(
        &mut self,
        rows: Rows<'_>,
        range: std::ops::Range<usize>,
        mut f: impl FnMut(&mut Self, usize, &[u8], u64),
    ) {
        if !self.batched {
            for i in range {
                let row = rows.get(i);
                f(self, i, row, XxHash3_64::oneshot(row));
            }
            return;
        }
        let mask = self.slots.len() - 1;
        let mut hashes = [0u64; GROUP];
        let mut start = range.start;
        while start < range.end {
            let n = GROUP.min(range.end - start);
            for (k, hash) in hashes.iter_mut().enumerate().take(n) {
                // The head of the row after next: the hardware follows once a row has begun.
                if start + k + 2 < range.end {
                    let next = rows.get(start + k + 2);
                    for at in (0..next.len().min(512)).step_by(64) {
                        prefetch(next.as_ptr().wrapping_add(at));
                    }
                }
                *hash = XxHash3_64::oneshot(rows.get(start + k));
                prefetch((&raw const self.slots[*hash as usize & mask]).cast());
            }
            for &hash in &hashes[..n] {
                let slot = self.slots[hash as usize & mask];
                if slot.hash == hash && slot.row < GONE {
                    let other = self.rows.get(slot.row as usize);
                    for at in (0..other.len().min(512)).step_by(64) {
                        prefetch(other.as_ptr().wrapping_add(at));
                    }
                }
            }
            for (k, &hash) in hashes[..n].iter().enumerate() {
                f(self, start + k, rows.get(start + k), hash);
            }
            start += n;
        }
    }

    /// The slot of a row equal to `row`, or the empty one where the search ended.
    #[inline]
    fn probe(&self, row: &[u8], hash: u64) -> (usize, bool) {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.row == EMPTY {
                return (at, false);
            }
            if slot.hash == hash && slot.row != GONE && self.rows.get(slot.row as usize) == row {
                return (at, true);
            }
            at = (at + 1) & mask;
        }
    }
}

impl Single for Table<'_> {
    fn insert(&mut self, range: std::ops::Range<usize>) -> usize {
        let mut new = 0;
        self.each(self.rows, range, |table, i, row, hash| {
            let (at, there) = table.probe(row, hash);
            if !there {
                table.slots[at] = Slot {
                    hash,
                    row: i as u32,
                };
                new += 1;
            }
        });
        new
    }

    fn find(&mut self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize {
        let mut found = 0;
        self.each(other, range, |table, _, row, hash| {
            found += table.probe(row, hash).1 as usize
        });
        found
    }

    fn remove(&mut self, range: std::ops::Range<usize>) -> Option<usize> {
        let mut removed = 0;
        self.each(self.rows, range, |table, _, row, hash| {
            let (at, there) = table.probe(row, hash);
            if there {
                table.slots[at].row = GONE;
                removed += 1;
            }
        });
        Some(removed)
    }

    fn bytes(&self) -> Option<usize> {
        Some(self.slots.len() * std::mem::size_of::<Slot>())
    }

    fn depth(&self) -> Option<Depth> {
        None
    }
}

//! The table of places above the trie: 2^r edges, one for each value of the first r key bits.

use crate::edge::EMPTY;
use crate::primitive::{AtomicPtr, AtomicU64, AtomicUsize};

/// The table of places above the trie.
pub(super) struct Table {
    pub(super) bits: u32,
    pub(super) places: Box<[AtomicU64]>,
    /// The table of half the size that this one is being filled from; null when all has been moved.
    pub(super) old: AtomicPtr<Table>,
    /// Places of `old` not moved yet.
    pub(super) left: AtomicUsize,
    /// The next place of `old` to be moved by somebody who is not in need of it.
    pub(super) next: AtomicUsize,
}

// SAFETY: shared parts are atomics; `old` is owned by the tree and freed by epoch.
unsafe impl Send for Table {}

impl Table {
    /// A table of 2^bits empty places.
    pub(super) fn empty(bits: u32) -> Box<Table> {
        Box::new(Table {
            bits,
            places: (0..1usize << bits).map(|_| AtomicU64::new(EMPTY)).collect(),
            old: AtomicPtr::new(std::ptr::null_mut()),
            left: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        })
    }

    #[inline]
    pub(super) fn number(&self, prefix: u64) -> usize {
        (prefix >> (64 - self.bits)) as usize
    }

    #[inline]
    pub(super) fn place(&self, prefix: u64) -> &AtomicU64 {
        let i = self.number(prefix);
        debug_assert!(i < self.places.len());
        // SAFETY: `i < 2^bits`, the number of places.
        unsafe { self.places.get_unchecked(i) }
    }
}

//! The tables: which place a key has, and doubling them while others read and write.
//!
//! A place of the old table is frozen (`TAG`) with the edges of the node that branches on the next bit, if there is one,
//! and its two halves are copied to the new table, by whoever comes first; all who come compute the same words, and none
//! waits.

use super::space::Space;
use super::table::Table;
use super::{Pin, Trie, FIRST, MAX_TABLE_BITS, SECOND};
use crate::edge::{self, EMPTY, FLAG, MARKS, MOVED, TAG, TOP, UNINIT};
use crate::epoch::Kind;
use crate::prefetch::prefetch;
use crate::primitive::{zeroed_box, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Objects for each place at which the table is doubled, as a power of two.
const LOAD_BITS: u32 = 1;
/// Inserts of one participant between looks at the size.
const CHECK_EVERY: u32 = if cfg!(loom) { 1 } else { 64 };

/// Places moved to a new table at each look; four for each insert, so that a move ends long before the next one.
const MOVE_EACH: usize = 4 * CHECK_EVERY as usize;

impl Trie {
    /// Makes the second table, if there is none.
    pub(super) fn make_second<S: Space>(&self) {
        let table = &self.tables[SECOND];
        if !table.load(Ordering::Acquire).is_null() {
            return;
        }
        // Who has given room for many objects has given it for those of classes, too.
        let less = S::SECOND_LESS;
        let bits = self.table(FIRST).bits.saturating_sub(less).max(TOP);
        let new = Box::into_raw(Table::empty(bits));
        let null = std::ptr::null_mut();
        if table
            .compare_exchange(null, new, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: made just now and seen by nobody else.
            drop(unsafe { Box::from_raw(new) });
        }
    }

    /// The place in a table for `prefix`, moved there from the old table if need be, and its word.
    #[inline]
    pub(super) fn root<R: Fn(u32)>(
        &self,
        pin: &mut Pin<'_, R>,
        root: usize,
        prefix: u64,
    ) -> (&AtomicU64, u64) {
        loop {
            let table = self.table(root);
            let at = table.place(prefix);
            let word = at.load(Ordering::Acquire);
            match word {
                UNINIT => self.migrate(pin, table, table.number(prefix) >> 1),
                // This table has been left since; the new one is in its place already.
                MOVED => {}
                _ => return (at, word),
            }
        }
    }

    /// Moves place `j` of the old table to its two places of `table`.
    pub(super) fn migrate<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, table: &Table, j: usize) {
        // SAFETY: an old table is freed by epoch after this pointer is null, and the caller is pinned.
        let Some(old) = (unsafe { table.old.load(Ordering::Acquire).as_ref() }) else {
            return;
        };
        let place = &old.places[j];
        let mut word = place.load(Ordering::Acquire);
        while word & TAG == 0 {
            match place.compare_exchange(word, word | TAG, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => word |= TAG,
                Err(now) => word = now,
            }
        }
        if word == MOVED {
            return;
        }
        // Frozen now, and so is what is frozen below: everybody computes the same.
        let clean = |w: u64| {
            if edge::is_leaf(w) && w & FLAG != 0 {
                EMPTY
            } else {
                w & !MARKS
            }
        };
        let mut dropped = None;
        let halves = if edge::is_empty(word) || clean(word) == EMPTY {
            [EMPTY, EMPTY]
        } else if !edge::is_leaf(word) && edge::position(word) == old.bits {
            dropped = Some(edge::index(word));
            let node = self.node(word);
            [0, 1].map(|side: usize| clean(node.0[side].fetch_or(TAG, Ordering::AcqRel)))
        } else {
            // All below is on one side: any leaf tells which.
            let mut any = word;
            while !edge::is_leaf(any) {
                any = self.node(any).0[0].load(Ordering::Acquire);
            }
            let mut halves = [EMPTY, EMPTY];
            halves[edge::fingerprint_bit(any, old.bits)] = clean(word);
            halves
        };
        for (side, half) in halves.into_iter().enumerate() {
            self.swing(&table.places[2 * j + side], UNINIT, half);
        }
        if self.swing(place, word, MOVED) {
            if let Some(node) = dropped {
                pin.retire(Kind::Node, node);
            }
            if table.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                let old = table.old.swap(std::ptr::null_mut(), Ordering::AcqRel);
                // SAFETY: made by `Box::into_raw`; unlinked by this thread alone, the one that moved the last place.
                pin.retire_box(unsafe { Box::from_raw(old) });
            }
        }
    }

    /// Counts an insert below a root, and looks at the size of its table when it is time.
    #[inline]
    pub(super) fn count_insert<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, root: usize) {
        pin.count(root, 1);
        let kept = pin.kept();
        kept.since_check += 1;
        if kept.since_check >= CHECK_EVERY {
            kept.since_check = 0;
            self.check_size(pin, root);
        }
    }

    /// Doubles the table if it has become small, and moves some places if it is being doubled.
    #[cold]
    fn check_size<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, root: usize) {
        let table = self.table(root);
        // SAFETY: an old table is freed by epoch, and the caller is pinned.
        if let Some(old) = unsafe { table.old.load(Ordering::Acquire).as_ref() } {
            let n = old.places.len();
            let start = table.next.fetch_add(MOVE_EACH, Ordering::Relaxed);
            let numbers = || (start..start + MOVE_EACH.min(n)).map(|i| i & (n - 1));
            for j in numbers() {
                let word = old.places[j].load(Ordering::Acquire);
                if !edge::is_leaf(word) {
                    prefetch(self.node(word));
                }
            }
            for j in numbers() {
                // Around again, if somebody has claimed places and not come to moving them.
                if old.places[j].load(Ordering::Acquire) != MOVED {
                    self.migrate(pin, table, j);
                }
            }
        } else if table.bits < MAX_TABLE_BITS
            && self.domain.len(root) > (1 << LOAD_BITS) << table.bits
        {
            let here: *const Table = table;
            let new = Box::into_raw(Box::new(Table {
                bits: table.bits + 1,
                places: zeroed_box(2 << table.bits),
                old: AtomicPtr::new(here.cast_mut()),
                left: AtomicUsize::new(1 << table.bits),
                next: AtomicUsize::new(0),
            }));
            let put = self.tables[root].compare_exchange(
                here.cast_mut(),
                new,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if put.is_err() {
                // SAFETY: made just now and seen by nobody else. Its drop does not touch `old`.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }
}

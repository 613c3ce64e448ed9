//! The tree itself: a path-compressed binary trie over key bits, changed by single CASes on edges.
//!
//! Published forms: edge marking as in Natarajan and Mittal, "Fast concurrent lock-free binary search trees" (PPoPP
//! 2014), on a Patricia trie, whose insert may land on any edge of the path.
//!
//! Above the trie lies a table of 2^r places, indexed by the first r key bits; a place holds the edge to the trie
//! of its objects. The table grows by doubling.
//!
//! Removing marks the leaf's edge (`FLAG`: this is when the object is gone), freezes the sibling's edge (`TAG`) and
//! swings the lowest clean edge above to the sibling, taking a whole chain of such nodes out at once; who swings
//! retires the chain, who flagged retires the id. Anyone who is stopped by a mark helps first.
//!
//! There are two such tables with their tries. Below the first objects are found by their first key bits; where two
//! have all of these in common they become a class (see `class.rs`), whose members but one are below the second.
//!
//! The modules, each of which uses only those above it: [`path`], [`space`], [`table`]; this one, which has the trie and its
//! primitives; [`grow`] (doubling the tables), [`descent`], [`unlink`] (taking nodes out), [`classes`]; [`find`], [`insert`],
//! [`remove`]; [`warm`] (a batch in step) and [`survey`] (the whole tree).

mod descent;
mod find;
mod grow;
mod insert;
mod path;
mod remove;
mod table;
mod unlink;

pub(crate) mod classes;
pub(crate) mod space;
pub(crate) mod survey;
pub(crate) mod warm;

use crate::arena::Arena;
use crate::edge::{self, TOP};
use crate::epoch::{Domain, Kind};
use crate::primitive::{AtomicPtr, AtomicU64, Ordering, Zeroed};
use path::Kept;
use space::Space;
use table::Table;

/// A participant in this crate's tries, pinned.
pub(crate) type Pin<'d, R> = crate::epoch::Pin<'d, Kept, R>;

/// The largest table: 2^28 places, for more than 2^29 objects.
const MAX_TABLE_BITS: u32 = if cfg!(loom) { 3 } else { 28 };
/// The root below which objects are found by their first key bits.
const FIRST: usize = 0;
/// The root below which the members of classes are.
const SECOND: usize = 1;

/// An inner node: two edges, by the value of the bit that the edge above names.
#[repr(align(16))]
struct Node([AtomicU64; 2]);

// SAFETY: two atomic integers.
unsafe impl Zeroed for Node {
    fn zeroed() -> Self {
        Node([AtomicU64::new(0), AtomicU64::new(0)])
    }
}

/// The trie without its objects: they are in a [`Space`], given to each call.
pub(crate) struct Trie {
    /// The second is null until there is a class.
    tables: [AtomicPtr<Table>; 2],
    nodes: Arena<Node>,
    domain: Domain<Kept>,
}

// SAFETY: everything shared is atomics; tables are freed by epoch.
unsafe impl Sync for Trie {}
// SAFETY: as above; nothing is bound to a thread.
unsafe impl Send for Trie {}

impl Trie {
    /// An empty trie, with a table right for `capacity` objects; it grows past that.
    pub(crate) fn new(capacity: usize) -> Self {
        let bits = capacity.max(1).ilog2().clamp(TOP, MAX_TABLE_BITS);
        Trie {
            tables: [
                AtomicPtr::new(Box::into_raw(Table::empty(bits))),
                AtomicPtr::new(std::ptr::null_mut()),
            ],
            nodes: Arena::new(1),
            domain: Domain::new(),
        }
    }

    /// Pins the calling thread; every operation needs that, of this trie.
    pub(crate) fn pin<'t, S: Space>(&'t self, space: &'t S) -> Pin<'t, impl Fn(u32) + use<'t, S>> {
        self.domain.pin(|id| space.release(id))
    }

    pub(crate) fn len(&self) -> usize {
        self.domain.len(FIRST) + self.domain.len(SECOND)
    }

    /// All ids ever given are below this.
    pub(crate) fn id_bound(&self) -> u32 {
        self.domain.bound(Kind::Id)
    }

    /// Bytes allocated: tables, nodes, participants. Pinned, so that the tables stay.
    pub(crate) fn bytes<R: Fn(u32)>(&self, _pin: &Pin<'_, R>) -> usize {
        let mut places = 0;
        for table in &self.tables {
            let mut table = table.load(Ordering::Acquire);
            // SAFETY: tables are freed by epoch, and the caller is pinned; the chain ends with null.
            while let Some(t) = unsafe { table.as_ref() } {
                places += t.places.len();
                table = t.old.load(Ordering::Acquire);
            }
        }
        places * std::mem::size_of::<AtomicU64>() + self.nodes.bytes() + self.domain.bytes()
    }

    /// The table of a root: the first, or the second of one who has seen a class.
    #[inline]
    fn table(&self, root: usize) -> &Table {
        let table = self.tables[root].load(Ordering::Acquire);
        debug_assert!(!table.is_null());
        // SAFETY: not null: the first is made with the trie, the second before the first class is published; replaced
        // tables are freed by epoch, and every caller is pinned (or owns the trie).
        unsafe { &*table }
    }

    #[inline]
    fn node(&self, word: u64) -> &Node {
        // SAFETY: the word is an inner edge, published after its node's memory was reserved.
        unsafe { self.nodes.get(edge::index(word)) }
    }

    #[inline]
    fn swing(&self, at: *const AtomicU64, from: u64, to: u64) -> bool {
        crate::freeze::point();
        // SAFETY: edges stand in nodes (never unmapped) or in tables (freed by epoch); the caller is pinned since
        // before it learnt of this one.
        let done = unsafe { &*at }.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        crate::freeze::point();
        done.is_ok()
    }
}

impl Drop for Trie {
    fn drop(&mut self) {
        for table in &self.tables {
            let mut table = table.load(Ordering::Acquire);
            while !table.is_null() {
                // SAFETY: made by `Box::into_raw`; `&mut self` says that nobody else is here.
                table = unsafe { Box::from_raw(table) }.old.load(Ordering::Acquire);
            }
        }
    }
}

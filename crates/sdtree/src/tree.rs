//! The tree itself: a path-compressed binary trie over key bits, changed by single CASes on edges.
//!
//! Published forms: edge marking as in Natarajan and Mittal, "Fast concurrent lock-free binary search trees" (PPoPP
//! 2014), on a Patricia trie, whose insert may land on any edge of the path. The edge that an insert swings is the
//! one *recorded on the way down*: every leaf ever reached through an edge shares the key bits above it, so the
//! first difference from the leaf that was reached is the first difference from all below that edge; and a removed
//! node has both edges marked, so an edge found clean belongs to a node still in the tree. (The textbook second
//! descent can end in another subtree, and loses keys.)
//!
//! Above the trie lies a table of 2^r places, indexed by the first r key bits; a place holds the edge to the trie
//! of its objects. The table grows by doubling: a place is frozen (`TAG`) with the edges of the node that branches
//! on bit r, if there is one, and its two halves are copied to the new table, by whoever comes first; all who come
//! compute the same words, and none waits.
//!
//! Removing marks the leaf's edge (`FLAG`: this is when the object is gone), freezes the sibling's edge (`TAG`) and
//! swings the lowest clean edge above to the sibling, taking a whole chain of such nodes out at once; who swings
//! retires the chain, who flagged retires the id. Anyone who is stopped by a mark helps first.
//!
//! An object seen through a frozen edge after its node has left was in the tree when the node left, which was after
//! the search began; so finds need no second look.

use crate::arena::Arena;
use crate::edge::{self, EMPTY, FLAG, MARKS, MOVED, PREFIX, TAG, TOP, UNINIT};
use crate::epoch::{Domain, Full, Kind, Pin};
use crate::primitive::{zeroed_box, AtomicPtr, AtomicU64, AtomicUsize, Ordering, Zeroed};

/// The largest table: 2^28 places, for more than 2^29 objects.
const MAX_TABLE_BITS: u32 = if cfg!(loom) { 3 } else { 28 };
/// Objects for each place at which the table is doubled, as a power of two.
const LOAD_BITS: u32 = 1;
/// Inserts of one seat between looks at the size.
const CHECK_EVERY: u32 = if cfg!(loom) { 1 } else { 64 };
/// Places moved to a new table at each look; four for each insert, so that a move ends long before the next one.
const MOVE_EACH: usize = 4 * CHECK_EVERY as usize;
/// Searches walked in step: enough to keep the line fill buffers of a core busy, few enough for its caches.
pub(crate) const GROUP: usize = 32;

/// An inner node: two edges, by the value of the bit that the edge above names.
#[repr(align(16))]
pub(crate) struct Node([AtomicU64; 2]);

// SAFETY: two atomic integers.
unsafe impl Zeroed for Node {
    fn zeroed() -> Self {
        Node([AtomicU64::new(0), AtomicU64::new(0)])
    }
}

/// One edge of the path of a search: where it stands and what it was.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    at: *const AtomicU64,
    word: u64,
    /// The other edge of the same node; the same edge in the table.
    other: *const AtomicU64,
}

/// The objects and how their keys read. The key of an object is a string of bits that depends on its bytes alone
/// and differs from that of every different object; the tree asks for bits one at a time.
pub(crate) trait Space: Sync {
    /// An object searched for, with what has been computed of its key.
    type Query;
    /// The first 64 key bits, the first one most significant; only `PREFIX` of them are used.
    fn prefix(&self, q: &Self::Query) -> u64;
    /// Key bit `at >= PREFIX` of `q`.
    fn bit(&self, q: &mut Self::Query, at: u32) -> usize;
    /// Compares `q` with object `id`, whose first `PREFIX` key bits are the same: all the bytes. `None` if equal,
    /// else the first key bit in which they differ.
    fn compare(&self, q: &mut Self::Query, id: u32) -> Option<u32>;
    /// Puts the object of `q` in the place of `id`, which is nobody else's. Returns whether the search must start
    /// anew: the bytes may have been written to while they were copied, and the key bits up to `differ`, where the
    /// search ended, must be those of the copy.
    fn place(&self, id: u32, q: &mut Self::Query, differ: u32) -> bool;
    /// `id` is in the tree no more, but may still be read.
    fn removed(&self, id: u32);
    /// `id` is read by nobody any more.
    fn release(&self, id: u32);
    /// What is kept about object `id` will be read by `prefetch`.
    fn prefetch_record(&self, id: u32);
    /// Object `id` is about to be compared with `q`; if not `both`, it has been asked for just now. Returns whether
    /// `q` will be read whole.
    fn prefetch(&self, q: &Self::Query, id: u32, both: bool) -> bool;
    /// Bits of `q` past the prefix will be asked for. Returns whether they are at hand.
    fn prefetch_query(&self, q: &Self::Query) -> bool;
}

/// The table of places above the trie.
struct Table {
    bits: u32,
    places: Box<[AtomicU64]>,
    /// The table of half the size that this one is being filled from; null when all has been moved.
    old: AtomicPtr<Table>,
    /// Places of `old` not moved yet.
    left: AtomicUsize,
    /// The next place of `old` to be moved by somebody who is not in need of it.
    next: AtomicUsize,
}

// SAFETY: shared parts are atomics; `old` is owned by the tree and freed by epoch.
unsafe impl Send for Table {}

impl Table {
    #[inline]
    fn number(&self, prefix: u64) -> usize {
        (prefix >> (64 - self.bits)) as usize
    }

    #[inline]
    fn place(&self, prefix: u64) -> &AtomicU64 {
        let i = self.number(prefix);
        debug_assert!(i < self.places.len());
        // SAFETY: `i < 2^bits`, the number of places.
        unsafe { self.places.get_unchecked(i) }
    }
}

/// The searches of a group on their way, by number in the group.
struct Walk {
    /// Those at an inner edge.
    active: [(u16, u64); GROUP],
    n: usize,
    /// Those at an object whose prefix is theirs.
    hits: [(u16, u32); GROUP],
    hits_n: usize,
}

/// Asks for the line at `p` to be brought to the caches.
#[inline(always)]
pub(crate) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch may be given any address.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// What the shape of a tree is like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// Objects seen.
    pub objects: usize,
    /// Mean number of edges from the root table (included) to an object.
    pub depth_mean: f64,
    /// Largest number of edges from the root table (included) to an object.
    pub depth_max: usize,
    /// Key bits that the root table resolves in one step.
    pub table_bits: u32,
}

/// The trie without its objects: they are in a [`Space`], given to each call.
pub(crate) struct Trie {
    table: AtomicPtr<Table>,
    nodes: Arena<Node>,
    domain: Domain,
}

// SAFETY: everything shared is atomics; tables are freed by epoch.
unsafe impl Sync for Trie {}
// SAFETY: as above; nothing is bound to a thread.
unsafe impl Send for Trie {}

impl Trie {
    /// An empty trie, with a table right for `capacity` objects; it grows past that.
    pub(crate) fn new(capacity: usize) -> Self {
        let bits = capacity.max(1).ilog2().clamp(TOP, MAX_TABLE_BITS);
        let table = Box::new(Table {
            bits,
            places: (0..1usize << bits).map(|_| AtomicU64::new(EMPTY)).collect(),
            old: AtomicPtr::new(std::ptr::null_mut()),
            left: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        });
        Trie {
            table: AtomicPtr::new(Box::into_raw(table)),
            nodes: Arena::new(1),
            domain: Domain::new(),
        }
    }

    /// Occupies a seat; every call below needs one, of this trie.
    pub(crate) fn pin<'t, S: Space>(&'t self, space: &'t S) -> Pin<'t, impl Fn(u32) + use<'t, S>> {
        self.domain.pin(|id| space.release(id))
    }

    pub(crate) fn len(&self) -> usize {
        self.domain.len()
    }

    /// All ids ever given are below this.
    pub(crate) fn id_bound(&self) -> u32 {
        self.domain.bound(Kind::Id)
    }

    /// Bytes allocated: tables, nodes, seats. Pinned, so that the tables stay.
    pub(crate) fn bytes<R: Fn(u32)>(&self, _pin: &Pin<'_, R>) -> usize {
        let table = self.table();
        // SAFETY: an old table is freed by epoch, and the caller is pinned.
        let old = unsafe { table.old.load(Ordering::Acquire).as_ref() };
        let places = table.places.len() + old.map_or(0, |t| t.places.len());
        places * std::mem::size_of::<AtomicU64>() + self.nodes.bytes() + self.domain.bytes()
    }

    #[inline]
    fn table(&self) -> &Table {
        // SAFETY: never null; replaced tables are freed by epoch, and every caller is pinned (or owns the trie).
        unsafe { &*self.table.load(Ordering::Acquire) }
    }

    #[inline]
    fn node(&self, word: u64) -> &Node {
        // SAFETY: the word is an inner edge, published after its node's memory was reserved.
        unsafe { self.nodes.get(edge::index(word)) }
    }

    /// The place in the table for `prefix`, moved there from the old table if need be, and its word.
    #[inline]
    fn root<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, prefix: u64) -> (&AtomicU64, u64) {
        loop {
            let table = self.table();
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

    #[inline]
    fn side<S: Space>(space: &S, q: &mut S::Query, prefix: u64, at: u32) -> usize {
        if at < PREFIX {
            (prefix >> (63 - at) & 1) as usize
        } else {
            space.bit(q, at)
        }
    }

    /// Walks to the leaf edge that `q` leads to, recording the path.
    #[inline]
    fn seek<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        path: &mut Vec<Step>,
    ) {
        let prefix = space.prefix(q);
        let (at, mut word) = self.root(pin, prefix);
        path.clear();
        path.push(Step {
            at,
            word,
            other: at,
        });
        while !edge::is_leaf(word) {
            let side = Self::side(space, q, prefix, edge::position(word));
            let node = self.node(word);
            word = node.0[side].load(Ordering::Acquire);
            path.push(Step {
                at: &node.0[side],
                word,
                other: &node.0[side ^ 1],
            });
        }
    }

    /// The id of the object equal to `q`.
    #[inline]
    pub(crate) fn find<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
    ) -> Option<u32> {
        let prefix = space.prefix(q);
        let (_, mut word) = self.root(pin, prefix);
        while !edge::is_leaf(word) {
            let side = Self::side(space, q, prefix, edge::position(word));
            word = self.node(word).0[side].load(Ordering::Acquire);
        }
        let equal = word & FLAG == 0
            && !edge::is_empty(word)
            && edge::fingerprint_diff(word, prefix).is_none()
            && space.compare(q, edge::index(word)).is_none();
        equal.then(|| edge::index(word))
    }

    /// Puts `q` into the tree unless an equal object is there. Returns the id, and whether it is new.
    #[inline]
    pub(crate) fn insert<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
    ) -> Result<(u32, bool), Full> {
        let mut path = std::mem::take(&mut pin.local().path);
        let done = self.insert_on(space, pin, q, &mut path);
        pin.local().path = path;
        if let Ok((_, true)) = done {
            pin.count(1);
            let local = pin.local();
            local.since_check += 1;
            if local.since_check >= CHECK_EVERY {
                local.since_check = 0;
                self.check_size(pin);
            }
        }
        done
    }

    fn insert_on<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        path: &mut Vec<Step>,
    ) -> Result<(u32, bool), Full> {
        // What a try that failed has left for the next one.
        let mut id = None;
        let mut spare = None;
        let done = loop {
            self.seek(space, pin, q, path);
            let last = path[path.len() - 1];
            let prefix = space.prefix(q);
            let (step, differ) = if edge::is_empty(last.word) {
                if last.word & MARKS != 0 {
                    continue;
                }
                (last, None)
            } else {
                let found = edge::index(last.word);
                let differ =
                    edge::fingerprint_diff(last.word, prefix).or_else(|| space.compare(q, found));
                let Some(b) = differ else {
                    if last.word & FLAG == 0 {
                        break Ok((found, false));
                    }
                    // Equal, but removed: it must be gone before another can come.
                    self.help(pin, path);
                    continue;
                };
                // The last edge of the path that lies above bit b.
                let i = path
                    .iter()
                    .position(|s| edge::is_leaf(s.word) || edge::position(s.word) > b);
                let i = i.unwrap_or(path.len() - 1);
                if path[i].word & MARKS != 0 {
                    self.help(pin, &path[..=i]);
                    continue;
                }
                (path[i], Some(b))
            };
            let id = match id {
                Some(id) => id,
                None => {
                    let new = match pin.alloc(Kind::Id) {
                        Ok(new) => new,
                        Err(full) => break Err(full),
                    };
                    id = Some(new);
                    // From here on the search reads the tree's own copy, if it keeps one.
                    if space.place(new, q, differ.unwrap_or(0)) {
                        continue;
                    }
                    new
                }
            };
            let leaf = edge::leaf(id, prefix);
            let Some(b) = differ else {
                if self.swing(step.at, EMPTY, leaf) {
                    break Ok((id, true));
                }
                continue;
            };
            let node = match spare {
                Some(node) => node,
                None => match pin.alloc(Kind::Node) {
                    Ok(node) => {
                        self.nodes.reserve(node);
                        *spare.insert(node)
                    }
                    Err(full) => break Err(full),
                },
            };
            // SAFETY: reserved above.
            let edges = unsafe { &self.nodes.get(node).0 };
            let side = Self::side(space, q, prefix, b);
            // Published by the CAS below; nobody else sees the node before.
            edges[side].store(leaf, Ordering::Relaxed);
            edges[side ^ 1].store(step.word, Ordering::Relaxed);
            if self.swing(step.at, step.word, edge::inner(node, b)) {
                spare = None;
                break Ok((id, true));
            }
        };
        if !matches!(done, Ok((_, true))) {
            if let Some(id) = id {
                // Not given back at once: whoever asks for ids that nobody told it may be reading there.
                space.removed(id);
                pin.retire(Kind::Id, id);
            }
        }
        if let Some(node) = spare {
            pin.give_back(Kind::Node, node);
        }
        done
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

    /// Takes the object equal to `q` out of the tree. Returns its id, which is free when all who may hold it have
    /// left.
    pub(crate) fn remove<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
    ) -> Option<u32> {
        let mut path = std::mem::take(&mut pin.local().path);
        let id = self.remove_on(space, pin, q, &mut path);
        pin.local().path = path;
        if let Some(id) = id {
            space.removed(id);
            pin.retire(Kind::Id, id);
            pin.count(-1);
        }
        id
    }

    fn remove_on<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        path: &mut Vec<Step>,
    ) -> Option<u32> {
        let id = loop {
            self.seek(space, pin, q, path);
            let last = path[path.len() - 1];
            if edge::is_empty(last.word) {
                // Frozen and empty still is empty: it was when it was frozen, after this search began.
                return None;
            }
            let id = edge::index(last.word);
            let differs = edge::fingerprint_diff(last.word, space.prefix(q)).is_some()
                || space.compare(q, id).is_some();
            if differs || last.word & FLAG != 0 {
                return None;
            }
            if last.word & TAG != 0 {
                self.help(pin, path);
                continue;
            }
            if path.len() == 1 {
                // Straight in the table: nothing else to take out.
                if self.swing(last.at, last.word, EMPTY) {
                    return Some(id);
                }
                continue;
            }
            if self.swing(last.at, last.word, last.word | FLAG) {
                break id;
            }
        };
        // It is gone; now the edge must go. The id cannot come back while this thread is pinned.
        let mut first = true;
        loop {
            if !first {
                self.seek(space, pin, q, path);
                let last = path[path.len() - 1];
                if edge::is_empty(last.word) || edge::index(last.word) != id {
                    return Some(id);
                }
            }
            first = false;
            if self.help(pin, path) {
                return Some(id);
            }
        }
    }

    /// Helps on what has marked the last edge of `path`: takes a removed leaf and its node out. Returns whether this
    /// very call did so. After false, search anew.
    fn help<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, path: &[Step]) -> bool {
        let (last, above) = (path[path.len() - 1], &path[..path.len() - 1]);
        if above.is_empty() {
            // In the table. Frozen: the new table is there already, and a new search moves the place. Removed:
            let word = last.word | FLAG;
            return last.word & TAG == 0 && edge::is_leaf(word) && self.swing(last.at, word, EMPTY);
        }
        // The lowest edge above the node that is not frozen; all between are nodes on their way out.
        let Some(j) = above.iter().rposition(|s| s.word & TAG == 0) else {
            return false;
        };
        // SAFETY: as in `swing`.
        let (here, other) = unsafe { (&*last.at, &*last.other) };
        let word = here.load(Ordering::Acquire);
        let stays = if word & FLAG != 0 {
            other
        } else if word & TAG != 0 {
            here
        } else {
            return false;
        };
        crate::freeze::point();
        let sibling = stays.fetch_or(TAG, Ordering::AcqRel) & !TAG;
        if !self.swing(above[j].at, above[j].word, sibling) {
            return false;
        }
        for step in &above[j..] {
            pin.retire(Kind::Node, edge::index(step.word));
        }
        true
    }

    /// Moves place `j` of the old table to its two places of `table`.
    fn migrate<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, table: &Table, j: usize) {
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

    /// Doubles the table if it has become small, and moves some places if it is being doubled.
    #[cold]
    fn check_size<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>) {
        let table = self.table();
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
        } else if table.bits < MAX_TABLE_BITS && self.len() > (1 << LOAD_BITS) << table.bits {
            let here: *const Table = table;
            let new = Box::into_raw(Box::new(Table {
                bits: table.bits + 1,
                places: zeroed_box(2 << table.bits),
                old: AtomicPtr::new(here.cast_mut()),
                left: AtomicUsize::new(1 << table.bits),
                next: AtomicUsize::new(0),
            }));
            let put = self.table.compare_exchange(
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

    /// Brings what the searches for `queries` (at most [`GROUP`]) will read into the caches, all in step. It decides
    /// nothing: a search that follows finds whatever is there then. Returns how many of them will read their object
    /// whole.
    pub(crate) fn warm<S: Space>(&self, space: &S, queries: &mut [S::Query]) -> usize {
        debug_assert!(queries.len() <= GROUP);
        let table = self.table();
        for q in queries.iter() {
            prefetch(table.place(space.prefix(q)));
        }
        let mut walk = Walk {
            active: [(0, 0); GROUP],
            n: 0,
            hits: [(0, 0); GROUP],
            hits_n: 0,
        };
        for (i, q) in queries.iter().enumerate() {
            let word = table.place(space.prefix(q)).load(Ordering::Acquire);
            self.look_ahead(space, q, i, word, &mut walk);
        }
        // Those that come to bits past the prefix wait until all have, so that their bytes have come.
        let mut late = [(0u16, 0u64); GROUP];
        let mut m = 0;
        let mut whole = 0;
        while walk.n > 0 {
            let now = std::mem::take(&mut walk.n);
            for k in 0..now {
                let (i, word) = walk.active[k];
                let q = &mut queries[i as usize];
                let at = edge::position(word);
                if at >= PREFIX && !space.prefetch_query(q) {
                    late[m] = (i, word);
                    m += 1;
                    whole += 1;
                    continue;
                }
                let side = Self::side(space, q, space.prefix(q), at);
                let word = self.node(word).0[side].load(Ordering::Acquire);
                self.look_ahead(space, q, i as usize, word, &mut walk);
            }
            if walk.n == 0 {
                for &(i, word) in &late[..std::mem::take(&mut m)] {
                    let q = &mut queries[i as usize];
                    let side = space.bit(q, edge::position(word));
                    let word = self.node(word).0[side].load(Ordering::Acquire);
                    self.look_ahead(space, q, i as usize, word, &mut walk);
                }
            }
        }
        let mut last = edge::NONE;
        for &(i, id) in &walk.hits[..walk.hits_n] {
            whole += space.prefetch(&queries[i as usize], id, id != last) as usize;
            last = id;
        }
        whole
    }

    #[inline(always)]
    fn look_ahead<S: Space>(&self, space: &S, q: &S::Query, i: usize, word: u64, walk: &mut Walk) {
        if word == UNINIT {
            return;
        }
        if !edge::is_leaf(word) {
            prefetch(self.node(word));
            walk.active[walk.n] = (i as u16, word);
            walk.n += 1;
        } else if !edge::is_empty(word) && edge::fingerprint_diff(word, space.prefix(q)).is_none() {
            space.prefetch_record(edge::index(word));
            walk.hits[walk.hits_n] = (i as u16, edge::index(word));
            walk.hits_n += 1;
        }
    }

    /// Calls `f` with each object's id and depth, in the order of the keys. An object that is in the tree all the
    /// while is seen once; what is inserted or removed meanwhile may or may not be seen.
    pub(crate) fn walk<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, mut f: impl FnMut(u32, usize)) {
        let mut stack = Vec::new();
        // The first prefix not walked yet; the table may be doubled on the way, the steps then become smaller.
        let mut prefix = Some(0u64);
        while let Some(at) = prefix {
            let table = self.table();
            let word = match table.place(at).load(Ordering::Acquire) {
                UNINIT => {
                    self.migrate(pin, table, table.number(at) >> 1);
                    continue;
                }
                MOVED => continue,
                word => word,
            };
            stack.push((word, 1));
            while let Some((word, depth)) = stack.pop() {
                if !edge::is_leaf(word) {
                    let node = self.node(word);
                    for side in [1, 0] {
                        stack.push((node.0[side].load(Ordering::Acquire), depth + 1));
                    }
                } else if !edge::is_empty(word) && word & FLAG == 0 {
                    f(edge::index(word), depth);
                }
            }
            prefix = at.checked_add(1 << (64 - table.bits));
        }
    }

    pub(crate) fn shape<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>) -> Shape {
        let mut shape = Shape {
            table_bits: self.table().bits,
            ..Shape::default()
        };
        let mut total = 0usize;
        self.walk(pin, |_, depth| {
            shape.objects += 1;
            total += depth;
            shape.depth_max = shape.depth_max.max(depth);
        });
        shape.depth_mean = if shape.objects == 0 {
            0.0
        } else {
            total as f64 / shape.objects as f64
        };
        shape
    }
}

impl Drop for Trie {
    fn drop(&mut self) {
        let mut table = self.table.load(Ordering::Acquire);
        while !table.is_null() {
            // SAFETY: made by `Box::into_raw`; `&mut self` says that nobody else is here.
            table = unsafe { Box::from_raw(table) }.old.load(Ordering::Acquire);
        }
    }
}

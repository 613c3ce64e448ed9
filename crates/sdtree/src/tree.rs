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
//! There are two such tables with their tries. Below the first objects are found by their first key bits; where two
//! have all of these in common they become a class (see `class.rs`), whose members but one are below the second.
//!
//! An object seen through a frozen edge after its node has left was in the tree when the node left, which was after
//! the search began; so finds need no second look.

use crate::arena::Arena;
use crate::class;
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
/// The root below which objects are found by their first key bits.
const FIRST: usize = 0;
/// The root below which the members of classes are.
const SECOND: usize = 1;
/// Searches walked in step: enough to keep the line fill buffers of a core busy, few enough for its caches.
pub(crate) const GROUP: usize = 64;

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
///
/// With `CLASSES` there are two keys: one of `PREFIX` bits for the first root, which different objects may have in
/// common, and one for the second root. Without, there is one, and nothing is ever put below the second root.
pub(crate) trait Space: Sync {
    /// Whether objects with the same prefix become a class.
    const CLASSES: bool;
    /// Doublings that the second table is behind the first when it is made: 0 where there is memory for it.
    const SECOND_LESS: u32;
    /// An object searched for, with what has been computed of its key.
    type Query;
    /// The first 64 key bits, the first one most significant; only `PREFIX` of them are used.
    fn prefix(&self, q: &Self::Query) -> u64;
    /// The first 64 bits of the key for the second root. With `CLASSES` only, as the next three.
    fn whole(&self, q: &mut Self::Query) -> u64;
    /// The same of object `id`.
    fn whole_of(&self, id: u32) -> u64;
    /// Whether `q` equals object `id`: all the bytes.
    fn equal(&self, q: &Self::Query, id: u32) -> bool;
    /// The class that `q` was found to belong to under this pin, or `NONE`. With `CLASSES` only, as the next.
    fn class(&self, q: &Self::Query) -> u32;
    /// Notes the class that `q` belongs to.
    fn set_class(&self, q: &mut Self::Query, node: u32);
    /// Computes `whole` of those of the queries whose numbers are in `which`, each with its class.
    fn compute_wholes(&self, queries: &mut [Self::Query], which: &[(u16, u32)]);
    /// Key bit `at >= PREFIX` of `q` (below the second root, if there are `CLASSES`).
    fn bit(&self, q: &mut Self::Query, at: u32) -> usize;
    /// Compares `q` with object `id`, whose first `PREFIX` key bits are the same: all the bytes. `None` if equal,
    /// else the first key bit in which they differ.
    fn compare(&self, q: &mut Self::Query, id: u32) -> Option<u32>;
    /// Puts the object of `q` in the place of `id`, which is nobody else's. Returns whether the search must start
    /// anew: the bytes may have been written to while they were copied, and the key bits that the search has asked
    /// for, of the prefix and up to `differ` below the second root if it has come there, must be those of the copy.
    fn place(&self, id: u32, q: &mut Self::Query, differ: Option<u32>) -> bool;
    /// From here on the search for `q`, which equals object `id` of this pin, reads the tree's own copy, if there is one:
    /// what `q` was made from may be written to by others, and the search must end where it has ended before.
    fn hold(&self, _id: u32, _q: &mut Self::Query) {}
    /// `id` is in the tree no more, but may still be read.
    fn removed(&self, id: u32);
    /// `id` is read by nobody any more.
    fn release(&self, id: u32);
    /// What is kept about object `id` will be read by `look_at`.
    fn prefetch_record(&self, id: u32);
    /// Each of the queries (by number) is about to be compared with the object beside it: brings both to the caches, or
    /// compares them now, many side by side, and keeps in the query what it has found.
    fn look_at(&self, queries: &mut [Self::Query], pairs: &[(u16, u32)]);
}

/// How a try to insert below a root has ended.
enum Put {
    /// The object has this id; whether it is new.
    Done(u32, bool),
    /// The object has changed under our eyes: from the start.
    Again,
    /// The object belongs to this class, which has been entered.
    Class(u32),
}

/// What a try to remove below a root has found.
enum Taken {
    /// No such object.
    Nothing,
    /// It has been taken out.
    Object(u32),
    /// The object belongs to this class, which has been entered.
    Class(u32),
}

/// What the operations of one pin keep from one to the next. Made by [`Trie::start`], given back by [`Trie::end`].
pub(crate) struct Run {
    /// The path of the search under way; kept here so that its memory is.
    path: Vec<Step>,
    /// A class that was seen twice in succession, and the prefix of its objects: what has this prefix need not be
    /// looked for below the first root. `NONE` if there is none.
    class: u32,
    prefix: u64,
    /// Operations counted into it in advance, so that one change of its state serves many.
    held: u32,
}

/// Operations counted into a class at a time.
const HOLD: u32 = if cfg!(loom) { 2 } else { 64 };

/// What a try that failed has left for the next one.
#[derive(Default)]
struct Spare {
    /// An id in whose place the object is.
    id: Option<u32>,
    node: Option<u32>,
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
    /// A table of 2^bits empty places.
    fn empty(bits: u32) -> Box<Table> {
        Box::new(Table {
            bits,
            places: (0..1usize << bits).map(|_| AtomicU64::new(EMPTY)).collect(),
            old: AtomicPtr::new(std::ptr::null_mut()),
            left: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        })
    }

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
    /// Those at a class that is theirs, and the class.
    classes: [(u16, u32); GROUP],
    classes_n: usize,
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
    /// Mean number of edges from the root table (included) to an object, those to its class among them.
    pub depth_mean: f64,
    /// Largest number of such edges; an upper bound of it where there are classes.
    pub depth_max: usize,
    /// Key bits that the larger root table resolves in one step.
    pub table_bits: u32,
}

/// The trie without its objects: they are in a [`Space`], given to each call.
pub(crate) struct Trie {
    /// The second is null until there is a class.
    tables: [AtomicPtr<Table>; 2],
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
        Trie {
            tables: [
                AtomicPtr::new(Box::into_raw(Table::empty(bits))),
                AtomicPtr::new(std::ptr::null_mut()),
            ],
            nodes: Arena::new(1),
            domain: Domain::new(),
        }
    }

    /// Occupies a seat; every call below needs one, of this trie.
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

    /// Bytes allocated: tables, nodes, seats. Pinned, so that the tables stay.
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

    /// Makes the second table, if there is none.
    fn make_second<S: Space>(&self) {
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

    /// Asks for the place where a search for `prefix` will begin, and that below the second root, if there is one and
    /// the key for it is known.
    #[inline]
    pub(crate) fn prefetch_place<R: Fn(u32)>(
        &self,
        _pin: &Pin<'_, R>,
        prefix: u64,
        whole: Option<u64>,
    ) {
        prefetch(self.table(FIRST).place(prefix));
        if let Some(whole) = whole {
            if !self.tables[SECOND].load(Ordering::Acquire).is_null() {
                prefetch(self.table(SECOND).place(whole));
            }
        }
    }

    #[inline]
    fn node(&self, word: u64) -> &Node {
        // SAFETY: the word is an inner edge, published after its node's memory was reserved.
        unsafe { self.nodes.get(edge::index(word)) }
    }

    /// The place in a table for `prefix`, moved there from the old table if need be, and its word.
    #[inline]
    fn root<R: Fn(u32)>(
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

    /// The first 64 bits of the key of `q` for a root.
    #[inline]
    fn key<S: Space>(space: &S, root: usize, q: &mut S::Query) -> u64 {
        if root == FIRST {
            space.prefix(q)
        } else {
            space.whole(q)
        }
    }

    #[inline]
    fn side<S: Space>(space: &S, q: &mut S::Query, key: u64, at: u32) -> usize {
        if at < PREFIX {
            (key >> (63 - at) & 1) as usize
        } else {
            space.bit(q, at)
        }
    }

    /// Walks to the leaf edge that `q`, with this key, leads to, recording the path.
    #[inline]
    fn seek<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        root: usize,
        key: u64,
        q: &mut S::Query,
        path: &mut Vec<Step>,
    ) {
        let (at, mut word) = self.root(pin, root, key);
        path.clear();
        path.push(Step {
            at,
            word,
            other: at,
        });
        while !edge::is_leaf(word) {
            let side = Self::side(space, q, key, edge::position(word));
            let node = self.node(word);
            word = node.0[side].load(Ordering::Acquire);
            path.push(Step {
                at: &node.0[side],
                word,
                other: &node.0[side ^ 1],
            });
        }
    }

    /// The leaf edge that `q`, with this key, leads to.
    #[inline]
    fn descend<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        root: usize,
        key: u64,
        q: &mut S::Query,
    ) -> u64 {
        let (_, mut word) = self.root(pin, root, key);
        while !edge::is_leaf(word) {
            let side = Self::side(space, q, key, edge::position(word));
            word = self.node(word).0[side].load(Ordering::Acquire);
        }
        word
    }

    /// The first object of a class, if it equals `q`.
    #[inline]
    fn first_of_class<S: Space>(&self, space: &S, q: &mut S::Query, node: &Node) -> Option<u32> {
        let first = class::first(node.0[0].load(Ordering::Acquire));
        // Different wholes are of different bytes.
        let equal = first != edge::NONE
            && node.0[1].load(Ordering::Relaxed) == space.whole(q)
            && space.equal(q, first);
        equal.then_some(first)
    }

    /// The id of the object equal to `q`.
    #[inline]
    pub(crate) fn find<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
    ) -> Option<u32> {
        let gone = |word: u64, key: u64| {
            word & FLAG != 0 || edge::is_empty(word) || edge::fingerprint_diff(word, key).is_some()
        };
        let mut key = space.prefix(q);
        let mut word = self.descend(space, pin, FIRST, key, q);
        if gone(word, key) {
            return None;
        }
        if S::CLASSES {
            if !edge::is_class(word) {
                let id = edge::index(word);
                return space.equal(q, id).then_some(id);
            }
            if let Some(id) = self.first_of_class(space, q, self.node(word)) {
                return Some(id);
            }
            key = space.whole(q);
            word = self.descend(space, pin, SECOND, key, q);
            if gone(word, key) {
                return None;
            }
        }
        let id = edge::index(word);
        space.compare(q, id).is_none().then_some(id)
    }

    /// What the operations under `pin` are given.
    pub(crate) fn start<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>) -> Run {
        Run {
            path: std::mem::take(&mut pin.local().path),
            class: edge::NONE,
            prefix: 0,
            held: 0,
        }
    }

    /// After the last operation under `pin`; `q` is any query.
    pub(crate) fn end<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        mut run: Run,
    ) {
        self.turn_to(space, pin, q, &mut run, (edge::NONE, 0));
        pin.local().path = run.path;
    }

    /// Makes `class` the one that is expected to come again; what is held of the one before is counted out.
    fn turn_to<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        run: &mut Run,
        class: (u32, u64),
    ) {
        let before = (run.class, run.prefix);
        (run.class, run.prefix) = class;
        let held = std::mem::take(&mut run.held);
        if held > 0 {
            self.leave(space, pin, q, before, held as u64, &mut run.path);
        }
    }

    /// Counts an operation into the class `node`, which was seen under this pin, unless it is dead.
    #[inline]
    fn enter(&self, node: u32, run: &mut Run) -> bool {
        let again = node == run.class;
        if again && run.held > 0 {
            run.held -= 1;
            return true;
        }
        let operations = if again { HOLD } else { 1 };
        // SAFETY: the number of a class that was seen under this pin.
        if class::enter(unsafe { &self.nodes.get(node).0[0] }, operations) {
            run.held += operations - 1;
            return true;
        }
        if again {
            run.class = edge::NONE;
        }
        false
    }

    /// Puts `q` into the tree unless an equal object is there. Returns the id, and whether it is new.
    #[inline]
    pub(crate) fn insert<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        run: &mut Run,
    ) -> Result<(u32, bool), Full> {
        let mut root = FIRST;
        // The class entered: its node and its prefix.
        let mut entered = (0, 0);
        if S::CLASSES {
            let node = space.class(q);
            if node != edge::NONE {
                // SAFETY: the number of a class that was seen under this pin.
                if let Some(id) = self.first_of_class(space, q, unsafe { self.nodes.get(node) }) {
                    return Ok((id, false));
                }
                if self.enter(node, run) {
                    (root, entered) = (SECOND, (node, space.prefix(q)));
                }
            }
        }
        let mut spare = Spare::default();
        let done = loop {
            let put = self.insert_below(space, pin, root, q, &mut run.path, &mut spare);
            if root == SECOND && !matches!(put, Ok(Put::Done(_, true))) {
                if run.held > 0 && run.class == entered.0 {
                    run.held += 1;
                } else {
                    self.leave(space, pin, q, entered, 1, &mut run.path);
                }
                root = FIRST;
            }
            match put {
                Ok(Put::Done(id, new)) => break Ok((id, new)),
                Ok(Put::Again) => {}
                Ok(Put::Class(node)) => (root, entered) = (SECOND, (node, space.prefix(q))),
                Err(full) => break Err(full),
            }
        };
        if let Ok((_, true)) = done {
            pin.count(root, 1);
            let local = pin.local();
            local.since_check += 1;
            if local.since_check >= CHECK_EVERY {
                local.since_check = 0;
                self.check_size(pin, root);
            }
        } else if let Some(id) = spare.id {
            // Not given back at once: whoever asks for ids that nobody told it may be reading there.
            space.removed(id);
            pin.retire(Kind::Id, id);
        }
        if let Some(node) = spare.node {
            pin.give_back(Kind::Node, node);
        }
        done
    }

    /// Counts the caller out of class `node`, with the members that it has removed; cleans up after a class that has
    /// died of it.
    fn leave<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        (node, prefix): (u32, u64),
        members: u64,
        path: &mut Vec<Step>,
    ) {
        // SAFETY: entered by the caller, so that it is published and not retired.
        if class::leave(unsafe { &self.nodes.get(node).0[0] }, members) {
            self.bury(space, pin, q, (node, prefix), path);
        }
    }

    /// The node of a try: one that a former try has left, or a new one.
    #[inline]
    fn spare_node<R: Fn(u32)>(
        &self,
        pin: &mut Pin<'_, R>,
        spare: &mut Spare,
    ) -> Result<(u32, &Node), Full> {
        let node = match spare.node {
            Some(node) => node,
            None => *spare.node.insert(pin.alloc(Kind::Node)?),
        };
        // SAFETY: reserved by this very call; pieces live as long as the arena.
        Ok((node, unsafe { &*self.nodes.reserve(node) }))
    }

    fn insert_below<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        root: usize,
        q: &mut S::Query,
        path: &mut Vec<Step>,
        spare: &mut Spare,
    ) -> Result<Put, Full> {
        let key = Self::key(space, root, q);
        loop {
            self.seek(space, pin, root, key, q, path);
            let last = path[path.len() - 1];
            let (step, differ) = if edge::is_empty(last.word) {
                if last.word & MARKS != 0 {
                    continue;
                }
                (last, None)
            } else {
                let found = edge::index(last.word);
                let differ = match edge::fingerprint_diff(last.word, key) {
                    None if S::CLASSES && root == FIRST => {
                        if edge::is_class(last.word) {
                            if let Some(id) = self.first_of_class(space, q, self.node(last.word)) {
                                return Ok(Put::Done(id, false));
                            }
                            if class::enter(&self.node(last.word).0[0], 1) {
                                return Ok(Put::Class(found));
                            }
                            // Dead: it must be gone before another can come.
                            self.bury(space, pin, q, (found, key), path);
                            continue;
                        }
                        if last.word & FLAG == 0 && space.equal(q, found) {
                            return Ok(Put::Done(found, false));
                        }
                        if last.word & MARKS != 0 {
                            self.help(pin, path);
                            continue;
                        }
                        // The second of its class.
                        let (node, Node(words)) = self.spare_node(pin, spare)?;
                        self.make_second::<S>();
                        // Published by the CAS below.
                        words[0].store(class::new(found), Ordering::Relaxed);
                        words[1].store(space.whole_of(found), Ordering::Relaxed);
                        if self.swing(last.at, last.word, edge::class(node, last.word)) {
                            spare.node = None;
                            return Ok(Put::Class(node));
                        }
                        continue;
                    }
                    None => space.compare(q, found),
                    differ => differ,
                };
                let Some(b) = differ else {
                    if last.word & FLAG == 0 {
                        return Ok(Put::Done(found, false));
                    }
                    // Equal, but removed: it must be gone before another can come.
                    self.help(pin, path);
                    continue;
                };
                // Less only if the bytes change under our eyes: a table resolves so many, and an edge names none of them.
                let b = b.max(TOP);
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
            let id = match spare.id {
                Some(id) => id,
                None => {
                    let new = pin.alloc(Kind::Id)?;
                    spare.id = Some(new);
                    // From here on the search reads the tree's own copy, if it keeps one.
                    let below = (root == SECOND).then_some(differ.unwrap_or(0));
                    if space.place(new, q, below) {
                        return Ok(Put::Again);
                    }
                    new
                }
            };
            let leaf = edge::leaf(id, key);
            let Some(b) = differ else {
                if self.swing(step.at, EMPTY, leaf) {
                    return Ok(Put::Done(id, true));
                }
                continue;
            };
            let (node, Node(edges)) = self.spare_node(pin, spare)?;
            let side = Self::side(space, q, key, b);
            // Published by the CAS below; nobody else sees the node before.
            edges[side].store(leaf, Ordering::Relaxed);
            edges[side ^ 1].store(step.word, Ordering::Relaxed);
            if self.swing(step.at, step.word, edge::inner(node, b)) {
                spare.node = None;
                return Ok(Put::Done(id, true));
            }
        }
    }

    /// Takes the edge to a class that has died out of the tree; `prefix` is that of its objects.
    #[cold]
    fn bury<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        (node, prefix): (u32, u64),
        path: &mut Vec<Step>,
    ) {
        let mut mine = false;
        loop {
            // Above a class there are no bits past the prefix, so that `q` is not asked for any.
            self.seek(space, pin, FIRST, prefix, q, path);
            let last = path[path.len() - 1];
            // The number cannot come back as that of another class while this thread is pinned.
            if !edge::is_class(last.word) || edge::index(last.word) != node {
                break;
            }
            if last.word & MARKS != 0 {
                self.help(pin, path);
            } else if path.len() == 1 {
                mine |= self.swing(last.at, last.word, EMPTY);
            } else if self.swing(last.at, last.word, last.word | FLAG) {
                mine = true;
                self.help(pin, path);
            }
        }
        // As with ids: whoever has flagged the edge retires what it led to, when it is gone.
        if mine {
            pin.retire(Kind::Node, node);
        }
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
        run: &mut Run,
    ) -> Option<u32> {
        let path = &mut run.path;
        let gone = match self.remove_below(space, pin, FIRST, q, path) {
            Taken::Nothing => None,
            Taken::Object(id) => Some((id, FIRST)),
            Taken::Class(node) => {
                let id = match self.remove_below(space, pin, SECOND, q, path) {
                    Taken::Object(id) => Some(id),
                    _ => None,
                };
                let members = 1 + id.is_some() as u64;
                let prefix = space.prefix(q);
                self.leave(space, pin, q, (node, prefix), members, path);
                id.map(|id| (id, SECOND))
            }
        };
        let (id, root) = gone?;
        space.removed(id);
        pin.retire(Kind::Id, id);
        pin.count(root, -1);
        Some(id)
    }

    fn remove_below<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        root: usize,
        q: &mut S::Query,
        path: &mut Vec<Step>,
    ) -> Taken {
        let key = Self::key(space, root, q);
        let id = loop {
            self.seek(space, pin, root, key, q, path);
            let last = path[path.len() - 1];
            if edge::is_empty(last.word) || edge::fingerprint_diff(last.word, key).is_some() {
                // Frozen and empty still is empty: it was when it was frozen, after this search began.
                return Taken::Nothing;
            }
            let id = edge::index(last.word);
            if edge::is_class(last.word) {
                let state = &self.node(last.word).0[0];
                if let Some(first) = self.first_of_class(space, q, self.node(last.word)) {
                    // If another has taken it out, it was gone at that moment.
                    let (taken, dead) = class::take_first(state, first);
                    if dead {
                        self.bury(space, pin, q, (id, key), path);
                    }
                    return if taken {
                        Taken::Object(first)
                    } else {
                        Taken::Nothing
                    };
                }
                // In a dead class there is nothing.
                return if class::enter(state, 1) {
                    Taken::Class(id)
                } else {
                    Taken::Nothing
                };
            }
            let equal = last.word & FLAG == 0
                && if S::CLASSES && root == FIRST {
                    space.equal(q, id)
                } else {
                    space.compare(q, id).is_none()
                };
            if !equal {
                return Taken::Nothing;
            }
            if last.word & TAG != 0 {
                self.help(pin, path);
                continue;
            }
            if path.len() == 1 {
                // Straight in the table: nothing else to take out.
                if self.swing(last.at, last.word, EMPTY) {
                    return Taken::Object(id);
                }
                continue;
            }
            if self.swing(last.at, last.word, last.word | FLAG) {
                break id;
            }
        };
        // It is gone; now the edge must go. The id cannot come back while this thread is pinned.
        space.hold(id, q);
        let mut first = true;
        loop {
            if !first {
                self.seek(space, pin, root, key, q, path);
                let last = path[path.len() - 1];
                let here = !edge::is_class(last.word) && edge::index(last.word) == id;
                if edge::is_empty(last.word) || !here {
                    return Taken::Object(id);
                }
            }
            first = false;
            if self.help(pin, path) {
                return Taken::Object(id);
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

    /// Brings what the searches for `queries` (at most [`GROUP`]) will read into the caches, all in step; their places
    /// in the table have been asked for. It decides nothing: a search that follows finds whatever is there then.
    /// Returns how many of them belong to classes.
    pub(crate) fn warm<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        queries: &mut [S::Query],
        run: &mut Run,
    ) -> usize {
        debug_assert!(queries.len() <= GROUP);
        let mut walk = Walk {
            active: [(0, 0); GROUP],
            n: 0,
            hits: [(0, 0); GROUP],
            hits_n: 0,
            classes: [(0, 0); GROUP],
            classes_n: 0,
        };
        let table = self.table(FIRST);
        for (i, q) in queries.iter().enumerate() {
            let key = space.prefix(q);
            if S::CLASSES && key == run.prefix && run.class != edge::NONE {
                walk.classes[walk.classes_n] = (i as u16, run.class);
                walk.classes_n += 1;
                continue;
            }
            let word = table.place(key).load(Ordering::Acquire);
            self.look_ahead(space, key, i, word, &mut walk);
        }
        let known = walk.classes_n;
        self.walk_on(space, FIRST, queries, &mut walk);
        if S::CLASSES && walk.classes_n > 0 {
            let found = &walk.classes[known..walk.classes_n];
            if let Some(two) = found.windows(2).find(|two| two[0].1 == two[1].1) {
                let (i, node) = two[0];
                let q = &mut queries[i as usize];
                let prefix = space.prefix(q);
                self.turn_to(space, pin, q, run, (node, prefix));
            }
            let table = self.table(SECOND);
            let mine = walk.classes;
            let mine = &mine[..walk.classes_n];
            space.compute_wholes(queries, mine);
            for &(i, node) in mine {
                let q = &mut queries[i as usize];
                space.set_class(q, node);
                prefetch(table.place(space.whole(q)));
            }
            for &(i, _) in mine {
                let key = space.whole(&mut queries[i as usize]);
                let word = table.place(key).load(Ordering::Acquire);
                self.look_ahead(space, key, i as usize, word, &mut walk);
            }
            self.walk_on(space, SECOND, queries, &mut walk);
        }
        space.look_at(queries, &walk.hits[..walk.hits_n]);
        walk.classes_n
    }

    /// Walks all that are at inner edges on, in step, until none is.
    #[inline(always)]
    fn walk_on<S: Space>(&self, space: &S, root: usize, queries: &mut [S::Query], walk: &mut Walk) {
        while walk.n > 0 {
            let now = std::mem::take(&mut walk.n);
            for k in 0..now {
                let (i, word) = walk.active[k];
                let q = &mut queries[i as usize];
                let key = Self::key(space, root, q);
                let side = Self::side(space, q, key, edge::position(word));
                let word = self.node(word).0[side].load(Ordering::Acquire);
                self.look_ahead(space, key, i as usize, word, walk);
            }
        }
    }

    #[inline(always)]
    fn look_ahead<S: Space>(&self, space: &S, key: u64, i: usize, word: u64, walk: &mut Walk) {
        if word == UNINIT {
            return;
        }
        if !edge::is_leaf(word) {
            prefetch(self.node(word));
            walk.active[walk.n] = (i as u16, word);
            walk.n += 1;
        } else if !edge::is_empty(word) && edge::fingerprint_diff(word, key).is_none() {
            if edge::is_class(word) {
                prefetch(self.node(word));
                walk.classes[walk.classes_n] = (i as u16, edge::index(word));
                walk.classes_n += 1;
            } else {
                space.prefetch_record(edge::index(word));
                walk.hits[walk.hits_n] = (i as u16, edge::index(word));
                walk.hits_n += 1;
            }
        }
    }

    /// Calls `f` with each leaf edge below a root and its depth, in the order of the keys.
    fn leaves<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, root: usize, mut f: impl FnMut(u64, usize)) {
        if self.tables[root].load(Ordering::Acquire).is_null() {
            return;
        }
        let mut stack = Vec::new();
        // The first prefix not walked yet; the table may be doubled on the way, the steps then become smaller.
        let mut prefix = Some(0u64);
        while let Some(at) = prefix {
            let table = self.table(root);
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
                    f(word, depth);
                }
            }
            prefix = at.checked_add(1 << (64 - table.bits));
        }
    }

    /// Calls `f` with each object's id, in the order of the keys. An object that is in the tree all the while is seen
    /// once; what is inserted or removed meanwhile may or may not be seen.
    pub(crate) fn walk<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, mut f: impl FnMut(u32)) {
        self.leaves(pin, FIRST, |word, _| {
            let mut id = edge::index(word);
            if edge::is_class(word) {
                id = class::first(self.node(word).0[0].load(Ordering::Acquire));
            }
            if id != edge::NONE {
                f(id);
            }
        });
        self.leaves(pin, SECOND, |word, _| f(edge::index(word)));
    }

    pub(crate) fn shape<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>) -> Shape {
        let mut shape = Shape::default();
        let (mut total, mut to_classes) = (0usize, 0usize);
        self.leaves(pin, FIRST, |word, depth| {
            let mut there = 1;
            if edge::is_class(word) {
                let state = self.node(word).0[0].load(Ordering::Acquire);
                there = (class::first(state) != edge::NONE) as usize;
                // The edges that the members have in common; those below the second root are added there.
                total += class::members(state) as usize * depth;
                to_classes = to_classes.max(depth);
            }
            shape.objects += there;
            total += there * depth;
            shape.depth_max = shape.depth_max.max(depth);
        });
        self.leaves(pin, SECOND, |_, depth| {
            shape.objects += 1;
            total += depth;
            shape.depth_max = shape.depth_max.max(to_classes + depth);
        });
        if shape.objects > 0 {
            shape.depth_mean = total as f64 / shape.objects as f64;
        }
        for table in &self.tables {
            // SAFETY: tables are freed by epoch, and the caller is pinned.
            let bits = unsafe { table.load(Ordering::Acquire).as_ref() }.map_or(0, |t| t.bits);
            shape.table_bits = shape.table_bits.max(bits);
        }
        shape
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

//! The SD tree for byte strings: the trie, an order of keys, and a store of objects put together.

use crate::arena::Arena;
use crate::edge::NONE;
use crate::epoch::Full;
use crate::keys::{Stats, SITTING};
use crate::order::{Order, SampledMixed, STREAM};
use crate::prefetch::prefetch;
use crate::primitive::{AtomicU8, Ordering};
use crate::store::{Fixed, Rows, Store, Variable};
use crate::trie::{classes::Run, space::Space, warm::GROUP, Pin, Trie};
use std::mem::MaybeUninit;

/// In `meta`: the object is in the tree, or about to be.
const ALIVE: u8 = 1;
/// The first key bit after those of [`Order::whole`]: of the length, or of the bytes.
const DEEP: u32 = 64;
/// Bits of the length in a key.
const LENGTH: u32 = 32;

/// The objects of a tree and how their keys read.
struct Objects<S, O> {
    store: S,
    order: O,
    /// By id: [`ALIVE`].
    meta: Arena<AtomicU8>,
}

/// An object searched for.
#[derive(Clone, Copy)]
struct Query {
    bytes: *const [u8],
    first: u64,
    /// [`Order::whole`], if `known`.
    whole: u64,
    /// 0 or 1: as wide as the rest, since a copy of padding stalls on what was written more narrowly.
    known: u64,
    /// An object that has been found equal, or `NONE`. Objects do not change and their ids are not given to others
    /// before the pin under which the query was made has ended, so it stays true.
    same: u32,
    /// The class it belongs to, if that is known, or `NONE`.
    class: u32,
}

/// A query that is none yet.
const NO_QUERY: Query = Query {
    bytes: &[],
    first: 0,
    whole: 0,
    known: 0,
    same: NONE,
    class: NONE,
};

impl<S: Store, O: Order> Objects<S, O> {
    /// `bytes` must outlive the query. With `eager` all of it is read at once.
    #[inline]
    fn query(&self, bytes: &[u8], eager: bool) -> Query {
        let whole = if eager { self.order.whole(bytes) } else { 0 };
        Query {
            bytes,
            first: self.order.first(bytes),
            whole,
            known: eager as u64,
            same: NONE,
            class: NONE,
        }
    }

    /// As `query` of four objects that are read whole, side by side.
    #[inline]
    fn query_four(&self, bytes: [&[u8]; 4], eager: bool) -> [Query; 4] {
        // Both, if there are two, of bytes that are in the caches when the second comes.
        let whole = if eager {
            self.order.whole_four(bytes)
        } else {
            [0; 4]
        };
        let first = self.order.first_four(bytes);
        std::array::from_fn(|k| Query {
            bytes: bytes[k],
            first: first[k],
            whole: whole[k],
            known: eager as u64,
            same: NONE,
            class: NONE,
        })
    }

    #[inline]
    fn bytes_of(q: &Query) -> &[u8] {
        // SAFETY: a query does not outlive the bytes it was made from: those of a caller's slice, or of a place in
        // the store that belongs to this very query until it is in the tree, under a pin.
        unsafe { &*q.bytes }
    }

    #[inline]
    fn meta(&self, id: u32) -> &AtomicU8 {
        // SAFETY: ids come from leaf edges or from `place`, which reserves them.
        unsafe { self.meta.get(id) }
    }
}

/// Bytes asked for of a short object that will be compared; beyond, the hardware has seen the stream.
const HEAD: usize = 256;

/// Asks for the first lines of an object.
#[inline]
fn prefetch_lines(bytes: &[u8], len: usize) {
    for at in (0..bytes.len().min(len)).step_by(64) {
        prefetch(bytes.as_ptr().wrapping_add(at));
    }
}

impl<S: Store, O: Order> Space for Objects<S, O> {
    const CLASSES: bool = true;
    // 32 bytes an object in all; finding objects of any length takes eight of them.
    const SECOND_LESS: u32 = if S::VARIABLE { 2 } else { 0 };
    type Query = Query;

    #[inline]
    fn prefix(&self, q: &Query) -> u64 {
        q.first
    }

    #[inline]
    fn whole(&self, q: &mut Query) -> u64 {
        if q.known == 0 {
            q.whole = self.order.whole(Self::bytes_of(q));
            q.known = 1;
        }
        q.whole
    }

    fn whole_of(&self, id: u32) -> u64 {
        // SAFETY: the id comes from a leaf edge that was read under the pin.
        self.order.whole(unsafe { self.store.bytes(id) })
    }

    #[inline]
    fn equal(&self, q: &Query, id: u32) -> bool {
        if q.same == id {
            return true;
        }
        // SAFETY: the id comes from a leaf edge, or a class, that was read under the pin.
        let theirs = unsafe { self.store.bytes(id) };
        let ours = Self::bytes_of(q);
        ours.len() == theirs.len() && mix::first_diff(ours, theirs).is_none()
    }

    #[inline]
    fn class(&self, q: &Query) -> u32 {
        q.class
    }

    #[inline]
    fn set_class(&self, q: &mut Query, node: u32) {
        q.class = node;
    }

    fn compute_wholes(&self, queries: &mut [Query], which: &[(u16, u32)]) {
        let mut unknown = [0u16; GROUP];
        let mut n = 0;
        for &(i, _) in which {
            if queries[i as usize].known == 0 {
                unknown[n] = i;
                n += 1;
            }
        }
        // Four at a time, a quarter of them apart: streams that the hardware can tell from each other.
        let quarter = n / 4;
        for k in 0..quarter {
            let four: [usize; 4] = std::array::from_fn(|s| unknown[k + s * quarter] as usize);
            let whole = self
                .order
                .whole_four(four.map(|i| Self::bytes_of(&queries[i])));
            for (i, whole) in four.into_iter().zip(whole) {
                (queries[i].whole, queries[i].known) = (whole, 1);
            }
        }
        for &i in &unknown[4 * quarter..n] {
            self.whole(&mut queries[i as usize]);
        }
    }

    fn bit(&self, q: &mut Query, at: u32) -> usize {
        if at < DEEP {
            return (self.whole(q) >> (DEEP - 1 - at) & 1) as usize;
        }
        let mut at = (at - DEEP) as usize;
        let bytes = Self::bytes_of(q);
        if S::VARIABLE {
            if at < LENGTH as usize {
                return bytes.len() >> (LENGTH as usize - 1 - at) & 1;
            }
            at -= LENGTH as usize;
        }
        // Past the end only if the bytes change under our eyes; any answer will do.
        bytes
            .get(at / 8)
            .map_or(0, |b| (b >> (7 - at % 8) & 1) as usize)
    }

    fn compare(&self, q: &mut Query, id: u32) -> Option<u32> {
        if q.same == id {
            return None;
        }
        // SAFETY: the id comes from a leaf edge that was read under the pin.
        let theirs = unsafe { self.store.bytes(id) };
        // SAFETY: as in `bytes_of`; nothing below changes `q.bytes`.
        let ours = unsafe { &*q.bytes };
        let differ = mix::first_diff(ours, theirs);
        if differ.is_none() && ours.len() == theirs.len() {
            return None;
        }
        let d = self.whole(q) ^ self.order.whole(theirs);
        if d != 0 {
            return Some(d.leading_zeros());
        }
        if ours.len() != theirs.len() {
            // In a tree of one length only who looks for another comes here: different, wherever.
            let bit = ((ours.len() ^ theirs.len()) as u32).leading_zeros();
            return Some(DEEP + if S::VARIABLE { bit } else { 0 });
        }
        let byte = differ?;
        let bit = 8 * byte as u32 + (ours[byte] ^ theirs[byte]).leading_zeros().min(7);
        Some(DEEP + if S::VARIABLE { LENGTH } else { 0 } + bit)
    }

    fn place(&self, id: u32, q: &mut Query, differ: Option<u32>) -> bool {
        // SAFETY: the bytes outlive the query, and fit: `intern` has looked at this very query. The id is new, or has been
        // released (both given).
        q.bytes = unsafe { self.store.place(id, q.bytes) };
        // SAFETY: reserved by this very call.
        unsafe { &*self.meta.reserve(id) }.store(ALIVE, Ordering::Release);
        if !S::COPIES {
            return false;
        }
        // The bytes may have been written to by others while they were read and copied; the copy is what counts.
        let before = (q.first, q.whole);
        *q = self.query(Self::bytes_of(q), differ.is_some());
        match differ {
            None => q.first != before.0,
            // What is past `whole` is not computed again to be compared: the search is.
            Some(differ) => (q.first, q.whole) != before || differ >= DEEP,
        }
    }

    fn hold(&self, id: u32, q: &mut Query) {
        if S::COPIES {
            // SAFETY: removed under the pin, so that it is not released before the pin ends; the query does not outlive it.
            q.bytes = unsafe { self.store.bytes(id) };
        }
    }

    fn removed(&self, id: u32) {
        self.meta(id).fetch_and(!ALIVE, Ordering::Release);
    }

    fn release(&self, id: u32) {
        // SAFETY: retired once since it was placed, and two epochs have gone: nobody holds its bytes.
        unsafe { self.store.release(id) };
    }

    #[inline]
    fn prefetch_record(&self, id: u32) {
        // SAFETY: the id comes from a leaf edge, which is published after the object has been placed.
        unsafe { self.store.prefetch_record(id) };
    }

    #[inline]
    fn look_at(&self, queries: &mut [Query], pairs: &[(u16, u32)]) {
        // SAFETY: the ids come from leaf edges that were read under the pin.
        let theirs = |id| unsafe { self.store.bytes(id) };
        let half = pairs.len() / 2;
        // Two pairs at a time, so that memory is read as four streams.
        for ((i, a), (j, b)) in pairs[..half].iter().zip(&pairs[half..]) {
            let (p, q) = (
                Self::bytes_of(&queries[*i as usize]),
                Self::bytes_of(&queries[*j as usize]),
            );
            if p.len() < STREAM || q.len() < STREAM {
                for (ours, id) in [(p, *a), (q, *b)] {
                    prefetch_lines(ours, HEAD);
                    prefetch_lines(theirs(id), HEAD);
                }
                continue;
            }
            let same = mix::equal_pairs([p, q], [theirs(*a), theirs(*b)]);
            for (i, id, same) in [(i, a, same[0]), (j, b, same[1])] {
                if same {
                    queries[*i as usize].same = *id;
                }
            }
        }
    }
}

/// Many byte strings, by number.
pub trait Batch: Sync {
    /// How many.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Number `i`.
    fn get(&self, i: usize) -> &[u8];
}

/// Rows of one length, end to end.
#[derive(Clone, Copy)]
pub struct RowBatch<'a> {
    data: &'a [u8],
    size: usize,
}

impl<'a> RowBatch<'a> {
    /// The rows of `size` bytes in `data`.
    ///
    /// # Panics
    /// If `size` is 0 or does not divide the length of `data`.
    pub fn new(data: &'a [u8], size: usize) -> Self {
        assert!(size > 0 && data.len().is_multiple_of(size), "whole rows");
        RowBatch { data, size }
    }
}

impl Batch for RowBatch<'_> {
    fn len(&self) -> usize {
        self.data.len() / self.size
    }
    #[inline]
    fn get(&self, i: usize) -> &[u8] {
        &self.data[i * self.size..(i + 1) * self.size]
    }
}

impl<B: AsRef<[u8]> + Sync> Batch for [B] {
    fn len(&self) -> usize {
        <[B]>::len(self)
    }
    #[inline]
    fn get(&self, i: usize) -> &[u8] {
        self[i].as_ref()
    }
}

/// An exact, lock-free set of byte strings with dense ids: the SD tree.
///
/// Any number of threads may use it at once, none waits for another. Calls take batches and are several times faster
/// for it than one object at a time, since the searches of a batch wait for memory together.
///
/// `S` says where the objects are, `O` how their keys are ordered.
///
/// ```
/// use sdtree::{SdTree, RowBatch};
/// let tree = SdTree::fixed(4, 0, b"sixteen random bytes");
/// let (mut ids, mut new) = ([0; 3], [false; 3]);
/// tree.intern(&RowBatch::new(b"onceonlyonce", 4), &mut ids, &mut new)?;
/// assert_eq!((ids, new), ([0, 1, 0], [true, true, false]));
/// # Ok::<(), sdtree::Full>(())
/// ```
pub struct SdTree<S: Store, O: Order = SampledMixed> {
    trie: Trie,
    objects: Objects<S, O>,
}

impl SdTree<Fixed> {
    /// A tree of copies of objects of `size` bytes, with room for `capacity` of them before its table grows.
    ///
    /// # Panics
    /// As [`Fixed::new`].
    pub fn fixed(size: usize, capacity: usize, seed: &[u8]) -> Self {
        SdTree::with(Fixed::new(size), SampledMixed::new(seed), capacity)
    }
}

impl SdTree<Variable> {
    /// A tree of copies of objects of any length up to [`MAX_OBJECT`](crate::MAX_OBJECT).
    pub fn variable(capacity: usize, seed: &[u8]) -> Self {
        SdTree::with(Variable::new(), SampledMixed::new(seed), capacity)
    }
}

impl<'a> SdTree<Rows<'a>> {
    /// A tree of rows of `data` that stay where they are: only batches that lie in `data` may be interned.
    ///
    /// # Panics
    /// As [`Rows::new`].
    pub fn rows(data: &'a [u8], size: usize, capacity: usize, seed: &[u8]) -> Self {
        SdTree::with(Rows::new(data, size), SampledMixed::new(seed), capacity)
    }
}

impl<O: Order> SdTree<Rows<'_>, O> {
    /// The row of object `id`: that in which it was seen first (by one thread).
    ///
    /// # Panics
    /// If there is no such object in the tree.
    pub fn row(&self, id: u32) -> u32 {
        assert!(self.alive(id), "an id of this tree");
        // SAFETY: alive, so that it has been placed.
        unsafe { self.objects.store.row(id) }
    }
}

impl<S: Store, O: Order> SdTree<S, O> {
    /// A tree of objects in `store` with keys in `order`, with room for `capacity` before its table grows.
    pub fn with(store: S, order: O, capacity: usize) -> Self {
        SdTree {
            trie: Trie::new(capacity),
            objects: Objects {
                store,
                order,
                meta: Arena::new(1),
            },
        }
    }

    /// Whether `id` is that of an object in the tree. What it has placed stays where it is for as long as the caller is
    /// pinned.
    #[inline]
    fn alive(&self, id: u32) -> bool {
        // Below the bound is not enough: the number may be on its way to its first object.
        self.objects.meta.try_ptr(id).is_some_and(|meta| {
            // SAFETY: reserved, as `try_ptr` says.
            unsafe { &*meta }.load(Ordering::Acquire) & ALIVE != 0
        })
    }

    /// Asks for what [`Order::first`] will read of object `i`.
    #[inline]
    fn touch<B: Batch + ?Sized>(&self, batch: &B, i: usize) {
        let bytes = batch.get(i);
        let apart = !bytes.as_ptr().addr().is_multiple_of(64);
        self.objects.order.lines(bytes.len(), |at| {
            let line = bytes.as_ptr().wrapping_add(at);
            prefetch(line);
            if apart {
                prefetch(line.wrapping_add(63));
            }
        });
    }

    /// Calls `f` with the queries of a range one by one, in groups that are warm in the caches.
    ///
    /// Where the objects of the next group are not read whole, one of them is mixed and one further on is asked for
    /// beside each call of `f`, since many requests at once would wait for each other. Where they are, they are read
    /// between the calls of one group and those of the next, so that what was warmed for the calls is not driven out.
    #[inline]
    fn each<'t, B: Batch + ?Sized, R: Fn(u32)>(
        &'t self,
        pin: &mut Pin<'t, R>,
        batch: &B,
        range: std::ops::Range<usize>,
        mut f: impl FnMut(&mut Pin<'t, R>, &mut Run, usize, &mut Query),
    ) {
        /// Objects between asking for one and mixing it.
        const AHEAD: usize = 16;
        /// Objects read side by side where they are read whole.
        const STREAMS: usize = 4;
        /// The line asked for of an object that will be read whole: it brings the translation of the page's address. At
        /// the head, or with more lines, it would keep the hardware from seeing the stream.
        const OF_STREAM: usize = 512;
        let mut run = self.trie.start(pin);
        // Not filled in advance: that would take longer than a search does, where a batch is one object.
        let mut buffers = [[const { MaybeUninit::uninit() }; GROUP]; 2];
        let [mut group, mut next] = buffers.each_mut();
        // Whether the group that begins at `start` is read as streams. With `eager` by `Order::whole`, too.
        let streams = |start: usize, eager: bool| {
            start + STREAMS <= range.end
                && (eager || self.objects.order.streams(batch.get(start).len()))
        };
        // Fills a group, as far as the range goes.
        let read = |start: usize, eager: bool, group: &mut [MaybeUninit<Query>; GROUP]| {
            let n = GROUP.min(range.end - start);
            // As far from each other as can be.
            let apart = n / STREAMS;
            for k in 0..apart {
                let bytes = std::array::from_fn(|s| batch.get(start + k + s * apart));
                let four = self.objects.query_four(bytes, eager);
                for (s, q) in four.into_iter().enumerate() {
                    group[k + s * apart].write(q);
                }
            }
            let rest = apart * STREAMS;
            for (k, q) in group[..n].iter_mut().enumerate().skip(rest) {
                q.write(self.objects.query(batch.get(start + k), eager));
            }
        };
        let prepare = |i: usize, eager: bool, q: &mut MaybeUninit<Query>| {
            if i + AHEAD < range.end {
                self.touch(batch, i + AHEAD);
            }
            if i < range.end {
                q.write(self.objects.query(batch.get(i), eager));
            }
        };
        let touch_some = |start: usize| {
            for i in start..range.end.min(start + AHEAD) {
                self.touch(batch, i);
            }
        };
        let mut stream = streams(range.start, false);
        if stream {
            read(range.start, false, next);
        } else {
            touch_some(range.start);
            for (i, q) in range.clone().zip(&mut *next) {
                prepare(i, false, q);
            }
        }
        for start in range.clone().step_by(GROUP) {
            std::mem::swap(&mut group, &mut next);
            let group = &mut group[..GROUP.min(range.end - start)];
            // SAFETY: the queries of these objects have been written, all of them: by `read`, or by `prepare`, called for each
            // of the first group, and beside each of the group before, which was a whole one.
            let group = unsafe { &mut *(group as *mut [MaybeUninit<Query>] as *mut [Query]) };
            // All in a row: each may wait for the translation of an address, and so would streams or samples beside it.
            for q in &*group {
                self.prefetch_place(pin, q);
            }
            let of_classes = self.trie.warm(&self.objects, pin, group, &mut run);
            // Where most of a group were of classes, the next one is read whole at once, in one pass.
            let eager = 2 * of_classes > group.len();
            let after = start + GROUP;
            let before = std::mem::replace(&mut stream, streams(after, eager));
            if before && !stream {
                touch_some(after);
            }
            for (k, q) in group.iter_mut().enumerate() {
                if !stream {
                    prepare(after + k, eager, &mut next[k]);
                } else if after + k < range.end && batch.get(after + k).len() > OF_STREAM {
                    prefetch(batch.get(after + k)[OF_STREAM..].as_ptr());
                }
                f(pin, &mut run, start + k, q);
            }
            if stream {
                read(after, eager, next);
            }
        }
        self.trie.end(&self.objects, pin, &mut { NO_QUERY }, run);
    }

    /// Asks for the places in the tables where the search will begin, as far as they are known.
    #[inline]
    fn prefetch_place<R: Fn(u32)>(&self, pin: &Pin<'_, R>, q: &Query) {
        let whole = (q.known != 0).then_some(q.whole);
        self.trie.prefetch_place(pin, q.first, whole);
    }

    /// Splits `0..n` into ranges worked on while seated once.
    fn sittings(n: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        (0..n)
            .step_by(SITTING)
            .map(move |start| start..n.min(start + SITTING))
    }

    /// Puts each object into the tree unless an equal one is there; writes its id, and whether it is new. Of equal
    /// objects of one batch the first is new.
    ///
    /// # Panics
    /// If the slices are not of the batch's length, or an object is longer than [`MAX_OBJECT`](crate::MAX_OBJECT), of another length than
    /// the tree's, or none of the rows of a tree of rows.
    pub fn intern<B: Batch + ?Sized>(
        &self,
        batch: &B,
        ids: &mut [u32],
        new: &mut [bool],
    ) -> Result<(), Full> {
        let n = batch.len();
        assert!(
            n == ids.len() && n == new.len(),
            "slices of the batch's length"
        );
        // Before anything is done.
        (0..n).for_each(|i| self.fit(batch.get(i).len()));
        for sitting in Self::sittings(n) {
            let mut pin = self.trie.pin(&self.objects);
            let mut result = Ok(());
            self.each(&mut pin, batch, sitting, |pin, run, i, q| {
                // A batch may answer otherwise than before: it is anybody's code.
                self.fit(q.bytes.len());
                match self.trie.insert(&self.objects, pin, q, run) {
                    Ok(done) => (ids[i], new[i]) = done,
                    Err(full) => result = Err(full),
                }
            });
            result?;
        }
        Ok(())
    }

    /// Refuses a length that the store cannot hold.
    #[inline]
    fn fit(&self, len: usize) {
        let store = &self.objects.store;
        assert!(store.fits(len), "{}", store.misfit(len));
    }

    /// Writes the id of the object equal to each of the batch, or -1. What the tree cannot hold is not there.
    ///
    /// # Panics
    /// If the slice is not of the batch's length.
    pub fn find<B: Batch + ?Sized>(&self, batch: &B, ids: &mut [i64]) {
        assert_eq!(batch.len(), ids.len(), "a slice of the batch's length");
        for sitting in Self::sittings(batch.len()) {
            let mut pin = self.trie.pin(&self.objects);
            self.each(&mut pin, batch, sitting, |pin, _, i, q| {
                let found = self.trie.find(&self.objects, pin, q);
                ids[i] = found.map_or(-1, i64::from);
            });
        }
    }

    /// Takes objects out; writes whether each was there. Ids and memory of those that were are used again when no
    /// call that was under way can hold them.
    ///
    /// # Panics
    /// If the slice is not of the batch's length.
    pub fn remove<B: Batch + ?Sized>(&self, batch: &B, removed: &mut [bool]) {
        assert_eq!(batch.len(), removed.len(), "a slice of the batch's length");
        for sitting in Self::sittings(batch.len()) {
            let mut pin = self.trie.pin(&self.objects);
            self.each(&mut pin, batch, sitting, |pin, run, i, q| {
                removed[i] = self.trie.remove(&self.objects, pin, q, run).is_some();
            });
        }
    }

    /// Calls `f` with the bytes of each id, or `None` where there is no such object in the tree.
    pub fn get(&self, ids: &[u32], mut f: impl FnMut(usize, Option<&[u8]>)) {
        for sitting in Self::sittings(ids.len()) {
            let _pin = self.trie.pin(&self.objects);
            for i in sitting {
                let id = ids[i];
                // SAFETY: alive under the pin: placed, and not released before the pin ends. The Acquire of `alive` sees the
                // bytes that were placed before.
                let bytes = |_| unsafe { self.objects.store.bytes(id) };
                f(i, self.alive(id).then_some(()).map(bytes));
            }
        }
    }

    /// The ids of all objects, in no order that means anything. What others insert or remove meanwhile may or may
    /// not be among them.
    pub fn ids(&self) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.len());
        let mut pin = self.trie.pin(&self.objects);
        self.trie.walk(&mut pin, |id| ids.push(id));
        ids
    }

    /// Takes out all objects that are in the tree now; those that others insert meanwhile may stay.
    pub fn clear(&self) {
        for ids in self.ids().chunks(SITTING) {
            let mut pin = self.trie.pin(&self.objects);
            let mut run = self.trie.start(&mut pin);
            for &id in ids {
                let alive = self.objects.meta(id).load(Ordering::Acquire) & ALIVE != 0;
                if alive {
                    // SAFETY: alive under the pin.
                    let mut q = self
                        .objects
                        .query(unsafe { self.objects.store.bytes(id) }, false);
                    self.trie.remove(&self.objects, &mut pin, &mut q, &mut run);
                }
            }
            self.trie
                .end(&self.objects, &mut pin, &mut { NO_QUERY }, run);
        }
    }

    /// Number of objects in the tree; exact when no call is under way.
    pub fn len(&self) -> usize {
        self.trie.len()
    }

    /// Whether the tree is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All ids ever given are below this.
    pub fn id_bound(&self) -> usize {
        self.trie.id_bound() as usize
    }

    /// Size and shape. Cost: a walk over the whole tree.
    pub fn stats(&self) -> Stats {
        let mut pin = self.trie.pin(&self.objects);
        Stats {
            objects: self.len(),
            id_bound: self.id_bound(),
            index_bytes: self.trie.bytes(&pin)
                + self.objects.meta.bytes()
                + self.objects.store.index_bytes(),
            object_bytes: self.objects.store.object_bytes(),
            shape: self.trie.shape(&mut pin),
        }
    }
}

// SAFETY: the pointers of queries do not outlive a call; the rest is shared atomics and `Send + Sync` parts.
unsafe impl<S: Store, O: Order> Sync for Objects<S, O> {}
// SAFETY: as above.
unsafe impl<S: Store, O: Order> Send for Objects<S, O> {}

//! The SD tree for byte strings: the trie, an order of keys, and a store of objects put together.

use crate::arena::Arena;
use crate::batch::{pin_scopes, Batch, PIN_SCOPE};
use crate::epoch::Full;
use crate::groups::each;
use crate::objects::{Objects, Query, ALIVE, NO_QUERY};
use crate::order::{Order, SampledHash};
use crate::primitive::Ordering;
use crate::results::{Interned, Stats};
use crate::store::{Fixed, Rows, Store, Variable};
use crate::trie::{classes::PinScope, Pin, Trie};
use std::fmt::Debug;
use std::ops::Range;

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
/// let done = tree.intern(&RowBatch::new(b"onceonlyonce", 4))?;
/// assert_eq!(done.ids, [0, 1, 0]);
/// assert_eq!(done.new, [true, true, false]);
/// assert_eq!(tree.find(&["only", "none"][..]), [Some(1), None]);
/// assert_eq!(tree.get(1).as_deref(), Some(&b"only"[..]));
/// # Ok::<(), sdtree::Full>(())
/// ```
pub struct SdTree<S: Store, O: Order = SampledHash> {
    trie: Trie,
    objects: Objects<S, O>,
}

impl<S: Store + Debug, O: Order + Debug> Debug for SdTree<S, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SdTree")
            .field("len", &self.len())
            .field("store", &self.objects.store)
            .field("order", &self.objects.order)
            .finish_non_exhaustive()
    }
}

impl SdTree<Fixed> {
    /// A tree of copies of objects of `size` bytes, with room for `capacity` of them before its table grows.
    ///
    /// # Panics
    /// As [`Fixed::new`].
    pub fn fixed(size: usize, capacity: usize, seed: &[u8]) -> Self {
        SdTree::with(Fixed::new(size), SampledHash::new(seed), capacity)
    }
}

impl SdTree<Variable> {
    /// A tree of copies of objects of any length up to [`MAX_OBJECT`](crate::MAX_OBJECT).
    pub fn variable(capacity: usize, seed: &[u8]) -> Self {
        SdTree::with(Variable::new(), SampledHash::new(seed), capacity)
    }
}

impl<'a> SdTree<Rows<'a>> {
    /// A tree of rows of `data` that stay where they are: only batches that lie in `data` may be interned.
    ///
    /// # Panics
    /// As [`Rows::new`].
    pub fn rows(data: &'a [u8], size: usize, capacity: usize, seed: &[u8]) -> Self {
        SdTree::with(Rows::new(data, size), SampledHash::new(seed), capacity)
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

    /// Puts each object into the tree unless an equal one is there. Returns the ids, and which are new: of equal objects
    /// of one batch the first.
    ///
    /// # Errors
    /// [`Full`]: some objects could not be put in; the others are in the tree.
    ///
    /// # Panics
    /// If an object is longer than [`MAX_OBJECT`](crate::MAX_OBJECT), of another length than the tree's, or none of the
    /// rows of a tree of rows.
    pub fn intern<B: Batch + ?Sized>(&self, batch: &B) -> Result<Interned, Full> {
        let mut interned = Interned::with_capacity(batch.len());
        self.intern_each(batch, |_, id, new| interned.push(id, new))?;
        Ok(interned)
    }

    /// As [`SdTree::intern`], but calls `f` with the number in the batch of each object, its id, and whether it is new, in the
    /// order of the batch. Where the tree is full, `f` is called for those objects that are in it. `f` may use the tree,
    /// and should be quick: while it runs, nothing that others remove is used again.
    ///
    /// # Errors
    /// As [`SdTree::intern`].
    ///
    /// # Panics
    /// As [`SdTree::intern`].
    pub fn intern_each<B: Batch + ?Sized>(
        &self,
        batch: &B,
        mut f: impl FnMut(usize, u32, bool),
    ) -> Result<(), Full> {
        let n = batch.len();
        // Before anything is done.
        (0..n).for_each(|i| self.fit(batch.get(i).len()));
        for range in pin_scopes(n) {
            let mut pin = self.trie.pin(&self.objects);
            let mut result = Ok(());
            self.each(&mut pin, batch, range, |pin, scope, i, q| {
                // A batch may answer otherwise than before: it is anybody's code.
                self.fit(q.bytes.len());
                match self.trie.insert(&self.objects, pin, q, scope) {
                    Ok((id, new)) => f(i, id, new),
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

    /// The id of the object equal to each of the batch. What the tree cannot hold is not there.
    pub fn find<B: Batch + ?Sized>(&self, batch: &B) -> Vec<Option<u32>> {
        let mut found = Vec::with_capacity(batch.len());
        self.find_each(batch, |_, id| found.push(id));
        found
    }

    /// As [`SdTree::find`], but calls `f` with the number in the batch of each object and the id; see
    /// [`SdTree::intern_each`].
    pub fn find_each<B: Batch + ?Sized>(&self, batch: &B, mut f: impl FnMut(usize, Option<u32>)) {
        for range in pin_scopes(batch.len()) {
            let mut pin = self.trie.pin(&self.objects);
            self.each(&mut pin, batch, range, |pin, _, i, q| {
                f(i, self.trie.find(&self.objects, pin, q));
            });
        }
    }

    /// Takes objects out; returns whether each was there. Ids and memory of those that were are used again when no
    /// call that was under way can hold them.
    pub fn remove<B: Batch + ?Sized>(&self, batch: &B) -> Vec<bool> {
        let mut removed = Vec::with_capacity(batch.len());
        self.remove_each(batch, |_, was_there| removed.push(was_there));
        removed
    }

    /// As [`SdTree::remove`], but calls `f` with the number in the batch of each object and whether it was there; see
    /// [`SdTree::intern_each`].
    pub fn remove_each<B: Batch + ?Sized>(&self, batch: &B, mut f: impl FnMut(usize, bool)) {
        for range in pin_scopes(batch.len()) {
            let mut pin = self.trie.pin(&self.objects);
            self.each(&mut pin, batch, range, |pin, scope, i, q| {
                f(i, self.trie.remove(&self.objects, pin, q, scope).is_some());
            });
        }
    }

    /// [`each`] with the parts of this tree.
    #[inline]
    fn each<'t, B: Batch + ?Sized, R: Fn(u32)>(
        &'t self,
        pin: &mut Pin<'t, R>,
        batch: &B,
        range: Range<usize>,
        f: impl FnMut(&mut Pin<'t, R>, &mut PinScope, usize, &mut Query),
    ) {
        each(&self.trie, &self.objects, pin, batch, range, f);
    }

    /// A copy of object `id`, if it is in the tree.
    pub fn get(&self, id: u32) -> Option<Vec<u8>> {
        let mut copy = None;
        self.get_each(&[id], |_, bytes| copy = bytes.map(<[u8]>::to_vec));
        copy
    }

    /// Calls `f` with the number in `ids` of each id and the bytes of the object, or `None` where there is no such object in
    /// the tree; see [`SdTree::intern_each`].
    pub fn get_each(&self, ids: &[u32], mut f: impl FnMut(usize, Option<&[u8]>)) {
        for range in pin_scopes(ids.len()) {
            let _pin = self.trie.pin(&self.objects);
            for i in range {
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
        for ids in self.ids().chunks(PIN_SCOPE) {
            let mut pin = self.trie.pin(&self.objects);
            let mut scope = self.trie.start(&mut pin);
            for &id in ids {
                let alive = self.objects.meta(id).load(Ordering::Acquire) & ALIVE != 0;
                if alive {
                    // SAFETY: alive under the pin.
                    let mut q = self
                        .objects
                        .query(unsafe { self.objects.store.bytes(id) }, false);
                    self.trie
                        .remove(&self.objects, &mut pin, &mut q, &mut scope);
                }
            }
            self.trie
                .end(&self.objects, &mut pin, &mut { NO_QUERY }, scope);
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

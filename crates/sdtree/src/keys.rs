//! A tree of 64-bit keys: numbers them densely, finds them, gives the numbers of removed ones to new ones.

use crate::arena::Arena;
use crate::batch::pin_scopes;
use crate::edge::PREFIX;
use crate::epoch::Full;
use crate::prefetch::prefetch;
use crate::primitive::{AtomicU64, Ordering};
use crate::results::{Interned, Stats};
use crate::trie::{classes::PinScope, space::Space, warm::GROUP, Pin, Trie};
use std::ops::Range;

/// A set of `u64` keys with dense ids, for any number of threads, none of which waits for another.
///
/// The key's bits are spread by a secret bijection before they route, so that keys of any pattern give a shallow
/// tree; equality is that of the keys themselves. At most 28 bytes an entry, the key included.
///
/// ```
/// let tree = sdtree::KeyTree::new(0, b"a seed");
/// let done = tree.intern(&[7, 9, 7])?;
/// assert_eq!(done.ids, [0, 1, 0]);
/// assert_eq!(done.new, [true, true, false]);
/// assert_eq!(tree.find(&[9, 8]), [Some(1), None]);
/// assert_eq!(tree.remove(&[7, 8]), [true, false]);
/// # Ok::<(), sdtree::Full>(())
/// ```
pub struct KeyTree {
    trie: Trie,
    space: Keys,
}

/// Says nothing of the secret.
impl std::fmt::Debug for KeyTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyTree")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The keys by id, and the bijection.
struct Keys {
    keys: Arena<AtomicU64>,
    secret: [u64; 3],
}

#[derive(Clone, Copy)]
struct Query {
    key: u64,
    spread: u64,
}

impl Keys {
    /// A bijection of 64 bits: xor, odd multiplications, shifts.
    #[inline]
    fn spread(&self, key: u64) -> u64 {
        let x = (key ^ self.secret[0]).wrapping_mul(self.secret[1]);
        let x = (x ^ x >> 32).wrapping_mul(self.secret[2]);
        x ^ x >> 29
    }

    #[inline]
    fn query(&self, key: u64) -> Query {
        Query {
            key,
            spread: self.spread(key),
        }
    }

    #[inline]
    fn key(&self, id: u32) -> u64 {
        // SAFETY: ids come from leaf edges, which are published after `place` has reserved them.
        unsafe { self.keys.get(id) }.load(Ordering::Relaxed)
    }
}

impl Space for Keys {
    const CLASSES: bool = false;
    const SECOND_LESS: u32 = 0;
    type Query = Query;

    #[inline]
    fn prefix(&self, q: &Query) -> u64 {
        q.spread
    }

    fn whole(&self, q: &mut Query) -> u64 {
        q.spread
    }

    fn whole_of(&self, id: u32) -> u64 {
        self.spread(self.key(id))
    }

    fn equal(&self, q: &Query, id: u32) -> bool {
        self.key(id) == q.key
    }

    fn class(&self, _q: &Query) -> u32 {
        crate::edge::NONE
    }

    fn set_class(&self, _q: &mut Query, _node: u32) {}

    fn compute_wholes(&self, _queries: &mut [Query], _which: &[(u16, u32)]) {}

    #[inline]
    fn bit(&self, q: &mut Query, at: u32) -> usize {
        (q.spread >> (63 - at) & 1) as usize
    }

    #[inline]
    fn compare(&self, q: &mut Query, id: u32) -> Option<u32> {
        let key = self.key(id);
        (key != q.key).then(|| (self.spread(key) ^ q.spread).leading_zeros())
    }

    #[inline]
    fn place(&self, id: u32, q: &mut Query, _differ: Option<u32>) -> bool {
        // SAFETY: reserved by this very call.
        unsafe { &*self.keys.reserve(id) }.store(q.key, Ordering::Relaxed);
        false
    }

    fn removed(&self, _id: u32) {}

    fn release(&self, _id: u32) {}

    #[inline]
    fn prefetch_record(&self, id: u32) {
        // SAFETY: as in `key`.
        prefetch(unsafe { self.keys.ptr(id) });
    }

    fn look_at(&self, _queries: &mut [Query], _pairs: &[(u16, u32)]) {}
}

impl KeyTree {
    /// An empty set, with room for `capacity` keys before its table grows. `seed` makes the secret bijection.
    pub fn new(capacity: usize, seed: &[u8]) -> Self {
        let key = keyhash::Key::from_seed(seed);
        let secret = [b"xor", b"one", b"two"].map(|label| keyhash::hash64(&key, label));
        KeyTree {
            trie: Trie::new(capacity),
            space: Keys {
                keys: Arena::new(1),
                secret: [secret[0], secret[1] | 1, secret[2] | 1],
            },
        }
    }

    /// Calls `f` with the queries of a range one by one, in groups that are warm in the caches.
    fn each<'t, R: Fn(u32)>(
        &'t self,
        pin: &mut Pin<'t, R>,
        keys: &[u64],
        range: Range<usize>,
        mut f: impl FnMut(&mut Pin<'t, R>, &mut PinScope, usize, &mut Query),
    ) {
        let mut scope = self.trie.start(pin);
        let mut group = [Query { key: 0, spread: 0 }; GROUP];
        for start in range.clone().step_by(GROUP) {
            let part = &keys[start..range.end.min(start + GROUP)];
            for (q, &key) in group.iter_mut().zip(part) {
                *q = self.space.query(key);
                self.trie.prefetch_place(pin, q.spread, None);
            }
            let group = &mut group[..part.len()];
            self.trie.warm(&self.space, pin, group, &mut scope);
            for (i, q) in (start..).zip(group) {
                f(pin, &mut scope, i, q);
            }
        }
        self.trie.end(&self.space, pin, &mut group[0], scope);
    }

    /// Puts each key into the set unless it is there. Returns the ids, and which are new: of equal keys of one call the
    /// first. Cost: about 50 ns a key in a set of a million.
    ///
    /// # Errors
    /// [`Full`]: some keys could not be put in; the others are in the set.
    pub fn intern(&self, keys: &[u64]) -> Result<Interned, Full> {
        let mut interned = Interned::with_capacity(keys.len());
        self.intern_each(keys, |_, id, new| interned.push(id, new))?;
        Ok(interned)
    }

    /// As [`KeyTree::intern`], but calls `f` with the number in `keys` of each key, its id, and whether it is new, in the order
    /// of the keys. Where the set is full, `f` is called for those keys that are in it. `f` may use the set, and should
    /// be quick: while it runs, no id that others free is used again.
    ///
    /// # Errors
    /// As [`KeyTree::intern`].
    pub fn intern_each(
        &self,
        keys: &[u64],
        mut f: impl FnMut(usize, u32, bool),
    ) -> Result<(), Full> {
        for range in pin_scopes(keys.len()) {
            let mut pin = self.trie.pin(&self.space);
            let mut result = Ok(());
            self.each(&mut pin, keys, range, |pin, scope, i, q| {
                match self.trie.insert(&self.space, pin, q, scope) {
                    Ok((id, new)) => f(i, id, new),
                    Err(full) => result = Err(full),
                }
            });
            result?;
        }
        Ok(())
    }

    /// The id of each key that is in the set.
    pub fn find(&self, keys: &[u64]) -> Vec<Option<u32>> {
        let mut found = Vec::with_capacity(keys.len());
        self.find_each(keys, |_, id| found.push(id));
        found
    }

    /// As [`KeyTree::find`], but calls `f` with the number in `keys` of each key and the id; see [`KeyTree::intern_each`].
    pub fn find_each(&self, keys: &[u64], mut f: impl FnMut(usize, Option<u32>)) {
        for range in pin_scopes(keys.len()) {
            let mut pin = self.trie.pin(&self.space);
            self.each(&mut pin, keys, range, |pin, _, i, q| {
                f(i, self.trie.find(&self.space, pin, q));
            });
        }
    }

    /// Takes keys out of the set; returns whether each was there. Their ids are given to keys that come later, once
    /// no call that was under way can hold them.
    pub fn remove(&self, keys: &[u64]) -> Vec<bool> {
        let mut removed = Vec::with_capacity(keys.len());
        self.remove_each(keys, |_, was_there| removed.push(was_there));
        removed
    }

    /// As [`KeyTree::remove`], but calls `f` with the number in `keys` of each key and whether it was there; see
    /// [`KeyTree::intern_each`].
    pub fn remove_each(&self, keys: &[u64], mut f: impl FnMut(usize, bool)) {
        for range in pin_scopes(keys.len()) {
            let mut pin = self.trie.pin(&self.space);
            self.each(&mut pin, keys, range, |pin, scope, i, q| {
                f(i, self.trie.remove(&self.space, pin, q, scope).is_some());
            });
        }
    }

    /// All keys with their ids, in no order that means anything. What others insert or remove meanwhile may or may
    /// not be seen.
    pub fn items(&self) -> Vec<(u64, u32)> {
        let mut items = Vec::with_capacity(self.len());
        let mut pin = self.trie.pin(&self.space);
        self.trie
            .walk(&mut pin, |id| items.push((self.space.key(id), id)));
        items
    }

    /// Number of keys in the set; exact when no call is under way.
    pub fn len(&self) -> usize {
        self.trie.len()
    }

    /// Whether there is no key in the set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All ids ever given are below this, so that an array of this length can be indexed by id.
    pub fn id_bound(&self) -> usize {
        self.trie.id_bound() as usize
    }

    /// Size and shape. Cost: a walk over the whole tree.
    pub fn stats(&self) -> Stats {
        let mut pin = self.trie.pin(&self.space);
        Stats {
            objects: self.len(),
            id_bound: self.id_bound(),
            index_bytes: self.trie.bytes(&pin) + self.space.keys.bytes(),
            object_bytes: 0,
            shape: self.trie.shape(&mut pin),
        }
    }
}

const _: () = assert!(PREFIX < 64);

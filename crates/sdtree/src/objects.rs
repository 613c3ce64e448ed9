//! The objects of a tree of byte strings, as the trie asks for them: their store, and the order of their keys.

use crate::arena::Arena;
use crate::edge::NONE;
use crate::order::{Order, STREAM};
use crate::prefetch::prefetch;
use crate::primitive::{AtomicU8, Ordering};
use crate::store::Store;
use crate::trie::{space::Space, warm::GROUP};

/// In `meta`: the object is in the tree, or about to be.
pub(crate) const ALIVE: u8 = 1;
/// The first key bit after those of [`Order::whole`]: of the length, or of the bytes.
const DEEP: u32 = 64;
/// Bits of the length in a key.
const LENGTH: u32 = 32;

/// The objects of a tree and how their keys read.
pub(crate) struct Objects<S, O> {
    pub(crate) store: S,
    pub(crate) order: O,
    /// By id: [`ALIVE`].
    pub(crate) meta: Arena<AtomicU8>,
}

/// An object searched for.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    pub(crate) bytes: *const [u8],
    pub(crate) first: u64,
    /// [`Order::whole`], if `known`.
    pub(crate) whole: u64,
    /// 0 or 1: as wide as the rest, since a copy of padding stalls on what was written more narrowly.
    pub(crate) known: u64,
    /// An object that has been found equal, or `NONE`. Objects do not change and their ids are not given to others
    /// before the pin under which the query was made has ended, so it stays true.
    same: u32,
    /// The class it belongs to, if that is known, or `NONE`.
    class: u32,
}

/// A query that is none yet.
pub(crate) const NO_QUERY: Query = Query {
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
    pub(crate) fn query(&self, bytes: &[u8], eager: bool) -> Query {
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
    pub(crate) fn query_four(&self, bytes: [&[u8]; 4], eager: bool) -> [Query; 4] {
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
    pub(crate) fn meta(&self, id: u32) -> &AtomicU8 {
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
        ours.len() == theirs.len() && keyhash::first_diff(ours, theirs).is_none()
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
        let differ = keyhash::first_diff(ours, theirs);
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
            let same = keyhash::equal_pairs([p, q], [theirs(*a), theirs(*b)]);
            for (i, id, same) in [(i, a, same[0]), (j, b, same[1])] {
                if same {
                    queries[*i as usize].same = *id;
                }
            }
        }
    }
}

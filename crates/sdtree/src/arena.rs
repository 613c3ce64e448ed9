//! An array that grows in pieces that never move, without locks.
//!
//! Pieces grow with the array, eight to each doubling, so that at most an eighth of it is ever unused, and 2^32
//! elements need 184 pointers. An element is found by its number with a count of leading zeros and two shifts.

use crate::primitive::{zeroed_box, AtomicPtr, Ordering, Zeroed};

/// Elements before the first doubling (a power of two).
const FIRST_BITS: u32 = if cfg!(loom) { 3 } else { 10 };
/// Pieces to a doubling, as a power of two.
const SPLIT_BITS: u32 = 3;
const PIECES: usize = if cfg!(loom) {
    16
} else {
    ((32 - FIRST_BITS as usize) + 1) << SPLIT_BITS
};

/// The growing array. Elements are atomics, or memory that the owner of an element's number alone writes to.
pub(crate) struct Arena<T> {
    pieces: Box<[AtomicPtr<T>]>,
    /// Elements of T that make up one numbered element.
    width: usize,
}

/// Where element `i` stands: piece and number within the piece.
#[inline]
fn place(i: u32) -> (usize, usize, u32) {
    let j = i as u64 + (1 << FIRST_BITS);
    let e = 63 - j.leading_zeros();
    let shift = e - SPLIT_BITS;
    let piece =
        ((e - FIRST_BITS) << SPLIT_BITS) as usize + (j >> shift) as usize - (1 << SPLIT_BITS);
    (piece, (j & ((1 << shift) - 1)) as usize, shift)
}

impl<T: Zeroed> Arena<T> {
    pub(crate) fn new(width: usize) -> Self {
        let pieces = (0..PIECES)
            .map(|_| AtomicPtr::new(std::ptr::null_mut()))
            .collect();
        Arena { pieces, width }
    }

    /// Makes sure that element `i` is backed by memory, and returns its first T. Any number of threads may call it at once.
    #[inline]
    pub(crate) fn reserve(&self, i: u32) -> *mut T {
        let (piece, at, shift) = place(i);
        let mut p = self.pieces[piece].load(Ordering::Acquire);
        if p.is_null() {
            p = self.grow(piece, shift);
        }
        // SAFETY: the piece is there, and `at` within it.
        unsafe { p.add(at * self.width) }
    }

    /// Makes a piece, unless another thread comes first; returns it.
    #[cold]
    fn grow(&self, piece: usize, shift: u32) -> *mut T {
        let len = self.width.checked_mul(1 << shift);
        let made: Box<[T]> = zeroed_box(len.expect("a size that fits the address space"));
        let p = Box::into_raw(made) as *mut T;
        let put = self.pieces[piece].compare_exchange(
            std::ptr::null_mut(),
            p,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        match put {
            Ok(_) => p,
            Err(theirs) => {
                // SAFETY: `p` is the box of just now, which nobody else has seen.
                drop(unsafe {
                    Box::from_raw(std::ptr::slice_from_raw_parts_mut(p, self.width << shift))
                });
                theirs
            }
        }
    }

    /// The first T of element `i`.
    ///
    /// # Safety
    /// `i` must have been reserved, and the caller must have learnt of it in a way that happened after.
    #[inline]
    pub(crate) unsafe fn ptr(&self, i: u32) -> *mut T {
        let (piece, at, _) = place(i);
        // SAFETY: `piece < PIECES` for every u32; the piece is there (given), and `at` within it.
        unsafe {
            self.pieces
                .get_unchecked(piece)
                .load(Ordering::Acquire)
                .add(at * self.width)
        }
    }

    /// Element `i`, of width one.
    ///
    /// # Safety
    /// As [`Arena::ptr`].
    #[inline]
    pub(crate) unsafe fn get(&self, i: u32) -> &T {
        // SAFETY: given by the caller; pieces live as long as the arena.
        unsafe { &*self.ptr(i) }
    }

    /// The element, if it was reserved.
    pub(crate) fn try_ptr(&self, i: u32) -> Option<*mut T> {
        let (piece, at, _) = place(i);
        let p = self.pieces[piece].load(Ordering::Acquire);
        // SAFETY: the piece is there, and `at` within it.
        (!p.is_null()).then(|| unsafe { p.add(at * self.width) })
    }

    /// Calls `f` with every T that was ever reserved.
    pub(crate) fn for_each(&mut self, mut f: impl FnMut(&T)) {
        for piece in 0..self.pieces.len() {
            let p = self.pieces[piece].load(Ordering::Acquire);
            if !p.is_null() {
                // SAFETY: the piece is there and that long.
                unsafe { std::slice::from_raw_parts(p, self.piece_len(piece)) }
                    .iter()
                    .for_each(&mut f);
            }
        }
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        let mut bytes = self.pieces.len() * std::mem::size_of::<AtomicPtr<T>>();
        for (piece, p) in self.pieces.iter().enumerate() {
            if !p.load(Ordering::Acquire).is_null() {
                bytes += self.piece_len(piece) * std::mem::size_of::<T>();
            }
        }
        bytes
    }

    /// Elements of T in a piece.
    fn piece_len(&self, piece: usize) -> usize {
        let e = (piece >> SPLIT_BITS) as u32 + FIRST_BITS;
        self.width << (e - SPLIT_BITS)
    }
}

impl<T> Drop for Arena<T> {
    fn drop(&mut self) {
        for piece in 0..self.pieces.len() {
            let p = self.pieces[piece].load(Ordering::Acquire);
            if !p.is_null() {
                let e = (piece >> SPLIT_BITS) as u32 + FIRST_BITS;
                let n = self.width << (e - SPLIT_BITS);
                // SAFETY: made by `reserve` as a box of this length; `&mut self` says that nobody uses it.
                drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(p, n)) });
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::primitive::AtomicU64;

    #[test]
    fn places_fill_the_pieces_without_gap_or_overlap() {
        let (mut piece, mut next) = (0, 0);
        for i in 0..100_000u32 {
            let (p, at, shift) = place(i);
            if p != piece {
                assert_eq!(p, piece + 1, "element {i}");
                piece = p;
                next = 0;
            }
            assert_eq!(at, next, "element {i}");
            assert!(at < 1 << shift);
            next += 1;
        }
        assert!(place(u32::MAX).0 < PIECES);
    }

    #[test]
    fn elements_keep_their_values_and_places_while_the_array_grows() {
        let a: Arena<AtomicU64> = Arena::new(1);
        a.reserve(0);
        // SAFETY: reserved above.
        let first = unsafe { a.ptr(0) };
        for i in 0..50_000 {
            a.reserve(i);
            // SAFETY: reserved in the line above.
            unsafe { a.get(i) }.store(i as u64, Ordering::Relaxed);
        }
        for i in 0..50_000 {
            // SAFETY: reserved above.
            assert_eq!(unsafe { a.get(i) }.load(Ordering::Relaxed), i as u64);
        }
        // SAFETY: reserved above.
        assert_eq!(unsafe { a.ptr(0) }, first);
        assert!(a.bytes() < 50_000 * 8 * 9 / 8 + 20_000);
        assert!(a.try_ptr(1_000_000).is_none());
    }
}

//! An edge: the 64-bit word that says what hangs below it. Every change of the tree is one CAS on one edge.
//!
//! ```text
//!  63              32 31                            3 2    1   0
//! | index            | bit position, or fingerprint  |LEAF|TAG|FLAG|
//!                      CLASS, in a leaf
//! ```
//!
//! * inner: `index` is a node, the field above is the *critical bit*, the bit position that the node branches on;
//!   it stands in the edge, so that a search knows which bit to test before the node arrives.
//! * leaf: `index` is an object's id, the field holds the object's key bits `TOP..PREFIX`; with the place in the
//!   root table they are the whole prefix of the key, so that a search which ends here knows whether the prefixes
//!   agree, and where they do not, without reading anything else.
//! * class, a leaf with `CLASS`: `index` is a node that stands for all objects with this prefix (see `class.rs`).
//! * `FLAG`: the leaf below is removed; its removal is complete when the edge is gone. Only leaf edges have it.
//! * `TAG`: frozen for ever; the node that holds the edge is leaving the tree.

/// Key bits that every root table resolves: the smallest table has 2^TOP places.
pub(crate) const TOP: u32 = if cfg!(loom) { 1 } else { 10 };

/// Key bits that a leaf edge and its place in the root table hold together.
pub const PREFIX: u32 = TOP + FIELD_BITS;

const FIELD_BITS: u32 = 28;
const FIELD: u64 = (1 << FIELD_BITS) - 1;
const FIELD_SHIFT: u32 = 3;
const CLASS: u64 = 1 << (FIELD_SHIFT + FIELD_BITS);

/// The largest bit position that a node can branch on.
pub(crate) const MAX_POSITION: u32 = (1 << (FIELD_BITS + 1)) - 1;

pub(crate) const FLAG: u64 = 1;
pub(crate) const TAG: u64 = 2;
const LEAF: u64 = 4;
pub(crate) const MARKS: u64 = FLAG | TAG;

/// No object, no node.
pub(crate) const NONE: u32 = u32::MAX;

/// A place of the root table below which there is nothing.
pub(crate) const EMPTY: u64 = (NONE as u64) << 32 | LEAF;
/// A place of a new root table whose content still stands in the old one.
pub(crate) const UNINIT: u64 = 0;
/// A place of an old root table whose content has gone to the new one.
pub(crate) const MOVED: u64 = EMPTY | MARKS;

#[inline]
pub(crate) fn inner(node: u32, position: u32) -> u64 {
    debug_assert!((TOP..=MAX_POSITION).contains(&position));
    (node as u64) << 32 | (position as u64) << FIELD_SHIFT
}

/// The edge to object `id`; `prefix` has key bit 0 in its most significant bit.
#[inline]
pub(crate) fn leaf(id: u32, prefix: u64) -> u64 {
    (id as u64) << 32 | fingerprint(prefix) << FIELD_SHIFT | LEAF
}

#[inline]
pub(crate) fn is_leaf(word: u64) -> bool {
    word & LEAF != 0
}

/// Whether the word is `EMPTY`, marked or not.
#[inline]
pub(crate) fn is_empty(word: u64) -> bool {
    word & !MARKS == EMPTY
}

#[inline]
pub(crate) fn index(word: u64) -> u32 {
    (word >> 32) as u32
}

#[inline]
pub(crate) fn position(word: u64) -> u32 {
    (word as u32) >> FIELD_SHIFT
}

/// The edge to the class `node`, in the place of the edge to an object with the same prefix.
#[inline]
pub(crate) fn class(node: u32, leaf: u64) -> u64 {
    (node as u64) << 32 | leaf & FIELD << FIELD_SHIFT | LEAF | CLASS
}

/// Whether a leaf edge leads to a class.
#[inline]
pub(crate) fn is_class(word: u64) -> bool {
    word & CLASS != 0
}

/// The bits `TOP..PREFIX` of a prefix.
#[inline]
pub(crate) fn fingerprint(prefix: u64) -> u64 {
    prefix >> (64 - PREFIX) & FIELD
}

/// The first key bit in `TOP..PREFIX` in which the object below a leaf edge differs from `prefix`.
#[inline]
pub(crate) fn fingerprint_diff(word: u64, prefix: u64) -> Option<u32> {
    let d = (word >> FIELD_SHIFT & FIELD) ^ fingerprint(prefix);
    (d != 0).then(|| TOP + d.leading_zeros() - (64 - FIELD_BITS))
}

/// Key bit `at` (`TOP <= at < PREFIX`) of the object below a leaf edge.
#[inline]
pub(crate) fn fingerprint_bit(word: u64, at: u32) -> usize {
    (word >> (FIELD_SHIFT + PREFIX - 1 - at) & 1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_gives_back_what_it_was_made_of() {
        let e = inner(0xdead_beef, MAX_POSITION);
        assert_eq!(
            (index(e), position(e), is_leaf(e)),
            (0xdead_beef, MAX_POSITION, false)
        );
        let prefix = 0xfedc_ba98_7654_3210u64;
        let l = leaf(7, prefix);
        assert!(is_leaf(l) && !is_empty(l));
        assert_eq!(index(l), 7);
        assert_eq!(fingerprint_diff(l, prefix), None);
        for at in TOP..PREFIX {
            assert_eq!(fingerprint_diff(l, prefix ^ (1 << (63 - at))), Some(at));
            assert_eq!(fingerprint_bit(l, at) as u64, prefix >> (63 - at) & 1);
        }
        let c = class(9, l);
        assert!(is_leaf(c) && is_class(c) && !is_empty(c) && !is_class(l) && !is_class(EMPTY));
        assert_eq!((index(c), fingerprint_diff(c, prefix)), (9, None));
        assert!(is_empty(EMPTY) && is_empty(MOVED) && is_empty(EMPTY | TAG));
        assert_ne!(UNINIT, inner(0, TOP));
    }
}

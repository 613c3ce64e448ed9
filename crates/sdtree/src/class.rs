//! A class: all objects with the same first `PREFIX` key bits, once there are two of them.
//!
//! In a set of near-duplicates most objects are alike in what `Order::first` reads, and a trie below one edge would
//! be walked bit by bit. So a class has an edge of its own, to a node that holds two words:
//!
//! ```text
//! state: | id of the object that came first | members |        whole: `Order::whole` of that object
//! ```
//!
//! The object that came first stays where it is; all others are below the second root, by `Order::whole`, each counted
//! in `members`, and so is every operation under way there; a batch that meets the same class again and again counts some
//! in ahead. The rules that make one CAS on `state` decide:
//!
//! * the id is taken out when its object is removed and never put back: the same bytes come in below the second root,
//!   so that an object is never in both places;
//! * a class without id and members is *dead*, for ever: nobody enters it, its edge leaves the tree as that of a
//!   removed object does, and its node is retired by who flagged the edge. Who has entered keeps it alive, so nobody
//!   can put a second edge for the same prefix beside it.

use crate::edge::NONE;
use crate::primitive::{AtomicU64, Ordering};

/// No first object, no members.
const DEAD: u64 = (NONE as u64) << 32;
const MEMBERS: u64 = u32::MAX as u64;

/// The state of a new class: the object that was there, and its maker's operation.
#[inline]
pub(crate) fn new(first: u32) -> u64 {
    (first as u64) << 32 | 1
}

/// The id of the object that came first, or `NONE`.
#[inline]
pub(crate) fn first(state: u64) -> u32 {
    (state >> 32) as u32
}

/// Members, operations under way among them.
#[inline]
pub(crate) fn members(state: u64) -> u32 {
    (state & MEMBERS) as u32
}

/// Counts so many operations in, unless the class is dead.
///
/// # Panics
/// If there are nearly 2^32 already. Operations that a panic of somebody else's code has ended stay counted in; the count
/// must not run over into the id.
#[inline]
pub(crate) fn enter(state: &AtomicU64, operations: u32) -> bool {
    let mut now = state.load(Ordering::Acquire);
    while now != DEAD {
        crate::freeze::point();
        assert!(members(now).checked_add(operations).is_some(), "members");
        let more = now + operations as u64;
        match state.compare_exchange(now, more, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(other) => now = other,
        }
    }
    false
}

/// Counts `members` out; the caller has counted them in, or removed them. Returns whether the class has died of it.
#[inline]
pub(crate) fn leave(state: &AtomicU64, members: u64) -> bool {
    crate::freeze::point();
    state.fetch_sub(members, Ordering::AcqRel) - members == DEAD
}

/// Takes out the object that came first, if it is `id`. Returns whether this call did, and whether the class has died
/// of it.
#[inline]
pub(crate) fn take_first(state: &AtomicU64, id: u32) -> (bool, bool) {
    let mut now = state.load(Ordering::Acquire);
    while first(now) == id {
        crate::freeze::point();
        let left = DEAD | now & MEMBERS;
        match state.compare_exchange(now, left, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return (true, left == DEAD),
            Err(other) => now = other,
        }
    }
    (false, false)
}

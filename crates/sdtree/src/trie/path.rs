//! The path of a search, and what a participant keeps from one pin to the next.

use crate::primitive::AtomicU64;

/// One edge of the path of a search: where it stands and what it was.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) at: *const AtomicU64,
    pub(super) word: u64,
    /// The other edge of the same node; the same edge in the table.
    pub(super) other: *const AtomicU64,
}

/// What a participant keeps from one pin to the next.
#[derive(Default)]
pub(crate) struct Kept {
    /// Inserts since the size was last looked at.
    pub(super) since_check: u32,
    /// The path of the search under way; kept here so that its memory is.
    pub(super) path: Vec<Step>,
}

// SAFETY: the steps of a path are followed only under the pin under which they were recorded, by the thread that is pinned:
// every search begins with an empty path. What goes from one thread to another is the memory of the list, and a count.
unsafe impl Send for Kept {}

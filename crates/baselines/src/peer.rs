//! What all baselines have in common.

use std::sync::Mutex;

/// Rows of one length, end to end.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The bytes.
    pub data: &'a [u8],
    /// Bytes of a row.
    pub size: usize,
}

impl<'a> Rows<'a> {
    /// Number of rows.
    pub fn count(&self) -> usize {
        self.data.len() / self.size
    }

    /// Row `i`.
    #[inline]
    pub fn get(&self, i: usize) -> &'a [u8] {
        &self.data[i * self.size..(i + 1) * self.size]
    }
}

/// Depth of a tree, in edges from its root.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Depth {
    /// Mean over the objects.
    pub mean: f64,
    /// The deepest object.
    pub max: usize,
}

/// An index of rows. Batches are ranges of row numbers of the set it was made for (`insert`) or of any set of rows of
/// the same length (`find`, `remove`).
pub trait Peer: Send + Sync {
    /// Inserts or finds the rows of `range`; returns how many were new.
    fn insert(&self, range: std::ops::Range<usize>) -> usize;
    /// Returns how many of the rows of `other` in `range` are there.
    fn find(&self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize;
    /// Takes out the rows of `range`; returns how many were there, or `None` if this baseline cannot.
    fn remove(&self, range: std::ops::Range<usize>) -> Option<usize>;
    /// Whether many threads may call it at once without a lock around it.
    fn concurrent(&self) -> bool {
        true
    }
    /// Bytes of index allocated, where the baseline knows.
    fn bytes(&self) -> Option<usize> {
        None
    }
    /// The depth, of a tree.
    fn depth(&self) -> Option<Depth> {
        None
    }
}

/// What a single-threaded baseline does.
pub(crate) trait Single: Send {
    fn insert(&mut self, range: std::ops::Range<usize>) -> usize;
    fn find(&mut self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize;
    fn remove(&mut self, range: std::ops::Range<usize>) -> Option<usize>;
    fn bytes(&self) -> Option<usize>;
    fn depth(&self) -> Option<Depth>;
}

/// A single-threaded baseline in a mutex, taken once a batch.
///
/// The flag says whether that is how it is measured with many threads.
pub(crate) struct Locked<T>(pub(crate) Mutex<T>, pub(crate) bool);

impl<T: Single> Locked<T> {
    fn get(&self) -> std::sync::MutexGuard<'_, T> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T: Single> Peer for Locked<T> {
    fn insert(&self, range: std::ops::Range<usize>) -> usize {
        self.get().insert(range)
    }
    fn find(&self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize {
        self.get().find(other, range)
    }
    fn remove(&self, range: std::ops::Range<usize>) -> Option<usize> {
        self.get().remove(range)
    }
    fn concurrent(&self) -> bool {
        self.1
    }
    fn bytes(&self) -> Option<usize> {
        self.get().bytes()
    }
    fn depth(&self) -> Option<Depth> {
        self.get().depth()
    }
}

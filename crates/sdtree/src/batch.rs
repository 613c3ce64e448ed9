//! Many objects at a time, and how many of them are worked on under one pin.

/// Objects worked on under one pin; then the thread leaves, so that what was removed becomes free.
pub(crate) const PIN_SCOPE: usize = 4096;

/// Splits `0..n` into ranges worked on under one pin each.
pub(crate) fn pin_scopes(n: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..n)
        .step_by(PIN_SCOPE)
        .map(move |start| start..n.min(start + PIN_SCOPE))
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

impl std::fmt::Debug for RowBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowBatch")
            .field("size", &self.size)
            .field("rows", &self.len())
            .finish_non_exhaustive()
    }
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

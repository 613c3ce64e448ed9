//! The SD tree as a baseline.

use crate::peer::{Depth, Peer, Rows};
use sdtree::{Order, RowBatch, SdTree, Store};

/// The SD tree.
pub(crate) struct Sd<'a, O: Order> {
    rows: Rows<'a>,
    tree: SdTree<sdtree::Rows<'a>, O>,
}

impl<'a, O: Order> Sd<'a, O> {
    pub(crate) fn new(rows: Rows<'a>, order: O) -> Self {
        let store = sdtree::Rows::new(rows.data, rows.size);
        Sd {
            rows,
            tree: SdTree::with(store, order, rows.count()),
        }
    }
}

fn part<'a>(rows: Rows<'a>, range: &std::ops::Range<usize>) -> RowBatch<'a> {
    RowBatch::new(
        &rows.data[range.start * rows.size..range.end * rows.size],
        rows.size,
    )
}

impl<O: Order> Peer for Sd<'_, O>
where
    for<'x> sdtree::Rows<'x>: Store,
{
    fn insert(&self, range: std::ops::Range<usize>) -> usize {
        let done = self.tree.intern(&part(self.rows, &range));
        let new = done.expect("fewer than 2^32 rows").new;
        new.iter().filter(|&&n| n).count()
    }
    fn find(&self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize {
        self.tree
            .find(&part(other, &range))
            .iter()
            .flatten()
            .count()
    }
    fn remove(&self, range: std::ops::Range<usize>) -> Option<usize> {
        let removed = self.tree.remove(&part(self.rows, &range));
        Some(removed.iter().filter(|&&r| r).count())
    }
    fn bytes(&self) -> Option<usize> {
        Some(self.tree.stats().index_bytes)
    }
    fn depth(&self) -> Option<Depth> {
        let shape = self.tree.stats().shape;
        Some(Depth {
            mean: shape.depth_mean,
            max: shape.depth_max,
        })
    }
}

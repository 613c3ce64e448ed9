//! What all contenders have in common.

use crate::{floor, maps, rbtree, table};
use sdtree::{Mixed, Order, Raw, RowBatch, SampledMixed, SdTree, Store};
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
    /// Takes out the rows of `range`; returns how many were there, or `None` if this contender cannot.
    fn remove(&self, range: std::ops::Range<usize>) -> Option<usize>;
    /// Whether many threads may call it at once without a lock around it.
    fn concurrent(&self) -> bool {
        true
    }
    /// Bytes of index allocated, where the contender knows.
    fn bytes(&self) -> Option<usize> {
        None
    }
    /// The depth, of a tree.
    fn depth(&self) -> Option<Depth> {
        None
    }
}

/// The names that [`make`] knows, in the order of a report.
pub const NAMES: [&str; 11] = [
    "sdtree",
    "sdtree_mixed",
    "sdtree_raw",
    "xxh3_table",
    "xxh3_table_scalar",
    "rbtree",
    "dashmap",
    "papaya",
    "mutex_table",
    "read_once",
    "read_apart",
];

/// Those of [`NAMES`] that index nothing and find nothing, but say what the machine can do.
pub const FLOORS: [&str; 2] = ["read_once", "read_apart"];

/// Makes the contender `name` for `rows`, with room for all of them; `None` if there is none of that name.
pub fn make<'a>(name: &str, rows: Rows<'a>) -> Option<Box<dyn Peer + 'a>> {
    /// A fixed seed: a benchmark that can be run again.
    const SEED: &[u8] = b"contenders";
    let n = rows.count();
    Some(match name {
        "sdtree" => Box::new(Sd::new(rows, SampledMixed::new(SEED))),
        "sdtree_mixed" => Box::new(Sd::new(rows, Mixed::new(SEED))),
        "sdtree_raw" => Box::new(Sd::new(rows, Raw)),
        "xxh3_table" => Box::new(Locked(Mutex::new(table::Table::new(rows, n, true)), false)),
        "xxh3_table_scalar" => {
            Box::new(Locked(Mutex::new(table::Table::new(rows, n, false)), false))
        }
        "mutex_table" => Box::new(Locked(Mutex::new(table::Table::new(rows, n, true)), true)),
        "read_once" => Box::new(floor::ReadOnce(rows)),
        "read_apart" => Box::new(floor::ReadApart(rows)),
        "rbtree" => Box::new(Locked(Mutex::new(rbtree::RbTree::new(rows)), false)),
        "dashmap" => Box::new(maps::Dash::new(rows, n)),
        "papaya" => Box::new(maps::Papaya::new(rows, n)),
        _ => return None,
    })
}

/// Makes all contenders that can work on `threads` threads.
pub fn all(threads: usize) -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().filter(move |name| {
        let single = ["xxh3_table", "xxh3_table_scalar", "rbtree"].contains(name);
        if threads == 1 {
            *name != "mutex_table"
        } else {
            !single
        }
    })
}

/// What a single-threaded contender does.
pub(crate) trait Single: Send {
    fn insert(&mut self, range: std::ops::Range<usize>) -> usize;
    fn find(&mut self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize;
    fn remove(&mut self, range: std::ops::Range<usize>) -> Option<usize>;
    fn bytes(&self) -> Option<usize>;
    fn depth(&self) -> Option<Depth>;
}

/// A single-threaded contender in a mutex, taken once a batch.
struct Locked<T>(Mutex<T>, bool);

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

/// The SD tree.
struct Sd<'a, O: Order> {
    rows: Rows<'a>,
    tree: SdTree<sdtree::Rows<'a>, O>,
}

impl<'a, O: Order> Sd<'a, O> {
    fn new(rows: Rows<'a>, order: O) -> Self {
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

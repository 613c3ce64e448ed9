//! What calls on a tree return.

use crate::trie::survey::Shape;

/// What became of a batch that was interned, object by object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interned {
    /// The id of each object.
    pub ids: Vec<u32>,
    /// Whether it is new; of equal objects of one batch the first is.
    pub new: Vec<bool>,
}

impl Interned {
    pub(crate) fn with_capacity(n: usize) -> Self {
        Interned {
            ids: Vec::with_capacity(n),
            new: Vec::with_capacity(n),
        }
    }

    pub(crate) fn push(&mut self, id: u32, new: bool) {
        self.ids.push(id);
        self.new.push(new);
    }
}

/// Figures of a tree; see [`KeyTree::stats`](crate::KeyTree::stats) and [`SdTree::stats`](crate::SdTree::stats).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    /// Objects in the tree.
    pub objects: usize,
    /// All ids ever given are below this.
    pub id_bound: usize,
    /// Bytes of the index: everything that was allocated, less the objects themselves.
    pub index_bytes: usize,
    /// Bytes allocated for the objects themselves, when the tree keeps copies.
    pub object_bytes: usize,
    /// The shape of the tree.
    pub shape: Shape,
}

//! Walks over the whole tree: its objects, its shape.

use super::{Pin, Trie, FIRST, SECOND};
use crate::class;
use crate::edge::{self, FLAG, MOVED, UNINIT};
use crate::primitive::Ordering;

/// What the shape of a tree is like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// Objects seen.
    pub objects: usize,
    /// Mean number of edges from the root table (included) to an object, those to its class among them.
    pub depth_mean: f64,
    /// Largest number of such edges; an upper bound of it where there are classes.
    pub depth_max: usize,
    /// Key bits that the larger root table resolves in one step.
    pub table_bits: u32,
}

impl Trie {
    /// Calls `f` with each leaf edge below a root and its depth, in the order of the keys.
    fn leaves<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, root: usize, mut f: impl FnMut(u64, usize)) {
        if self.tables[root].load(Ordering::Acquire).is_null() {
            return;
        }
        let mut stack = Vec::new();
        // The first prefix not walked yet; the table may be doubled on the way, the steps then become smaller.
        let mut prefix = Some(0u64);
        while let Some(at) = prefix {
            let table = self.table(root);
            let word = match table.place(at).load(Ordering::Acquire) {
                UNINIT => {
                    self.migrate(pin, table, table.number(at) >> 1);
                    continue;
                }
                MOVED => continue,
                word => word,
            };
            stack.push((word, 1));
            while let Some((word, depth)) = stack.pop() {
                if !edge::is_leaf(word) {
                    let node = self.node(word);
                    for side in [1, 0] {
                        stack.push((node.0[side].load(Ordering::Acquire), depth + 1));
                    }
                } else if !edge::is_empty(word) && word & FLAG == 0 {
                    f(word, depth);
                }
            }
            prefix = at.checked_add(1 << (64 - table.bits));
        }
    }

    /// Calls `f` with each object's id, in the order of the keys. An object that is in the tree all the while is seen
    /// once; what is inserted or removed meanwhile may or may not be seen.
    pub(crate) fn walk<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, mut f: impl FnMut(u32)) {
        self.leaves(pin, FIRST, |word, _| {
            let mut id = edge::index(word);
            if edge::is_class(word) {
                id = class::first(self.node(word).0[0].load(Ordering::Acquire));
            }
            if id != edge::NONE {
                f(id);
            }
        });
        self.leaves(pin, SECOND, |word, _| f(edge::index(word)));
    }

    pub(crate) fn shape<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>) -> Shape {
        let mut shape = Shape::default();
        let (mut total, mut to_classes) = (0usize, 0usize);
        self.leaves(pin, FIRST, |word, depth| {
            let mut there = 1;
            if edge::is_class(word) {
                let state = self.node(word).0[0].load(Ordering::Acquire);
                there = (class::first(state) != edge::NONE) as usize;
                // The edges that the members have in common; those below the second root are added there.
                total += class::members(state) as usize * depth;
                to_classes = to_classes.max(depth);
            }
            shape.objects += there;
            total += there * depth;
            shape.depth_max = shape.depth_max.max(depth);
        });
        self.leaves(pin, SECOND, |_, depth| {
            shape.objects += 1;
            total += depth;
            shape.depth_max = shape.depth_max.max(to_classes + depth);
        });
        if shape.objects > 0 {
            shape.depth_mean = total as f64 / shape.objects as f64;
        }
        for table in &self.tables {
            // SAFETY: tables are freed by epoch, and the caller is pinned.
            let bits = unsafe { table.load(Ordering::Acquire).as_ref() }.map_or(0, |t| t.bits);
            shape.table_bits = shape.table_bits.max(bits);
        }
        shape
    }
}

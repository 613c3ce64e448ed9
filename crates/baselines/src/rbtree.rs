//! A red-black tree of rows that compares with `memcmp` at each level, as the kernel's same-page merging does.

use crate::peer::{Depth, Rows, Single};
use std::cmp::Ordering;

const NIL: u32 = u32::MAX;

/// As small as the kernel's: three links and a colour; the row is known by the node's number.
#[derive(Clone, Copy)]
struct Node {
    child: [u32; 2],
    parent: u32,
    row: u32,
    red: bool,
}

pub(crate) struct RbTree<'a> {
    rows: Rows<'a>,
    nodes: Vec<Node>,
    root: u32,
}

impl<'a> RbTree<'a> {
    pub(crate) fn new(rows: Rows<'a>) -> Self {
        RbTree {
            rows,
            nodes: Vec::with_capacity(rows.count()),
            root: NIL,
        }
    }

    #[inline]
    fn search(&self, row: &[u8]) -> (u32, Ordering) {
        let (mut at, mut last) = (self.root, (NIL, Ordering::Equal));
        while at != NIL {
            let node = &self.nodes[at as usize];
            let order = row.cmp(self.rows.get(node.row as usize));
            last = (at, order);
            at = match order {
                Ordering::Equal => return last,
                Ordering::Less => node.child[0],
                Ordering::Greater => node.child[1],
            };
        }
        last
    }

    fn red(&self, n: u32) -> bool {
        n != NIL && self.nodes[n as usize].red
    }

    fn side(&self, n: u32) -> usize {
        let parent = self.nodes[n as usize].parent;
        (self.nodes[parent as usize].child[1] == n) as usize
    }

    /// Turns `n` down to `side`; its other child comes up.
    fn rotate(&mut self, n: u32, side: usize) {
        let up = self.nodes[n as usize].child[1 - side];
        let inner = self.nodes[up as usize].child[side];
        let parent = self.nodes[n as usize].parent;
        self.nodes[n as usize].child[1 - side] = inner;
        if inner != NIL {
            self.nodes[inner as usize].parent = n;
        }
        self.nodes[up as usize].parent = parent;
        if parent == NIL {
            self.root = up;
        } else {
            let s = self.side(n);
            self.nodes[parent as usize].child[s] = up;
        }
        self.nodes[up as usize].child[side] = n;
        self.nodes[n as usize].parent = up;
    }

    fn add(&mut self, row: u32, parent: u32, order: Ordering) {
        let new = self.nodes.len() as u32;
        self.nodes.push(Node {
            child: [NIL; 2],
            parent,
            row,
            red: true,
        });
        if parent == NIL {
            self.root = new;
        } else {
            self.nodes[parent as usize].child[(order == Ordering::Greater) as usize] = new;
        }
        let mut n = new;
        while self.red(self.nodes[n as usize].parent) {
            let parent = self.nodes[n as usize].parent;
            let grand = self.nodes[parent as usize].parent;
            let side = self.side(parent);
            let uncle = self.nodes[grand as usize].child[1 - side];
            if self.red(uncle) {
                self.nodes[parent as usize].red = false;
                self.nodes[uncle as usize].red = false;
                self.nodes[grand as usize].red = true;
                n = grand;
                continue;
            }
            if self.side(n) != side {
                self.rotate(parent, side);
                n = parent;
            }
            let parent = self.nodes[n as usize].parent;
            self.nodes[parent as usize].red = false;
            self.nodes[grand as usize].red = true;
            self.rotate(grand, 1 - side);
        }
        let root = self.root as usize;
        self.nodes[root].red = false;
    }
}

impl Single for RbTree<'_> {
    fn insert(&mut self, range: std::ops::Range<usize>) -> usize {
        let mut new = 0;
        for i in range {
            let (at, order) = self.search(self.rows.get(i));
            if at == NIL || order != Ordering::Equal {
                self.add(i as u32, at, order);
                new += 1;
            }
        }
        new
    }

    fn find(&mut self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize {
        range
            .filter(|&i| {
                let (at, order) = self.search(other.get(i));
                at != NIL && order == Ordering::Equal
            })
            .count()
    }

    fn remove(&mut self, _range: std::ops::Range<usize>) -> Option<usize> {
        None
    }

    fn bytes(&self) -> Option<usize> {
        Some(self.nodes.capacity() * std::mem::size_of::<Node>())
    }

    fn depth(&self) -> Option<Depth> {
        let (mut total, mut max) = (0usize, 0);
        let mut stack = vec![(self.root, 1usize)];
        while let Some((n, depth)) = stack.pop() {
            if n != NIL {
                total += depth;
                max = max.max(depth);
                stack.extend(self.nodes[n as usize].child.map(|c| (c, depth + 1)));
            }
        }
        Some(Depth {
            mean: total as f64 / self.nodes.len().max(1) as f64,
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_a_red_black_tree() {
        let n = 5000u32;
        let data: Vec<u8> = (0..n).flat_map(|i| (i * 7919 % n).to_be_bytes()).collect();
        let mut tree = RbTree::new(Rows {
            data: &data,
            size: 4,
        });
        assert_eq!(tree.insert(0..n as usize), n as usize);
        assert_eq!(tree.insert(0..n as usize), 0);
        // Every path has as many black nodes, no red node a red child, and the order is that of the rows.
        fn check(t: &RbTree<'_>, n: u32, out: &mut Vec<u32>) -> usize {
            if n == NIL {
                return 1;
            }
            let node = t.nodes[n as usize];
            assert!(!node.red || !node.child.iter().any(|&c| t.red(c)));
            let left = check(t, node.child[0], out);
            out.push(node.row);
            assert_eq!(left, check(t, node.child[1], out));
            left + !node.red as usize
        }
        let mut rows = Vec::new();
        check(&tree, tree.root, &mut rows);
        assert!(rows
            .windows(2)
            .all(|w| tree.rows.get(w[0] as usize) < tree.rows.get(w[1] as usize)));
        assert!(tree.depth().is_some_and(|d| d.max <= 2 * 13));
    }
}

//! A red-black tree whose nodes name their owner and hold no key; the order is the caller's.
//!
//! Cormen, Leiserson, Rivest, Stein: *Introduction to Algorithms*, chapter 13, with a sentinel. Nodes live in one
//! vector; a node's *generation*, the number of the change that put it in the tree, tells it from a later one in the
//! same place, so that a gap remembered from an earlier descent is known to be stale.

use std::cmp::Ordering;

/// A node's number. 0 is the sentinel: the leaf everywhere, and the parent of the root.
pub type Node = u32;

const NIL: Node = 0;

struct Cell {
    child: [Node; 2],
    parent: Node,
    owner: u32,
    generation: u32,
    red: bool,
}

/// The gap between two neighbours, found by a descent that met no equal.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    before: (Node, u32),
    after: (Node, u32),
    parent: Node,
    side: usize,
    version: u64,
}

/// What a descent found.
pub enum Found {
    /// The node whose owner is equal.
    Equal(Node),
    /// No such owner; the place where it would go.
    Absent(Gap),
}

/// The tree.
pub struct RbTree {
    cells: Vec<Cell>,
    free: Vec<Node>,
    root: Node,
    version: u64,
}

impl RbTree {
    /// An empty tree.
    pub fn new() -> Self {
        let nil = Cell {
            child: [NIL; 2],
            parent: NIL,
            owner: u32::MAX,
            generation: 0,
            red: false,
        };
        RbTree {
            cells: vec![nil],
            free: Vec::new(),
            root: NIL,
            version: 0,
        }
    }

    /// Removes every node at once, keeping the memory; every gap found before is stale.
    pub fn clear(&mut self) {
        self.cells.truncate(1);
        self.free.clear();
        self.root = NIL;
        self.version += 1;
    }

    /// The number of nodes.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.cells.len() - 1 - self.free.len()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.cells.capacity() * size_of::<Cell>() + self.free.capacity() * size_of::<Node>()
    }

    /// The owner of a node.
    pub fn owner(&self, node: Node) -> u32 {
        self.cells[node as usize].owner
    }

    /// Descends by `order`, which says how the object searched for compares with an owner.
    pub fn search(&self, mut order: impl FnMut(u32) -> Ordering) -> Found {
        let (mut at, mut parent, mut side) = (self.root, NIL, 0);
        let mut bounds = [NIL; 2];
        while at != NIL {
            parent = at;
            side = match order(self.cells[at as usize].owner) {
                Ordering::Equal => return Found::Equal(at),
                Ordering::Less => 0,
                Ordering::Greater => 1,
            };
            // Going left, this node comes after the place; going right, before it.
            bounds[1 - side] = at;
            at = self.cells[at as usize].child[side];
        }
        let with_generation = |node: Node| (node, self.cells[node as usize].generation);
        Found::Absent(Gap {
            before: with_generation(bounds[0]),
            after: with_generation(bounds[1]),
            parent,
            side,
            version: self.version,
        })
    }

    /// Inserts an owner into a gap; `None` if the gap is no more: descend again.
    pub fn insert(&mut self, gap: &Gap, owner: u32) -> Option<Node> {
        let (parent, side) = if gap.version == self.version {
            (gap.parent, gap.side)
        } else {
            self.place_of(gap)?
        };
        self.version += 1;
        let cell = Cell {
            child: [NIL; 2],
            parent,
            owner,
            generation: self.version as u32,
            red: true,
        };
        let node = match self.free.pop() {
            Some(node) => {
                self.cells[node as usize] = cell;
                node
            }
            None => {
                self.cells.push(cell);
                Node::try_from(self.cells.len() - 1).expect("fewer than 2^32 nodes")
            }
        };
        if parent == NIL {
            self.root = node;
        } else {
            self.cells[parent as usize].child[side] = node;
        }
        self.repair_insert(node);
        Some(node)
    }

    /// Where the gap is now: it stands while its two neighbours are in the tree, side by side.
    fn place_of(&self, gap: &Gap) -> Option<(Node, usize)> {
        let (before, after) = (gap.before.0, gap.after.0);
        let alive = |(node, generation): (Node, u32)| {
            (node as usize) < self.cells.len() && self.cells[node as usize].generation == generation
        };
        if !alive(gap.before) || !alive(gap.after) {
            return None;
        }
        let next = if before == NIL {
            self.end(self.root, 0)
        } else {
            self.next(before)
        };
        if next != after {
            return None;
        }
        if before != NIL && self.cells[before as usize].child[1] == NIL {
            Some((before, 1))
        } else if after != NIL {
            debug_assert_eq!(self.cells[after as usize].child[0], NIL);
            Some((after, 0))
        } else {
            debug_assert_eq!(self.root, NIL);
            Some((NIL, 0))
        }
    }

    /// The outermost node of a subtree on one side.
    fn end(&self, mut node: Node, side: usize) -> Node {
        while node != NIL && self.cells[node as usize].child[side] != NIL {
            node = self.cells[node as usize].child[side];
        }
        node
    }

    fn next(&self, node: Node) -> Node {
        let right = self.cells[node as usize].child[1];
        if right != NIL {
            return self.end(right, 0);
        }
        let (mut below, mut at) = (node, self.cells[node as usize].parent);
        while at != NIL && self.cells[at as usize].child[1] == below {
            below = at;
            at = self.cells[at as usize].parent;
        }
        at
    }

    /// Turns `node` down to `side`; its child of the other side takes its place.
    fn rotate(&mut self, node: Node, side: usize) {
        let up = self.cells[node as usize].child[1 - side];
        let inner = self.cells[up as usize].child[side];
        self.cells[node as usize].child[1 - side] = inner;
        if inner != NIL {
            self.cells[inner as usize].parent = node;
        }
        self.replace(node, up);
        self.cells[up as usize].child[side] = node;
        self.cells[node as usize].parent = up;
    }

    /// Hangs `new` where `old` hangs. The sentinel takes the parent too: the repair after a removal climbs from it.
    fn replace(&mut self, old: Node, new: Node) {
        let parent = self.cells[old as usize].parent;
        if parent == NIL {
            self.root = new;
        } else {
            let side = usize::from(self.cells[parent as usize].child[1] == old);
            self.cells[parent as usize].child[side] = new;
        }
        self.cells[new as usize].parent = parent;
    }

    fn red(&self, node: Node) -> bool {
        self.cells[node as usize].red
    }

    fn repair_insert(&mut self, mut node: Node) {
        loop {
            let parent = self.cells[node as usize].parent;
            if parent == NIL || !self.red(parent) {
                break;
            }
            let grand = self.cells[parent as usize].parent;
            let side = usize::from(self.cells[grand as usize].child[1] == parent);
            let uncle = self.cells[grand as usize].child[1 - side];
            if uncle != NIL && self.red(uncle) {
                self.cells[parent as usize].red = false;
                self.cells[uncle as usize].red = false;
                self.cells[grand as usize].red = true;
                node = grand;
                continue;
            }
            if self.cells[parent as usize].child[1 - side] == node {
                node = parent;
                self.rotate(node, side);
            }
            let parent = self.cells[node as usize].parent;
            self.cells[parent as usize].red = false;
            self.cells[grand as usize].red = true;
            self.rotate(grand, 1 - side);
        }
        let root = self.root;
        self.cells[root as usize].red = false;
    }

    /// Takes a node out of the tree.
    pub fn remove(&mut self, node: Node) {
        let [left, right] = self.cells[node as usize].child;
        let mut black_lost = !self.red(node);
        let orphan;
        if left == NIL {
            orphan = right;
            self.replace(node, right);
        } else if right == NIL {
            orphan = left;
            self.replace(node, left);
        } else {
            let successor = self.end(right, 0);
            black_lost = !self.red(successor);
            orphan = self.cells[successor as usize].child[1];
            if self.cells[successor as usize].parent == node {
                self.cells[orphan as usize].parent = successor;
            } else {
                self.replace(successor, orphan);
                self.cells[successor as usize].child[1] = right;
                self.cells[right as usize].parent = successor;
            }
            self.replace(node, successor);
            self.cells[successor as usize].child[0] = left;
            self.cells[left as usize].parent = successor;
            self.cells[successor as usize].red = self.red(node);
        }
        if black_lost {
            self.repair_remove(orphan);
        }
        self.cells[NIL as usize].parent = NIL;
        self.version += 1;
        self.cells[node as usize].generation = self.version as u32;
        self.free.push(node);
    }

    fn repair_remove(&mut self, mut node: Node) {
        while node != self.root && !self.red(node) {
            let parent = self.cells[node as usize].parent;
            let side = usize::from(self.cells[parent as usize].child[1] == node);
            let mut sibling = self.cells[parent as usize].child[1 - side];
            if self.red(sibling) {
                self.cells[sibling as usize].red = false;
                self.cells[parent as usize].red = true;
                self.rotate(parent, side);
                sibling = self.cells[parent as usize].child[1 - side];
            }
            let nephews = self.cells[sibling as usize].child;
            if !self.red(nephews[0]) && !self.red(nephews[1]) {
                self.cells[sibling as usize].red = true;
                node = parent;
                continue;
            }
            if !self.red(nephews[1 - side]) {
                self.cells[nephews[side] as usize].red = false;
                self.cells[sibling as usize].red = true;
                self.rotate(sibling, 1 - side);
                sibling = self.cells[parent as usize].child[1 - side];
            }
            self.cells[sibling as usize].red = self.red(parent);
            self.cells[parent as usize].red = false;
            let far = self.cells[sibling as usize].child[1 - side];
            self.cells[far as usize].red = false;
            self.rotate(parent, side);
            node = self.root;
        }
        self.cells[node as usize].red = false;
    }

    /// Checks order, colours and links; the longest path in nodes.
    #[cfg(test)]
    fn check(&self) -> usize {
        fn walk(tree: &RbTree, node: Node, parent: Node, owners: &mut Vec<u32>) -> (usize, usize) {
            if node == NIL {
                return (1, 0);
            }
            let cell = &tree.cells[node as usize];
            assert_eq!(cell.parent, parent);
            assert!(
                !(cell.red && tree.red(parent)),
                "a red node has a red child"
            );
            let (black, depth) = walk(tree, cell.child[0], node, owners);
            owners.push(cell.owner);
            let (black_right, depth_right) = walk(tree, cell.child[1], node, owners);
            assert_eq!(black, black_right, "black heights differ");
            (black + usize::from(!cell.red), 1 + depth.max(depth_right))
        }
        let mut owners = Vec::new();
        let (_, depth) = walk(self, self.root, NIL, &mut owners);
        assert!(
            owners.windows(2).all(|w| w[0] < w[1]),
            "owners are out of order"
        );
        assert_eq!(owners.len(), self.len());
        depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn insert(tree: &mut RbTree, owner: u32) -> bool {
        match tree.search(|other| owner.cmp(&other)) {
            Found::Equal(_) => false,
            Found::Absent(gap) => tree.insert(&gap, owner).is_some(),
        }
    }

    proptest! {
        #[test]
        fn the_tree_holds_what_a_btree_set_holds_and_stays_balanced(
            steps in prop::collection::vec((any::<bool>(), 0u32..200), 1..600)
        ) {
            let (mut tree, mut set) = (RbTree::new(), BTreeSet::new());
            for (add, owner) in steps {
                if add {
                    prop_assert_eq!(insert(&mut tree, owner), set.insert(owner));
                } else if let Found::Equal(node) = tree.search(|other| owner.cmp(&other)) {
                    tree.remove(node);
                    prop_assert!(set.remove(&owner));
                } else {
                    prop_assert!(!set.contains(&owner));
                }
                prop_assert_eq!(tree.len(), set.len());
                let depth = tree.check();
                prop_assert!(depth as f64 <= 2.0 * ((set.len() + 1) as f64).log2());
            }
        }

        #[test]
        fn a_gap_found_before_other_changes_is_used_only_while_it_stands(
            before in prop::collection::btree_set(0u32..60, 0..40),
            changes in prop::collection::vec((any::<bool>(), 0u32..60), 0..12),
            owner in 0u32..60,
        ) {
            let mut tree = RbTree::new();
            for &o in &before {
                insert(&mut tree, o);
            }
            let Found::Absent(gap) = tree.search(|other| owner.cmp(&other)) else { return Ok(()); };
            for (add, o) in changes {
                if add {
                    insert(&mut tree, o);
                } else if let Found::Equal(node) = tree.search(|other| o.cmp(&other)) {
                    tree.remove(node);
                }
            }
            let there = matches!(tree.search(|other| owner.cmp(&other)), Found::Equal(_));
            let used = tree.insert(&gap, owner).is_some();
            prop_assert!(!(there && used), "an equal came between, and the gap was used");
            tree.check();
        }
    }
}

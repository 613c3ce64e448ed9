//! Points at which a test may suspend a thread: before and after each change of the tree. Outside of unit tests a
//! point is nothing.

#[cfg(not(all(test, not(loom))))]
#[inline(always)]
pub(crate) fn point() {}

#[cfg(all(test, not(loom)))]
pub(crate) use imp::point;

#[cfg(all(test, not(loom)))]
mod imp {
    use std::cell::{Cell, RefCell};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::Arc;

    /// Holds a thread from the point where it is frozen until it is let go.
    #[derive(Default)]
    pub(crate) struct Gate {
        frozen: AtomicBool,
        open: AtomicBool,
    }

    thread_local! {
        static LEFT: Cell<u32> = const { Cell::new(0) };
        static GATE: RefCell<Option<Arc<Gate>>> = const { RefCell::new(None) };
    }

    pub(crate) fn point() {
        let left = LEFT.get();
        if left == 0 {
            return;
        }
        LEFT.set(left - 1);
        if left == 1 {
            if let Some(gate) = GATE.with_borrow(Clone::clone) {
                gate.frozen.store(true, Ordering::SeqCst);
                while !gate.open.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            }
        }
    }

    impl Gate {
        /// The calling thread will be frozen at its `n`-th point from now (1 is the next).
        pub(crate) fn freeze_me_at(self: &Arc<Self>, n: u32) {
            GATE.set(Some(self.clone()));
            LEFT.set(n);
        }

        pub(crate) fn has_frozen(&self) -> bool {
            self.frozen.load(Ordering::SeqCst)
        }

        pub(crate) fn let_go(&self) {
            self.open.store(true, Ordering::SeqCst);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::imp::Gate;
    use crate::KeyTree;
    use std::collections::HashSet;
    use std::sync::Arc;

    fn one(f: impl FnOnce(&mut [bool])) -> bool {
        let mut result = [false];
        f(&mut result);
        result[0]
    }

    fn insert(tree: &KeyTree, key: u64) -> bool {
        one(|new| tree.intern(&[key], &mut [0], new).expect("room"))
    }

    fn remove(tree: &KeyTree, key: u64) -> bool {
        one(|gone| tree.remove(&[key], gone))
    }

    fn find(tree: &KeyTree, key: u64) -> bool {
        let mut id = [0];
        tree.find(&[key], &mut id);
        id[0] >= 0
    }

    /// The victim inserts and removes and is frozen at its n-th point, for each n; the others must finish all their
    /// work, on the same keys and on those beside them, and be right about it.
    #[test]
    fn a_thread_suspended_at_any_point_of_an_operation_blocks_nobody() {
        let mut frozen = 0;
        for grow in [false, true] {
            for n in 1..=60u32 {
                // 2,000 keys in 1,024 places make a trie below the table; 6,000 make it double under way.
                let universe = if grow { 6000u64 } else { 2000 };
                let tree = KeyTree::new(0, &n.to_le_bytes());
                for key in 0..2000 {
                    insert(&tree, key);
                }
                let gate = Arc::new(Gate::default());
                let (done_by_victim, rounds) = std::thread::scope(|s| {
                    let victim = s.spawn(|| {
                        gate.freeze_me_at(n);
                        let mut done = Vec::new();
                        for i in 0..40u64 {
                            let key = i * 37 % 2000;
                            done.push((key, -(remove(&tree, key) as i32)));
                            done.push((key, insert(&tree, key) as i32));
                        }
                        done
                    });
                    while !gate.has_frozen() && !victim.is_finished() {
                        std::thread::yield_now();
                    }
                    frozen += gate.has_frozen() as u32;
                    // Single-handed from here on: the one key that the victim is at may be there or not; after the
                    // first operation on it that is known, too.
                    let mut model: HashSet<u64> =
                        (0..universe).filter(|&k| find(&tree, k)).collect();
                    let mut balance = vec![0i32; universe as usize];
                    for round in 0..3 {
                        for key in 0..universe {
                            if round % 2 == 1 {
                                let gone = remove(&tree, key);
                                assert_eq!(gone, model.remove(&key), "remove {key}, point {n}");
                                balance[key as usize] -= gone as i32;
                            } else {
                                let new = insert(&tree, key);
                                assert_eq!(new, model.insert(key), "insert {key}, point {n}");
                                balance[key as usize] += new as i32;
                            }
                            assert_eq!(find(&tree, key), model.contains(&key));
                        }
                    }
                    gate.let_go();
                    (victim.join().expect("no panic"), balance)
                });
                let mut balance = rounds;
                balance.iter_mut().take(2000).for_each(|b| *b += 1);
                for (key, change) in done_by_victim {
                    balance[key as usize] += change;
                }
                for key in 0..universe {
                    assert_eq!(
                        balance[key as usize],
                        find(&tree, key) as i32,
                        "key {key}, point {n}, grow {grow}"
                    );
                }
                assert_eq!(tree.items().len(), tree.len());
            }
        }
        assert!(frozen >= 100, "the points are reached: {frozen} of 120");
    }
}

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

    /// Holds a thread from the point where it is frozen until it is released.
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

        pub(crate) fn release(&self) {
            self.open.store(true, Ordering::SeqCst);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::imp::Gate;
    use crate::{Fixed, KeyTree, Order, RowBatch, SdTree};
    use std::collections::HashSet;
    use std::sync::Arc;

    /// A set of keys, of whatever kind.
    trait Set: Sync {
        fn insert(&self, key: u64) -> bool;
        fn remove(&self, key: u64) -> bool;
        fn find(&self, key: u64) -> bool;
        fn count(&self) -> (usize, usize);
    }

    impl Set for KeyTree {
        fn insert(&self, key: u64) -> bool {
            self.intern(&[key]).expect("room").new[0]
        }
        fn remove(&self, key: u64) -> bool {
            KeyTree::remove(self, &[key])[0]
        }
        fn find(&self, key: u64) -> bool {
            KeyTree::find(self, &[key])[0].is_some()
        }
        fn count(&self) -> (usize, usize) {
            (self.items().len(), self.len())
        }
    }

    /// Eight keys in a row are a class.
    struct Eights;

    impl Eights {
        fn spread(bytes: &[u8], of: u64) -> u64 {
            let key = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            (key / of).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }
    }

    // SAFETY: functions of the bytes alone.
    unsafe impl Order for Eights {
        fn first(&self, bytes: &[u8]) -> u64 {
            Eights::spread(bytes, 8)
        }
        fn whole(&self, bytes: &[u8]) -> u64 {
            Eights::spread(bytes, 1)
        }
        fn lines(&self, _len: usize, _touch: impl FnMut(usize)) {}
    }

    impl Set for SdTree<Fixed, Eights> {
        fn insert(&self, key: u64) -> bool {
            let key = key.to_le_bytes();
            self.intern(&RowBatch::new(&key, 8)).expect("room").new[0]
        }
        fn remove(&self, key: u64) -> bool {
            let key = key.to_le_bytes();
            SdTree::remove(self, &RowBatch::new(&key, 8))[0]
        }
        fn find(&self, key: u64) -> bool {
            let key = key.to_le_bytes();
            SdTree::find(self, &RowBatch::new(&key, 8))[0].is_some()
        }
        fn count(&self) -> (usize, usize) {
            (self.ids().len(), self.len())
        }
    }

    #[test]
    fn a_thread_suspended_at_any_point_of_an_operation_blocks_nobody() {
        let frozen = suspended(|n| KeyTree::new(0, &n.to_le_bytes()));
        assert!(frozen >= 100, "the points are reached: {frozen} of 120");
    }

    #[test]
    fn a_thread_suspended_at_any_point_of_an_operation_on_a_class_blocks_nobody() {
        let frozen = suspended(|_| SdTree::with(Fixed::new(8), Eights, 0));
        assert!(frozen >= 100, "the points are reached: {frozen} of 120");
    }

    /// The victim inserts and removes and is frozen at its n-th point, for each n; the others must finish all their
    /// work, on the same keys and on those beside them, and be right about it. Returns how often it was frozen.
    fn suspended<T: Set>(make: impl Fn(u32) -> T) -> u32 {
        let mut frozen = 0;
        for grow in [false, true] {
            for n in 1..=60u32 {
                // 2,000 keys in 1,024 places make a trie below the table; 6,000 make it double under way.
                let universe = if grow { 6000u64 } else { 2000 };
                let tree = make(n);
                for key in 0..2000 {
                    tree.insert(key);
                }
                let gate = Arc::new(Gate::default());
                let (done_by_victim, rounds) = std::thread::scope(|s| {
                    let victim = s.spawn(|| {
                        gate.freeze_me_at(n);
                        let mut done = Vec::new();
                        for i in 0..40u64 {
                            // All of a class, one after the other, then another one.
                            let key = (i / 8 * 37 * 8 + i % 8) % 2000;
                            done.push((key, -(tree.remove(key) as i32)));
                            if i % 3 != 0 {
                                done.push((key, tree.insert(key) as i32));
                            }
                        }
                        done
                    });
                    while !gate.has_frozen() && !victim.is_finished() {
                        std::thread::yield_now();
                    }
                    frozen += gate.has_frozen() as u32;
                    // Single-handed from here on: the one key that the victim is at may be there or not; after the
                    // first operation on it that is known, too.
                    let mut model: HashSet<u64> = (0..universe).filter(|&k| tree.find(k)).collect();
                    let mut balance = vec![0i32; universe as usize];
                    for round in 0..3 {
                        for key in 0..universe {
                            if round % 2 == 1 {
                                let gone = tree.remove(key);
                                assert_eq!(gone, model.remove(&key), "remove {key}, point {n}");
                                balance[key as usize] -= gone as i32;
                            } else {
                                let new = tree.insert(key);
                                assert_eq!(new, model.insert(key), "insert {key}, point {n}");
                                balance[key as usize] += new as i32;
                            }
                            assert_eq!(tree.find(key), model.contains(&key));
                        }
                    }
                    gate.release();
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
                        tree.find(key) as i32,
                        "key {key}, point {n}, grow {grow}"
                    );
                }
                let (listed, counted) = tree.count();
                assert_eq!(listed, counted);
            }
        }
        frozen
    }
}

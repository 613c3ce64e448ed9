//! Histories of real threads, recorded and checked: every operation must seem to happen at one instant between its
//! call and its return (Herlihy and Wing). A set is linearizable if it is so for each key alone.
#![cfg(not(loom))]

use sdtree::{Fixed, KeyTree, Order, RowBatch, SdTree};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Insert,
    Remove,
    Find,
}

#[derive(Clone, Copy, Debug)]
struct Event {
    kind: Kind,
    key: u64,
    /// Inserted, removed, found.
    result: bool,
    start: u64,
    end: u64,
}

/// Whether the events on one key can be put in an order that respects their times and explains their results, from
/// `there` at the beginning to `finally` at the end. Search with memory of the dead ends (Wing and Gong, Lowe).
fn linearizable(events: &[Event], there: bool, finally: bool) -> bool {
    fn go(
        events: &[Event],
        done: u64,
        there: bool,
        finally: bool,
        dead: &mut HashSet<(u64, bool)>,
    ) -> bool {
        if done == (1 << events.len()) - 1 {
            return there == finally;
        }
        if !dead.insert((done, there)) {
            return false;
        }
        let left = || (0..events.len()).filter(|i| done >> i & 1 == 0);
        let first_end = left().map(|i| events[i].end).min().unwrap_or(u64::MAX);
        for i in left().filter(|&i| events[i].start < first_end) {
            let (fits, next) = match events[i].kind {
                Kind::Insert => (events[i].result != there, true),
                Kind::Remove => (events[i].result == there, false),
                Kind::Find => (events[i].result == there, there),
            };
            if fits && go(events, done | 1 << i, next, finally, dead) {
                return true;
            }
        }
        false
    }
    assert!(events.len() < 64);
    go(events, 0, there, finally, &mut HashSet::new())
}

#[test]
fn the_checker_knows_good_histories_from_bad() {
    let event = |kind, result, start, end| Event {
        kind,
        key: 0,
        result,
        start,
        end,
    };
    let good = [
        event(Kind::Insert, true, 0, 5),
        event(Kind::Find, false, 1, 3),
        event(Kind::Find, true, 2, 4),
    ];
    assert!(linearizable(&good, false, true));
    let lost = [
        event(Kind::Insert, true, 0, 1),
        event(Kind::Find, false, 2, 3),
    ];
    assert!(!linearizable(&lost, false, true));
    let twice = [
        event(Kind::Insert, true, 0, 2),
        event(Kind::Insert, true, 1, 3),
    ];
    assert!(!linearizable(&twice, false, true));
    assert!(!linearizable(&[], false, true));
}

/// A set of keys, of whatever kind.
trait Set: Sync {
    fn insert(&self, key: u64) -> bool;
    fn remove(&self, key: u64) -> bool;
    fn find(&self, key: u64) -> bool;
    fn len(&self) -> usize;
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
    fn len(&self) -> usize {
        KeyTree::len(self)
    }
}

/// Keys that differ in the low two bits alone are a class; in it they are told apart at once, or by their bytes only.
struct Classes {
    seed: u64,
    collide: bool,
}

// SAFETY: functions of the bytes alone.
unsafe impl Order for Classes {
    fn first(&self, bytes: &[u8]) -> u64 {
        let key = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        ((key / 4) ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn whole(&self, bytes: &[u8]) -> u64 {
        let key = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        if self.collide {
            return 7;
        }
        (key ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn lines(&self, _len: usize, _touch: impl FnMut(usize)) {}
}

impl Set for SdTree<Fixed, Classes> {
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
    fn len(&self) -> usize {
        SdTree::len(self)
    }
}

#[test]
fn recorded_histories_of_three_threads_are_linearizable() {
    histories(|seed| KeyTree::new(0, &seed.to_le_bytes()));
}

#[test]
fn recorded_histories_in_classes_that_come_and_go_are_linearizable() {
    for collide in [false, true] {
        histories(|seed| SdTree::with(Fixed::new(8), Classes { seed, collide }, 0));
    }
}

fn histories<T: Set>(make: impl Fn(u64) -> T) {
    let seed: u64 = std::env::var("PAGEONE_SEED")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(20261122);
    let rounds: u64 = std::env::var("PAGEONE_ROUNDS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(400);
    println!("seed {seed}");
    const KEYS: u64 = 4;
    let clock = AtomicU64::new(0);
    for round in 0..rounds {
        // Some keys beside them, so that there are nodes to be spliced; half of the rounds end in doubling the table.
        let tree = make(seed + round);
        let others = KEYS..KEYS + if round % 2 == 0 { 3000 } else { 2040 };
        let count = others.clone().filter(|&key| tree.insert(key)).count();
        let histories: Vec<Vec<Event>> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..3u64)
                .map(|t| {
                    let (tree, clock) = (&tree, &clock);
                    s.spawn(move || {
                        let mut state =
                            (seed ^ round << 8 ^ t << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                        let mut events = Vec::new();
                        for _ in 0..40 {
                            state ^= state >> 12;
                            state ^= state << 25;
                            state ^= state >> 27;
                            let r = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
                            let key = (r >> 60) % KEYS;
                            let kind =
                                [Kind::Insert, Kind::Remove, Kind::Find][(r >> 50) as usize % 3];
                            let start = clock.fetch_add(1, Ordering::SeqCst);
                            let result = match kind {
                                Kind::Insert => tree.insert(key),
                                Kind::Remove => tree.remove(key),
                                Kind::Find => tree.find(key),
                            };
                            let end = clock.fetch_add(1, Ordering::SeqCst);
                            events.push(Event {
                                kind,
                                key,
                                result,
                                start,
                                end,
                            });
                        }
                        events
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .collect()
        });
        let there: Vec<bool> = (0..KEYS).map(|key| tree.find(key)).collect();
        assert_eq!(tree.len(), count + there.iter().filter(|&&t| t).count());
        for key in 0..KEYS {
            let mut events: Vec<Event> = histories
                .iter()
                .flatten()
                .filter(|e| e.key == key)
                .copied()
                .collect();
            events.sort_by_key(|e| e.start);
            assert!(
                linearizable(&events, false, there[key as usize]),
                "seed {seed} round {round} key {key}: {events:#?}"
            );
        }
    }
}

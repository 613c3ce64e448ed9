//! What a `KeyTree` promises, alone and under threads.
#![cfg(not(loom))]

use sdtree::KeyTree;
use std::collections::HashMap;

mod rng;
use rng::Rng;

fn intern(tree: &KeyTree, keys: &[u64]) -> (Vec<u32>, Vec<bool>) {
    let done = tree.intern(keys).expect("room");
    (done.ids, done.new)
}

#[test]
fn ids_of_one_thread_are_dense_and_in_first_seen_order() {
    let tree = KeyTree::new(0, b"order");
    let keys: Vec<u64> = (0..100_000).map(|i| i / 3 * 8).collect();
    let (ids, new) = intern(&tree, &keys);
    for i in 0..keys.len() {
        assert_eq!(ids[i] as usize, i / 3);
        assert_eq!(new[i], i % 3 == 0);
    }
    assert_eq!(tree.find(&[0, 8, 9]), [Some(0), Some(1), None]);
}

#[test]
fn random_operations_agree_with_a_hash_map() {
    for seed in 1..=8u64 {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let tree = KeyTree::new(0, &seed.to_le_bytes());
        let mut model: HashMap<u64, u32> = HashMap::new();
        let universe = [40, 500, 5000, 200_000][seed as usize % 4];
        for round in 0..60 {
            let keys: Vec<u64> = (0..1000).map(|_| rng.next() % universe).collect();
            match rng.next() % 3 {
                0 => {
                    let (ids, new) = intern(&tree, &keys);
                    for i in 0..keys.len() {
                        let known = model.get(&keys[i]).copied();
                        assert_eq!(new[i], known.is_none(), "seed {seed} round {round}");
                        assert_eq!(*model.entry(keys[i]).or_insert(ids[i]), ids[i]);
                    }
                }
                1 => {
                    let removed = tree.remove(&keys);
                    for i in 0..keys.len() {
                        assert_eq!(
                            removed[i],
                            model.remove(&keys[i]).is_some(),
                            "seed {seed} round {round}"
                        );
                    }
                }
                _ => {
                    let found = tree.find(&keys);
                    for i in 0..keys.len() {
                        assert_eq!(found[i], model.get(&keys[i]).copied());
                    }
                }
            }
            assert_eq!(tree.len(), model.len());
        }
        let mut items = tree.items();
        let mut want: Vec<(u64, u32)> = model.into_iter().collect();
        items.sort_unstable();
        want.sort_unstable();
        assert_eq!(items, want, "seed {seed}");
        let mut ids: Vec<u32> = items.iter().map(|x| x.1).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), items.len(), "two keys share an id");
    }
}

#[test]
fn a_set_that_grows_from_nothing_keeps_every_key() {
    let tree = KeyTree::new(0, b"grow");
    let keys: Vec<u64> = (0..300_000).collect();
    intern(&tree, &keys);
    let found = tree.find(&keys);
    assert!(found
        .iter()
        .enumerate()
        .all(|(i, &id)| id == Some(i as u32)));
    let shape = tree.stats().shape;
    assert_eq!(shape.objects, 300_000);
    assert!(shape.table_bits >= 17, "table of 2^{}", shape.table_bits);
    assert!(shape.depth_max <= 14, "{shape:?}");
}

#[test]
fn ids_of_removed_keys_are_used_again_and_memory_stays_flat() {
    let tree = KeyTree::new(0, b"flat");
    let window = 20_000u64;
    intern(&tree, &(0..window).collect::<Vec<_>>());
    let mut flat = None;
    for round in 0..100u64 {
        let old: Vec<u64> = (round * 5000..(round + 1) * 5000).collect();
        let new: Vec<u64> = old.iter().map(|k| k + window).collect();
        assert!(tree.remove(&old).iter().all(|&r| r));
        assert!(intern(&tree, &new).1.iter().all(|&n| n));
        assert_eq!(tree.len(), window as usize);
        if round == 10 {
            flat = Some((tree.id_bound(), tree.stats().index_bytes));
        }
    }
    assert_eq!(Some((tree.id_bound(), tree.stats().index_bytes)), flat);
    assert!(
        tree.id_bound() < 32_000,
        "{} ids for {window} keys",
        tree.id_bound()
    );
}

#[test]
fn an_entry_costs_at_most_28_bytes_at_a_million() {
    let mut rng = Rng(5);
    for n in [1_000_000usize, 1_400_000, 2_000_000] {
        let keys: Vec<u64> = (0..n).map(|_| rng.next()).collect();
        for capacity in [0, n] {
            let tree = KeyTree::new(capacity, b"size");
            intern(&tree, &keys);
            let bytes = tree.stats().index_bytes as f64 / n as f64;
            assert!(
                bytes <= 28.0,
                "{bytes} bytes for each of {n} keys, capacity {capacity}"
            );
        }
    }
}

#[test]
fn keys_of_any_pattern_give_a_shallow_tree() {
    type Family = (&'static str, fn(u64) -> u64);
    let families: [Family; 4] = [
        ("counter", |i| i),
        ("high counter", |i| i << 44),
        ("sparse bits", |i| {
            (1 << (i % 64)) | (1 << (i / 64 % 64)) | (1 << (i / 4096 % 64))
        }),
        ("thermometer", |i| (u64::MAX << (i % 64)) ^ (i / 64) << 20),
    ];
    for (name, family) in families {
        let tree = KeyTree::new(0, b"shallow");
        intern(&tree, &(0..200_000).map(family).collect::<Vec<_>>());
        let shape = tree.stats().shape;
        assert!(
            shape.depth_max + shape.table_bits as usize <= 2 * 18 + 8,
            "{name}: {shape:?}"
        );
    }
}

#[test]
fn threads_that_intern_the_same_keys_agree_on_ids_and_each_key_is_new_once() {
    let tree = KeyTree::new(0, b"threads");
    let keys: Vec<u64> = (0..60_000).collect();
    let results: Vec<(Vec<u32>, Vec<bool>)> = std::thread::scope(|s| {
        let work: Vec<_> = (0..4)
            .map(|t| {
                let (tree, keys) = (&tree, &keys);
                s.spawn(move || {
                    // Each from another end, so that they meet.
                    let mut mine = keys.clone();
                    if t % 2 == 1 {
                        mine.reverse();
                    }
                    let (mut ids, mut new) = intern(tree, &mine);
                    if t % 2 == 1 {
                        ids.reverse();
                        new.reverse();
                    }
                    (ids, new)
                })
            })
            .collect();
        work.into_iter()
            .map(|w| w.join().expect("no panic"))
            .collect()
    });
    for i in 0..keys.len() {
        assert!(results.iter().all(|r| r.0[i] == results[0].0[i]), "key {i}");
        assert_eq!(results.iter().filter(|r| r.1[i]).count(), 1, "key {i}");
    }
    assert_eq!(tree.len(), keys.len());
}

#[test]
fn threads_that_insert_and_remove_leave_exactly_what_the_counts_say() {
    // Few keys, so that inserts, removals and doublings collide all the time; each thread counts its successes.
    for (universe, rounds) in [(8u64, 3000usize), (300, 800), (40_000, 300)] {
        let tree = KeyTree::new(0, b"mixed");
        let balance: Vec<std::sync::atomic::AtomicI64> =
            (0..universe).map(|_| Default::default()).collect();
        std::thread::scope(|s| {
            for t in 0..4u64 {
                let (tree, balance) = (&tree, &balance);
                s.spawn(move || {
                    let mut rng = Rng(t + 77);
                    for _ in 0..rounds {
                        let n = 1 + (rng.next() % 100) as usize;
                        let keys: Vec<u64> = (0..n).map(|_| rng.next() % universe).collect();
                        if rng.next() & 1 == 0 {
                            for (k, new) in keys.iter().zip(intern(tree, &keys).1) {
                                balance[*k as usize]
                                    .fetch_add(new as i64, std::sync::atomic::Ordering::Relaxed);
                            }
                        } else {
                            for (k, gone) in keys.iter().zip(tree.remove(&keys)) {
                                balance[*k as usize]
                                    .fetch_sub(gone as i64, std::sync::atomic::Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        let keys: Vec<u64> = (0..universe).collect();
        let found = tree.find(&keys);
        let mut live = 0;
        for k in 0..universe as usize {
            let b = balance[k].load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(b, found[k].is_some() as i64, "key {k} of {universe}");
            live += b;
        }
        assert_eq!(tree.len() as i64, live);
        assert_eq!(tree.items().len() as i64, live);
        // A thread that the scheduler takes off its core in the middle of a batch holds back what others free
        // meanwhile; on a busy machine that is a good part, but not most, of the ids ever given.
        assert!(
            tree.id_bound() < universe as usize + 70_000,
            "{} ids",
            tree.id_bound()
        );
    }
}

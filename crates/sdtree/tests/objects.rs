//! What an `SdTree` promises of byte strings.
#![cfg(not(loom))]

use proptest::prelude::*;
use sdtree::{Batch, Fixed, Hashed, Order, Raw, RowBatch, SampledHash, SdTree, Store, Variable};
use std::collections::BTreeMap;

mod orders;
mod rng;
use orders::Colliding;
use rng::Rng;

/// All objects that begin with the same two bytes are a class.
struct TwoBytes;

// SAFETY: functions of the bytes alone.
unsafe impl Order for TwoBytes {
    fn first(&self, bytes: &[u8]) -> u64 {
        let mut head = [0; 2];
        let n = bytes.len().min(2);
        head[..n].copy_from_slice(&bytes[..n]);
        (1 + u16::from_le_bytes(head) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn whole(&self, bytes: &[u8]) -> u64 {
        let mix = |h: u64, &b: &u8| (h ^ b as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.iter().fold(1, mix)
    }
    fn lines(&self, _len: usize, _touch: impl FnMut(usize)) {}
}

fn intern<S: Store, O: Order, B: Batch + ?Sized>(
    tree: &SdTree<S, O>,
    batch: &B,
) -> (Vec<u32>, Vec<bool>) {
    let done = tree.intern(batch).expect("room");
    (done.ids, done.new)
}

#[derive(Clone, Debug)]
enum Op {
    Intern(Vec<Vec<u8>>),
    Find(Vec<Vec<u8>>),
    Remove(Vec<Vec<u8>>),
    Clear,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Few and similar strings, so that they meet, prefix each other, and differ late.
    let string = prop_oneof![
        prop::collection::vec(prop::sample::select(vec![0u8, 1, 255]), 0..4),
        (0usize..2000, any::<u8>()).prop_map(|(n, tail)| {
            let mut s = vec![0; n / 100 * 100];
            s.push(tail & 3);
            s
        }),
    ];
    let batch = prop::collection::vec(string, 0..40);
    prop::collection::vec(
        prop_oneof![
            8 => batch.clone().prop_map(Op::Intern),
            4 => batch.clone().prop_map(Op::Find),
            6 => batch.prop_map(Op::Remove),
            1 => Just(Op::Clear),
        ],
        0..30,
    )
}

/// Runs the operations on a tree and on a `BTreeMap` and compares everything that can be seen.
fn agrees<S: Store, O: Order>(tree: &SdTree<S, O>, ops: &[Op]) {
    let mut model: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for op in ops {
        match op {
            Op::Intern(batch) => {
                let (ids, new) = intern(tree, &batch[..]);
                for ((s, id), new) in batch.iter().zip(ids).zip(new) {
                    assert_eq!(new, !model.contains_key(s), "{s:?}");
                    assert_eq!(*model.entry(s.clone()).or_insert(id), id);
                }
            }
            Op::Find(batch) => {
                for (s, id) in batch.iter().zip(tree.find(&batch[..])) {
                    assert_eq!(id, model.get(s).copied());
                }
            }
            Op::Remove(batch) => {
                for (s, gone) in batch.iter().zip(tree.remove(&batch[..])) {
                    assert_eq!(gone, model.remove(s).is_some());
                }
            }
            Op::Clear => {
                tree.clear();
                model.clear();
            }
        }
        assert_eq!(tree.len(), model.len());
    }
    let mut ids = tree.ids();
    ids.sort_unstable();
    let mut want: Vec<u32> = model.values().copied().collect();
    want.sort_unstable();
    assert_eq!(ids, want);
    let (strings, ids): (Vec<_>, Vec<_>) = model.into_iter().unzip();
    tree.get_each(&ids, |i, bytes| assert_eq!(bytes, Some(&strings[i][..])));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn strings_of_any_length_agree_with_a_btree_map(ops in ops()) {
        agrees(&SdTree::variable(0, b"proptest"), &ops);
        agrees(&SdTree::with(Variable::new(), Hashed::new(b"proptest"), 0), &ops);
    }

    #[test]
    fn the_tree_stays_exact_in_raw_order_and_when_all_hashed_bits_collide(ops in ops()) {
        agrees(&SdTree::with(Variable::new(), Raw, 0), &ops);
        agrees(&SdTree::with(Variable::new(), Colliding, 0), &ops);
        agrees(&SdTree::with(Variable::new(), TwoBytes, 0), &ops);
    }

    #[test]
    fn rows_of_one_length_agree_with_a_btree_map(ops in ops(), size in 1usize..300) {
        let fit = |batch: &Vec<Vec<u8>>| batch.iter().map(|s| {
            let mut s = s.clone();
            s.resize(size, 0);
            s
        }).collect();
        let ops: Vec<Op> = ops.iter().map(|op| match op {
            Op::Intern(b) => Op::Intern(fit(b)),
            Op::Find(b) => Op::Find(fit(b)),
            Op::Remove(b) => Op::Remove(fit(b)),
            Op::Clear => Op::Clear,
        }).collect();
        agrees(&SdTree::fixed(size, 0, b"proptest"), &ops);
        agrees(&SdTree::with(Fixed::new(size), Colliding, 0), &ops);
    }
}

#[test]
fn a_string_its_extension_by_a_zero_and_no_string_are_three_objects() {
    let tree = SdTree::variable(0, b"three");
    let (ids, new) = intern(&tree, &[&b"a"[..], b"a\0", b"", b"a", b"\0"][..]);
    assert_eq!(ids, [0, 1, 2, 0, 3]);
    assert_eq!(new, [true, true, true, false, true]);
}

/// Member `v` of an adversarial family of pages.
fn page(family: &str, v: usize) -> Vec<u8> {
    let mut page = vec![0u8; 4096];
    match family {
        "thermometer" => {
            page[..v / 8].fill(0xff);
            page[v / 8] = !(0xff >> (v % 8));
        }
        "one bit" => page[v / 8] = 0x80 >> (v % 8),
        "zero-prefix ladder" => {
            let mut rng = Rng(v as u64 + 1);
            page[v / 8] = 0x80 >> (v % 8);
            page[v / 8 + 1..]
                .iter_mut()
                .for_each(|b| *b = rng.next() as u8);
        }
        "tail counter" => {
            page.fill(0xaa);
            page[4088..].copy_from_slice(&(v as u64).to_be_bytes());
        }
        "near-duplicate" => {
            let mut rng = Rng(99);
            page.iter_mut().for_each(|b| *b = rng.next() as u8);
            page[v / 8] ^= 0x80 >> (v % 8);
        }
        _ => unreachable!(),
    }
    page
}

const FAMILIES: [&str; 5] = [
    "thermometer",
    "one bit",
    "zero-prefix ladder",
    "tail counter",
    "near-duplicate",
];

#[test]
fn a_batch_leaves_nothing_counted_in_the_classes_that_it_met() {
    // Near-duplicates, of one class and of others in between, and some of them twice.
    let pages: Vec<Vec<u8>> = (0..3000)
        .map(|v| page("near-duplicate", v * 7919 % 2900))
        .collect();
    let trees = [1, 3, pages.len()].map(|batch| {
        let tree = SdTree::fixed(4096, 0, b"counted");
        for some in pages.chunks(batch) {
            intern(&tree, some);
        }
        tree
    });
    // The shape counts the members of each class.
    for tree in &trees[1..] {
        assert_eq!(tree.len(), 2900);
        assert_eq!(tree.stats().shape, trees[0].stats().shape);
    }
}

#[test]
fn adversarial_families_stay_shallow() {
    // Every eighth member of each family, 4,000 pages; the bound is that of the issue, the table's bits included.
    let n = 4000;
    for family in FAMILIES {
        let pages: Vec<Vec<u8>> = (0..n).map(|v| page(family, 8 * v + v % 8)).collect();
        for hashed in [false, true] {
            let shape = if hashed {
                let tree = SdTree::with(Fixed::new(4096), Hashed::new(b"shallow"), 0);
                intern(&tree, &pages[..]);
                tree.stats().shape
            } else {
                let tree = SdTree::fixed(4096, 0, b"shallow");
                intern(&tree, &pages[..]);
                tree.stats().shape
            };
            assert_eq!(shape.objects, n, "{family}");
            let bound = 2.0 * (n as f64).log2() + 64.0;
            assert!(
                (shape.depth_max + shape.table_bits as usize) as f64 <= bound,
                "{family}: {shape:?}"
            );
            assert!(
                shape.depth_mean <= 1.5 * (n as f64).log2(),
                "{family}: {shape:?}"
            );
        }
    }
}

#[test]
fn adversarial_families_do_build_chains_in_raw_order() {
    // So that the test above can fail.
    let n = 4000;
    for family in [
        "thermometer",
        "one bit",
        "zero-prefix ladder",
        "near-duplicate",
    ] {
        let pages: Vec<Vec<u8>> = (0..n).map(|v| page(family, 8 * v + v % 8)).collect();
        let tree = SdTree::with(Fixed::new(4096), Raw, 0);
        intern(&tree, &pages[..]);
        let shape = tree.stats().shape;
        assert!(shape.depth_max >= n - 64, "{family}: {shape:?}");
    }
    // A counter in the tail is no chain, but all of it below one place of the table.
    let tree = SdTree::with(Fixed::new(4096), Raw, 0);
    intern(
        &tree,
        &(0..n).map(|v| page("tail counter", v)).collect::<Vec<_>>()[..],
    );
    assert!(tree.stats().shape.depth_mean >= 11.0);
}

#[test]
fn batches_of_every_length_are_read_to_their_last_object() {
    // Pages that are alike in what is sampled: read whole, side by side, from the second group on.
    let pages: Vec<Vec<u8>> = (0..300)
        .map(|v| page("near-duplicate", 8 * 1000 + v))
        .collect();
    for n in 1..pages.len() {
        let batch = &pages[..n];
        let (sampled, hashed) = (
            SdTree::fixed(4096, 0, b"lengths"),
            SdTree::with(Fixed::new(4096), Hashed::new(b"lengths"), 0),
        );
        let want: Vec<u32> = (0..n as u32).collect();
        let (ids, new) = intern(&sampled, batch);
        assert_eq!((&ids, new), (&want, vec![true; n]), "{n} pages");
        assert_eq!(intern(&hashed, batch).0, want, "{n} pages");
        assert_eq!(intern(&sampled, batch), (want, vec![false; n]), "{n} pages");
        let there: Vec<Option<u32>> = (0..300).map(|i| (i < n as u32).then_some(i)).collect();
        assert_eq!(hashed.find(&pages[..]), there, "{n} pages");
    }
}

#[test]
fn a_million_equal_objects_are_one() {
    let tree = SdTree::fixed(64, 0, b"equal");
    let rows = vec![42u8; 64 * 100_000];
    for round in 0..10 {
        let (ids, new) = intern(&tree, &RowBatch::new(&rows, 64));
        assert!(ids.iter().all(|&id| id == 0));
        assert_eq!(new.iter().filter(|&&n| n).count(), (round == 0) as usize);
    }
    assert_eq!(tree.len(), 1);
}

#[test]
fn rows_that_stay_where_they_are_are_found_by_row_number() {
    let data: Vec<u8> = (0..5000u32)
        .flat_map(|i| (i / 2 % 1000).to_be_bytes())
        .collect();
    let tree = SdTree::rows(&data, 4, 0, b"rows");
    let (ids, new) = intern(&tree, &RowBatch::new(&data, 4));
    for i in 0..5000 {
        assert_eq!(ids[i] as usize, i / 2 % 1000);
        assert_eq!(new[i], i < 2000 && i % 2 == 0);
        assert_eq!(tree.row(ids[i]) as usize, i / 2 % 1000 * 2);
    }
    assert_eq!(tree.stats().object_bytes, 0);
}

#[test]
fn get_refuses_ids_that_are_not_in_use() {
    let tree = SdTree::variable(0, b"get");
    intern(&tree, &[&b"x"[..], b"y"][..]);
    tree.remove(&[&b"x"[..]][..]);
    let mut got = Vec::new();
    tree.get_each(&[0, 1, 2, 5_000_000, u32::MAX], |_, bytes| {
        got.push(bytes.map(<[u8]>::to_vec))
    });
    assert_eq!(got, [None, Some(b"y".to_vec()), None, None, None]);
}

#[test]
fn classes_that_come_and_go_leave_nothing_behind() {
    let tree = SdTree::with(Fixed::new(8), TwoBytes, 0);
    let mut flat = None;
    for round in 0..200u64 {
        // 300 classes of three, others in each round; the first to come is removed first, last, or in between.
        let row = |i: u64| ((round * 300 + i / 3) & 0xffff | (i % 3) << 32).to_le_bytes();
        let mut rows: Vec<[u8; 8]> = (0..900).map(row).collect();
        assert!(intern(&tree, &rows[..]).1.iter().all(|&new| new));
        let shape = tree.stats().shape;
        assert_eq!(shape.objects, 900);
        rows.rotate_left(round as usize % 900);
        assert!(tree.remove(&rows[..]).iter().all(|&gone| gone));
        assert!(tree.find(&rows[..]).iter().all(Option::is_none));
        assert!(tree.is_empty() && tree.ids().is_empty());
        let bytes = tree.stats().index_bytes;
        if round == 20 {
            flat = Some(bytes);
        } else if round > 20 {
            assert_eq!(Some(bytes), flat, "round {round}");
        }
    }
}

#[test]
fn removal_frees_objects_nodes_and_ids() {
    let tree = SdTree::variable(0, b"free");
    let batch = |round: u64| -> Vec<Vec<u8>> {
        (0..2000u64)
            .map(|i| {
                (round * 2000 + i)
                    .to_le_bytes()
                    .repeat(1 + (i % 50) as usize)
            })
            .collect()
    };
    let mut flat = None;
    for round in 0..60 {
        intern(&tree, &batch(round)[..]);
        let stats = tree.stats();
        assert!(tree.remove(&batch(round)[..]).iter().all(|&r| r));
        if round == 20 {
            flat = Some((stats.index_bytes, tree.id_bound()));
        } else if round > 20 {
            assert_eq!(
                Some((stats.index_bytes, tree.id_bound())),
                flat,
                "round {round}"
            );
            assert!(
                stats.object_bytes < 3 * 2000 * 8 * 26,
                "{} bytes",
                stats.object_bytes
            );
        }
    }
    assert!(tree.is_empty());
}

#[test]
fn threads_that_insert_remove_and_read_the_same_objects_agree() {
    let tree = SdTree::variable(0, b"threads");
    let object = |k: u64| -> Vec<u8> { k.to_le_bytes().repeat(1 + (k % 100) as usize) };
    let universe = 500u64;
    let balance: Vec<std::sync::atomic::AtomicI64> =
        (0..universe).map(|_| Default::default()).collect();
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let (tree, balance) = (&tree, &balance);
            s.spawn(move || {
                let mut rng = Rng(t + 5);
                for _ in 0..400 {
                    let keys: Vec<u64> = (0..50).map(|_| rng.next() % universe).collect();
                    let batch: Vec<Vec<u8>> = keys.iter().map(|&k| object(k)).collect();
                    match rng.next() % 3 {
                        0 => {
                            for (k, gone) in keys.iter().zip(tree.remove(&batch[..])) {
                                balance[*k as usize]
                                    .fetch_sub(gone as i64, std::sync::atomic::Ordering::Relaxed);
                            }
                        }
                        1 => {
                            // Whatever an id stands for, it is some object, whole.
                            let ids: Vec<u32> =
                                (0..100).map(|_| (rng.next() % 700) as u32).collect();
                            tree.get_each(&ids, |_, bytes| {
                                if let Some(bytes) = bytes {
                                    let k = u64::from_le_bytes(
                                        bytes[..8].try_into().expect("eight bytes"),
                                    );
                                    assert_eq!(bytes, object(k));
                                }
                            });
                        }
                        _ => {
                            for (k, new) in keys.iter().zip(intern(tree, &batch[..]).1) {
                                balance[*k as usize]
                                    .fetch_add(new as i64, std::sync::atomic::Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    let all: Vec<Vec<u8>> = (0..universe).map(object).collect();
    for (k, id) in tree.find(&all[..]).into_iter().enumerate() {
        assert_eq!(
            id.is_some() as i64,
            balance[k].load(std::sync::atomic::Ordering::Relaxed),
            "object {k}"
        );
    }
}

#[test]
fn the_order_does_not_decide_what_is_equal() {
    let mut rng = Rng(3);
    let rows: Vec<u8> = (0..1000 * 600).map(|_| (rng.next() & 1) as u8).collect();
    let mut data = rows.clone();
    data.extend_from_slice(&rows);
    let batch = RowBatch::new(&data, 600);
    let want = intern(&SdTree::fixed(600, 0, b"a"), &batch);
    assert_eq!(intern(&SdTree::fixed(600, 0, b"b"), &batch), want);
    assert_eq!(
        intern(&SdTree::with(Fixed::new(600), Hashed::new(b"c"), 0), &batch),
        want
    );
    assert_eq!(intern(&SdTree::with(Fixed::new(600), Raw, 0), &batch), want);
    assert_eq!(
        intern(
            &SdTree::with(Fixed::new(600), SampledHash::new(b""), 5000),
            &batch
        ),
        want
    );
    assert_eq!(
        intern(&SdTree::with(Fixed::new(600), Colliding, 0), &batch),
        want
    );
}

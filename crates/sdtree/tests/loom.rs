//! Models of the real code, every interleaving within a bound of preemptions: `make loom`.
#![cfg(loom)]

use loom::thread;
use sdtree::{Fixed, KeyTree, Order, RowBatch, SdTree};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    // In CI seconds; `make soak` sets both higher.
    builder.preemption_bound = Some(number("LOOM_MAX_PREEMPTIONS").unwrap_or(2) as usize);
    builder.max_branches = 100_000;
    let seconds = number("LOOM_MAX_DURATION").unwrap_or(5);
    builder.max_duration = Some(std::time::Duration::from_secs(seconds));
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let start = std::time::Instant::now();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        f();
    });
    let all = start.elapsed().as_secs() < seconds;
    println!(
        "{} interleavings, {}",
        runs.load(Ordering::Relaxed),
        if all { "all there are" } else { "out of time" }
    );
}

fn insert(tree: &KeyTree, key: u64) -> (u32, bool) {
    let done = tree.intern(&[key]).expect("room");
    (done.ids[0], done.new[0])
}

fn remove(tree: &KeyTree, key: u64) -> bool {
    tree.remove(&[key])[0]
}

fn find(tree: &KeyTree, key: u64) -> Option<u32> {
    tree.find(&[key])[0]
}

#[test]
fn two_inserts_of_one_key_agree_on_its_id() {
    model(|| {
        let tree = Arc::new(KeyTree::new(0, b"loom"));
        let other = tree.clone();
        let t = thread::spawn(move || insert(&other, 1));
        let a = insert(&tree, 1);
        let b = t.join().expect("no panic");
        assert_eq!(a.0, b.0);
        assert!(a.1 != b.1, "new once");
        assert_eq!(tree.len(), 1);
    });
}

#[test]
fn inserts_of_different_keys_lose_none() {
    model(|| {
        let tree = Arc::new(KeyTree::new(0, b"loom"));
        insert(&tree, 1);
        let other = tree.clone();
        let t = thread::spawn(move || insert(&other, 2));
        assert!(insert(&tree, 3).1);
        assert!(t.join().expect("no panic").1);
        for key in 1..=3 {
            assert!(find(&tree, key).is_some(), "key {key}");
        }
    });
}

#[test]
fn an_insert_beside_a_removal_loses_nothing_and_brings_nothing_back() {
    model(|| {
        let tree = Arc::new(KeyTree::new(0, b"loom"));
        insert(&tree, 1);
        insert(&tree, 2);
        let other = tree.clone();
        let t = thread::spawn(move || remove(&other, 1));
        assert!(insert(&tree, 3).1);
        assert!(t.join().expect("no panic"));
        assert_eq!(find(&tree, 1), None);
        assert!(find(&tree, 2).is_some() && find(&tree, 3).is_some());
    });
}

#[test]
fn two_removals_of_one_key_succeed_once_and_of_two_keys_both() {
    model(|| {
        let tree = Arc::new(KeyTree::new(0, b"loom"));
        for key in 1..=3 {
            insert(&tree, key);
        }
        let other = tree.clone();
        let t = thread::spawn(move || (remove(&other, 1), remove(&other, 2)));
        let mine = remove(&tree, 1);
        let (first, second) = t.join().expect("no panic");
        assert!(mine != first && second);
        assert_eq!((find(&tree, 1), find(&tree, 2)), (None, None));
        assert!(find(&tree, 3).is_some());
    });
}

#[test]
fn a_find_sees_what_was_there_before_whatever_is_inserted_meanwhile() {
    model(|| {
        let tree = Arc::new(KeyTree::new(0, b"loom"));
        let id = insert(&tree, 1).0;
        let other = tree.clone();
        let t = thread::spawn(move || {
            insert(&other, 2);
            insert(&other, 3);
        });
        assert_eq!(find(&tree, 1), Some(id));
        t.join().expect("no panic");
    });
}

/// All objects are one class; in it they are told apart at once.
struct OneClass;

// SAFETY: functions of the bytes alone.
unsafe impl Order for OneClass {
    fn first(&self, _bytes: &[u8]) -> u64 {
        0x5555_5555_5555_5555
    }
    fn whole(&self, bytes: &[u8]) -> u64 {
        (bytes[0] as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn lines(&self, _len: usize, _touch: impl FnMut(usize)) {}
}

type Class = SdTree<Fixed, OneClass>;

fn class() -> Arc<Class> {
    Arc::new(SdTree::with(Fixed::new(1), OneClass, 0))
}

fn intern(tree: &Class, byte: u8) -> (u32, bool) {
    let done = tree.intern(&RowBatch::new(&[byte], 1)).expect("room");
    (done.ids[0], done.new[0])
}

fn take(tree: &Class, byte: u8) -> bool {
    tree.remove(&RowBatch::new(&[byte], 1))[0]
}

fn there(tree: &Class, byte: u8) -> bool {
    tree.find(&RowBatch::new(&[byte], 1))[0].is_some()
}

#[test]
fn a_class_is_made_once_whoever_comes_second() {
    model(|| {
        let tree = class();
        intern(&tree, 1);
        let other = tree.clone();
        let t = thread::spawn(move || intern(&other, 2));
        let mine = intern(&tree, 2);
        let theirs = t.join().expect("no panic");
        assert_eq!(mine.0, theirs.0);
        assert!(mine.1 != theirs.1, "new once");
        assert!(there(&tree, 1) && there(&tree, 2));
        assert_eq!(tree.len(), 2);
    });
}

#[test]
fn the_first_of_a_class_is_removed_while_the_class_is_made() {
    model(|| {
        let tree = class();
        intern(&tree, 1);
        let other = tree.clone();
        let t = thread::spawn(move || take(&other, 1));
        assert!(intern(&tree, 2).1);
        assert!(t.join().expect("no panic"));
        assert!(!there(&tree, 1) && there(&tree, 2));
        assert!(intern(&tree, 1).1);
        assert_eq!(tree.len(), 2);
    });
}

#[test]
fn a_class_dies_beside_an_insert_that_would_enter_it() {
    model(|| {
        let tree = class();
        intern(&tree, 1);
        intern(&tree, 2);
        assert!(take(&tree, 1));
        let other = tree.clone();
        let t = thread::spawn(move || take(&other, 2));
        assert!(intern(&tree, 3).1);
        assert!(t.join().expect("no panic"));
        assert!(!there(&tree, 2) && there(&tree, 3));
        assert_eq!(tree.len(), 1);
    });
}

#[test]
fn a_batch_that_holds_its_class_keeps_its_objects_beside_removals_that_would_kill_it() {
    model(|| {
        let tree = class();
        intern(&tree, 1);
        intern(&tree, 2);
        let other = tree.clone();
        let removing = thread::spawn(move || (take(&other, 1), take(&other, 2)));
        let done = tree.intern(&RowBatch::new(&[3, 4, 3], 1)).expect("room");
        assert_eq!(removing.join().expect("no panic"), (true, true));
        assert_eq!(done.new, [true, true, false]);
        assert_eq!(done.ids[0], done.ids[2]);
        assert!(there(&tree, 3) && there(&tree, 4));
        assert!(!there(&tree, 1) && !there(&tree, 2));
        assert!(take(&tree, 3) && take(&tree, 4) && intern(&tree, 3).1);
        assert_eq!(tree.len(), 1);
    });
}

#[test]
fn two_removals_kill_a_class_once() {
    model(|| {
        let tree = class();
        intern(&tree, 1);
        intern(&tree, 2);
        let other = tree.clone();
        let t = thread::spawn(move || (take(&other, 1), take(&other, 2)));
        let mine = take(&tree, 2);
        let (first, second) = t.join().expect("no panic");
        assert!(first && mine != second);
        assert!(!there(&tree, 1) && !there(&tree, 2));
        assert!(intern(&tree, 2).1);
    });
}

#[test]
fn a_find_in_a_class_sees_what_was_there_before_whatever_else_leaves_it() {
    model(|| {
        let tree = class();
        intern(&tree, 1);
        intern(&tree, 2);
        let other = tree.clone();
        let t = thread::spawn(move || (take(&other, 1), intern(&other, 3)));
        assert!(there(&tree, 2));
        t.join().expect("no panic");
    });
}

/// The byte's own bits: the models below know which edges meet.
struct Byte;

// SAFETY: functions of the bytes alone.
unsafe impl Order for Byte {
    fn first(&self, bytes: &[u8]) -> u64 {
        (bytes[0] as u64) << 56
    }
    fn whole(&self, bytes: &[u8]) -> u64 {
        bytes[0] as u64
    }
    fn lines(&self, _len: usize, _touch: impl FnMut(usize)) {}
}

fn run<O: Order>(tree: &SdTree<Fixed, O>, insert: bool, byte: u8) -> bool {
    let row = [byte];
    let row = RowBatch::new(&row, 1);
    if insert {
        tree.intern(&row).expect("room").new[0]
    } else {
        tree.remove(&row)[0]
    }
}

fn has<O: Order>(tree: &SdTree<Fixed, O>, byte: u8) -> bool {
    tree.find(&RowBatch::new(&[byte], 1))[0].is_some()
}

#[test]
fn an_insert_on_the_edge_beside_a_removed_object_is_not_lost() {
    model(|| {
        // One node: on its left what is removed, on its right what the insert lands on.
        let (left, right, new) = (0b0000_0000, 0b0100_0000, 0b0110_0000);
        let tree = Arc::new(SdTree::with(Fixed::new(1), Byte, 0));
        run(&tree, true, left);
        run(&tree, true, right);
        let other = tree.clone();
        let t = thread::spawn(move || run(&other, false, left));
        assert!(run(&tree, true, new));
        assert!(t.join().expect("no panic"));
        assert!(!has(&tree, left) && has(&tree, right) && has(&tree, new));
    });
}

#[test]
fn both_objects_of_a_node_are_removed_at_once() {
    model(|| {
        let (left, right, above) = (0b0000_0000, 0b0010_0000, 0b0100_0000);
        let tree = Arc::new(SdTree::with(Fixed::new(1), Byte, 0));
        for byte in [left, right, above] {
            run(&tree, true, byte);
        }
        let other = tree.clone();
        let t = thread::spawn(move || run(&other, false, left));
        assert!(run(&tree, false, right));
        assert!(t.join().expect("no panic"));
        assert!(!has(&tree, left) && !has(&tree, right) && has(&tree, above));
        assert!(run(&tree, true, left) && has(&tree, above));
    });
}

#[test]
fn objects_survive_the_doubling_of_the_table_beside_a_removal() {
    model(|| {
        // More than two for each of two places: the next insert doubles the table.
        let tree = Arc::new(SdTree::with(Fixed::new(1), Byte, 0));
        for byte in [0b0000_0000, 0b0010_0000, 0b0100_0000, 0b1000_0000] {
            run(&tree, true, byte);
        }
        let other = tree.clone();
        let t = thread::spawn(move || run(&other, false, 0b0010_0000));
        assert!(run(&tree, true, 0b1100_0000));
        assert!(run(&tree, true, 0b1110_0000));
        assert!(t.join().expect("no panic"));
        for byte in [
            0b0000_0000,
            0b0100_0000,
            0b1000_0000,
            0b1100_0000,
            0b1110_0000,
        ] {
            assert!(has(&tree, byte), "{byte:08b}");
        }
        assert!(!has(&tree, 0b0010_0000));
    });
}

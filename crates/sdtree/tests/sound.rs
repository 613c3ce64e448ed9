//! Whatever safe code asks of a tree, it gets an answer or a panic, and the tree stays whole.
//!
//! `make sanitize` runs this under the address sanitizer: reading out of bounds does not show by itself.
#![cfg(not(loom))]

use sdtree::{Batch, Fixed, Order, Raw, Rows, SdTree, Store, Variable, MAX_OBJECT};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a call panics with; empty if it does not.
fn panic_of(call: impl FnOnce()) -> String {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(()) => String::new(),
        Err(panic) => *panic.downcast::<String>().unwrap_or_else(|other| {
            Box::new(
                other
                    .downcast::<&str>()
                    .map_or("?".into(), |s| s.to_string()),
            )
        }),
    }
}

/// What `intern` panics with, and the ids that it has given meanwhile.
fn intern<S: Store, O: Order>(
    tree: &SdTree<S, O>,
    batch: &(impl Batch + ?Sized),
) -> (String, Vec<u32>) {
    let mut ids = Vec::new();
    let said = panic_of(|| {
        tree.intern_each(batch, |_, id, _| ids.push(id))
            .expect("room")
    });
    (said, ids)
}

/// One object, `first` for the first times that it is asked for and `then` from there on.
struct Changing {
    first: Vec<u8>,
    times: usize,
    then: Vec<u8>,
    asked: AtomicUsize,
}

impl Batch for Changing {
    fn len(&self) -> usize {
        1
    }
    fn get(&self, _: usize) -> &[u8] {
        if self.asked.fetch_add(1, Ordering::Relaxed) < self.times {
            &self.first
        } else {
            &self.then
        }
    }
}

#[test]
fn an_object_of_another_length_is_refused_before_anything_is_done() {
    for wrong in [&[][..], &[1; 7], &[1; 9], &[1; 5000]] {
        let tree = SdTree::fixed(8, 0, b"lengths");
        let (said, ids) = intern(&tree, &[&[1; 8], &[2; 8], wrong][..]);
        assert_eq!(
            said,
            format!("an object of {} bytes in a tree of 8", wrong.len())
        );
        assert_eq!((ids, tree.len()), (vec![], 0));
        assert_eq!(intern(&tree, &[[1; 8]][..]), (String::new(), vec![0]));
    }
}

#[test]
fn a_batch_that_changes_its_mind_about_a_length_is_refused() {
    let mut refused = 0;
    for times in 0..8 {
        let batch = |long: usize, then: usize| Changing {
            first: vec![1; long],
            times,
            then: vec![2; then],
            asked: AtomicUsize::new(0),
        };
        // Larger than a cache line, and shorter than what would be copied.
        let tree = SdTree::fixed(4096, 0, b"minds");
        let (said, _) = intern(&tree, &batch(4096, 16));
        assert!(
            said.is_empty() || said.contains("in a tree of 4096"),
            "{said}"
        );
        refused += !said.is_empty() as usize;
        tree.get_each(&[0], |_, got| assert!(got.is_none_or(|b| b == [1; 4096])));
        let tree = SdTree::variable(0, b"minds");
        let (said, _) = intern(&tree, &batch(16, MAX_OBJECT + 1));
        assert!(said.is_empty() || said.contains("at most"), "{said}");
        assert!(tree.stats().object_bytes <= 16);
    }
    assert!(refused > 1, "never asked again");
}

#[test]
fn a_tree_of_rows_refuses_what_is_none_of_its_rows() {
    let data: Vec<u8> = (0..16 * 10).collect();
    let elsewhere = [200u8; 16];
    for size in [16, 10] {
        let tree = SdTree::rows(&data[..100], size, 0, b"rows");
        let none = "an object that is none of the tree's rows";
        assert_eq!(intern(&tree, &[&data[size..2 * size]][..]).1, [0]);
        for not in [&data[1..1 + size], &elsewhere[..size], &data[160 - size..]] {
            assert_eq!(intern(&tree, &[not][..]).0, none);
        }
        let (said, _) = intern(&tree, &[&data[..size - 1]][..]);
        assert!(said.contains("in a tree of"), "{said}");
        assert_eq!(tree.len(), 1);
        // Equal to a row, wherever it lies.
        let copy = data[size..2 * size].to_vec();
        assert_eq!(intern(&tree, &[&copy][..]).1, [0]);
    }
}

#[test]
fn a_row_is_told_of_objects_in_the_tree_alone() {
    let data = [1u8, 2, 3];
    let tree = SdTree::rows(&data, 1, 0, b"row");
    assert_eq!(intern(&tree, &[&data[2..]][..]).1, [0]);
    assert_eq!(tree.row(0), 2);
    for id in [1, 63, 64, 100_000, u32::MAX] {
        assert_eq!(
            panic_of(|| assert_eq!(tree.row(id), u32::MAX)),
            "an id of this tree",
            "{id}"
        );
    }
}

#[test]
fn sizes_that_no_key_has_bits_for_are_refused() {
    let too_long = format!(
        "an object of {} bytes; at most {MAX_OBJECT}",
        MAX_OBJECT + 1
    );
    assert_eq!(panic_of(|| drop(Fixed::new(MAX_OBJECT + 1))), too_long);
    assert_eq!(panic_of(|| drop(Rows::new(b"x", MAX_OBJECT + 1))), too_long);
    assert_eq!(panic_of(|| drop(Rows::new(b"x", 0))), "rows of no bytes");
    let tree = SdTree::with(Variable::new(), Raw, 0);
    let (said, _) = intern(&tree, &[vec![0; MAX_OBJECT + 1]][..]);
    assert_eq!(said, too_long);
}

#[test]
fn what_is_of_another_length_is_not_there() {
    // In raw order the keys of all of these are the same.
    let tree = SdTree::with(Fixed::new(40), Raw, 0);
    let one = [0u8; 40];
    let mut two = one;
    two[20] = 1;
    assert_eq!(intern(&tree, &[one, two][..]).1, [0, 1]);
    let others = [
        &one[..39],
        &one[..16],
        &[],
        &[0; 41],
        &two[..30],
        &[0; 5000],
    ];
    assert_eq!(tree.find(&others[..]), [None; 6]);
    assert_eq!(tree.remove(&others[..]), [false; 6]);
    assert_eq!(tree.len(), 2);
}

#[test]
fn objects_of_no_bytes_are_all_one() {
    let tree = SdTree::fixed(0, 0, b"nothing");
    assert_eq!(intern(&tree, &[[0u8; 0]; 3][..]).1, [0; 3]);
    tree.get_each(&[0, 1], |i, bytes| assert_eq!(bytes.is_some(), i == 0));
    assert_eq!(tree.remove(&[[0u8; 0]; 2][..]), [true, false]);
    assert_eq!(tree.len(), 0);
}

#[test]
fn a_tree_may_be_asked_by_whoever_it_is_asking() {
    struct Asking<'a>(&'a SdTree<Variable>);
    impl Batch for Asking<'_> {
        fn len(&self) -> usize {
            100
        }
        fn get(&self, i: usize) -> &[u8] {
            let byte = [i as u8];
            self.0.remove(&[&byte][..]);
            let _ = self.0.intern(&[&byte][..]);
            b"the same"
        }
    }
    let tree = SdTree::variable(0, b"asking");
    let (said, ids) = intern(&tree, &Asking(&tree));
    assert_eq!(said, "");
    assert!(ids.iter().all(|id| *id == ids[0]));
    let mut seen = 0;
    tree.get_each(&ids, |_, bytes| {
        assert_eq!(bytes, Some(&b"the same"[..]));
        tree.get_each(&tree.ids(), |_, bytes| seen += bytes.is_some() as usize);
    });
    assert_eq!((seen, tree.len()), (100 * 101, 101));
}

//! Bytes of index for each object, counted by the allocator; alone in its process, since it counts everything.
#![cfg(not(loom))]

use sdtree::{RowBatch, SdTree};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_object_costs_at_most_32_bytes_of_index_and_everything_is_given_back() {
    // 10 M only when asked for: 160 MB of rows and a quarter of a minute.
    let large = std::env::var_os("PAGEONE_SOAK").is_some();
    let sizes: &[usize] = if large {
        &[1_000_000, 4_000_000, 10_000_000]
    } else {
        &[1_000_000]
    };
    // Printed at the end: what is printed is kept by the test runner, in memory.
    let mut said = Vec::with_capacity(16);
    for &n in sizes {
        let rows: Vec<u8> = (0..n as u64)
            .flat_map(|i| [i, i.wrapping_mul(0x9e37_79b9_7f4a_7c15)])
            .flat_map(u64::to_le_bytes)
            .collect();
        let mut new = vec![false; n];
        for capacity in [0, n] {
            let before = LIVE.load(Ordering::Relaxed);
            // Rows that stay where they are: all that is allocated is index.
            let tree = SdTree::rows(&rows, 16, capacity, b"memory");
            tree.intern_each(&RowBatch::new(&rows, 16), |i, _, is_new| new[i] = is_new)
                .expect("room");
            assert!(new.iter().all(|&n| n));
            let bytes = (LIVE.load(Ordering::Relaxed) - before) as f64 / n as f64;
            assert!(bytes <= 32.0, "{bytes} bytes for each of {n} objects");
            let stats = tree.stats().index_bytes as f64 / n as f64;
            // Lists of free numbers, which come and go, are the allocator's to see alone: a quarter of a byte here, of
            // the nodes that the doubling of the table has dropped.
            assert!(
                (stats - bytes).abs() < 0.5,
                "stats() says {stats}, the allocator {bytes}"
            );
            drop(tree);
            assert_eq!(
                LIVE.load(Ordering::Relaxed),
                before,
                "everything is given back"
            );
            said.push((n, capacity, bytes));
        }
    }
    // Copies of any length: the index is what is not the objects' own bytes.
    let n = 200_000;
    let strings: Vec<String> = (0..n).map(|i| format!("{i:020}")).collect();
    let before = LIVE.load(Ordering::Relaxed);
    let tree = SdTree::variable(0, b"memory");
    tree.intern_each(&strings[..], |_, _, _| ()).expect("room");
    let bytes = (LIVE.load(Ordering::Relaxed) - before) as f64 / n as f64 - 20.0;
    assert!(
        bytes <= 32.0,
        "{bytes} bytes for each string, 4 of them its length"
    );
    drop(tree);
    assert_eq!(
        LIVE.load(Ordering::Relaxed),
        before,
        "everything is given back"
    );
    for (n, capacity, bytes) in said {
        println!("{n} objects, room for {capacity}: {bytes:.2} bytes each");
    }
    println!("{n} strings: {bytes:.2} bytes each");
}

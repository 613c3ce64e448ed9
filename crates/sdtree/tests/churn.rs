//! Mixed operations at a steady size: memory stays flat, and nothing is lost. A hundred million with `PAGEONE_SOAK`.
#![cfg(not(loom))]

mod rng;

use rng::Rng;
use sdtree::{RowBatch, SdTree};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Barrier;

/// Bytes of a row.
const SIZE: usize = 16;
/// Rows that can be in the tree.
const UNIVERSE: u64 = 50_000;
/// Operations of a call.
const BATCH: usize = 1000;
/// Calls between two meetings of the threads. One that the system lets stand for long in the middle of a call holds back
/// the reuse of all that the other removes meanwhile, and on a loaded machine that would be what is measured here.
const MEETING: usize = 16;

/// Bytes of this process that are resident.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = text.split(' ').nth(1).and_then(|v| v.parse::<usize>().ok());
    4096 * pages.expect("a number")
}

#[test]
fn mixed_operations_at_a_steady_size_keep_memory_flat() {
    let soak = std::env::var_os("PAGEONE_SOAK").is_some();
    let operations: usize = if soak { 100_000_000 } else { 2_000_000 };
    let tree = SdTree::fixed(SIZE, 0, b"churn");
    let there = AtomicI64::new(0);
    // Some work first, in which the tree comes to its size; then memory is looked at ten times.
    let part = |round: u64, operations: usize| {
        let meeting = Barrier::new(2);
        std::thread::scope(|s| {
            for t in 0..2u64 {
                let (tree, there, meeting) = (&tree, &there, &meeting);
                s.spawn(move || {
                    let mut rng = Rng((round << 8 | t).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                    let mut rows = vec![0u8; SIZE * BATCH];
                    for call in 0..operations / 2 / BATCH {
                        if call % MEETING == 0 {
                            meeting.wait();
                        }
                        for row in rows.chunks_exact_mut(SIZE) {
                            let key = rng.next() % UNIVERSE;
                            row[..8].copy_from_slice(&key.to_le_bytes());
                            row[8..].copy_from_slice(&(key ^ 99).to_le_bytes());
                        }
                        let batch = RowBatch::new(&rows, SIZE);
                        let count = |done: &[bool]| done.iter().filter(|&&d| d).count() as i64;
                        match rng.next() >> 62 {
                            0 | 1 => {
                                let new = tree.intern(&batch).expect("room").new;
                                there.fetch_add(count(&new), Ordering::Relaxed);
                            }
                            2 => {
                                there.fetch_sub(count(&tree.remove(&batch)), Ordering::Relaxed);
                            }
                            _ => drop(tree.find(&batch)),
                        }
                    }
                });
            }
        });
        assert_eq!(tree.len() as i64, there.load(Ordering::Relaxed));
    };
    part(0, 1_000_000);
    let (index, memory) = (tree.stats().index_bytes, resident());
    for round in 1..=10 {
        part(round, operations / 10);
        let (now, resident) = (tree.stats(), resident());
        println!(
            "{} operations: {} objects, {} bytes of index, {} resident",
            operations / 10 * round as usize,
            now.objects,
            now.index_bytes,
            resident
        );
        // Pieces of the arrays are an eighth of what is there; ids wait in bags of both threads.
        assert!(now.index_bytes <= index + index / 4, "{now:?}, was {index}");
        assert!(
            resident <= memory + memory / 3 + (4 << 20),
            "{resident}, was {memory}"
        );
    }
    let mut rows: Vec<u8> = Vec::new();
    for key in 0..UNIVERSE {
        rows.extend(key.to_le_bytes());
        rows.extend((key ^ 99).to_le_bytes());
    }
    let found = tree.find(&RowBatch::new(&rows, SIZE));
    let count = found.iter().flatten().count();
    assert_eq!(count as i64, there.load(Ordering::Relaxed));
    assert_eq!(count, tree.ids().len());
}

//! What the fuzz target has found worth keeping, and random operations of the same kind, replayed (`fuzz/`).
#![cfg(not(loom))]

#[path = "../../../fuzz/src/model.rs"]
mod model;

mod rng;
use rng::Rng;

#[test]
fn the_corpus_of_the_fuzzer_shows_no_difference_from_a_btree_map() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/tree");
    let mut inputs = 0;
    for file in std::fs::read_dir(corpus).expect("the corpus") {
        model::run(&std::fs::read(file.expect("a file").path()).expect("an input"));
        inputs += 1;
    }
    assert!(inputs > 0, "nothing in {corpus}");
}

#[test]
fn random_operations_show_no_difference_from_a_btree_map() {
    let seed = std::env::var("PAGEONE_SEED").map_or_else(
        |_| std::process::id() as u64 * 0x9e37_79b9,
        |s| s.parse().expect("a number"),
    );
    println!("PAGEONE_SEED={seed}");
    let mut rng = Rng(seed | 1);
    for _ in 0..1500 {
        let n = rng.next() as usize % 12;
        let mut input = vec![rng.next() as u8];
        // Objects of few kinds, so that batches meet each other's.
        let (fill, at) = (rng.next() as u8, rng.next() as u8);
        for _ in 0..n {
            let r = rng.next().to_le_bytes();
            input.extend([
                r[0],
                r[1],
                r[2] & 30,
                fill ^ (r[3] & 1),
                at,
                r[4] & 3,
                r[5] & 9,
            ]);
        }
        model::run(&input);
    }
}

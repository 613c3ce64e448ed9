//! ns per key of a `KeyTree`. `cargo run --release -p sdtree --example keys_speed`

use sdtree::KeyTree;
use std::time::Instant;

fn main() {
    for n in [100_000usize, 1_000_000, 4_000_000] {
        let keys: Vec<u64> = (0..n as u64)
            .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect();
        let (mut ids, mut new) = (vec![0; n], vec![false; n]);
        let mut found = vec![None; n];
        for capacity in [0, n] {
            let tree = KeyTree::new(capacity, b"speed");
            let time = |name: &str, f: &mut dyn FnMut()| {
                let start = Instant::now();
                f();
                println!(
                    "{n} keys, room for {capacity}: {name} {:.1} ns",
                    start.elapsed().as_nanos() as f64 / n as f64
                );
            };
            time("insert", &mut || {
                tree.intern_each(&keys, |i, id, is_new| (ids[i], new[i]) = (id, is_new))
                    .expect("room")
            });
            println!(
                "{:?} {:.1} bytes a key",
                tree.stats().shape,
                tree.stats().index_bytes as f64 / n as f64
            );
            time("intern again", &mut || {
                tree.intern_each(&keys, |i, id, is_new| (ids[i], new[i]) = (id, is_new))
                    .expect("room")
            });
            time("find", &mut || tree.find_each(&keys, |i, id| found[i] = id));
            time("remove", &mut || {
                tree.remove_each(&keys, |i, removed| new[i] = removed)
            });
        }
    }
}

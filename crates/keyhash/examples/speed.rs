//! Prints ns per 4 KiB page of each kernel, for pages in the second-level cache and in memory.
//! `cargo run --release -p keyhash --example speed`

use keyhash::{first_diff, hash64_lines, hash64_on, is_zero, path, Key, Path};
use std::hint::black_box;
use std::time::Instant;

fn time(name: &str, pages: usize, mut f: impl FnMut(usize)) {
    // Five runs, the median: other work on the machine disturbs some.
    let mut ns: Vec<f64> = (0..5)
        .map(|_| {
            let rounds = (200_000 / pages).max(1);
            let start = Instant::now();
            for _ in 0..rounds {
                (0..pages).for_each(&mut f);
            }
            start.elapsed().as_nanos() as f64 / (rounds * pages) as f64
        })
        .collect();
    ns.sort_by(f64::total_cmp);
    println!(
        "{name:28} {:8.1} ns/page  ({:.1} to {:.1})",
        ns[2], ns[0], ns[4]
    );
}

fn main() {
    println!("fastest path: {:?}", path());
    let key = Key::from_seed(b"speed");
    for (place, pages) in [("second-level cache", 64), ("memory", 100_000)] {
        let data: Vec<u8> = (0..pages * 4096)
            .map(|i| (i as u64).wrapping_mul(0x9e3779b97f4a7c15) as u8)
            .collect();
        let copy = data.clone();
        let zeros = vec![0u8; pages * 4096];
        let page = |v: &'_ Vec<u8>, i: usize| v[i * 4096..(i + 1) * 4096].as_ptr();
        // SAFETY: the pointer is that of 4096 bytes of a vector that lives to the end of the loop.
        let slice = |p: *const u8| unsafe { std::slice::from_raw_parts(p, 4096) };
        println!("{place}:");
        for p in [Path::Vaes, Path::AesNi] {
            time(&format!("hash64 {p:?}"), pages, |i| {
                black_box(hash64_on(&key, slice(page(&data, i)), p));
            });
        }
        time("hash64_lines 4", pages, |i| {
            black_box(hash64_lines(
                &key,
                slice(page(&data, i)),
                &[0, 64, 2048, 4032],
            ));
        });
        time("first_diff equal", pages, |i| {
            black_box(first_diff(slice(page(&data, i)), slice(page(&copy, i))));
        });
        time("memcmp equal", pages, |i| {
            black_box(slice(page(&data, i)) == slice(page(&copy, i)));
        });
        time("is_zero of zeros", pages, |i| {
            black_box(is_zero(slice(page(&zeros, i))));
        });
    }
}

//! Criterion: insert-or-find, hits, misses and removals of 4 KiB pages, baseline by baseline, one thread.
//! `cargo bench -p baselines`; the number of pages is in PAGEONE_BENCH_PAGES (100,000).

use baselines::{all, data, make, Rows};
use criterion::{criterion_group, criterion_main, BatchSize, BenchmarkId, Criterion, Throughput};

const SIZE: usize = 4096;

fn bench(c: &mut Criterion) {
    let n: usize = std::env::var("PAGEONE_BENCH_PAGES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(100_000);
    for (kind, copies) in [
        ("random", 1),
        ("random", 2),
        ("tail", 1),
        ("head", 1),
        ("zerohead", 1),
        ("near", 1),
    ] {
        let pages = data::make(kind, n, copies, SIZE, 7).expect("a family");
        let rows = Rows {
            data: &pages,
            size: SIZE,
        };
        let mut group = c.benchmark_group(format!("insert-or-find {kind} x{copies}"));
        group
            .throughput(Throughput::Elements(n as u64))
            .sample_size(10);
        for name in all(1) {
            // Raw order is a chain there: ten seconds for 50,000 pages.
            if (name == "rbtree" && n > 1_000_000) || (name == "sdtree_raw" && kind == "near") {
                continue;
            }
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_batched_ref(
                    || make(name, rows).expect("a baseline"),
                    |peer| peer.insert(0..n),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
    let pages = data::make("random", n, 1, SIZE, 7).expect("a family");
    let others = data::make("random", n, 1, SIZE, 8).expect("a family");
    let (rows, others) = (
        Rows {
            data: &pages,
            size: SIZE,
        },
        Rows {
            data: &others,
            size: SIZE,
        },
    );
    for (what, set) in [("hit", rows), ("miss", others)] {
        let mut group = c.benchmark_group(format!("find {what}"));
        group
            .throughput(Throughput::Elements(n as u64))
            .sample_size(10);
        for name in all(1) {
            let peer = make(name, rows).expect("a baseline");
            peer.insert(0..n);
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| peer.find(set, 0..n))
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);

//! ns per page of the baselines on the families, for tuning. `cargo run --release -p baselines --example quick --
//! PAGES COPIES KINDS BASELINES ROUNDS` (kinds and baselines comma-separated).

use baselines::{data, make, on_cpu, Rows, NAMES};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.into());
    let n: usize = arg(0, "200000").parse().expect("a number of pages");
    let copies: usize = arg(1, "1").parse().expect("a number of copies");
    let kinds = arg(2, &data::KINDS.join(","));
    let names = arg(3, &NAMES[..4].join(","));
    let rounds: usize = arg(4, "5").parse().expect("a number of rounds");
    for kind in kinds.split(',') {
        let pages = data::make(kind, n, copies, 4096, 7).expect("a family");
        let rows = Rows {
            data: &pages,
            size: 4096,
        };
        // Round by round, so that a disturbance hits all alike; the best round counts.
        let names: Vec<&str> = names.split(',').collect();
        let mut best = vec![(f64::MAX, String::new()); names.len()];
        for _ in 0..rounds {
            for (name, best) in names.iter().zip(&mut best) {
                let peer = make(name, rows).expect("a baseline");
                let start = on_cpu();
                let new = (0..n)
                    .step_by(4096)
                    .map(|i| peer.insert(i..n.min(i + 4096)))
                    .sum::<usize>();
                let ns = (on_cpu() - start) / n as f64;
                if ns < best.0 {
                    let bytes = peer.bytes().map_or(0.0, |b| b as f64 / new as f64);
                    *best = (ns, format!("new {new}  {bytes:.1} B  {:?}", peer.depth()));
                }
            }
        }
        for (name, (ns, more)) in names.iter().zip(&best) {
            println!("{kind:12} {name:18} {ns:8.1} ns/page  {more}");
        }
    }
}

//! The peers that the SD tree is measured against: hash tables, a red-black tree, concurrent maps.
//!
//! For: benchmarks only; not part of the shipped wheel (feature `bench` of `bindings`). It may call `sdtree` and
//! the libraries it measures.
//!
//! All baselines index rows of one length that stay where they are, and answer with row numbers; what differs is
//! the index alone. Each is written as well as its kind allows: the tables are presized, keep the full hash beside
//! the row number, and prefetch in batches; the tree compares with `memcmp`, as the kernel's does.

pub mod data;
mod floor;
mod maps;
mod named;
mod peer;
mod rbtree;
mod table;
mod tree;

/// Nanoseconds that this thread has been on a processor: on a machine that others use, too, the wall clock says less.
pub fn on_cpu() -> f64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is a timespec to be written to; the clock is there on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

pub use named::{all, make, FLOORS, NAMES};
pub use peer::{Depth, Peer, Rows};

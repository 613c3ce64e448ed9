//! The peers that the SD tree is measured against: hash tables, a red-black tree, concurrent maps.
//!
//! For: benchmarks only; not part of the shipped wheel (feature `bench` of `bindings`). It may call `sdtree` and
//! the libraries it measures.
//!
//! All contenders index rows of one length that stay where they are, and answer with row numbers; what differs is
//! the index alone. Each is written as well as its kind allows: the tables are presized, keep the full hash beside
//! the row number, and prefetch in batches; the tree compares with `memcmp`, as the kernel's does.

pub mod data;
mod maps;
mod peer;
mod rbtree;
mod table;

pub use peer::{all, make, Depth, Peer, Rows, NAMES};

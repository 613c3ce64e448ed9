//! The peers that the SD tree is measured against: hash tables, a red-black tree, concurrent maps.
//!
//! For: benchmarks only; not part of the shipped wheel (feature `bench` of `bindings`).

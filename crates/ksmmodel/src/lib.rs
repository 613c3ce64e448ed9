//! A model in user space of the kernel's same-page merging algorithm, for comparison.
//!
//! For: benchmarks. It may call `std`; it knows neither the tree nor Python. `bindings` calls it.

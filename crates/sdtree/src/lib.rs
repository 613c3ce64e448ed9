//! The SD tree: a lock-free index that finds equal binary objects among millions.
//!
//! For: ONE and PageONE. It may call `std` and `crossbeam`; it knows neither Linux nor Python, does no I/O
//! and makes no system call. `bindings` calls it; `contenders` measures it.

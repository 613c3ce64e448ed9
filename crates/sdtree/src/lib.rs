//! The SD tree: a lock-free index that finds equal binary objects among millions.
//!
//! For: ONE and PageONE. It may call `std` and `mix`; it knows neither Linux nor Python, does no I/O and makes no
//! system call. `bindings` calls it; `contenders` measures it.
//!
//! [`KeyTree`] numbers 64-bit keys.

#![deny(missing_docs)]

mod arena;
mod edge;
mod epoch;
mod keys;
mod primitive;
mod tree;

pub use edge::PREFIX;
pub use epoch::Full;
pub use keys::{KeyTree, Stats};
pub use tree::Shape;

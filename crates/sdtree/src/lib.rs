//! The SD tree: a lock-free index that finds equal binary objects among millions.
//!
//! For: ONE and PageONE. It may call `std` and `keyhash`; it knows neither Linux nor Python, does no I/O and makes no
//! system call. `bindings` calls it; `contenders` measures it.
//!
//! [`SdTree`] numbers byte strings, [`KeyTree`] 64-bit keys. `docs/sdtree.md` says how and how fast.

#![deny(missing_docs, missing_debug_implementations)]

mod arena;
mod batch;
mod class;
mod edge;
mod epoch;
mod freeze;
mod groups;
mod keys;
mod objects;
mod order;
mod prefetch;
mod primitive;
mod results;
mod sdtree;
mod store;
mod trie;

pub use batch::{Batch, RowBatch};
pub use edge::PREFIX;
pub use epoch::Full;
pub use keys::KeyTree;
pub use order::{AnyOrder, Mixed, Order, Raw, SampledMixed};
pub use results::{Interned, Stats};
pub use sdtree::SdTree;
pub use store::{Fixed, Rows, Store, Variable, MAX_OBJECT};
pub use trie::survey::Shape;

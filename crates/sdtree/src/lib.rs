//! The SD tree: an exact, lock-free set of byte strings with dense ids, which finds equal objects among millions.
//!
//! It may call `std` and `keyhash`; it knows neither Linux nor Python, does no I/O and makes no system call.
//!
//! [`SdTree`] numbers byte strings, [`KeyTree`] 64-bit keys. Where the objects are is a [`Store`]: copies of one length
//! ([`Fixed`]), of any ([`Variable`]), or rows that stay where they lie ([`Rows`]). What is read of an object first is
//! an [`Order`]. Objects come in a [`Batch`].
//!
//! The modules, each of which uses only those before it: `primitive` (atomics, or loom's), `freeze` (where a test may suspend
//! a thread), `edge`, `arena`, `prefetch`; `epoch` (when what was removed may be used again); `class`; `trie` (the tree);
//! `order`, `store`, `batch`, `results`; `objects`, `groups`; `sdtree` and `keys`, which are public.
#![doc = include_str!("../README.md")]
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
pub use order::{AnyOrder, Hashed, Order, Raw, SampledHash};
pub use results::{Interned, Stats};
pub use sdtree::SdTree;
pub use store::{Fixed, Rows, Store, Variable, MAX_OBJECT};
pub use trie::survey::Shape;

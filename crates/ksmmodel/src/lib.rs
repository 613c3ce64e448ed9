//! A model in user space of the kernel's same-page merging algorithm, for comparison.
//!
//! For: benchmarks. It may call `std`, checksum crates and the thread's CPU clock; it knows neither the SD tree nor
//! Python. `bindings` calls it. Written from the documented behaviour of KSM (the kernel's administrator guide, and
//! the essays at the head of `mm/ksm.c`), as of Linux 6.11 and later; no code is taken from there.
//!
//! # What KSM does
//!
//! Every *scan* visits every page once, in order. A page whose checksum differs from the one of the scan before is
//! taken to be changing and left alone. Otherwise the page is looked up in the **stable tree**, a red-black tree of
//! the frames that are already shared, ordered by `memcmp`, and merged when it is there. If not, it is looked up in
//! the **unstable tree**, of pages that looked quiet in this scan: when its twin is there, the two are merged and
//! move to the stable tree; else the page is inserted. The pages of the unstable tree are not write-protected, so it
//! may decay; it is thrown away after each scan and built anew in the next.
//!
//! * A frame has at most `max_page_sharing` sharers. A content with more has several frames, chained at one node.
//! * *Zero pages* (optional): a page whose checksum is that of an empty page is compared with zero.
//! * *Smart scan*: a page that did not merge in several scans is skipped for 1, then 2, 4, at most 8 scans.
//!
//! # What the model leaves out
//!
//! Page tables: walking them, write-protecting, replacing entries, flushing TLBs. So its CPU time is a lower bound
//! for a kernel that used the same checksum, and its counts are the kernel's.
//!
//! # Threads
//!
//! As its author sketched in 2017: the walk, the checksums and the comparisons run side by side; a lock is held for
//! tree changes. Here that is a read-write lock: descents share it, changes take it alone. A place found by a
//! descent is used only if no node came between its two neighbours since; else the descent is done again.

mod checksum;
mod model;
mod rbtree;

pub use checksum::Checksum;
pub use model::{Config, Counts, Model, ScanReport};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

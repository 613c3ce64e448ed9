//! Linux memory of other processes: maps, pagemap, remote reads, userfaultfd, stop-and-run, frames.
//!
//! For: the page engine and the scanner. It may call the kernel; it holds no policy (which pages, when, how
//! many is decided by the callers in Python) and knows neither the tree nor Python. `bindings` calls it.

#![deny(missing_docs)]

pub mod arch;
pub mod changes;
pub mod descriptors;
pub mod failpoints;
pub mod filling;
pub mod guard;
mod hidden;
pub mod hold;
pub mod inject;
pub mod kinds;
mod listing;
pub mod maps;
mod newcomers;
pub mod pagemap;
mod passing;
pub mod pool;
pub mod private_fs;
pub mod process;
pub mod processes;
pub mod ptrace;
pub mod ranges;
pub mod read;
pub mod requests;
pub mod sharers;
pub mod status;
pub mod sys;
pub mod target;
pub mod transfers;
mod turns;
pub mod uffd;
pub mod waits;
pub mod wire;
pub mod workers;

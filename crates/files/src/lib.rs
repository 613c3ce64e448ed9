//! Equal files and equal blocks of files, exactly, and sharing their extents.
//!
//! For: `pageone.files`. It calls the kernel, `keyhash` and the tree (`sdtree`); it knows nothing of Python, and what may
//! share with what is told by its caller. `bindings` calls it.
//!
//! A scan goes `walk → reading → whole → blocks → verify → extents`; `share` comes after it, if at all. Keys of blocks
//! (`keystore`) only say what to compare: `whole` and `verify` compare all bytes, and the kernel compares them again when
//! it shares. `control` stops and slows, `sys` calls.

pub mod blocks;
pub mod control;
pub mod extents;
pub mod keystore;
pub mod reading;
pub mod scan;
pub mod share;
pub mod sys;
pub mod verify;
pub mod walk;
pub mod whole;

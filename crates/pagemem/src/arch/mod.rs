//! The architecture-dependent part: registers, system call numbers, the code that runs inside a target, and the
//! frame that `rt_sigreturn` restores a thread from. One folder an architecture; everything else is common.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

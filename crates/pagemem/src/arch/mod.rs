//! The architecture-dependent part: registers, system call numbers, the code that runs inside a target, and the
//! frame that `rt_sigreturn` restores a thread from. One file an architecture, with the same names in each; everything
//! else, also what the bits of an operation mean, is common.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
mod rest_x86_64;
pub mod slot;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use rest_x86_64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

/// The bits of an operation's number that are the system call's.
pub const NUMBER: u64 = 0xffff_ffff;

/// Flag: argument 1 is the address of the value, mostly of an earlier operation's result.
pub const DEREF_ARG1: u64 = 1 << 48;
/// Flag: argument 2 is the address of the value.
pub const DEREF_ARG2: u64 = 1 << 49;
/// Flag: argument 5 is the address of the value.
pub const DEREF_ARG5: u64 = 1 << 52;
/// No system call: copy `arg 3` bytes from `arg 2` to `arg 1`.
pub const COPY: u64 = 1 << 42;
/// No system call: compare `arg 3` bytes (a multiple of 64) at `arg 1` and `arg 2`. Result: 0 if equal, else 1 + the
/// offset of the first 64 bytes that differ.
pub const COMPARE: u64 = 1 << 43;
/// No system call: the same of `arg 3` bytes at `arg 1` against zero.
pub const COMPARE_ZERO: u64 = 1 << 45;

/// Flag: on any result but 0, also on an error, skip the next `n` operations.
pub const fn skip_unless_zero(n: u64) -> u64 {
    1 << 40 | 1 << 41 | n << 32
}

/// Flag: on an error, skip the next `n` operations.
pub const fn skip_if_error(n: u64) -> u64 {
    1 << 41 | n << 32
}

/// Flag: unless there was an error, skip the next `n` operations.
pub const fn skip_unless_error(n: u64) -> u64 {
    1 << 44 | n << 32
}

/// The signal by which the injected loop reports to its tracer. Its default action is to do nothing, so that a loop
/// whose tracer has died runs on into `rt_sigreturn` unharmed.
pub const REPORT_SIGNAL: i32 = libc::SIGWINCH;

/// A call that a thread is on its way back from.
#[derive(Clone, Copy, Debug)]
pub struct Returned {
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub args: [u64; 6],
    /// What it returns.
    pub result: i64,
}

extern "C" {
    static pageone_loop_start: u8;
    static pageone_loop_result: u8;
    static pageone_loop_done: u8;
    static pageone_loop_end: u8;
}

/// The machine code of the loop: position independent, no data of its own.
pub fn loop_code() -> &'static [u8] {
    let (start, end) = (&raw const pageone_loop_start, &raw const pageone_loop_end);
    // SAFETY: both symbols delimit one object in this library's read-only data, emitted by the `global_asm!` of the
    // architecture in this order; it is never written and lives as long as the program.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// Offset, in the loop's code, of the instruction after the report: where a finished loop is found stopped.
pub fn loop_done_offset() -> u64 {
    (&raw const pageone_loop_done as usize - &raw const pageone_loop_start as usize) as u64
}

/// Offset, in the loop's code, of where an operation's result is taken.
fn loop_result_offset() -> u64 {
    (&raw const pageone_loop_result as usize - &raw const pageone_loop_start as usize) as u64
}

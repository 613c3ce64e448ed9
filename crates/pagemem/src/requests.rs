//! What the kernel is asked of one thread: `ptrace` and `waitpid`, wrapped.
//!
//! Called by [`crate::ptrace`], [`crate::inject`] and [`crate::transfers`]. Nothing here knows what a
//! thread is stopped for.

use std::io;

use crate::arch::REPORT_SIGNAL;
use crate::failpoints;
use crate::sys::check;

const EVENT_STOP: i32 = 128;

pub(crate) fn ptrace(request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
    failpoints::step();
    // SAFETY: only requests that take a plain number as data are issued through here: no memory is touched.
    check(unsafe { libc::ptrace(request, tid, 0, data) }).map(drop)
}

/// What happened to a thread, as `waitpid` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing yet.
    Nothing,
    /// Ended or no longer ours.
    Ended,
    /// Stopped by an interrupt of ours (or just born under a traced parent).
    Interrupted,
    /// Stopped by job control (the process is suspended).
    Suspended,
    /// About to receive this signal.
    Signal(i32),
    /// A ptrace event: number of the event.
    Event(i32),
}

/// Asks once what became of thread `tid`, without waiting. The end of a process's first thread is not told before those of
/// all others have been: where they are not asked for, [`crate::sys::thread_ended`] must be, too.
pub fn poll(tid: i32) -> Wait {
    let mut status = 0;
    // SAFETY: writes one int into a live one.
    let r = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) };
    match r {
        0 => Wait::Nothing,
        r if r < 0 => Wait::Ended,
        _ if !libc::WIFSTOPPED(status) => Wait::Ended,
        _ => match (status >> 16, libc::WSTOPSIG(status)) {
            (0, signal) => Wait::Signal(signal),
            (EVENT_STOP, libc::SIGTRAP) => Wait::Interrupted,
            (EVENT_STOP, _) => Wait::Suspended,
            (event, _) => Wait::Event(event),
        },
    }
}

/// Resumes a stopped thread, delivering `signal` (0: none).
pub fn resume(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, signal as usize)
}

/// Resumes a stopped thread up to where it next enters or leaves a system call ([`CALL_STOP`]), delivering `signal`.
pub fn to_next_call(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SYSCALL, tid, signal as usize)
}

/// Runs one instruction of a stopped thread.
pub fn single_step(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SINGLESTEP, tid, 0)
}

/// Has a seized thread stop soon.
pub fn interrupt(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Lets a stopped thread go, for good.
pub fn leave(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, 0)
}

/// The signal mask of a stopped thread.
pub fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the kernel writes 8 bytes, the size stated, into a live u64.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, 8, &mut mask) })?;
    Ok(mask)
}

/// Sets the signal mask of a stopped thread.
pub fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    failpoints::step();
    // SAFETY: the kernel reads 8 bytes, the size stated, from a live u64.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, 8, &mask) }).map(drop)
}

/// What a thread that runs injected code is kept from receiving: everything but the loop's own report and what faults
/// raise. The kernel takes a handler away from a program that blocks a signal which a fault then raises.
pub const HELD_SIGNALS: u64 = !(bit(REPORT_SIGNAL)
    | bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGILL)
    | bit(libc::SIGFPE)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGSYS));

/// All signals: none can come but those that cannot be held.
pub const ALL_SIGNALS: u64 = HELD_SIGNALS | bit(REPORT_SIGNAL);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Whether the signal that a thread is about to receive was raised by what it did, not sent by somebody.
pub fn is_fault(tid: i32) -> bool {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes one `siginfo_t` at a live place of that type.
    let r = unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr()) };
    // SAFETY: zeroed, then filled; its fields are integers.
    r == 0 && unsafe { info.assume_init() }.si_code > 0
}

pub(crate) fn event_message(tid: i32) -> i32 {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes one unsigned long into a live one.
    unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &mut message) };
    message as i32
}

pub(crate) const FOLLOW_OPTIONS: i32 = libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | PLAIN_OPTIONS;
/// The stops of [`to_next_call`] are then told from signals, and harm nobody should this process die at one.
pub(crate) const PLAIN_OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD;
/// What such a stop is reported as.
pub const CALL_STOP: i32 = libc::SIGTRAP | 0x80;

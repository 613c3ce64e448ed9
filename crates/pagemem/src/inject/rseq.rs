//! Restartable sequences (`struct rseq`) of a thread that runs code of ours: where the kernel keeps them, and how a
//! thread that was interrupted in the midst of one goes on.

use std::io;

use crate::arch::Regs;
use crate::sys::read_remote;

/// What a thread has told the kernel of its part of restartable sequences (`struct rseq`): the kernel's
/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Rseq {
    pub(super) pointer: u64,
    pub(super) size: u32,
    pub(super) signature: u32,
    pub(super) flags: u32,
    pad: u32,
}

/// Where the kernel keeps a thread's part of restartable sequences, mostly in the thread's own data. It writes there
/// whenever the thread returns to the program after it was preempted.
pub(super) fn rseq_of(tid: i32) -> Option<Rseq> {
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    let mut c = Rseq::default();
    // SAFETY: the kernel writes at most the stated size of the structure into a live one.
    let r = unsafe {
        libc::ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            tid,
            std::mem::size_of::<Rseq>(),
            &mut c,
        )
    };
    (r > 0 && c.pointer != 0).then_some(c)
}

/// Restartable sequences: a thread interrupted inside one must resume at its abort handler once other code has run
/// in it, for the kernel forgets the sequence when it sees a foreign instruction pointer.
pub(super) fn leave_rseq(tid: i32, regs: &mut Regs) -> io::Result<()> {
    let Some(rseq) = rseq_of(tid) else {
        return Ok(());
    };
    let mut word = [0u8; 8];
    if read_remote(tid, rseq.pointer + 8, &mut word)? != 8 {
        return Ok(());
    }
    let at = u64::from_le_bytes(word);
    if at == 0 {
        return Ok(());
    }
    let mut d = [0u8; 32];
    if read_remote(tid, at, &mut d)? != 32 {
        return Ok(());
    }
    let field = |i: usize| u64::from_le_bytes(d[i..i + 8].try_into().expect("8 bytes"));
    let (start, length, abort) = (field(8), field(16), field(24));
    if regs.ip().wrapping_sub(start) < length {
        regs.set_ip(abort);
    }
    Ok(())
}

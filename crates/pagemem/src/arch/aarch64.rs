//! AArch64: written from the kernel's sources and compiled, never run. See `docs/limits.md` for what is known to be
//! different here.
//!
//! The kernel has already prepared a restart when a tracer sees a stopped thread (`arch/arm64/kernel/signal.c`,
//! `do_signal`): the program counter stands on the call, the first argument is back in its register, and the thread is in
//! no call any more. So nothing is left to do for calls that restart; but of calls that do not, the first argument is
//! lost, and they end with `EINTR`.

use std::arch::global_asm;
use std::io;
use std::time::Duration;

use super::{loop_result_offset, REPORT_SIGNAL};
use crate::sys::check;

/// System call numbers that the merger runs inside targets.
pub mod nr {
    #![allow(missing_docs)]
    pub const IOCTL: u64 = 29;
    pub const CLOSE: u64 = 57;
    pub const NANOSLEEP: u64 = 101;
    pub const PRCTL: u64 = 167;
    pub const SOCKETPAIR: u64 = 199;
    pub const RECVMSG: u64 = 212;
    pub const BRK: u64 = 214;
    pub const MUNMAP: u64 = 215;
    pub const MREMAP: u64 = 216;
    pub const MMAP: u64 = 222;
    pub const MPROTECT: u64 = 226;
    pub const MADVISE: u64 = 233;
    pub const PROCESS_MADVISE: u64 = 440;
    pub const MLOCK: u64 = 228;
    pub const USERFAULTFD: u64 = 282;
    pub const RSEQ: u64 = 293;
}

/// Calls that the kernel may go on with through `restart_syscall`: clock_nanosleep, futex, nanosleep, ppoll and that.
const RESTART_BLOCKS: [u64; 5] = [115, 98, 101, 73, 128];

/// `svc #0; ret`: every C library has that.
pub const CALL_AND_RETURN: &[u8] = &[0x01, 0, 0, 0xd4, 0xc0, 0x03, 0x5f, 0xd6];
/// `mov x8, #139; svc #0`: how signal handlers return, `rt_sigreturn`, in the vDSO.
pub const SIGNAL_RETURN: [&[u8]; 1] = [&[0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4]];
/// Instructions begin at multiples of this.
pub const CODE_ALIGN: u64 = 4;
/// Bytes below the stack pointer that belong to the function that runs.
pub const RED_ZONE: u64 = 0;

// The loop. x19: next operation, x20: operations left, x21: what sp must be for rt_sigreturn, x22: flags.
// An operation is 64 bytes: number, six arguments, result; the number carries the flags of this folder's `mod.rs`.
global_asm!(
    ".pushsection .rodata.pageone_loop,\"a\",@progbits",
    ".balign 16",
    // Known beyond the unit of code that the compiler happens to put this into.
    ".globl pageone_loop_done",
    ".hidden pageone_loop_done",
    ".globl pageone_loop_end",
    ".hidden pageone_loop_end",
    ".globl pageone_loop_result",
    ".hidden pageone_loop_result",
    ".globl pageone_loop_start",
    ".hidden pageone_loop_start",
    "pageone_loop_start:",
    "20: cbz x20, 70f",
    "ldr x22, [x19]",
    "ldp x0, x1, [x19, #8]",
    "ldp x2, x3, [x19, #24]",
    "ldp x4, x5, [x19, #40]",
    "tbz x22, #48, 21f", // arguments that are addresses of values
    "ldr x0, [x0]",
    "21: tbz x22, #49, 22f",
    "ldr x1, [x1]",
    "22: tbz x22, #52, 23f",
    "ldr x4, [x4]",
    "23: tbnz x22, #42, 40f",
    "tbnz x22, #43, 50f",
    "tbnz x22, #45, 55f",
    "mov w8, w22",
    "svc #0",
    // Result in x0. Skip operations, where the flags say so.
    "pageone_loop_result:",
    "30: str x0, [x19, #56]",
    "mov x9, #0",
    "cmn x0, #4095",
    "b.hs 31f",
    "tbnz x22, #44, 33f", // skip unless error
    "tbz x22, #40, 34f",  // skip if not zero
    "cbnz x0, 33f",
    "b 34f",
    "31: tbz x22, #41, 34f", // skip if error
    "33: ubfx x9, x22, #32, #8",
    "34: add x9, x9, #1",
    "cmp x9, x20",
    "csel x9, x20, x9, hi",
    "sub x20, x20, x9",
    "add x19, x19, x9, lsl #6",
    "b 20b",
    // Copy x2 bytes from x1 to x0.
    "40: lsr x6, x2, #4",
    "and x7, x2, #15",
    "cbz x6, 42f",
    "41: ldp x3, x4, [x1], #16",
    "stp x3, x4, [x0], #16",
    "subs x6, x6, #1",
    "b.ne 41b",
    "42: cbz x7, 52f",
    "43: ldrb w3, [x1], #1",
    "strb w3, [x0], #1",
    "subs x7, x7, #1",
    "b.ne 43b",
    "b 52f",
    // Compare x2 bytes at x0 and x1, 64 at a time: 0, or 1 + offset of the first block that differs.
    "50: mov x3, #0",
    "51: cmp x3, x2",
    "b.hs 52f",
    "add x4, x0, x3",
    "add x5, x1, x3",
    "ldp x6, x7, [x4]",
    "ldp x8, x9, [x5]",
    "eor x6, x6, x8",
    "eor x7, x7, x9",
    "orr x10, x6, x7",
    "ldp x6, x7, [x4, #16]",
    "ldp x8, x9, [x5, #16]",
    "eor x6, x6, x8",
    "eor x7, x7, x9",
    "orr x6, x6, x7",
    "orr x10, x10, x6",
    "ldp x6, x7, [x4, #32]",
    "ldp x8, x9, [x5, #32]",
    "eor x6, x6, x8",
    "eor x7, x7, x9",
    "orr x6, x6, x7",
    "orr x10, x10, x6",
    "ldp x6, x7, [x4, #48]",
    "ldp x8, x9, [x5, #48]",
    "eor x6, x6, x8",
    "eor x7, x7, x9",
    "orr x6, x6, x7",
    "orr x10, x10, x6",
    "cbnz x10, 53f",
    "add x3, x3, #64",
    "b 51b",
    "52: mov x0, #0",
    "b 30b",
    "53: add x0, x3, #1",
    "b 30b",
    // The same against zero.
    "55: mov x3, #0",
    "56: cmp x3, x2",
    "b.hs 52b",
    "add x4, x0, x3",
    "ldp x6, x7, [x4]",
    "ldp x8, x9, [x4, #16]",
    "orr x6, x6, x7",
    "orr x8, x8, x9",
    "orr x10, x6, x8",
    "ldp x6, x7, [x4, #32]",
    "ldp x8, x9, [x4, #48]",
    "orr x6, x6, x7",
    "orr x8, x8, x9",
    "orr x6, x6, x8",
    "orr x10, x10, x6",
    "cbnz x10, 53b",
    "add x3, x3, #64",
    "b 56b",
    "70: mov x8, #172", // getpid
    "svc #0",
    "mov x23, x0",
    "mov x8, #178", // gettid
    "svc #0",
    "mov x1, x0",
    "mov x0, x23",
    "mov x2, #{sig}",
    "mov x8, #131", // tgkill
    "svc #0",
    "pageone_loop_done:",
    "mov sp, x21",
    "mov x8, #139", // rt_sigreturn
    "svc #0",
    "brk #0",
    "pageone_loop_end:",
    ".popsection",
    sig = const REPORT_SIGNAL,
);

/// `struct user_pt_regs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct General {
    x: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
}

/// The general registers of a stopped thread.
#[derive(Clone, Copy, Debug)]
pub struct Regs {
    general: General,
    /// `TPIDR_EL0`, never changed.
    thread: u64,
}

const NT_PRSTATUS: libc::c_int = 1;
const NT_PRFPREG: libc::c_int = 2;
const NT_ARM_TLS: libc::c_int = 0x401;
const NT_ARM_SVE: libc::c_int = 0x405;
const NT_ARM_SSVE: libc::c_int = 0x40b;
const NT_ARM_GCS: libc::c_int = 0x410;

/// Reads a set of registers into `buffer`; the number of bytes that it has.
fn register_set(tid: i32, which: libc::c_int, buffer: &mut [u8]) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: the kernel writes at most `iov_len` bytes into the buffer that `iov` describes and sets `iov_len`.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, which, &mut iov) })?;
    Ok(iov.iov_len)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

/// The code that carries out the rest of a transfer: there is none.
pub fn rest_code() -> &'static [u8] {
    &[]
}
/// The instruction before the place that a call returns to: never asked for.
pub const CALL: [u8; 2] = [0; 2];

impl Regs {
    /// Reads the registers of thread `tid`, which must be stopped by this tracer.
    pub fn get(tid: i32) -> io::Result<Self> {
        let mut bytes = [0u8; std::mem::size_of::<General>()];
        register_set(tid, NT_PRSTATUS, &mut bytes)?;
        let mut general = General::default();
        for (i, x) in general.x.iter_mut().enumerate() {
            *x = word(&bytes, 8 * i);
        }
        (general.sp, general.pc, general.pstate) =
            (word(&bytes, 248), word(&bytes, 256), word(&bytes, 264));
        let mut thread = [0u8; 16];
        register_set(tid, NT_ARM_TLS, &mut thread)?;
        Ok(Self {
            general,
            thread: word(&thread, 0),
        })
    }

    /// Writes the registers of thread `tid`, which must be stopped by this tracer.
    pub fn set(&self, tid: i32) -> io::Result<()> {
        crate::failpoints::step();
        let mut general = self.general;
        let mut iov = libc::iovec {
            iov_base: (&raw mut general).cast(),
            iov_len: std::mem::size_of::<General>(),
        };
        // SAFETY: the kernel reads one `user_pt_regs` from a live one of that type.
        check(unsafe { libc::ptrace(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, &mut iov) }).map(drop)
    }

    /// The instruction pointer.
    pub fn ip(&self) -> u64 {
        self.general.pc
    }

    /// Sets the instruction pointer.
    pub fn set_ip(&mut self, ip: u64) {
        self.general.pc = ip;
    }

    /// The system call that the thread was stopped in, and its first three arguments: cannot be told here.
    pub fn syscall(&self) -> Option<(u64, [u64; 3])> {
        None
    }

    /// Of a thread on its way back from `mremap`, which has moved `bytes` from one address to another: how many bytes the
    /// range has now, and whether the old one is still mapped. The first argument, the old address, is lost.
    pub fn moved(&self, _from: u64, to: u64, bytes: u64) -> Option<(u64, bool)> {
        let x = &self.general.x;
        ((x[8], x[1], x[0]) == (nr::MREMAP, bytes, to))
            .then_some((x[2], x[3] & libc::MREMAP_DONTUNMAP as u64 != 0))
    }

    /// What the system call returned, when stopped on the way back from one.
    pub fn result(&self) -> i64 {
        self.general.x[0] as i64
    }

    /// Whether the thread may be in a system call that the kernel would restart through `restart_syscall`, state that
    /// `rt_sigreturn` would lose: such a thread is the last choice for running the loop.
    pub fn in_restart_block(&self) -> bool {
        RESTART_BLOCKS.contains(&self.general.x[8])
    }

    /// The timeout of the wait that the thread's stop has ended with `EINTR`: its first argument is lost, so it ends.
    pub fn interrupted_wait(&self) -> Option<Option<Duration>> {
        None
    }

    /// The call that the thread is on its way back from: cannot be told, for its first argument is lost. Transfers that a
    /// stop cuts short stay short here.
    pub fn returned(&self) -> Option<super::Returned> {
        None
    }

    /// What the code for the rest of a transfer is to give back: never asked for.
    pub fn saved_for_rest(&self) -> ([u64; 9], u64) {
        ([0; 9], self.general.pc)
    }

    /// Registers that make the thread run that code: never asked for.
    pub fn for_rest(&self, _code: u64, _slot: u64) -> Self {
        *self
    }

    /// Registers with which an interrupted wait goes on: never asked for.
    pub fn waiting_on(&self, _left: Option<Duration>) -> Self {
        *self
    }

    /// Whether this is a wait that a stop met before: never asked for.
    pub fn goes_on(&self, _before: &Self) -> bool {
        false
    }

    /// The fourth argument of the system call that the thread was stopped in.
    pub fn fourth_argument(&self) -> u64 {
        self.general.x[3]
    }

    /// Has the system call, on whose way back the thread was stopped, begin again: never asked for, since the first
    /// argument is lost.
    pub fn begin_again(&mut self) {}

    /// The stack pointer.
    pub fn stack(&self) -> u64 {
        self.general.sp
    }

    /// Address of the thread's own data, which the C library keeps at the upper end of its stack.
    pub fn thread_area(&self) -> u64 {
        self.thread
    }

    /// Registers that make the thread run one system call at `code` ([`CALL_AND_RETURN`]) and then return through a
    /// frame, if there is one, to what it was doing: `back` is where the frame and where [`SIGNAL_RETURN`] code is.
    pub fn for_one_call(
        &self,
        code: u64,
        back: Option<(u64, u64)>,
        number: u64,
        args: [u64; 6],
    ) -> Self {
        let mut r = *self;
        r.general.pc = code;
        r.general.x[8] = number;
        r.general.x[..6].copy_from_slice(&args);
        if let Some((frame, returning)) = back {
            r.general.sp = frame;
            r.general.x[30] = returning;
        }
        r
    }

    /// Registers that make the thread run the loop over `count` operations at `ops`.
    pub fn for_loop(&self, code: u64, ops: u64, count: u64, stack: u64, frame: u64) -> Self {
        let mut r = *self;
        r.general.pc = code;
        r.general.x[19] = ops;
        r.general.x[20] = count;
        r.general.x[21] = frame;
        r.general.sp = stack;
        r
    }

    /// Makes the operation that the loop at `code` is in end with `EFAULT`.
    pub fn fail_operation(&mut self, code: u64) {
        self.general.pc = code + loop_result_offset();
        self.general.x[0] = (-i64::from(libc::EFAULT)) as u64;
    }
}

// Offsets in `struct rt_sigframe`: a siginfo, then a ucontext, in it a sigcontext with records of what is optional.
const UCONTEXT: usize = 128;
const STACK_FLAGS: usize = UCONTEXT + 24;
const SIGNAL_MASK: usize = UCONTEXT + 40;
const SIGCONTEXT: usize = UCONTEXT + 176;
const RECORDS: usize = SIGCONTEXT + 288;
const RECORDS_SIZE: usize = 4096;
const FPSIMD_MAGIC: u32 = 0x4650_8001;
const FPSIMD_SIZE: usize = 528;
const SVE_MAGIC: u32 = 0x5356_4501;
/// In the header of a register set: all of the scalable registers are there, not only the narrow ones.
const SVE_FULL: u16 = 1;

/// Builds the frame from which `rt_sigreturn` gives thread `tid` (stopped, with `regs` and signal mask `mask`) back all
/// its registers, vector state included, were its tracer to die. `_at` is where the frame will stand in the target, a
/// multiple of 64. Source: `arch/arm64/kernel/signal.c`, `struct rt_sigframe`.
///
/// Refused are threads whose state does not fit the frame or would need more of it: streaming vectors (SME), vectors of
/// more than 64 bytes, guarded control stacks.
pub fn signal_frame(tid: i32, regs: &Regs, mask: u64, _at: u64, _back: u64) -> io::Result<Vec<u8>> {
    let mut f = vec![0u8; RECORDS + RECORDS_SIZE];
    let refuse = |what: &str| io::Error::new(io::ErrorKind::Unsupported, what.to_owned());
    let mut header = [0u8; 16];
    if register_set(tid, NT_ARM_SSVE, &mut header).is_ok() && half(&header, 12) & SVE_FULL != 0 {
        return Err(refuse("a thread in streaming vector mode"));
    }
    if register_set(tid, NT_ARM_GCS, &mut header).is_ok() && word(&header, 0) != 0 {
        return Err(refuse("a thread with a guarded control stack"));
    }
    let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
    // Invalid on purpose, so that the thread's alternate stack is left as it is.
    put(STACK_FLAGS, &0x7777u32.to_le_bytes());
    put(SIGNAL_MASK, &mask.to_le_bytes());
    let g = &regs.general;
    let words = g.x.iter().chain([&g.sp, &g.pc, &g.pstate]);
    for (i, w) in words.enumerate() {
        put(SIGCONTEXT + 8 + 8 * i, &w.to_le_bytes());
    }
    // `struct user_fpsimd_state`: the vectors, then fpsr and fpcr, which the record has first.
    let mut vectors = [0u8; 528];
    register_set(tid, NT_PRFPREG, &mut vectors)?;
    put(RECORDS, &FPSIMD_MAGIC.to_le_bytes());
    put(RECORDS + 4, &(FPSIMD_SIZE as u32).to_le_bytes());
    put(RECORDS + 8, &vectors[512..520]);
    put(RECORDS + 16, &vectors[..512]);
    // The scalable registers stand in the register set as they do in the record, after a header of the same size.
    let mut scalable = vec![0u8; 1 << 14];
    if let Ok(n) = register_set(tid, NT_ARM_SVE, &mut scalable) {
        if n >= 16 && half(&scalable, 12) & SVE_FULL != 0 {
            let length = usize::from(half(&scalable, 8));
            let size = (16 + 32 * length + 17 * length / 8).next_multiple_of(16);
            if FPSIMD_SIZE + size + 8 > RECORDS_SIZE || n < size {
                return Err(refuse("vectors of more than 64 bytes"));
            }
            let at = RECORDS + FPSIMD_SIZE;
            put(at, &SVE_MAGIC.to_le_bytes());
            put(at + 4, &(size as u32).to_le_bytes());
            put(at + 8, &scalable[8..10]);
            put(at + 16, &scalable[16..size]);
        }
    }
    Ok(f)
}

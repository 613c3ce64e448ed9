//! x86-64: registers, the injected loop of system calls, and the signal frame that undoes it.

use std::arch::global_asm;
use std::io;

use super::{loop_result_offset, REPORT_SIGNAL};
use crate::sys::check;

/// System call numbers that the merger runs inside targets.
pub mod nr {
    #![allow(missing_docs)]
    pub const CLOSE: u64 = 3;
    pub const MMAP: u64 = 9;
    pub const MPROTECT: u64 = 10;
    pub const MUNMAP: u64 = 11;
    pub const BRK: u64 = 12;
    pub const IOCTL: u64 = 16;
    pub const MREMAP: u64 = 25;
    pub const MADVISE: u64 = 28;
    pub const PROCESS_MADVISE: u64 = 440;
    pub const MLOCK: u64 = 149;
    pub const NANOSLEEP: u64 = 35;
    pub const RECVMSG: u64 = 47;
    pub const SOCKETPAIR: u64 = 53;
    pub const PRCTL: u64 = 157;
    pub const USERFAULTFD: u64 = 323;
    pub const RSEQ: u64 = 334;
}

/// `syscall; ret`: every C library has that.
pub const CALL_AND_RETURN: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov $15, %eax; syscall`, in its two encodings: how signal handlers return, `rt_sigreturn`.
pub const SIGNAL_RETURN: [&[u8]; 2] = [
    &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05],
    &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05],
];
/// Instructions begin at multiples of this.
pub const CODE_ALIGN: u64 = 1;
/// Bytes below the stack pointer that belong to the function that runs.
pub const RED_ZONE: u64 = 128;

// The loop. rbx: next operation, r12: operations left, r14: what rsp must be for rt_sigreturn.
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
    "20: test r12, r12",
    "jz 70f",
    "mov r15, [rbx]",
    "mov rdi, [rbx+8]",
    "mov rsi, [rbx+16]",
    "mov rdx, [rbx+24]",
    "mov r10, [rbx+32]",
    "mov r8, [rbx+40]",
    "mov r9, [rbx+48]",
    "bt r15, 48", // arguments that are addresses of values
    "jnc 21f",
    "mov rdi, [rdi]",
    "21: bt r15, 49",
    "jnc 22f",
    "mov rsi, [rsi]",
    "22: bt r15, 52",
    "jnc 23f",
    "mov r8, [r8]",
    "23: bt r15, 42",
    "jc 40f",
    "bt r15, 43",
    "jc 50f",
    "bt r15, 45",
    "jc 55f",
    "mov eax, r15d",
    "syscall",
    // Result in rax. Skip operations, where the flags say so.
    "pageone_loop_result:",
    "30: mov [rbx+56], rax",
    "xor ecx, ecx",
    "cmp rax, -4095",
    "jae 31f",
    "bt r15, 44", // skip unless error
    "jc 33f",
    "bt r15, 40", // skip if not zero
    "jnc 34f",
    "test rax, rax",
    "jnz 33f",
    "jmp 34f",
    "31: bt r15, 41", // skip if error
    "jnc 34f",
    "33: mov rcx, r15",
    "shr rcx, 32",
    "and ecx, 0xff",
    "34: inc rcx",
    "cmp rcx, r12",
    "cmova rcx, r12",
    "sub r12, rcx",
    "shl rcx, 6",
    "add rbx, rcx",
    "jmp 20b",
    // Copy rdx bytes from rsi to rdi.
    "40: mov rcx, rdx",
    "cld",
    "rep movsb",
    "xor eax, eax",
    "jmp 30b",
    // Compare rdx bytes at rdi and rsi, 64 at a time: 0, or 1 + offset of the first block that differs.
    "50: xor ecx, ecx",
    "51: cmp rcx, rdx",
    "jae 52f",
    "mov rax, [rdi+rcx]",
    "xor rax, [rsi+rcx]",
    "mov r8, [rdi+rcx+8]",
    "xor r8, [rsi+rcx+8]",
    "mov r9, [rdi+rcx+16]",
    "xor r9, [rsi+rcx+16]",
    "mov r10, [rdi+rcx+24]",
    "xor r10, [rsi+rcx+24]",
    "or rax, r8",
    "or r9, r10",
    "or rax, r9",
    "mov r8, [rdi+rcx+32]",
    "xor r8, [rsi+rcx+32]",
    "mov r9, [rdi+rcx+40]",
    "xor r9, [rsi+rcx+40]",
    "mov r10, [rdi+rcx+48]",
    "xor r10, [rsi+rcx+48]",
    "mov r11, [rdi+rcx+56]",
    "xor r11, [rsi+rcx+56]",
    "or r8, r9",
    "or r10, r11",
    "or rax, r8",
    "or rax, r10",
    "jnz 53f",
    "add rcx, 64",
    "jmp 51b",
    "52: xor eax, eax",
    "jmp 30b",
    "53: lea rax, [rcx+1]",
    "jmp 30b",
    // The same against zero.
    "55: xor ecx, ecx",
    "56: cmp rcx, rdx",
    "jae 52b",
    "mov rax, [rdi+rcx]",
    "or rax, [rdi+rcx+8]",
    "or rax, [rdi+rcx+16]",
    "or rax, [rdi+rcx+24]",
    "or rax, [rdi+rcx+32]",
    "or rax, [rdi+rcx+40]",
    "or rax, [rdi+rcx+48]",
    "or rax, [rdi+rcx+56]",
    "jnz 53b",
    "add rcx, 64",
    "jmp 56b",
    "70: mov eax, 39", // getpid
    "syscall",
    "mov edi, eax",
    "mov eax, 186", // gettid
    "syscall",
    "mov esi, eax",
    "mov edx, {sig}",
    "mov eax, 234", // tgkill
    "syscall",
    "pageone_loop_done:",
    "mov rsp, r14",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    "ud2",
    "pageone_loop_end:",
    ".popsection",
    sig = const REPORT_SIGNAL,
);

/// The general registers of a stopped thread.
#[derive(Clone, Copy, Debug)]
pub struct Regs(pub libc::user_regs_struct);

impl Regs {
    /// Reads the registers of thread `tid`, which must be stopped by this tracer.
    pub fn get(tid: i32) -> io::Result<Self> {
        let mut r = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
        // SAFETY: the kernel writes one `user_regs_struct` at the pointer, which has exactly that type and size.
        check(unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0, r.as_mut_ptr()) })?;
        // SAFETY: zeroed before, then filled by the kernel; all bit patterns are valid for its integer fields.
        Ok(Self(unsafe { r.assume_init() }))
    }

    /// Writes the registers of thread `tid`, which must be stopped by this tracer.
    pub fn set(&self, tid: i32) -> io::Result<()> {
        crate::failpoints::step();
        // SAFETY: the kernel reads one `user_regs_struct` from a live reference.
        check(unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0, &self.0) }).map(drop)
    }

    /// The instruction pointer.
    pub fn ip(&self) -> u64 {
        self.0.rip
    }

    /// Sets the instruction pointer.
    pub fn set_ip(&mut self, ip: u64) {
        self.0.rip = ip;
    }

    /// The system call that the thread was stopped in, and its first three arguments; None outside of one.
    pub fn syscall(&self) -> Option<(u64, [u64; 3])> {
        ((self.0.orig_rax as i64) >= 0)
            .then_some((self.0.orig_rax, [self.0.rdi, self.0.rsi, self.0.rdx]))
    }

    /// Of a thread on its way back from `mremap`, which has moved `bytes` from one address to another: how many bytes the
    /// range has now, and whether the old one is still mapped.
    pub fn moved(&self, from: u64, to: u64, bytes: u64) -> Option<(u64, bool)> {
        let r = &self.0;
        (self.syscall()? == (nr::MREMAP, [from, bytes, r.rdx]) && r.rax == to)
            .then_some((r.rdx, r.r10 & libc::MREMAP_DONTUNMAP as u64 != 0))
    }

    /// What the system call returned, when stopped on the way back from one.
    pub fn result(&self) -> i64 {
        self.0.rax as i64
    }

    /// Whether the thread is in a system call that the kernel would restart through `restart_syscall`, state that
    /// `rt_sigreturn` would lose: such a thread is the last choice for running the loop.
    pub fn in_restart_block(&self) -> bool {
        self.syscall().is_some() && self.result() == -516
    }

    /// The timeout (None: for ever) of the wait that the thread's stop has ended with `EINTR`. Only for calls that the
    /// kernel does not restart by itself: all others it does, with the time that is left.
    pub fn interrupted_wait(&self) -> Option<Option<std::time::Duration>> {
        let (number, _) = self.syscall()?;
        if self.result() != -i64::from(libc::EINTR) {
            return None;
        }
        match number as i64 {
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
                let ms = self.0.r10 as i32;
                Some(u64::try_from(ms).ok().map(std::time::Duration::from_millis))
            }
            // Their timeouts stand in memory, which is not touched: only endless waits are begun again.
            libc::SYS_epoll_pwait2 | libc::SYS_semtimedop if self.0.r10 == 0 => Some(None),
            libc::SYS_rt_sigtimedwait if self.0.rdx == 0 => Some(None),
            libc::SYS_semop => Some(None),
            _ => None,
        }
    }

    /// Registers with which an interrupted wait goes on, for `left` or for ever.
    pub fn waiting_on(&self, left: Option<std::time::Duration>) -> Self {
        const RESTART_UNLESS_HANDLED: i64 = -514; // ERESTARTNOHAND: EINTR if a handler runs
        let mut r = *self;
        r.0.rax = RESTART_UNLESS_HANDLED as u64;
        if let Some(left) = left {
            r.0.r10 = SHORTENED << 32 | left.as_micros().div_ceil(1000) as u64;
        }
        r
    }

    /// Whether this is the wait that a stop met before with the registers `before`, shortened then.
    pub fn goes_on(&self, before: &Self) -> bool {
        let (a, b) = (&self.0, &before.0);
        a.r10 >> 32 == SHORTENED
            && (a.orig_rax, a.rdi, a.rsi, a.rdx, a.rsp, a.rip)
                == (b.orig_rax, b.rdi, b.rsi, b.rdx, b.rsp, b.rip)
    }

    /// The fourth argument of the system call that the thread was stopped in.
    pub fn fourth_argument(&self) -> u64 {
        self.0.r10
    }

    /// Has the system call, on whose way back the thread was stopped, begin again.
    pub fn begin_again(&mut self) {
        const RESTART_ALWAYS: i64 = -513; // ERESTARTNOINTR
        self.0.rax = RESTART_ALWAYS as u64;
    }

    /// The stack pointer.
    pub fn stack(&self) -> u64 {
        self.0.rsp
    }

    /// Address of the thread's own data, which the C library keeps at the upper end of its stack.
    pub fn thread_area(&self) -> u64 {
        self.0.fs_base
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
        r.0.rip = code;
        r.0.rax = number;
        r.0.orig_rax = u64::MAX;
        [r.0.rdi, r.0.rsi, r.0.rdx, r.0.r10, r.0.r8, r.0.r9] = args;
        // Its first word is where the call returns to.
        if let Some((frame, _)) = back {
            r.0.rsp = frame;
        }
        r
    }

    /// Registers that make the thread run the loop over `count` operations at `ops`.
    pub fn for_loop(&self, code: u64, ops: u64, count: u64, stack: u64, frame: u64) -> Self {
        let mut r = *self;
        r.0.rip = code;
        r.0.orig_rax = u64::MAX;
        r.0.rbx = ops;
        r.0.r12 = count;
        r.0.r14 = frame + 8;
        r.0.rsp = stack;
        r.0.eflags &= !0x400; // direction flag
        r
    }

    /// Makes the operation that the loop at `code` is in end with `EFAULT`.
    pub fn fail_operation(&mut self, code: u64) {
        self.0.rip = code + loop_result_offset();
        self.0.rax = (-i64::from(libc::EFAULT)) as u64;
        self.0.orig_rax = u64::MAX;
    }

    /// The registers with which the interrupted system call, if any, is issued again: what the kernel does for a
    /// signal without a handler. Calls with a timeout start it anew.
    fn restarted(&self) -> Self {
        let mut r = *self;
        if self.syscall().is_some() && matches!(self.result(), -512 | -513 | -514 | -516) {
            r.0.rax = r.0.orig_rax;
            r.0.rip -= 2;
        }
        r
    }
}

/// Bytes that [`signal_frame`] needs before the floating point state.
const XSTATE_OFFSET: usize = 1024;
/// Mark, in the half of the register that the kernel does not read, of a timeout that a stop has shortened.
const SHORTENED: u64 = 0x5047_4f4e;
const NT_X86_XSTATE: libc::c_int = 0x202;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;

/// Builds the frame from which `rt_sigreturn` gives thread `tid` (stopped, with `regs` and signal mask `mask`) back all
/// its registers, vector state included, were its tracer to die. `at` is where the frame will stand in the target
/// (a multiple of 64), `back` the address of [`SIGNAL_RETURN`] code where the frame is entered by returning to it.
/// Source: `arch/x86/kernel/signal_64.c`, `struct rt_sigframe`.
pub fn signal_frame(tid: i32, regs: &Regs, mask: u64, at: u64, back: u64) -> io::Result<Vec<u8>> {
    let mut x = vec![0u8; 16384];
    let mut iov = libc::iovec {
        iov_base: x.as_mut_ptr().cast(),
        iov_len: x.len(),
    };
    // SAFETY: the kernel writes at most `iov_len` bytes into the vector that `iov` describes and sets `iov_len`.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, &mut iov) })?;
    let xsize = iov.iov_len;
    let xcr0 = u64::from_le_bytes(x[464..472].try_into().expect("8 bytes"));
    x.truncate(xsize);
    x[464..512].fill(0);
    x[464..468].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    x[468..472].copy_from_slice(&((xsize + 4) as u32).to_le_bytes());
    x[472..480].copy_from_slice(&xcr0.to_le_bytes());
    x[480..484].copy_from_slice(&(xsize as u32).to_le_bytes());
    x.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());

    let r = regs.restarted().0;
    let mut f = vec![0u8; XSTATE_OFFSET];
    let mut put = |offset: usize, v: u64| f[offset..offset + 8].copy_from_slice(&v.to_le_bytes());
    put(0, back); // where a `ret` with the frame as its stack goes
    put(8, 0x7); // uc_flags: FP_XSTATE, SIGCONTEXT_SS, STRICT_RESTORE_SS
    put(16, 0); // uc_link
    put(24, 0); // ss_sp
    put(32, 0x7777); // ss_flags: invalid on purpose, so that the thread's alternate stack is left as it is
    put(40, 0); // ss_size
    let words = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx,
        r.rax, r.rcx, r.rsp, r.rip, r.eflags,
    ];
    for (i, w) in words.iter().enumerate() {
        put(48 + 8 * i, *w);
    }
    put(48 + 8 * 18, (r.cs & 0xffff) | (r.ss & 0xffff) << 48); // cs, gs, fs, ss
    put(48 + 8 * 23, at + XSTATE_OFFSET as u64); // fpstate, after err, trapno, oldmask, cr2
    put(48 + 8 * 32, mask); // uc_sigmask
    f.extend_from_slice(&x);
    Ok(f)
}

//! x86-64: the code that carries out the rest of a transfer in the thread that began it.

use std::arch::global_asm;
use std::mem::offset_of;

use super::slot::{Slot, ISSUE_AGAIN, KEEP_ERROR, KEEP_ERROR_READING, LEFT};
use super::{Regs, Returned};

const ERRORS: u16 = (libc::POLLERR | libc::POLLNVAL) as u16;
const ARGS: usize = offset_of!(Slot, args);
const SAVED: usize = offset_of!(Slot, saved);

// rbx: the slot. The stack is the program's and not used; nothing but general registers and flags changes, and all of
// these are put back but rcx and r11, which a system call changes, too.
//
// It waits with the program's own signal mask and does everything else, none of which blocks, with all signals held:
// so a signal that comes at any instruction ends the wait, as it would end the program's own call.
global_asm!(
    ".pushsection .rodata.pageone_rest,\"a\",@progbits",
    ".balign 16",
    ".globl pageone_rest_start",
    ".hidden pageone_rest_start",
    ".globl pageone_rest_end",
    ".hidden pageone_rest_end",
    "pageone_rest_start:",
    "10: lea rdi, [rbx+{fd}]",
    "mov rsi, [rbx+{awaited}]",
    "mov rdx, [rbx+{timeout_at}]",
    "lea r10, [rbx+{wait_mask}]",
    "mov r8d, 8",
    "mov eax, 271", // ppoll; interrupted by a tracer the kernel restarts it, with the time that is left
    "syscall",
    "test rax, rax",
    "js 91f",
    "jnz 20f",
    "cmp qword ptr [rbx+{awaited}], 0",
    "je 30f",
    "mov rax, [rbx+{on_timeout}]",
    "jmp 91f",
    "20: test qword ptr [rbx+{ways}], {again}",
    "jnz 80f",
    "test word ptr [rbx+{came}], {errors}",
    "jz 30f",
    "test qword ptr [rbx+{ways}], {keep_reading}",
    "jz 25f",
    "mov edi, [rbx+{fd}]",
    "mov esi, 0x541b", // FIONREAD
    "lea rdx, [rbx+{scratch}]",
    "mov eax, 16", // ioctl
    "syscall",
    "test rax, rax",
    "js 90f",
    "cmp dword ptr [rbx+{scratch}], 0",
    "je 90f",
    "jmp 30f",
    "25: test qword ptr [rbx+{ways}], {keep}",
    "jnz 90f",
    // Still the same file?
    "30: mov edi, [rbx+{fd}]",
    "test edi, edi",
    "js 35f",
    "lea rsi, [rbx+{status}]",
    "mov eax, 5", // fstat
    "syscall",
    "test rax, rax",
    "js 90f",
    "mov rax, [rbx+{status}]",
    "cmp rax, [rbx+{file}]",
    "jne 90f",
    "mov rax, [rbx+{status}+8]",
    "cmp rax, [rbx+{file}+8]",
    "jne 90f",
    // Some of the rest.
    "35: mov rax, [rbx+{left}]",
    "cmp rax, [rbx+{limit}]",
    "cmova rax, [rbx+{limit}]",
    "mov rcx, [rbx+{count_at}]",
    "mov [rbx+rcx], rax",
    "mov rdi, [rbx+{args}]",
    "mov rsi, [rbx+{args}+8]",
    "mov rdx, [rbx+{args}+16]",
    "mov r10, [rbx+{args}+24]",
    "mov r8, [rbx+{args}+32]",
    "mov r9, [rbx+{args}+40]",
    "mov rax, [rbx+{call}]",
    "syscall",
    "test rax, rax",
    "jg 40f",
    "cmp rax, -11", // EAGAIN
    "je 10b",
    "cmp rax, -4", // EINTR: by a tracer, for signals are held
    "je 10b",
    "cmp rax, -512", // ERESTARTSYS, which recvmmsg leaves behind as an error of the socket
    "je 10b",
    "jmp 91f",
    "40: add [rbx+{sum}], rax",
    "sub [rbx+{left}], rax",
    "imul rax, [rbx+{scale}]",
    "mov rcx, [rbx+{address_at}]",
    "add [rbx+rcx], rax",
    "cmp qword ptr [rbx+{left}], 0",
    "jne 10b",
    // The next buffer that is not empty.
    "50: cmp qword ptr [rbx+{pieces}], 0",
    "je 90f",
    "dec qword ptr [rbx+{pieces}]",
    "mov rcx, [rbx+{next}]",
    "add qword ptr [rbx+{next}], 16",
    "mov rdx, [rcx]",
    "mov rax, [rcx+8]",
    "mov rcx, [rbx+{address_at}]",
    "mov [rbx+rcx], rdx",
    "mov [rbx+{left}], rax",
    "test rax, rax",
    "jz 50b",
    "jmp 10b",
    // The program's own call, again.
    "80: mov rax, [rbx+{own_call}]",
    "sub qword ptr [rbx+{back}], 2",
    "jmp 92f",
    "90: mov rax, [rbx+{sum}]",
    // A result in rax, unless something has been done.
    "91: cmp qword ptr [rbx+{sum}], 0",
    "je 92f",
    "mov rax, [rbx+{sum}]",
    "92: mov [rbx+{result}], rax",
    "mov edi, 2", // SIG_SETMASK
    "lea rsi, [rbx+{mask}]",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 14", // rt_sigprocmask
    "syscall",
    "mov rdi, [rbx+{saved}+8]",
    "mov rsi, [rbx+{saved}+16]",
    "mov rdx, [rbx+{saved}+24]",
    "mov r10, [rbx+{saved}+32]",
    "mov r8, [rbx+{saved}+40]",
    "mov r9, [rbx+{saved}+48]",
    "mov rax, [rbx+{saved}+56]", // flags: overflow in al, the others in ah
    "add al, 127",
    "sahf",
    "mov rax, [rbx+{result}]",
    "mov r11, rbx",
    "mov rbx, [r11+{saved}]",
    "mov rcx, [r11+{back}]",
    // The last that is read or written of the slot: another thread may have it now.
    "mov qword ptr [r11+{state}], {left_it}",
    "jmp rcx",
    "pageone_rest_end:",
    ".popsection",
    fd = const offset_of!(Slot, fd),
    came = const offset_of!(Slot, came),
    awaited = const offset_of!(Slot, awaited),
    timeout_at = const offset_of!(Slot, timeout_at),
    on_timeout = const offset_of!(Slot, on_timeout),
    mask = const offset_of!(Slot, mask),
    wait_mask = const offset_of!(Slot, wait_mask),
    ways = const offset_of!(Slot, ways),
    again = const ISSUE_AGAIN,
    errors = const ERRORS,
    keep_reading = const KEEP_ERROR_READING,
    keep = const KEEP_ERROR,
    scratch = const offset_of!(Slot, scratch),
    left = const offset_of!(Slot, left),
    limit = const offset_of!(Slot, limit),
    count_at = const offset_of!(Slot, count_at),
    address_at = const offset_of!(Slot, address_at),
    scale = const offset_of!(Slot, scale),
    args = const ARGS,
    call = const offset_of!(Slot, call),
    sum = const offset_of!(Slot, sum),
    pieces = const offset_of!(Slot, pieces),
    next = const offset_of!(Slot, next),
    own_call = const offset_of!(Slot, own_call),
    file = const offset_of!(Slot, file),
    status = const offset_of!(Slot, status),
    back = const offset_of!(Slot, back),
    result = const offset_of!(Slot, result),
    saved = const SAVED,
    state = const offset_of!(Slot, state),
    left_it = const LEFT,
);

extern "C" {
    static pageone_rest_start: u8;
    static pageone_rest_end: u8;
}

/// The machine code: position independent, no data of its own.
pub fn rest_code() -> &'static [u8] {
    let (start, end) = (&raw const pageone_rest_start, &raw const pageone_rest_end);
    // SAFETY: both symbols delimit one object in this library's read-only data, emitted above in this order; it is
    // never written and lives as long as the program.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// `syscall`, which stands before the place that a call returns to. What is entered in another way numbers its calls
/// otherwise.
pub const CALL: [u8; 2] = [0x0f, 0x05];
/// The flags that `sahf` sets.
const LOW_FLAGS: u64 = 0xd5;
const OVERFLOW: u64 = 1 << 11;

impl Regs {
    /// The call that the thread is on its way back from, if that was interrupted or has done something; None elsewhere.
    pub fn returned(&self) -> Option<Returned> {
        let r = &self.0;
        let number = i64::try_from(r.orig_rax).ok()?;
        let result = r.rax as i64;
        if result <= 0 && result != -i64::from(libc::EINTR) {
            return None;
        }
        if r.rcx != r.rip {
            return None;
        }
        let args = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
        Some(Returned {
            number,
            args,
            result,
        })
    }

    /// What the code is to give back when it is through.
    pub fn saved_for_rest(&self) -> ([u64; 9], u64) {
        let r = &self.0;
        let flags = (r.eflags & LOW_FLAGS) << 8 | u64::from(r.eflags & OVERFLOW != 0);
        let saved = [r.rbx, r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9, flags, 0];
        (saved, r.rip)
    }

    /// Registers that make the thread run the code at `code` with the slot at `slot`.
    pub fn for_rest(&self, code: u64, slot: u64) -> Self {
        let mut r = *self;
        r.0.rip = code;
        r.0.rbx = slot;
        r.0.orig_rax = u64::MAX;
        r
    }
}

//! Running system calls inside a stopped process, and leaving it as it was.
//!
//! Once a target is attached it holds a small *injected region*: one page with the loop of `arch` and some pages for
//! its operations. A *syscall batch*, a list of operations, runs at full speed in one thread while all others stand
//! still. The thread's registers, vector state and signal mask stand in a signal frame in the injected region before it
//! is resumed, and the loop ends in `rt_sigreturn`: a target whose tracer dies at any instruction of the loop finishes
//! the batch and goes on where it was. Source of the idea: CRIU's compel; of the frame: the kernel's own signal
//! delivery.

use std::io;
use std::time::{Duration, Instant};

use crate::arch::{self, nr, Regs};
use crate::failpoints;
use crate::process::Process;
use crate::ptrace::{self, Events, Stopped, SyscallBatch, Tracer, Wait, Worker};
use crate::sys::{
    all_are, read_remote, thread_ended, write_remote, Maps, Vma, PAGE, VMA_PRIVATE_RW,
};
use crate::transfers::{Room, SLOTS_SIZE};

/// One operation of the loop: a system call (or a flagged copy) and its result.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Op {
    /// System call number and flags of `arch`.
    pub number: u64,
    /// Arguments.
    pub args: [u64; 6],
    /// What it returned: negative errno on failure.
    pub result: i64,
}

impl Op {
    /// An operation with up to six arguments.
    pub fn new(number: u64, args: &[u64]) -> Self {
        let mut a = [0; 6];
        a[..args.len()].copy_from_slice(args);
        Self {
            number,
            args: a,
            result: i64::MIN,
        }
    }
}

const FRAME_AT: u64 = PAGE;
const STACK_TOP: u64 = 7 * PAGE;
/// Offset in the injected region of a page for messages (`recvmsg`).
pub const MESSAGE_AT: u64 = 7 * PAGE;
const OPS_AT: u64 = 8 * PAGE;
/// Most operations of one batch.
pub const OPS_MAX: usize = 1024;
/// Where, in the page of code, that for the rest of transfers stands.
const REST_AT: u64 = PAGE / 2;
const SLOTS_AT: u64 = OPS_AT + OPS_MAX as u64 * 64;
/// Bytes of an injected region.
pub const REGION_SIZE: u64 = SLOTS_AT + SLOTS_SIZE;

/// Pages that can be moved aside at a time.
pub const ASIDE_PAGES: u32 = 2048;
const ASIDE_SIZE: u64 = ASIDE_PAGES as u64 * PAGE;

/// How long an injected batch is waited for. A thread that is frozen in the middle of one, or gets no processor time,
/// finishes it whenever it can; its process stands still until then, and others are served.
const BATCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the largest pages that page tables of x86-64 and, with pages of 4 KiB, AArch64 have below a gigabyte: moves
/// between places aligned to that take whole tables.
const HUGE: u64 = 2 << 20;

const ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const RESERVE: u64 = ANONYMOUS | libc::MAP_NORESERVE as u64;

/// The pages inside a target that injected batches run from.
#[derive(Clone, Copy, Debug)]
pub struct InjectedRegion {
    /// Address of the code page.
    pub base: u64,
    /// Address of [`ASIDE_PAGES`] pages of reserved address space, for pages that are moved out of reach.
    pub aside: u64,
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

/// What a request is told of a batch that has not come to its end in time.
fn unfinished() -> io::Error {
    io::Error::from_raw_os_error(libc::ETIMEDOUT)
}

/// Code of the target's own that calls are made with before there is an injected region.
#[derive(Clone, Copy, Debug)]
struct EntryPoints {
    /// Makes a system call and returns.
    call: u64,
    /// Returns from a signal.
    back: Option<u64>,
}

/// Finds such code in the target's executable mappings; a C library has both.
fn find_code(pid: i32) -> io::Result<EntryPoints> {
    let mut candidates: Vec<(bool, Vma)> = maps_text(pid)?
        .lines()
        .filter_map(|l| {
            Some((
                l.contains("/libc") || l.contains("/ld-"),
                crate::sys::parse_line(l)?,
            ))
        })
        .filter(|(_, v)| v.flags & 5 == 5)
        .collect();
    candidates.sort_by_key(|(library, v)| (!library, v.start));
    let mut buf = vec![0u8; 1 << 16];
    let (mut call, mut back) = (None, None);
    // Parts overlap, so that nothing is missed where they meet.
    const OVERLAP: u64 = 16;
    for (_, v) in candidates {
        let mut at = v.start;
        while at < v.end && (call.is_none() || back.is_none()) {
            let n = (v.end - at).min(buf.len() as u64) as usize;
            let Ok(got) = read_remote(pid, at, &mut buf[..n]) else {
                break;
            };
            let find = |code: &[u8]| {
                let places = buf[..got].windows(code.len()).enumerate();
                places
                    .filter(|(_, w)| *w == code)
                    .map(|(i, _)| at + i as u64)
                    .find(|place| place.next_multiple_of(arch::CODE_ALIGN) == *place)
            };
            call = call.or_else(|| find(arch::CALL_AND_RETURN));
            back = back.or_else(|| arch::SIGNAL_RETURN.iter().find_map(|c| find(c)));
            at += (n as u64).saturating_sub(OVERLAP).max(1);
            if n as u64 <= OVERLAP {
                break;
            }
        }
    }
    let call = call.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "no system call instruction found in its executable mappings",
        )
    })?;
    Ok(EntryPoints { call, back })
}

/// Which thread runs injected code: one that no seccomp filter could kill for it, and not inside a call that only its
/// own kernel state can restart, if there is.
fn choose(process: &Process, stopped: &Stopped) -> io::Result<(i32, Regs)> {
    candidates(process, stopped).map(|all| all[0])
}

/// Threads that may run injected code, the best first; there is one at least. One that has run some in this stop has
/// the registers that it gets back.
fn candidates(process: &Process, stopped: &Stopped) -> io::Result<Vec<(i32, Regs)>> {
    let mut good = Vec::new();
    let mut last = Vec::new();
    let mut filtered = false;
    let worker = stopped.worker.borrow();
    for &tid in stopped.tids.iter().take(16) {
        let regs = match &*worker {
            Some(w) if w.tid == tid => w.regs,
            _ => match Regs::get(tid) {
                Ok(regs) => regs,
                Err(_) => continue,
            },
        };
        if process.under_seccomp(tid) && !failpoints::active("seccomp") {
            filtered = true;
        } else if regs.in_restart_block() {
            last.push((tid, regs));
        } else {
            good.push((tid, regs));
        }
    }
    good.extend(last);
    if good.is_empty() {
        return Err(if filtered {
            io::Error::from_raw_os_error(libc::EACCES)
        } else {
            gone()
        });
    }
    Ok(good)
}

/// What a thread has told the kernel of its part of restartable sequences (`struct rseq`): the kernel's
/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Rseq {
    pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// Where the kernel keeps a thread's part of restartable sequences, mostly in the thread's own data. It writes there
/// whenever the thread returns to the program after it was preempted.
fn rseq_of(tid: i32) -> Option<Rseq> {
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
fn leave_rseq(tid: i32, regs: &mut Regs) -> io::Result<()> {
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

/// A thread that makes calls, one by one, before there is an injected region or when there is none any more.
///
/// It is made to return, after the call, through a signal frame on its own stack, below what the program uses of it,
/// where the kernel would put the frame of a signal: so a target whose tracer dies at any instruction goes on where it
/// was. Where it has no such stack (see [`frame_place`]) or no code that returns from signals, only a living tracer
/// gives it back its registers.
struct Caller {
    tid: i32,
    regs: Regs,
    mask: u64,
    code: EntryPoints,
    frame: Option<u64>,
    /// What stood where the frame stands.
    before: Vec<u8>,
}

impl Caller {
    fn hire(process: &Process, stopped: &Stopped) -> io::Result<Self> {
        if stopped.unfinished().is_some() {
            return Err(unfinished());
        }
        let code = find_code(stopped.pid)?;
        let all = candidates(process, stopped)?;
        let mappings = mappings(stopped.memory());
        for &(tid, mut regs) in &all {
            let Some(back) = code.back else { break };
            leave_rseq(tid, &mut regs)?;
            let mask = own_mask(stopped, tid)?;
            let size = arch::signal_frame(tid, &regs, mask, 0, back)?.len() as u64;
            let Some(at) = frame_place(&mappings, &regs, size) else {
                continue;
            };
            let mut before = vec![0u8; size as usize];
            let frame = arch::signal_frame(tid, &regs, mask, at, back)?;
            if !read_remote(tid, at, &mut before).is_ok_and(|n| n == before.len())
                || write_remote(tid, at, &frame).is_err()
            {
                continue;
            }
            let frame = Some(at);
            return Ok(Self {
                tid,
                regs,
                mask,
                code,
                frame,
                before,
            });
        }
        let (tid, mut regs) = all[0];
        leave_rseq(tid, &mut regs)?;
        let mask = own_mask(stopped, tid)?;
        let (frame, before) = (None, Vec::new());
        Ok(Self {
            tid,
            regs,
            mask,
            code,
            frame,
            before,
        })
    }

    /// Makes one call; its result, errors of the kernel as such.
    fn call(&self, stopped: &Stopped, number: u64, args: [u64; 6]) -> io::Result<i64> {
        let tid = self.tid;
        let back = self.frame.zip(self.code.back);
        let run = || -> io::Result<i64> {
            // From here on the thread returns through its frame, should this process die.
            self.regs
                .for_one_call(self.code.call, back, number, args)
                .set(tid)?;
            ptrace::set_signal_mask(tid, ptrace::ALL_SIGNALS)?;
            ptrace::leave_inside(tid);
            ptrace::to_next_call(tid, 0)?;
            let started = Instant::now();
            let (mut stops, mut spins) = (0, 0u32);
            loop {
                match ptrace::poll(tid) {
                    Wait::Nothing if started.elapsed() > BATCH_TIMEOUT => return Err(gone()),
                    Wait::Nothing => {
                        std::thread::yield_now();
                        spins += 1;
                        if spins % 64 == 0 && thread_ended(tid, tid) {
                            return Err(gone());
                        }
                    }
                    Wait::Signal(ptrace::CALL_STOP) => {
                        stops += 1;
                        // On its way in, then on its way out.
                        if stops == 2 {
                            break;
                        }
                        ptrace::to_next_call(tid, 0)?;
                    }
                    Wait::Ended => return Err(gone()),
                    stop => ptrace::to_next_call(tid, stopped.passed_on(tid, stop))?,
                }
            }
            Ok(Regs::get(tid)?.result())
        };
        let result = run();
        // Mask first: until the registers are back the thread would still leave through its frame.
        let _ = ptrace::set_signal_mask(tid, self.mask);
        let _ = self.regs.set(tid);
        match result? {
            e @ -4095..=-1 => Err(io::Error::from_raw_os_error(-e as i32)),
            value => Ok(value),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(at) = self.frame {
            let _ = write_remote(self.tid, at, &self.before);
        }
    }
}

/// The signal mask that the thread has when nothing of ours runs in it.
fn own_mask(stopped: &Stopped, tid: i32) -> io::Result<u64> {
    match &*stopped.worker.borrow() {
        Some(w) if w.tid == tid => Ok(w.mask),
        _ => ptrace::signal_mask(tid),
    }
}

/// The mappings of a process as text; the name of a file may be any bytes.
fn maps_text(pid: i32) -> io::Result<String> {
    let text = std::fs::read(format!("/proc/{pid}/maps"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The mappings of a process, and whether each is the stack of its first thread.
fn mappings(tid: i32) -> Vec<(bool, Vma)> {
    maps_text(tid)
        .unwrap_or_default()
        .lines()
        .filter_map(|l| Some((l.ends_with("[stack]"), crate::sys::parse_line(l)?)))
        .collect()
}

/// Where, on the thread's stack, a frame of `size` bytes may stand: below the bytes that the program uses, in a mapping
/// that is known to be a stack and nothing else. That is the one of the first thread, or one made by the C library: it
/// holds the data of the thread itself at its upper end and has a guard below. Stacks that a program has cut from other
/// memory, as Go does, may have anything below them.
fn frame_place(mappings: &[(bool, Vma)], regs: &Regs, size: u64) -> Option<u64> {
    let stack = regs.stack();
    let i = mappings
        .iter()
        .position(|(_, v)| v.start <= stack && stack < v.end)?;
    let (first, v) = mappings[i];
    let own = (stack..v.end).contains(&regs.thread_area());
    let guarded = i > 0 && mappings[i - 1].1.end == v.start && mappings[i - 1].1.flags & 7 == 0;
    if v.flags & 15 != VMA_PRIVATE_RW || !(first || (own && guarded)) {
        return None;
    }
    let at = stack.checked_sub(arch::RED_ZONE + size)? & !63;
    (at >= v.start).then_some(at)
}

/// Where an injected region may stand: in the middle half of the largest gap between two mappings, at random, for
/// nobody is to know. A hole that a program has made is its own: it may map something there without asking, and the
/// kernel, asked for any place, gives just such holes first. The middle of the largest gap is terabytes away from
/// whatever grows.
fn place(mappings: &[(bool, Vma)]) -> io::Result<u64> {
    let nexts = mappings.iter().map(|(_, v)| v.start).skip(1);
    let (size, from) = mappings
        .iter()
        .zip(nexts)
        // What stands in the kernel's half is none of a program's.
        .filter(|(_, next)| next >> 63 == 0)
        .map(|((_, v), next)| (next.saturating_sub(v.end), v.end))
        .max()
        .unwrap_or_default();
    let mut random = [0u8; 8];
    // SAFETY: writes at most `random.len()` bytes into a live array.
    unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
    let within = u64::from_le_bytes(random) % (size / 2).max(1);
    let at = (from + size / 4 + within).next_multiple_of(HUGE);
    if at + ASIDE_SIZE + REGION_SIZE > from + size {
        return Err(io::Error::from_raw_os_error(libc::ENOMEM));
    }
    Ok(at)
}

impl InjectedRegion {
    /// Makes an injected region in a stopped target.
    pub fn create(process: &Process, stopped: &Stopped) -> io::Result<Self> {
        let caller = Caller::hire(process, stopped)?;
        let anywhere = failpoints::active("place");
        let place = if anywhere {
            0
        } else {
            place(&mappings(stopped.memory()))?
        };
        let map = |at: u64, size: u64, prot: i32, flags: u64| {
            let (at, fixed) = if anywhere {
                (0, 0)
            } else {
                (at, libc::MAP_FIXED_NOREPLACE)
            };
            let args = [at, size, prot as u64, flags | fixed as u64, u64::MAX, 0];
            caller.call(stopped, nr::MMAP, args).map(|at| at as u64)
        };
        let unmap = |at, size| caller.call(stopped, nr::MUNMAP, [at, size, 0, 0, 0, 0]);
        let aside = map(place, ASIDE_SIZE, libc::PROT_NONE, RESERVE)?;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let made = map(place + ASIDE_SIZE, REGION_SIZE, rw, ANONYMOUS).and_then(|base| {
            let rx = (libc::PROT_READ | libc::PROT_EXEC) as u64;
            write_remote(stopped.pid, base, arch::loop_code())
                .and_then(|()| write_remote(stopped.pid, base + REST_AT, arch::rest_code()))
                .and_then(|()| caller.call(stopped, nr::MPROTECT, [base, PAGE, rx, 0, 0, 0]))
                .map(|_| Self { base, aside })
                .inspect_err(|_| drop(unmap(base, REGION_SIZE)))
        });
        made.inspect_err(|_| drop(unmap(aside, ASIDE_SIZE)))
    }

    /// The call that frees what has been moved aside, from the first page on, and keeps the address space.
    pub fn clear_aside(&self, bytes: u64) -> Op {
        let fixed = RESERVE | libc::MAP_FIXED as u64;
        Op::new(
            nr::MMAP,
            &[
                self.aside,
                bytes,
                libc::PROT_NONE as u64,
                fixed,
                u64::MAX,
                0,
            ],
        )
    }

    /// The operation that makes operation `i` of its batch, a [`Self::clear_aside`], fail and free nothing.
    pub fn spare_aside(&self, i: usize) -> Op {
        // Its second argument, the length, becomes what its last one is: zero.
        let argument = |n: u64| self.base + OPS_AT + 64 * i as u64 + 8 * n;
        Op::new(arch::COPY, &[argument(2), argument(6), 8])
    }

    /// Address, in the target, of the result of operation `i` of a batch.
    pub fn result_at(&self, i: usize) -> u64 {
        self.base + OPS_AT + 64 * i as u64 + 56
    }

    /// Whether the injected region is still there and unchanged: not so after `exec` or if the program has mapped or
    /// unmapped something there. Not to be asked in the midst of batches.
    pub fn intact(&self, pid: i32) -> bool {
        self.found(pid).unwrap_or(false) && self.whole(pid).unwrap_or(false)
    }

    /// Whether its code is, which may be asked at any time. An error that is `PermissionDenied` says that the process may
    /// not be looked at any more: it has made itself undumpable, or has other credentials.
    pub fn found(&self, pid: i32) -> io::Result<bool> {
        let code = arch::loop_code();
        let mut buf = vec![0u8; code.len()];
        Ok(read_remote(pid, self.base, &mut buf)? == code.len() && buf == code)
    }

    /// Whether all that the batches write to and move aside to is as it was made: what is not is the program's now. In the
    /// midst of a batch, which may be frozen there, pages are aside.
    fn whole(&self, pid: i32) -> io::Result<bool> {
        if failpoints::active("place") {
            return Ok(true);
        }
        let mut maps = Maps::open(pid)?;
        let data = self.base + PAGE..self.base + REGION_SIZE;
        Ok(all_are(&mut maps, data, VMA_PRIVATE_RW)?
            && all_are(&mut maps, self.aside..self.aside + ASIDE_SIZE, 0)?)
    }

    /// Where transfers that a stop has cut short are carried on.
    pub fn room(&self) -> Room {
        Room {
            code: self.base + REST_AT,
            slots: self.base + SLOTS_AT,
        }
    }

    /// Removes the injected region from a stopped target; but for the code and the slots, where one of its threads is
    /// in them.
    pub fn remove(
        &self,
        tracer: &mut Tracer,
        process: &Process,
        stopped: &Stopped,
    ) -> io::Result<()> {
        let caller = Caller::hire(process, stopped)?;
        caller.call(stopped, nr::MUNMAP, [self.aside, ASIDE_SIZE, 0, 0, 0, 0])?;
        let busy = tracer.transfers.busy(stopped.pid, stopped.memory());
        tracer.transfers.forget(stopped.pid);
        if busy {
            let unneeded = [self.base + PAGE, SLOTS_AT - PAGE, 0, 0, 0, 0];
            return caller.call(stopped, nr::MUNMAP, unneeded).map(drop);
        }
        caller
            .call(stopped, nr::MUNMAP, [self.base, REGION_SIZE, 0, 0, 0, 0])
            .map(drop)
    }

    /// The pages that must stay where they are while batches run in this stop, from the first byte to behind the last: the
    /// kernel writes there each time the thread that runs them has been preempted. With the page away that is a fault on
    /// every way back to the batch, which then never ends.
    pub fn needed(&self, process: &Process, stopped: &Stopped) -> io::Result<Option<(u64, u64)>> {
        let (tid, _) = self.hire(process, stopped)?;
        if failpoints::active("rseq") {
            return Ok(None);
        }
        let pages = |r: Rseq| {
            let end = r.pointer + u64::from(r.size);
            (r.pointer & !(PAGE - 1), end.next_multiple_of(PAGE))
        };
        Ok(rseq_of(tid).map(pages))
    }

    /// The calls that end and begin restartable sequences for the thread that runs them: in between the kernel does not
    /// write to the page with its part of them ([`Self::needed`]), and after the second it has written all of it anew.
    pub fn register_again(&self, process: &Process, stopped: &Stopped) -> io::Result<[Op; 2]> {
        const UNREGISTER: u64 = 1;
        let (tid, _) = self.hire(process, stopped)?;
        let r = rseq_of(tid).ok_or_else(gone)?;
        let (size, signature) = (u64::from(r.size), u64::from(r.signature));
        Ok([UNREGISTER, 0].map(|flags| Op::new(nr::RSEQ, &[r.pointer, size, flags, signature])))
    }

    /// Runs `ops` (at most [`OPS_MAX`]) in one thread of the stopped target and fills in their results. The caller
    /// has made sure that the injected region is intact. The thread gets its registers back when the target is released.
    pub fn run(
        &self,
        tracer: &mut Tracer,
        process: &Process,
        stopped: &Stopped,
        ops: &mut [Op],
        events: &mut dyn Events,
    ) -> io::Result<()> {
        assert!(ops.len() <= OPS_MAX);
        let pid = stopped.pid;
        if stopped.unfinished().is_some() {
            return Err(unfinished());
        }
        let (tid, regs) = self.hire(process, stopped)?;
        write_remote(pid, self.base + OPS_AT, bytes_of(ops))?;
        let looping = regs.for_loop(
            self.base,
            self.base + OPS_AT,
            ops.len() as u64,
            self.base + STACK_TOP,
            self.base + FRAME_AT,
        );
        // The order matters should this process die in between: from here on the thread runs the whole loop and
        // returns through the frame, which also holds its signal mask. Between batches it stands at the loop's end.
        looping.set(tid)?;
        self.hold_signals(stopped, tid)?;
        ptrace::leave_inside(tid);
        let started = Instant::now();
        ptrace::resume(tid, 0)?;
        let mut batch = SyscallBatch {
            base: self.base,
            done: self.base + arch::loop_done_offset(),
            faults_left: OPS_MAX,
        };
        let mut waits = 0u32;
        loop {
            match ptrace::poll(tid) {
                // Moving a guarded range waits for its event to be read.
                Wait::Nothing if events.pending() => {
                    events.read_one();
                    waits = 0;
                }
                Wait::Nothing if started.elapsed() > BATCH_TIMEOUT => {
                    if let Some(w) = &mut *stopped.worker.borrow_mut() {
                        w.unfinished = Some(batch);
                    }
                    return Err(unfinished());
                }
                Wait::Nothing => {
                    // Not by yielding: that gives whoever keeps the processors busy more than one turn.
                    waits += 1;
                    if waits > 1 && thread_ended(pid, tid) {
                        return Err(gone());
                    }
                    crate::changes::wait_for_change(events.descriptor(), Duration::from_millis(2));
                }
                Wait::Ended => return Err(gone()),
                Wait::Signal(signal) => {
                    if tracer.on_batch_signal(pid, tid, &mut batch, signal)? {
                        break;
                    }
                }
                stop => ptrace::resume(tid, stopped.passed_on(tid, stop))?,
            }
        }
        let mut back = vec![Op::default(); ops.len()];
        if read_remote(pid, self.base + OPS_AT, bytes_of_mut(&mut back))?
            != std::mem::size_of_val(ops)
        {
            return Err(gone());
        }
        for (op, b) in ops.iter_mut().zip(&back) {
            op.result = b.result;
        }
        Ok(())
    }

    /// Keeps all signals but the loop's own from the worker until it gets its mask back.
    fn hold_signals(&self, stopped: &Stopped, tid: i32) -> io::Result<()> {
        if let Some(w) = &mut *stopped.worker.borrow_mut() {
            if !w.masked && !failpoints::active("mask") {
                ptrace::set_signal_mask(tid, ptrace::HELD_SIGNALS)?;
                w.masked = true;
            }
        }
        Ok(())
    }

    /// The thread that runs batches in this stop, with its registers as they were; its frame stands in the injected region.
    fn hire(&self, process: &Process, stopped: &Stopped) -> io::Result<(i32, Regs)> {
        if let Some(w) = &*stopped.worker.borrow() {
            return Ok((w.tid, w.regs));
        }
        let (tid, mut regs) = choose(process, stopped)?;
        leave_rseq(tid, &mut regs)?;
        let mask = ptrace::signal_mask(tid)?;
        let frame = arch::signal_frame(tid, &regs, mask, self.base + FRAME_AT, 0)?;
        write_remote(stopped.pid, self.base + FRAME_AT, &frame)?;
        *stopped.worker.borrow_mut() = Some(Worker {
            tid,
            regs,
            mask,
            cpu: process.cpu(),
            masked: false,
            unfinished: None,
        });
        Ok((tid, regs))
    }
}

fn bytes_of(ops: &[Op]) -> &[u8] {
    // SAFETY: `Op` is `repr(C)`, made of integers only, 64 bytes without padding.
    unsafe { std::slice::from_raw_parts(ops.as_ptr().cast(), std::mem::size_of_val(ops)) }
}

fn bytes_of_mut(ops: &mut [Op]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern is a valid `Op`.
    unsafe { std::slice::from_raw_parts_mut(ops.as_mut_ptr().cast(), std::mem::size_of_val(ops)) }
}

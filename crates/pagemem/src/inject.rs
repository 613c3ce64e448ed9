//! Running system calls inside a stopped process, and leaving it as it was.
//!
//! Once a target is attached it holds a small *injected region*: one page with the loop of `arch` and some pages for
//! its operations. A *syscall batch*, a list of operations, runs at full speed in one thread while all others stand
//! still. The thread's registers, vector state and signal mask stand in a signal frame in the injected region before it
//! is resumed, and the loop ends in `rt_sigreturn`: a target whose tracer dies at any instruction of the loop finishes
//! the batch and goes on where it was. Source of the idea: CRIU's compel; of the frame: the kernel's own signal
//! delivery.

mod rseq;
mod single;

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
use rseq::{leave_rseq, rseq_of, Rseq};
use single::{mappings, Caller};

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

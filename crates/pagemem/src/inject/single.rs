//! Calls made one by one, before there is an injected region or when there is none any more: by code of the target's own.

use std::io;
use std::time::Instant;

use super::rseq::leave_rseq;
use super::{candidates, gone, unfinished, BATCH_TIMEOUT};
use crate::arch::{self, Regs};
use crate::process::Process;
use crate::ptrace::{self, Stopped, Wait};
use crate::sys::{read_remote, thread_ended, write_remote, Vma, VMA_PRIVATE_RW};

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

/// A thread that makes calls, one by one, before there is an injected region or when there is none any more.
///
/// It is made to return, after the call, through a signal frame on its own stack, below what the program uses of it,
/// where the kernel would put the frame of a signal: so a target whose tracer dies at any instruction goes on where it
/// was. Where it has no such stack (see [`frame_place`]) or no code that returns from signals, only a living tracer
/// gives it back its registers.
pub(super) struct Caller {
    pub(super) tid: i32,
    regs: Regs,
    mask: u64,
    code: EntryPoints,
    frame: Option<u64>,
    /// What stood where the frame stands.
    before: Vec<u8>,
}

impl Caller {
    pub(super) fn hire(process: &Process, stopped: &Stopped) -> io::Result<Self> {
        if stopped.unfinished().is_some() {
            return Err(unfinished());
        }
        let code = find_code(stopped.pid)?;
        let all = candidates(process, stopped)?;
        let mappings = mappings(stopped.memory());
        for &thread in all.iter().filter(|_| code.back.is_some()) {
            let mut caller = Self::of(thread, stopped, code)?;
            if caller.place_frame(&mappings)? {
                return Ok(caller);
            }
        }
        Self::of(all[0], stopped, code)
    }

    /// Without a frame.
    fn of((tid, mut regs): (i32, Regs), stopped: &Stopped, code: EntryPoints) -> io::Result<Self> {
        leave_rseq(tid, &mut regs)?;
        Ok(Self {
            tid,
            regs,
            mask: own_mask(stopped, tid)?,
            code,
            frame: None,
            before: Vec::new(),
        })
    }

    /// Writes the frame that the thread returns through, if it has a place for one.
    fn place_frame(&mut self, mappings: &[(bool, Vma)]) -> io::Result<bool> {
        let Some(back) = self.code.back else {
            return Ok(false);
        };
        let frame_at = |at| arch::signal_frame(self.tid, &self.regs, self.mask, at, back);
        let size = frame_at(0)?.len();
        let Some(at) = frame_place(mappings, &self.regs, size as u64) else {
            return Ok(false);
        };
        let (mut before, frame) = (vec![0u8; size], frame_at(at)?);
        if !read_remote(self.tid, at, &mut before).is_ok_and(|n| n == size)
            || write_remote(self.tid, at, &frame).is_err()
        {
            return Ok(false);
        }
        (self.frame, self.before) = (Some(at), before);
        Ok(true)
    }

    /// Makes one call; its result, errors of the kernel as such.
    pub(super) fn call(&self, stopped: &Stopped, number: u64, args: [u64; 6]) -> io::Result<i64> {
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
                        crate::turns::give_way();
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
pub(super) fn own_mask(stopped: &Stopped, tid: i32) -> io::Result<u64> {
    match &*stopped.worker.borrow() {
        Some(w) if w.tid == tid => Ok(w.mask),
        _ => ptrace::signal_mask(tid),
    }
}

/// The mappings of a process as text; the name of a file may be any bytes.
pub(super) fn maps_text(pid: i32) -> io::Result<String> {
    let text = std::fs::read(format!("/proc/{pid}/maps"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The mappings of a process, and whether each is the stack of its first thread.
pub(super) fn mappings(tid: i32) -> Vec<(bool, Vma)> {
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

//! What a target has discarded must read as zeros, also where it was merged.
//!
//! A discarded private page of a file shows the file's bytes again, and our frames are a file. So merged ranges are
//! watched, and a thread that discards some waits until the guardian has read of it. All threads are interrupted before
//! that, so none executes an instruction of the program between the discard and the zero-filling.
//!
//! The same holds where memory is moved with `mremap` and grows by that, or leaves empty pages behind: what is new must
//! be zero, and would be further frames. Growing where it is tells nobody; so that it cannot, there is always a mapping
//! behind one of frames, where the program has none a *guard page*, without access. A program that unmaps frames waits
//! until those before have one.

use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::advice::FOR_ANONYMOUS;
use super::{PageRun, Target, ANON, FIXED};
use crate::arch::{self, nr, Regs};
use crate::failpoints;
use crate::inject::{Op, OPS_MAX};
use crate::ptrace::{NoEvents, StopError, Stopped, Strictness, Tracer};
use crate::ranges::Ranges;
use crate::sys::{Vma, PAGE, VMA_SHARED_NONE};

/// How long a stop for zero-filling may take; it waits only for threads that are busy inside the kernel.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is tried before the target is zero-filled from outside.
const TRIES: u32 = 5;
/// A part of a merged mapping that was discarded.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    start: u64,
    end: u64,
    /// Protection of the mapping, which stays.
    prot: u64,
    /// By `MADV_FREE`, which fails on a mapping of a file and has discarded nothing.
    freed: bool,
}

impl Piece {
    pub(super) fn of(start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            prot: super::PROT_RW,
            freed: false,
        }
    }

    fn run(&self) -> PageRun {
        PageRun {
            addr: self.start,
            pages: ((self.end - self.start) / PAGE) as u32,
            frame: 0,
        }
    }
}

impl Target {
    /// The target waits with an event: stop it, read, and zero-fill. Where it cannot be stopped it is watched closely.
    pub fn on_events(&mut self, tracer: &mut Tracer) {
        let faults_left = self.answer_faults();
        let more = self.pending() || self.needs_zero_fill();
        if faults_left || (self.for_life && !self.unstopped && !more) {
            return;
        }
        self.await_stop_for_freeing(tracer);
        for _ in 0..TRIES {
            if self.is_unstopped() || tracer.shared(&self.process) {
                break;
            }
            match self.stop(tracer, STOP_TIMEOUT, Strictness::NoUserCode) {
                Ok(stopped) => {
                    // Where all of its threads have stopped, whoever still waits is none of them.
                    let all = self.process.thread_count() == stopped.tids.len();
                    let another = all && self.pending();
                    self.zero_fill(tracer, &stopped);
                    self.note_children(&stopped);
                    if self.overdrawn() {
                        self.shed(tracer, &stopped);
                        if self.idle() {
                            tracer.unfollow(self.pid);
                        }
                    }
                    tracer.release(stopped);
                    if another {
                        break;
                    }
                    return;
                }
                Err(StopError::Gone) => {
                    self.discarded.clear();
                    self.moved.clear();
                    self.opened.clear();
                    return;
                }
                Err(StopError::Refused(_) | StopError::Shared) => break,
                // It was a child that was told of, and its parent waits for it.
                Err(StopError::Timeout)
                    if !self.pending() && !self.needs_zero_fill() && !self.is_unstopped() =>
                {
                    return
                }
                Err(StopError::Timeout) => {}
            }
        }
        self.attend(tracer);
    }

    /// Maps zeros where the target has discarded pages of frames, inside the stop that the discarding thread is in.
    pub(super) fn zero_fill(&mut self, tracer: &mut Tracer, stopped: &Stopped) {
        self.note_growth(stopped);
        self.close_opened(tracer, stopped);
        if self.discarded.is_empty() {
            return;
        }
        let discarded = std::mem::take(&mut self.discarded);
        if failpoints::active("zero-fill") {
            return;
        }
        let freeing: Vec<(i32, Regs, Ranges)> = stopped
            .tids
            .iter()
            .filter_map(|&tid| {
                let r = Regs::get(tid).ok()?;
                let freed = freed_by(tid, &r).filter(|_| !failpoints::active("free"))?;
                Some((tid, r, Ranges::from_iter(freed)))
            })
            .collect();
        let pieces = self.merged_pieces(&discarded, |start, end| {
            let mut freed = freeing.iter().map(|(_, _, freed)| freed);
            freed.any(|f| !f.within(start, end).is_empty())
        });
        let Ok(pieces) = pieces else {
            // Its mappings cannot be told, for want of a descriptor perhaps. What is watched can be filled without them.
            for (start, end) in discarded {
                self.guard.zero(start, end);
            }
            return;
        };
        let mut all_mapped = true;
        // Room for all advice that a piece may be given again.
        for some in pieces.chunks(OPS_MAX / 5) {
            let mapped = self.map_zeros(tracer, stopped, some);
            for (p, mapped) in some.iter().zip(mapped) {
                all_mapped &= mapped;
                if mapped {
                    let _ = self.retrack(p.start, p.end);
                } else if let (true, Some(close)) = (p.freed, &mut self.close) {
                    close.frames.add(p.start, p.end);
                } else if !p.freed
                    && !failpoints::active("outside")
                    && !self.guard.zero(p.start, p.end)
                {
                    self.write_zeros(stopped.memory(), p);
                }
            }
        }
        // Freeing works on a program's own memory: it is begun again, for it may have been about more than this.
        for (tid, mut regs, _) in freeing {
            if !all_mapped {
                continue;
            }
            match &mut *stopped.worker.borrow_mut() {
                Some(worker) if worker.tid == tid => worker.regs.begin_again(),
                _ => {
                    regs.begin_again();
                    let _ = regs.set(tid);
                }
            }
        }
    }

    /// Has threads begin again that were to free what the failing stop has read of: nothing was freed, and they would be
    /// told of an error. They wait with an event anew. That what they freed counts as discarded harms nobody: only where
    /// nothing is do zeros come, which is what may be read of freed pages.
    pub(super) fn begin_freeing_again(&self, tids: &[i32]) {
        if self.discarded.is_empty() || failpoints::active("free") {
            return;
        }
        for &tid in tids {
            let Ok(mut regs) = Regs::get(tid) else {
                continue; // it has ended
            };
            let freed = freed_by(tid, &regs).map(Ranges::from_iter);
            let read = |f: &Ranges| {
                self.discarded
                    .iter()
                    .any(|&(start, end)| !f.within(start, end).is_empty())
            };
            if freed.as_ref().is_some_and(read) {
                regs.begin_again();
                let _ = regs.set(tid);
            }
        }
    }

    /// Adds to what was discarded the pages that moves of frames have made: behind them, and where they were.
    fn note_growth(&mut self, stopped: &Stopped) {
        for (from, to, bytes) in std::mem::take(&mut self.moved) {
            let by = stopped.tids.iter().find_map(|&tid| {
                let regs = match &*stopped.worker.borrow() {
                    Some(worker) if worker.tid == tid => worker.regs,
                    _ => Regs::get(tid).ok()?,
                };
                regs.moved(from, to, bytes)
            });
            let Some((grown, stays)) = by.filter(|_| !failpoints::active("growth")) else {
                continue;
            };
            let grown = grown.next_multiple_of(PAGE);
            if grown > bytes {
                self.discarded.push((to + bytes, to + grown));
            }
            if stays {
                self.discarded.push((from, from + bytes));
            }
        }
    }

    /// Has something put behind frames that lie open since what was behind them has been unmapped.
    fn close_opened(&mut self, tracer: &mut Tracer, stopped: &Stopped) {
        let mut ends = std::mem::take(&mut self.opened);
        if ends.is_empty() || !self.region.intact(stopped.memory()) {
            return;
        }
        let file = self.pool_file;
        let looked = self.process.with_maps(|maps| {
            let mut open = Vec::new();
            for &end in &ends {
                let before = maps.at_or_after(end - 1)?;
                if before.is_some_and(|v| v.end == end && v.file == file) {
                    open.push(end);
                }
            }
            Ok(open)
        });
        ends = looked.unwrap_or_default();
        // What cannot be closed is found at the next check.
        if !ends.is_empty() {
            let _ = self.add_guard_pages(tracer, stopped, &ends);
        }
    }

    /// Sees to it that mappings of frames that end at one of `ends`, in a stopped target, have some mapping behind them.
    /// Those where that cannot be had are returned.
    pub(super) fn add_guard_pages(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        ends: &[u64],
    ) -> Vec<u64> {
        if failpoints::active("growth") {
            return Vec::new();
        }
        let looked = self.process.with_maps(|maps| {
            let mut open = Vec::new();
            for &end in ends {
                if maps.at_or_after(end)?.is_none_or(|v| v.start > end) {
                    open.push(end);
                }
            }
            // Those that no longer stand behind anything.
            let mut idle = Vec::new();
            if !open.is_empty() {
                for &page in &self.guard_pages {
                    if maps.at_or_after(page - 1)?.is_none_or(|v| v.start == page) {
                        idle.push(page);
                    }
                }
            }
            Ok((open, idle))
        });
        let Ok((mut open, idle)) = looked else {
            return ends.to_vec();
        };
        if open.is_empty() {
            return open;
        }
        self.remove_guard_pages(tracer, stopped, &idle);
        // Behind the heap the kernel wants to extend it. Nobody moves that.
        let mut ask = [Op::new(nr::BRK, &[0])];
        if self.run_quietly(tracer, stopped, &mut ask).is_ok() {
            let heap_end = (ask[0].result as u64).next_multiple_of(PAGE);
            open.retain(|end| *end != heap_end);
        }
        let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let flags = (kind | libc::MAP_FIXED_NOREPLACE) as u64;
        let plant = |end: &u64| Op::new(nr::MMAP, &[*end, PAGE, 0, flags, u64::MAX, 0]);
        for some in open.chunks(OPS_MAX) {
            let mut ops: Vec<Op> = some.iter().map(plant).collect();
            // An operation that has not run has no result.
            let _ = self.run_quietly(tracer, stopped, &mut ops);
            for op in ops.iter().filter(|op| op.result as u64 == op.args[0]) {
                self.guard_pages.insert(op.args[0]);
            }
        }
        open.retain(|end| !self.guard_pages.contains(end));
        open
    }

    /// Unmaps guard pages, as far as they still are some.
    pub(super) fn remove_guard_pages(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        guard_pages: &[u64],
    ) {
        let still = self.process.with_maps(|maps| {
            let mut still = Vec::new();
            for &page in guard_pages {
                let its = |v: &Vma| {
                    (v.start, v.end, v.flags & 15) == (page, page + PAGE, VMA_SHARED_NONE)
                };
                if maps.at_or_after(page)?.as_ref().is_some_and(its) {
                    still.push(page);
                }
            }
            Ok(still)
        });
        for some in still.unwrap_or_default().chunks(OPS_MAX) {
            let unmap = |page: &u64| Op::new(nr::MUNMAP, &[*page, PAGE]);
            let mut ops: Vec<Op> = some.iter().map(unmap).collect();
            let _ = self.run_quietly(tracer, stopped, &mut ops);
        }
        for page in guard_pages {
            self.guard_pages.remove(page);
        }
    }

    /// Replaces pieces by anonymous memory; whether it worked, for each.
    fn map_zeros(&mut self, tracer: &mut Tracer, stopped: &Stopped, pieces: &[Piece]) -> Vec<bool> {
        let runs: Vec<PageRun> = pieces.iter().map(Piece::run).collect();
        let intact = self.region.intact(stopped.memory());
        if intact {
            self.find_hidden(tracer, stopped, &runs);
        }
        let mut ops: Vec<Op> = Vec::new();
        for p in pieces {
            let len = p.end - p.start;
            let flags = ANON | FIXED | self.unreserved(&p.run());
            let args = [p.start, len, p.prot, flags, u64::MAX, 0];
            ops.push(Op::new(nr::MMAP, &args));
        }
        for run in &runs {
            ops.extend(self.advice_for(run, FOR_ANONYMOUS));
        }
        let mut mapped = vec![false; pieces.len()];
        if intact {
            // Unguarded first, or the calls would wait until somebody has read of them. One that cannot be, near the
            // limit of mappings, is left as it is.
            for (op, p) in ops.iter_mut().zip(pieces) {
                if self.guard.unregister(p.start, p.end).is_err() {
                    *op = Op::new(arch::COPY, &[]);
                }
            }
            if self.run_quietly(tracer, stopped, &mut ops).is_ok() {
                for ((mapped, p), op) in mapped.iter_mut().zip(pieces).zip(&ops) {
                    *mapped = op.result as u64 == p.start;
                }
            }
            for (p, _) in pieces.iter().zip(&mapped).filter(|(_, mapped)| !**mapped) {
                // What it shows is known as it is.
                let _ = match self.for_life {
                    true => self.guard.watch_closely(p.start, p.end),
                    false => self.guard.register(p.start, p.end),
                };
            }
        }
        mapped
    }

    /// Runs a syscall batch without reading events, so none of its calls may be one that the guard tells of: a thread
    /// that still waits with an event of its own must stay where it is until the next stop.
    pub(super) fn run_quietly(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        ops: &mut [Op],
    ) -> io::Result<()> {
        self.region
            .run(tracer, &self.process, stopped, ops, &mut NoEvents)
    }

    /// The parts of `ranges` that still are mappings of frames, with the protection that they have now.
    fn merged_pieces(
        &self,
        ranges: &[(u64, u64)],
        freed: impl Fn(u64, u64) -> bool,
    ) -> io::Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        self.process.with_maps(|maps| {
            for &(start, end) in ranges {
                let mut at = start;
                while let Some(v) = maps.next_of(self.pool_file, at, end)? {
                    at = v.end;
                    let (start, end) = (v.start.max(start), v.end.min(end));
                    pieces.push(Piece {
                        start,
                        end,
                        prot: if failpoints::active("protection") {
                            super::PROT_RW
                        } else {
                            v.flags & 7
                        },
                        freed: freed(start, end),
                    });
                }
            }
            Ok(())
        })?;
        Ok(pieces)
    }

    /// The last resort: zeros as bytes, which costs memory but keeps the promise.
    pub(super) fn write_zeros(&self, tid: i32, p: &Piece) {
        // Unlike `process_vm_writev` this file writes mappings that the program has protected, too.
        let memory = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{tid}/mem"));
        if let Ok(memory) = memory {
            let zeros = vec![0u8; PAGE as usize];
            for page in (p.start..p.end).step_by(PAGE as usize) {
                let _ = memory.write_all_at(&zeros, page);
            }
        }
    }
}

/// What a thread on its way back from a system call has asked to be freed by `MADV_FREE`, where that has failed.
fn freed_by(tid: i32, regs: &Regs) -> Option<Vec<(u64, u64)>> {
    let free = libc::MADV_FREE as u64;
    let failed = regs.result() == -i64::from(libc::EINVAL);
    let (number, [a, b, c]) = regs.syscall()?;
    match number {
        nr::MADVISE if c == free && failed => Some(vec![(a, (a + b).next_multiple_of(PAGE))]),
        nr::PROCESS_MADVISE if regs.fourth_argument() == free => {
            let ranges = crate::sys::remote_ranges(tid, b, c);
            let all: u64 = ranges.iter().map(|(start, end)| end - start).sum();
            // What comes before the first range that fails has been done, and is told as bytes.
            (failed || (0..all as i64).contains(&regs.result())).then_some(ranges)
        }
        _ => None,
    }
}

//! Giving back: merged pages become memory of the target's own again, with the same bytes.
//!
//! Called by the guardian's wards ([`crate::guard`]) for what the engine gives back, and by the other modules for
//! frames that must not stay: [`super::merge`], [`super::shed`], [`super::zero_fill`].

use std::collections::BTreeSet;
use std::io;

use super::advice::FOR_ANONYMOUS;
use super::descriptor::Lent;
use super::exchange::{is_back, way_back, MOVE};
use super::runs::{cut, good_runs};
use super::stops::Kind;
use super::{Outcome, PageOutcome, PageRun, Target, Way, ANON, FIXED, PROT_RW};
use crate::arch::{self, nr};
use crate::failpoints;
use crate::inject::{Op, ASIDE_PAGES, MESSAGE_AT};
use crate::pool::Pool;
use crate::processes;
use crate::ptrace::{Stopped, Tracer};
use crate::sys::{self, PAGE};
use crate::uffd::Uffd;

/// Where, in the page for messages, arguments of registrations begin.
const ARGUMENTS_AT: u64 = 256;
/// Most runs of one [`Target::unshare`]: their arguments fit the page, their operations the batch.
pub(super) const UNSHARE_MAX: usize = 64;
/// Operations of one run that is given memory of its own apart from others, without its advice.
const UNSHARE_STEPS: usize = 9;

impl Target {
    /// Gives merged runs private anonymous memory with the same bytes.
    pub fn unmerge(
        &mut self,
        tracer: &mut Tracer,
        pool: &Pool,
        runs: &[PageRun],
        way: Way,
    ) -> Outcome {
        let file = pool.file();
        self.locked = if sys::pinned_and_locked(self.pid).1 {
            sys::locked(processes::memory_tid(self.pid)).unwrap_or_default()
        } else {
            Vec::new()
        };
        let outcome = self.in_stops(
            tracer,
            Kind::Unmerge,
            runs,
            |t, tracer, stopped, batch, codes| {
                let mut edges = BTreeSet::new();
                t.classify(batch, |v| v.file == file, codes, &mut edges)?;
                t.find_hidden(tracer, stopped, batch);
                if way == Way::Apart {
                    // Copied where it is, it is always there.
                    t.keep_needed(stopped, batch, codes)?;
                }
                for part in cut(&good_runs(batch, codes), &edges).chunks(UNSHARE_MAX) {
                    let runs: Vec<PageRun> = part.iter().map(|(r, _)| *r).collect();
                    let prots = t.protections(&runs)?;
                    let done = t.unshare(tracer, stopped, &runs, &prots, way);
                    for (i, (r, first)) in part.iter().enumerate() {
                        if !done.as_ref().is_ok_and(|d| d[i]) {
                            codes[*first..*first + r.pages as usize]
                                .fill(PageOutcome::Refused as u8);
                        }
                    }
                }
                Ok(())
            },
        );
        self.locked.clear();
        outcome
    }

    /// Keeps merged memory from growing where it is: `pages` are the last ones of mappings of frames with nothing behind.
    /// Where no page without access can be had there, they are given memory of their own.
    pub fn close_ends(&mut self, tracer: &mut Tracer, pool: &Pool, pages: &[PageRun]) -> Outcome {
        let file = pool.file();
        self.in_stops(
            tracer,
            Kind::GuardPages,
            pages,
            |t, tracer, stopped, batch, codes| {
                t.classify(batch, |v| v.file == file, codes, &mut BTreeSet::new())?;
                let ends: Vec<u64> = good_runs(batch, codes)
                    .iter()
                    .map(|(r, _)| r.addr + u64::from(r.pages) * PAGE)
                    .collect();
                for end in t.add_guard_pages(tracer, stopped, &ends) {
                    t.give_back(tracer, stopped, end - PAGE)?;
                }
                Ok(())
            },
        )
    }

    /// Gives the last page of a mapping of frames memory of its own, so that the frames before it cannot grow.
    pub(super) fn give_back(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        addr: u64,
    ) -> io::Result<()> {
        let run = PageRun {
            addr,
            pages: 1,
            frame: 0,
        };
        self.take_back(tracer, stopped, &[run])
    }

    /// Gives frames that must not stay memory of the target's own, where they are if it cannot be done out of reach.
    pub(super) fn take_back(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        runs: &[PageRun],
    ) -> io::Result<()> {
        let prots = self.protections(runs)?;
        let done = self.unshare(tracer, stopped, runs, &prots, Way::Apart);
        let done = done.unwrap_or_else(|_| vec![false; runs.len()]);
        let open = |k: &usize| !done[*k];
        let left: Vec<PageRun> = (0..runs.len()).filter(open).map(|k| runs[k]).collect();
        let prots: Vec<u64> = (0..runs.len()).filter(open).map(|k| prots[k]).collect();
        if !left.is_empty() {
            self.unshare(tracer, stopped, &left, &prots, Way::Joined)?;
        }
        Ok(())
    }

    /// The protection that the program has given to each of `runs`.
    pub(super) fn protections(&self, runs: &[PageRun]) -> io::Result<Vec<u64>> {
        self.process.with_maps(|maps| {
            runs.iter()
                .map(|r| Ok(maps.at_or_after(r.addr)?.map_or(PROT_RW, |v| v.flags & 7)))
                .collect()
        })
    }

    /// The call that locks a run again that is given memory of its own, where its mapping was locked.
    fn lock_again(&self, r: &PageRun) -> Option<Op> {
        let (start, bytes) = (r.addr, u64::from(r.pages) * PAGE);
        let locked = |l: &(u64, u64)| l.0 < start + bytes && start < l.1;
        let lock = Op::new(nr::MLOCK, &[start, bytes]);
        self.locked.iter().any(locked).then_some(lock)
    }

    /// Maps `bytes` of memory somewhere in a stopped target; its address.
    fn scratch(&mut self, tracer: &mut Tracer, stopped: &Stopped, bytes: u64) -> io::Result<u64> {
        let mut map = [Op::new(nr::MMAP, &[0, bytes, PROT_RW, ANON, u64::MAX, 0])];
        self.run_ops(tracer, stopped, &mut map)?;
        match map[0].result {
            e @ ..=-1 => Err(io::Error::from_raw_os_error(-e as i32)),
            at => Ok(at as u64),
        }
    }

    /// The same, for a copy, and the call that gives it back. Where the target may have no more mappings or memory, the
    /// addresses reserved for what is moved aside serve for it: then nothing may be moved there meanwhile.
    fn room_to_copy(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        bytes: u64,
    ) -> io::Result<(u64, Op)> {
        if let Ok(at) = self.scratch(tracer, stopped, bytes) {
            return Ok((at, Op::new(nr::MUNMAP, &[at, bytes])));
        }
        let (at, all) = (self.region.aside, u64::from(ASIDE_PAGES) * PAGE);
        let clear = self.region.clear_aside(all);
        let mut map = [
            Op::new(nr::MUNMAP, &[at, all]),
            Op::new(nr::MMAP, &[at, bytes, PROT_RW, ANON | FIXED, u64::MAX, 0]),
        ];
        self.run_ops(tracer, stopped, &mut map)?;
        if map[1].result as u64 == at {
            return Ok((at, clear));
        }
        self.run_ops(tracer, stopped, &mut [clear])?;
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// The same as [`Self::unshare`], out of reach of everybody: the frames are moved aside, copied, and the copy is
    /// moved in. Another process that writes this memory meanwhile meets no page and is told so.
    fn unshare_apart(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        runs: &[PageRun],
        prots: &[u64],
    ) -> io::Result<Vec<bool>> {
        let bytes = |r: &PageRun| u64::from(r.pages) * PAGE;
        let total: u64 = runs.iter().map(bytes).sum();
        assert!(runs.len() <= UNSHARE_MAX && total <= u64::from(ASIDE_PAGES) * PAGE);
        let base = self.scratch(tracer, stopped, total)?;
        let mut again: Vec<Op> = Vec::new();
        let mut at = base;
        for r in runs {
            match self.unreserved(r) {
                0 => {}
                flag => {
                    let flags = ANON | FIXED | flag;
                    let args = [at, bytes(r), PROT_RW, flags, u64::MAX, 0];
                    again.push(Op::new(nr::MMAP, &args));
                }
            }
            at += bytes(r);
        }
        if !again.is_empty() {
            // What cannot be had cannot be copied to, and is left as it is.
            self.run_ops(tracer, stopped, &mut again)?;
        }
        let advice: Vec<Vec<Op>> = runs
            .iter()
            .map(|r| {
                let mut advice = self.advice_for(r, FOR_ANONYMOUS);
                advice.extend(self.lock_again(r));
                advice
            })
            .collect();
        // Where what is aside is freed.
        let clear = advice.iter().map(|a| a.len() + UNSHARE_STEPS).sum();
        let mut calls = Vec::with_capacity(clear + 2);
        let mut placed = Vec::with_capacity(runs.len());
        let mut at = 0;
        for ((r, prot), advice) in runs.iter().zip(prots).zip(advice) {
            let (len, aside) = (bytes(r), self.region.aside + at);
            let after = advice.len() as u64 + 1;
            let away = Op::new(
                nr::MREMAP | arch::skip_if_error(7 + after),
                &[r.addr, len, len, MOVE, aside],
            );
            // What the program has protected must be readable for the copy.
            let open = Op::new(nr::MPROTECT, &[aside, len, PROT_RW]);
            let copy = Op::new(
                arch::COPY | arch::skip_if_error(1),
                &[base + at, aside, len],
            );
            let place = Op::new(
                nr::MREMAP | arch::skip_unless_error(4),
                &[base + at, len, len, MOVE, r.addr],
            );
            placed.push(calls.len() + 3);
            calls.extend([away, open, copy, place]);
            calls.extend(way_back(
                &self.region,
                r,
                aside,
                clear,
                0,
                self.unreserved(r),
            ));
            calls.extend(advice);
            calls.push(Op::new(nr::MPROTECT, &[r.addr, len, *prot]));
            at += len;
        }
        calls.push(self.region.clear_aside(total));
        calls.push(Op::new(nr::MUNMAP, &[base, total]));
        self.run_ops(tracer, stopped, &mut calls)?;
        let (mut lost, mut replaced, mut protect) = (Vec::new(), Vec::new(), Vec::new());
        let mut at = self.region.aside;
        for ((i, r), prot) in placed.iter().zip(runs).zip(prots) {
            if calls[*i].result as u64 == r.addr {
                replaced.push((at, bytes(r)));
            } else if calls[i - 3].result >= 0 && !is_back(&calls[i + 1..]) {
                lost.push((at, *r));
                protect.push(Op::new(nr::MPROTECT, &[r.addr, bytes(r), *prot]));
            }
            at += bytes(r);
        }
        if !lost.is_empty() {
            self.bring_back(tracer, stopped, &lost, &replaced)?;
            self.run_ops(tracer, stopped, &mut protect)?;
        }
        // What was copied back into fresh memory is the program's own again, too.
        let done: Vec<bool> = placed
            .iter()
            .zip(runs)
            .map(|(i, r)| calls[*i].result as u64 == r.addr || calls[i + 3].result == 0)
            .collect();
        for (r, done) in runs.iter().zip(&done) {
            let end = r.addr + bytes(r);
            if *done {
                let _ = self.retrack(r.addr, end);
            } else {
                // Moved there and back, it may have lost its guard.
                let _ = self.watch(r.addr, end);
            }
        }
        Ok(done)
    }

    /// Replaces mappings of frames (at most [`UNSHARE_MAX`]) by anonymous memory with the same bytes, in a stopped
    /// target; whether it worked, for each.
    ///
    /// The bytes travel through a scratch mapping inside the target, copied there by the injected loop itself: if
    /// this process dies, the loop completes the copy back before the target goes on. Write tracking is registered in
    /// the loop, too, before any page of the new mapping exists: only so does the kernel join it with its neighbours.
    /// For this the copy takes place where other processes can reach it: one that writes this memory at the same moment
    /// may lose its write. So only a target that is detached for good is unmerged this way.
    pub(super) fn unshare(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        runs: &[PageRun],
        prots: &[u64],
        way: Way,
    ) -> io::Result<Vec<bool>> {
        if way == Way::Apart && !failpoints::active("aside") {
            return self.unshare_apart(tracer, stopped, runs, prots);
        }
        assert!(runs.len() <= UNSHARE_MAX && runs.len() == prots.len());
        let bytes = |r: &PageRun| u64::from(r.pages) * PAGE;
        let total: u64 = runs.iter().map(bytes).sum();
        let (base, unmap) = self.room_to_copy(tracer, stopped, total)?;
        let arguments = self.region.base + MESSAGE_AT + ARGUMENTS_AT;
        let (mut calls, mut block, mut at) =
            (Vec::with_capacity(4 * runs.len() + 1), Vec::new(), base);
        for (i, (r, prot)) in runs.iter().zip(prots).enumerate() {
            let argument = crate::uffd::register_argument(r.addr, r.addr + bytes(r));
            block.extend(argument.iter().flat_map(|w| w.to_le_bytes()));
            let protect = |prot: u64| Op::new(nr::MPROTECT, &[r.addr, bytes(r), prot]);
            // What the program has protected must be readable for the copy, and be protected again.
            if *prot != PROT_RW {
                calls.push(protect(PROT_RW));
            }
            let mut rest = self.advice_for(r, FOR_ANONYMOUS);
            if self.track.is_some() {
                rest.push(Op::new(
                    nr::IOCTL | arch::DEREF_ARG1,
                    &[
                        self.received_at(),
                        crate::uffd::REGISTER_REQUEST,
                        arguments + 32 * i as u64,
                    ],
                ));
            }
            rest.push(Op::new(arch::COPY, &[r.addr, at, bytes(r)]));
            rest.extend(self.lock_again(r));
            let left = rest.len() as u64;
            calls.push(Op::new(
                arch::COPY | arch::skip_if_error(left + 1),
                &[at, r.addr, bytes(r)],
            ));
            calls.push(Op::new(
                nr::MMAP | arch::skip_if_error(left),
                &[
                    r.addr,
                    bytes(r),
                    PROT_RW,
                    ANON | FIXED | self.unreserved(r),
                    u64::MAX,
                    0,
                ],
            ));
            calls.extend(rest);
            if *prot != PROT_RW {
                calls.push(protect(*prot));
            }
            at += bytes(r);
        }
        let needed = self.region.needed(&self.process, stopped)?;
        let overlaps =
            |r: &PageRun| needed.is_some_and(|(a, b)| r.addr < b && a < r.addr + bytes(r));
        if runs.iter().any(overlaps) {
            // What the kernel wrote between the copy there and the copy back would be lost. And it would put a page where
            // write tracking is not registered yet, so that the mapping stays apart from its neighbours.
            let [end, begin] = self.region.register_again(&self.process, stopped)?;
            calls.insert(0, end);
            calls.push(begin);
        }
        let track = self.track.as_ref().map(Uffd::descriptor).transpose()?;
        let ops = match track {
            Some(track) => {
                sys::write_remote(self.pid, arguments, &block)?;
                calls.push(unmap);
                self.run_with_descriptor(tracer, stopped, Lent::Own(&track), calls)
            }
            None => {
                // Only guarded, not tracked (any more): no registration.
                calls.push(unmap);
                let ran = self.run_ops(tracer, stopped, &mut calls);
                ran.map(|()| calls)
            }
        };
        let Ok(ops) = ops else {
            // The descriptor could not be passed: nothing but the scratch mapping has changed.
            let _ = self.run_ops(tracer, stopped, &mut [unmap]);
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        };
        Ok(ops
            .iter()
            .filter(|o| o.number & arch::NUMBER == nr::MMAP)
            .map(|o| o.result >= 0)
            .collect())
    }
}

//! Merging: pages of a target are exchanged for frames with the same bytes, and zero pages for nothing.
//!
//! Called by the guardian's wards ([`crate::guard`]) for what the engine has planned. The steps inside the target are those
//! of [`super::exchange`]; this file chooses the pages, runs the steps in batches, and sees to what they leave.

use std::collections::BTreeSet;
use std::io;

use super::advice::{FOR_ANONYMOUS, FOR_FRAMES};
use super::descriptor::Lent;
use super::exchange::{Fate, Steps, PIECES_MAX, STEPS};
use super::runs::{cut, good_runs, overlapping, spans};
use super::stops::Kind;
use super::unmerge::UNSHARE_MAX;
use super::{Outcome, PageOutcome, PageRun, Target};
use crate::failpoints;
use crate::inject::{Op, OPS_MAX};
use crate::pool::Pool;
use crate::ptrace::{Stopped, Tracer};
use crate::sys::{self, FileId, PAGE, VMA_PRIVATE_RW};

/// How often, in one stop, the rest of pieces with a differing page is tried again.
const ROUNDS: usize = 4;

impl Target {
    /// Maps runs to frames of `pool` where the bytes are equal.
    ///
    /// Not only the target's threads can write its memory: another process may (`process_vm_writev`, `/proc/PID/mem`),
    /// and it does not stand still. So the old pages are moved out of reach first, then compared, and only then are the
    /// frames moved in, or the old pages back: all by the loop inside the target, which completes this also if the
    /// guardian dies. A writer from outside meets, for microseconds, no page at all and is told so (`EFAULT`).
    /// What remains is one that has pinned a page before it was moved and copies after it was compared; the kernel
    /// offers no way to see that (its count of pins is folded once a second).
    pub fn merge(&mut self, tracer: &mut Tracer, pool: &Pool, runs: &[PageRun]) -> Outcome {
        self.core_dumps.include_frames(self.pid);
        let file = pool.file();
        self.bare = false;
        self.in_stops(
            tracer,
            Kind::Merge,
            runs,
            |t, tracer, stopped, batch, codes| {
                let fits = |v: &sys::Vma| {
                    v.flags == VMA_PRIVATE_RW && (v.file == FileId::NONE || v.file == file)
                };
                t.exchange(tracer, stopped, batch, codes, fits, Some(pool))
            },
        )
    }

    /// Gives runs of zero pages back: the kernel's zero page is mapped again when they are read.
    pub fn drop_zero(&mut self, tracer: &mut Tracer, runs: &[PageRun]) -> Outcome {
        self.in_stops(
            tracer,
            Kind::Zero,
            runs,
            |t, tracer, stopped, batch, codes| {
                let fits = |v: &sys::Vma| v.flags == VMA_PRIVATE_RW && v.file == FileId::NONE;
                t.exchange(tracer, stopped, batch, codes, fits, None)
            },
        )
    }

    /// The work of one stop: exchanges pages for equal frames of `pool`, or for nothing where they are zero (None).
    #[allow(clippy::too_many_arguments)]
    fn exchange(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        batch: &[PageRun],
        codes: &mut [u8],
        fits: impl Fn(&sys::Vma) -> bool,
        pool: Option<&Pool>,
    ) -> io::Result<()> {
        let mut edges = BTreeSet::new();
        self.classify(batch, fits, codes, &mut edges)?;
        self.find_hidden(tracer, stopped, batch);
        // A page that is asked for twice would be moved while mappings are not as they were looked at.
        for (first, pages) in overlapping(batch) {
            codes[first..first + pages].fill(PageOutcome::Timeout as u8);
        }
        self.keep_needed(stopped, batch, codes)?;
        // What was written since the engine scanned is not at rest. That tells also of a page that something outside of
        // the target's threads is about to write, a device or another process: whoever pins a page to write it faults
        // it in for writing first.
        for (r, first) in cut(&good_runs(batch, codes), &edges) {
            let range = first..first + r.pages as usize;
            let page = |a: u64| first + ((a - r.addr) / PAGE) as usize;
            let mark = |from, to| codes[page(from)..page(to)].fill(PageOutcome::Written as u8);
            let end = r.addr + u64::from(r.pages) * PAGE;
            if failpoints::active("written") {
                continue;
            }
            if self.process.written(r.addr, end, mark).is_err() {
                // Mapped anew by the program, or watched by itself: it has been looked at by nobody.
                codes[range].fill(PageOutcome::Gone as u8);
            }
        }
        self.leave_shared(batch, codes, pool.is_none())?;
        // A page that differs fails its whole piece: the others are tried again without it.
        let mut settled = vec![false; codes.len()];
        for _ in 0..ROUNDS {
            let open: Vec<u8> = codes
                .iter()
                .zip(&settled)
                .map(|(c, s)| if *s { u8::MAX } else { *c })
                .collect();
            let pieces = cut(&good_runs(batch, &open), &edges);
            if pieces.is_empty() {
                break;
            }
            for pieces in pieces.chunks(PIECES_MAX) {
                self.exchange_pieces(tracer, stopped, pieces, codes, &mut settled, pool)?;
            }
        }
        for (code, settled) in codes.iter_mut().zip(&settled) {
            if *code == PageOutcome::Done as u8 && !settled {
                *code = PageOutcome::Timeout as u8;
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn exchange_pieces(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        pieces: &[(PageRun, usize)],
        codes: &mut [u8],
        settled: &mut [bool],
        pool: Option<&Pool>,
    ) -> io::Result<()> {
        let bytes = |r: &PageRun| u64::from(r.pages) * PAGE;
        // Where the old pages of each piece are moved to.
        let aside: Vec<u64> = pieces
            .iter()
            .scan(self.region.aside, |next, (r, _)| {
                let at = *next;
                *next += bytes(r);
                Some(at)
            })
            .collect();
        let total: u64 = pieces.iter().map(|(r, _)| bytes(r)).sum();
        // After the pieces: what was moved aside is freed, and the mappings get back the advice that the old ones had
        // (which costs nothing where the old ones are back).
        let wanted = if pool.is_some() {
            FOR_FRAMES
        } else {
            FOR_ANONYMOUS
        };
        let mut tail = vec![self.region.clear_aside(total)];
        let mut apart: Vec<Op> = spans(pieces)
            .iter()
            .flat_map(|(span, _)| self.advice_for(span, wanted))
            .collect();
        if STEPS * pieces.len() + tail.len() + apart.len() + 8 <= OPS_MAX {
            tail.append(&mut apart);
        }
        // A batch that is sent a descriptor begins with receiving it.
        let steps = Steps {
            region: &self.region,
            first: usize::from(pool.is_some()),
            pieces: pieces.len(),
        };
        let mut calls = Vec::with_capacity(STEPS * pieces.len() + tail.len());
        for (i, (r, _)) in pieces.iter().enumerate() {
            calls.extend(match pool {
                Some(_) => steps.for_frames(i, r, aside[i], self.received_at(), self.unreserved(r)),
                None => steps.for_nothing(r, aside[i], self.unreserved(r)),
            });
        }
        calls.extend(tail);
        let ops = match pool {
            Some(pool) => self.run_with_descriptor(tracer, stopped, Lent::Pool(pool), calls)?,
            None => {
                self.run_ops(tracer, stopped, &mut calls)?;
                calls
            }
        };
        let mut kept: Vec<(PageRun, usize)> = Vec::new();
        let mut back: Vec<PageRun> = Vec::new();
        let mut lost: Vec<(u64, PageRun)> = Vec::new();
        let mut replaced: Vec<(u64, u64)> = Vec::new();
        for (((r, first), step), aside) in pieces.iter().zip(ops.chunks_exact(STEPS)).zip(&aside) {
            let range = *first..*first + r.pages as usize;
            match Fate::of(step, r) {
                Fate::Untouched => codes[range].fill(PageOutcome::Refused as u8),
                Fate::Placed => {
                    kept.push((*r, *first));
                    replaced.push((*aside, bytes(r)));
                }
                Fate::Back { differs: Some(at) } => {
                    back.push(*r);
                    codes[*first + (at / PAGE) as usize] = PageOutcome::Differs as u8;
                }
                Fate::Back { differs: None } => {
                    back.push(*r);
                    codes[range].fill(PageOutcome::Refused as u8);
                }
                Fate::Lost => {
                    back.push(*r);
                    lost.push((*aside, *r));
                    codes[range].fill(PageOutcome::Refused as u8);
                }
            }
        }
        if !lost.is_empty() {
            self.bring_back(tracer, stopped, &lost, &replaced)?;
        }
        if !apart.is_empty() {
            self.run_ops(tracer, stopped, &mut apart)?;
        }
        for (r, first) in &kept {
            settled[*first..*first + r.pages as usize].fill(true);
        }
        // What was moved, also there and back, has lost its registration.
        for r in &back {
            let _ = self.retrack(r.addr, r.addr + bytes(r));
        }
        let mut unguarded: Vec<PageRun> = Vec::new();
        for (span, pieces) in spans(&kept) {
            let end = span.addr + bytes(&span);
            if pool.is_none() {
                let _ = self.retrack(span.addr, end);
            } else if self.watch(span.addr, end).is_err() {
                // Unguarded frames must not stay: the bytes go back to memory of the target's own.
                for (r, first) in pieces {
                    unguarded.push(*r);
                    codes[*first..*first + r.pages as usize].fill(PageOutcome::Refused as u8);
                }
            }
        }
        let ends = spans(&kept).into_iter().map(|(s, _)| s.addr + bytes(&s));
        let ends: Vec<u64> = ends.filter(|_| pool.is_some()).collect();
        for end in self.add_guard_pages(tracer, stopped, &ends) {
            let last = kept.iter().find(|(r, _)| r.addr + bytes(r) == end);
            let code = last.map(|(r, first)| &mut codes[first + r.pages as usize - 1]);
            if let Some(code) = code.filter(|c| **c == PageOutcome::Done as u8) {
                *code = PageOutcome::Refused as u8;
                self.give_back(tracer, stopped, end - PAGE)?;
            }
        }
        for runs in unguarded.chunks(UNSHARE_MAX) {
            self.take_back(tracer, stopped, runs)?;
        }
        Ok(())
    }
}

//! Which pages of a batch may be changed: by the mapping they are in, and by who else may write them.
//!
//! Asked by [`super::stops`] before a batch, and by [`super::merge`] and [`super::unmerge`] inside the stop. Pages that
//! others share have a module of their own, [`super::shared`].

use std::collections::BTreeSet;
use std::io;

use super::runs::good_runs;
use super::{PageOutcome, PageRun, Target};
use crate::ptrace::Stopped;
use crate::sys::{self, Maps, PAGE};

/// Which of the pages `[addr, addr + pages)` may be changed, by the mapping they are in; `edges` collects where the
/// mappings begin, for no run may be moved across such a place.
fn classify(
    maps: &mut Maps,
    addr: u64,
    pages: u32,
    ok: impl Fn(&sys::Vma) -> bool,
    codes: &mut [u8],
    edges: &mut BTreeSet<u64>,
) {
    let end = addr + u64::from(pages) * PAGE;
    let mut at = addr;
    while at < end {
        match maps.at_or_after(at) {
            Ok(Some(v)) if v.start < end => {
                let from = v.start.max(at);
                let to = v.end.min(end);
                edges.insert(from);
                mark(codes, addr, at, from, PageOutcome::Gone);
                if !ok(&v) {
                    mark(codes, addr, from, to, PageOutcome::Gone);
                }
                at = to;
            }
            _ => {
                mark(codes, addr, at, end, PageOutcome::Gone);
                break;
            }
        }
    }
}

fn mark(codes: &mut [u8], addr: u64, from: u64, to: u64, code: PageOutcome) {
    codes[((from - addr) / PAGE) as usize..((to - addr) / PAGE) as usize].fill(code as u8);
}

impl Target {
    /// Which pages of a batch may be changed, by the mapping they are in; `edges` as of [`classify`].
    pub(super) fn classify(
        &self,
        batch: &[PageRun],
        fits: impl Fn(&sys::Vma) -> bool,
        codes: &mut [u8],
        edges: &mut BTreeSet<u64>,
    ) -> io::Result<()> {
        self.process.with_maps(|maps| {
            let mut at = 0;
            for r in batch {
                let part = &mut codes[at..at + r.pages as usize];
                classify(maps, r.addr, r.pages, &fits, part, edges);
                at += r.pages as usize;
            }
            Ok(())
        })
    }

    /// Refuses pages that the kernel writes while syscall batches run ([`crate::inject::InjectedRegion::needed`]): they
    /// cannot be moved.
    pub(super) fn keep_needed(
        &self,
        stopped: &Stopped,
        batch: &[PageRun],
        codes: &mut [u8],
    ) -> io::Result<()> {
        let Some((start, end)) = self.region.needed(&self.process, stopped)? else {
            return Ok(());
        };
        for (r, first) in good_runs(batch, codes) {
            let last = r.addr + u64::from(r.pages) * PAGE;
            let (from, to) = (start.max(r.addr), end.min(last));
            if from < to {
                mark(&mut codes[first..], r.addr, from, to, PageOutcome::Refused);
            }
        }
        Ok(())
    }

    /// Whether the kernel or a device may write its memory behind the page tables, or that cannot be told.
    pub(super) fn written_behind(&mut self) -> bool {
        let kinds = &mut self.kinds;
        let found = self.process.with_maps(|maps| kinds.behind(self.pid, maps));
        !found.is_ok_and(|what| what.is_none())
    }

    /// Whether a page of `runs` was written since the engine last asked, or that cannot be told.
    pub(super) fn any_written(&self, runs: &[PageRun]) -> bool {
        let mut any = false;
        runs.iter().any(|r| {
            let end = r.addr + u64::from(r.pages) * PAGE;
            let told = self.process.written(r.addr, end, |_, _| any = true);
            any || told.is_err()
        })
    }

    /// The same as [`Self::written_behind`] of what it has mapped alone, which costs less.
    pub(super) fn maps_devices(&self) -> bool {
        let found = self.process.with_maps(|maps| self.kinds.mapped(maps));
        !found.is_ok_and(|what| what.is_none())
    }
}

//! Giving all merged memory of a process back at once, where it cannot be guarded any more.

use std::io;

use super::unmerge::UNSHARE_MAX;
use super::{PageRun, Target, Way};
use crate::arch::Regs;
use crate::inject::ASIDE_PAGES;
use crate::ptrace::{Stopped, Tracer};
use crate::sys::{FileId, Maps, PAGE};

impl Target {
    /// Whether it has forked, with merged memory, when only descriptors that are kept back were left.
    pub(super) fn overdrawn(&self) -> bool {
        self.must_shed || (!self.bare && self.born.iter().any(|born| born.guard.is_kept_back()))
    }

    /// Has its merged memory given back at the next stop for events: it forks more children than can be guarded. What they
    /// share with it then is their own, as if nothing had been merged.
    pub fn shed_soon(&mut self) {
        self.must_shed = true;
    }

    /// Takes note of what may be the pids of children that it was just told of: the calls that made them have returned.
    pub(super) fn note_children(&mut self, stopped: &Stopped) {
        if !self.born.is_empty() {
            let returned = stopped.tids.iter().filter_map(|&tid| Regs::get(tid).ok());
            let pids = returned.filter_map(|r| i32::try_from(r.result()).ok());
            self.hints.extend(pids.filter(|pid| *pid > 0));
        }
    }

    /// Whether it is only guarded, and has nothing to be guarded.
    pub fn idle(&self) -> bool {
        self.bare && !self.tracks()
    }

    /// Gives a stopped process all of its merged memory back; whether none is left.
    pub(super) fn shed(&mut self, tracer: &mut Tracer, stopped: &Stopped) -> bool {
        self.must_shed = false;
        let file = self.pool_file;
        let runs = self.process.with_maps(|maps| frames_of(maps, file));
        if self.region.intact(stopped.memory()) {
            let runs = runs.unwrap_or_default();
            for some in batches(&runs) {
                let _ = self.shed_runs(tracer, stopped, &some);
            }
        }
        let left = self
            .process
            .with_maps(|maps| maps.next_of(file, 0, u64::MAX));
        // Another thread that is in the middle of a fork could have taken frames along that have not been told of.
        let all = self.process.thread_count() == stopped.tids.len();
        let none = matches!(left, Ok(None));
        self.bare = none && all;
        none
    }

    fn shed_runs(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        runs: &[PageRun],
    ) -> io::Result<()> {
        let prots = self.protections(runs)?;
        let needed = self.region.needed(&self.process, stopped)?;
        self.find_hidden(tracer, stopped, runs);
        // What the kernel writes meanwhile cannot be moved.
        let must_stay = |r: &PageRun| {
            needed.is_some_and(|(a, b)| r.addr < b && a < r.addr + u64::from(r.pages) * PAGE)
        };
        for (stays, way) in [(false, Way::Apart), (true, Way::Joined)] {
            let chosen = || {
                runs.iter()
                    .zip(&prots)
                    .filter(|(r, _)| must_stay(r) == stays)
            };
            let some: Vec<PageRun> = chosen().map(|(r, _)| *r).collect();
            let prots: Vec<u64> = chosen().map(|(_, p)| *p).collect();
            if !some.is_empty() {
                self.unshare(tracer, stopped, &some, &prots, way)?;
            }
        }
        Ok(())
    }
}

/// The mappings of `file`, as runs.
fn frames_of(maps: &mut Maps, file: FileId) -> io::Result<Vec<PageRun>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while let Some(v) = maps.next_of(file, at, u64::MAX)? {
        for start in (v.start..v.end).step_by((u64::from(ASIDE_PAGES) * PAGE) as usize) {
            let pages = ((v.end - start) / PAGE).min(u64::from(ASIDE_PAGES)) as u32;
            runs.push(PageRun {
                addr: start,
                pages,
                frame: 0,
            });
        }
        at = v.end;
    }
    Ok(runs)
}

/// Runs in groups that can be given back together.
fn batches(runs: &[PageRun]) -> Vec<Vec<PageRun>> {
    let mut out: Vec<Vec<PageRun>> = Vec::new();
    let mut pages = 0;
    for r in runs {
        match out.last_mut() {
            Some(last) if last.len() < UNSHARE_MAX && pages + r.pages <= ASIDE_PAGES => {
                last.push(*r);
                pages += r.pages;
            }
            _ => {
                out.push(vec![*r]);
                pages = r.pages;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_together_fits_aside() {
        let run = |pages| PageRun {
            addr: 0,
            pages,
            frame: 0,
        };
        let runs: Vec<PageRun> = [2048, 2000, 48, 1, 2047, 1].map(run).to_vec();
        let sizes: Vec<Vec<u32>> = batches(&runs)
            .iter()
            .map(|b| b.iter().map(|r| r.pages).collect())
            .collect();
        assert_eq!(sizes, [vec![2048], vec![2000, 48], vec![1, 2047], vec![1]]);
        let many = vec![run(1); UNSHARE_MAX + 1];
        assert_eq!(batches(&many).len(), 2);
    }
}

//! Advice that a program has given on its memory, and that mappings made by us are given again.
//!
//! It is looked at when memory is armed, for the kernel tells it in `smaps` only, at the cost of a walk over all pages.
//! What hides memory, from children or from core dumps, may have been taken back since, and a child would miss memory that
//! its parent has. So that part is asked for again before it is given: a mapping of which one page is advised otherwise
//! splits, and the splitting shows. A mapping of one page shows nothing; what is made there is not hidden.

use std::collections::{BTreeMap, BTreeSet};

use super::{PageRun, Target};
use crate::arch::nr;
use crate::failpoints;
use crate::inject::{Op, OPS_MAX};
use crate::ptrace::{Stopped, Tracer};
use crate::sys::PAGE;

/// The advice, by its bit in a request to arm: not inherited by children, left out of core dumps, huge pages wanted or not,
/// may be merged by the kernel.
const ADVICE: [(u64, i32); 5] = [
    (1, libc::MADV_DONTFORK),
    (2, libc::MADV_DONTDUMP),
    (4, libc::MADV_HUGEPAGE),
    (8, libc::MADV_NOHUGEPAGE),
    (MERGEABLE, libc::MADV_MERGEABLE),
];
/// What of it hides, each with how it is given and taken back.
const HIDING: [(u64, i32, i32); 2] = [
    (1, libc::MADV_DONTFORK, libc::MADV_DOFORK),
    (2, libc::MADV_DONTDUMP, libc::MADV_DODUMP),
];
const HIDES: u64 = 3;
/// Means pages that are written in a mapping of frames, too.
const MERGEABLE: u64 = 16;
/// No advice but a way of being mapped, which stays for good: memory that does not count as promised (`MAP_NORESERVE`).
const UNRESERVED: u64 = 32;
/// The part of it that means anything for a mapping of frames.
pub(super) const FOR_FRAMES: u64 = HIDES | MERGEABLE;
pub(super) const FOR_ANONYMOUS: u64 = 31;

fn bounds(run: &PageRun) -> (u64, u64) {
    (run.addr, run.addr + u64::from(run.pages) * PAGE)
}

/// The advice of ranges that do not overlap: where each begins, where it ends, its bits.
#[derive(Clone, Debug, Default)]
pub(super) struct Advised(BTreeMap<u64, (u64, u64)>);

impl Advised {
    /// The ranges with a byte in `[start, end)`: start, end, bits.
    fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let before = self.0.range(..start).next_back();
        let found = before.into_iter().chain(self.0.range(start..end));
        found
            .map(|(&start, &(end, bits))| (start, end, bits))
            .filter(move |a| start < a.1)
    }

    /// The bits of all ranges with a byte in `[start, end)`.
    fn bits(&self, (start, end): (u64, u64)) -> u64 {
        self.within(start, end).fold(0, |bits, a| bits | a.2)
    }

    /// Takes note of the advice of a mapping: what lies beside it, of one that it has taken a part of, keeps its own.
    pub(super) fn set(&mut self, start: u64, end: u64, bits: u64) {
        let old: Vec<(u64, u64, u64)> = self.within(start, end).collect();
        for (from, to, bits) in old {
            self.0.remove(&from);
            if from < start {
                self.0.insert(from, (start, bits));
            }
            if end < to {
                self.0.insert(end, (to, bits));
            }
        }
        if bits == 0 {
            return;
        }
        // Mappings come and go: what is advised alike is one range.
        let before = self.0.range(..start).next_back();
        let joined = before.filter(|(_, &its)| its == (start, bits));
        let from = joined.map_or(start, |(&from, _)| from);
        let behind = self.0.get(&end).filter(|its| its.1 == bits);
        let to = behind.map_or(end, |its| its.0);
        if to > end {
            self.0.remove(&end);
        }
        self.0.insert(from, (to, bits));
    }
}

impl Target {
    /// The calls that give a new mapping the advice, among `wanted`, that was given on what stood there. What hides is given
    /// to those parts only that are hidden still, by the last [`Self::find_hidden`]: a run may go over several mappings.
    /// At most two calls for each, and two more.
    pub(super) fn advice_for(&self, r: &PageRun, wanted: u64) -> Vec<Op> {
        let (start, end) = bounds(r);
        let asked = !failpoints::active("hidden");
        let hidden = self.hidden.iter().copied();
        let hiding: Vec<(u64, u64, u64)> = match asked {
            true => hidden.filter(|h| h.0 < end && start < h.1).collect(),
            false => self.advised.within(start, end).collect(),
        };
        let parts = hiding.into_iter();
        let parts = parts.map(|h| (h.0.max(start), h.1.min(end), h.2 & HIDES));
        let rest = self.advised.bits((start, end)) & !HIDES;
        parts
            .chain([(start, end, rest)])
            .flat_map(|(start, end, bits)| {
                let given = ADVICE
                    .into_iter()
                    .filter(move |(bit, _)| bits & wanted & bit != 0);
                given.map(move |(_, advice)| {
                    Op::new(nr::MADVISE, &[start, end - start, advice as u64])
                })
            })
            .collect()
    }

    /// The flag of a new mapping that one of memory which does not count as promised needs, or none.
    pub(super) fn unreserved(&self, r: &PageRun) -> u64 {
        match self.advised.bits(bounds(r)) & UNRESERVED {
            0 => 0,
            _ => libc::MAP_NORESERVE as u64,
        }
    }

    /// Finds out which mappings around `runs` are hidden still, of those that have been, in a stopped target.
    pub(super) fn find_hidden(&mut self, tracer: &mut Tracer, stopped: &Stopped, runs: &[PageRun]) {
        self.hidden.clear();
        for hiding @ (bit, ..) in HIDING {
            let told = |r: &&PageRun| self.advised.bits(bounds(r)) & bit != 0;
            let advised: Vec<(u64, u64)> = runs.iter().filter(told).map(bounds).collect();
            if advised.is_empty() {
                continue;
            }
            let looked = self.process.with_maps(|maps| {
                let mut around = BTreeSet::new();
                for &(start, end) in &advised {
                    let mut at = start;
                    while let Some(v) = maps.at_or_after(at)?.filter(|v| v.start < end) {
                        around.insert((v.start, v.end));
                        at = v.end;
                    }
                }
                around.retain(|(start, end)| end - start > PAGE);
                Ok(Vec::from_iter(around))
            });
            for mappings in looked.unwrap_or_default().chunks(OPS_MAX) {
                self.probe(tracer, stopped, mappings, hiding);
            }
        }
    }

    /// Notes which mappings, of more than a page each, have the advice of `bit`.
    fn probe(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        mappings: &[(u64, u64)],
        (bit, give, take_back): (u64, i32, i32),
    ) {
        let calls = |starts: &[u64], advice: i32| -> Vec<Op> {
            let call = |start: &u64| Op::new(nr::MADVISE, &[*start, PAGE, advice as u64]);
            starts.iter().map(call).collect()
        };
        // Taken back, not given: should this process die now, a page is inherited that is not to be, and not the
        // other way round.
        let starts: Vec<u64> = mappings.iter().map(|m| m.0).collect();
        let mut ops = calls(&starts, take_back);
        if self.run_quietly(tracer, stopped, &mut ops).is_err() {
            return;
        }
        let split = self.process.with_maps(|maps| {
            // Whatever it may have been joined with before it.
            let split = |&(start, _): &(u64, u64)| {
                Ok(maps
                    .at_or_after(start)?
                    .is_some_and(|v| v.end == start + PAGE))
            };
            mappings.iter().map(split).collect()
        });
        let split: Vec<bool> = split.unwrap_or_default();
        let was = |i: &usize| split.get(*i) == Some(&true);
        let again: Vec<u64> = (0..mappings.len()).filter(was).map(|i| starts[i]).collect();
        let _ = self.run_quietly(tracer, stopped, &mut calls(&again, give));
        for (i, &(start, end)) in mappings.iter().enumerate() {
            // Where there are too many mappings to split one, it would have had to be.
            if was(&i) || ops[i].result == -i64::from(libc::ENOMEM) {
                self.hidden.push((start, end, bit));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(advised: &Advised) -> Vec<(u64, u64, u64)> {
        advised.within(0, u64::MAX).collect()
    }

    #[test]
    fn what_lies_beside_a_new_mapping_keeps_its_advice() {
        let mut advised = Advised::default();
        advised.set(10, 20, 1);
        advised.set(13, 15, 0);
        assert_eq!(ranges(&advised), [(10, 13, 1), (15, 20, 1)]);
        advised.set(12, 16, 2);
        assert_eq!(ranges(&advised), [(10, 12, 1), (12, 16, 2), (16, 20, 1)]);
        let bits = |start, end| advised.bits((start, end));
        assert_eq!([bits(0, 10), bits(9, 11), bits(11, 13)], [0, 1, 3]);
        assert_eq!([bits(13, 14), bits(19, 30), bits(20, 30)], [2, 1, 0]);
    }

    #[test]
    fn neighbours_with_the_same_advice_are_one_range() {
        let mut advised = Advised::default();
        for start in [10, 30, 20] {
            advised.set(start, start + 10, 32);
        }
        assert_eq!(ranges(&advised), [(10, 40, 32)]);
        advised.set(0, 10, 1);
        advised.set(15, 35, 32);
        assert_eq!(ranges(&advised), [(0, 10, 1), (10, 40, 32)]);
    }
}

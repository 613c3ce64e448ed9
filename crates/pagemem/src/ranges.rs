//! A set of addresses, kept as ranges.

use std::collections::BTreeMap;

/// Ranges of addresses that neither overlap nor touch: start and end of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Whether `at` is in it.
    pub fn contains(&self, at: u64) -> bool {
        self.0
            .range(..=at)
            .next_back()
            .is_some_and(|(_, &end)| at < end)
    }

    /// Adds `[start, end)`.
    pub fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start, end);
        let touching: Vec<(u64, u64)> = self
            .0
            .range(..=end)
            .rev()
            .take_while(|(_, &e)| e >= start)
            .map(|(&s, &e)| (s, e))
            .collect();
        for (s, e) in touching {
            self.0.remove(&s);
            (from, to) = (from.min(s), to.max(e));
        }
        self.0.insert(from, to);
    }

    /// Takes `[start, end)` out.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let before = self.0.range(..start).next_back().map(|(&s, &e)| (s, e));
        let last = self.0.range(..end).next_back().map(|(_, &e)| e);
        let begun: Vec<u64> = self.0.range(start..end).map(|(&s, _)| s).collect();
        for s in begun {
            self.0.remove(&s);
        }
        if let Some((s, e)) = before.filter(|b| b.1 > start) {
            self.0.insert(s, start);
            if e > end {
                self.0.insert(end, e);
            }
        }
        if let Some(e) = last.filter(|e| *e > end) {
            self.0.insert(end, e);
        }
    }

    /// What of it is in `[start, end)`.
    pub fn within(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let first = self.0.range(..start).next_back();
        first
            .into_iter()
            .chain(self.0.range(start..end.max(start)))
            .map(|(&s, &e)| (s.max(start), e.min(end)))
            .filter(|(s, e)| s < e)
            .collect()
    }

    /// What of `[start, end)` is not in it.
    pub fn missing(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        let mut at = start;
        for (s, e) in self.within(start, end).into_iter().chain([(end, end)]) {
            if at < s {
                out.push((at, s));
            }
            at = e;
        }
        out
    }

    /// Moves what is in `[from, from + bytes)` to the same places behind `to`; what was there is forgotten.
    pub fn relocate(&mut self, from: u64, to: u64, bytes: u64) {
        let moved = self.within(from, from + bytes);
        self.remove(from, from + bytes);
        self.remove(to, to + bytes);
        for (s, e) in moved {
            self.add(s - from + to, e - from + to);
        }
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(ranges: T) -> Self {
        let mut all = Self::default();
        for (start, end) in ranges {
            all.add(start, end);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same set as a list of all that is in it, changed at random beside it.
    #[test]
    fn a_set_of_ranges_holds_what_a_list_of_all_its_members_holds() {
        let mut state = 42u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let (mut ranges, mut all) = (Ranges::default(), [false; 128]);
        for _ in 0..20_000 {
            let (start, bytes) = (random(60), random(12));
            let end = start + bytes;
            match random(3) {
                0 => {
                    ranges.add(start, end);
                    all[start as usize..end as usize].fill(true);
                }
                1 => {
                    ranges.remove(start, end);
                    all[start as usize..end as usize].fill(false);
                }
                _ => {
                    let to = 64 + random(40);
                    ranges.relocate(start, to, bytes);
                    let moved = all[start as usize..end as usize].to_vec();
                    all[start as usize..end as usize].fill(false);
                    all[to as usize..(to + bytes) as usize].copy_from_slice(&moved);
                }
            }
            assert!((0..128).all(|at| ranges.contains(at) == all[at as usize]));
            let (from, to) = (random(64), 64 + random(64));
            let inside: u64 = ranges.within(from, to).iter().map(|(s, e)| e - s).sum();
            let outside: u64 = ranges.missing(from, to).iter().map(|(s, e)| e - s).sum();
            let counted = all[from as usize..to as usize]
                .iter()
                .filter(|m| **m)
                .count();
            assert_eq!((inside, inside + outside), (counted as u64, to - from));
            assert!(ranges
                .0
                .iter()
                .zip(ranges.0.iter().skip(1))
                .all(|(a, b)| a.1 < b.0));
        }
    }
}

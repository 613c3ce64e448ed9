//! Concurrent maps keyed by the page: `DashMap` (locked shards) and `papaya` (lock-free), with XXH3 for hasher.

use crate::peer::{Peer, Rows};
use std::hash::{BuildHasher, Hasher};
use twox_hash::XxHash3_64;

/// XXH3-64 of the bytes, the length left out: all keys have one.
#[derive(Clone, Copy, Default)]
struct Xxh3;

#[derive(Default)]
struct State(u64);

impl Hasher for State {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = XxHash3_64::oneshot(bytes);
    }
    fn write_usize(&mut self, _length: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

impl BuildHasher for Xxh3 {
    type Hasher = State;
    fn build_hasher(&self) -> State {
        State::default()
    }
}

pub(crate) struct Dash<'a> {
    rows: Rows<'a>,
    map: dashmap::DashMap<&'a [u8], u32, Xxh3>,
}

impl<'a> Dash<'a> {
    pub(crate) fn new(rows: Rows<'a>, capacity: usize) -> Self {
        Dash {
            rows,
            map: dashmap::DashMap::with_capacity_and_hasher(capacity, Xxh3),
        }
    }
}

impl Peer for Dash<'_> {
    fn insert(&self, range: std::ops::Range<usize>) -> usize {
        let mut new = 0;
        for i in range {
            if let dashmap::Entry::Vacant(place) = self.map.entry(self.rows.get(i)) {
                place.insert(i as u32);
                new += 1;
            }
        }
        new
    }
    fn find(&self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize {
        range
            .filter(|&i| self.map.contains_key(other.get(i)))
            .count()
    }
    fn remove(&self, range: std::ops::Range<usize>) -> Option<usize> {
        Some(
            range
                .filter(|&i| self.map.remove(self.rows.get(i)).is_some())
                .count(),
        )
    }
}

pub(crate) struct Papaya<'a> {
    rows: Rows<'a>,
    map: papaya::HashMap<&'a [u8], u32, Xxh3>,
}

impl<'a> Papaya<'a> {
    pub(crate) fn new(rows: Rows<'a>, capacity: usize) -> Self {
        Papaya {
            rows,
            map: papaya::HashMap::with_capacity_and_hasher(capacity, Xxh3),
        }
    }
}

impl Peer for Papaya<'_> {
    fn insert(&self, range: std::ops::Range<usize>) -> usize {
        let map = self.map.pin();
        range
            .filter(|&i| map.try_insert(self.rows.get(i), i as u32).is_ok())
            .count()
    }
    fn find(&self, other: Rows<'_>, range: std::ops::Range<usize>) -> usize {
        let map = self.map.pin();
        range.filter(|&i| map.contains_key(other.get(i))).count()
    }
    fn remove(&self, range: std::ops::Range<usize>) -> Option<usize> {
        let map = self.map.pin();
        Some(
            range
                .filter(|&i| map.remove(self.rows.get(i)).is_some())
                .count(),
        )
    }
}

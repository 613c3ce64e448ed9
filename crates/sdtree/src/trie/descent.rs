//! The way down from a root to the leaf edge that a key leads to.

use super::path::Step;
use super::space::Space;
use super::{Pin, Trie, FIRST};
use crate::edge::{self, PREFIX};
use crate::primitive::Ordering;

impl Trie {
    /// The first 64 bits of the key of `q` for a root.
    #[inline]
    pub(super) fn key<S: Space>(space: &S, root: usize, q: &mut S::Query) -> u64 {
        if root == FIRST {
            space.prefix(q)
        } else {
            space.whole(q)
        }
    }

    #[inline]
    pub(super) fn side<S: Space>(space: &S, q: &mut S::Query, key: u64, at: u32) -> usize {
        if at < PREFIX {
            (key >> (63 - at) & 1) as usize
        } else {
            space.bit(q, at)
        }
    }

    /// Walks to the leaf edge that `q`, with this key, leads to, recording the path.
    #[inline]
    pub(super) fn seek<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        root: usize,
        key: u64,
        q: &mut S::Query,
        path: &mut Vec<Step>,
    ) {
        let (at, mut word) = self.root(pin, root, key);
        path.clear();
        path.push(Step {
            at,
            word,
            other: at,
        });
        while !edge::is_leaf(word) {
            let side = Self::side(space, q, key, edge::position(word));
            let node = self.node(word);
            word = node.0[side].load(Ordering::Acquire);
            path.push(Step {
                at: &node.0[side],
                word,
                other: &node.0[side ^ 1],
            });
        }
    }

    /// The leaf edge that `q`, with this key, leads to.
    #[inline]
    pub(super) fn descend<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        root: usize,
        key: u64,
        q: &mut S::Query,
    ) -> u64 {
        let (_, mut word) = self.root(pin, root, key);
        while !edge::is_leaf(word) {
            let side = Self::side(space, q, key, edge::position(word));
            word = self.node(word).0[side].load(Ordering::Acquire);
        }
        word
    }
}

//! Many searches in step, before each runs alone: memory answers them together. Nothing is decided here.

use super::classes::PinScope;
use super::space::Space;
use super::{Pin, Trie, FIRST, SECOND};
use crate::edge::{self, UNINIT};
use crate::prefetch::prefetch;
use crate::primitive::Ordering;

/// Searches walked in step: enough to keep the line fill buffers of a core busy, few enough for its caches.
pub(crate) const GROUP: usize = 64;

/// The searches of a group on their way, by number in the group.
struct Walk {
    /// Those at an inner edge.
    active: [(u16, u64); GROUP],
    n: usize,
    /// Those at an object whose prefix is theirs.
    hits: [(u16, u32); GROUP],
    hits_n: usize,
    /// Those at a class that is theirs, and the class.
    classes: [(u16, u32); GROUP],
    classes_n: usize,
}

impl Trie {
    /// Asks for the place where a search for `prefix` will begin, and that below the second root, if there is one and
    /// the key for it is known.
    #[inline]
    pub(crate) fn prefetch_place<R: Fn(u32)>(
        &self,
        _pin: &Pin<'_, R>,
        prefix: u64,
        whole: Option<u64>,
    ) {
        prefetch(self.table(FIRST).place(prefix));
        if let Some(whole) = whole {
            if !self.tables[SECOND].load(Ordering::Acquire).is_null() {
                prefetch(self.table(SECOND).place(whole));
            }
        }
    }

    /// Brings what the searches for `queries` (at most [`GROUP`]) will read into the caches, all in step; their places
    /// in the table have been asked for. It decides nothing: a search that follows finds whatever is there then.
    /// Returns how many of them belong to classes.
    pub(crate) fn warm<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        queries: &mut [S::Query],
        scope: &mut PinScope,
    ) -> usize {
        debug_assert!(queries.len() <= GROUP);
        let mut walk = Walk {
            active: [(0, 0); GROUP],
            n: 0,
            hits: [(0, 0); GROUP],
            hits_n: 0,
            classes: [(0, 0); GROUP],
            classes_n: 0,
        };
        let table = self.table(FIRST);
        for (i, q) in queries.iter().enumerate() {
            let key = space.prefix(q);
            if S::CLASSES && key == scope.prefix && scope.class != edge::NONE {
                walk.classes[walk.classes_n] = (i as u16, scope.class);
                walk.classes_n += 1;
                continue;
            }
            let word = table.place(key).load(Ordering::Acquire);
            self.look_ahead(space, key, i, word, &mut walk);
        }
        let known = walk.classes_n;
        self.walk_on(space, FIRST, queries, &mut walk);
        if S::CLASSES && walk.classes_n > 0 {
            let found = &walk.classes[known..walk.classes_n];
            if let Some(two) = found.windows(2).find(|two| two[0].1 == two[1].1) {
                let (i, node) = two[0];
                let q = &mut queries[i as usize];
                let prefix = space.prefix(q);
                self.turn_to(space, pin, q, scope, (node, prefix));
            }
            let table = self.table(SECOND);
            let mine = walk.classes;
            let mine = &mine[..walk.classes_n];
            space.compute_wholes(queries, mine);
            for &(i, node) in mine {
                let q = &mut queries[i as usize];
                space.set_class(q, node);
                prefetch(table.place(space.whole(q)));
            }
            for &(i, _) in mine {
                let key = space.whole(&mut queries[i as usize]);
                let word = table.place(key).load(Ordering::Acquire);
                self.look_ahead(space, key, i as usize, word, &mut walk);
            }
            self.walk_on(space, SECOND, queries, &mut walk);
        }
        space.look_at(queries, &walk.hits[..walk.hits_n]);
        walk.classes_n
    }

    /// Walks all that are at inner edges on, in step, until none is.
    #[inline(always)]
    fn walk_on<S: Space>(&self, space: &S, root: usize, queries: &mut [S::Query], walk: &mut Walk) {
        while walk.n > 0 {
            let now = std::mem::take(&mut walk.n);
            for k in 0..now {
                let (i, word) = walk.active[k];
                let q = &mut queries[i as usize];
                let key = Self::key(space, root, q);
                let side = Self::side(space, q, key, edge::position(word));
                let word = self.node(word).0[side].load(Ordering::Acquire);
                self.look_ahead(space, key, i as usize, word, walk);
            }
        }
    }

    #[inline(always)]
    fn look_ahead<S: Space>(&self, space: &S, key: u64, i: usize, word: u64, walk: &mut Walk) {
        if word == UNINIT {
            return;
        }
        if !edge::is_leaf(word) {
            prefetch(self.node(word));
            walk.active[walk.n] = (i as u16, word);
            walk.n += 1;
        } else if !edge::is_empty(word) && edge::fingerprint_diff(word, key).is_none() {
            if edge::is_class(word) {
                prefetch(self.node(word));
                walk.classes[walk.classes_n] = (i as u16, edge::index(word));
                walk.classes_n += 1;
            } else {
                space.prefetch_record(edge::index(word));
                walk.hits[walk.hits_n] = (i as u16, edge::index(word));
                walk.hits_n += 1;
            }
        }
    }
}

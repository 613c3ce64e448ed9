//! Removing: the mark on the leaf's edge decides (`FLAG`: this is when the object is gone), the rest is cleaning up.

use super::classes::PinScope;
use super::path::Step;
use super::space::Space;
use super::{Pin, Trie, FIRST, SECOND};
use crate::class;
use crate::edge::{self, EMPTY, FLAG, TAG};
use crate::epoch::Kind;

/// What a try to remove below a root has found.
enum Taken {
    /// No such object.
    Nothing,
    /// It has been taken out.
    Object(u32),
    /// The object belongs to this class, which has been entered.
    Class(u32),
}

impl Trie {
    /// Takes the object equal to `q` out of the tree. Returns its id, which is free when all who may hold it have
    /// left.
    pub(crate) fn remove<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        scope: &mut PinScope,
    ) -> Option<u32> {
        let path = &mut scope.path;
        let gone = match self.remove_below(space, pin, FIRST, q, path) {
            Taken::Nothing => None,
            Taken::Object(id) => Some((id, FIRST)),
            Taken::Class(node) => {
                let id = match self.remove_below(space, pin, SECOND, q, path) {
                    Taken::Object(id) => Some(id),
                    _ => None,
                };
                let members = 1 + id.is_some() as u64;
                let prefix = space.prefix(q);
                self.leave(space, pin, q, (node, prefix), members, path);
                id.map(|id| (id, SECOND))
            }
        };
        let (id, root) = gone?;
        space.removed(id);
        pin.retire(Kind::Id, id);
        pin.count(root, -1);
        Some(id)
    }

    fn remove_below<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        root: usize,
        q: &mut S::Query,
        path: &mut Vec<Step>,
    ) -> Taken {
        let key = Self::key(space, root, q);
        let id = loop {
            self.seek(space, pin, root, key, q, path);
            let last = path[path.len() - 1];
            if edge::is_empty(last.word) || edge::fingerprint_diff(last.word, key).is_some() {
                // Frozen and empty still is empty: it was when it was frozen, after this search began.
                return Taken::Nothing;
            }
            let id = edge::index(last.word);
            if edge::is_class(last.word) {
                let state = &self.node(last.word).0[0];
                if let Some(first) = self.first_of_class(space, q, self.node(last.word)) {
                    // If another has taken it out, it was gone at that moment.
                    let (taken, dead) = class::take_first(state, first);
                    if dead {
                        self.bury(space, pin, q, (id, key), path);
                    }
                    return if taken {
                        Taken::Object(first)
                    } else {
                        Taken::Nothing
                    };
                }
                // In a dead class there is nothing.
                return if class::enter(state, 1) {
                    Taken::Class(id)
                } else {
                    Taken::Nothing
                };
            }
            let equal = last.word & FLAG == 0
                && if S::CLASSES && root == FIRST {
                    space.equal(q, id)
                } else {
                    space.compare(q, id).is_none()
                };
            if !equal {
                return Taken::Nothing;
            }
            if last.word & TAG != 0 {
                self.help(pin, path);
                continue;
            }
            if path.len() == 1 {
                // Straight in the table: nothing else to take out.
                if self.swing(last.at, last.word, EMPTY) {
                    return Taken::Object(id);
                }
                continue;
            }
            if self.swing(last.at, last.word, last.word | FLAG) {
                break id;
            }
        };
        // It is gone; now the edge must go. The id cannot come back while this thread is pinned.
        space.hold(id, q);
        let mut first = true;
        loop {
            if !first {
                self.seek(space, pin, root, key, q, path);
                let last = path[path.len() - 1];
                let here = !edge::is_class(last.word) && edge::index(last.word) == id;
                if edge::is_empty(last.word) || !here {
                    return Taken::Object(id);
                }
            }
            first = false;
            if self.help(pin, path) {
                return Taken::Object(id);
            }
        }
    }
}

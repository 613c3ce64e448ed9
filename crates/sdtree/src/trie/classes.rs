//! Classes from the side of the trie: finding their first objects, counting operations in and out, burying the dead.
//! `crate::class` has the rules.

use super::path::Step;
use super::space::Space;
use super::{Node, Pin, Trie, FIRST};
use crate::class;
use crate::edge::{self, EMPTY, FLAG, MARKS};
use crate::epoch::Kind;
use crate::primitive::Ordering;

/// What the operations of one pin keep from one to the next. Made by [`Trie::start`], given back by [`Trie::end`].
pub(crate) struct PinScope {
    /// The path of the search under way; kept here so that its memory is.
    pub(super) path: Vec<Step>,
    /// A class that was seen twice in succession, and the prefix of its objects: what has this prefix need not be
    /// looked for below the first root. `NONE` if there is none.
    pub(super) class: u32,
    pub(super) prefix: u64,
    /// Operations counted into it in advance, so that one change of its state serves many.
    pub(super) held: u32,
}

/// Operations counted into a class at a time.
const HOLD: u32 = if cfg!(loom) { 2 } else { 64 };

impl Trie {
    /// The first object of a class, if it equals `q`.
    #[inline]
    pub(super) fn first_of_class<S: Space>(
        &self,
        space: &S,
        q: &mut S::Query,
        node: &Node,
    ) -> Option<u32> {
        let first = class::first(node.0[0].load(Ordering::Acquire));
        // Different wholes are of different bytes.
        let equal = first != edge::NONE
            && node.0[1].load(Ordering::Relaxed) == space.whole(q)
            && space.equal(q, first);
        equal.then_some(first)
    }

    /// What the operations under `pin` are given.
    pub(crate) fn start<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>) -> PinScope {
        PinScope {
            path: std::mem::take(&mut pin.kept().path),
            class: edge::NONE,
            prefix: 0,
            held: 0,
        }
    }

    /// After the last operation under `pin`; `q` is any query.
    pub(crate) fn end<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        mut scope: PinScope,
    ) {
        self.turn_to(space, pin, q, &mut scope, (edge::NONE, 0));
        pin.kept().path = scope.path;
    }

    /// Makes `class` the one that is expected to come again; what is held of the one before is counted out.
    pub(super) fn turn_to<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        scope: &mut PinScope,
        class: (u32, u64),
    ) {
        let before = (scope.class, scope.prefix);
        (scope.class, scope.prefix) = class;
        let held = std::mem::take(&mut scope.held);
        if held > 0 {
            self.leave(space, pin, q, before, held as u64, &mut scope.path);
        }
    }

    /// Counts an operation into the class `node`, which was seen under this pin, unless it is dead.
    #[inline]
    pub(super) fn enter(&self, node: u32, scope: &mut PinScope) -> bool {
        let again = node == scope.class;
        if again && scope.held > 0 {
            scope.held -= 1;
            return true;
        }
        let operations = if again { HOLD } else { 1 };
        // SAFETY: the number of a class that was seen under this pin.
        if class::enter(unsafe { &self.nodes.get(node).0[0] }, operations) {
            scope.held += operations - 1;
            return true;
        }
        if again {
            scope.class = edge::NONE;
        }
        false
    }

    /// Counts the caller out of class `node`, with the members that it has removed; cleans up after a class that has
    /// died of it.
    pub(super) fn leave<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        (node, prefix): (u32, u64),
        members: u64,
        path: &mut Vec<Step>,
    ) {
        // SAFETY: entered by the caller, so that it is published and not retired.
        if class::leave(unsafe { &self.nodes.get(node).0[0] }, members) {
            self.bury(space, pin, q, (node, prefix), path);
        }
    }

    /// Takes the edge to a class that has died out of the tree; `prefix` is that of its objects.
    #[cold]
    pub(super) fn bury<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        (node, prefix): (u32, u64),
        path: &mut Vec<Step>,
    ) {
        let mut mine = false;
        loop {
            // Above a class there are no bits past the prefix, so that `q` is not asked for any.
            self.seek(space, pin, FIRST, prefix, q, path);
            let last = path[path.len() - 1];
            // The number cannot come back as that of another class while this thread is pinned.
            if !edge::is_class(last.word) || edge::index(last.word) != node {
                break;
            }
            if last.word & MARKS != 0 {
                self.help(pin, path);
            } else if path.len() == 1 {
                mine |= self.swing(last.at, last.word, EMPTY);
            } else if self.swing(last.at, last.word, last.word | FLAG) {
                mine = true;
                self.help(pin, path);
            }
        }
        // As with ids: whoever has flagged the edge retires what it led to, when it is gone.
        if mine {
            pin.retire(Kind::Node, node);
        }
    }
}

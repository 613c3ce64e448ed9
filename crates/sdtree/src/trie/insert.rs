//! Inserting: one CAS on the edge recorded on the way down.
//!
//! Every leaf ever reached through an edge shares the key bits above it, so the first difference from the leaf that was
//! reached is the first difference from all below that edge; and a removed node has both edges marked, so an edge found
//! clean belongs to a node still in the tree. (The textbook second descent can end in another subtree, and loses keys.)

use super::classes::PinScope;
use super::path::Step;
use super::space::Space;
use super::{Node, Pin, Trie, FIRST, SECOND};
use crate::class;
use crate::edge::{self, EMPTY, FLAG, MARKS, TOP};
use crate::epoch::{Full, Kind};
use crate::primitive::Ordering;

/// How a try to insert below a root has ended.
enum Put {
    /// The object has this id; whether it is new.
    Done(u32, bool),
    /// The object has changed under our eyes: from the start.
    Again,
    /// The object belongs to this class, which has been entered.
    Class(u32),
}

/// What a try that failed has left for the next one.
#[derive(Default)]
struct Spare {
    /// An id in whose place the object is.
    id: Option<u32>,
    node: Option<u32>,
}

impl Trie {
    /// Puts `q` into the tree unless an equal object is there. Returns the id, and whether it is new.
    #[inline]
    pub(crate) fn insert<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
        scope: &mut PinScope,
    ) -> Result<(u32, bool), Full> {
        let mut root = FIRST;
        // The class entered: its node and its prefix.
        let mut entered = (0, 0);
        if S::CLASSES {
            let node = space.class(q);
            if node != edge::NONE {
                // SAFETY: the number of a class that was seen under this pin.
                if let Some(id) = self.first_of_class(space, q, unsafe { self.nodes.get(node) }) {
                    return Ok((id, false));
                }
                if self.enter(node, scope) {
                    (root, entered) = (SECOND, (node, space.prefix(q)));
                }
            }
        }
        let mut spare = Spare::default();
        let done = loop {
            let put = self.insert_below(space, pin, root, q, &mut scope.path, &mut spare);
            if root == SECOND && !matches!(put, Ok(Put::Done(_, true))) {
                if scope.held > 0 && scope.class == entered.0 {
                    scope.held += 1;
                } else {
                    self.leave(space, pin, q, entered, 1, &mut scope.path);
                }
                root = FIRST;
            }
            match put {
                Ok(Put::Done(id, new)) => break Ok((id, new)),
                Ok(Put::Again) => {}
                Ok(Put::Class(node)) => (root, entered) = (SECOND, (node, space.prefix(q))),
                Err(full) => break Err(full),
            }
        };
        if let Ok((_, true)) = done {
            self.count_insert(pin, root);
        } else if let Some(id) = spare.id {
            // Not given back at once: whoever asks for ids that nobody told it may be reading there.
            space.removed(id);
            pin.retire(Kind::Id, id);
        }
        if let Some(node) = spare.node {
            pin.give_back(Kind::Node, node);
        }
        done
    }

    fn insert_below<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        root: usize,
        q: &mut S::Query,
        path: &mut Vec<Step>,
        spare: &mut Spare,
    ) -> Result<Put, Full> {
        let key = Self::key(space, root, q);
        loop {
            self.seek(space, pin, root, key, q, path);
            let last = path[path.len() - 1];
            let (step, differ) = if edge::is_empty(last.word) {
                if last.word & MARKS != 0 {
                    continue;
                }
                (last, None)
            } else {
                let found = edge::index(last.word);
                let differ = match edge::fingerprint_diff(last.word, key) {
                    None if S::CLASSES && root == FIRST => {
                        if edge::is_class(last.word) {
                            if let Some(id) = self.first_of_class(space, q, self.node(last.word)) {
                                return Ok(Put::Done(id, false));
                            }
                            if class::enter(&self.node(last.word).0[0], 1) {
                                return Ok(Put::Class(found));
                            }
                            // Dead: it must be gone before another can come.
                            self.bury(space, pin, q, (found, key), path);
                            continue;
                        }
                        if last.word & FLAG == 0 && space.equal(q, found) {
                            return Ok(Put::Done(found, false));
                        }
                        if last.word & MARKS != 0 {
                            self.help(pin, path);
                            continue;
                        }
                        // The second of its class.
                        let (node, Node(words)) = self.spare_node(pin, spare)?;
                        self.make_second::<S>();
                        // Published by the CAS below.
                        words[0].store(class::new(found), Ordering::Relaxed);
                        words[1].store(space.whole_of(found), Ordering::Relaxed);
                        if self.swing(last.at, last.word, edge::class(node, last.word)) {
                            spare.node = None;
                            return Ok(Put::Class(node));
                        }
                        continue;
                    }
                    None => space.compare(q, found),
                    differ => differ,
                };
                let Some(b) = differ else {
                    if last.word & FLAG == 0 {
                        return Ok(Put::Done(found, false));
                    }
                    // Equal, but removed: it must be gone before another can come.
                    self.help(pin, path);
                    continue;
                };
                // Less only if the bytes change under our eyes: a table resolves so many, and an edge names none of them.
                let b = b.max(TOP);
                // The last edge of the path that lies above bit b.
                let i = path
                    .iter()
                    .position(|s| edge::is_leaf(s.word) || edge::position(s.word) > b);
                let i = i.unwrap_or(path.len() - 1);
                if path[i].word & MARKS != 0 {
                    self.help(pin, &path[..=i]);
                    continue;
                }
                (path[i], Some(b))
            };
            let id = match spare.id {
                Some(id) => id,
                None => {
                    let new = pin.alloc(Kind::Id)?;
                    spare.id = Some(new);
                    // From here on the search reads the tree's own copy, if it keeps one.
                    let below = (root == SECOND).then_some(differ.unwrap_or(0));
                    if space.place(new, q, below) {
                        return Ok(Put::Again);
                    }
                    new
                }
            };
            let leaf = edge::leaf(id, key);
            let Some(b) = differ else {
                if self.swing(step.at, EMPTY, leaf) {
                    return Ok(Put::Done(id, true));
                }
                continue;
            };
            let (node, Node(edges)) = self.spare_node(pin, spare)?;
            let side = Self::side(space, q, key, b);
            // Published by the CAS below; nobody else sees the node before.
            edges[side].store(leaf, Ordering::Relaxed);
            edges[side ^ 1].store(step.word, Ordering::Relaxed);
            if self.swing(step.at, step.word, edge::inner(node, b)) {
                spare.node = None;
                return Ok(Put::Done(id, true));
            }
        }
    }

    /// The node of a try: one that a former try has left, or a new one.
    #[inline]
    fn spare_node<R: Fn(u32)>(
        &self,
        pin: &mut Pin<'_, R>,
        spare: &mut Spare,
    ) -> Result<(u32, &Node), Full> {
        let node = match spare.node {
            Some(node) => node,
            None => *spare.node.insert(pin.alloc(Kind::Node)?),
        };
        // SAFETY: reserved by this very call; pieces live as long as the arena.
        Ok((node, unsafe { &*self.nodes.reserve(node) }))
    }
}

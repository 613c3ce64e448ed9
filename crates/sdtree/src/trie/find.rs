//! Finding: an object seen through a frozen edge after its node has left was in the tree when the node left, which was
//! after the search began; so no second look is needed.

use super::space::Space;
use super::{Pin, Trie, FIRST, SECOND};
use crate::edge::{self, FLAG};

impl Trie {
    /// The id of the object equal to `q`.
    #[inline]
    pub(crate) fn find<S: Space, R: Fn(u32)>(
        &self,
        space: &S,
        pin: &mut Pin<'_, R>,
        q: &mut S::Query,
    ) -> Option<u32> {
        let gone = |word: u64, key: u64| {
            word & FLAG != 0 || edge::is_empty(word) || edge::fingerprint_diff(word, key).is_some()
        };
        let mut key = space.prefix(q);
        let mut word = self.descend(space, pin, FIRST, key, q);
        if gone(word, key) {
            return None;
        }
        if S::CLASSES {
            if !edge::is_class(word) {
                let id = edge::index(word);
                return space.equal(q, id).then_some(id);
            }
            if let Some(id) = self.first_of_class(space, q, self.node(word)) {
                return Some(id);
            }
            key = space.whole(q);
            word = self.descend(space, pin, SECOND, key, q);
            if gone(word, key) {
                return None;
            }
        }
        let id = edge::index(word);
        space.compare(q, id).is_none().then_some(id)
    }
}

//! Taking a removed leaf out, with the node above it: who is stopped by a mark helps, too.

use super::path::Step;
use super::{Pin, Trie};
use crate::edge::{self, EMPTY, FLAG, TAG};
use crate::epoch::Kind;
use crate::primitive::Ordering;

impl Trie {
    /// Helps on what has marked the last edge of `path`: takes a removed leaf and its node out. Returns whether this
    /// very call did so. After false, search anew.
    pub(super) fn help<R: Fn(u32)>(&self, pin: &mut Pin<'_, R>, path: &[Step]) -> bool {
        let (last, above) = (path[path.len() - 1], &path[..path.len() - 1]);
        if above.is_empty() {
            // In the table. Frozen: the new table is there already, and a new search moves the place. Removed:
            let word = last.word | FLAG;
            return last.word & TAG == 0 && edge::is_leaf(word) && self.swing(last.at, word, EMPTY);
        }
        // The lowest edge above the node that is not frozen; all between are nodes on their way out.
        let Some(j) = above.iter().rposition(|s| s.word & TAG == 0) else {
            return false;
        };
        // SAFETY: as in `swing`.
        let (here, other) = unsafe { (&*last.at, &*last.other) };
        let word = here.load(Ordering::Acquire);
        let stays = if word & FLAG != 0 {
            other
        } else if word & TAG != 0 {
            here
        } else {
            return false;
        };
        crate::freeze::point();
        let sibling = stays.fetch_or(TAG, Ordering::AcqRel) & !TAG;
        if !self.swing(above[j].at, above[j].word, sibling) {
            return false;
        }
        for step in &above[j..] {
            pin.retire(Kind::Node, edge::index(step.word));
        }
        true
    }
}

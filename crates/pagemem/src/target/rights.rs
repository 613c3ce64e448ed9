//! Whether a program has given up what made it root's: it is to have no frames of root's other programs then.
//!
//! Asked now and then, of targets whose frames are not watched closely for life ([`super::close`]): such a one is given its
//! memory back within seconds, and is not merged again.

use super::Target;
use crate::status::Status;

/// What is known of a program's rights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rights {
    /// Whether it, or the one that forked it, has been seen as root.
    had: bool,
    given_up: bool,
}

impl Rights {
    /// Of a child that is born now.
    pub(super) fn inherited(self) -> Self {
        Self {
            given_up: false,
            ..self
        }
    }
}

/// Whether process `pid` is root, may become so again, or has capabilities; None where it is not there.
fn is_root(pid: i32) -> Option<bool> {
    // Real, effective and saved; what it has for files alone does not count.
    let status = Status::of(pid, pid).ok()?;
    let ids = status.numbers("Uid", 10)?;
    let capabilities = status.numbers("CapPrm", 16)?;
    Some(ids.iter().take(3).any(|id| *id == 0) || capabilities.iter().any(|set| *set != 0))
}

impl Target {
    /// To be asked now and then: whether the program has given up its rights. Then its memory is given back.
    pub fn look_for_rights(&mut self) {
        if self.for_life {
            return;
        }
        match is_root(self.pid) {
            Some(true) => self.rights.had = true,
            Some(false) if self.rights.had => {
                self.rights.given_up = true;
                // Again, where it did not work before.
                self.must_shed |= self.maps_frames();
            }
            _ => {}
        }
    }

    /// Whether it is not to be merged, for it is less than those whose frames it would map.
    pub fn has_given_up_rights(&self) -> bool {
        self.rights.given_up
    }
}

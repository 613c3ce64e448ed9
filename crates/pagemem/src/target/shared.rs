//! Pages that a target shares with other processes since a fork are left as they are.
//!
//! Such a page is in memory once already. A frame in its place would free nothing, and once everybody has been given
//! memory of their own again there would be a copy for each. Asked inside the stop, so that the answer holds: nothing
//! but the target's own threads can share more of its memory, and they stand still.

use std::io;

use super::{good_runs, Code, Run, Target};
use crate::hold;
use crate::sys::PAGE;

impl Target {
    /// Marks the pages of a batch that others map too. `nothing`: they are to be exchanged for nothing; so are those then
    /// that hold no memory, for nothing is freed.
    pub(super) fn leave_shared(
        &self,
        batch: &[Run],
        codes: &mut [u8],
        nothing: bool,
    ) -> io::Result<()> {
        let (mut at, mut place) = (Vec::new(), Vec::new());
        for (run, first) in good_runs(batch, codes) {
            at.extend((0..u64::from(run.pages)).map(|i| run.addr + i * PAGE));
            place.extend(first..first + run.pages as usize);
        }
        for (hold, place) in self.process.holds(&at)?.into_iter().zip(place) {
            match hold {
                hold::SHARED => codes[place] = Code::Shared as u8,
                hold::NONE if nothing => codes[place] = Code::Gone as u8,
                _ => {}
            }
        }
        Ok(())
    }
}

//! Pages that a target shares with other processes since a fork are left as they are.
//!
//! Such a page is in memory once already. A frame in its place would free nothing, and once everybody has been given
//! memory of their own again there would be a copy for each. Asked inside the stop, so that the answer holds: nothing
//! but the target's own threads can share more of its memory, and they stand still.

use std::io;

use super::runs::good_runs;
use super::{PageOutcome, PageRun, Target};
use crate::hold;
use crate::sys::PAGE;

/// Bytes of the smallest huge page.
const HUGE: u64 = 2 << 20;

impl Target {
    /// Marks the pages of a batch that others map too. `nothing`: they are to be exchanged for nothing; so are those then
    /// that hold no memory, for nothing is freed.
    pub(super) fn leave_shared(
        &self,
        batch: &[PageRun],
        codes: &mut [u8],
        nothing: bool,
    ) -> io::Result<()> {
        let (mut at, mut place) = (Vec::new(), Vec::new());
        for (run, first) in good_runs(batch, codes) {
            at.extend((0..u64::from(run.pages)).map(|i| run.addr + i * PAGE));
            place.extend(first..first + run.pages as usize);
        }
        for (hold, place) in self.holds_page_by_page(&at)?.into_iter().zip(place) {
            match hold {
                hold::SHARED => codes[place] = PageOutcome::Shared as u8,
                hold::NONE if nothing => codes[place] = PageOutcome::Gone as u8,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whose each page at `at` is. Where a huge page maps some of them as a whole, of which the kernel cannot tell each
    /// page, it is mapped page by page first: exchanging some of its pages would do that next anyway.
    fn holds_page_by_page(&self, at: &[u64]) -> io::Result<Vec<u8>> {
        let mut holds = self.process.holds(at)?;
        let own = hold::places(&holds, hold::OWN);
        let huge = self.process.in_huge_pages(at, &own)?;
        if huge.is_empty() {
            return Ok(holds);
        }
        let mut last = None;
        for &i in &huge {
            if last.replace(at[i] / HUGE) != Some(at[i] / HUGE) {
                // One page of it, which so counts as written: if it stays, the engine looks at it once more.
                self.track
                    .as_ref()
                    .unwrap_or(&self.guard)
                    .unmark(at[i], at[i] + PAGE);
            }
        }
        holds = self.process.holds(at)?;
        for i in self.process.in_huge_pages(at, &huge)? {
            holds[i] = hold::SHARED; // In doubt.
        }
        Ok(holds)
    }
}

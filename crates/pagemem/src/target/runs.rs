//! Arithmetic on runs: cut into batches and pieces, by code, at the edges of mappings, and joined again.
//!
//! Called by the modules that work on batches; touches no process.

use std::collections::BTreeSet;

use super::exchange::{PIECES_MAX, PIECE_PAGES};
use super::{PageOutcome, PageRun};
use crate::sys::PAGE;

/// Runs of one batch.
const RUNS_MAX: usize = PIECES_MAX;

/// Runs that overlap one before them in order of addresses: first page, counted over all runs, and number of pages.
pub(super) fn overlapping(runs: &[PageRun]) -> Vec<(usize, usize)> {
    let mut at = 0;
    let mut all: Vec<(u64, usize, usize)> = runs
        .iter()
        .map(|r| {
            at += r.pages as usize;
            (r.addr, at - r.pages as usize, r.pages as usize)
        })
        .collect();
    all.sort_unstable();
    let mut end = 0;
    all.retain(|&(addr, _, pages)| {
        let overlaps = addr < end;
        end = end.max(addr + pages as u64 * PAGE);
        overlaps
    });
    all.into_iter()
        .map(|(_, first, pages)| (first, pages))
        .collect()
}

/// Maximal runs of pages whose code is Done.
pub(super) fn good_runs(runs: &[PageRun], codes: &[u8]) -> Vec<(PageRun, usize)> {
    let mut out: Vec<(PageRun, usize)> = Vec::new();
    let mut at = 0;
    for r in runs {
        let mut open = false;
        for i in 0..r.pages {
            let good = codes[at + i as usize] == PageOutcome::Done as u8;
            if good && open {
                out.last_mut().expect("open run").0.pages += 1;
            } else if good {
                let run = PageRun {
                    addr: r.addr + u64::from(i) * PAGE,
                    pages: 1,
                    frame: r.frame.wrapping_add(i),
                };
                out.push((run, at + i as usize));
            }
            open = good;
        }
        at += r.pages as usize;
    }
    out
}

/// Cuts runs into batches of at most `pages` pages and `RUNS_MAX` runs.
pub(super) fn next_batch(runs: &[PageRun], cursor: &mut (usize, u32), pages: u32) -> Vec<PageRun> {
    let mut out = Vec::new();
    let mut left = pages;
    while left > 0 && cursor.0 < runs.len() && out.len() < RUNS_MAX {
        let r = runs[cursor.0];
        let n = (r.pages - cursor.1).min(left);
        if n > 0 {
            let skip = cursor.1;
            out.push(PageRun {
                addr: r.addr + u64::from(skip) * PAGE,
                pages: n,
                frame: r.frame.wrapping_add(skip),
            });
        }
        left -= n;
        cursor.1 += n;
        if cursor.1 == r.pages {
            *cursor = (cursor.0 + 1, 0);
        }
    }
    out
}

/// Neighbouring pieces taken together, with the pieces of each.
pub(super) fn spans(pieces: &[(PageRun, usize)]) -> Vec<(PageRun, &[(PageRun, usize)])> {
    let joined = |a: &(PageRun, usize), b: &(PageRun, usize)| {
        a.0.addr + u64::from(a.0.pages) * PAGE == b.0.addr
            && a.0.frame.wrapping_add(a.0.pages) == b.0.frame
    };
    pieces
        .chunk_by(joined)
        .map(|part| {
            (
                PageRun {
                    pages: part.iter().map(|(r, _)| r.pages).sum(),
                    ..part[0].0
                },
                part,
            )
        })
        .collect()
}

/// Cuts runs at `edges` and into pieces.
pub(super) fn cut(runs: &[(PageRun, usize)], edges: &BTreeSet<u64>) -> Vec<(PageRun, usize)> {
    let mut out = Vec::new();
    for &(run, first) in runs {
        let mut done = 0;
        while done < run.pages {
            let addr = run.addr + u64::from(done) * PAGE;
            let limit = edges
                .range(addr + 1..)
                .next()
                .map_or(u64::MAX, |e| (e - addr) / PAGE);
            let pages = (run.pages - done)
                .min(PIECE_PAGES)
                .min(u32::try_from(limit).unwrap_or(u32::MAX));
            out.push((
                PageRun {
                    addr,
                    pages,
                    frame: run.frame.wrapping_add(done),
                },
                first + done as usize,
            ));
            done += pages;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(addr: u64, pages: u32, frame: u32) -> PageRun {
        PageRun {
            addr: addr * PAGE,
            pages,
            frame,
        }
    }

    fn plain(runs: &[PageRun]) -> Vec<(u64, u32, u32)> {
        runs.iter()
            .map(|r| (r.addr / PAGE, r.pages, r.frame))
            .collect()
    }

    #[test]
    fn batches_cut_runs_at_the_page_limit_and_go_on_where_they_stopped() {
        let runs = [run(10, 5, 100), run(50, 3, 7)];
        let mut c = (0, 0);
        assert_eq!(plain(&next_batch(&runs, &mut c, 4)), [(10, 4, 100)]);
        assert_eq!(
            plain(&next_batch(&runs, &mut c, 4)),
            [(14, 1, 104), (50, 3, 7)]
        );
        assert!(next_batch(&runs, &mut c, 4).is_empty());
    }

    #[test]
    fn of_pages_asked_for_twice_only_the_first_run_is_left() {
        let runs = [run(50, 3, 7), run(10, 5, 100), run(14, 2, 9), run(52, 1, 8)];
        assert_eq!(overlapping(&runs), [(8, 2), (10, 1)]);
        assert!(overlapping(&runs[..2]).is_empty());
    }

    #[test]
    fn a_page_that_failed_splits_its_run() {
        let runs = [run(10, 4, 100), run(14, 2, 9)];
        let good = good_runs(&runs, &[0, 1, 0, 0, 0, 0]);
        let got: Vec<_> = good
            .iter()
            .map(|(r, at)| (r.addr / PAGE, r.pages, r.frame, *at))
            .collect();
        assert_eq!(got, [(10, 1, 100, 0), (12, 2, 102, 2), (14, 2, 9, 4)]);
    }
}

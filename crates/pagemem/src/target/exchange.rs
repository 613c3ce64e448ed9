//! The steps by which pages of a stopped target are exchanged for others.
//!
//! A page is moved out of reach, compared, and then either replaced or moved back. Each of these may fail, near the
//! limit of mappings (`vm.max_map_count`) above all: moving needs some mappings to spare, and moving one's way back as
//! many as moving aside. So the syscall batch checks every result itself: a page that can neither be replaced nor moved
//! back is copied back into fresh memory, for which the kernel asks less, and where that fails, too, nothing of what is
//! aside is freed. The guardian then makes room and brings it back inside the same stop.

use std::io;

use super::{PageRun, Target, ANON, FIXED, PROT_RW};
use crate::arch::{self, nr};
use crate::failpoints;
use crate::inject::{InjectedRegion, Op, ASIDE_PAGES, OPS_MAX};
use crate::ptrace::{Stopped, Tracer};
use crate::sys::PAGE;

pub(super) const MOVE: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;

/// Pages of one piece: while it is compared, its addresses have no page.
pub(super) const PIECE_PAGES: u32 = 64;
/// Operations of one piece.
pub(super) const STEPS: usize = 9;
/// Most pieces of one syscall batch.
pub(super) const PIECES_MAX: usize = (OPS_MAX - 8) / STEPS;

fn bytes(r: &PageRun) -> u64 {
    u64::from(r.pages) * PAGE
}

fn nothing() -> Op {
    Op {
        result: 0,
        ..Op::new(arch::COPY, &[])
    }
}

/// The end of an exchange that cannot go on: back from `aside`; by copying, where the kernel will not move it; and where
/// it cannot be copied either, the operation at `clear`, which frees what is aside, is made to free nothing. The first
/// skips `after` operations more than these where it is back. `unreserved`: see [`Target::unreserved`].
pub(super) fn way_back(
    region: &InjectedRegion,
    r: &PageRun,
    aside: u64,
    clear: usize,
    after: u64,
    unreserved: u64,
) -> [Op; 4] {
    let len = bytes(r);
    let fresh = ANON | FIXED | unreserved;
    [
        Op::new(
            nr::MREMAP | arch::skip_unless_error(3 + after),
            &[aside, len, len, MOVE, r.addr],
        ),
        Op::new(
            nr::MMAP | arch::skip_if_error(1),
            &[r.addr, len, PROT_RW, fresh, u64::MAX, 0],
        ),
        Op::new(
            arch::COPY | arch::skip_unless_error(1),
            &[r.addr, aside, len],
        ),
        region.spare_aside(clear),
    ]
}

/// Whether the results of [`way_back`] say that the bytes are where they were.
pub(super) fn is_back(way: &[Op]) -> bool {
    way[0].result >= 0 || (way[1].result >= 0 && way[2].result == 0)
}

/// What became of a piece.
pub(super) enum Fate {
    /// It could not be moved aside, so nothing has happened to it.
    Untouched,
    /// Other pages are in its place; the old ones are aside.
    Placed,
    /// It is where it was. `differs`: offset of what was not equal, where that is why.
    Back { differs: Option<u64> },
    /// It is aside, and nothing is in its place.
    Lost,
}

impl Fate {
    pub(super) fn of(step: &[Op], r: &PageRun) -> Self {
        let (moved, verdict, placed) = (step[1].result, step[2].result, step[3].result);
        if step[0].result < 0 || moved < 0 {
            Self::Untouched
        } else if verdict == 0 && placed as u64 == r.addr {
            Self::Placed
        } else if failpoints::active("aside") || is_back(&step[4..8]) {
            Self::Back {
                differs: (verdict > 0).then(|| verdict as u64 - 1),
            }
        } else {
            Self::Lost
        }
    }
}

/// Makes the operations of the pieces of one syscall batch, which end with [`InjectedRegion::clear_aside`].
pub(super) struct Steps<'a> {
    pub(super) region: &'a InjectedRegion,
    /// Operations before those of the first piece.
    pub(super) first: usize,
    pub(super) pieces: usize,
}

impl Steps<'_> {
    fn clear(&self) -> usize {
        self.first + STEPS * self.pieces
    }

    /// Piece `i`: maps the frames somewhere, moves the pages aside, compares, moves the frames in or the pages back.
    pub(super) fn for_frames(
        &self,
        i: usize,
        r: &PageRun,
        aside: u64,
        fd_at: u64,
        unreserved: u64,
    ) -> [Op; STEPS] {
        let len = bytes(r);
        let offset = u64::from(r.frame) * PAGE;
        let result = |step: usize| self.region.result_at(self.first + STEPS * i + step);
        let map = nr::MMAP | arch::DEREF_ARG5 | arch::skip_if_error(8);
        let compare = arch::COMPARE | arch::DEREF_ARG2 | arch::skip_unless_zero(1);
        let place = nr::MREMAP | arch::DEREF_ARG1 | arch::skip_unless_error(5);
        let [back, fresh, copy, spare] =
            way_back(self.region, r, aside, self.clear(), 0, unreserved);
        let flags = libc::MAP_PRIVATE as u64 | unreserved;
        let mut steps = [
            Op::new(map, &[0, len, PROT_RW, flags, fd_at, offset]),
            Op::new(
                nr::MREMAP | arch::skip_if_error(6),
                &[r.addr, len, len, MOVE, aside],
            ),
            Op::new(compare, &[aside, result(0), len]),
            Op::new(place, &[result(0), len, len, MOVE, r.addr]),
            back,
            fresh,
            copy,
            spare,
            Op::new(nr::MUNMAP | arch::DEREF_ARG1, &[result(0), len]),
        ];
        if failpoints::active("compare") {
            steps[2].args[2] = 0;
        }
        if failpoints::active("aside") {
            // Compared where others can reach it, and a little later the frames are mapped there.
            let compare = arch::COMPARE | arch::DEREF_ARG2 | arch::skip_unless_zero(2);
            steps[1] = Op::new(compare, &[r.addr, result(0), len]);
            let time_at = result(2) - 4 * 8;
            steps[2] = Op::new(nr::NANOSLEEP, &[time_at, 0, 0, 6_000_000]);
            steps[4] = Op::new(arch::COPY | arch::skip_unless_error(3), &[]);
        }
        steps
    }

    /// A piece: moves the pages aside, looks whether they are zero, maps fresh memory in their place or moves them back.
    pub(super) fn for_nothing(&self, r: &PageRun, aside: u64, unreserved: u64) -> [Op; STEPS] {
        let len = bytes(r);
        let fresh = nr::MMAP | arch::skip_unless_error(5);
        let [back, again, copy, spare] =
            way_back(self.region, r, aside, self.clear(), 1, unreserved);
        let flags = ANON | FIXED | unreserved;
        [
            nothing(),
            Op::new(
                nr::MREMAP | arch::skip_if_error(7),
                &[r.addr, len, len, MOVE, aside],
            ),
            Op::new(
                arch::COMPARE_ZERO | arch::skip_unless_zero(1),
                &[aside, 0, len],
            ),
            Op::new(fresh, &[r.addr, len, PROT_RW, flags, u64::MAX, 0]),
            back,
            again,
            copy,
            spare,
            nothing(),
        ]
    }
}

/// How often pages that could not be brought back are tried again.
const RETURNS: usize = 3;

impl Target {
    /// Brings pieces back that a syscall batch had to leave aside: where they are, and where they belong. `replaced`:
    /// what is aside, start and bytes, whose place others have taken. Freeing that makes room for mappings.
    pub(super) fn bring_back(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        lost: &[(u64, PageRun)],
        replaced: &[(u64, u64)],
    ) -> io::Result<()> {
        let mut free: Vec<Op> = replaced
            .iter()
            .map(|&(at, bytes)| Op::new(nr::MUNMAP, &[at, bytes]))
            .collect();
        // What of the reserved addresses nothing has been moved to is a mapping, too.
        let used = lost.iter().map(|(at, r)| at + bytes(r));
        let used = used
            .chain(replaced.iter().map(|(at, bytes)| at + bytes))
            .max();
        let end = self.region.aside + u64::from(ASIDE_PAGES) * PAGE;
        let used = used.unwrap_or(self.region.aside);
        if used < end {
            free.push(Op::new(nr::MUNMAP, &[used, end - used]));
        }
        for some in free.chunks_mut(OPS_MAX) {
            self.run_ops(tracer, stopped, some)?;
        }
        let mut lost = lost.to_vec();
        for _ in 0..RETURNS {
            let mut left = Vec::new();
            for some in lost.chunks(PIECES_MAX) {
                // This batch frees nothing: behind its end.
                let never = 4 * some.len();
                let mut ops: Vec<Op> = some
                    .iter()
                    .flat_map(|(aside, r)| {
                        way_back(&self.region, r, *aside, never, 0, self.unreserved(r))
                    })
                    .collect();
                self.run_ops(tracer, stopped, &mut ops)?;
                let back = some.iter().zip(ops.chunks_exact(4));
                left.extend(back.filter(|(_, way)| !is_back(way)).map(|(p, _)| *p));
            }
            lost = left;
            if lost.is_empty() {
                let mut clear = [self.region.clear_aside(u64::from(ASIDE_PAGES) * PAGE)];
                return self.run_ops(tracer, stopped, &mut clear);
            }
        }
        // They stay where they are: the injected region does not count as intact any more, so that nothing will free them.
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }
}

//! What sharing would free, told from the extents: what is shared already, what is freed for certain, what perhaps.

use std::collections::HashMap;
use std::io;

use crate::sys::{self, Extent};
use crate::verify::Range;
use crate::walk::{Files, Kind, OpenFiles};

/// Extents that have no place on the device that can be compared.
const NOWHERE: u32 = sys::UNKNOWN | sys::DELALLOC | sys::INLINE;

/// What became of the ranges that could be shared, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Refers to the same extents already.
    pub shared: u64,
    /// Is freed, since nothing else refers to it.
    pub frees: u64,
    /// Refers to extents that something else refers to, too: a snapshot, a copy outside.
    pub elsewhere: u64,
    /// Compressed: what it takes on the device is not told.
    pub compressed: u64,
    /// Part of an extent whose other parts stay in use, which keeps all of it (btrfs).
    pub kept: u64,
    /// Lies among metadata, and cannot be shared.
    pub inline: u64,
    /// On a file system that cannot share.
    pub cannot: u64,
    /// Extents of it could not be asked for.
    pub unknown: u64,
}

/// Where a byte of a file lies: the extent it is in, if any.
fn at(extents: &[Extent], offset: u64) -> Option<&Extent> {
    let next = extents.partition_point(|extent| extent.logical <= offset);
    let extent = extents[..next].last()?;
    (offset < extent.logical + extent.length).then_some(extent)
}

/// The end of what lies together from `offset` on: of the extent, or of the hole.
fn end(extents: &[Extent], offset: u64) -> u64 {
    match at(extents, offset) {
        Some(extent) => extent.logical + extent.length,
        None => {
            let next = extents.partition_point(|extent| extent.logical <= offset);
            extents.get(next).map_or(u64::MAX, |extent| extent.logical)
        }
    }
}

/// Whether the bytes at these two offsets lie in one place.
fn same_place(a: Option<&Extent>, a_at: u64, b: Option<&Extent>, b_at: u64) -> bool {
    let (Some(a), Some(b)) = (a, b) else {
        return false;
    };
    if (a.flags | b.flags) & NOWHERE != 0 {
        return false;
    }
    let (a_in, b_in) = (a_at - a.logical, b_at - b.logical);
    if (a.flags | b.flags) & sys::ENCODED != 0 {
        // A compressed extent tells where it begins, not where in it a byte is.
        return a.flags & b.flags & sys::ENCODED != 0 && a.physical == b.physical && a_in == b_in;
    }
    a.physical + a_in == b.physical + b_in
}

/// Takes out of `ranges` (of whatever order) what is shared already or cannot be, and tells what the rest would free.
///
/// # Errors
/// `ECANCELED`.
pub fn account(
    files: &Files,
    ranges: &[Range],
    control: &crate::control::Control,
) -> io::Result<(Vec<Range>, Account)> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| (range.dst, range.dst_at));
    let mut open = OpenFiles::new(files);
    let mut account = Account::default();
    let mut left = Vec::with_capacity(sorted.len());
    control.begin(sorted.len() as u64);
    for of_file in sorted.chunk_by(|a, b| a.dst == b.dst) {
        control.spend(0)?;
        control.advance(of_file.len() as u64);
        let kind = files.kind(of_file[0].dst);
        let bytes: u64 = of_file.iter().map(|range| range.len).sum();
        if kind == Kind::CannotShare {
            account.cannot += bytes;
            continue;
        }
        let from = left.len();
        match compare(of_file, &mut open, &mut left, &mut account) {
            Ok(extents) => price(kind, &extents, &left[from..], &mut account),
            // The kernel will decide.
            Err(_) => {
                account.unknown += bytes;
                left.truncate(from);
                left.extend_from_slice(of_file);
            }
        }
    }
    Ok((left, account))
}

fn fetch(open: &mut OpenFiles<'_>, file: u32, low: u64, high: u64) -> io::Result<Vec<Extent>> {
    sys::extents(open.get(file, false)?.fd(), low, high)
}

/// Keeps of each range what does not lie in the place of its source yet. Returns the extents of all the file's ranges.
fn compare(
    of_file: &[Range],
    open: &mut OpenFiles<'_>,
    left: &mut Vec<Range>,
    account: &mut Account,
) -> io::Result<Vec<Extent>> {
    let mut all: Vec<Extent> = Vec::new();
    let mut told = *account;
    for range in of_file {
        let dst = fetch(open, range.dst, range.dst_at, range.dst_at + range.len)?;
        let src = fetch(open, range.src, range.src_at, range.src_at + range.len)?;
        let mut done = 0;
        // What is left of the range so far, as offsets in it.
        let mut kept: Option<(u64, u64)> = None;
        let mut take = |kept: &mut Option<(u64, u64)>| {
            if let Some((low, high)) = kept.take() {
                left.push(Range {
                    src_at: range.src_at + low,
                    dst_at: range.dst_at + low,
                    len: high - low,
                    ..*range
                });
            }
        };
        while done < range.len {
            let (s, d) = (range.src_at + done, range.dst_at + done);
            let next = (end(&src, s) - s)
                .min(end(&dst, d) - d)
                .min(range.len - done);
            let (from, to) = (at(&src, s), at(&dst, d));
            if to.is_none() {
                // A hole takes no place, and would be filled.
                take(&mut kept);
            } else if same_place(from, s, to, d) {
                told.shared += next;
                take(&mut kept);
            } else if from
                .into_iter()
                .chain(to)
                .any(|extent| extent.flags & sys::INLINE != 0)
            {
                told.inline += next;
                take(&mut kept);
            } else {
                kept = Some((kept.map_or(done, |(low, _)| low), done + next));
            }
            done += next;
        }
        take(&mut kept);
        for extent in dst {
            if all.last().is_none_or(|last| last.logical < extent.logical) {
                all.push(extent);
            }
        }
    }
    *account = told;
    Ok(all)
}

/// What the ranges of one file, in order, free of its extents.
fn price(kind: Kind, extents: &[Extent], ranges: &[Range], account: &mut Account) {
    let mut covered: HashMap<usize, u64> = HashMap::new();
    for range in ranges {
        let (mut low, high) = (range.dst_at, range.dst_at + range.len);
        while low < high {
            let next = end(extents, low).min(high);
            if at(extents, low).is_some() {
                let index = extents.partition_point(|extent| extent.logical <= low) - 1;
                *covered.entry(index).or_default() += next - low;
            }
            low = next;
        }
    }
    for (index, bytes) in covered {
        let extent = &extents[index];
        // The last block of a file counts whole, as its extent does.
        let whole = extent.length - bytes < LAST_BLOCK;
        let bytes = if whole { extent.length } else { bytes };
        if extent.flags & sys::SHARED != 0 {
            account.elsewhere += bytes;
        } else if extent.flags & sys::ENCODED != 0 {
            account.compressed += bytes;
        } else if kind == Kind::FreesExtents && !whole {
            account.kept += bytes;
        } else {
            account.frees += bytes;
        }
    }
}

/// Less than this is missing at most where a range ends at the end of its file.
const LAST_BLOCK: u64 = 4096;

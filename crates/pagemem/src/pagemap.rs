//! `PAGEMAP_SCAN`: which pages of a process are resident, zero, huge, swapped, of a file, or written; and the
//! per-page entries of `/proc/PID/pagemap`, which name frames.
//!
//! The scan (Linux 6.7) walks page tables only: no content is read. With `SCAN_WP_MATCHING` it also
//! write-protects what it returns, atomically, in ranges registered with a userfaultfd in asynchronous mode.

use std::io;
use std::os::fd::RawFd;

/// Base page size that this crate is written for (x86-64, arm64 with 4 KiB granule).
pub const PAGE_SIZE: u64 = 4096;

/// The range is registered for asynchronous write-protection.
pub const PAGE_IS_WPALLOWED: u64 = 1 << 0;
/// Written since it was last write-protected.
pub const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// Of a file (or shared memory), not anonymous.
pub const PAGE_IS_FILE: u64 = 1 << 2;
/// Resident.
pub const PAGE_IS_PRESENT: u64 = 1 << 3;
/// In swap.
pub const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The kernel's zero page.
pub const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Mapped by a transparent huge page (or hugetlb).
pub const PAGE_IS_HUGE: u64 = 1 << 6;
/// Write-protect what matches.
pub const SCAN_WP_MATCHING: u64 = 1 << 0;
/// Fail with `EPERM` on a range that is not registered for asynchronous write-protection.
pub const SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// Entry of a resident page.
pub const ENTRY_PRESENT: u64 = 1 << 63;
/// Entry of a page in swap.
pub const ENTRY_SWAPPED: u64 = 1 << 62;
/// Entry of a page of a file or of shared memory.
pub const ENTRY_FILE: u64 = 1 << 61;
/// Entry of a page that is mapped only here.
pub const ENTRY_EXCLUSIVE: u64 = 1 << 56;
/// The frame number in an entry; zero without `CAP_SYS_ADMIN`.
pub const ENTRY_FRAME: u64 = (1 << 55) - 1;

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `PAGEMAP_SCAN`, `_IOWR('f', 16, struct pm_scan_arg)`: direction, size, type and number, as `asm/ioctl.h` packs them.
const PAGEMAP_SCAN: libc::Ioctl =
    ((3u64 << 30) | ((size_of::<PmScanArg>() as u64) << 16) | ((b'f' as u64) << 8) | 16)
        as libc::Ioctl;

/// Regions a single call may return; 24 bytes each. The walk goes on behind the last when it is full.
const VECTOR_LEN: usize = 4096;

/// What to look for; the fields are those of `struct pm_scan_arg` with the same names.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// `SCAN_*` bits.
    pub flags: u64,
    /// Categories whose sense is inverted before the masks are applied.
    pub inverted: u64,
    /// All of these must be set.
    pub mask: u64,
    /// If not zero, one of these must be set.
    pub anyof: u64,
    /// Categories to return; ranges that differ only in others are joined.
    pub returned: u64,
}

/// Ranges found, ascending within each range asked for; one element a range in every array.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// First byte address.
    pub start: Vec<u64>,
    /// Byte address after the last.
    pub end: Vec<u64>,
    /// `PAGE_IS_*` bits, those of `Query::returned`.
    pub categories: Vec<u64>,
}

impl Found {
    /// Appends a range, joined to the last where it continues it: the walk is cut where the vector was full.
    fn push(&mut self, floor: usize, region: PageRegion) {
        if self.end.len() > floor {
            let last = self.end.len() - 1;
            if self.end[last] == region.start && self.categories[last] == region.categories {
                self.end[last] = region.end;
                return;
            }
        }
        self.start.push(region.start);
        self.end.push(region.end);
        self.categories.push(region.categories);
    }
}

/// Scans the page tables behind `pagemap`, an open `/proc/PID/pagemap`, over the ranges `start[i]..end[i]`.
///
/// Ranges found in different ranges asked for are not joined. A process that has exited has no pages.
///
/// # Errors
/// Those of the ioctl: `ENOTTY` before Linux 6.7, `EPERM` where `SCAN_CHECK_WPASYNC` meets an unregistered range,
/// `EINVAL` for unaligned ranges or unknown bits. Ranges scanned before stay scanned (and write-protected).
pub fn scan(pagemap: RawFd, start: &[u64], end: &[u64], query: &Query) -> io::Result<Found> {
    let mut found = Found::default();
    // No range has more regions than pages: a scan of a few of them needs no room for thousands.
    let pages = |(&from, &to): (&u64, &u64)| (to.saturating_sub(from) / PAGE_SIZE) as usize;
    let most = start.iter().zip(end).map(pages).max().unwrap_or(0);
    let mut vector = vec![PageRegion::default(); most.clamp(1, VECTOR_LEN)];
    for (&from, &to) in start.iter().zip(end) {
        let floor = found.end.len();
        let mut at = from;
        while at < to {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags: query.flags,
                start: at,
                end: to,
                vec: vector.as_mut_ptr() as u64,
                vec_len: vector.len() as u64,
                category_inverted: query.inverted,
                category_mask: query.mask,
                category_anyof_mask: query.anyof,
                return_mask: query.returned,
                ..PmScanArg::default()
            };
            // SAFETY: `arg` is a valid `pm_scan_arg` of the size it states; `vec`/`vec_len` describe `vector`,
            // which outlives the call and holds plain integers, valid whatever the kernel writes.
            let count = unsafe { libc::ioctl(pagemap, PAGEMAP_SCAN, &mut arg) };
            if count < 0 {
                // `EINTR` comes with a fatal signal only, so there is nothing to restart.
                return Err(io::Error::last_os_error());
            }
            for &region in &vector[..count as usize] {
                found.push(floor, region);
            }
            // Only a full vector ends a walk early. `walk_end` alone does not tell: the kernel (seen in 6.18) walks
            // through a buffer of 512 regions and, when the walk then ends, leaves the place of the last refill.
            if (count as usize) < vector.len() {
                break;
            }
            at = arg.walk_end.max(vector[vector.len() - 1].end);
        }
    }
    Ok(found)
}

/// Whether the kernel has `PAGEMAP_SCAN` (Linux 6.7), tried on the own process.
pub fn available() -> bool {
    use std::os::fd::AsRawFd;
    let Ok(own) = std::fs::File::open("/proc/self/pagemap") else {
        return false;
    };
    let query = Query {
        mask: PAGE_IS_PRESENT,
        returned: PAGE_IS_PRESENT,
        ..Query::default()
    };
    scan(own.as_raw_fd(), &[PAGE_SIZE], &[2 * PAGE_SIZE], &query).is_ok()
}

/// Reads the 64-bit entries of `pagemap` for all pages of the ranges, in order, one after the other.
///
/// Bits, as in the kernel's `admin-guide/mm/pagemap`: 63 present, 62 swapped, 61 file or shared, 58 guard,
/// 57 write-protected by userfaultfd, 56 mapped only here; 0–54 the frame number, zero without `CAP_SYS_ADMIN`.
/// Entries behind the end of the address space are zero. Cost: 10–20 ns a page.
///
/// # Errors
/// Those of `pread`.
pub fn entries(pagemap: RawFd, start: &[u64], end: &[u64]) -> io::Result<Vec<u64>> {
    let pages = |from: u64, to: u64| (to.saturating_sub(from) / PAGE_SIZE) as usize;
    let mut out = vec![
        0u64;
        start
            .iter()
            .zip(end)
            .map(|(&from, &to)| pages(from, to))
            .sum()
    ];
    let mut at = 0;
    for (&from, &to) in start.iter().zip(end) {
        let count = pages(from, to);
        let mut done = 0;
        while done < count * 8 {
            let position = from / PAGE_SIZE * 8 + done as u64;
            // SAFETY: the destination lies within `out`: `at + count <= out.len()` and `done < count * 8` bytes.
            let read = unsafe {
                let target = out.as_mut_ptr().add(at).cast::<u8>().add(done);
                libc::pread(
                    pagemap,
                    target.cast(),
                    count * 8 - done,
                    position as libc::off_t,
                )
            };
            if read < 0 {
                let error = io::Error::last_os_error();
                if error.raw_os_error() == Some(libc::EINTR) {
                    continue;
                }
                return Err(error);
            }
            if read == 0 {
                break;
            }
            done += read as usize;
        }
        at += count;
    }
    Ok(out)
}

/// Pages between two for which both entries are still looked up in one call: what lies between costs less than a call.
const ENTRIES_GAP: u64 = 24;

/// Appends the entry of each page at `at`. Pages that follow each other closely are looked up in one call.
///
/// # Errors
/// As [`entries`].
pub fn entries_of(pagemap: RawFd, at: &[u64], entries: &mut Vec<u64>) -> io::Result<()> {
    let mut first = 0;
    while first < at.len() {
        let near =
            |pair: &&[u64]| pair[0] < pair[1] && pair[1] - pair[0] <= ENTRIES_GAP * PAGE_SIZE;
        let last = first + at[first..].windows(2).take_while(near).count();
        let (low, high) = (at[first], at[last].saturating_add(PAGE_SIZE));
        let found = self::entries(pagemap, &[low], &[high])?;
        let entry = |&at: &u64| {
            let place = ((at - low) / PAGE_SIZE) as usize;
            found.get(place).copied().unwrap_or(0)
        };
        entries.extend(at[first..=last].iter().map(entry));
        first = last + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn own() -> std::fs::File {
        std::fs::File::open("/proc/self/pagemap").unwrap()
    }

    /// Maps anonymous memory without huge pages; leaked, tests are short.
    fn memory(pages: usize) -> *mut u8 {
        // SAFETY: a fresh anonymous mapping; nothing else refers to it.
        unsafe {
            let size = pages * PAGE_SIZE as usize;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            assert_ne!(map, libc::MAP_FAILED);
            libc::madvise(map, size, libc::MADV_NOHUGEPAGE);
            map.cast()
        }
    }

    const PRESENT: Query = Query {
        flags: 0,
        inverted: 0,
        mask: PAGE_IS_PRESENT,
        anyof: 0,
        returned: PAGE_IS_PRESENT,
    };

    #[test]
    fn every_page_is_found_once_whether_the_vector_is_full_or_not() {
        // The kernel refills its own buffer every 512 regions: counts around multiples of that and of ours.
        for count in [
            1,
            511,
            512,
            513,
            700,
            VECTOR_LEN - 1,
            VECTOR_LEN,
            VECTOR_LEN + 1,
            10_000,
        ] {
            let map = memory(2 * count);
            for page in 0..count {
                // SAFETY: within the mapping.
                unsafe { map.add(2 * page * 4096).write(1) };
            }
            let start = map as u64;
            let end = start + 2 * count as u64 * PAGE_SIZE;
            let found = scan(own().as_raw_fd(), &[start], &[end], &PRESENT).unwrap();
            let expected: Vec<u64> = (0..count as u64)
                .map(|i| start + 2 * i * PAGE_SIZE)
                .collect();
            assert_eq!(found.start, expected, "{count} pages");
            assert!(found
                .start
                .iter()
                .zip(&found.end)
                .all(|(a, b)| b - a == PAGE_SIZE));
            // SAFETY: the mapping made above, not used any more.
            unsafe { libc::munmap(map.cast(), 2 * count * PAGE_SIZE as usize) };
        }
    }

    #[test]
    fn ranges_cut_by_the_walk_are_joined_but_ranges_asked_for_apart_are_not() {
        let map = memory(600);
        for page in 0..600 {
            // SAFETY: within the mapping.
            unsafe { map.add(page * 4096).write(1) };
        }
        let (start, middle, end) = (
            map as u64,
            map as u64 + 300 * PAGE_SIZE,
            map as u64 + 600 * PAGE_SIZE,
        );
        let whole = scan(own().as_raw_fd(), &[start], &[end], &PRESENT).unwrap();
        assert_eq!((whole.start, whole.end), (vec![start], vec![end]));
        let parts = scan(
            own().as_raw_fd(),
            &[start, middle],
            &[middle, end],
            &PRESENT,
        )
        .unwrap();
        assert_eq!(
            (parts.start, parts.end),
            (vec![start, middle], vec![middle, end])
        );
    }

    #[test]
    fn the_zero_page_is_told_from_a_written_page() {
        let map = memory(2);
        // SAFETY: within the mapping; a read maps the zero page, a write a frame.
        unsafe {
            map.read_volatile();
            map.add(4096).write(1);
        }
        let query = Query {
            returned: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
            ..PRESENT
        };
        let found = scan(
            own().as_raw_fd(),
            &[map as u64],
            &[map as u64 + 8192],
            &query,
        )
        .unwrap();
        assert_eq!(
            found.categories,
            [PAGE_IS_PRESENT | PAGE_IS_PFNZERO, PAGE_IS_PRESENT]
        );
    }

    #[test]
    fn entries_tell_present_pages_from_absent_ones() {
        let map = memory(4);
        // SAFETY: within the mapping.
        unsafe { map.add(2 * 4096).write(1) };
        let bits = entries(
            own().as_raw_fd(),
            &[map as u64],
            &[map as u64 + 4 * PAGE_SIZE],
        )
        .unwrap();
        assert_eq!(
            bits.iter().map(|bits| bits >> 63).collect::<Vec<_>>(),
            [0, 0, 1, 0]
        );
        assert_eq!(bits[2] >> 56 & 1, 1, "mapped only here");
    }

    #[test]
    fn an_unaligned_range_and_a_file_that_is_no_pagemap_are_errors() {
        assert!(scan(own().as_raw_fd(), &[1], &[4096], &PRESENT).is_err());
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(scan(null.as_raw_fd(), &[0], &[4096], &PRESENT).is_err());
    }
}

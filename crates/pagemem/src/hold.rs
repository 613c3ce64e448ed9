//! Whose a resident page is: the process's alone, shared with others since a fork, or a file's.
//!
//! Of a page that is shared the frame stays in use whatever one of its processes does with its own mapping of it: to
//! merge it, or to give it back, frees nothing. Bit 56 of a page's entry in `/proc/PID/pagemap` tells it, also to
//! an ordinary user. Only of pages that a huge page maps as a whole it does not: see [`in_huge_pages`].

use std::io;
use std::os::fd::RawFd;

use crate::pagemap::{
    self, entries_of, Query, ENTRY_EXCLUSIVE, ENTRY_FILE, ENTRY_PRESENT, ENTRY_SWAPPED,
};
use crate::pagemap::{PAGE_IS_HUGE, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_SIZE};

/// No memory: never touched, discarded, or the kernel's zero page.
pub const NONE: u8 = 0;
/// Anonymous memory that this process alone maps.
pub const OWN: u8 = 1;
/// Anonymous memory that other processes map too, since a fork or by KSM.
pub const SHARED: u8 = 2;
/// A page of a file, as a frame of the pool is.
pub const FILE: u8 = 3;
/// In swap: the kernel does not tell whose.
pub const SWAPPED: u8 = 4;

/// Pages between two that are still scanned in one call: to walk over what lies between costs less than a call.
const GAP: u64 = 128;

/// What the entry of a page tells. The zero page looks shared: see [`holds_of`].
fn hold(entry: u64) -> u8 {
    if entry & ENTRY_PRESENT == 0 {
        if entry & ENTRY_SWAPPED == 0 {
            NONE
        } else {
            SWAPPED
        }
    } else if entry & ENTRY_FILE != 0 {
        FILE
    } else if entry & ENTRY_EXCLUSIVE != 0 {
        OWN
    } else {
        SHARED
    }
}

/// Where in `holds` one is `hold`.
pub fn places(holds: &[u8], hold: u8) -> Vec<usize> {
    (0..holds.len()).filter(|&i| holds[i] == hold).collect()
}

/// Those of the pages `which` of `at` that are in all of the categories `mask`, in order. Pages that follow each other
/// closely are asked for in one call.
fn in_categories(pagemap: RawFd, at: &[u64], which: &[usize], mask: u64) -> io::Result<Vec<usize>> {
    let query = Query {
        mask,
        returned: mask,
        ..Query::default()
    };
    let mut found = Vec::new();
    let mut first = 0;
    while first < which.len() {
        let close = |pair: &&[usize]| {
            let (a, b) = (at[pair[0]], at[pair[1]]);
            a < b && b - a <= GAP * PAGE_SIZE
        };
        let last = first + which[first..].windows(2).take_while(close).count();
        let (low, high) = (at[which[first]], at[which[last]].saturating_add(PAGE_SIZE));
        let ranges = pagemap::scan(pagemap, &[low], &[high], &query)?;
        let mut range = 0;
        for &i in &which[first..=last] {
            while ranges.end.get(range).is_some_and(|&end| end <= at[i]) {
                range += 1;
            }
            if ranges.start.get(range).is_some_and(|&start| start <= at[i]) {
                found.push(i);
            }
        }
        first = last + 1;
    }
    Ok(found)
}

/// Those of the pages `which` of `at` that a transparent huge page maps as a whole, in order. Of all pages of such a one
/// the kernel (seen in 6.18) tells what it knows of the first: one that is called [`OWN`] may be shared, since a fork after
/// which a child has written another page of it. Cost: one call for pages close to each other, 10 ns a page.
///
/// # Errors
/// Those of the page map.
pub fn in_huge_pages(pagemap: RawFd, at: &[u64], which: &[usize]) -> io::Result<Vec<usize>> {
    in_categories(pagemap, at, which, PAGE_IS_PRESENT | PAGE_IS_HUGE)
}

/// Tells for each page at `at`, whose entries are `entries`, what it is. Where none is shared that costs nothing.
///
/// # Errors
/// Those of the page map.
pub fn holds_of(pagemap: RawFd, at: &[u64], entries: &[u64]) -> io::Result<Vec<u8>> {
    let mut holds: Vec<u8> = entries.iter().map(|&entry| hold(entry)).collect();
    // The kernel's zero page is nobody's, and so nobody's alone. Frame numbers are for root only: the scan tells.
    let shared = places(&holds, SHARED);
    for i in in_categories(pagemap, at, &shared, PAGE_IS_PRESENT | PAGE_IS_PFNZERO)? {
        holds[i] = NONE;
    }
    Ok(holds)
}

/// Tells for each page at `at` of the process behind `pagemap` (an open `/proc/PID/pagemap`) what it is. Cost: 10-20 ns
/// a page in runs, some hundred for one alone; as much again for shared ones.
///
/// # Errors
/// Those of the page map.
pub fn holds(pagemap: RawFd, at: &[u64]) -> io::Result<Vec<u8>> {
    let mut entries = Vec::with_capacity(at.len());
    entries_of(pagemap, at, &mut entries)?;
    holds_of(pagemap, at, &entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_page_is_its_owners_until_a_fork_and_again_when_the_child_has_gone() {
        let pages = 5usize;
        // SAFETY: a fresh anonymous mapping that nothing else refers to; written within it.
        let map = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let bytes = pages * PAGE_SIZE as usize;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let map = libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0).cast::<u8>();
            libc::madvise(map.cast(), bytes, libc::MADV_NOHUGEPAGE);
            for page in [0, 1, 3] {
                map.add(page * PAGE_SIZE as usize).write(7);
            }
            map.add(4 * PAGE_SIZE as usize).read_volatile();
            map
        };
        let at: Vec<u64> = (0..pages as u64)
            .map(|i| map as u64 + i * PAGE_SIZE)
            .collect();
        let own = std::fs::File::open("/proc/self/pagemap").unwrap();
        let now = || holds(own.as_raw_fd(), &at).unwrap();
        assert_eq!(now(), [OWN, OWN, NONE, OWN, NONE]);
        let mut ends = [0; 2];
        // SAFETY: the child makes only calls that are safe after a fork, and ends without running anything of Rust's.
        let child = unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            let child = libc::fork();
            if child == 0 {
                libc::close(ends[1]);
                let mut byte = 0u8;
                libc::read(ends[0], (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
            child
        };
        // SAFETY: within the mapping.
        unsafe { map.add(PAGE_SIZE as usize).write(8) };
        assert_eq!(now(), [SHARED, OWN, NONE, SHARED, NONE]);
        // SAFETY: descriptors and a child of this test's own.
        unsafe {
            libc::close(ends[1]);
            libc::close(ends[0]);
            assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
        }
        assert_eq!(now(), [OWN, OWN, NONE, OWN, NONE]);
    }
}

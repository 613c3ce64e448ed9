//! Bulk reads of pages, of another process (`process_vm_readv`) or of a file (`pread`), and the keys of what was read.
//!
//! Pages are read in chunks that stay in the second-level cache, so that the key of each page costs a pass over
//! cached bytes only. A page that cannot be read is marked and the rest goes on. Nothing here stops a process.
//!
//! **Reading must not cost the process memory.** `process_vm_readv` pins what it reads, and the kernel gives an
//! anonymous page that is shared (after a fork, or merged by KSM) a private copy before it is pinned: a look at the
//! workers of a pre-forking server would double their memory. So only pages that their entry in `/proc/PID/pagemap`
//! calls exclusive, or of a file, are read that way; the others are read through `/proc/PID/mem`, which pins nothing
//! and costs about a third more. So are those that a huge page maps as a whole: its entries tell of the first of its pages
//! only. A fork between the look and the read may still unshare that one chunk.

mod own;

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use keyhash::Key;

use crate::hold;
use crate::pagemap::{self, ENTRY_EXCLUSIVE, ENTRY_FILE, ENTRY_PRESENT, PAGE_SIZE};

pub use own::{read_own_keys, CODE_SHARED};

const PAGE: usize = PAGE_SIZE as usize;

/// Bytes read before their keys are computed: half of a common second-level cache.
pub const CHUNK_BYTES: usize = 256 << 10;
/// `UIO_MAXIOV`: remote ranges of one `process_vm_readv`.
const IOV_MAX: usize = 1024;

/// Pages between two for which both entries are still looked up in one call: what lies between costs less than a call.
const ENTRIES_GAP: usize = 24;

/// The page was read.
pub const CODE_OK: u8 = 0;
/// The page was read and all its bytes are zero.
pub const CODE_ZERO: u8 = 1;
/// The page is not mapped, not readable, or not wholly there any more.
pub const CODE_GONE: u8 = 2;

/// Both were read and all bytes are equal.
pub const SAME: u8 = 0;
/// Both were read and some byte differs.
pub const DIFFERENT: u8 = 1;
/// One of the pages could not be read.
pub const UNREADABLE: u8 = 2;

/// Where pages are read from, opened for some calls.
#[derive(Debug)]
pub enum Source {
    /// A process; positions are addresses in it, and a page has 4096 bytes.
    Process(Process),
    /// An open file or block device; positions are byte offsets in it.
    File(RawFd),
}

/// A process to read from. It stands for the address space that the process had when it was opened.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    /// `None` when there is no such process: then every page is gone.
    files: Option<(File, File)>,
}

impl Process {
    /// Opens `/proc/PID/pagemap` and `/proc/PID/mem` for reading. A process that is gone is no error.
    ///
    /// # Errors
    /// `PermissionDenied` where the process may not be read.
    pub fn open(pid: i32) -> io::Result<Process> {
        let open = |what| File::open(format!("/proc/{pid}/{what}"));
        let files = open("pagemap").and_then(|pagemap| Ok((pagemap, open("mem")?)));
        match files {
            Ok(files) => Ok(Process {
                pid,
                files: Some(files),
            }),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                Ok(Process { pid, files: None })
            }
            Err(error) => Err(error),
        }
    }

    fn read(
        &self,
        at: &[u64],
        known: Option<&[u64]>,
        out: &mut [u8],
        code: &mut [u8],
    ) -> io::Result<()> {
        let Some((pagemap, mem)) = &self.files else {
            code.fill(CODE_GONE);
            return Ok(());
        };
        let mut looked_up = Vec::new();
        let entries = match known {
            Some(known) => known,
            None => {
                entries_of(pagemap.as_raw_fd(), at, &mut looked_up)?;
                &looked_up
            }
        };
        let (pinned, rest) = may_be_pinned(pagemap, at, entries);
        self.read_pinned(&pinned, at, out, code)?;
        read_unpinned(mem, &rest, at, out, code)
    }

    /// Reads pages `which` of `at` with `process_vm_readv`, into their places in `out`.
    fn read_pinned(
        &self,
        which: &[u32],
        at: &[u64],
        out: &mut [u8],
        code: &mut [u8],
    ) -> io::Result<()> {
        let (mut local, mut remote) = (Vec::new(), Vec::new());
        let mut done = 0;
        while done < which.len() {
            local.clear();
            remote.clear();
            for &page in &which[done..which.len().min(done + IOV_MAX)] {
                let page = page as usize;
                extend(&mut local, out[page * PAGE..][..PAGE].as_mut_ptr() as usize);
                extend(&mut remote, at[page] as usize);
            }
            // SAFETY: `local` describes disjoint pages of `out`, borrowed mutably for the call; `remote` holds
            // addresses in the other process, which the kernel checks; the counts are those of the arrays.
            let read = unsafe {
                let (from, into) = (remote.as_ptr(), local.as_ptr());
                libc::process_vm_readv(self.pid, into, local.len() as _, from, remote.len() as _, 0)
            };
            let mark = |code: &mut [u8], range: std::ops::Range<usize>, mark: u8| {
                which[range]
                    .iter()
                    .for_each(|&page| code[page as usize] = mark);
            };
            if read < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    // The first page of this call is not there any more.
                    Some(libc::EFAULT) => {
                        mark(code, done..done + 1, CODE_GONE);
                        done += 1;
                    }
                    Some(libc::ESRCH) => {
                        mark(code, done..which.len(), CODE_GONE);
                        return Ok(());
                    }
                    Some(libc::EINTR) => {}
                    _ => return Err(error),
                }
                continue;
            }
            // A read that ends early was stopped by the page behind its last whole one.
            let whole = read as usize / PAGE;
            mark(code, done..done + whole, CODE_OK);
            done += whole;
            if whole == 0 {
                mark(code, done..done + 1, CODE_GONE);
                done += 1;
            }
        }
        Ok(())
    }
}

/// Which of the pages `at` may be pinned, and which are to be read without.
fn may_be_pinned(pagemap: &File, at: &[u64], entries: &[u64]) -> (Vec<u32>, Vec<u32>) {
    let is =
        |page: usize, bits: u64| entries[page] & ENTRY_PRESENT != 0 && entries[page] & bits != 0;
    let own = |&page: &usize| is(page, ENTRY_EXCLUSIVE) && !is(page, ENTRY_FILE);
    let own: Vec<usize> = (0..at.len()).filter(own).collect();
    // Where that cannot be told none is pinned.
    let huge = hold::in_huge_pages(pagemap.as_raw_fd(), at, &own).unwrap_or(own);
    let mut huge = huge.into_iter().peekable();
    (0..at.len() as u32).partition(|&page| {
        huge.next_if_eq(&(page as usize)).is_none()
            && is(page as usize, ENTRY_EXCLUSIVE | ENTRY_FILE)
    })
}

/// Appends the pagemap entry of each page at `at`. Pages that follow each other closely are looked up in one call.
pub(crate) fn entries_of(pagemap: RawFd, at: &[u64], entries: &mut Vec<u64>) -> io::Result<()> {
    let mut first = 0;
    while first < at.len() {
        let near = |pair: &&[u64]| {
            pair[0] < pair[1] && pair[1] - pair[0] <= ENTRIES_GAP as u64 * PAGE_SIZE
        };
        let last = first + at[first..].windows(2).take_while(near).count();
        let (low, high) = (at[first], at[last].saturating_add(PAGE_SIZE));
        let found = pagemap::entries(pagemap, &[low], &[high])?;
        let entry = |&at: &u64| {
            let place = ((at - low) / PAGE_SIZE) as usize;
            found.get(place).copied().unwrap_or(0)
        };
        entries.extend(at[first..=last].iter().map(entry));
        first = last + 1;
    }
    Ok(())
}

/// Adds a page to ranges, to the last where it continues it.
fn extend(ranges: &mut Vec<libc::iovec>, at: usize) {
    match ranges.last_mut() {
        Some(last) if last.iov_base as usize + last.iov_len == at => last.iov_len += PAGE,
        _ => ranges.push(libc::iovec {
            iov_base: at as *mut libc::c_void,
            iov_len: PAGE,
        }),
    }
}

/// Reads pages `which` of `at` through `/proc/PID/mem`, run by run, into their places in `out`.
fn read_unpinned(
    mem: &File,
    which: &[u32],
    at: &[u64],
    out: &mut [u8],
    code: &mut [u8],
) -> io::Result<()> {
    let mut done = 0;
    while done < which.len() {
        let first = which[done] as usize;
        let follows = |pair: &&[u32]| {
            let (a, b) = (pair[0] as usize, pair[1] as usize);
            a + 1 == b && at[a].wrapping_add(PAGE as u64) == at[b]
        };
        let run = 1 + which[done..].windows(2).take_while(follows).count();
        let read = match mem.read_at(&mut out[first * PAGE..(first + run) * PAGE], at[first]) {
            Ok(read) => read / PAGE,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Not mapped, or no address at all.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EIO | libc::EINVAL | libc::EFAULT)
                ) =>
            {
                0
            }
            Err(error) => return Err(error),
        };
        code[first..first + read].fill(CODE_OK);
        done += read;
        if read == 0 {
            code[first] = CODE_GONE;
            done += 1;
        }
    }
    Ok(())
}

/// Length of the run of consecutive pages that starts at `at[0]`.
fn run_length(at: &[u64], page_size: usize) -> usize {
    1 + at
        .windows(2)
        .take_while(|pair| pair[0].wrapping_add(page_size as u64) == pair[1])
        .count()
}

impl Source {
    /// Writes the pagemap entry of each page at `at` into `entries`: nothing for a file or a process that is gone.
    ///
    /// To look them up chunk by chunk and hand them to [`Source::read`] costs least: the kernel then finds what it
    /// knows of the pages still in the cache.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn entries(&self, at: &[u64], entries: &mut Vec<u64>) -> io::Result<()> {
        entries.clear();
        match self {
            Source::Process(Process {
                files: Some((pagemap, _)),
                ..
            }) => entries_of(pagemap.as_raw_fd(), at, entries),
            _ => Ok(()),
        }
    }

    /// Reads the pages at `at` into `out`, one behind the other, and tells in `code` (`CODE_OK`, `CODE_GONE`) which
    /// could be read; what is in `out` for a page that is gone is not defined. Consecutive positions cost least.
    /// `known`: the pagemap entries of the pages, where the caller has just read them; a file's are not looked at.
    ///
    /// # Errors
    /// Those that hold for the whole source: no permission, not a readable file.
    ///
    /// # Panics
    /// If `out` or `code` is not as long as `at` asks for, or the pages of a process are not of 4096 bytes.
    pub fn read(
        &self,
        at: &[u64],
        known: Option<&[u64]>,
        page_size: usize,
        out: &mut [u8],
        code: &mut [u8],
    ) -> io::Result<()> {
        assert_eq!(
            out.len(),
            at.len() * page_size,
            "out must hold at.len() pages"
        );
        assert_eq!(code.len(), at.len(), "code must hold one element a page");
        match self {
            Source::Process(process) => {
                assert_eq!(page_size, PAGE, "a process has pages of {PAGE} bytes");
                process.read(at, known, out, code)
            }
            Source::File(fd) => read_file(*fd, at, page_size, out, code),
        }
    }
}

fn read_file(
    fd: RawFd,
    at: &[u64],
    page_size: usize,
    out: &mut [u8],
    code: &mut [u8],
) -> io::Result<()> {
    let mut first = 0;
    while first < at.len() {
        let run = run_length(&at[first..], page_size);
        let target = &mut out[first * page_size..(first + run) * page_size];
        let mut done = 0;
        while done < target.len() {
            let rest = &mut target[done..];
            let position = (at[first] + done as u64) as libc::off_t;
            // SAFETY: the destination and its length are those of `rest`, borrowed mutably for the call.
            let read = unsafe { libc::pread(fd, rest.as_mut_ptr().cast(), rest.len(), position) };
            if read < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    // A bad sector: this page is lost, those behind it may be fine.
                    Some(libc::EIO) => {
                        let page = done / page_size;
                        code[first + page] = CODE_GONE;
                        done = (page + 1) * page_size;
                        continue;
                    }
                    _ => return Err(error),
                }
            }
            if read == 0 {
                break;
            }
            let before = done / page_size;
            done += read as usize;
            code[first + before..first + done / page_size].fill(CODE_OK);
        }
        // The file ended: pages that are not wholly there are gone.
        code[first + done / page_size..first + run].fill(CODE_GONE);
        first += run;
    }
    Ok(())
}

/// A buffer that begins on a page boundary, to read into.
///
/// The alignment is what makes reading cheap: on Zen 3 the kernel's copy (`rep movsb`) of a page to 16 bytes behind a
/// page boundary, which is where `malloc` puts large blocks, takes four times as long as to any other place (2.5 µs
/// against 0.65, measured).
#[derive(Debug, Default)]
pub struct PageBuffer(Vec<u8>);

impl PageBuffer {
    /// An empty buffer.
    pub const fn new() -> PageBuffer {
        PageBuffer(Vec::new())
    }

    /// `len` bytes from a page boundary on; what they hold is not defined. It grows as needed and never shrinks.
    pub fn lend(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len + PAGE {
            self.0 = vec![0; len + PAGE];
        }
        let aligned = self.0.as_ptr().align_offset(PAGE);
        &mut self.0[aligned..aligned + len]
    }
}

thread_local! {
    /// Scratch for a chunk, kept between calls: fresh memory would cost a page fault for each page read.
    static SCRATCH: RefCell<PageBuffer> = const { RefCell::new(PageBuffer::new()) };
}

fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| f(scratch.lend(len)))
}

/// Runs `work` on every item, from `threads` threads that take the next item when they are done with one. The first
/// error ends it. One thread means the calling one.
fn each<T: Send>(
    items: Vec<T>,
    threads: usize,
    work: impl Fn(T) -> io::Result<()> + Sync,
) -> io::Result<()> {
    if threads <= 1 || items.len() <= 1 {
        return items.into_iter().try_for_each(work);
    }
    let workers = threads.min(items.len());
    let items: Vec<Mutex<Option<T>>> = items
        .into_iter()
        .map(|item| Mutex::new(Some(item)))
        .collect();
    let next = AtomicUsize::new(0);
    let run = || -> io::Result<()> {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(item) = item
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .take()
            {
                if let Err(error) = work(item) {
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(run)).collect();
        let mut outcome = run();
        for other in others {
            let ended = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome = outcome.and(ended);
        }
        outcome
    })
}

fn chunk_pages(page_size: usize) -> usize {
    (CHUNK_BYTES / page_size).max(1)
}

/// Keys and codes of pages that have been read into `bytes`: those whose code is not `CODE_GONE` already.
pub fn keys_of_read(key: &Key, bytes: &[u8], page_size: usize, keys: &mut [u64], code: &mut [u8]) {
    for ((page, key_out), code) in bytes.chunks_exact(page_size).zip(keys).zip(code) {
        *key_out = 0;
        if *code != CODE_GONE {
            if keyhash::is_zero(page) {
                *code = CODE_ZERO;
            } else {
                *key_out = keyhash::hash64(key, page);
            }
        }
    }
}

/// Reads the pages at `at` and computes the key of each, a keyed hash of all its bytes (0 for zero and gone pages),
/// and its code: `CODE_OK`, `CODE_ZERO` or `CODE_GONE`. The bytes are forgotten, or kept in `keep` (as `Source::read`
/// leaves them) if it is given.
///
/// # Errors
/// As [`Source::read`].
///
/// # Panics
/// If an array is not as long as `at` asks for, or `page_size` is 0.
#[allow(clippy::too_many_arguments)]
pub fn read_keys(
    source: &Source,
    at: &[u64],
    page_size: usize,
    key: &Key,
    keys: &mut [u64],
    code: &mut [u8],
    keep: Option<&mut [u8]>,
    threads: usize,
) -> io::Result<()> {
    assert_eq!(keys.len(), at.len(), "keys must hold one element a page");
    assert_eq!(code.len(), at.len(), "code must hold one element a page");
    let step = chunk_pages(page_size);
    let keys = keys.chunks_mut(step);
    let code = code.chunks_mut(step);
    let parts = at.chunks(step).zip(keys).zip(code);
    match keep {
        Some(keep) => {
            assert_eq!(
                keep.len(),
                at.len() * page_size,
                "keep must hold at.len() pages"
            );
            let items: Vec<_> = parts.zip(keep.chunks_mut(step * page_size)).collect();
            each(items, threads, |(((at, keys), code), bytes)| {
                source.read(at, None, page_size, bytes, code)?;
                keys_of_read(key, bytes, page_size, keys, code);
                Ok(())
            })
        }
        None => each(parts.collect(), threads, |((at, keys), code)| {
            with_scratch(at.len() * page_size, |bytes| {
                source.read(at, None, page_size, bytes, code)?;
                keys_of_read(key, bytes, page_size, keys, code);
                Ok(())
            })
        }),
    }
}

/// Keys and codes (`CODE_OK`, `CODE_ZERO`) of the pages of `bytes`; what is left behind the last whole page is not
/// looked at.
///
/// # Panics
/// If `keys` or `code` does not hold one element a whole page, or `page_size` is 0.
pub fn keys_of(
    bytes: &[u8],
    page_size: usize,
    key: &Key,
    keys: &mut [u64],
    code: &mut [u8],
    threads: usize,
) {
    let pages = bytes.len() / page_size;
    assert_eq!(keys.len(), pages, "keys must hold one element a page");
    assert_eq!(code.len(), pages, "code must hold one element a page");
    let step = chunk_pages(page_size);
    let bytes = bytes[..pages * page_size].chunks(step * page_size);
    let items: Vec<_> = bytes
        .zip(keys.chunks_mut(step))
        .zip(code.chunks_mut(step))
        .collect();
    let outcome = each(items, threads, |((bytes, keys), code)| {
        code.fill(CODE_OK);
        keys_of_read(key, bytes, page_size, keys, code);
        Ok(())
    });
    debug_assert!(outcome.is_ok(), "no part of this can fail");
}

/// Reads page `at_a[i]` of `a` and page `at_b[i]` of `b` and compares all their bytes: `SAME`, `DIFFERENT` or
/// `UNREADABLE` (one of them, or both) in `verdict[i]`.
///
/// # Errors
/// As [`Source::read`], of either.
///
/// # Panics
/// If `at_b` or `verdict` is not as long as `at_a`, or `page_size` is 0.
pub fn compare(
    (a, at_a): (&Source, &[u64]),
    (b, at_b): (&Source, &[u64]),
    page_size: usize,
    verdict: &mut [u8],
) -> io::Result<()> {
    assert_eq!(
        at_a.len(),
        at_b.len(),
        "both sides must hold one element a page"
    );
    assert_eq!(
        verdict.len(),
        at_a.len(),
        "verdict must hold one element a page"
    );
    // Half a chunk of each side, so that both stay in the cache.
    let step = chunk_pages(2 * page_size);
    for ((at_a, at_b), verdict) in at_a
        .chunks(step)
        .zip(at_b.chunks(step))
        .zip(verdict.chunks_mut(step))
    {
        let bytes = at_a.len() * page_size;
        with_scratch(2 * bytes, |both| {
            let (in_a, in_b) = both.split_at_mut(bytes);
            let mut code = vec![0u8; at_a.len()];
            a.read(at_a, None, page_size, in_a, verdict)?;
            b.read(at_b, None, page_size, in_b, &mut code)?;
            let pages = in_a
                .chunks_exact(page_size)
                .zip(in_b.chunks_exact(page_size));
            for ((page_a, page_b), (verdict, &code)) in pages.zip(verdict.iter_mut().zip(&code)) {
                *verdict = match (*verdict, code) {
                    (CODE_OK, CODE_OK) if page_a == page_b => SAME,
                    (CODE_OK, CODE_OK) => DIFFERENT,
                    _ => UNREADABLE,
                };
            }
            Ok::<(), io::Error>(())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn me() -> Source {
        Source::Process(Process::open(std::process::id() as i32).unwrap())
    }

    /// Anonymous memory with page `i` filled with the bytes of `i`; leaked.
    fn memory(pages: usize) -> *mut u8 {
        // SAFETY: a fresh anonymous mapping, written within its bounds.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let map =
                libc::mmap(std::ptr::null_mut(), pages * PAGE, prot, flags, -1, 0).cast::<u8>();
            assert_ne!(map.cast(), libc::MAP_FAILED);
            for page in 0..pages {
                std::slice::from_raw_parts_mut(map.add(page * PAGE), PAGE).fill(page as u8);
            }
            map
        }
    }

    /// Makes a page unreadable. Not unmapped: another test's mapping could take its place.
    fn forbid(map: *mut u8, page: usize) {
        // SAFETY: a page of a mapping that the test owns and does not touch again.
        let done = unsafe { libc::mprotect(map.add(page * PAGE).cast(), PAGE, libc::PROT_NONE) };
        assert_eq!(done, 0);
    }

    #[test]
    fn pages_are_read_in_the_order_asked_for_and_holes_are_marked() {
        let map = memory(64);
        for hole in [0, 1, 17, 40, 63] {
            forbid(map, hole);
        }
        let order: Vec<usize> = (0..64).chain([5, 4, 3, 17, 17, 50]).collect();
        let at: Vec<u64> = order
            .iter()
            .map(|page| map as u64 + (page * PAGE) as u64)
            .collect();
        let mut out = vec![0xee; at.len() * PAGE];
        let mut code = vec![99; at.len()];
        me().read(&at, None, PAGE, &mut out, &mut code).unwrap();
        for (i, &page) in order.iter().enumerate() {
            if [0, 1, 17, 40, 63].contains(&page) {
                assert_eq!(code[i], CODE_GONE, "page {page}");
            } else {
                assert_eq!(code[i], CODE_OK, "page {page}");
                assert!(
                    out[i * PAGE..(i + 1) * PAGE]
                        .iter()
                        .all(|&byte| byte == page as u8),
                    "page {page}"
                );
            }
        }
    }

    #[test]
    fn more_scattered_pages_than_one_call_takes_are_all_read() {
        let map = memory(2 * IOV_MAX + 10);
        let at: Vec<u64> = (0..2 * IOV_MAX + 10)
            .rev()
            .map(|page| map as u64 + (page * PAGE) as u64)
            .collect();
        let (mut out, mut code) = (vec![0; at.len() * PAGE], vec![99; at.len()]);
        me().read(&at, None, PAGE, &mut out, &mut code).unwrap();
        assert!(code.iter().all(|&code| code == CODE_OK));
        assert!(at
            .iter()
            .enumerate()
            .all(|(i, &at)| out[i * PAGE] == ((at - map as u64) / PAGE as u64) as u8));
    }

    #[test]
    fn a_process_that_is_gone_has_no_page_and_one_of_no_address_fails_nobody_else() {
        // SAFETY: fork in a test; the child only exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: reaps the child just forked.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        let (mut out, mut code) = (vec![0; 2 * PAGE], vec![99; 2]);
        Source::Process(Process::open(child).unwrap())
            .read(&[4096, 8192], None, PAGE, &mut out, &mut code)
            .unwrap();
        assert_eq!(code, [CODE_GONE; 2]);
    }

    #[test]
    fn reading_leaves_the_pages_of_a_fork_shared() {
        const PAGES: usize = 200;
        let map = memory(PAGES);
        // SAFETY: a fork whose child writes one page of its copy and waits to be killed, allocating nothing.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above.
            unsafe {
                map.add(7 * PAGE).write(99);
                loop {
                    libc::pause();
                }
            }
        }
        let end = map as u64 + (PAGES * PAGE) as u64;
        let exclusive = || {
            let pagemap = File::open(format!("/proc/{child}/pagemap")).unwrap();
            let entries = pagemap::entries(pagemap.as_raw_fd(), &[map as u64], &[end]).unwrap();
            entries
                .iter()
                .filter(|&entry| entry & ENTRY_EXCLUSIVE != 0)
                .count()
        };
        while exclusive() == 0 {
            std::thread::yield_now();
        }
        let at: Vec<u64> = (map as u64..end).step_by(PAGE).collect();
        let (mut out, mut code) = (vec![0; PAGES * PAGE], vec![99; PAGES]);
        Source::Process(Process::open(child).unwrap())
            .read(&at, None, PAGE, &mut out, &mut code)
            .unwrap();
        let after = exclusive();
        // SAFETY: ends and reaps the child forked above.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        assert!(code.iter().all(|&code| code == CODE_OK));
        assert!((0..PAGES).all(|page| out[page * PAGE] == if page == 7 { 99 } else { page as u8 }));
        assert_eq!(
            after, 1,
            "only the page that the child has written is its own"
        );
    }

    #[test]
    fn reading_huge_pages_leaves_what_a_child_shares_of_them_shared() {
        const PAGES: usize = 512;
        let bytes = PAGES * PAGE;
        // SAFETY: a fresh mapping with room for a whole huge page, written within its bounds.
        let map = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let map = libc::mmap(std::ptr::null_mut(), 2 * bytes, prot, flags, -1, 0).cast::<u8>();
            let map = map.add(map.align_offset(bytes));
            libc::madvise(map.cast(), bytes, libc::MADV_HUGEPAGE);
            std::slice::from_raw_parts_mut(map, bytes).fill(7);
            map
        };
        let own = File::open("/proc/self/pagemap").unwrap();
        let at: Vec<u64> = (0..PAGES)
            .map(|i| (map as usize + i * PAGE) as u64)
            .collect();
        let all: Vec<usize> = (0..PAGES).collect();
        if hold::in_huge_pages(own.as_raw_fd(), &at, &all).unwrap() != all {
            println!("skipped: the kernel gave no huge page");
            return;
        }
        let mut ends = [0; 2];
        // SAFETY: a fork whose child writes the first page of its copy, says so, and waits to be killed.
        let child = unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            let child = libc::fork();
            if child == 0 {
                map.write(99);
                libc::write(ends[1], map.cast(), 1);
                loop {
                    libc::pause();
                }
            }
            let mut said = 0u8;
            assert_eq!(libc::read(ends[0], (&raw mut said).cast(), 1), 1);
            libc::close(ends[0]);
            libc::close(ends[1]);
            child
        };
        let its = File::open(format!("/proc/{child}/pagemap")).unwrap();
        let shared = || {
            let holds = hold::holds(its.as_raw_fd(), &at).unwrap();
            hold::places(&holds, hold::SHARED).len()
        };
        let before = shared();
        let (mut out, mut code) = (vec![0; bytes], vec![99; PAGES]);
        me().read(&at, None, PAGE, &mut out, &mut code).unwrap();
        let after = shared();
        // SAFETY: ends and reaps the child forked above.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        assert!(code.iter().all(|&code| code == CODE_OK) && out.iter().all(|&byte| byte == 7));
        assert_eq!((before, after), (PAGES - 1, PAGES - 1));
    }

    #[test]
    fn keys_are_those_of_the_bytes_whatever_the_source_and_the_threads() {
        let pages = 3 * CHUNK_BYTES / PAGE + 7;
        let map = memory(pages);
        // SAFETY: the mapping just made, not changed while the slice lives.
        let bytes = unsafe { std::slice::from_raw_parts(map, pages * PAGE) };
        let key = Key::from_seed(b"test of pagemem!");
        let expected: Vec<u64> = bytes
            .chunks(PAGE)
            .map(|page| {
                if keyhash::is_zero(page) {
                    0
                } else {
                    keyhash::hash64(&key, page)
                }
            })
            .collect();
        let zero = bytes.chunks(PAGE).map(|page| {
            if keyhash::is_zero(page) {
                CODE_ZERO
            } else {
                CODE_OK
            }
        });
        let expected_code: Vec<u8> = zero.collect();
        let at: Vec<u64> = (0..pages)
            .map(|page| map as u64 + (page * PAGE) as u64)
            .collect();
        let offsets: Vec<u64> = (0..pages).map(|page| (page * PAGE) as u64).collect();
        let path = std::env::temp_dir().join(format!("pagemem-{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(bytes).unwrap();
        for threads in [1, 3] {
            let (mut keys, mut code) = (vec![1; pages], vec![99; pages]);
            keys_of(bytes, PAGE, &key, &mut keys, &mut code, threads);
            assert_eq!((&keys, &code), (&expected, &expected_code));
            for (source, at) in [(&me(), &at), (&Source::File(file.as_raw_fd()), &offsets)] {
                for keep in [false, true] {
                    let (mut keys, mut code) = (vec![1; pages], vec![99; pages]);
                    let mut kept = vec![0; if keep { pages * PAGE } else { 0 }];
                    let keep = keep.then_some(&mut kept[..]);
                    read_keys(source, at, PAGE, &key, &mut keys, &mut code, keep, threads).unwrap();
                    assert_eq!((&keys, &code), (&expected, &expected_code));
                    assert!(kept.is_empty() || kept == bytes);
                }
            }
        }
    }

    #[test]
    fn a_file_that_ends_within_a_page_loses_that_page_only() {
        let path = std::env::temp_dir().join(format!("pagemem-short-{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&[7; 2 * PAGE + 100]).unwrap();
        let at: Vec<u64> = (0..4).map(|page| page * PAGE as u64).collect();
        let (mut out, mut code) = (vec![0; 4 * PAGE], vec![99; 4]);
        Source::File(file.as_raw_fd())
            .read(&at, None, PAGE, &mut out, &mut code)
            .unwrap();
        assert_eq!(code, [CODE_OK, CODE_OK, CODE_GONE, CODE_GONE]);
    }

    #[test]
    fn one_different_byte_is_found_wherever_it_is() {
        let (map, twin) = (memory(100), memory(100));
        // SAFETY: within the mappings just made.
        unsafe {
            *map.add(3 * PAGE) ^= 1;
            *twin.add(5 * PAGE - 1) ^= 0x80;
        }
        forbid(map, 6);
        forbid(twin, 7);
        let at = |map: *mut u8| {
            (0..100)
                .rev()
                .map(|page| map as u64 + page * PAGE as u64)
                .collect::<Vec<_>>()
        };
        let mut verdict = [99; 100];
        compare((&me(), &at(map)), (&me(), &at(twin)), PAGE, &mut verdict).unwrap();
        verdict.reverse();
        assert_eq!(
            verdict[..8],
            [SAME, SAME, SAME, DIFFERENT, DIFFERENT, SAME, UNREADABLE, UNREADABLE]
        );
        assert_eq!(verdict[8..], [SAME; 92]);
    }

    #[test]
    fn a_page_buffer_begins_on_a_page_boundary_whatever_its_size() {
        let mut buffer = PageBuffer::new();
        for len in [1, 100 * PAGE, 3, 1 << 20] {
            let lent = buffer.lend(len);
            assert_eq!((lent.len(), lent.as_ptr() as usize % PAGE), (len, 0));
        }
    }

    #[test]
    fn a_directory_is_an_error_not_a_hole() {
        let directory = std::fs::File::open("/").unwrap();
        let (mut out, mut code) = (vec![0; PAGE], vec![99; 1]);
        assert!(Source::File(directory.as_raw_fd())
            .read(&[0], None, PAGE, &mut out, &mut code)
            .is_err());
    }
}

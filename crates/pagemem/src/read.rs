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

mod chunks;
mod compare;
mod keys;
mod own;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;

use crate::hold;
use crate::pagemap::{entries_of, ENTRY_EXCLUSIVE, ENTRY_FILE, ENTRY_PRESENT, PAGE_SIZE};

pub use chunks::{PageBuffer, CHUNK_BYTES};
pub use compare::{compare, DIFFERENT, SAME, UNREADABLE};
pub use keys::{keys_of, keys_of_read, read_keys};
pub use own::{read_own_keys, CODE_SHARED};

const PAGE: usize = PAGE_SIZE as usize;

/// `UIO_MAXIOV`: remote ranges of one `process_vm_readv`.
const IOV_MAX: usize = 1024;

/// The page was read.
pub const CODE_OK: u8 = 0;
/// The page was read and all its bytes are zero.
pub const CODE_ZERO: u8 = 1;
/// The page is not mapped, not readable, or not wholly there any more.
pub const CODE_GONE: u8 = 2;

/// Where pages are read from, opened for some calls.
#[derive(Debug)]
pub enum Source {
    /// A process; positions are addresses in it, and a page has 4096 bytes.
    Process(AddressSpace),
    /// An open file or block device; positions are byte offsets in it.
    File(RawFd),
}

/// The memory of a process to read from: that which the process had when it was opened.
#[derive(Debug)]
pub struct AddressSpace {
    pid: i32,
    /// `None` when there is no such process: then every page is gone.
    files: Option<(File, File)>,
}

impl AddressSpace {
    /// Opens `/proc/PID/pagemap` and `/proc/PID/mem` for reading. A process that is gone is no error.
    ///
    /// # Errors
    /// `PermissionDenied` where the process may not be read.
    pub fn open(pid: i32) -> io::Result<AddressSpace> {
        let open = |what| File::open(format!("/proc/{pid}/{what}"));
        let files = open("pagemap").and_then(|pagemap| Ok((pagemap, open("mem")?)));
        match files {
            Ok(files) => Ok(AddressSpace {
                pid,
                files: Some(files),
            }),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                Ok(AddressSpace { pid, files: None })
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
            Source::Process(AddressSpace {
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

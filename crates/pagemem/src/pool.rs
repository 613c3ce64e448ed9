//! The pool: one file whose pages are the shared frames.
//!
//! Its size is fixed; its memory is what is filled. It is written through one descriptor alone ([`Writer`]), held by a
//! thread of the guardian's process ([`crate::filling`]). Targets get, for the length of a stop, a descriptor of which no
//! other kind can be made ([`crate::private_fs`]), and keep none.

mod reader;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use crate::private_fs::{self, Pair};
use crate::read;
use crate::sys::{self, check, FileId, PAGE};

pub use reader::Reader;

/// Name of the file: targets show it in their maps as `/memfd:pageone (deleted)`, as the kernel names memory files.
const POOL_NAME: &std::ffi::CStr = c"memfd:pageone";

/// Frames as everybody sees them: to be read, and to be mapped privately.
#[derive(Debug)]
pub struct Pool {
    fd: OwnedFd,
    frames: u32,
    file: FileId,
    apart: bool,
    lasting: bool,
}

/// The one who fills frames.
#[derive(Debug)]
pub struct Writer {
    fd: File,
    frames: u32,
}

/// Makes a pool of `frames` frames; no memory is used until frames are filled.
pub fn make(frames: u32) -> io::Result<(Writer, Pool)> {
    let bytes = u64::from(frames) * PAGE;
    let (pair, apart) = match private_fs::make(POOL_NAME, bytes, !sys::has_swap()) {
        Ok(pair) => (pair, true),
        Err(_) => (memory_file(bytes)?, false),
    };
    let pool = Pool {
        file: file_of(&pair.read_only)?,
        fd: pair.read_only,
        frames,
        apart,
        lasting: pair.lasting,
    };
    let fd = pair.writable.into();
    Ok((Writer { fd, frames }, pool))
}

/// The same where this user may mount nothing: a `memfd`. Whoever owns it, as processes of the same user do, *and* gets
/// hold of a descriptor could give it other rights and open it for writing.
fn memory_file(bytes: u64) -> io::Result<Pair> {
    // SAFETY: valid C strings and plain calls; the results are fresh descriptors.
    unsafe {
        let flags = libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC;
        let fd = check(i64::from(libc::memfd_create(c"pageone".as_ptr(), flags)))?;
        let writable = OwnedFd::from_raw_fd(fd as RawFd);
        let fd = writable.as_raw_fd();
        check(i64::from(libc::ftruncate(fd, bytes as i64)))?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        check(i64::from(libc::fcntl(fd, libc::F_ADD_SEALS, seals)))?;
        check(i64::from(libc::fchmod(fd, 0o400)))?;
        let path = std::ffi::CString::new(format!("/proc/self/fd/{fd}")).expect("no NUL");
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let read_only = check(i64::from(libc::open(path.as_ptr(), flags)))?;
        let read_only = OwnedFd::from_raw_fd(read_only as RawFd);
        check(i64::from(libc::fchmod(fd, 0)))?;
        Ok(Pair {
            writable,
            read_only,
            lasting: false,
        })
    }
}

fn file_of(fd: &OwnedFd) -> io::Result<FileId> {
    let mut st = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the kernel fills one `stat` at a live place of that type.
    check(unsafe { libc::fstat(fd.as_raw_fd(), st.as_mut_ptr()) } as i64)?;
    // SAFETY: zeroed, then filled; its fields are integers.
    let st = unsafe { st.assume_init() };
    let (major, minor) = (libc::major(st.st_dev), libc::minor(st.st_dev));
    Ok(FileId::new(major, minor, st.st_ino))
}

impl Pool {
    /// The read-only descriptor that targets get. It is one and the same open file for all: the kernel joins
    /// neighbouring mappings only if they were made from one.
    pub fn for_targets(&self) -> &OwnedFd {
        &self.fd
    }

    /// Whether the file lies on a file system of its own, so that no descriptor of it can come to write.
    pub fn is_apart(&self) -> bool {
        self.apart
    }

    /// Whether a page of it that is mapped stays so: the kernel lends none to swap.
    pub fn is_lasting(&self) -> bool {
        self.lasting
    }

    /// Number of frames that the pool can hold.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The pool as a file, by which its mappings are recognised.
    pub fn file(&self) -> FileId {
        self.file
    }
}

impl Writer {
    /// Number of frames that the pool can hold.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Copies the pages at `addrs` of process `pid` into `frames` (same length); `ok[i]` is 0 where it worked. Returns the
    /// CPU time that it took in the thread of `reader`; `like`: see [`crate::sys::be_as_modest_as`].
    ///
    /// The frames must be free: nothing may map them. Through a buffer that stays in the cache and `pwrite`, which gives
    /// a new page its bytes at once: reading into the mapping takes a fault for each page, and the kernel zeroes it
    /// first (measured, a page: 2.9 against 4.0 µs; with `fallocate` before 4.8, with `MADV_POPULATE_WRITE` 4.1).
    pub fn fill(
        &self,
        reader: &mut Reader,
        (pid, like): (i32, i32),
        addrs: &[u64],
        frames: &[u32],
        ok: &mut [u8],
    ) -> Duration {
        assert!(addrs.len() == frames.len() && frames.len() == ok.len());
        let page = PAGE as usize;
        ok.fill(read::CODE_GONE);
        reader.each(pid, like, addrs, |place, part| {
            let read = std::mem::take(&mut part.codes);
            let n = read.len();
            let (frames, ok) = (&frames[place..place + n], &mut ok[place..place + n]);
            let bytes = part.bytes();
            let mut at = 0;
            while at < n {
                let first = frames[at];
                let mut run = 1;
                while at + run < n
                    && read[at + run] == read[at]
                    && frames[at + run] == first.wrapping_add(run as u32)
                {
                    run += 1;
                }
                let there = read[at] == read::CODE_OK;
                let bytes = &bytes[at * page..(at + run) * page];
                if there && self.write(first, bytes).is_ok() {
                    ok[at..at + run].fill(0);
                }
                at += run;
            }
        })
    }

    /// Writes whole frames from `first` on.
    fn write(&self, first: u32, bytes: &[u8]) -> io::Result<()> {
        let pages = (bytes.len() / PAGE as usize) as u64;
        assert!(u64::from(first) + pages <= u64::from(self.frames));
        self.fd.write_all_at(bytes, u64::from(first) * PAGE)
    }

    /// Bytes of memory that all frames together take.
    pub fn size(&self) -> io::Result<u64> {
        const BLOCK: u64 = 512;
        Ok(self.fd.metadata()?.blocks() * BLOCK)
    }

    /// Gives the memory of frames `[first, first + count)` back to the system. Nothing may map them.
    pub fn punch(&self, first: u32, count: u32) -> io::Result<()> {
        assert!(first.checked_add(count).is_some_and(|e| e <= self.frames));
        let (offset, len) = (
            i64::from(first) * PAGE as i64,
            i64::from(count) * PAGE as i64,
        );
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no pointers.
        check(unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, offset, len) } as i64).map(drop)
    }
}

//! The pool: one memfd whose pages are the shared frames.
//!
//! Its size is fixed and sealed; its memory is what is filled. Only the engine that made it can write: a target gets a
//! read-only descriptor of a file with no permission bits, for the length of a stop, and keeps none.
//! (`F_SEAL_FUTURE_WRITE` would forbid writers for good, but it also forbids punching holes, that is, ever giving
//! a frame back: measured, `EPERM`.)

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::sys::{check, FileId, PAGE};

/// Name of the memfd: targets show it in their maps as `/memfd:pageone (deleted)`.
pub const POOL_NAME: &std::ffi::CStr = c"pageone";

/// A mapping of the pool in this process.
#[derive(Debug)]
pub struct Pool {
    fd: File,
    base: *mut u8,
    frames: u32,
    file: FileId,
    read_only: OnceLock<OwnedFd>,
}

// SAFETY: the mapping belongs to the value and is only accessed through raw pointers inside this module's methods, which
// touch frames that their callers own (free frames for writing) or that nobody writes any more.
unsafe impl Send for Pool {}
// SAFETY: as above; concurrent calls work on different frames, by the contract of `fill`.
unsafe impl Sync for Pool {}

fn map(fd: &OwnedFd, bytes: usize, prot: i32) -> io::Result<*mut u8> {
    // SAFETY: a new mapping at an address that the kernel chooses; nothing of ours is replaced.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            prot,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            fd.as_raw_fd(),
            0,
        )
    };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(p.cast())
}

fn file_of(fd: &OwnedFd) -> io::Result<(FileId, u64)> {
    let mut st = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the kernel fills one `stat` at a live place of that type.
    check(unsafe { libc::fstat(fd.as_raw_fd(), st.as_mut_ptr()) } as i64)?;
    // SAFETY: zeroed, then filled; its fields are integers.
    let st = unsafe { st.assume_init() };
    Ok((
        FileId::new(libc::major(st.st_dev), libc::minor(st.st_dev), st.st_ino),
        st.st_size as u64,
    ))
}

impl Pool {
    /// Makes a pool of `frames` frames; no memory is used until frames are filled.
    pub fn create(frames: u32) -> io::Result<Self> {
        let bytes = frames as usize * PAGE as usize;
        // SAFETY: the name is a valid C string; the result is a fresh descriptor.
        let fd = unsafe {
            OwnedFd::from_raw_fd(check(libc::memfd_create(
                POOL_NAME.as_ptr(),
                libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC,
            ) as i64)? as RawFd)
        };
        // SAFETY: no pointers in these three calls.
        unsafe {
            check(libc::ftruncate(fd.as_raw_fd(), bytes as i64) as i64)?;
            check(libc::fchmod(fd.as_raw_fd(), 0) as i64)?;
            check(libc::fcntl(
                fd.as_raw_fd(),
                libc::F_ADD_SEALS,
                libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
            ) as i64)?;
        }
        let base = map(&fd, bytes, libc::PROT_READ | libc::PROT_WRITE)?;
        // Huge pages would tie 512 frames' lives together; core dumps of the engine need no frames.
        // SAFETY: advice on our own fresh mapping.
        unsafe {
            libc::madvise(base.cast(), bytes, libc::MADV_NOHUGEPAGE);
            libc::madvise(base.cast(), bytes, libc::MADV_DONTDUMP);
        }
        let (file, _) = file_of(&fd)?;
        Ok(Self {
            fd: fd.into(),
            base,
            frames,
            file,
            read_only: OnceLock::new(),
        })
    }

    /// A read-only view of a pool made by another process, from its descriptor.
    pub fn view(fd: OwnedFd) -> io::Result<Self> {
        let (file, bytes) = file_of(&fd)?;
        let base = map(&fd, bytes as usize, libc::PROT_READ)?;
        Ok(Self {
            fd: fd.into(),
            base,
            frames: (bytes / PAGE) as u32,
            file,
            read_only: OnceLock::new(),
        })
    }

    /// The read-only descriptor that targets get. It is one and the same open file for all: the kernel joins
    /// neighbouring mappings only if they were made from one.
    pub fn for_targets(&self) -> io::Result<&OwnedFd> {
        if self.read_only.get().is_none() {
            let _ = self.read_only.set(self.reopen()?);
        }
        Ok(self.read_only.get().expect("just set"))
    }

    fn reopen(&self) -> io::Result<OwnedFd> {
        // The file's mode is 0, so it must be opened through a description that is allowed to: set it for a moment.
        let path = std::ffi::CString::new(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
            .expect("no NUL");
        // SAFETY: plain calls on our own descriptor and a valid C string; the result is a fresh descriptor.
        unsafe {
            check(libc::fchmod(self.fd.as_raw_fd(), 0o400) as i64)?;
            let fd = check(libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) as i64);
            check(libc::fchmod(self.fd.as_raw_fd(), 0) as i64)?;
            Ok(OwnedFd::from_raw_fd(fd? as RawFd))
        }
    }

    /// Number of frames that the pool can hold.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The pool as a file, by which its mappings are recognised.
    pub fn file(&self) -> FileId {
        self.file
    }

    fn at(&self, frame: u32) -> *mut u8 {
        assert!(frame < self.frames, "frame {frame} of {}", self.frames);
        // SAFETY: inside the mapping, by the assertion.
        unsafe { self.base.add(frame as usize * PAGE as usize) }
    }

    /// Whether `page` equals the frame, all bytes.
    pub fn equals(&self, frame: u32, page: &[u8]) -> bool {
        assert_eq!(page.len(), PAGE as usize);
        // SAFETY: both sides are 4096 readable bytes; a filled frame is not written while it is compared (the engine
        // writes free frames only), and even a torn read could only make the comparison fail.
        unsafe {
            libc::memcmp(
                self.at(frame).cast::<c_void>(),
                page.as_ptr().cast(),
                PAGE as usize,
            ) == 0
        }
    }

    /// Copies the pages at `addrs` of process `pid` into `frames` (same length); `ok[i]` is 0 where it worked.
    ///
    /// The frames must be free: nothing may map them. Through a buffer that stays in the cache and `pwrite`, which gives
    /// a new page its bytes at once: reading into the mapping takes a fault for each page, and the kernel zeroes it
    /// first (measured, a page: 2.9 against 4.0 µs; with `fallocate` before 4.8, with `MADV_POPULATE_WRITE` 4.1).
    pub fn fill(&self, pid: i32, addrs: &[u64], frames: &[u32], ok: &mut [u8]) {
        assert!(addrs.len() == frames.len() && frames.len() == ok.len());
        const PER_CALL: usize = 64;
        let page = PAGE as usize;
        let mut buffer = vec![0u8; PER_CALL * page];
        let mut i = 0;
        while i < addrs.len() {
            let n = PER_CALL.min(addrs.len() - i);
            let mut remote: Vec<libc::iovec> = Vec::with_capacity(n);
            for &a in &addrs[i..i + n] {
                push(&mut remote, a as *mut c_void, page);
            }
            let local = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: n * page,
            };
            // SAFETY: `local` is a live buffer of at least that length, borrowed by nobody else; `remote` is only
            // interpreted in the other process.
            let got = unsafe {
                libc::process_vm_readv(pid, &local, 1, remote.as_ptr(), remote.len() as u64, 0)
            };
            let read = (got.max(0) as usize) / page;
            let mut at = 0;
            while at < read {
                let first = frames[i + at];
                let mut run = 1;
                while at + run < read && frames[i + at + run] == first.wrapping_add(run as u32) {
                    run += 1;
                }
                let bytes = &buffer[at * page..(at + run) * page];
                let code = if self.write(first, bytes).is_ok() {
                    0
                } else {
                    2
                };
                ok[i + at..i + at + run].fill(code);
                at += run;
            }
            if read < n {
                ok[i + read] = 2;
                i += read + 1;
            } else {
                i += n;
            }
        }
    }

    /// Writes whole frames from `first` on.
    fn write(&self, first: u32, bytes: &[u8]) -> io::Result<()> {
        let pages = (bytes.len() / PAGE as usize) as u64;
        assert!(u64::from(first) + pages <= u64::from(self.frames));
        self.fd.write_all_at(bytes, u64::from(first) * PAGE)
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

fn push(v: &mut Vec<libc::iovec>, base: *mut c_void, len: usize) {
    if let Some(last) = v.last_mut() {
        if last.iov_base as usize + last.iov_len == base as usize {
            last.iov_len += len;
            return;
        }
    }
    v.push(libc::iovec {
        iov_base: base,
        iov_len: len,
    });
}

impl AsRawFd for Pool {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this value with this size and nothing borrows from it.
        unsafe { libc::munmap(self.base.cast(), self.frames as usize * PAGE as usize) };
    }
}

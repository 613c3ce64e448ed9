//! userfaultfd: write tracking without faults (`WP_ASYNC`) and news of what a target does to its merged ranges.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::check;

/// Flags for the `userfaultfd` system call made inside a target: works for an ordinary user, never blocks a reader.
pub const OPEN_FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | 1; // UFFD_USER_MODE_ONLY

/// The same for faults of system calls, too, on a userfaultfd made with [`NEW_REQUEST`].
pub const STRONG_FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
/// The `ioctl` request of `/dev/userfaultfd` that makes one for the process that asks.
pub const NEW_REQUEST: u64 = 0xaa00;

const UFFD_API: u64 = 0xaa;
const IOC_API: libc::c_ulong = 0xc018_aa3f;
const IOC_REGISTER: libc::c_ulong = 0xc020_aa00;
const IOC_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const IOC_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const IOC_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const IOC_CONTINUE: libc::c_ulong = 0xc020_aa07;
const IOC_WAKE: libc::c_ulong = 0x8010_aa02;
/// How often a range whose mappings are changing is tried again.
const EAGAIN_MAX: u32 = 1000;
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 2;
const REGISTER_MODE_MINOR: u64 = 4;

const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const EVENT_FORK: u64 = 1 << 1;
const EVENT_REMAP: u64 = 1 << 2;
const EVENT_REMOVE: u64 = 1 << 3;
const EVENT_UNMAP: u64 = 1 << 6;
const MINOR_SHMEM: u64 = 1 << 10;
const WP_UNPOPULATED: u64 = 1 << 13;
const WP_ASYNC: u64 = 1 << 15;

/// The `ioctl` request of [`Uffd::register`], for a call made inside a target.
pub const REGISTER_REQUEST: u64 = IOC_REGISTER;

/// The `uffdio_register` that begins to watch `[start, end)`.
pub fn register_argument(start: u64, end: u64) -> [u64; 4] {
    [start, end - start, REGISTER_MODE_WP, 0]
}

/// A userfaultfd of this process, which watches nothing.
pub fn blind() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is a fresh descriptor that nothing else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, OPEN_FLAGS);
        Ok(OwnedFd::from_raw_fd(check(fd)? as RawFd))
    }
}

/// A userfaultfd of some target's address space.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

/// What happened in the target.
#[derive(Debug)]
pub enum Event {
    /// It forked; the child's guarded ranges are watched by this new descriptor.
    Fork(Uffd),
    /// It moved a guarded range with `mremap`.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// It is about to discard pages (`madvise`); it waits until this event has been read.
    Remove {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// It has unmapped guarded pages, or mapped others over them; it waits until this event has been read.
    Unmap {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// One of its threads waits at a page that is not there, of a range that is watched closely.
    Fault {
        /// The address that was touched.
        address: u64,
    },
    /// Anything else.
    Other(u8),
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Write tracking of memory that has not been merged: no events, no cost to the target but one bit.
    Track,
    /// Merged ranges: tells of discards, moves and unmapping. `forks` needs `CAP_SYS_PTRACE`.
    Guard {
        /// Follow forks.
        forks: bool,
    },
}

impl Uffd {
    /// Takes over a descriptor fetched from a target and negotiates features.
    pub fn new(fd: OwnedFd, purpose: Use) -> io::Result<Self> {
        let features = match purpose {
            Use::Track => PAGEFAULT_FLAG_WP | WP_ASYNC | WP_UNPOPULATED,
            Use::Guard { forks } => {
                PAGEFAULT_FLAG_WP
                    | WP_ASYNC
                    | WP_UNPOPULATED
                    | EVENT_REMOVE
                    | EVENT_REMAP
                    | EVENT_UNMAP
                    | MINOR_SHMEM
                    | if forks && !crate::failpoints::active("forks") {
                        EVENT_FORK
                    } else {
                        0
                    }
            }
        };
        let mut api = [UFFD_API, features, 0u64];
        // SAFETY: the kernel reads and writes one `uffdio_api`, three 64-bit words.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), IOC_API, api.as_mut_ptr()) } as i64)?;
        Ok(Self { fd })
    }

    /// As it is, with no features asked for.
    pub fn taken(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Whether it is one of the descriptors that are kept back.
    pub fn is_kept_back(&self) -> bool {
        crate::descriptors::is_kept_back(self.fd.as_raw_fd())
    }

    /// Begins to watch `[start, end)`.
    pub fn register(&self, start: u64, end: u64) -> io::Result<()> {
        self.register_for(register_argument(start, end))
    }

    /// Watches frames in `[start, end)` closely: whoever touches a page of them that is not there waits until it is filled
    /// ([`Self::zero`], [`Self::show`]). Possible at any time, also for a process that cannot be stopped.
    pub fn watch_closely(&self, start: u64, end: u64) -> io::Result<()> {
        let mode = REGISTER_MODE_WP | REGISTER_MODE_MISSING | REGISTER_MODE_MINOR;
        self.register_for([start, end - start, mode, 0])
    }

    fn register_for(&self, mut r: [u64; 4]) -> io::Result<()> {
        // SAFETY: the kernel reads and writes one `uffdio_register`, four 64-bit words.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_REGISTER, r.as_mut_ptr()) } as i64)
            .map(drop)
    }

    /// Stops watching `[start, end)`.
    pub fn unregister(&self, start: u64, end: u64) -> io::Result<()> {
        let mut r = [start, end - start];
        // SAFETY: the kernel reads one `uffdio_range`, two 64-bit words.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_UNREGISTER, r.as_mut_ptr()) } as i64)
            .map(drop)
    }

    /// Fills what is empty of a registered range with the kernel's zero page, as its program's own memory: also in a
    /// private mapping of a file. Whether all could be done; pages that are there already are left as they are.
    pub fn zero(&self, start: u64, end: u64) -> bool {
        self.fill_zero(start, end).1.is_ok()
    }

    /// The same: how many pages have been filled, and why not all could be done.
    pub fn fill_zero(&self, start: u64, end: u64) -> (u64, io::Result<()>) {
        // A discard leaves marks of write tracking in an otherwise empty page table.
        self.unmark(start, end);
        let mut at = start;
        let mut again = 0;
        let mut pages = 0;
        while at < end {
            let mut r = [at, end - at, 0, 0u64];
            // SAFETY: the kernel reads and writes one `uffdio_zeropage`, four 64-bit words.
            let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_ZEROPAGE, r.as_mut_ptr()) };
            let e = io::Error::last_os_error();
            let filled = r[3] as i64;
            at += filled.max(0) as u64;
            pages += filled.max(0) as u64 / crate::sys::PAGE;
            let code = e.raw_os_error();
            if done == 0 {
                break;
            }
            if code == Some(libc::EEXIST) || (filled < 0 && -filled == i64::from(libc::EEXIST)) {
                at += crate::sys::PAGE;
            } else if code == Some(libc::EAGAIN) && (filled > 0 || again < EAGAIN_MAX) {
                again += 1;
                crate::turns::give_way();
            } else {
                return (pages, Err(e));
            }
        }
        (pages, Ok(()))
    }

    /// Has a registered range count as written. A huge page of which it is a part is mapped page by page from then on.
    pub fn unmark(&self, start: u64, end: u64) {
        let mut unmark = [start, end - start, 0u64];
        // SAFETY: the kernel reads one `uffdio_writeprotect`, three 64-bit words.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_WRITEPROTECT, unmark.as_mut_ptr()) };
    }

    /// Fills an empty page of a range that is watched closely with the page of its file.
    pub fn show(&self, page: u64) -> io::Result<()> {
        let mut r = [page, crate::sys::PAGE, 0, 0u64];
        // SAFETY: the kernel reads and writes one `uffdio_continue`, four 64-bit words.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_CONTINUE, r.as_mut_ptr()) } as i64)
            .map(drop)
    }

    /// Has whoever waits at a page try again.
    pub fn wake(&self, page: u64) {
        let mut r = [page, crate::sys::PAGE];
        // SAFETY: the kernel reads one `uffdio_range`, two 64-bit words.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_WAKE, r.as_mut_ptr()) };
    }

    /// A copy of the descriptor.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Whether the address space behind it still exists; `probe` is the address of some page never registered.
    pub fn alive(&self, probe: u64) -> bool {
        // For memory that is gone the kernel says ENOMEM here, and ESRCH elsewhere.
        let gone = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOMEM));
        !matches!(self.unregister(probe, probe + crate::sys::PAGE), Err(e) if gone(&e))
    }

    /// Whether there is an event to be read.
    pub fn has_news(&self) -> bool {
        let mut p = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live pollfd, no waiting.
        unsafe { libc::poll(&mut p, 1, 0) == 1 && p.revents & libc::POLLIN != 0 }
    }

    /// Whether somebody waits at a page that is not there, and has not been read of: which is then read before any event.
    pub fn has_faults(&self) -> bool {
        let fd = self.fd.as_raw_fd();
        let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"));
        let pending = |text: String| {
            let mut lines = text.lines();
            let number = lines.find_map(|l| l.strip_prefix("pending:"))?;
            number.trim().parse::<u64>().ok()
        };
        told.ok().and_then(pending).is_some_and(|n| n > 0)
    }

    /// Reads one event, if there is one. Reading is what resumes the target.
    pub fn next_event(&self) -> io::Result<Option<Event>> {
        let mut m = [0u64; 4];
        // SAFETY: the kernel writes at most 32 bytes, one `uffd_msg`, into a live array of that size.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), m.as_mut_ptr().cast(), 32) };
        if n < 0 {
            let e = io::Error::last_os_error();
            return if e.raw_os_error() == Some(libc::EAGAIN) {
                Ok(None)
            } else {
                Err(e)
            };
        }
        if n != 32 {
            return Ok(None);
        }
        let fresh = |fd: u64| {
            // SAFETY: for a fork event the kernel has installed this descriptor for us; nothing else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd as u32 as RawFd) };
            Uffd { fd }
        };
        Ok(Some(match (m[0] & 0xff) as u8 {
            0x12 => Event::Fault { address: m[2] },
            0x13 => Event::Fork(fresh(m[1])),
            0x14 => Event::Remap {
                from: m[1],
                to: m[2],
                len: m[3],
            },
            0x15 => Event::Remove {
                start: m[1],
                end: m[2],
            },
            0x16 => Event::Unmap {
                start: m[1],
                end: m[2],
            },
            other => Event::Other(other),
        }))
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

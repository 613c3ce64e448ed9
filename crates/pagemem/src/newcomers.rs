//! Whether a process has given birth to another, or to a thread, since that was last asked: as the kernel notes it.
//!
//! Whoever comes into a memory, or by a table of descriptors, does so at its birth, from one who has it. So where a process
//! was alone and has given no birth, it is alone still, whatever others do meanwhile.
//!
//! An event of the performance counters on each of its threads has the kernel write a record of each birth
//! (`PERF_RECORD_FORK`) into memory of this process: inside the call that gives birth, before the child runs or its parent
//! goes on. What a record says is of no interest, only how many bytes have been written; the oldest are overwritten, so
//! there is always room. A thread takes two pages of memory and no descriptor, for the mapping keeps the event.
//!
//! It costs the process about a microsecond each time that one of its threads gets a processor and loses it. So it is
//! for times in which many are born, and given up after a while.
//!
//! The kernel allows it to root, and to others for their own processes where `perf_event_paranoid` is 2 or less.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::changes::own_tid;
use crate::failpoints;
use crate::processes;
use crate::status::Status;
use crate::sys::{check, PAGE};

/// A process with more threads is asked about in other ways.
const THREADS_MAX: usize = 64;
/// How long they are noted of one process before it is asked anew whether that is worth it.
const KEPT: Duration = Duration::from_secs(60);
/// Events of all processes together: some 40 MiB of the kernel's memory.
const EVENTS_MAX: usize = 4096;

static EVENTS: AtomicUsize = AtomicUsize::new(0);

/// Has the births of one process noted, from when it was made.
#[derive(Debug)]
pub struct Newcomers {
    /// For each of its threads then, how much had been written when none was new.
    threads: BTreeMap<i32, (Noted, u64)>,
    made: Instant,
}

impl Newcomers {
    /// Of process `pid`, all threads of which are stopped. None where the kernel does not note them for this user, or there
    /// are too many threads. Costs some 20 µs a thread.
    pub fn of(pid: i32) -> Option<Self> {
        let me = std::process::id() as i32;
        // A filter of system calls may kill whoever makes one that it does not know.
        let filtered = Status::of(me, own_tid()).map_or(true, |status| status.is_filtered());
        if filtered || failpoints::active("newcomers") {
            return None;
        }
        let threads = all_threads(pid)?.into_iter();
        let noted = threads.map(|tid| Ok((tid, (Noted::new(tid)?, 0))));
        let threads = noted.collect::<io::Result<_>>().ok()?;
        let made = Instant::now();
        let mut made = Self { threads, made };
        made.are_known(pid).then_some(made)
    }

    /// Whether there are none since they were last known: neither processes nor threads. Costs a look at this process's own
    /// memory.
    pub fn are_none(&self) -> bool {
        let mut all = self.threads.values();
        all.all(|(noted, before)| noted.bytes() == Some(*before))
    }

    /// Whether they have been noted for long.
    pub fn are_old(&self) -> bool {
        self.made.elapsed() > KEPT
    }

    /// Takes those until now for known; false where the process, all threads of which are stopped, has other threads by now.
    pub fn are_known(&mut self, pid: i32) -> bool {
        let Some(threads) = all_threads(pid) else {
            return false;
        };
        let same = threads.len() == self.threads.len()
            && threads.iter().all(|tid| self.threads.contains_key(tid));
        for (noted, before) in self.threads.values_mut() {
            match noted.bytes() {
                Some(now) => *before = now,
                None => return false,
            }
        }
        same
    }
}

/// All threads of a process, if there are not too many of them.
fn all_threads(pid: i32) -> Option<Vec<i32>> {
    let (threads, all) = processes::threads(pid).ok()??;
    (all && threads.len() <= THREADS_MAX).then_some(threads)
}

/// `struct perf_event_attr`, as far as its first version goes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint_kind: u32,
    breakpoint: u64,
}

/// What the kernel writes of one thread.
#[derive(Debug)]
struct Noted {
    map: NonNull<u8>,
    /// A child of this process does not have the mapping.
    process: u32,
}

// SAFETY: the mapping belongs to this value alone, and nothing in it to a thread.
unsafe impl Send for Noted {}

impl Noted {
    const SOFTWARE: u32 = 1; // PERF_TYPE_SOFTWARE
    const NOTHING: u64 = 9; // PERF_COUNT_SW_DUMMY
    const NO_KERNEL: u64 = 3 << 5; // exclude_kernel, exclude_hv
    const TASKS: u64 = 1 << 13; // task: births, and the thread's own end
    const CLOSE_ON_EXEC: libc::c_ulong = 8; // PERF_FLAG_FD_CLOEXEC
    const HEAD: usize = 1024; // data_head of struct perf_event_mmap_page
    const BYTES: usize = 2 * PAGE as usize;

    fn new(tid: i32) -> io::Result<Self> {
        if EVENTS.fetch_add(1, Ordering::Relaxed) >= EVENTS_MAX {
            EVENTS.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let made = Self::map(tid);
        if made.is_err() {
            EVENTS.fetch_sub(1, Ordering::Relaxed);
        }
        made
    }

    fn map(tid: i32) -> io::Result<Self> {
        let attributes = Attributes {
            kind: Self::SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: Self::NOTHING,
            flags: Self::NO_KERNEL | Self::TASKS,
            ..Attributes::default()
        };
        // SAFETY: the attributes are as long as they say and outlive the call; what it returns is a new descriptor.
        let event = unsafe {
            let (every_processor, no_group) = (-1, -1);
            let fd = check(libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                tid,
                every_processor,
                no_group,
                Self::CLOSE_ON_EXEC,
            ))?;
            OwnedFd::from_raw_fd(fd as i32)
        };
        // Not to be written: so the kernel overwrites what is oldest.
        let (rights, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        let (anywhere, fd) = (std::ptr::null_mut(), event.as_raw_fd());
        // SAFETY: a fresh mapping, of which nobody else knows. It keeps the event when the descriptor is closed.
        let map = unsafe { libc::mmap(anywhere, Self::BYTES, rights, shared, fd, 0) };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::Other))?;
        let process = std::process::id();
        Ok(Self { map, process })
    }

    /// How much has been written until now; none in a child of the process that made it.
    fn bytes(&self) -> Option<u64> {
        // SAFETY: within the first page of the mapping, aligned, and changed by the kernel alone.
        let head = || unsafe { &*self.map.as_ptr().add(Self::HEAD).cast::<AtomicU64>() };
        (self.process == std::process::id()).then(|| head().load(Ordering::Acquire))
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // SAFETY: the mapping is this value's own.
            unsafe { libc::munmap(self.map.as_ptr().cast(), Self::BYTES) };
            EVENTS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;

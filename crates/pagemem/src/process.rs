//! What `/proc` tells of one process, asked again and again: the files are opened once and read anew.
//!
//! A stop asks for the threads, the mappings and a few numbers, and everything it does is pause of the target: opening
//! a file of `/proc` costs several times what reading it costs. The files stay with the process they were opened for;
//! once it has ended they answer with an error, whoever has its number then. `/proc/PID/maps` and `pagemap` stay with
//! the address space, which ends with `exec` (the injected region is looked for in each stop before they are asked).
//!
//! Of a process that nothing is asked of for long they are closed ([`Process::rest`]): descriptors are few where there are
//! thousands of processes. What is opened again is the same process's, by its pidfd.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use crate::listing::names_in;
use crate::processes::through_a_thread;
use crate::status::{filtered, Status};
use crate::sys::{self, Maps, Tracked};

/// Open files of one process.
#[derive(Debug)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    /// Handle that cannot come to mean another process.
    pub pidfd: Arc<OwnedFd>,
    task: RefCell<Option<File>>,
    maps: RefCell<Option<Maps>>,
    tracked: RefCell<Option<Tracked>>,
    /// The status of the thread asked for last.
    status: RefCell<Option<(i32, File)>>,
}

impl Process {
    /// Opens the files of process `pid`.
    pub fn open(pid: i32) -> io::Result<Self> {
        let process = Self {
            pid,
            pidfd: Arc::new(sys::pidfd_open(pid)?),
            task: RefCell::default(),
            maps: RefCell::default(),
            tracked: RefCell::default(),
            status: RefCell::default(),
        };
        process.with_task(|_| Ok(()))?;
        process.with_maps(|_| Ok(()))?;
        process.with_tracked(|_| Ok(()))?;
        Ok(process)
    }

    /// Closes the files until something is asked again; that of the mappings is kept, if so wished, for a process that may
    /// come to hide them.
    pub fn rest(&self, keep_maps: bool) {
        *self.task.borrow_mut() = None;
        *self.tracked.borrow_mut() = None;
        *self.status.borrow_mut() = None;
        if !keep_maps {
            *self.maps.borrow_mut() = None;
        }
    }

    /// Runs `ask` with what is open, opened again if need be.
    fn with<F, T>(
        &self,
        file: &RefCell<Option<F>>,
        open: impl FnOnce() -> io::Result<F>,
        ask: impl FnOnce(&mut F) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut file = file.borrow_mut();
        if file.is_none() {
            let opened = open()?;
            // Its number is given to nobody else before it has ended and been waited for.
            if sys::has_ended(&self.pidfd) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            *file = Some(opened);
        }
        ask(file.as_mut().expect("just opened"))
    }

    fn with_task<T>(&self, ask: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        let open = || File::open(format!("/proc/{}/task", self.pid));
        self.with(&self.task, open, ask)
    }

    fn with_tracked<T>(&self, ask: impl FnOnce(&mut Tracked) -> io::Result<T>) -> io::Result<T> {
        let open = || through_a_thread(self.pid, Tracked::open, |t| t.has_memory());
        self.with(&self.tracked, open, ask)
    }

    /// The ids of its threads now. The kernel cuts the list short where a thread ends while it is read.
    pub fn threads(&self) -> io::Result<Vec<i32>> {
        self.with_task(|task| names_in(task))
    }

    /// How many threads it has, ended ones that nobody has waited for included; 0 if that cannot be told.
    pub fn thread_count(&self) -> usize {
        // The kernel counts a directory of threads as linked to by each of them, on top of the usual two.
        let links = self.with_task(|task| task.metadata());
        links.map_or(0, |m| m.nlink()).saturating_sub(2) as usize
    }

    /// Runs `ask` with the mappings as they are now.
    pub fn with_maps<T>(&self, ask: impl FnOnce(&mut Maps) -> io::Result<T>) -> io::Result<T> {
        let open = || through_a_thread(self.pid, Maps::open, Maps::has_memory);
        self.with(&self.maps, open, |maps| {
            maps.refresh()?;
            ask(maps)
        })
    }

    /// Which pages of `[start, end)` were written since they were last asked for; see [`Tracked::written`].
    pub fn written(&self, start: u64, end: u64, found: impl FnMut(u64, u64)) -> io::Result<()> {
        self.with_tracked(|tracked| tracked.written(start, end, found))
    }

    /// Whose each page at `at` is; see [`crate::hold`].
    pub fn holds(&self, at: &[u64]) -> io::Result<Vec<u8>> {
        self.with_tracked(|tracked| tracked.holds(at))
    }

    /// Which pages of `at`, of those numbered in `which`, a huge page maps as a whole; see [`crate::hold`].
    pub fn in_huge_pages(&self, at: &[u64], which: &[usize]) -> io::Result<Vec<usize>> {
        self.with_tracked(|tracked| tracked.in_huge_pages(at, which))
    }

    /// Whether system calls of thread `tid` are filtered, or that cannot be told.
    pub fn under_seccomp(&self, tid: i32) -> bool {
        let mut known = self.status.borrow_mut();
        let mut text = [0u8; 4096];
        let read = match known.as_ref() {
            Some((of, file)) if *of == tid => file.read_at(&mut text, 0).ok(),
            _ => None,
        };
        // Another thread than last time, or one that has ended and left its number to this one.
        let read = read.or_else(|| {
            let file = File::open(format!("/proc/{}/task/{tid}/status", self.pid)).ok()?;
            let n = file.read_at(&mut text, 0).ok();
            *known = Some((tid, file));
            n
        });
        let Some(n) = read else { return true };
        filtered(&text[..n]).unwrap_or_else(|| {
            // The line is not in the first page where the list of groups is long. A kernel without filters has none.
            n == text.len() && Status::of(self.pid, tid).map_or(true, |all| all.is_filtered())
        })
    }

    /// CPU time of all its threads so far.
    pub fn cpu(&self) -> Duration {
        // The clock of a process, from its id, as `clock_getcpuclockid` makes it.
        let clock = (!self.pid << 3) | 2;
        let mut t = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: writes one timespec into a live one.
        unsafe { libc::clock_gettime(clock, &mut t) };
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_this_process_are_listed_and_counted_alike() {
        let me = Process::open(std::process::id() as i32).expect("its own files");
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        // Other tests begin and end threads meanwhile: once the two must agree.
        let agree = (0..1000).any(|_| me.threads().is_ok_and(|t| t.len() == me.thread_count()));
        assert!(agree);
        assert!(me.threads().expect("a list").len() >= 2);
        assert!(!me.under_seccomp(me.pid));
        drop(end);
        assert!(other.join().is_ok());
    }
}

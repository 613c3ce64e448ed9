//! What `/proc` tells of one process, asked again and again: the files are opened once and read anew.
//!
//! A stop asks for the threads, the mappings and a few numbers, and everything it does is pause of the target: opening
//! a file of `/proc` costs several times what reading it costs. The files stay with the process they were opened for;
//! once it has ended they answer with an error, whoever has its number then. `/proc/PID/maps` and `pagemap` stay with
//! the address space, which ends with `exec` (the workshop is looked for in each stop before they are asked).

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use crate::sys::{self, check, Maps, Tracked};

/// Open files of one process.
#[derive(Debug)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    task: File,
    maps: RefCell<Maps>,
    tracked: Tracked,
    /// The status of the thread asked for last.
    status: RefCell<Option<(i32, File)>>,
}

/// Bytes for names of threads: some 800 of them in one call.
const NAMES: usize = 1 << 15;
/// A directory entry of /proc/PID/task needs no more than this.
const ENTRY_MAX: usize = 64;

impl Process {
    /// Opens the files of process `pid`.
    pub fn open(pid: i32) -> io::Result<Self> {
        let memory = sys::memory_tid(pid);
        Ok(Self {
            pid,
            task: File::open(format!("/proc/{pid}/task"))?,
            maps: RefCell::new(Maps::open(memory)?),
            tracked: Tracked::open(memory)?,
            status: RefCell::new(None),
        })
    }

    /// The ids of its threads now. The kernel cuts the list short where a thread ends while it is read.
    pub fn threads(&self) -> io::Result<Vec<i32>> {
        let fd = self.task.as_raw_fd();
        // SAFETY: no pointers.
        check(unsafe { libc::lseek(fd, 0, libc::SEEK_SET) })?;
        let mut out = Vec::new();
        let mut buffer = [0u8; NAMES];
        loop {
            // SAFETY: the kernel writes at most the stated number of bytes into a live buffer of that size.
            let n = check(unsafe {
                libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), NAMES)
            })? as usize;
            let mut at = 0;
            while at < n {
                let length = u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]) as usize;
                let name = &buffer[at + 19..at + length];
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                if let Some(tid) = std::str::from_utf8(name).ok().and_then(|s| s.parse().ok()) {
                    out.push(tid);
                }
                at += length;
            }
            if n == 0 || NAMES - n >= ENTRY_MAX {
                return Ok(out);
            }
        }
    }

    /// How many threads it has, ended ones that nobody has waited for included; 0 if that cannot be told.
    pub fn thread_count(&self) -> usize {
        // The kernel counts a directory of threads as linked to by each of them, on top of the usual two.
        let links = self.task.metadata().map_or(0, |m| m.nlink());
        links.saturating_sub(2) as usize
    }

    /// Runs `ask` with the mappings as they are now.
    pub fn with_maps<T>(&self, ask: impl FnOnce(&mut Maps) -> io::Result<T>) -> io::Result<T> {
        let mut maps = self.maps.borrow_mut();
        maps.refresh()?;
        ask(&mut maps)
    }

    /// Which pages of `[start, end)` were written since they were last asked for; see [`Tracked::written`].
    pub fn written(&self, start: u64, end: u64, found: impl FnMut(u64, u64)) -> io::Result<()> {
        self.tracked.written(start, end, found)
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
            let path = format!("/proc/{}/task/{tid}/status", self.pid);
            n == text.len()
                && std::fs::read(path).map_or(true, |all| filtered(&all).unwrap_or(false))
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

/// Whether a status says that system calls are filtered; None where the line is not, or not wholly, in `text`.
fn filtered(text: &[u8]) -> Option<bool> {
    let name = b"\nSeccomp:";
    let at = text.windows(name.len()).position(|w| w == name)?;
    let mut rest = text[at + name.len()..].iter();
    let value = rest.find(|b| !b.is_ascii_whitespace())?;
    Some(*value != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_of_a_filter_only_by_its_own_line() {
        assert_eq!(
            filtered(b"Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n"),
            Some(false)
        );
        assert_eq!(
            filtered(b"Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"),
            Some(true)
        );
        assert_eq!(filtered(b"Name:\tSeccomp:\nGroups:\t0 1"), None);
        assert_eq!(filtered(b"Name:\tx\nSeccomp:\t"), None);
    }

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

//! Who else runs in a target's memory: processes made by `clone` with `CLONE_VM` but not as threads.
//!
//! They are in no list of the target's threads and do not stop with them. The kernel tells whether two processes have
//! one memory (`kcmp`), so everybody is asked once, and after that only processes that are new.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What is known of each target.
#[derive(Debug, Default)]
pub struct Sharers {
    known: BTreeMap<i32, Known>,
    load: Option<File>,
}

#[derive(Debug, Default)]
struct Known {
    /// The newest process id when last asked.
    newest: i32,
    sharers: Vec<i32>,
}

/// More new processes than this are found by listing all instead of by counting up.
const COUNT_UP_MAX: i32 = 2048;

impl Sharers {
    /// Whether any process but `pid` has the memory of its thread `tid`. Costs one read of `/proc/loadavg`, and
    /// about a microsecond for each process made since last asked; the first time for every process there is.
    pub fn any(&mut self, tid: i32, pid: i32) -> bool {
        if !can_tell(tid) {
            return true;
        }
        // Where it cannot be read (`/proc` mounted with `subset=pid`) all are looked at each time.
        let newest = self.newest_pid().unwrap_or(i32::MAX);
        let first = !self.known.contains_key(&pid);
        if first {
            self.known
                .retain(|p, _| std::path::Path::new(&format!("/proc/{p}")).exists());
        }
        let known = self.known.entry(pid).or_default();
        let new = newest.wrapping_sub(known.newest);
        let mut found: Vec<i32> = std::mem::take(&mut known.sharers);
        if first || newest == i32::MAX || !(0..=COUNT_UP_MAX).contains(&new) {
            found = crate::sys::all_processes();
        } else {
            found.extend(known.newest + 1..=newest);
        }
        known.newest = newest;
        known.sharers = found
            .into_iter()
            .filter(|&p| p != pid && same_memory(tid, p) && !thread_of(pid, p))
            .collect();
        !known.sharers.is_empty()
    }

    /// The newest process id given out in our namespace.
    fn newest_pid(&mut self) -> Option<i32> {
        if self.load.is_none() {
            self.load = File::open("/proc/loadavg").ok();
        }
        let mut text = [0u8; 128];
        let n = self.load.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..n]).ok()?;
        text.split_ascii_whitespace().last()?.parse().ok()
    }
}

/// Whether the kernel tells which processes have the memory of thread `tid`. Not so where it is built without `kcmp`, or a
/// filter of system calls keeps that from us: then nothing may be done that needs all of them to stand still.
pub fn can_tell(tid: i32) -> bool {
    same_memory(tid, tid)
}

fn thread_of(pid: i32, tid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

/// `kcmp` of two tasks' memory. Processes that we may not look at are of other users and share none.
pub fn same_memory(a: i32, b: i32) -> bool {
    same(What::Memory, a, b)
}

/// What two tasks may have in common.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// Their address space.
    Memory = 1,
    /// Their table of descriptors.
    Descriptors = 2,
}

/// Whether two tasks have one memory, or one table of descriptors; false also where that cannot be told.
pub fn same(what: What, a: i32, b: i32) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as i32, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_alone_in_its_memory_has_no_sharers_and_its_threads_are_none() {
        let me = std::process::id() as i32;
        let (ready, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let _ = wait.recv();
        });
        let mut sharers = Sharers::default();
        assert!(!sharers.any(me, me));
        assert!(!sharers.any(me, me));
        drop(ready);
        other.join().expect("a thread that ends");
    }
}

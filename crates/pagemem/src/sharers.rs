//! Who else runs in a target's memory, or has its descriptors: processes made by `clone` with `CLONE_VM` or `CLONE_FILES`
//! but not as threads.
//!
//! They are in no list of the target's threads and do not stop with them. The kernel tells whether two tasks have one
//! memory or one table (`kcmp`), so everybody is asked once, and after that only who is new: both come by birth alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What is known of each target.
#[derive(Debug, Default)]
pub struct Sharers {
    known: BTreeMap<(What, i32), Known>,
    load: Option<File>,
    stat: Option<File>,
}

#[derive(Debug, Default)]
struct Known {
    /// The newest process id when last asked.
    newest: i32,
    /// How many processes and threads had been made then, since the system was started.
    made: Option<u64>,
    /// When that was.
    asked: Option<Instant>,
    sharers: Vec<i32>,
}

/// More new processes than this are found by listing all instead of by counting up.
const COUNT_UP_MAX: i32 = 2048;

impl Sharers {
    /// Whether any process but `pid` has the memory of its thread `tid`. Costs one read of `/proc/loadavg`, and
    /// about a microsecond for each process made since last asked; the first time for every process there is.
    pub fn any(&mut self, tid: i32, pid: i32) -> bool {
        !can_tell(tid) || self.any_new(What::Memory, tid, pid)
    }

    /// Whether any task outside of process `pid` has the descriptors of its thread `tid`. Costs as much; for a thread
    /// with a table of its own, which few programs make, every task is asked each time.
    pub fn any_with_descriptors(&mut self, tid: i32, pid: i32) -> bool {
        const WHAT: What = What::Descriptors;
        if !same(WHAT, tid, tid) {
            return true;
        }
        if same(WHAT, tid, pid) {
            return self.any_new(WHAT, tid, pid);
        }
        all_tasks(WHAT)
            .into_iter()
            .any(|t| other(WHAT, tid, pid, t))
    }

    fn any_new(&mut self, what: What, tid: i32, pid: i32) -> bool {
        // Where it cannot be read (`/proc` mounted with `subset=pid`) all are looked at each time.
        let now = Instant::now();
        let before = self.known.get(&(what, pid));
        let long_ago = before
            .and_then(|k| k.asked)
            .is_none_or(|t| now - t > shortest_round());
        let made = if long_ago { self.made() } else { None };
        let newest = self.newest_pid().unwrap_or(i32::MAX);
        let first = !self.known.contains_key(&(what, pid));
        if first {
            self.known
                .retain(|(_, p), _| std::path::Path::new(&format!("/proc/{p}")).exists());
        }
        let known = self.known.entry((what, pid)).or_default();
        let new = newest.wrapping_sub(known.newest);
        // Where more have been made than ids were counted up, the ids have begun anew in between.
        let round = long_ago
            && match (known.made, made) {
                (Some(then), Some(now)) => now.wrapping_sub(then) > u64::try_from(new).unwrap_or(0),
                _ => true,
            };
        let mut found: Vec<i32> = std::mem::take(&mut known.sharers);
        if first || round || newest == i32::MAX || !(0..=COUNT_UP_MAX).contains(&new) {
            found = all_tasks(what);
        } else {
            found.extend(known.newest + 1..=newest);
        }
        known.newest = newest;
        known.asked = Some(now);
        // Not asked when it was just before: as many as ids were counted up.
        let counted = known
            .made
            .map(|then| then.wrapping_add_signed(i64::from(new)));
        known.made = if long_ago { made } else { counted };
        known.sharers = found
            .into_iter()
            .filter(|&t| other(what, tid, pid, t))
            .collect();
        !known.sharers.is_empty()
    }

    /// How many processes and threads have been made since the system was started.
    fn made(&mut self) -> Option<u64> {
        if self.stat.is_none() {
            self.stat = File::open("/proc/stat").ok();
        }
        let mut text = Vec::new();
        let mut file = self.stat.as_ref()?;
        file.rewind().ok()?;
        file.read_to_end(&mut text).ok()?;
        let line = text
            .split(|&b| b == b'\n')
            .find_map(|l| l.strip_prefix(b"processes "))?;
        std::str::from_utf8(line).ok()?.trim().parse().ok()
    }

    /// Those that were found when last asked.
    pub fn of(&self, pid: i32) -> Vec<i32> {
        self.known
            .get(&(What::Memory, pid))
            .map_or_else(Vec::new, |k| k.sharers.clone())
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

/// The shortest time in which all process ids can be used once: no processor makes a million processes a second.
fn shortest_round() -> Duration {
    static ROUND: OnceLock<Duration> = OnceLock::new();
    *ROUND.get_or_init(|| {
        let most = std::fs::read_to_string("/proc/sys/kernel/pid_max");
        let ids: u64 = most.ok().and_then(|m| m.trim().parse().ok()).unwrap_or(0);
        // SAFETY: no pointers.
        let processors = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
        Duration::from_micros(ids / u64::try_from(processors).unwrap_or(1).max(1))
    })
}

/// Whether task `t` is none of process `pid` and has what its thread `tid` has.
fn other(what: What, tid: i32, pid: i32, t: i32) -> bool {
    t != pid && same(what, tid, t) && !thread_of(pid, t)
}

/// Everybody that may have to be asked: threads of one process have one memory, but may have several tables.
fn all_tasks(what: What) -> Vec<i32> {
    let processes = crate::sys::all_processes();
    match what {
        What::Memory => processes,
        What::Descriptors => processes
            .into_iter()
            .flat_map(|p| crate::sys::numbers_in(&format!("/proc/{p}/task")))
            .collect(),
    }
}

fn thread_of(pid: i32, tid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

/// `kcmp` of two tasks' memory. Processes that we may not look at are of other users and share none.
pub fn same_memory(a: i32, b: i32) -> bool {
    same(What::Memory, a, b)
}

/// What two tasks may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
        assert!(!sharers.any_with_descriptors(me, me));
        assert!(!sharers.any_with_descriptors(me, me));
        drop(ready);
        other.join().expect("a thread that ends");
    }

    #[test]
    fn a_process_with_the_same_descriptors_is_found_while_it_lives_and_not_after() {
        let me = std::process::id() as i32;
        // A table of this thread's own, so that the tests beside this one are not met.
        // SAFETY: no pointers; descriptors that other threads use are not touched.
        let (tid, own) = unsafe { (libc::gettid(), libc::unshare(libc::CLONE_FILES)) };
        assert_eq!(own, 0);
        let mut sharers = Sharers::default();
        assert!(!sharers.any_with_descriptors(tid, me));
        // SAFETY: the child waits until it is killed and does nothing else.
        let child = unsafe {
            let flags = libc::CLONE_FILES | libc::SIGCHLD;
            let child = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) as i32;
            if child == 0 {
                loop {
                    libc::pause();
                }
            }
            child
        };
        assert!(child > 0);
        assert!(sharers.any_with_descriptors(tid, me));
        assert!(!sharers.any(tid, me));
        // SAFETY: ends and reaps the child made above.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        assert!(!sharers.any_with_descriptors(tid, me));
    }
}

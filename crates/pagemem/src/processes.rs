//! Going through all processes so that none is missed which is born meanwhile to one that then ends.
//!
//! A birth takes a while in which the child has an id and cannot be found yet; its parent is there for as long. So each
//! process is looked at before the next is looked for: a parent that had gone by then had its child before, and the child
//! is found later on, for it has the higher id. (Where ids have begun anew in between it need not have, and a second look
//! finds it.) A process's place in the listing of `/proc` is its id plus a constant, and a listing can begin anywhere.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use crate::failpoints;
use crate::listing::{names_in, Entries};
use crate::sys::check;

/// Room for one entry whose name is a number, and not for two.
const ONE: usize = 40;
const MANY: usize = 1 << 15;

/// Calls `look` with the id of each process, in ascending order, until it returns false.
pub fn each(mut look: impl FnMut(i32) -> bool) -> io::Result<()> {
    let folder = File::open("/proc")?;
    let base = base(&folder)?;
    let mut entries = Entries::of::<ONE>();
    let mut last = 0;
    loop {
        // SAFETY: no pointers.
        check(unsafe { libc::lseek(folder.as_raw_fd(), base + last + 1, libc::SEEK_SET) })?;
        let mut next = None;
        if !entries.read(&folder, |name, _| next = name)? {
            return Ok(());
        }
        let next = next.filter(|&p| i64::from(p) > last);
        let next = next.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        if !look(next) {
            return Ok(());
        }
        last = i64::from(next);
    }
}

/// The place of a process in the listing less its id.
fn base(folder: &File) -> io::Result<i64> {
    static BASE: OnceLock<i64> = OnceLock::new();
    if let Some(base) = BASE.get() {
        return Ok(*base);
    }
    let mut entries = Entries::of::<MANY>();
    let (mut place, mut found) = (None, None);
    // Where a process has ended between two reads the place told was its own, and what comes in its stead lies further on.
    while entries.read(folder, |name, next| {
        found = found.max(name.and_then(|id| Some(place? - i64::from(id))));
        place = Some(next);
    })? {}
    let found = found.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(*BASE.get_or_init(|| found))
}

/// Whether there is no such process or thread any more.
fn is_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// The threads of process `pid`, and whether these are all: the kernel cuts the list short where one ends while it is read.
/// None if there is no such process any more.
pub fn threads(pid: i32) -> io::Result<Option<(Vec<i32>, bool)>> {
    let listed = File::open(format!("/proc/{pid}/task"))
        .and_then(|folder| Ok((names_in(&folder)?, folder.metadata()?.nlink())));
    match listed {
        Ok((threads, links)) => {
            let all = threads.len() as u64 + 2 == links;
            Ok(Some((threads, all)))
        }
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// How many threads process `pid` has; none if there is no such process any more.
pub fn thread_count(pid: i32) -> io::Result<u64> {
    match std::fs::metadata(format!("/proc/{pid}/task")) {
        // The kernel counts a directory of threads as linked to by each of them, on top of the usual two.
        Ok(m) => Ok(m.nlink().saturating_sub(2)),
        Err(e) if is_gone(&e) => Ok(0),
        Err(e) => Err(e),
    }
}

/// How often threads are listed, and one is tried, of a process whose threads come and go.
const TRIES: usize = 256;

/// A thread of `pid` through which its memory can be reached: another than the first where that one has left the memory
/// before the others. It may leave at any time: who opens something through it uses [`through_a_thread`].
pub fn memory_tid(pid: i32) -> i32 {
    thread_with_memory(pid).unwrap_or(pid)
}

fn thread_with_memory(pid: i32) -> Option<i32> {
    if has_memory(pid, pid) || failpoints::active("leaderless") {
        return Some(pid);
    }
    let mut before = Vec::new();
    for _ in 0..TRIES {
        let (threads, all) = threads(pid).ok()??;
        if let Some(&tid) = threads.iter().find(|&&tid| has_memory(pid, tid)) {
            return Some(tid);
        }
        // All are ending, unless one was born meanwhile.
        if all && threads == before {
            return None;
        }
        before = threads;
    }
    None
}

/// Opens a file about the memory of `pid` through one of its threads: through another where that one leaves the memory
/// just then, which leaves a file without any. `ESRCH` where no thread has memory.
pub fn through_a_thread<F>(
    pid: i32,
    open: impl Fn(i32) -> io::Result<F>,
    has_memory: impl Fn(&mut F) -> bool,
) -> io::Result<F> {
    for _ in 0..TRIES {
        let Some(tid) = thread_with_memory(pid) else {
            break;
        };
        match open(tid) {
            Ok(mut file) => {
                if has_memory(&mut file) {
                    return Ok(file);
                }
            }
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(e),
        }
        if failpoints::active("leaderless") {
            break;
        }
    }
    Err(io::Error::from_raw_os_error(libc::ESRCH))
}

/// Whether thread `tid` of process `pid` has memory: a thread leaves it early in its end, and has none for as long as the
/// rest of that takes.
pub fn has_memory(pid: i32, tid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/task/{tid}/statm")).is_ok_and(|s| !s.starts_with(b"0 "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_processes_are_looked_at_in_order_and_no_threads() {
        let rest = || loop {
            // SAFETY: no pointers.
            unsafe { libc::pause() };
        };
        // SAFETY: the child makes one call and nothing else.
        let fork = |_| match unsafe { libc::fork() } {
            0 => rest(),
            child => child,
        };
        let ids: Vec<i32> = (0..5).map(fork).collect();
        assert!(ids.iter().all(|&id| id > 0));
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = tell.send(crate::changes::own_tid());
            let _ = wait.recv();
        });
        let tid = told.recv().expect("a thread's id");
        let me = std::process::id() as i32;
        let mut seen = Vec::new();
        each(|p| {
            seen.push(p);
            true
        })
        .expect("a listing");
        for &id in &ids {
            // SAFETY: ends and reaps a child made above.
            unsafe {
                libc::kill(id, libc::SIGKILL);
                libc::waitpid(id, std::ptr::null_mut(), 0);
            }
        }
        drop(end);
        thread.join().expect("a thread that ends");
        assert!(seen.windows(2).all(|w| w[0] < w[1]));
        assert!(ids.iter().all(|id| seen.contains(id)) && seen.contains(&me));
        assert!(!seen.contains(&tid));
    }

    #[test]
    fn a_process_that_ends_while_its_threads_are_counted_has_none() {
        for _ in 0..500 {
            // SAFETY: the child ends at once.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: ends this process.
                unsafe { libc::_exit(0) };
            }
            assert!(child > 0);
            let reap = std::thread::spawn(move || {
                // SAFETY: reaps the child made above.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }
            });
            while thread_count(child).expect("a number") > 0 {}
            assert_eq!(reap.join().expect("a reaped child"), child);
        }
    }
}

//! What a stop asks of the kernel, so that tests can answer in its place: which requests it makes in which order is what a
//! stop is about, and no real program behaves the same way twice.
//!
//! Called by [`super::stopping`]. Here nothing is decided.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::changes;
use crate::failpoints;
use crate::process::Process;
use crate::processes;
use crate::requests::{self, Wait};
use crate::sharers::{Asker, Sharers};
use crate::sys;
use crate::transfers::Transfers;
use crate::workers;

/// Answers what a stop asks. Nothing waits but [`Kernel::wait`].
pub(super) trait Kernel: Debug + Sync {
    /// The time.
    fn now(&self) -> Instant;
    /// Sleeps until a tracee may have changed state or `events` is readable, at most for `longest`.
    fn wait(&self, events: Option<RawFd>, longest: Duration);
    /// The threads in the list of a process, which is cut short where one ends while it is read.
    fn threads(&self, process: &Process) -> io::Result<Vec<i32>>;
    /// How many threads it has, ended ones that nobody has waited for included.
    fn thread_count(&self, process: &Process) -> usize;
    /// Whether `seized` are all the threads that `pid` has.
    fn are_all(&self, pid: i32, seized: &BTreeSet<i32>) -> bool;
    /// The state of a thread as `/proc` writes it; None for one that is not there.
    fn state(&self, pid: i32, tid: i32) -> Option<char>;
    /// Whether a thread has memory: it leaves it early in its end.
    fn has_memory(&self, pid: i32, tid: i32) -> bool;
    /// Whether a thread is one of the kernel's own.
    fn is_worker(&self, pid: i32, tid: i32) -> bool;
    /// Whether the calling thread traces it.
    fn is_ours(&self, pid: i32, tid: i32) -> bool;
    /// A request of `ptrace` that takes a plain number.
    fn request(&self, request: libc::c_uint, tid: i32, data: usize) -> io::Result<()>;
    /// What became of a thread.
    fn poll(&self, tid: i32) -> Wait;
    /// Has what the stop has cut short go on; see [`Transfers::go_on`].
    fn go_on(&self, transfers: &mut Transfers, pid: i32, tid: i32, suspended: bool);
    /// The same before a signal; see [`Transfers::go_on_if_ignored`].
    fn go_on_if_ignored(&self, transfers: &mut Transfers, pid: i32, tid: i32, signal: i32);
    /// Whether another process runs in the same memory.
    fn any_sharer(&self, sharers: &mut Sharers, asker: Asker) -> bool;
}

/// The kernel that runs.
#[derive(Debug)]
pub(super) struct Linux;

impl Kernel for Linux {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, events: Option<RawFd>, longest: Duration) {
        changes::wait_for_change(events, longest);
    }

    fn threads(&self, process: &Process) -> io::Result<Vec<i32>> {
        process.threads()
    }

    fn thread_count(&self, process: &Process) -> usize {
        process.thread_count()
    }

    fn are_all(&self, pid: i32, seized: &BTreeSet<i32>) -> bool {
        // The 18th number behind the name, counted from the state.
        let counted = sys::Stat::of_process(pid).and_then(|stat| stat.number::<usize>(17));
        let Some(counted) = counted else { return true };
        let task = |t: &i32| std::path::Path::new(&format!("/proc/{pid}/task/{t}")).exists();
        let leader_ended = !seized.contains(&pid) && sys::thread_ended(pid, pid);
        seized.iter().filter(|t| task(t)).count() + usize::from(leader_ended) >= counted
    }

    fn state(&self, pid: i32, tid: i32) -> Option<char> {
        sys::thread_state(pid, tid)
    }

    fn has_memory(&self, pid: i32, tid: i32) -> bool {
        failpoints::active("ending") || processes::has_memory(pid, tid)
    }

    fn is_worker(&self, pid: i32, tid: i32) -> bool {
        workers::is_worker(pid, tid)
    }

    fn is_ours(&self, pid: i32, tid: i32) -> bool {
        sys::tracer_of(pid, tid) == Some(changes::own_tid())
    }

    fn request(&self, request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
        requests::ptrace(request, tid, data)
    }

    fn poll(&self, tid: i32) -> Wait {
        requests::poll(tid)
    }

    fn go_on(&self, transfers: &mut Transfers, pid: i32, tid: i32, suspended: bool) {
        transfers.go_on(pid, tid, suspended);
    }

    fn go_on_if_ignored(&self, transfers: &mut Transfers, pid: i32, tid: i32, signal: i32) {
        transfers.go_on_if_ignored(pid, tid, signal);
    }

    fn any_sharer(&self, sharers: &mut Sharers, asker: Asker) -> bool {
        sharers.any(asker)
    }
}

//! Stopping every thread of a process for a moment, and resuming all of them.
//!
//! Threads are seized for the stop and detached after it, so that between stops the process is not traced. A thread
//! that does not stop in time is released as soon as it does.
//!
//! This file has the types of a stop, what the tracer knows, and its questions to others: who shares memory with a process.

mod held;
mod kernel;
#[cfg(feature = "failpoints")]
mod left_inside;
mod stopping;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arch::Regs;
use crate::failpoints;
use crate::process::Process;
use crate::processes;
pub use crate::requests::{
    interrupt, is_fault, leave, poll, resume, set_signal_mask, signal_mask, single_step,
    to_next_call, Wait, ALL_SIGNALS, CALL_STOP, HELD_SIGNALS,
};
use crate::sharers::{Asker, Sharers};
use crate::transfers::{Room, Transfers};
use kernel::{Kernel, Linux};
#[cfg(feature = "failpoints")]
pub use left_inside::leave_inside;
pub use stopping::bare_stops;

/// Where tests leave thread `tid` inside injected code: nothing, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn leave_inside(_tid: i32) {}

/// Why a process could not be stopped.
#[derive(Debug)]
pub enum StopError {
    /// The process has ended.
    Gone,
    /// Some thread did not stop in time, or is held by job control.
    Timeout,
    /// The kernel refused: another tracer, no rights.
    Refused(io::Error),
    /// Another process runs in the same memory (`clone` with `CLONE_VM`) and does not stop with this one.
    Shared,
}

impl StopError {
    /// As an error of the operating system.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Gone => io::Error::from_raw_os_error(libc::ESRCH),
            Self::Timeout => io::Error::from_raw_os_error(libc::ETIMEDOUT),
            Self::Refused(e) => e,
            Self::Shared => io::Error::from_raw_os_error(libc::EBUSY),
        }
    }
}

/// All threads of one process, stopped. Given back by [`Tracer::release`].
#[derive(Debug)]
pub struct Stopped {
    /// The process.
    pub pid: i32,
    /// Its threads; each is stopped by our interrupt.
    pub tids: Vec<i32>,
    /// When the first interrupt was sent: the pause is counted from here.
    pub since: Instant,
    /// Whether job control had suspended it before: then it stays so.
    pub suspended: bool,
    /// Whether threads of the kernel work in its memory, which do not stop.
    pub workers: bool,
    /// Whether all of its threads are stopped: none but those of the kernel is in a call that goes on.
    pub all: bool,
    /// Nothing but zero-filling after discards may be done in this stop, for this reason.
    pub only_mend: Option<StopError>,
    /// Threads that went on with code of ours though job control had suspended the process meanwhile.
    pub woken: RefCell<Vec<i32>>,
    /// The thread that runs injected code, if one has; restored by [`Tracer::release`].
    pub worker: RefCell<Option<Worker>>,
}

/// A thread that runs injected code, and what it gets back.
#[derive(Debug)]
pub struct Worker {
    /// The thread.
    pub tid: i32,
    /// Its registers.
    pub regs: Regs,
    /// Its signal mask.
    pub mask: u64,
    /// CPU time of the process before.
    pub cpu: Duration,
    /// Whether its signals are held back already.
    pub masked: bool,
    /// The syscall batch that it was in the middle of when it was waited for no longer: frozen, or starved of processor
    /// time.
    pub unfinished: Option<SyscallBatch>,
}

/// A syscall batch: operations that a thread runs.
#[derive(Clone, Copy, Debug)]
pub struct SyscallBatch {
    /// Where the loop's code begins.
    pub base: u64,
    /// Where the thread stands when it is through.
    pub done: u64,
    /// How often an operation may still meet memory that cannot be had.
    pub faults_left: usize,
}

impl Stopped {
    /// A thread id through which the memory can be reached: also when the first thread has ended before the others,
    /// which leaves the process without memory of its own in the eyes of `/proc/PID`.
    pub fn memory(&self) -> i32 {
        self.tids.first().copied().unwrap_or(self.pid)
    }

    /// The thread that is in the middle of a syscall batch, and the batch.
    pub fn unfinished(&self) -> Option<(i32, SyscallBatch)> {
        let worker = self.worker.borrow();
        worker
            .as_ref()
            .and_then(|w| w.unfinished.map(|batch| (w.tid, batch)))
    }

    /// What a thread that stops while it runs code of ours is given to go on with: nothing but a SIGSTOP, which no mask
    /// holds back ([`Tracer::on_batch_signal`] says why).
    pub fn passed_on(&self, tid: i32, stop: Wait) -> i32 {
        match stop {
            Wait::Signal(libc::SIGSTOP) => libc::SIGSTOP,
            Wait::Suspended => {
                self.woken.borrow_mut().push(tid);
                0
            }
            _ => 0,
        }
    }

    /// CPU time that the target has spent on injected code in this stop: only the worker has run.
    pub fn injected(&self, process: &Process) -> Duration {
        let worker = self.worker.borrow();
        worker
            .as_ref()
            .map_or(Duration::ZERO, |w| process.cpu().saturating_sub(w.cpu))
    }
}

/// A stop that did not come about.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: StopError,
    /// What was stopped all the same, and stands still until [`Tracer::give_up`].
    stopped: Option<Box<Stopped>>,
}

impl Failed {
    /// Threads that were stopped all the same.
    pub fn threads(&self) -> &[i32] {
        self.stopped.as_ref().map_or(&[], |stopped| &stopped.tids)
    }
}

/// How complete a stop must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Nothing else may run or be about to write: to change what is in use.
    All,
    /// A thread that sleeps in the kernel where no interrupt reaches it (waiting for a device or a `vfork`) need not
    /// have stopped: it will, before it executes another instruction of the program. To zero-fill after a discard.
    NoUserCode,
}

/// Events of the target that must be read before some thread can stop.
pub trait Events {
    /// Whether an event waits to be read.
    fn pending(&self) -> bool;
    /// What becomes readable when one does, if there can be any.
    fn descriptor(&self) -> Option<RawFd>;
    /// Reads the oldest event. All threads that existed when it was posted have been interrupted.
    fn read_one(&mut self);
}

/// No events to read.
pub struct NoEvents;

impl Events for NoEvents {
    fn pending(&self) -> bool {
        false
    }

    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    fn read_one(&mut self) {}
}

/// What a followed process did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It forked: the child, with a copy of its memory, stands still until [`Tracer::start_child`].
    Forked {
        /// The parent.
        parent: i32,
        /// The child.
        child: i32,
    },
    /// It replaced its program; it is not followed any more.
    Executed {
        /// The process.
        pid: i32,
    },
}

/// A thread seized by us that is not part of a stop in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Was too late for a stop: released as soon as it stops.
    Straggler,
    /// Belongs to a followed process: always resumed.
    Followed,
    /// Child of a followed process, on its way to its first stop.
    Newborn,
    /// The same, found stopped: waits for its guard.
    Waiting,
}

/// The one tracer of the guardian: knows which threads are seized.
#[derive(Debug)]
pub struct Tracer {
    held: BTreeMap<i32, (i32, Held)>,
    followed: BTreeSet<i32>,
    news: Vec<News>,
    /// Signals taken from a thread while it ran injected code; sent again after its release.
    owed: Vec<(i32, i32, i32)>,
    sharers: Sharers,
    /// What stops have cut short and what goes on.
    pub transfers: Transfers,
    /// The process that has got its injected region in the stop that is under way.
    planted: Option<i32>,
    /// Processes of which one thread has not finished its syscall batch yet: none of the others may go on before it has.
    stalled: Vec<Stopped>,
    /// Who answers what a stop asks.
    kernel: &'static dyn Kernel,
}

impl Default for Tracer {
    fn default() -> Self {
        crate::changes::block();
        Self {
            held: BTreeMap::new(),
            followed: BTreeSet::new(),
            news: Vec::new(),
            owed: Vec::new(),
            sharers: Sharers::default(),
            transfers: Transfers::default(),
            planted: None,
            stalled: Vec::new(),
            kernel: &Linux,
        }
    }
}

impl Tracer {
    /// Whether a process outside of the stopped one has the table of descriptors that its thread `tid` uses: that one
    /// runs on, and could take what is put there.
    pub fn descriptors_are_shared(
        &mut self,
        process: &Process,
        stopped: &Stopped,
        tid: i32,
    ) -> bool {
        self.sharers.any_with_descriptors(Asker {
            pid: stopped.pid,
            pidfd: &Arc::downgrade(&process.pidfd),
            tid,
            stopped: stopped.all,
        })
    }

    fn has_sharers(&mut self, tid: i32, process: &Process, stopped: bool) -> bool {
        let asker = Asker {
            pid: process.pid,
            pidfd: &Arc::downgrade(&process.pidfd),
            tid,
            stopped,
        };
        !failpoints::active("sharers") && self.kernel.any_sharer(&mut self.sharers, asker)
    }

    /// Whether another process, which does not stop with this one, runs in its memory. Whoever it gives birth to meanwhile
    /// may be missed.
    pub fn shared(&mut self, process: &Process) -> bool {
        self.has_sharers(processes::memory_tid(process.pid), process, false)
    }

    /// The same of one that is stopped: nobody is missed where all of its threads are.
    pub fn shared_when_stopped(&mut self, process: &Process, stopped: &Stopped) -> bool {
        self.has_sharers(stopped.memory(), process, stopped.all)
    }

    /// To be called now and then: has nothing watched any longer than it need be.
    pub fn rest(&mut self) {
        self.sharers.rest();
    }

    /// The processes that were found to run in the memory of `pid`, when last asked.
    pub fn sharers_of(&self, pid: i32) -> Vec<i32> {
        self.sharers.of(pid)
    }

    /// Stopped process `pid` has got an injected region: what its stop has cut short can go on when it is released.
    pub fn planted(&mut self, pid: i32, room: Room) {
        self.transfers.know(pid, room);
        self.planted = Some(pid);
    }
}

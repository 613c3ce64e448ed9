//! Stopping every thread of a process for a moment, and letting all of them go.
//!
//! Threads are seized for the stop and detached after it, so that between stops the process is not traced. A thread
//! that does not stop in time is released as soon as it does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arch::{Regs, REPORT_SIGNAL};
use crate::process::Process;
use crate::remedies;
use crate::sharers::{same_memory, Asker, Sharers};
use crate::sys::{self, check, thread_ended, thread_state};
use crate::transfers::{Room, Transfers};
use crate::workers::is_worker;

const EVENT_STOP: i32 = 128;

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

fn ptrace(request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
    remedies::step();
    // SAFETY: only requests that take a plain number as data are issued through here: no memory is touched.
    check(unsafe { libc::ptrace(request, tid, 0, data) }).map(drop)
}

/// What happened to a thread, as `waitpid` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing yet.
    Nothing,
    /// Ended or no longer ours.
    Ended,
    /// Stopped by an interrupt of ours (or just born under a traced parent).
    Interrupted,
    /// Stopped by job control (the process is suspended).
    Suspended,
    /// About to receive this signal.
    Signal(i32),
    /// A ptrace event: number of the event.
    Event(i32),
}

/// Asks once what became of thread `tid`, without waiting. The end of a process's first thread is not told before those of
/// all others have been: where they are not asked for, [`thread_ended`] must be, too.
pub fn poll(tid: i32) -> Wait {
    let mut status = 0;
    // SAFETY: writes one int into a live one.
    let r = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) };
    match r {
        0 => Wait::Nothing,
        r if r < 0 => Wait::Ended,
        _ if !libc::WIFSTOPPED(status) => Wait::Ended,
        _ => match (status >> 16, libc::WSTOPSIG(status)) {
            (0, signal) => Wait::Signal(signal),
            (EVENT_STOP, libc::SIGTRAP) => Wait::Interrupted,
            (EVENT_STOP, _) => Wait::Suspended,
            (event, _) => Wait::Event(event),
        },
    }
}

/// Lets a stopped thread go on, delivering `signal` (0: none).
pub fn resume(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, signal as usize)
}

/// Lets a stopped thread go on to where it next enters or leaves a system call ([`CALL_STOP`]).
pub fn to_next_call(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SYSCALL, tid, 0)
}

/// Runs one instruction of a stopped thread.
pub fn single_step(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SINGLESTEP, tid, 0)
}

/// Has a seized thread stop soon.
pub fn interrupt(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Lets a stopped thread go, for good.
pub fn leave(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, 0)
}

/// The signal mask of a stopped thread.
pub fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the kernel writes 8 bytes, the size stated, into a live u64.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, 8, &mut mask) })?;
    Ok(mask)
}

/// Sets the signal mask of a stopped thread.
pub fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    remedies::step();
    // SAFETY: the kernel reads 8 bytes, the size stated, from a live u64.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, 8, &mask) }).map(drop)
}

/// What a thread that runs injected code is kept from receiving: everything but the loop's own report and what faults
/// raise. The kernel takes a handler away from a program that blocks a signal which a fault then raises.
pub const HELD_SIGNALS: u64 = !(bit(REPORT_SIGNAL)
    | bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGILL)
    | bit(libc::SIGFPE)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGSYS));

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Whether the signal that a thread is about to receive was raised by what it did, not sent by somebody.
pub fn is_fault(tid: i32) -> bool {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes one `siginfo_t` at a live place of that type.
    let r = unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr()) };
    // SAFETY: zeroed, then filled; its fields are integers.
    r == 0 && unsafe { info.assume_init() }.si_code > 0
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
    /// Nothing but the mending of discards may be done in this stop, for this reason.
    pub only_mend: Option<StopError>,
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
    /// The list that it was in the middle of when it was waited for no longer: frozen, or starved of processor time.
    pub unfinished: Option<List>,
}

/// A list of operations that a thread runs.
#[derive(Clone, Copy, Debug)]
pub struct List {
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

    /// The thread that is in the middle of a list, and the list.
    pub fn unfinished(&self) -> Option<(i32, List)> {
        let worker = self.worker.borrow();
        worker
            .as_ref()
            .and_then(|w| w.unfinished.map(|list| (w.tid, list)))
    }

    /// CPU time that the target has spent on injected code in this stop: only the worker has run.
    pub fn injected(&self, process: &Process) -> Duration {
        let worker = self.worker.borrow();
        worker
            .as_ref()
            .map_or(Duration::ZERO, |w| process.cpu().saturating_sub(w.cpu))
    }
}

/// How complete a stop must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Nothing else may run or be about to write: to change what is in use.
    All,
    /// A thread that sleeps in the kernel where no interrupt reaches it (waiting for a device or a `vfork`) need not
    /// have stopped: it will, before it executes another instruction of the program. To mend after a discard.
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

const EVENT_FORK: i32 = libc::PTRACE_EVENT_FORK;
const EVENT_VFORK: i32 = libc::PTRACE_EVENT_VFORK;
const EVENT_CLONE: i32 = libc::PTRACE_EVENT_CLONE;
const EVENT_EXEC: i32 = libc::PTRACE_EVENT_EXEC;
const FOLLOW_OPTIONS: i32 = libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | PLAIN_OPTIONS;
/// The stops of [`to_next_call`] are then told from signals, and harm nobody should this process die at one.
const PLAIN_OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD;
/// What such a stop is reported as.
pub const CALL_STOP: i32 = libc::SIGTRAP | 0x80;

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
    /// The process that has got its workshop in the stop that is under way.
    planted: Option<i32>,
    /// Processes of which one thread has not finished its list yet: none of the others may go on before it has.
    stalled: Vec<Stopped>,
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
        }
    }
}

fn event_message(tid: i32) -> i32 {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes one unsigned long into a live one.
    unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &mut message) };
    message as i32
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

    /// Stops all threads of `pid`.
    ///
    /// A thread that waits for its event to be read cannot stop, and runs on as soon as it has been read: so each
    /// event is read only after all threads, also new ones, have been interrupted.
    pub fn stop(
        &mut self,
        process: &Process,
        timeout: Duration,
        strictness: Strictness,
        events: &mut dyn Events,
    ) -> Result<Stopped, StopError> {
        let since = Instant::now();
        let pid = process.pid;
        if self.stalled.iter().any(|s| s.pid == pid) {
            return Err(StopError::Timeout);
        }
        let mut seized = BTreeSet::new();
        let mut stopped = BTreeSet::new();
        let mut ended = BTreeSet::new();
        let mut failure = None;
        let mut suspended = false;
        // Once a discard has been let happen, no thread may go on before it has been mended.
        let mut read = false;
        'outer: loop {
            let timeout = if read { timeout.max(MENDING) } else { timeout };
            match self.seize_new(process, &mut seized, &mut stopped, &mut ended) {
                Ok(true) => {}
                // A running thread may create another before it stops: done when no new one is found. The kernel cuts
                // the list short where a thread ends while it is read, so it is held against the number of threads.
                Ok(false) if complete(pid, &seized) => break,
                Ok(false) if since.elapsed() > timeout => {
                    failure = Some(StopError::Timeout);
                    break;
                }
                Ok(false) => {}
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
            let mut spins = 0u32;
            loop {
                for &tid in &seized {
                    if stopped.contains(&tid) {
                        continue;
                    }
                    match poll(tid) {
                        Wait::Nothing => {}
                        Wait::Interrupted => {
                            // At once: should this process die, what was cut short would stay so.
                            self.transfers.go_on(pid, tid, false);
                            stopped.insert(tid);
                        }
                        Wait::Ended => {
                            ended.insert(tid);
                            stopped.insert(tid);
                        }
                        Wait::Suspended => {
                            suspended = true;
                            self.transfers.go_on(pid, tid, true);
                            stopped.insert(tid);
                            if remedies::without("suspended") {
                                failure = Some(StopError::Timeout);
                                break 'outer;
                            }
                        }
                        // The interrupt is still due and stops the thread right after this.
                        Wait::Signal(signal) => {
                            self.transfers.go_on_if_ignored(pid, tid, signal);
                            let _ = resume(tid, signal);
                        }
                        Wait::Event(event) => self.on_event(pid, tid, event),
                    }
                }
                if stopped.len() == seized.len() {
                    // Mostly these were all; with threads that begin or end meanwhile, the list is read again.
                    if ended.is_empty() && process.thread_count() == seized.len() {
                        break 'outer;
                    }
                    break;
                }
                if since.elapsed() > if read { timeout.max(MENDING) } else { timeout } {
                    failure = Some(StopError::Timeout);
                    break 'outer;
                }
                let mut unstopped = seized.iter().filter(|t| !stopped.contains(t));
                let mut awaited = events.descriptor();
                if events.pending() {
                    awaited = None;
                    if let Err(e) = self.seize_new(process, &mut seized, &mut stopped, &mut ended) {
                        failure = Some(e);
                        break 'outer;
                    }
                    // One that has stopped does not lose its memory by ending.
                    let alive = stopped.difference(&ended).next();
                    let alive = alive.or_else(|| seized.difference(&ended).next());
                    if alive.is_some_and(|&tid| self.has_sharers(tid, process, false)) {
                        // It may be theirs, and they would run on.
                        failure = Some(StopError::Shared);
                        break 'outer;
                    }
                    // The reader lets a discard happen: while a thread still runs, it could see what lies beneath.
                    let mut unstopped = seized.iter().filter(|t| !stopped.contains(t));
                    if since.elapsed() > PATIENCE || unstopped.all(|&t| sleeps_in_kernel(pid, t)) {
                        events.read_one();
                        read = true;
                        spins = 0;
                        continue;
                    }
                } else if strictness == Strictness::NoUserCode
                    && since.elapsed() > PATIENCE
                    && stopped.difference(&ended).next().is_some()
                    && unstopped.all(|&t| sleeps_in_kernel(pid, t))
                    && complete(pid, &seized)
                {
                    break 'outer;
                } else if strictness == Strictness::NoUserCode
                    && since.elapsed() > if read { LATE } else { PATIENCE }
                    && stopped.is_empty()
                    && seized.iter().all(|&t| sleeps_in_kernel(pid, t))
                    && complete(pid, &seized)
                {
                    // Nobody runs, and nobody is there to run a call either: all wait, for a `vfork` say.
                    failure = Some(StopError::Timeout);
                    break 'outer;
                }
                spins += 1;
                if spins > SPINS {
                    crate::changes::wait_for_change(awaited, Duration::from_micros(200));
                } else {
                    std::thread::yield_now();
                }
            }
        }
        let tids: Vec<i32> = stopped.difference(&ended).copied().collect();
        let all = failure.is_none() && stopped.len() == seized.len();
        let workers = ended.iter().any(|&tid| is_worker(pid, tid));
        while workers && failure.is_none() && events.pending() {
            // A request of io_uring discards. Mending need not wait for it: memory of its own is discarded to zeros, too.
            events.read_one();
            read = true;
        }
        if failure.is_none() && tids.is_empty() {
            failure = Some(StopError::Gone);
        }
        // A followed process is traced between stops, too, and would have to be put back to sleep.
        let may_be_suspended =
            strictness == Strictness::NoUserCode || !self.followed.contains(&pid);
        let mut only_mend = None;
        if failure.is_none() && suspended && !may_be_suspended {
            only_mend = Some(StopError::Timeout);
        } else if failure.is_none()
            && strictness == Strictness::All
            && self.has_sharers(tids[0], process, all)
        {
            only_mend = Some(StopError::Shared);
        }
        let lax = failure.is_none() && strictness == Strictness::NoUserCode;
        if lax && all && self.sharers.is_due(pid) {
            self.has_sharers(tids[0], process, true);
        }
        if !read {
            failure = failure.or(only_mend.take());
        }
        for &tid in seized.iter().filter(|t| !stopped.contains(t)) {
            let held = if self.followed.contains(&pid) {
                Held::Followed
            } else {
                Held::Straggler
            };
            self.held.insert(tid, (pid, held));
        }
        let now_stopped = Stopped {
            pid,
            tids,
            since,
            suspended,
            workers,
            all,
            only_mend,
            worker: RefCell::new(None),
        };
        match failure {
            None => Ok(now_stopped),
            Some(e) => {
                self.release(now_stopped);
                Err(e)
            }
        }
    }

    fn has_sharers(&mut self, tid: i32, process: &Process, stopped: bool) -> bool {
        let asker = Asker {
            pid: process.pid,
            pidfd: &Arc::downgrade(&process.pidfd),
            tid,
            stopped,
        };
        !remedies::without("sharers") && self.sharers.any(asker)
    }

    /// Whether another process, which does not stop with this one, runs in its memory. Whoever it gives birth to meanwhile
    /// may be missed.
    pub fn shared(&mut self, process: &Process) -> bool {
        self.has_sharers(sys::memory_tid(process.pid), process, false)
    }

    /// The same of one that is stopped: nobody is missed where all of its threads are.
    pub fn shared_when_stopped(&mut self, process: &Process, stopped: &Stopped) -> bool {
        self.has_sharers(stopped.memory(), process, stopped.all)
    }

    /// The processes that were found to run in the memory of `pid`, when last asked.
    pub fn sharers_of(&self, pid: i32) -> Vec<i32> {
        self.sharers.of(pid)
    }

    /// Seizes and interrupts threads not yet in `seized`; whether there were any.
    fn seize_new(
        &mut self,
        process: &Process,
        seized: &mut BTreeSet<i32>,
        stopped: &mut BTreeSet<i32>,
        ended: &mut BTreeSet<i32>,
    ) -> Result<bool, StopError> {
        let pid = process.pid;
        let options = if self.followed.contains(&pid) {
            FOLLOW_OPTIONS
        } else {
            PLAIN_OPTIONS
        };
        let mut new = false;
        for tid in process.threads().map_err(|_| StopError::Gone)? {
            if seized.contains(&tid) {
                continue;
            }
            let interrupt = match self.held.remove(&tid) {
                Some((_, Held::Straggler)) => false, // seized and interrupted already
                Some((_, Held::Waiting)) => {
                    stopped.insert(tid);
                    false
                }
                Some((_, Held::Followed | Held::Newborn)) => true,
                None if is_worker(pid, tid) => {
                    // It is in the list, and that is all.
                    stopped.insert(tid);
                    ended.insert(tid);
                    false
                }
                None => {
                    match ptrace(libc::PTRACE_SEIZE, tid, options as usize) {
                        Ok(()) => {}
                        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
                        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                            // A thread born under a followed one is ours without being seized.
                            if !traced_by_us(pid, tid) {
                                if thread_ended(pid, tid) {
                                    continue;
                                }
                                return Err(StopError::Refused(e));
                            }
                        }
                        Err(e) => return Err(StopError::Refused(e)),
                    }
                    true
                }
            };
            if interrupt && ptrace(libc::PTRACE_INTERRUPT, tid, 0).is_err() {
                continue;
            }
            seized.insert(tid);
            new = true;
        }
        Ok(new)
    }

    /// A ptrace event of a followed process. The thread is resumed; children wait.
    fn on_event(&mut self, pid: i32, tid: i32, event: i32) {
        match event {
            EVENT_FORK => {
                let child = event_message(tid);
                self.held.insert(child, (child, Held::Newborn));
                self.news.push(News::Forked { parent: pid, child });
                let _ = resume(tid, 0);
            }
            EVENT_VFORK => {
                let child = event_message(tid);
                if same_memory(tid, child) {
                    // It borrows the memory, which stays guarded through the parent; it soon executes or ends.
                    self.held.insert(child, (child, Held::Straggler));
                } else {
                    // Its parent waits for it, but it has memory of its own (`CLONE_VFORK` without `CLONE_VM`).
                    self.held.insert(child, (child, Held::Newborn));
                    self.news.push(News::Forked { parent: pid, child });
                }
                let _ = resume(tid, 0);
            }
            EVENT_CLONE => {
                let thread = event_message(tid);
                // Not another process (clone without CLONE_THREAD is told as a clone, too)?
                if std::path::Path::new(&format!("/proc/{pid}/task/{thread}")).exists() {
                    self.held.entry(thread).or_insert((pid, Held::Followed));
                } else {
                    self.held.insert(thread, (thread, Held::Newborn));
                    self.news.push(News::Forked {
                        parent: pid,
                        child: thread,
                    });
                }
                let _ = resume(tid, 0);
            }
            EVENT_EXEC => {
                self.followed.remove(&pid);
                self.held.retain(|_, (p, _)| *p != pid);
                self.news.push(News::Executed { pid });
                let _ = ptrace(libc::PTRACE_DETACH, tid, 0);
            }
            _ => drop(resume(tid, 0)),
        }
    }

    /// Lets a stopped thread go, back into suspension if it was found in it.
    fn let_go(&mut self, pid: i32, tid: i32, suspended: bool, ran: bool) {
        if !self.followed.contains(&pid) {
            if ptrace(libc::PTRACE_DETACH, tid, 0).is_err() {
                // It was killed meanwhile: its parent learns of that only when its tracer has taken note.
                self.held.insert(tid, (pid, Held::Straggler));
            }
            return;
        }
        // Where this fails it was killed meanwhile: held, so that its end is taken note of.
        let _ = if suspended && !ran {
            ptrace(libc::PTRACE_LISTEN, tid, 0)
        } else {
            if suspended {
                // It has left its suspension to run injected code: stopped at once, it is found in it again.
                let _ = ptrace(libc::PTRACE_INTERRUPT, tid, 0);
            }
            resume(tid, 0)
        };
        self.held.insert(tid, (pid, Held::Followed));
    }

    /// Lets all threads go; returns how long the process stood still. Where a list is unfinished they are let go as soon
    /// as it is done ([`Self::tend`]): until then memory may be missing that they would touch.
    pub fn release(&mut self, stopped: Stopped) -> Duration {
        if stopped.unfinished().is_some() {
            let pause = stopped.since.elapsed();
            self.stalled.push(stopped);
            return pause;
        }
        let mut worker = None;
        if let Some(w) = stopped.worker.take() {
            // Mask first: until the registers are back the thread would still leave through its frame.
            let _ = set_signal_mask(w.tid, w.mask);
            let _ = w.regs.set(w.tid);
            worker = Some(w.tid);
        }
        if self.planted.take_if(|pid| *pid == stopped.pid).is_some() {
            for &tid in &stopped.tids {
                self.transfers.go_on(stopped.pid, tid, stopped.suspended);
            }
        }
        for &tid in &stopped.tids {
            self.let_go(stopped.pid, tid, stopped.suspended, worker == Some(tid));
        }
        let pause = stopped.since.elapsed();
        for (pid, tid, signal) in self.owed.drain(..) {
            // SAFETY: no pointers. A thread that has ended meanwhile makes this fail, which loses nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
        }
        pause
    }

    /// Stopped process `pid` has got a workshop: what its stop has cut short can go on when it is released.
    pub fn planted(&mut self, pid: i32, room: Room) {
        self.transfers.know(pid, room);
        self.planted = Some(pid);
    }

    /// Keeps `pid` traced between stops, from its next stop on, so that its forks are told of.
    ///
    /// For users without the capability that userfaultfd asks for. It costs the process a short detour for each
    /// signal, fork and new thread, and keeps debuggers away.
    pub fn follow(&mut self, pid: i32) {
        self.followed.insert(pid);
    }

    /// Ends following; threads are released at their next stop, which `stopped`'s release brings about.
    pub fn unfollow(&mut self, pid: i32) {
        self.followed.remove(&pid);
    }

    /// What followed processes did since last asked.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// The child that was told of as forked may run; it is followed like its parent if `follow`.
    pub fn start_child(&mut self, child: i32, follow: bool) {
        if !matches!(
            self.held.get(&child),
            Some((_, Held::Newborn | Held::Waiting))
        ) {
            return;
        }
        if follow {
            self.followed.insert(child);
            self.held.insert(child, (child, Held::Followed));
        } else {
            self.held.insert(child, (child, Held::Straggler));
        }
        // It may have been found stopped before (nothing is reported twice): let it go as far as it can.
        self.let_go(child, child, false, false);
    }

    /// Remembers a signal that was taken from a thread while it ran injected code.
    pub fn owe(&mut self, pid: i32, tid: i32, signal: i32) {
        self.owed.push((pid, tid, signal));
    }

    /// Acts on a signal that a thread in the middle of `list` has stopped for; whether it is through. If not it goes on.
    pub fn on_list_signal(
        &mut self,
        pid: i32,
        tid: i32,
        list: &mut List,
        signal: i32,
    ) -> io::Result<bool> {
        if signal == REPORT_SIGNAL && Regs::get(tid)?.ip() == list.done {
            return Ok(true);
        }
        if matches!(signal, libc::SIGSEGV | libc::SIGBUS) && is_fault(tid) {
            // An operation met memory that cannot be had: it failed, the list goes on.
            list.faults_left = list
                .faults_left
                .checked_sub(1)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
            let mut faulted = Regs::get(tid)?;
            faulted.fail_operation(list.base);
            faulted.set(tid)?;
        } else {
            self.owe(pid, tid, signal);
        }
        resume(tid, 0)?;
        Ok(false)
    }

    /// Looks after processes that could not be let go, since a list was unfinished.
    fn tend_stalled(&mut self) {
        for stopped in std::mem::take(&mut self.stalled) {
            let Some((tid, mut list)) = stopped.unfinished() else {
                continue;
            };
            let ended = thread_ended(stopped.pid, tid);
            let through = match poll(tid) {
                Wait::Nothing if !ended => Ok(false),
                Wait::Nothing | Wait::Ended => {
                    stopped.worker.take();
                    Ok(true)
                }
                Wait::Signal(signal) => self.on_list_signal(stopped.pid, tid, &mut list, signal),
                Wait::Interrupted | Wait::Suspended | Wait::Event(_) => {
                    resume(tid, 0).map(|()| false)
                }
            };
            // Where something failed but for too many faults, it is ending, and is found so the next time.
            let hopeless = matches!(&through, Err(e) if e.raw_os_error() == Some(libc::EFAULT));
            if let Some(w) = &mut *stopped.worker.borrow_mut() {
                w.unfinished = (!hopeless && !matches!(through, Ok(true))).then_some(list);
            }
            self.release(stopped);
        }
    }

    /// The threads that are held outside of a stop.
    pub fn held(&self) -> Vec<i32> {
        let stalled = self.stalled.iter().flat_map(|s| &s.tids);
        self.held.keys().chain(stalled).copied().collect()
    }

    /// Looks after threads that are held outside of a stop. True while some is awaited soon.
    pub fn tend(&mut self) -> bool {
        self.tend_stalled();
        let tids: Vec<i32> = self.held.keys().copied().collect();
        let mut awaited = false;
        for tid in tids {
            let Some(&(pid, held)) = self.held.get(&tid) else {
                continue;
            };
            match (poll(tid), held) {
                (Wait::Nothing, Held::Followed | Held::Waiting) => {}
                (Wait::Nothing, _) => awaited = true,
                (Wait::Ended, _) => {
                    self.held.remove(&tid);
                    if tid == pid {
                        self.followed.remove(&pid);
                    }
                }
                (Wait::Signal(signal), _) => {
                    self.transfers.go_on_if_ignored(pid, tid, signal);
                    let _ = resume(tid, signal);
                }
                (Wait::Event(event), _) => self.on_event(pid, tid, event),
                (Wait::Interrupted, Held::Followed) => {
                    self.transfers.go_on(pid, tid, false);
                    let _ = resume(tid, 0);
                }
                // Stays suspended, but wakes when the process is continued.
                (Wait::Suspended, Held::Followed) => drop(ptrace(libc::PTRACE_LISTEN, tid, 0)),
                (Wait::Interrupted | Wait::Suspended, Held::Newborn | Held::Waiting) => {
                    self.held.insert(tid, (pid, Held::Waiting));
                }
                (stop @ (Wait::Interrupted | Wait::Suspended), Held::Straggler) => {
                    self.transfers.go_on(pid, tid, stop == Wait::Suspended);
                    if ptrace(libc::PTRACE_DETACH, tid, 0).is_ok() {
                        self.held.remove(&tid);
                    }
                }
            }
        }
        awaited
    }
}

/// How long threads that still run are waited for once a discard has been let happen.
const MENDING: Duration = Duration::from_secs(1);
/// Polls before sleeping: stops mostly come within microseconds.
const SPINS: u32 = 30;
/// How long threads that run are waited for before those that sleep in the kernel are looked at.
const PATIENCE: Duration = Duration::from_millis(5);
/// The same once an event has been read: whoever waited with it is on its way to its stop.
const LATE: Duration = Duration::from_millis(20);

/// Whether the thread sleeps where no interrupt reaches it: it executes no instruction of the program.
fn sleeps_in_kernel(pid: i32, tid: i32) -> bool {
    matches!(thread_state(pid, tid), None | Some('D' | 'Z' | 'X'))
}

/// Whether `seized` are all the threads that `pid` has.
fn complete(pid: i32, seized: &BTreeSet<i32>) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // The 18th field after the name, counted from the state.
    let counted = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(17))
        .and_then(|n| n.parse::<usize>().ok());
    let Some(counted) = counted else { return true };
    let task = |t: &i32| std::path::Path::new(&format!("/proc/{pid}/task/{t}")).exists();
    let leader_ended = !seized.contains(&pid) && thread_ended(pid, pid);
    seized.iter().filter(|t| task(t)).count() + usize::from(leader_ended) >= counted
}

fn traced_by_us(pid: i32, tid: i32) -> bool {
    sys::tracer_of(pid, tid) == Some(crate::changes::own_tid())
}

/// Stops all threads of `pid` and releases them, `times` in succession, `apart` from each other, and does nothing in
/// between; how long it stood still each time. What no work inside of a stop can be shorter than: for benchmarks.
pub fn bare_stops(pid: i32, times: usize, apart: Duration) -> io::Result<Vec<Duration>> {
    let process = Process::open(pid)?;
    let mut tracer = Tracer::default();
    (0..times)
        .map(|_| {
            std::thread::sleep(apart);
            tracer
                .stop(
                    &process,
                    Duration::from_secs(1),
                    Strictness::All,
                    &mut NoEvents,
                )
                .map(|stopped| tracer.release(stopped))
                .map_err(StopError::into_io)
        })
        .collect()
}

//! Stopping every thread of a process for a moment, and letting all of them go.
//!
//! Threads are seized for the stop and detached after it, so that between stops the process is not traced. A thread that does not stop in time is released as soon as it does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use crate::arch::Regs;
use crate::sys::check;

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
}

impl StopError {
    /// As an error of the operating system.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Gone => io::Error::from_raw_os_error(libc::ESRCH),
            Self::Timeout => io::Error::from_raw_os_error(libc::ETIMEDOUT),
            Self::Refused(e) => e,
        }
    }
}

fn ptrace(request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
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

/// Asks once what became of thread `tid`, without waiting.
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

/// Runs one instruction of a stopped thread.
pub fn single_step(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SINGLESTEP, tid, 0)
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
    // SAFETY: the kernel reads 8 bytes, the size stated, from a live u64.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, 8, &mask) }).map(drop)
}

/// The threads of process `pid` now.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Ok(tid) = entry?.file_name().to_string_lossy().parse() {
            out.push(tid);
        }
    }
    Ok(out)
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
    /// Its CPU time before.
    pub cpu: Duration,
}

impl Stopped {
    /// CPU time that the target has spent on injected code in this stop.
    pub fn injected(&self) -> Duration {
        let worker = self.worker.borrow();
        worker.as_ref().map_or(Duration::ZERO, |w| {
            cpu_of(self.pid, w.tid).saturating_sub(w.cpu)
        })
    }
}

/// CPU time of a thread so far; exact for one that is stopped.
pub fn cpu_of(pid: i32, tid: i32) -> Duration {
    let text = read_small(&format!("/proc/{pid}/task/{tid}/schedstat"));
    let text = String::from_utf8_lossy(&text);
    Duration::from_nanos(
        text.split_ascii_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0),
    )
}

/// The beginning of a small file of /proc, in one read; empty if it cannot be read.
pub fn read_small(path: &str) -> Vec<u8> {
    let mut buffer = vec![0u8; 4096];
    let n = File::open(path)
        .and_then(|mut f| f.read(&mut buffer))
        .unwrap_or(0);
    buffer.truncate(n);
    buffer
}

/// Events of the target that must be read before some thread can stop.
pub trait Events {
    /// Whether an event waits to be read.
    fn pending(&self) -> bool;
    /// Reads the oldest event. All threads that existed when it was posted have been interrupted.
    fn read_one(&mut self);
}

/// No events to read.
pub struct NoEvents;

impl Events for NoEvents {
    fn pending(&self) -> bool {
        false
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
    | libc::PTRACE_O_TRACEEXEC;

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
}

impl Default for Tracer {
    fn default() -> Self {
        // Stops of tracees are announced by SIGCHLD; blocked, it can be waited for.
        // SAFETY: a live signal set; only this thread's mask changes.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        }
        Self {
            held: BTreeMap::new(),
            followed: BTreeSet::new(),
            news: Vec::new(),
            owed: Vec::new(),
        }
    }
}

/// Sleeps until some tracee changes state, at most for `timeout`.
pub fn wait_for_change(timeout: Duration) {
    let t = libc::timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: live arguments; no information about the signal is asked for.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigtimedwait(&set, std::ptr::null_mut(), &t);
    }
}

fn event_message(tid: i32) -> i32 {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes one unsigned long into a live one.
    unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &mut message) };
    message as i32
}

impl Tracer {
    /// Stops all threads of `pid`.
    ///
    /// A thread that waits for its event to be read cannot stop, and runs on as soon as it has been read: so each
    /// event is read only after all threads, also new ones, have been interrupted.
    pub fn stop(
        &mut self,
        pid: i32,
        timeout: Duration,
        events: &mut dyn Events,
    ) -> Result<Stopped, StopError> {
        let since = Instant::now();
        let mut seized = BTreeSet::new();
        let mut stopped = BTreeSet::new();
        let mut ended = BTreeSet::new();
        let mut failure = None;
        let mut suspended = false;
        'outer: loop {
            match self.seize_new(pid, &mut seized, &mut stopped) {
                Ok(true) => {}
                // A running thread may create another before it stops: done when no new one is found.
                Ok(false) => break,
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
                            stopped.insert(tid);
                        }
                        Wait::Ended => {
                            ended.insert(tid);
                            stopped.insert(tid);
                        }
                        Wait::Suspended => {
                            suspended = true;
                            stopped.insert(tid);
                        }
                        // The interrupt is still due and stops the thread right after this.
                        Wait::Signal(signal) => drop(resume(tid, signal)),
                        Wait::Event(event) => self.on_event(pid, tid, event),
                    }
                }
                if stopped.len() == seized.len() {
                    break;
                }
                if since.elapsed() > timeout {
                    failure = Some(StopError::Timeout);
                    break 'outer;
                }
                if events.pending() {
                    if let Err(e) = self.seize_new(pid, &mut seized, &mut stopped) {
                        failure = Some(e);
                        break 'outer;
                    }
                    events.read_one();
                }
                spins += 1;
                if spins > SPINS {
                    wait_for_change(Duration::from_micros(200));
                } else {
                    std::thread::yield_now();
                }
            }
        }
        let tids: Vec<i32> = seized.difference(&ended).copied().collect();
        if failure.is_none() && tids.is_empty() {
            failure = Some(StopError::Gone);
        }
        if failure.is_none() && suspended {
            failure = Some(StopError::Timeout);
        }
        let Some(e) = failure else {
            return Ok(Stopped {
                pid,
                tids,
                since,
                worker: RefCell::new(None),
            });
        };
        for tid in seized {
            if stopped.contains(&tid) {
                self.let_go(pid, tid);
            } else {
                let held = if self.followed.contains(&pid) {
                    Held::Followed
                } else {
                    Held::Straggler
                };
                self.held.insert(tid, (pid, held));
            }
        }
        Err(e)
    }

    /// Seizes and interrupts threads not yet in `seized`; whether there were any.
    fn seize_new(
        &mut self,
        pid: i32,
        seized: &mut BTreeSet<i32>,
        stopped: &mut BTreeSet<i32>,
    ) -> Result<bool, StopError> {
        let options = if self.followed.contains(&pid) {
            FOLLOW_OPTIONS
        } else {
            0
        };
        let mut new = false;
        for tid in threads(pid).map_err(|_| StopError::Gone)? {
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
                // The child borrows the memory, which stays guarded through the parent; it soon executes or ends.
                let child = event_message(tid);
                self.held.insert(child, (child, Held::Straggler));
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

    fn let_go(&mut self, pid: i32, tid: i32) {
        if self.followed.contains(&pid) {
            if resume(tid, 0).is_ok() {
                self.held.insert(tid, (pid, Held::Followed));
            }
        } else {
            let _ = ptrace(libc::PTRACE_DETACH, tid, 0);
        }
    }

    /// Lets all threads go; returns how long the process stood still.
    pub fn release(&mut self, stopped: Stopped) -> Duration {
        if let Some(w) = stopped.worker.take() {
            // Mask first: until the registers are back the thread would still leave through its frame.
            let _ = set_signal_mask(w.tid, w.mask);
            let _ = w.regs.set(w.tid);
        }
        for &tid in &stopped.tids {
            self.let_go(stopped.pid, tid);
        }
        let pause = stopped.since.elapsed();
        for (pid, tid, signal) in self.owed.drain(..) {
            // SAFETY: no pointers. A thread that has ended meanwhile makes this fail, which loses nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
        }
        pause
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
        self.let_go(child, child);
    }

    /// Remembers a signal that was taken from a thread while it ran injected code.
    pub fn owe(&mut self, pid: i32, tid: i32, signal: i32) {
        self.owed.push((pid, tid, signal));
    }

    /// Looks after threads that are held outside of a stop. True while some is awaited soon.
    pub fn tend(&mut self) -> bool {
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
                (Wait::Signal(signal), _) => drop(resume(tid, signal)),
                (Wait::Event(event), _) => self.on_event(pid, tid, event),
                (Wait::Interrupted, Held::Followed) => drop(resume(tid, 0)),
                // Stays suspended, but wakes when the process is continued.
                (Wait::Suspended, Held::Followed) => drop(ptrace(libc::PTRACE_LISTEN, tid, 0)),
                (Wait::Interrupted | Wait::Suspended, Held::Newborn | Held::Waiting) => {
                    self.held.insert(tid, (pid, Held::Waiting));
                }
                (Wait::Interrupted | Wait::Suspended, Held::Straggler) => {
                    let _ = ptrace(libc::PTRACE_DETACH, tid, 0);
                    self.held.remove(&tid);
                }
            }
        }
        awaited
    }
}

/// Polls before sleeping: stops mostly come within microseconds.
const SPINS: u32 = 30;

fn traced_by_us(pid: i32, tid: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")) else {
        return false;
    };
    let tracer = status
        .lines()
        .find_map(|l| l.strip_prefix("TracerPid:"))
        .map(str::trim);
    tracer == Some(&std::process::id().to_string())
}

/// Whether the thread is a zombie or gone.
fn thread_ended(pid: i32, tid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")) {
        Ok(s) => s
            .rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

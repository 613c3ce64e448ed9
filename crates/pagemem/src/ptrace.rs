//! Stopping every thread of a process for a moment, and letting all of them go.
//!
//! Threads are seized for the stop and detached after it, so that between stops the process is not traced. A thread that does not stop in time is released as soon as it does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

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

/// The one tracer of this process: knows which threads are seized.
#[derive(Default)]
pub struct Tracer {
    /// Seized threads that run: released (or resumed) as soon as they stop. Value: their process.
    stragglers: BTreeMap<i32, i32>,
    /// Signals taken from a thread while it ran injected code; sent again after its release.
    owed: Vec<(i32, i32, i32)>,
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
        let mut failure = None;
        let mut suspended = false;
        'outer: loop {
            match self.seize_new(pid, &mut seized) {
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
                        Wait::Ended | Wait::Interrupted => {
                            stopped.insert(tid);
                        }
                        Wait::Suspended => {
                            suspended = true;
                            stopped.insert(tid);
                        }
                        Wait::Signal(signal) => drop(resume(tid, signal)),
                        Wait::Event(_) => drop(resume(tid, 0)),
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
                    if let Err(e) = self.seize_new(pid, &mut seized) {
                        failure = Some(e);
                        break 'outer;
                    }
                    events.read_one();
                }
                spins += 1;
                if spins > 50 {
                    std::thread::sleep(Duration::from_micros(50));
                } else {
                    std::thread::yield_now();
                }
            }
        }
        let tids: Vec<i32> = seized.iter().copied().filter(|t| alive(pid, *t)).collect();
        if failure.is_none() && tids.is_empty() {
            failure = Some(StopError::Gone);
        }
        if failure.is_none() && suspended {
            failure = Some(StopError::Timeout);
        }
        match failure {
            None => Ok(Stopped { pid, tids, since }),
            Some(e) => {
                for tid in seized {
                    if stopped.contains(&tid) {
                        let _ = ptrace(libc::PTRACE_DETACH, tid, 0);
                    } else {
                        self.stragglers.insert(tid, pid);
                    }
                }
                Err(e)
            }
        }
    }

    /// Seizes and interrupts threads not yet in `seized`; whether there were any.
    fn seize_new(&mut self, pid: i32, seized: &mut BTreeSet<i32>) -> Result<bool, StopError> {
        let mut new = false;
        for tid in threads(pid).map_err(|_| StopError::Gone)? {
            if seized.contains(&tid) {
                continue;
            }
            // A straggler is still seized and interrupted from a stop that timed out.
            if self.stragglers.remove(&tid).is_none() {
                match ptrace(libc::PTRACE_SEIZE, tid, 0) {
                    Ok(()) => {}
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
                    Err(e) if e.raw_os_error() == Some(libc::EPERM) && thread_ended(pid, tid) => {
                        continue
                    }
                    Err(e) => return Err(StopError::Refused(e)),
                }
                if ptrace(libc::PTRACE_INTERRUPT, tid, 0).is_err() {
                    continue;
                }
            }
            seized.insert(tid);
            new = true;
        }
        Ok(new)
    }

    /// Lets all threads go; returns how long the process stood still.
    pub fn release(&mut self, stopped: Stopped) -> Duration {
        for &tid in &stopped.tids {
            let _ = ptrace(libc::PTRACE_DETACH, tid, 0);
        }
        let pause = stopped.since.elapsed();
        for (pid, tid, signal) in self.owed.drain(..) {
            // SAFETY: no pointers. A thread that has ended meanwhile makes this fail, which loses nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
        }
        pause
    }

    /// Remembers a signal that was taken from a thread while it ran injected code.
    pub fn owe(&mut self, pid: i32, tid: i32, signal: i32) {
        self.owed.push((pid, tid, signal));
    }

    /// Releases threads that have stopped too late. True while some are still awaited.
    pub fn tend(&mut self) -> bool {
        self.stragglers.retain(|&tid, _| match poll(tid) {
            Wait::Nothing => true,
            Wait::Ended => false,
            Wait::Signal(signal) => {
                // The interrupt is still due: it stops the thread again right after the signal's delivery.
                resume(tid, signal).is_ok()
            }
            Wait::Event(_) => resume(tid, 0).is_ok(),
            Wait::Interrupted | Wait::Suspended => {
                let _ = ptrace(libc::PTRACE_DETACH, tid, 0);
                false
            }
        });
        !self.stragglers.is_empty()
    }
}

fn alive(pid: i32, tid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists() && !thread_ended(pid, tid)
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

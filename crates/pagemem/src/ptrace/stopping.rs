//! Stopping all threads of a process, and resuming them.
//!
//! Called for targets ([`crate::target`]), and by benchmarks. What a stop leaves held is looked after by [`super::held`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use super::{Events, Failed, Held, Kernel, NoEvents, StopError, Stopped, Strictness, Tracer};
use crate::failpoints;
use crate::process::Process;
use crate::requests::{set_signal_mask, Wait, FOLLOW_OPTIONS, PLAIN_OPTIONS};

/// How long threads that still run are waited for once a discard has been let happen.
const ZERO_FILLING: Duration = Duration::from_secs(1);
/// How much longer, where those that still run only wait for a processor: they execute nothing meanwhile, and what has been
/// read of cannot be zero-filled without them.
const STARVED: Duration = Duration::from_secs(8);
/// How often threads are looked at that have told of nothing.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// How long threads that run are waited for before those that sleep in the kernel are looked at.
const PATIENCE: Duration = Duration::from_millis(5);
/// The same once an event has been read: whoever waited with it is on its way to its stop.
const LATE: Duration = Duration::from_millis(20);

impl Tracer {
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
        self.try_stop(process, timeout, strictness, events)
            .map_err(|failed| self.give_up(failed))
    }

    /// Resumes what a stop that has failed did stop.
    pub fn give_up(&mut self, failed: Failed) -> StopError {
        if let Some(stopped) = failed.stopped {
            self.release(*stopped);
        }
        failed.error
    }

    /// The same, for whoever has something to do before those threads go on that a stop has stopped in vain.
    pub fn try_stop(
        &mut self,
        process: &Process,
        timeout: Duration,
        strictness: Strictness,
        events: &mut dyn Events,
    ) -> Result<Stopped, Failed> {
        let kernel = self.kernel;
        let since = kernel.now();
        let pid = process.pid;
        if self.stalled.iter().any(|s| s.pid == pid) {
            return Err(Failed {
                error: StopError::Timeout,
                stopped: None,
            });
        }
        let mut seized = BTreeSet::new();
        let mut stopped = BTreeSet::new();
        let mut ended = BTreeSet::new();
        let mut failure = None;
        let mut suspended = false;
        // Once a discard has happened, no thread may go on before its pages are zero-filled.
        let mut read = false;
        let most = |read: bool| {
            if read {
                timeout.max(ZERO_FILLING)
            } else {
                timeout
            }
        };
        let mut starved = Duration::ZERO;
        'outer: loop {
            match self.seize_new(process, &mut seized, &mut stopped, &mut ended) {
                Ok(true) => {}
                // A running thread may create another before it stops: done when no new one is found. The kernel cuts
                // the list short where a thread ends while it is read, so it is held against the number of threads.
                Ok(false) if kernel.are_all(pid, &seized) => break,
                Ok(false) if kernel.now() - since > most(read) => {
                    failure = Some(StopError::Timeout);
                    break;
                }
                Ok(false) => {}
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
            loop {
                for &tid in &seized {
                    if stopped.contains(&tid) {
                        continue;
                    }
                    match kernel.poll(tid) {
                        Wait::Nothing => {}
                        Wait::Interrupted => {
                            // At once: should this process die, what was cut short would stay so.
                            kernel.go_on(&mut self.transfers, pid, tid, false);
                            stopped.insert(tid);
                        }
                        Wait::Ended => {
                            ended.insert(tid);
                            stopped.insert(tid);
                        }
                        Wait::Suspended => {
                            suspended = true;
                            kernel.go_on(&mut self.transfers, pid, tid, true);
                            stopped.insert(tid);
                            if failpoints::active("suspended") {
                                failure = Some(StopError::Timeout);
                                break 'outer;
                            }
                        }
                        // The interrupt is still due and stops the thread right after this.
                        Wait::Signal(signal) => {
                            kernel.go_on_if_ignored(&mut self.transfers, pid, tid, signal);
                            let _ = kernel.request(libc::PTRACE_CONT, tid, signal as usize);
                        }
                        Wait::Event(event) => self.on_event(pid, tid, event),
                    }
                }
                if stopped.len() == seized.len() {
                    // Mostly these were all; with threads that begin or end meanwhile, the list is read again.
                    if ended.is_empty() && kernel.thread_count(process) == seized.len() {
                        break 'outer;
                    }
                    break;
                }
                let mut unstopped = seized.iter().filter(|t| !stopped.contains(t));
                if kernel.now() - since > most(read) + starved {
                    let zero_fills = read || strictness == Strictness::NoUserCode;
                    let late = zero_fills && starved < STARVED;
                    if !late
                        || !unstopped
                            .clone()
                            .any(|&t| kernel.state(pid, t) == Some('R'))
                    {
                        failure = Some(StopError::Timeout);
                        break 'outer;
                    }
                    starved += LATE;
                }
                let mut awaited = events.descriptor();
                if events.pending() {
                    awaited = None;
                    if let Err(e) = self.seize_new(process, &mut seized, &mut stopped, &mut ended) {
                        failure = Some(e);
                        break 'outer;
                    }
                    // One that has stopped does not lose its memory by ending.
                    let alive = stopped.difference(&ended).next();
                    let alive = alive.or_else(|| {
                        let mut others = seized.difference(&ended);
                        others.find(|&&tid| kernel.has_memory(pid, tid))
                    });
                    if alive.is_some_and(|&tid| self.has_sharers(tid, process, false)) {
                        // It may be theirs, and they would run on.
                        failure = Some(StopError::Shared);
                        break 'outer;
                    }
                    // The reader lets a discard happen: while a thread still runs, it could see what lies beneath.
                    let mut unstopped = seized.iter().filter(|t| !stopped.contains(t));
                    if kernel.now() - since > PATIENCE
                        || unstopped.all(|&t| sleeps_in_kernel(kernel, pid, t))
                    {
                        events.read_one();
                        read = true;
                        continue;
                    }
                } else if strictness == Strictness::NoUserCode
                    && kernel.now() - since > PATIENCE
                    && stopped.difference(&ended).next().is_some()
                    && unstopped.all(|&t| sleeps_in_kernel(kernel, pid, t))
                    && kernel.are_all(pid, &seized)
                {
                    break 'outer;
                } else if strictness == Strictness::NoUserCode
                    && kernel.now() - since > if read { LATE } else { PATIENCE }
                    && stopped.is_empty()
                    && seized.iter().all(|&t| sleeps_in_kernel(kernel, pid, t))
                    && kernel.are_all(pid, &seized)
                {
                    // Nobody runs, and nobody is there to run a call either: all wait, for a `vfork` say.
                    failure = Some(StopError::Timeout);
                    break 'outer;
                }
                // Not by yielding: that gives whoever keeps the processors busy more than one turn.
                kernel.wait(awaited, LOOK_EVERY);
            }
        }
        let tids: Vec<i32> = stopped.difference(&ended).copied().collect();
        let all = failure.is_none() && stopped.len() == seized.len();
        let workers = ended.iter().any(|&tid| kernel.is_worker(pid, tid));
        while workers && failure.is_none() && events.pending() {
            // A request of io_uring discards. Zero-filling need not wait for it: memory of its own is discarded to
            // zeros, too.
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
            woken: RefCell::default(),
            worker: RefCell::new(None),
        };
        match failure {
            None => Ok(now_stopped),
            Some(error) => Err(Failed {
                error,
                stopped: Some(Box::new(now_stopped)),
            }),
        }
    }

    /// Seizes and interrupts threads not yet in `seized`; whether there were any.
    fn seize_new(
        &mut self,
        process: &Process,
        seized: &mut BTreeSet<i32>,
        stopped: &mut BTreeSet<i32>,
        ended: &mut BTreeSet<i32>,
    ) -> Result<bool, StopError> {
        let (kernel, pid) = (self.kernel, process.pid);
        let options = if self.followed.contains(&pid) {
            FOLLOW_OPTIONS
        } else {
            PLAIN_OPTIONS
        };
        let mut new = false;
        for tid in kernel.threads(process).map_err(|_| StopError::Gone)? {
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
                None if kernel.is_worker(pid, tid) => {
                    // It is in the list of threads, and that is all.
                    stopped.insert(tid);
                    ended.insert(tid);
                    false
                }
                None => {
                    match kernel.request(libc::PTRACE_SEIZE, tid, options as usize) {
                        Ok(()) => {}
                        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
                        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                            // A thread born under a followed one is ours without being seized.
                            if !kernel.is_ours(pid, tid) {
                                if matches!(kernel.state(pid, tid), None | Some('Z' | 'X')) {
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
            if interrupt && kernel.request(libc::PTRACE_INTERRUPT, tid, 0).is_err() {
                continue;
            }
            seized.insert(tid);
            new = true;
        }
        Ok(new)
    }

    /// Resumes a stopped thread, back into suspension if it was found in it.
    pub(super) fn resume_thread(&mut self, pid: i32, tid: i32, suspended: bool, ran: bool) {
        let kernel = self.kernel;
        if !self.followed.contains(&pid) {
            if kernel.request(libc::PTRACE_DETACH, tid, 0).is_err() {
                // It was killed meanwhile: its parent learns of that only when its tracer has taken note.
                self.held.insert(tid, (pid, Held::Straggler));
            }
            return;
        }
        // Where this fails it was killed meanwhile: held, so that its end is taken note of.
        let _ = if suspended && !ran {
            kernel.request(libc::PTRACE_LISTEN, tid, 0)
        } else {
            if suspended {
                // It has left its suspension to run injected code: stopped at once, it is found in it again.
                let _ = kernel.request(libc::PTRACE_INTERRUPT, tid, 0);
            }
            kernel.request(libc::PTRACE_CONT, tid, 0)
        };
        self.held.insert(tid, (pid, Held::Followed));
    }

    /// Resumes all threads; returns how long the process stood still. Where a syscall batch is unfinished they are
    /// resumed as soon as it is done ([`Self::tend`]): until then memory may be missing that they would touch.
    pub fn release(&mut self, stopped: Stopped) -> Duration {
        if stopped.unfinished().is_some() {
            let pause = self.kernel.now() - stopped.since;
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
                self.kernel
                    .go_on(&mut self.transfers, stopped.pid, tid, stopped.suspended);
            }
        }
        for &tid in &stopped.tids {
            let woken = stopped.woken.borrow().contains(&tid);
            let suspended = stopped.suspended || woken;
            self.resume_thread(stopped.pid, tid, suspended, woken || worker == Some(tid));
        }
        let pause = self.kernel.now() - stopped.since;
        for (pid, tid, signal) in self.owed.drain(..) {
            // SAFETY: no pointers. A thread that has ended meanwhile makes this fail, which loses nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
        }
        pause
    }
}

/// Whether the thread sleeps where no interrupt reaches it, or ends and has left the memory: it executes no instruction
/// of the program.
fn sleeps_in_kernel(kernel: &dyn Kernel, pid: i32, tid: i32) -> bool {
    matches!(kernel.state(pid, tid), None | Some('D' | 'Z' | 'X')) || !kernel.has_memory(pid, tid)
}

/// Stops all threads of `pid` and releases them, `times` in succession, `apart` from each other, and does nothing in
/// between; how long it stood still each time. What no work inside of a stop can be shorter than: for benchmarks.
pub fn bare_stops(pid: i32, times: usize, apart: Duration) -> io::Result<Vec<Duration>> {
    let stops = move || {
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
    };
    // In a thread of its own: a tracer blocks signals for good in the one that makes it.
    std::thread::spawn(stops)
        .join()
        .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

#[cfg(test)]
mod tests;

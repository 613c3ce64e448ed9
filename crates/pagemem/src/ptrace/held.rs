//! Threads that are held outside of a stop: of followed processes, too late for a stop, or in the middle of a syscall
//! batch.
//!
//! Called by the guardian's wards ([`crate::guard`]) between stops. Users whose userfaultfds are not told of forks have
//! targets followed, so that the tracer is.

use std::io;

use super::{Held, News, SyscallBatch, Tracer};
use crate::arch::{Regs, REPORT_SIGNAL};
use crate::requests::{event_message, is_fault, poll, ptrace, resume, Wait};
use crate::sharers::same_memory;
use crate::sys::thread_ended;

const EVENT_FORK: i32 = libc::PTRACE_EVENT_FORK;
const EVENT_VFORK: i32 = libc::PTRACE_EVENT_VFORK;
const EVENT_CLONE: i32 = libc::PTRACE_EVENT_CLONE;
const EVENT_EXEC: i32 = libc::PTRACE_EVENT_EXEC;

impl Tracer {
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
        // It may have been found stopped before (nothing is reported twice): resume it as far as it can go.
        self.resume_thread(child, child, false, false);
    }

    /// A ptrace event of a followed process. The thread is resumed; children wait.
    pub(super) fn on_event(&mut self, pid: i32, tid: i32, event: i32) {
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

    /// Remembers a signal that was taken from a thread while it ran injected code.
    pub fn owe(&mut self, pid: i32, tid: i32, signal: i32) {
        self.owed.push((pid, tid, signal));
    }

    /// Acts on a signal that a thread in the middle of `batch` has stopped for; whether it is through. If not it goes on.
    pub fn on_batch_signal(
        &mut self,
        pid: i32,
        tid: i32,
        batch: &mut SyscallBatch,
        signal: i32,
    ) -> io::Result<bool> {
        if signal == REPORT_SIGNAL && Regs::get(tid)?.ip() == batch.done {
            return Ok(true);
        }
        let mut passed_on = 0;
        if signal == libc::SIGSTOP {
            // Nothing holds it back, and sent again later it could come after the SIGCONT that is to end it. The kernel has
            // the process suspended when it is resumed, unless it is continued before; until then the batch goes on.
            passed_on = signal;
        } else if matches!(signal, libc::SIGSEGV | libc::SIGBUS) && is_fault(tid) {
            // An operation met memory that cannot be had: it failed, the batch goes on.
            batch.faults_left = batch
                .faults_left
                .checked_sub(1)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
            let mut faulted = Regs::get(tid)?;
            faulted.fail_operation(batch.base);
            faulted.set(tid)?;
        } else {
            self.owe(pid, tid, signal);
        }
        resume(tid, passed_on)?;
        Ok(false)
    }

    /// Looks after processes that could not be resumed, since a batch was unfinished.
    fn tend_stalled(&mut self) {
        for stopped in std::mem::take(&mut self.stalled) {
            let Some((tid, mut batch)) = stopped.unfinished() else {
                continue;
            };
            let ended = thread_ended(stopped.pid, tid);
            let through = match poll(tid) {
                Wait::Nothing if !ended => Ok(false),
                Wait::Nothing | Wait::Ended => {
                    stopped.worker.take();
                    Ok(true)
                }
                Wait::Signal(signal) => self.on_batch_signal(stopped.pid, tid, &mut batch, signal),
                stop => resume(tid, stopped.passed_on(tid, stop)).map(|()| false),
            };
            // Where something failed but for too many faults, it is ending, and is found so the next time.
            let hopeless = matches!(&through, Err(e) if e.raw_os_error() == Some(libc::EFAULT));
            if let Some(w) = &mut *stopped.worker.borrow_mut() {
                w.unfinished = (!hopeless && !matches!(through, Ok(true))).then_some(batch);
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

//! A target that cannot be stopped: another tracer has its threads, or another process runs in its memory and does not
//! stop with it, as a `vfork` child does. What it discards must read as zeros all the same.
//!
//! Its frames are watched *closely* meanwhile, which needs no stop: whoever touches a page that is not there waits
//! until the guardian has filled it. This begins before the event of a discard is read, for as long as that is not read
//! the discarding thread waits, and nothing has been discarded. So nobody ever sees what lies beneath. Which pages may
//! show their frames is known: those of all mappings of frames at the beginning, less what has been discarded since.
//! Everything else is zero: also what a mapping that is moved grows by, or leaves behind.
//!
//! The kernel itself does not wait (a userfaultfd of an ordinary user is for faults of the program alone): a system call
//! that meets a page which is not there fails with `EFAULT`. So what has been discarded is filled at once, and this state
//! ends as soon as the target can be stopped. While it lasts nothing is merged.

use std::io;
use std::time::{Duration, Instant};

use super::births::Born;
use super::close::Close;
use super::zero_fill::Piece;
use super::Target;
use crate::arch::nr;
use crate::failpoints;
use crate::process::Process;
use crate::ptrace::{Stopped, Strictness, Tracer};
use crate::ranges::Ranges;
use crate::sys::{self, FileId, PAGE};
use crate::uffd::Event;

/// Messages of one target that are answered before others get their turn.
const TURN: u32 = 256;
/// How long, after an event has been read, its discard is awaited to be filled.
const FILLING: Duration = Duration::from_millis(2);
/// How long a thread that frees frames is let wait for the target to be stopped, and how often that is tried.
const FREEING: Duration = Duration::from_millis(500);
const FREEING_EACH: Duration = Duration::from_millis(2);
/// A discard of more pages is filled as they are touched.
const FILLED_MAX: u64 = 1024 * PAGE;
/// Ends of frames that are remembered; what is more is found by the next check.
const OPENED_MAX: usize = 4096;
/// How long a target may take to stop so that it need not be watched closely any more.
const STOP_TIMEOUT: Duration = Duration::from_millis(50);

/// A system call that a thread waits in.
#[derive(Clone, Copy, Debug)]
struct Call {
    pid: i32,
    number: u64,
    args: [u64; 6],
}

impl Call {
    fn parse(pid: i32, text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
        }
        Some(Self { pid, number, args })
    }

    /// Whether it frees pages in `[start, end)`, by `MADV_FREE`: which fails on frames and leaves them as they are.
    fn frees(&self, start: u64, end: u64) -> bool {
        let free = libc::MADV_FREE as u64;
        let [a, b, c, d, ..] = self.args;
        let ranges = match self.number {
            nr::MADVISE if c == free => vec![(a, a.saturating_add(b))],
            nr::PROCESS_MADVISE if d == free => sys::remote_ranges(self.pid, b, c),
            _ => Vec::new(),
        };
        ranges.iter().any(|&(s, e)| s < end && start < e)
    }

    /// How many bytes the range has that this call has moved from `from`, where it had `bytes`.
    fn grown(&self, from: u64, bytes: u64) -> Option<u64> {
        (self.number == nr::MREMAP && self.args[..2] == [from, bytes])
            .then(|| self.args[2].next_multiple_of(PAGE))
    }
}

/// The system calls that threads of these processes wait in.
fn calls(pids: impl Iterator<Item = i32>) -> Vec<Call> {
    let mut all = Vec::new();
    for pid in pids {
        for tid in sys::numbers_in(&format!("/proc/{pid}/task")) {
            let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"));
            all.extend(text.ok().and_then(|t| Call::parse(tid, &t)));
        }
    }
    all
}

/// Whether another process than this one traces `pid`.
fn traced_by_another(pid: i32) -> bool {
    sys::tracer_of(pid, pid)
        .is_some_and(|tracer| tracer != 0 && tracer != crate::changes::own_tid())
}

/// Calls `each` with all mappings of frames.
fn for_frames(process: &Process, pool: FileId, mut each: impl FnMut(u64, u64)) -> io::Result<()> {
    process.with_maps(|maps| {
        let mut at = 0;
        while let Some(v) = maps.next_of(pool, at, u64::MAX)? {
            each(v.start, v.end);
            at = v.end;
        }
        Ok(())
    })
}

impl Target {
    /// Whether it is watched closely, since it could not be stopped.
    pub fn is_unstopped(&self) -> bool {
        self.unstopped
    }

    /// What of `[start, end)` must show no frames, though it may be a mapping of such.
    pub(super) fn without_frames(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let close = self.close.as_ref();
        close.map_or_else(Vec::new, |c| c.frames.missing(start, end))
    }

    /// Whether threads of it wait that could not be answered yet.
    pub fn has_unanswered(&self) -> bool {
        self.close.as_ref().is_some_and(Close::waits)
    }

    /// To be asked now and then: whether another tracer has come or gone.
    pub fn look_for_tracers(&mut self, tracer: &mut Tracer) {
        if self.is_unstopped() {
            self.stop_again(tracer);
        } else if traced_by_another(self.pid) && self.maps_frames() {
            self.attend(tracer);
        }
    }

    /// To be called when a stop has failed: what was let happen in it must be zero from now on, for its threads run on.
    /// It is no business of a later stop, before which the program may have written there.
    pub(super) fn watch_what_was_read(&mut self) {
        let read = !self.discarded.is_empty() || !self.moved.is_empty();
        if read && !failpoints::active("outside") {
            self.watch_closely();
        }
    }

    /// Watches all frames closely from now on.
    fn watch_closely(&mut self) {
        if std::mem::replace(&mut self.unstopped, true) {
            // Taken note of when it was read.
            self.discarded.clear();
            self.moved.clear();
            return;
        }
        if self.for_life {
            // Of these it is known what they show, whatever has been done to them.
            self.discarded.clear();
            self.moved.clear();
            return;
        }
        let mut frames = Ranges::default();
        let guard = &self.guard;
        let _ = for_frames(&self.process, self.pool_file, |start, end| {
            if guard.watch_closely(start, end).is_ok() {
                frames.add(start, end);
            }
        });
        // Of these it is known already that they are discarded, or that they have been moved.
        for (start, end) in std::mem::take(&mut self.discarded) {
            frames.remove(start, end);
            self.fill(start, end);
        }
        for (from, to, bytes) in std::mem::take(&mut self.moved) {
            frames.remove(from, from + bytes);
            if let Some(&(_, end)) = frames.within(to + bytes, u64::MAX).first() {
                if frames.contains(to + bytes) {
                    frames.remove(to + bytes, end);
                }
            }
        }
        self.close = Some(Close::of(frames));
    }

    /// Watches the frames of a child closely whose parent could not be stopped: it may have been born just before that was
    /// found, and is then watched as others are. None of its own events has been read.
    pub(super) fn keep_watching(&self) {
        if self.is_unstopped() {
            let _ = for_frames(&self.process, self.pool_file, |start, end| {
                let _ = self.guard.watch_closely(start, end);
            });
        }
    }

    /// Waits a while with answering a thread that frees frames, until the target can be stopped: only inside of a stop is
    /// there something to free, and `MADV_FREE` fails elsewhere.
    pub(super) fn await_stop_for_freeing(&mut self, tracer: &mut Tracer) {
        let since = Instant::now();
        while self.pending() && since.elapsed() < FREEING && !traced_by_another(self.pid) {
            let held_up = self.unstopped || tracer.shared(&self.process);
            if !held_up || !self.frees_frames() || (self.unstopped && self.stop_again(tracer)) {
                return;
            }
            std::thread::sleep(FREEING_EACH);
        }
    }

    /// Whether a thread of it waits in a call that frees frames.
    fn frees_frames(&self) -> bool {
        let calls = calls(std::iter::once(self.pid));
        let mut frees = false;
        let _ = for_frames(&self.process, self.pool_file, |start, end| {
            frees |= calls.iter().any(|c| c.frees(start, end));
        });
        frees
    }

    /// Has a target that cannot be stopped go on with its discards, and fills what its threads wait for.
    pub(super) fn attend(&mut self, tracer: &mut Tracer) {
        let known = self.close.is_some();
        if !failpoints::active("outside") {
            self.watch_closely();
        }
        let mut close = self.close.take().unwrap_or_default();
        close.answer_again(&self.guard);
        for _ in 0..TURN {
            if !self.pending() {
                break;
            }
            let pids = std::iter::once(self.pid).chain(tracer.sharers_of(self.pid));
            let calls = calls(pids);
            match self.guard.next_event() {
                Ok(Some(Event::Fault { address })) => close.answer(&self.guard, address),
                Ok(Some(Event::Remove { start, end })) => {
                    if calls.iter().any(|c| c.frees(start, end)) {
                        continue;
                    }
                    close.frames.remove(start, end);
                    self.fill(start, end);
                }
                Ok(Some(Event::Remap { from, to, len })) => {
                    let grown = calls.iter().find_map(|c| c.grown(from, len));
                    if known || !close.frames.contains(to) {
                        close.moved(from, to, len);
                    } else {
                        // It had been moved before anything was known.
                        close.frames.remove(from, from + len);
                        let end = grown.map_or(u64::MAX, |grown| to + grown);
                        let behind = close.frames.within(to + len, end);
                        if let Some((_, end)) = behind.first().filter(|b| b.0 == to + len) {
                            close.frames.remove(to + len, *end);
                        }
                    }
                    if let Some(grown) = grown {
                        self.fill(to + len, to + grown);
                    }
                }
                Ok(Some(Event::Fork(guard))) => self.born.push(Born {
                    guard,
                    close: Some(close.inherited()),
                    unstopped: true,
                }),
                // What then lies open is closed when it can be stopped: until then nothing that grows shows frames.
                Ok(Some(Event::Unmap { start, end })) => {
                    close.frames.remove(start, end);
                    if self.opened.len() < OPENED_MAX {
                        self.opened.push(start);
                    }
                }
                Ok(Some(Event::Other(_)) | None) | Err(_) => {}
            }
        }
        close.answer_again(&self.guard);
        if self.for_life || !failpoints::active("outside") {
            self.close = Some(close);
        }
    }

    /// Fills with zeros what is being discarded.
    fn fill(&self, start: u64, end: u64) {
        if failpoints::active("outside") || end - start > FILLED_MAX {
            return;
        }
        let since = Instant::now();
        let mut left = (end - start) / PAGE;
        while left > 0 && since.elapsed() < FILLING {
            left = left.saturating_sub(self.guard.fill_zero(start, end).0);
        }
    }

    /// Whether the target can be stopped again: then it is watched as others are. Nothing is merged before.
    pub(super) fn stop_again(&mut self, tracer: &mut Tracer) -> bool {
        if !self.unstopped {
            return true;
        }
        if traced_by_another(self.pid) || tracer.shared(&self.process) {
            return false;
        }
        let Ok(stopped) = self.stop(tracer, STOP_TIMEOUT, Strictness::NoUserCode) else {
            return false;
        };
        // A thread that has not stopped may be in the middle of a fork: its child would have what is not filled yet.
        let all = self.process.thread_count() == stopped.tids.len();
        let settled =
            all && !tracer.shared_when_stopped(&self.process, &stopped) && !self.pending();
        self.zero_fill(tracer, &stopped);
        if settled {
            self.settle(&stopped);
            if self.overdrawn() {
                self.shed(tracer, &stopped);
            }
        }
        tracer.release(stopped);
        !self.unstopped
    }

    /// Fills, in a stopped target, all that must be zero, and watches its frames as ever.
    fn settle(&mut self, stopped: &Stopped) {
        let mut mappings = Vec::new();
        let told = for_frames(&self.process, self.pool_file, |start, end| {
            mappings.push((start, end))
        });
        if told.is_err() {
            return; // watched on, until its mappings can be told
        }
        self.unstopped = false;
        let close = match self.for_life {
            true => self.close.clone(),
            false => self.close.take(),
        };
        let Some(close) = close else {
            return;
        };
        for (start, end) in mappings {
            for (start, end) in close.frames.missing(start, end) {
                if !self.guard.zero(start, end) {
                    let piece = Piece::of(start, end);
                    self.write_zeros(stopped.memory(), &piece);
                }
            }
            if !self.for_life {
                let _ = self.guard.unregister(start, end);
                let _ = self.guard.register(start, end);
            }
        }
    }
}

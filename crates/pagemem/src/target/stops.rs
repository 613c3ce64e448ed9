//! Stopping a target: once, or for batches of pages that are sized so that each stop fits the pause aimed at.
//!
//! Called by the other modules: [`super::merge`] and [`super::unmerge`] work in batches, the rest stops once. Whoever
//! stops a target also reads what its guard tells of.

use std::io;
use std::time::{Duration, Instant};

use super::runs::next_batch;
use super::{Outcome, PageOutcome, PageRun, Target};
use crate::failpoints;
use crate::inject::{Op, ASIDE_PAGES};
use crate::ptrace::{StopError, Stopped, Strictness, Tracer};
use crate::sys;

/// Pages a stop begins with, before anything has been measured.
pub(super) const FIRST_BATCH: f64 = 128.0;
/// Share of the pause budget that work may take; the rest is for stopping and for what goes wrong.
const AIM: f64 = 0.7;
const BATCH_MIN: f64 = 32.0;
const BATCH_MAX: f64 = ASIDE_PAGES as f64;

/// Kinds of work, each with its own cost a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Merge = 0,
    Zero = 1,
    Unmerge = 2,
    GuardPages = 3,
}

impl Target {
    pub(super) fn stop(
        &mut self,
        tracer: &mut Tracer,
        timeout: Duration,
        strictness: Strictness,
    ) -> Result<Stopped, StopError> {
        tracer.transfers.know(self.pid, self.region.room());
        let (mut watch, process, _) = self.watched();
        let stopped = tracer.try_stop(process, timeout, strictness, &mut watch);
        stopped.map_err(|failed| {
            // Before any goes on: what was read of has been discarded, and would show its frames.
            if !matches!(failed.error, StopError::Gone) {
                self.begin_freeing_again(failed.threads());
                self.watch_what_was_read();
            }
            tracer.give_up(failed)
        })
    }

    /// Does `work` for batches of `runs` inside stops sized to the pause budget.
    pub(super) fn in_stops(
        &mut self,
        tracer: &mut Tracer,
        kind: Kind,
        runs: &[PageRun],
        mut work: impl FnMut(&mut Self, &mut Tracer, &Stopped, &[PageRun], &mut [u8]) -> io::Result<()>,
    ) -> Outcome {
        let total: usize = runs.iter().map(|r| r.pages as usize).sum();
        let mut out = Outcome {
            codes: Vec::with_capacity(total),
            ..Default::default()
        };
        if !self.stop_again(tracer) {
            out.codes.resize(total, PageOutcome::Refused as u8);
            return out;
        }
        let (pinned, locked) = sys::pinned_and_locked(self.pid);
        // What is given back is locked again; what is merged could be locked since its flags were looked at.
        let giving = matches!(kind, Kind::Unmerge | Kind::GuardPages);
        if (pinned || (locked && kind != Kind::Unmerge) || (giving && self.written_behind()))
            && !failpoints::active("rings")
        {
            out.codes.resize(total, PageOutcome::Refused as u8);
            return out;
        }
        let mut cursor = (0, 0);
        let mut looked = false;
        loop {
            let batch = next_batch(runs, &mut cursor, self.batch[kind as usize] as u32);
            if batch.is_empty() {
                break;
            }
            let pages: usize = batch.iter().map(|r| r.pages as usize).sum();
            let mut codes = vec![PageOutcome::Done as u8; pages];
            if self.is_unstopped() {
                // Since a stop of this request has failed. Frames mapped now would be taken for discarded ones.
                out.codes
                    .resize(out.codes.len() + pages, PageOutcome::Timeout as u8);
                continue;
            }
            match self.stop(tracer, self.limits.stop_timeout, Strictness::All) {
                Err(StopError::Timeout) => codes.fill(PageOutcome::Timeout as u8),
                Err(StopError::Gone) => codes.fill(PageOutcome::Gone as u8),
                Err(StopError::Refused(_) | StopError::Shared) => {
                    codes.fill(PageOutcome::Refused as u8)
                }
                Ok(stopped) if stopped.only_mend.is_some() => {
                    let code = match stopped.only_mend {
                        Some(StopError::Timeout) => PageOutcome::Timeout,
                        _ => PageOutcome::Refused,
                    };
                    codes.fill(code as u8);
                    self.zero_fill(tracer, &stopped);
                    tracer.release(stopped);
                }
                Ok(stopped) if !self.region.intact(stopped.memory()) => {
                    codes.fill(PageOutcome::Gone as u8);
                    self.zero_fill(tracer, &stopped);
                    tracer.release(stopped);
                }
                // What was pinned before the engine last asked what was written had been registered by then: whoever asks
                // for a merge has looked for it, and for giving back it was done above. What was pinned since then counts
                // as written. Such a page is not merged; among those to be given back it makes us look again, in the
                // stop. That of a device registered only for reading does not count as written, but has its mappings.
                Ok(stopped)
                    if !failpoints::active("rings")
                        && (stopped.workers
                            || match giving {
                                true => self.any_written(&batch) && self.written_behind(),
                                false => !looked && self.maps_devices(),
                            }) =>
                {
                    codes.fill(PageOutcome::Refused as u8);
                    self.zero_fill(tracer, &stopped);
                    tracer.release(stopped);
                }
                Ok(stopped) => {
                    looked = true;
                    let (begun, cpu) = (Instant::now(), sys::cpu_time());
                    self.zero_fill(tracer, &stopped);
                    if let Err(e) = work(self, tracer, &stopped, &batch, &mut codes) {
                        let code = if e.raw_os_error() == Some(libc::ETIMEDOUT) {
                            PageOutcome::Timeout
                        } else {
                            PageOutcome::Refused
                        };
                        for c in codes.iter_mut().filter(|c| **c == PageOutcome::Done as u8) {
                            *c = code as u8;
                        }
                    }
                    let injected = stopped.injected(&self.process);
                    let worked = begun
                        .elapsed()
                        .min(injected + sys::cpu_time().saturating_sub(cpu));
                    out.injected += injected.as_secs_f64();
                    out.pauses.push(tracer.release(stopped).as_secs_f64());
                    self.learn(kind, worked.as_secs_f64() / pages as f64);
                }
            }
            if self.needs_zero_fill() {
                // Read of, but no stop came about in time.
                self.on_events(tracer);
            }
            out.codes.extend_from_slice(&codes);
        }
        out
    }

    /// Fits the size of the next batch to what a page has cost in processor time. How long the threads took to stop, and
    /// how long the one that works waited for a processor, is not counted: no size of batch changes that, and on a busy
    /// machine it is nearly all. One slow batch at most halves the size.
    fn learn(&mut self, kind: Kind, per_page: f64) {
        let batch = &mut self.batch[kind as usize];
        let aim = self.limits.pause.as_secs_f64() * AIM / per_page;
        let aim = aim.clamp(*batch * 0.5, *batch * 2.0);
        *batch = (0.7 * *batch + 0.3 * aim).clamp(BATCH_MIN, BATCH_MAX);
    }

    /// Runs a syscall batch in the stopped target, reading events that it causes.
    pub(super) fn run_ops(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        ops: &mut [Op],
    ) -> io::Result<()> {
        // What is told of moves and unmapping is told of ours: nothing else runs.
        let (mut moved, mut opened) = (Vec::new(), Vec::new());
        let (mut watch, process, region) = self.watched();
        (watch.moved, watch.opened) = (&mut moved, &mut opened);
        region.run(tracer, process, stopped, ops, &mut watch)
    }
}

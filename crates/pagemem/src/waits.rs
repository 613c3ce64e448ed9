//! Waits that the kernel ends with `EINTR` when a thread is stopped, though no signal has come: they go on.
//!
//! A wait without a timeout is begun again, which is all there is to it. Of one with a timeout the end is
//! remembered, from the first stop that met it, and the rest waited for: it may so end later than asked for, by as
//! long as it had been waiting then, and never earlier.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::arch::Regs;
use crate::failpoints;

/// Which limited waits were met.
#[derive(Debug, Default)]
pub struct Waits(BTreeMap<i32, (Regs, Instant)>);

/// Threads remembered at most; ended ones are among them.
const WAITS_MAX: usize = 4096;

impl Waits {
    /// Has the wait of stopped thread `tid` go on, if it is in one; whether it was.
    pub fn restart(&mut self, tid: i32, regs: &Regs) -> bool {
        if failpoints::active("restart") {
            return false;
        }
        let Some(timeout) = regs.interrupted_wait() else {
            self.0.remove(&tid);
            return false;
        };
        let again = match timeout {
            None => regs.waiting_on(None),
            Some(asked) => {
                if self.0.len() > WAITS_MAX {
                    self.0.clear();
                }
                let now = Instant::now();
                let until = match self.0.get(&tid) {
                    Some((before, until)) if regs.goes_on(before) => *until,
                    _ => now + asked,
                };
                self.0.insert(tid, (*regs, until));
                regs.waiting_on(Some(until.saturating_duration_since(now)))
            }
        };
        let _ = again.set(tid);
        true
    }

    /// Has a call begin again that was ended with `EINTR` and has done nothing, unless a signal comes.
    pub fn again(&self, tid: i32, regs: &Regs) {
        if !failpoints::active("restart") {
            let _ = regs.waiting_on(None).set(tid);
        }
    }
}

//! What a caller tells running work, and what the work tells its caller: stop, budgets, progress.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// The longest sleep before the wish to stop is looked at again.
const NAP: Duration = Duration::from_millis(50);

/// Somebody wants the work to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl From<Stopped> for std::io::Error {
    fn from(_: Stopped) -> Self {
        std::io::Error::from_raw_os_error(libc::ECANCELED)
    }
}

/// Shared by all threads of one job and whoever watches it.
#[derive(Debug)]
pub struct Control {
    stop: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    bytes: AtomicU64,
    cpu_share: f64,
    rate: u64,
    began: Instant,
    cpu_began: f64,
}

impl Control {
    /// `cpu_share`: of one CPU, on average; `rate`: bytes a second read or compared. 0: no limit.
    pub fn new(cpu_share: f64, rate: u64) -> Control {
        Control {
            stop: AtomicBool::new(false),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            cpu_share,
            rate,
            began: Instant::now(),
            cpu_began: sys::cpu_seconds(),
        }
    }

    /// Ends the work at the next safe instant.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it was told to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A new part of the work begins, of `total` steps.
    pub fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// So many more steps are done.
    pub fn advance(&self, steps: u64) {
        self.done.fetch_add(steps, Ordering::Relaxed);
    }

    /// Steps done and to do.
    pub fn progress(&self) -> (u64, u64) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }

    /// Bytes read or compared so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// So many bytes have been read or compared: sleeps for as long as the budgets ask.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn spend(&self, bytes: u64) -> Result<(), Stopped> {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        loop {
            if self.is_stopped() {
                return Err(Stopped);
            }
            if self.rate == 0 && self.cpu_share <= 0.0 {
                return Ok(());
            }
            let mut due: f64 = 0.0;
            if self.rate > 0 {
                due = bytes as f64 / self.rate as f64;
            }
            if self.cpu_share > 0.0 {
                due = due.max((sys::cpu_seconds() - self.cpu_began) / self.cpu_share);
            }
            let now = self.began.elapsed().as_secs_f64();
            if due <= now {
                return Ok(());
            }
            std::thread::sleep(NAP.min(Duration::from_secs_f64(due - now)));
        }
    }
}

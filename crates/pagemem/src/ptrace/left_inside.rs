//! A thread that is left inside injected code, as by a guardian that dies there: for tests of tests alone.
//!
//! Called by [`crate::inject`] in a build with the feature `failpoints`; see [`crate::failpoints`].

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::failpoints;
use crate::requests::{interrupt, leave, poll, resume, single_step, Wait};

/// Called when thread `tid`, the only one of its process, is about to run injected code: with `PAGEONE_LEAVE_AT=c,n` it
/// is left alone after `n` instructions of the `c`-th such code, and this process dies. It says BACK where there were not
/// so many before the program slept in a call of its own again.
pub fn leave_inside(tid: i32) {
    static AT: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    static CODES: AtomicU32 = AtomicU32::new(0);
    let at = AT.get_or_init(|| {
        let text = std::env::var("PAGEONE_LEAVE_AT").ok()?;
        let (code, instructions) = text.split_once(',')?;
        Some((code.parse().ok()?, instructions.parse().ok()?))
    });
    let Some((code, instructions)) = *at else {
        return;
    };
    if CODES.fetch_add(1, Ordering::Relaxed) != code {
        return;
    }
    for _ in 0..instructions {
        let _ = single_step(tid);
        if stop_of(tid).is_none() {
            println!("BACK");
            // The trap of the step is still to come: not for the program.
            for _ in 0..3 {
                let _ = interrupt(tid);
                if stop_of(tid) == Some(Wait::Interrupted) {
                    let _ = resume(tid, 0);
                    if stop_of(tid).is_some() {
                        break;
                    }
                }
            }
            break;
        }
    }
    let _ = leave(tid);
    failpoints::die();
}

/// The next stop of the thread, if there is one soon.
fn stop_of(tid: i32) -> Option<Wait> {
    let since = Instant::now();
    loop {
        match poll(tid) {
            Wait::Nothing if since.elapsed() > Duration::from_millis(20) => return None,
            Wait::Nothing => std::thread::yield_now(),
            stop => return Some(stop),
        }
    }
}

//! A thread that is left inside injected code, as by a guardian that dies there: for tests of tests alone.
//!
//! Called by [`crate::inject`] in a build with the feature `failpoints`; see [`crate::failpoints`].

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

use crate::changes::wait_for_change;
use crate::failpoints;
use crate::requests::{interrupt, leave, poll, resume, single_step, Wait};
use crate::sys::thread_state;

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
        single_step(tid).expect("a step");
        if next_stop(tid).is_none() {
            println!("BACK");
            end_step(tid);
            break;
        }
    }
    // Were it let go in the midst of a step, as by the end of this process, the trap would come to the program.
    leave(tid).expect("a thread that stands still");
    failpoints::die();
}

/// The next stop of a thread that was resumed; None where it sleeps in a call. For as long as it takes: a thread that has
/// not stopped yet may just have no processor.
fn next_stop(tid: i32) -> Option<Wait> {
    loop {
        let sleeps = thread_state(tid, tid) == Some('S');
        match poll(tid) {
            Wait::Ended => panic!("the thread has ended"),
            Wait::Nothing if sleeps => return None,
            Wait::Nothing => wait_for_change(None, Duration::from_millis(2)),
            stop => return Some(stop),
        }
    }
}

/// Takes the trap of a step into a call that the thread sleeps in: it comes when that has been interrupted, before or after
/// the thread stops for the interrupt, and is not for the program.
fn end_step(tid: i32) {
    interrupt(tid).expect("an interrupt");
    while next_stop(tid).expect("the trap of the step") != Wait::Signal(libc::SIGTRAP) {
        resume(tid, 0).expect("a thread that stands still");
    }
}

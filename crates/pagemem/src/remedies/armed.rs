//! What tests have built in: remedies switched off and deaths at a chosen instant, by the environment.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::ptrace::{self, Wait};

/// Whether `remedy` is switched off by this process's environment (`PAGEONE_WITHOUT=mend,forks,...`).
pub fn without(remedy: &str) -> bool {
    static OFF: OnceLock<Vec<String>> = OnceLock::new();
    OFF.get_or_init(|| {
        let list = std::env::var("PAGEONE_WITHOUT").unwrap_or_default();
        list.split(',').map(str::to_owned).collect()
    })
    .iter()
    .any(|r| r == remedy)
}

fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

/// Called before each step that changes the state of a target or of its threads: before the one whose number is in
/// `PAGEONE_DIE_AT` this process dies, as if it had been killed there.
pub fn step() {
    static AT: OnceLock<Option<u32>> = OnceLock::new();
    static STEPS: AtomicU32 = AtomicU32::new(0);
    if let Some(at) = *AT.get_or_init(|| number("PAGEONE_DIE_AT")) {
        if STEPS.fetch_add(1, Ordering::Relaxed) == at {
            die();
        }
    }
}

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
        let _ = ptrace::single_step(tid);
        if stop_of(tid).is_none() {
            println!("BACK");
            // The trap of the step is still to come: not for the program.
            for _ in 0..3 {
                let _ = ptrace::interrupt(tid);
                if stop_of(tid) == Some(Wait::Interrupted) {
                    let _ = ptrace::resume(tid, 0);
                    if stop_of(tid).is_some() {
                        break;
                    }
                }
            }
            break;
        }
    }
    let _ = ptrace::leave(tid);
    die();
}

/// The next stop of the thread, if there is one soon.
fn stop_of(tid: i32) -> Option<Wait> {
    let since = Instant::now();
    loop {
        match ptrace::poll(tid) {
            Wait::Nothing if since.elapsed() > Duration::from_millis(20) => return None,
            Wait::Nothing => std::thread::yield_now(),
            stop => return Some(stop),
        }
    }
}

fn die() -> ! {
    // SAFETY: no pointers; ends this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    loop {
        std::thread::yield_now();
    }
}

//! What tests have built in: failpoints and deaths at a chosen instant, by the environment.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

/// Whether this process's environment (`PAGEONE_FAILPOINTS=zero-fill,forks,...`) has the safeguard `name` left out.
pub fn active(name: &str) -> bool {
    static ACTIVE: OnceLock<Vec<String>> = OnceLock::new();
    ACTIVE
        .get_or_init(|| {
            let list = std::env::var("PAGEONE_FAILPOINTS").unwrap_or_default();
            list.split(',').map(str::to_owned).collect()
        })
        .iter()
        .any(|n| n == name)
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

/// Ends this process as if it had been killed.
pub fn die() -> ! {
    // SAFETY: no pointers; ends this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    loop {
        std::thread::yield_now();
    }
}

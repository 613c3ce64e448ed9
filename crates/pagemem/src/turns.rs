//! Who of the guardian's threads gets a processor at once: those that look after targets, as long as they do little.
//!
//! While such a thread waits for a processor, a program's thread waits for it. Beside a hostile program that is most of the
//! time that a discard takes. So root's guardian runs them at the lowest real-time priority, each for at most a tenth of
//! the time of one processor and all together for at most a quarter of that of all. One that has used more is kept busy by
//! its program: it takes its turns with all others until that has been over for a second.

use std::cell::RefCell;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::sys::cpu_time;

/// In each of these
const WINDOW: Duration = Duration::from_millis(100);
/// so much may be used by one thread
const ONE: Duration = Duration::from_millis(10);
/// and so much by all of them, for each processor.
const ALL: Duration = Duration::from_millis(25);
/// For so long a thread takes its turns that has used more.
const CALM: Duration = Duration::from_secs(1);

/// How long a thread that gets a processor at once sleeps where others yield.
const MOMENT: Duration = Duration::from_micros(20);

/// What all threads have used at real-time priority, and since when.
type Used = Mutex<Option<(Instant, Duration)>>;

static USED: Used = Mutex::new(None);

/// What all threads may use in each window.
fn for_all() -> Duration {
    static PROCESSORS: OnceLock<u32> = OnceLock::new();
    let count = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    ALL * *PROCESSORS.get_or_init(count)
}

thread_local! {
    static OWN: RefCell<Option<Turns>> = const { RefCell::new(None) };
}

/// Has the calling thread get a processor at once from now on, as long as it does little and if it may.
pub fn begin() {
    let turns = set(true).then(|| Turns::new(Instant::now(), cpu_time()));
    OWN.set(turns);
}

/// To be called by each thread whenever it is about to wait: takes note of what it has used.
pub fn look() {
    OWN.with_borrow_mut(|own| {
        if let Some(turns) = own {
            turns.look(Instant::now(), cpu_time(), (&USED, for_all()), set);
        }
    });
}

/// Lets others have the processor for a moment, who may be waited for: at real-time priority those with none get nothing by
/// yielding.
pub fn give_way() {
    if OWN.with_borrow(|own| own.as_ref().is_some_and(|turns| turns.at_once)) {
        std::thread::sleep(MOMENT);
    } else {
        std::thread::yield_now();
    }
}

/// The turns of one thread.
#[derive(Debug)]
struct Turns {
    at_once: bool,
    /// When the window began, and what the thread had used until then.
    window: (Instant, Duration),
    /// What it had used when last looked at.
    before: Duration,
    busy_until: Instant,
}

impl Turns {
    fn new(now: Instant, used: Duration) -> Self {
        Self {
            at_once: true,
            window: (now, used),
            before: used,
            busy_until: now,
        }
    }

    /// At this time the thread has used this much. `set` changes how it is scheduled.
    fn look(
        &mut self,
        now: Instant,
        used: Duration,
        (all, most): (&Used, Duration),
        set: impl Fn(bool) -> bool,
    ) {
        let just_now = used.saturating_sub(std::mem::replace(&mut self.before, used));
        let mut too_much = used.saturating_sub(self.window.1) > ONE;
        if self.at_once {
            let mut all = all
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let (since, by_all) = all.get_or_insert((now, Duration::ZERO));
            if now.saturating_duration_since(*since) >= WINDOW {
                (*since, *by_all) = (now, Duration::ZERO);
            }
            *by_all += just_now;
            too_much |= *by_all > most;
        }
        if too_much {
            self.busy_until = now + CALM;
        }
        let at_once = now >= self.busy_until;
        if at_once != self.at_once {
            self.at_once = set(at_once);
        }
        if now.saturating_duration_since(self.window.0) >= WINDOW {
            self.window = (now, used);
        }
    }
}

/// Changes how the calling thread is scheduled; whether it gets a processor at once now, which the kernel lets root have.
fn set(at_once: bool) -> bool {
    let (kind, sched_priority) = if at_once {
        (libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1)
    } else {
        (libc::SCHED_OTHER, 0)
    };
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: one live structure, which is only read.
    let done = unsafe { libc::sched_setscheduler(0, kind, &raw const parameters) } == 0;
    done && at_once
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A thread with a clock of its own.
    struct Thread {
        began: Instant,
        time: Duration,
        used: Duration,
        turns: Turns,
    }

    impl Thread {
        fn new() -> Self {
            let began = Instant::now();
            Self {
                began,
                time: Duration::ZERO,
                used: Duration::ZERO,
                turns: Turns::new(began, Duration::ZERO),
            }
        }

        /// Whether it gets a processor at once after so many milliseconds more, of which it has used some.
        fn look(&mut self, time: u64, used: u64, all: &Used) -> bool {
            self.time += Duration::from_millis(time);
            self.used += Duration::from_millis(used);
            let is_set = Cell::new(self.turns.at_once);
            let now = self.began + self.time;
            self.turns.look(now, self.used, (all, ALL), |at_once| {
                is_set.set(at_once);
                at_once
            });
            assert_eq!(is_set.get(), self.turns.at_once);
            self.turns.at_once
        }
    }

    #[test]
    fn a_thread_that_does_little_gets_a_processor_at_once_for_ever() {
        let (mut thread, all) = (Thread::new(), Mutex::new(None));
        assert!((0..1000).all(|_| thread.look(10, 1, &all)));
    }

    #[test]
    fn one_that_does_much_takes_its_turns_until_that_is_over_for_a_second() {
        let (mut thread, all) = (Thread::new(), Mutex::new(None));
        assert!(!thread.look(11, 11, &all));
        assert!((0..40).all(|_| !thread.look(50, 40, &all)));
        let waits = (0..).take_while(|_| !thread.look(50, 1, &all)).count();
        assert!((19..=22).contains(&waits), "{waits}");
        assert!(thread.look(50, 1, &all));
    }

    #[test]
    fn of_many_that_each_do_little_some_take_their_turns() {
        let all = Mutex::new(None);
        let mut threads: Vec<Thread> = (0..50).map(|_| Thread::new()).collect();
        let looks = threads.iter_mut().map(|thread| thread.look(20, 1, &all));
        assert_eq!(looks.filter(|at_once| *at_once).count(), 25);
    }

    #[test]
    fn a_thread_that_may_not_have_it_stays_as_it_is() {
        let kind = std::thread::spawn(|| {
            begin();
            let begun = OWN.with_borrow(Option::is_some);
            look();
            give_way();
            // SAFETY: no pointers.
            (begun, unsafe { libc::sched_getscheduler(0) })
        });
        let (begun, kind) = kind.join().expect("a thread that ends");
        assert_eq!(begun, kind == libc::SCHED_RR | libc::SCHED_RESET_ON_FORK);
        assert!(begun || kind == libc::SCHED_OTHER);
    }
}

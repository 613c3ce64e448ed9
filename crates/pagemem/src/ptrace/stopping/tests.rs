//! What a stop asks of the kernel, in which order: the threads of a made-up process behave as a script says.
//!
//! Time is made up, too: it goes on where the stop waits, and a little with each question.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::{Events, Kernel, NoEvents, StopError, Stopped, Strictness, Tracer};
use crate::changes::lock;
use crate::process::Process;
use crate::requests::Wait;
use crate::sharers::{Asker, Sharers};
use crate::transfers::Transfers;

/// When something happens to a thread.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// So long after the stop has begun.
    After(Duration),
    /// As soon as an event has been read: it waits for that.
    Read,
    Never,
}
use When::{After, Never, Read};

/// A thread of the script.
#[derive(Clone, Debug)]
struct Thread {
    tid: i32,
    born: Duration,
    /// What is told of it, in order. It stops for an interrupt only when it has been interrupted.
    tells: Vec<(When, Wait)>,
    /// As `/proc` writes it, until it has stopped.
    state: char,
    /// It ends, and has no memory any more.
    has_left: bool,
    seized: bool,
    interrupted: bool,
    stopped: bool,
    ended: bool,
}

/// A thread that stops for its interrupt at this time, and runs until then.
fn thread(tid: i32, stops: When) -> Thread {
    telling(tid, vec![(stops, Wait::Interrupted)])
}

fn telling(tid: i32, tells: Vec<(When, Wait)>) -> Thread {
    Thread {
        tid,
        born: Duration::ZERO,
        tells,
        state: 'R',
        has_left: false,
        seized: false,
        interrupted: false,
        stopped: false,
        ended: false,
    }
}

/// What was asked of the kernel, and what of it can be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Seized(i32),
    Interrupted(i32),
    /// Told that it has stopped.
    Stops(i32),
    Resumed(i32, i32),
    Detached(i32),
    /// Back into suspension.
    Listens(i32),
    /// An event was read.
    ReadOne,
    /// Asked who shares the memory.
    Sharers,
}

#[derive(Debug)]
struct World {
    began: Instant,
    time: Duration,
    threads: Vec<Thread>,
    seen: Vec<Seen>,
    /// Events that can be read, from when on.
    events: Vec<Duration>,
    read: bool,
    sharer: bool,
    /// Another tracer has them.
    taken: Vec<i32>,
    /// How often the list of threads is still cut short before this one.
    cut: Option<(usize, i32)>,
}

#[derive(Clone, Debug)]
struct Script(Arc<Mutex<World>>);

const LIMIT: Duration = Duration::from_millis(50);

fn micros(n: u64) -> Duration {
    Duration::from_micros(n)
}

fn at(n: u64) -> When {
    After(micros(n))
}

fn script(threads: Vec<Thread>) -> Script {
    Script(Arc::new(Mutex::new(World {
        began: Instant::now(),
        time: Duration::ZERO,
        threads,
        seen: Vec::new(),
        events: Vec::new(),
        read: false,
        sharer: false,
        taken: Vec::new(),
        cut: None,
    })))
}

impl World {
    fn is_due(&self, when: When) -> bool {
        match when {
            After(time) => self.time >= time,
            Read => self.read,
            Never => false,
        }
    }

    fn thread(&mut self, tid: i32) -> Option<&mut Thread> {
        let time = self.time;
        let there = |t: &&mut Thread| t.tid == tid && t.born <= time && !t.ended;
        self.threads.iter_mut().find(there)
    }

    fn there(&self) -> impl Iterator<Item = &Thread> {
        self.threads
            .iter()
            .filter(|t| t.born <= self.time && !t.ended)
    }
}

impl Script {
    fn with<T>(&self, ask: impl FnOnce(&mut World) -> T) -> T {
        let mut world = lock(&self.0);
        world.time += micros(1);
        // Who ends does so unasked.
        for i in 0..world.threads.len() {
            if let Some(&(when, Wait::Ended)) = world.threads[i].tells.first() {
                world.threads[i].ended = world.is_due(when);
            }
        }
        ask(&mut world)
    }

    fn seen(&self) -> Vec<Seen> {
        lock(&self.0).seen.clone()
    }

    /// How long after the begin it is.
    fn time(&self) -> Duration {
        lock(&self.0).time
    }

    fn change(self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut lock(&self.0));
        self
    }

    fn tracer(&self) -> Tracer {
        Tracer {
            kernel: Box::leak(Box::new(self.clone())),
            ..Tracer::default()
        }
    }

    /// Stops the made-up process. Of this one, whose id it has, nothing is asked.
    fn stop(&self, tracer: &mut Tracer, strictness: Strictness) -> Result<Stopped, StopError> {
        let me = Process::open(std::process::id() as i32).expect("this process");
        tracer.stop(&me, LIMIT, strictness, &mut self.clone())
    }

    /// The same once, with a tracer that follows nobody.
    fn stop_once(&self, strictness: Strictness) -> Result<Stopped, StopError> {
        self.stop(&mut self.tracer(), strictness)
    }
}

impl Events for Script {
    fn pending(&self) -> bool {
        self.with(|w| w.events.iter().any(|&from| w.time >= from))
    }

    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    fn read_one(&mut self) {
        self.with(|w| {
            w.events.remove(0);
            w.read = true;
            w.seen.push(Seen::ReadOne);
        });
    }
}

impl Kernel for Script {
    fn now(&self) -> Instant {
        self.with(|w| w.began + w.time)
    }

    fn wait(&self, _: Option<RawFd>, longest: Duration) {
        self.with(|w| w.time += longest);
    }

    fn threads(&self, _: &Process) -> io::Result<Vec<i32>> {
        self.with(|w| {
            let mut tids: Vec<i32> = w.there().map(|t| t.tid).collect();
            if let Some((left @ 1.., before)) = &mut w.cut {
                *left -= 1;
                tids.retain(|tid| tid < before);
            }
            if tids.is_empty() {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(tids)
        })
    }

    fn thread_count(&self, _: &Process) -> usize {
        self.with(|w| w.there().count())
    }

    fn are_all(&self, _: i32, seized: &BTreeSet<i32>) -> bool {
        self.with(|w| w.there().all(|t| seized.contains(&t.tid)))
    }

    fn state(&self, _: i32, tid: i32) -> Option<char> {
        self.with(|w| w.thread(tid).map(|t| if t.stopped { 't' } else { t.state }))
    }

    fn has_memory(&self, _: i32, tid: i32) -> bool {
        self.with(|w| w.thread(tid).is_some_and(|t| !t.has_left))
    }

    fn is_worker(&self, _: i32, _: i32) -> bool {
        false
    }

    fn is_ours(&self, _: i32, tid: i32) -> bool {
        self.with(|w| w.thread(tid).is_some_and(|t| t.seized))
    }

    fn request(&self, request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
        self.with(|w| {
            let taken = w.taken.contains(&tid);
            let gone = || io::Error::from_raw_os_error(libc::ESRCH);
            let thread = w.thread(tid).ok_or_else(gone)?;
            let seen = match request {
                libc::PTRACE_SEIZE if taken || thread.seized => {
                    return Err(io::Error::from_raw_os_error(libc::EPERM));
                }
                libc::PTRACE_SEIZE => {
                    thread.seized = true;
                    Seen::Seized(tid)
                }
                libc::PTRACE_INTERRUPT if thread.seized => {
                    thread.interrupted = true;
                    Seen::Interrupted(tid)
                }
                // All else only a stopped thread can be asked.
                _ if !thread.stopped => return Err(gone()),
                libc::PTRACE_CONT => {
                    thread.stopped = false;
                    Seen::Resumed(tid, data as i32)
                }
                libc::PTRACE_LISTEN => Seen::Listens(tid),
                libc::PTRACE_DETACH => {
                    (thread.seized, thread.stopped) = (false, false);
                    Seen::Detached(tid)
                }
                other => panic!("a stop has asked for {other}"),
            };
            w.seen.push(seen);
            Ok(())
        })
    }

    fn poll(&self, tid: i32) -> Wait {
        self.with(|w| {
            let Some(i) = w.threads.iter().position(|t| t.tid == tid) else {
                return Wait::Ended;
            };
            let due = (w.threads[i].tells.first()).is_some_and(|&(when, _)| w.is_due(when));
            let thread = &mut w.threads[i];
            if thread.ended {
                return Wait::Ended;
            }
            let Some(&(_, what)) = thread.tells.first() else {
                return Wait::Nothing;
            };
            if !due || thread.stopped || what == Wait::Interrupted && !thread.interrupted {
                return Wait::Nothing;
            }
            thread.tells.remove(0);
            thread.stopped = true;
            w.seen.push(Seen::Stops(tid));
            what
        })
    }

    fn go_on(&self, _: &mut Transfers, _: i32, _: i32, _: bool) {}

    fn go_on_if_ignored(&self, _: &mut Transfers, _: i32, _: i32, _: i32) {}

    fn any_sharer(&self, _: &mut Sharers, _: Asker) -> bool {
        self.with(|w| {
            w.seen.push(Seen::Sharers);
            w.sharer
        })
    }
}

/// Where in `seen` something stands for the first time.
fn place(seen: &[Seen], what: Seen) -> usize {
    let found = seen.iter().position(|&s| s == what);
    found.unwrap_or_else(|| panic!("{what:?} is not in {seen:?}"))
}

#[test]
fn all_threads_are_seized_and_interrupted_before_any_is_waited_for() {
    let script = script(vec![
        thread(1, at(0)),
        thread(2, at(300)),
        thread(3, at(100)),
    ]);
    let mut tracer = script.tracer();
    let stopped = script.stop(&mut tracer, Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1, 2, 3]);
    assert!(stopped.all && !stopped.suspended);
    let seen = script.seen();
    let asked = (1..=3).flat_map(|tid| [Seen::Seized(tid), Seen::Interrupted(tid)]);
    assert_eq!(seen[..6], asked.collect::<Vec<_>>());
    tracer.release(stopped);
    let left: Vec<Seen> = script.seen()[seen.len()..].to_vec();
    assert_eq!(
        left,
        [Seen::Detached(1), Seen::Detached(2), Seen::Detached(3)]
    );
    assert!(tracer.held().is_empty());
}

#[test]
fn an_event_is_not_read_while_a_thread_runs() {
    // Thread 1 waits with the event, thread 2 runs for three milliseconds more.
    let mut waits = thread(1, Read);
    waits.state = 'D';
    let script = script(vec![waits, thread(2, at(3000))]).change(|w| w.events = vec![micros(0)]);
    let stopped = script.stop_once(Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1, 2]);
    let seen = script.seen();
    let read = place(&seen, Seen::ReadOne);
    assert!(place(&seen, Seen::Interrupted(1)) < read);
    assert!(place(&seen, Seen::Stops(2)) < read);
    assert!(read < place(&seen, Seen::Stops(1)));
}

#[test]
fn an_event_is_read_after_some_patience_though_a_thread_does_not_stop() {
    // It may be the very event that it waits for, which does not show.
    let script = script(vec![thread(1, Read)]).change(|w| w.events = vec![micros(0)]);
    let stopped = script.stop_once(Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1]);
    assert!(script.time() > super::PATIENCE, "{:?}", script.time());
}

#[test]
fn once_an_event_has_been_read_threads_are_waited_for_longer() {
    let late = 2 * LIMIT.as_micros() as u64;
    let mut waits = thread(1, Read);
    waits.state = 'D';
    let mut sleeps = thread(2, at(late));
    sleeps.state = 'S';
    let script = script(vec![waits, sleeps]).change(|w| w.events = vec![micros(0)]);
    let stopped = script.stop_once(Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1, 2]);
}

#[test]
fn a_thread_born_meanwhile_is_stopped_before_an_event_is_read() {
    let mut waits = thread(1, Read);
    waits.state = 'D';
    let mut child = thread(3, at(0));
    child.born = micros(500);
    let script =
        script(vec![waits, thread(2, at(1000)), child]).change(|w| w.events = vec![micros(900)]);
    let stopped = script.stop_once(Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1, 2, 3]);
    let seen = script.seen();
    assert!(place(&seen, Seen::Interrupted(3)) < place(&seen, Seen::ReadOne));
}

#[test]
fn a_thread_born_by_the_last_that_ran_is_found() {
    let mut child = thread(2, at(0));
    child.born = micros(150);
    let script = script(vec![thread(1, at(200)), child]);
    let stopped = script.stop_once(Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1, 2]);
}

#[test]
fn a_thread_that_ends_meanwhile_is_no_part_of_the_stop() {
    let ends = telling(2, vec![(at(300), Wait::Ended)]);
    let script = script(vec![thread(1, at(0)), ends]);
    let stopped = script.stop_once(Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1]);
    assert!(stopped.all);
}

#[test]
fn threads_that_a_list_cut_short_has_left_out_are_found_by_their_number() {
    let script = script(vec![thread(1, at(0)), thread(2, at(0)), thread(3, at(0))])
        .change(|w| w.cut = Some((3, 2)));
    let stopped = script.stop_once(Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1, 2, 3]);
}

#[test]
fn a_process_of_which_all_threads_end_is_gone() {
    let script = script(vec![telling(1, vec![(at(300), Wait::Ended)])]);
    let failed = script.stop_once(Strictness::All).expect_err("nobody");
    assert!(matches!(failed, StopError::Gone), "{failed:?}");
}

#[test]
fn a_signal_on_its_way_is_delivered_and_the_interrupt_still_stops_the_thread() {
    let signal = Wait::Signal(libc::SIGUSR1);
    let script = script(vec![telling(
        1,
        vec![(at(0), signal), (at(0), Wait::Interrupted)],
    )]);
    let stopped = script.stop_once(Strictness::All).expect("a stop");
    assert_eq!(stopped.tids, [1]);
    let resumed: Vec<Seen> = script
        .seen()
        .into_iter()
        .filter(|s| matches!(s, Seen::Resumed(..)))
        .collect();
    assert_eq!(resumed, [Seen::Resumed(1, libc::SIGUSR1)]);
}

#[test]
fn a_suspended_process_is_found_so_and_stays_so() {
    let script = script(vec![
        telling(1, vec![(at(0), Wait::Suspended)]),
        telling(2, vec![(at(100), Wait::Suspended)]),
    ]);
    let mut tracer = script.tracer();
    let stopped = script.stop(&mut tracer, Strictness::All).expect("a stop");
    assert!(stopped.suspended && stopped.all);
    tracer.release(stopped);
    // The kernel has it suspended again where it is detached.
    assert_eq!(script.seen().last(), Some(&Seen::Detached(2)));
}

#[test]
fn a_suspended_process_that_is_followed_is_stopped_to_zero_fill_only_and_put_back() {
    let suspended = vec![telling(1, vec![(at(0), Wait::Suspended)])];
    let me = std::process::id() as i32;
    for (strictness, may) in [(Strictness::All, false), (Strictness::NoUserCode, true)] {
        let script = script(suspended.clone());
        let mut tracer = script.tracer();
        tracer.follow(me);
        match script.stop(&mut tracer, strictness) {
            Ok(stopped) => {
                assert!(may);
                tracer.release(stopped);
            }
            Err(failed) => assert!(!may && matches!(failed, StopError::Timeout), "{failed:?}"),
        }
        assert_eq!(script.seen().last(), Some(&Seen::Listens(1)));
        assert_eq!(tracer.held(), [1]);
    }
}

#[test]
fn a_thread_that_does_not_stop_in_time_ends_the_stop_and_is_held() {
    let script = script(vec![thread(1, at(0)), thread(2, Never)]);
    let mut tracer = script.tracer();
    let failed = script
        .stop(&mut tracer, Strictness::All)
        .expect_err("a thread that runs");
    assert!(matches!(failed, StopError::Timeout), "{failed:?}");
    assert!(
        (LIMIT..2 * LIMIT).contains(&script.time()),
        "{:?}",
        script.time()
    );
    assert_eq!(script.seen().last(), Some(&Seen::Detached(1)));
    assert_eq!(tracer.held(), [2], "it stops for the interrupt some day");
}

#[test]
fn a_thread_without_a_processor_is_waited_for_where_pages_are_to_be_zero_filled() {
    let starved = [(Strictness::NoUserCode, true), (Strictness::All, false)];
    for (strictness, stops) in starved {
        let script = script(vec![thread(1, at(0)), thread(2, at(3_000_000))]);
        assert_eq!(script.stop_once(strictness).is_ok(), stops);
    }
    // Not for ever, and not where it does not run.
    for (state, most) in [('R', LIMIT + super::STARVED), ('S', LIMIT)] {
        let mut runs = thread(2, Never);
        runs.state = state;
        let script = script(vec![thread(1, at(0)), runs]);
        let failed = script
            .stop_once(Strictness::NoUserCode)
            .expect_err("it never stops");
        assert!(matches!(failed, StopError::Timeout), "{failed:?}");
        let time = script.time();
        assert!((most..most + LIMIT).contains(&time), "{state}: {time:?}");
    }
}

#[test]
fn threads_that_sleep_in_the_kernel_are_no_hindrance_to_zero_filling() {
    let mut sleeps = thread(2, Never);
    sleeps.state = 'D';
    let script = script(vec![thread(1, at(0)), sleeps]);
    let mut tracer = script.tracer();
    let stopped = script
        .stop(&mut tracer, Strictness::NoUserCode)
        .expect("a stop");
    assert_eq!(stopped.tids, [1]);
    assert!(!stopped.all, "a call goes on");
    assert!(script.time() < LIMIT, "{:?}", script.time());
    tracer.release(stopped);
    assert_eq!(tracer.held(), [2]);
}

#[test]
fn a_thread_that_has_left_the_memory_is_no_hindrance_to_zero_filling() {
    let mut ends = thread(1, Never);
    (ends.state, ends.has_left) = ('S', true);
    let mut waits = thread(2, Read);
    waits.state = 'D';
    let script = script(vec![ends, waits]).change(|w| w.events = vec![micros(0)]);
    let stopped = script.stop_once(Strictness::NoUserCode).expect("a stop");
    assert_eq!(stopped.tids, [2]);
    assert!(script.time() < LIMIT, "{:?}", script.time());
}

#[test]
fn nobody_goes_on_after_a_failed_stop_before_it_is_given_up() {
    let mut waits = thread(1, Read);
    waits.state = 'D';
    let mut sleeps = thread(2, Never);
    sleeps.state = 'S';
    let script = script(vec![waits, sleeps]).change(|w| w.events = vec![micros(0)]);
    let mut tracer = script.tracer();
    let me = Process::open(std::process::id() as i32).expect("this process");
    let failed = tracer
        .try_stop(&me, LIMIT, Strictness::NoUserCode, &mut script.clone())
        .expect_err("a thread that never stops");
    assert!(matches!(failed.error, StopError::Timeout), "{failed:?}");
    let seen = script.seen();
    assert_eq!(seen.last(), Some(&Seen::Stops(1)));
    tracer.give_up(failed);
    assert_eq!(script.seen()[seen.len()..], [Seen::Detached(1)]);
}

#[test]
fn where_all_threads_sleep_in_the_kernel_nobody_is_there_to_be_waited_for() {
    let mut sleeps = thread(1, Never);
    sleeps.state = 'D';
    let script = script(vec![sleeps]);
    let failed = script
        .stop_once(Strictness::NoUserCode)
        .expect_err("nobody to run a call");
    assert!(matches!(failed, StopError::Timeout), "{failed:?}");
    assert!(script.time() < LIMIT, "{:?}", script.time());
}

#[test]
fn memory_that_others_run_in_is_let_alone_and_their_events_stay_unread() {
    // The event may be theirs.
    let plain = script(vec![thread(1, at(0))]).change(|w| w.sharer = true);
    let mut waits = thread(1, Read);
    waits.state = 'D';
    let event = script(vec![waits]).change(|w| (w.sharer, w.events) = (true, vec![micros(0)]));
    for (script, strictness) in [
        (&plain, Strictness::All),
        (&event, Strictness::All),
        (&event.clone(), Strictness::NoUserCode),
    ] {
        let failed = script.stop_once(strictness).expect_err("others run");
        assert!(matches!(failed, StopError::Shared), "{failed:?}");
        assert!(!script.seen().contains(&Seen::ReadOne));
    }
    assert_eq!(plain.seen().last(), Some(&Seen::Detached(1)));
}

#[test]
fn where_an_event_was_read_before_sharers_came_only_its_pages_are_zero_filled() {
    let mut waits = thread(1, Read);
    waits.state = 'D';
    let script = script(vec![waits]).change(|w| w.events = vec![micros(0)]);
    // They come with the event's reader: before, nobody shares.
    let mut tracer = script.tracer();
    let me = Process::open(std::process::id() as i32).expect("this process");
    let mut events = Joining(script.clone());
    let stopped = tracer
        .stop(&me, LIMIT, Strictness::All, &mut events)
        .expect("a stop");
    assert!(matches!(stopped.only_mend, Some(StopError::Shared)));
}

/// Events of a script whose memory is shared from the first one on that is read.
struct Joining(Script);

impl Events for Joining {
    fn pending(&self) -> bool {
        self.0.pending()
    }

    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    fn read_one(&mut self) {
        self.0.read_one();
        self.0.with(|w| w.sharer = true);
    }
}

#[test]
fn a_thread_that_another_tracer_has_ends_the_stop_and_all_others_go_on() {
    let script = script(vec![thread(1, at(0)), thread(2, at(0))]).change(|w| w.taken = vec![2]);
    let mut tracer = script.tracer();
    let failed = script
        .stop(&mut tracer, Strictness::All)
        .expect_err("a tracer");
    assert!(matches!(failed, StopError::Refused(_)), "{failed:?}");
    // Interrupted, but not yet told to have stopped: it is detached when it does.
    assert_eq!(tracer.held(), [1]);
}

#[test]
fn a_thread_born_under_a_followed_one_is_ours_without_being_seized() {
    let mut born = thread(2, at(0));
    (born.born, born.seized) = (micros(100), true);
    let script = script(vec![thread(1, at(200)), born]);
    let mut tracer = script.tracer();
    tracer.follow(std::process::id() as i32);
    let stopped = tracer
        .stop(
            &Process::open(std::process::id() as i32).expect("this process"),
            LIMIT,
            Strictness::All,
            &mut NoEvents,
        )
        .expect("a stop");
    assert_eq!(stopped.tids, [1, 2]);
    assert!(!script.seen().contains(&Seen::Seized(2)));
    tracer.release(stopped);
    assert_eq!(
        script.seen()[script.seen().len() - 2..],
        [Seen::Resumed(1, 0), Seen::Resumed(2, 0)]
    );
}

//! A ward: one target with its descendants, and the thread that alone stops them.
//!
//! A process can hold up whoever waits for it, in more ways than can be counted: by a fault in its memory that nobody
//! serves, a lock of its memory that is not given back, a thread that does not stop. So those who share nothing but their
//! user are looked after by different threads. Of what happens in a ward nobody outside of it has to wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::wire::{invalid, op, Answer, Request, FLAG_APART, FLAG_FORKS};
use crate::changes::{self, lock, Listening};
use crate::descriptors;
use crate::pool::Pool;
use crate::ptrace::{News, Tracer};
use crate::sys::{self, cpu_time, pairs};
use crate::target::{Outcome, PageOutcome, PageRun, PendingChild, StopLimits, Target, Way};
use crate::turns;

/// How often targets are checked for having replaced their program.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// While a thread is still to be released.
const TEND_EVERY: Duration = Duration::from_millis(1);
/// A child that is not found at once is looked for less often: each time all processes are gone through.
const EAGER_WAITS: u32 = 50;
const PENDING_EVERY: Duration = Duration::from_millis(20);

/// What all wards and the hall have in common.
pub struct Common {
    /// The frames.
    pub pool: Pool,
    /// The thread that talks to the engine.
    pub hall: i32,
    limits: Mutex<StopLimits>,
    wards: Mutex<BTreeMap<u64, Entry>>,
    replies: Mutex<Vec<(u64, u64, io::Result<Answer>)>>,
}

/// A ward as seen from outside.
#[derive(Default)]
struct Entry {
    /// Its thread, once it runs.
    tid: i32,
    pids: BTreeSet<i32>,
    /// Whether it looks after children whose ids it does not know yet.
    awaits_children: bool,
    letters: VecDeque<Letter>,
}

/// What a ward is told.
pub enum Letter {
    /// To be carried out and answered.
    Request(u64, Request),
    /// The engine has gone.
    EngineGone,
}

impl Common {
    /// For the calling thread as the hall.
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            hall: changes::own_tid(),
            limits: Mutex::default(),
            wards: Mutex::default(),
            replies: Mutex::default(),
        }
    }

    fn limits(&self) -> StopLimits {
        *lock(&self.limits)
    }

    /// Sets the limits of all targets.
    pub fn set_limits(&self, limits: StopLimits) {
        *lock(&self.limits) = limits;
    }

    /// What tells the pool from all other files, and whether it is on a file system of its own.
    pub fn pool_words(&self) -> [u64; 3] {
        let file = self.pool.file();
        [file.device, file.inode, u64::from(self.pool.is_apart())]
    }

    /// Whether nobody is looked after.
    pub fn is_empty(&self) -> bool {
        lock(&self.wards).is_empty()
    }

    /// All processes that are looked after.
    pub fn pids(&self) -> Vec<i32> {
        lock(&self.wards)
            .values()
            .flat_map(|w| w.pids.iter().copied())
            .collect()
    }

    /// The ward of a process.
    pub fn ward_of(&self, pid: i32) -> Option<u64> {
        lock(&self.wards)
            .iter()
            .find_map(|(id, w)| w.pids.contains(&pid).then_some(*id))
    }

    /// The ward that a process which none is known to look after must go to, if it cannot have one of its own: that which
    /// traces it already, as one does with all that a followed process forks, or which may have it among the children
    /// that it has heard of.
    pub fn family_of(&self, pid: i32) -> Option<u64> {
        let tracer = sys::tracer_of(pid, pid).filter(|tracer| *tracer != 0);
        let parent = sys::parent_of(pid);
        let wards = lock(&self.wards);
        let find =
            |fits: &dyn Fn(&Entry) -> bool| wards.iter().find_map(|(id, w)| fits(w).then_some(*id));
        find(&|w| tracer == Some(w.tid))
            .or_else(|| find(&|w| parent.is_some_and(|p| w.pids.contains(&p))))
            .or_else(|| find(&|w| w.awaits_children))
    }

    /// Puts a letter into a ward's box; false where it has ended.
    pub fn send(&self, ward: u64, letter: Letter) -> bool {
        let mut wards = lock(&self.wards);
        let Some(entry) = wards.get_mut(&ward) else {
            return false;
        };
        entry.letters.push_back(letter);
        if entry.tid != 0 {
            changes::wake(entry.tid);
        }
        true
    }

    /// Whether a ward has.
    pub fn has_ended(&self, ward: u64) -> bool {
        !lock(&self.wards).contains_key(&ward)
    }

    /// Tells all wards that the engine has gone.
    pub fn engine_gone(&self) {
        let all: Vec<u64> = lock(&self.wards).keys().copied().collect();
        for ward in all {
            self.send(ward, Letter::EngineGone);
        }
    }

    /// Begins a ward for a process, with its first letter.
    pub fn begin(self: &Arc<Self>, id: u64, pid: i32, first: Letter) -> io::Result<()> {
        let entry = Entry {
            tid: 0,
            pids: BTreeSet::from([pid]),
            awaits_children: false,
            letters: VecDeque::from([first]),
        };
        lock(&self.wards).insert(id, entry);
        let common = Arc::clone(self);
        let begun = crate::sys::quiet_thread("ward", move || Ward::new(common, id).run());
        if begun.is_err() {
            lock(&self.wards).remove(&id);
        }
        begun
    }

    /// Answers since last asked: ward, serial number of the request, answer.
    pub fn take_replies(&self) -> Vec<(u64, u64, io::Result<Answer>)> {
        std::mem::take(&mut *lock(&self.replies))
    }
}

/// How soon something is to be looked at again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Soon,
    Now,
}

struct Ward {
    common: Arc<Common>,
    id: u64,
    tracer: Tracer,
    targets: BTreeMap<i32, Target>,
    /// Children that are guarded but not yet known by pid.
    pending: Vec<PendingChild>,
}

impl Drop for Ward {
    fn drop(&mut self) {
        // Also where it ends by a fault of ours: nothing is sent to it any more.
        lock(&self.common.wards).remove(&self.id);
        changes::wake(self.common.hall);
    }
}

impl Ward {
    fn new(common: Arc<Common>, id: u64) -> Self {
        if let Some(entry) = lock(&common.wards).get_mut(&id) {
            entry.tid = changes::own_tid();
        }
        Self {
            common,
            id,
            tracer: Tracer::default(),
            targets: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    /// Looks after the targets until the last has gone.
    fn run(mut self) {
        let listening = Listening::begin();
        turns::begin();
        let mut held = Vec::new();
        let mut last_check = Instant::now();
        let mut waits = 0;
        loop {
            if self.targets.is_empty() && self.pending.is_empty() && self.closes() {
                return;
            }
            // Said first, then looked at: what changes later wakes this thread.
            let now = self.tracer.held();
            if now != held {
                held.clone_from(&now);
                listening.hold(now);
            }
            // It may add targets.
            let awaited = self.tend();
            waits = if self.pending.is_empty() {
                0
            } else {
                waits + 1
            };
            let timeout = match waits {
                _ if awaited == Awaited::Now || self.tracer.held() != held => Duration::ZERO,
                _ if self.has_letters() => Duration::ZERO,
                _ if awaited == Awaited::Soon => TEND_EVERY,
                _ if self.targets.values().any(Target::has_unanswered) => TEND_EVERY,
                0 => CHECK_EVERY,
                1..EAGER_WAITS => TEND_EVERY,
                _ => PENDING_EVERY,
            };
            let mut fds: Vec<libc::pollfd> = Vec::with_capacity(2 * self.targets.len());
            for t in self.targets.values() {
                fds.push(changes::readable(t.guard.as_raw_fd()));
                fds.push(changes::readable(t.pidfd.as_raw_fd()));
            }
            changes::wait_idle(&mut fds, timeout);
            self.on_events(&fds);
            self.adopt_children();
            if last_check.elapsed() >= CHECK_EVERY {
                last_check = Instant::now();
                self.tracer.rest();
                self.targets.retain(|_, t| {
                    let there = t.still_there();
                    t.rest();
                    if !there {
                        t.forget();
                    }
                    there
                });
                for t in self.targets.values_mut() {
                    t.look_for_tracers(&mut self.tracer);
                    t.look_for_rights();
                }
            }
            self.publish();
            while let Some(letter) = self.next_letter() {
                match letter {
                    Letter::Request(serial, request) => {
                        let answer = self.answer(&request);
                        self.publish();
                        lock(&self.common.replies).push((self.id, serial, answer));
                        changes::wake(self.common.hall);
                    }
                    Letter::EngineGone => self.engine_gone(),
                }
            }
            changes::stop_is_over();
        }
    }

    /// Looks at what targets have told of, as polled: guard and pidfd of each in turn.
    fn on_events(&mut self, fds: &[libc::pollfd]) {
        let pids: Vec<i32> = self.targets.keys().copied().collect();
        for (pid, polled) in pids.iter().zip(fds.chunks_exact(2)) {
            // Events first: a child may have been forked just before the end.
            if let Some(t) = self.targets.get_mut(pid) {
                if polled[0].revents != 0 || t.needs_zero_fill() {
                    t.on_events(&mut self.tracer);
                    t.rest();
                }
            }
            if polled[1].revents != 0 || self.targets.get(pid).is_some_and(Target::idle) {
                self.collect_pending();
                if let Some(t) = self.targets.remove(pid) {
                    t.forget();
                }
            }
        }
    }

    /// Says to the hall which processes are looked after here.
    fn publish(&self) {
        if let Some(entry) = lock(&self.common.wards).get_mut(&self.id) {
            entry.awaits_children = !self.pending.is_empty();
            let same = entry.pids.iter().eq(self.targets.keys());
            // With letters left the first of them may be about a process that is still to be attached.
            if !same && entry.letters.is_empty() {
                entry.pids = self.targets.keys().copied().collect();
            }
        }
    }

    fn has_letters(&self) -> bool {
        let wards = lock(&self.common.wards);
        wards.get(&self.id).is_some_and(|w| !w.letters.is_empty())
    }

    fn next_letter(&self) -> Option<Letter> {
        let mut wards = lock(&self.common.wards);
        wards.get_mut(&self.id)?.letters.pop_front()
    }

    /// Ends the ward for those outside, unless there is still a letter.
    fn closes(&self) -> bool {
        let mut wards = lock(&self.common.wards);
        let empty = wards.get(&self.id).is_none_or(|w| w.letters.is_empty());
        if empty {
            wards.remove(&self.id);
        }
        empty
    }

    /// Looks after traced threads and acts on what followed processes did.
    fn tend(&mut self) -> Awaited {
        let mut awaited = if self.tracer.tend() {
            Awaited::Soon
        } else {
            Awaited::Nothing
        };
        for news in self.tracer.take_news() {
            match news {
                News::Executed { pid } => {
                    if let Some(t) = self.targets.remove(&pid) {
                        t.forget();
                    }
                }
                News::Forked { parent, child } => {
                    // What came up during this stop has not been looked at.
                    awaited = Awaited::Now;
                    let guarded = self
                        .targets
                        .get(&parent)
                        .map(|t| t.guard_child(&mut self.tracer, child, &self.common.pool));
                    let few = |e: &io::Error| e.raw_os_error() == Some(libc::EMFILE);
                    if matches!(&guarded, Some(Err(e)) if few(e)) {
                        if let Some(parent) = self.targets.get_mut(&parent) {
                            parent.shed_soon();
                        }
                    }
                    if let Some(Ok(t)) = guarded {
                        self.targets.insert(child, t);
                    } else {
                        // The child has ended or cannot be guarded, or its parent is a target no more.
                        self.tracer.unfollow(child);
                        self.tracer.start_child(child, false);
                    }
                }
            }
        }
        awaited
    }

    fn answer(&mut self, request: &Request) -> io::Result<Answer> {
        let Request {
            number,
            pid,
            flags,
            ref records,
        } = *request;
        let limits = self.common.limits();
        if let Some(t) = self.targets.get_mut(&pid) {
            t.set_limits(limits);
        }
        let begun = cpu_time();
        let outcome = |o| Answer::Outcome(o, cpu_time().saturating_sub(begun));
        if number == op::ATTACH {
            let forks = flags & FLAG_FORKS != 0;
            // It may be a child that has just been told of.
            self.tend();
            self.adopt_children();
            // It may have replaced its program since it was attached.
            if self.targets.get(&pid).is_some_and(|t| !t.still_there()) {
                self.targets.remove(&pid);
            }
            match self.targets.get_mut(&pid) {
                Some(t) if t.tracks() => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
                _ if descriptors::are_few(self.common.pool.for_targets()) => {
                    return Err(io::Error::from_raw_os_error(libc::EMFILE))
                }
                Some(t) => t.complete(&mut self.tracer)?,
                None => {
                    let pool = &self.common.pool;
                    let t = Target::attach(&mut self.tracer, pid, limits, forks, pool)?;
                    self.targets.insert(pid, t);
                }
            }
            let (start, end) = self.targets[&pid].region_range();
            return Ok(Answer::Bytes(
                [start.to_le_bytes(), end.to_le_bytes()].concat(),
            ));
        }
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        if number == op::DETACH {
            let t = self.targets.get_mut(&pid).ok_or_else(gone)?;
            if t.maps_frames() {
                // What is left merged on purpose is guarded on, as when an engine ends.
                t.end_tracking();
                return Ok(Answer::Bytes(Vec::new()));
            }
            t.detach(&mut self.tracer)?;
            self.collect_pending();
            self.targets.remove(&pid);
            return Ok(Answer::Bytes(Vec::new()));
        }
        let t = self.targets.get_mut(&pid).ok_or_else(gone)?;
        if number == op::ARM {
            let ranges: Vec<(u64, u64)> = pairs(records).collect();
            return Ok(Answer::Bytes(
                t.arm(&ranges)
                    .iter()
                    .flat_map(|e| e.to_le_bytes())
                    .collect(),
            ));
        }
        let runs = request.runs();
        let frames_end = |r: &PageRun| u64::from(r.frame) + u64::from(r.pages);
        Ok(outcome(match number {
            // Each merged process may have many children, each of which takes a descriptor.
            op::MERGE
                if t.has_given_up_rights()
                    || descriptors::are_few(self.common.pool.for_targets()) =>
            {
                let pages = runs.iter().map(|r| r.pages as usize).sum();
                Outcome {
                    codes: vec![PageOutcome::Refused as u8; pages],
                    ..Outcome::default()
                }
            }
            op::MERGE
                if runs
                    .iter()
                    .all(|r| frames_end(r) <= u64::from(self.common.pool.frames())) =>
            {
                t.merge(&mut self.tracer, &self.common.pool, &runs)
            }
            op::ZERO => t.drop_zero(&mut self.tracer, &runs),
            op::UNMERGE => {
                let way = if flags & FLAG_APART != 0 {
                    Way::Apart
                } else {
                    Way::Joined
                };
                t.unmerge(&mut self.tracer, &self.common.pool, &runs, way)
            }
            op::GUARD_PAGES => t.close_ends(&mut self.tracer, &self.common.pool, &runs),
            _ => return Err(invalid()),
        }))
    }

    /// Takes over the children that targets have announced: they may outlive them.
    fn collect_pending(&mut self) {
        for t in self.targets.values_mut() {
            for born in t.take_born() {
                let child = t.pending_child(born);
                self.pending.push(child);
            }
        }
    }

    /// Children announced by fork events become targets of their own as soon as their pid is known.
    fn adopt_children(&mut self) {
        self.collect_pending();
        if self.pending.is_empty() {
            return;
        }
        let hints: Vec<i32> = self
            .targets
            .values_mut()
            .flat_map(Target::take_hints)
            .collect();
        self.adopt_among(&hints);
        if self.pending.is_empty() {
            return;
        }
        // Mostly it is a child of its parent; not so if the parent has ended or has given it to its own parent.
        let parents: BTreeSet<i32> = self.pending.iter().map(|c| c.parent).collect();
        let near: Vec<i32> = parents.into_iter().flat_map(children_of).collect();
        self.adopt_among(&near);
        if !self.pending.is_empty() {
            let (living, gone) = std::mem::take(&mut self.pending)
                .into_iter()
                .partition(PendingChild::alive);
            self.pending = living;
            for child in gone {
                // It has ended, or runs another program by now.
                let others = children_of(child.parent).into_iter();
                others
                    .filter(|pid| !self.targets.contains_key(pid))
                    .for_each(|pid| child.forget(pid));
            }
            self.adopt_among(&crate::sys::all_processes());
        }
    }

    fn adopt_among(&mut self, pids: &[i32]) {
        for &pid in pids {
            if self.pending.is_empty() {
                return;
            }
            if self.targets.contains_key(&pid) {
                continue;
            }
            let adopted = self
                .pending
                .iter_mut()
                .enumerate()
                .find_map(|(i, c)| Some((i, c.adopt(pid)?)));
            if let Some((i, mut target)) = adopted {
                self.pending.swap_remove(i);
                target.look_for_rights();
                target.rest();
                self.targets.insert(pid, target);
            }
        }
    }

    /// Targets without merged memory are detached; the others are guarded on.
    fn engine_gone(&mut self) {
        let pids: Vec<i32> = self.targets.keys().copied().collect();
        for pid in pids {
            let Some(t) = self.targets.get_mut(&pid) else {
                continue;
            };
            if t.maps_frames() {
                t.end_tracking();
            } else {
                let _ = t.detach(&mut self.tracer);
                self.targets.remove(&pid);
            }
        }
    }
}

/// The children of all threads of `pid`.
fn children_of(pid: i32) -> Vec<i32> {
    let mut out = Vec::new();
    for tid in crate::sys::numbers_in(&format!("/proc/{pid}/task")) {
        let text =
            std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
        out.extend(
            text.split_ascii_whitespace()
                .filter_map(|w| w.parse::<i32>().ok()),
        );
    }
    out
}

//! One target process: attach, arm, merge, drop zero pages, unmerge, mend after a discard, detach.
//!
//! Runs in the guardian, the only process that stops targets. Whatever is asked, a page is changed only after all
//! its bytes have been compared inside the stop; a page in doubt is left alone and its code says why.

mod advice;
mod close;
mod descriptor;
mod exchange;
mod mend;
mod rights;
mod shared;
mod shed;
mod unstopped;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arch::{self, nr};
use crate::inject::{Op, Workshop, ASIDE_PAGES, MESSAGE_AT, OPS_MAX};
use crate::kinds::Kinds;
use crate::pool::Pool;
use crate::process::Process;
use crate::ptrace::{Events, NoEvents, StopError, Stopped, Strictness, Tracer};
use crate::remedies;
use crate::sys::{self, pidfd_getfd, FileId, Maps, PAGE, VMA_PRIVATE_RW};
use crate::uffd::{Event, Uffd, Use};
use advice::{Advised, FOR_ANONYMOUS, FOR_FRAMES};
use close::Close;
use descriptor::{table_of_worker, Lent};
use exchange::{is_back, way_back, Fate, Steps, MOVE, PIECES_MAX, PIECE_PAGES, STEPS};
use rights::Rights;

/// What became of a page; the values are `PageCode` of `pageone.engine.backend`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Done = 0,
    Differs = 1,
    Written = 2,
    Gone = 3,
    Refused = 4,
    Timeout = 5,
    Shared = 6,
}

/// A run of pages and, for a merge, its first frame.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// First byte.
    pub addr: u64,
    /// Number of pages.
    pub pages: u32,
    /// Frame of the first page.
    pub frame: u32,
}

/// What a request did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One code a page, in the order of the request.
    pub codes: Vec<u8>,
    /// Seconds that the target stood still, one a stop.
    pub pauses: Vec<f64>,
    /// Mappings that the target has more than before (estimated by runs mapped).
    pub mappings: u32,
    /// Seconds that the target's own threads ran injected code.
    pub injected: f64,
}

/// Settings of a target.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A stop aims to be no longer than this.
    pub pause: Duration,
    /// A target that has not stopped by then is left alone.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pause: Duration::from_micros(1500),
            stop_timeout: Duration::from_millis(20),
        }
    }
}

/// Pages a stop begins with, before anything has been measured.
const FIRST_BATCH: f64 = 128.0;
/// Share of the pause budget that work may take; the rest is for stopping and for what goes wrong.
const AIM: f64 = 0.7;
const BATCH_MIN: f64 = 32.0;
const BATCH_MAX: f64 = ASIDE_PAGES as f64;
/// Runs of one batch.
const RUNS_MAX: usize = PIECES_MAX;

/// How frames are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// So that the kernel joins the memory with its neighbours again.
    Joined,
    /// So that nobody outside of the target can come in between. Each run stays a mapping of its own.
    Apart,
}

/// Kinds of work, each with its own cost a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Merge = 0,
    Zero = 1,
    Unmerge = 2,
    Fence = 3,
}

/// A process whose memory is merged.
pub struct Target {
    /// Process id.
    pub pid: i32,
    /// Handle that cannot come to mean another process.
    pub pidfd: Arc<OwnedFd>,
    process: Process,
    workshop: Workshop,
    track: Option<Uffd>,
    /// Watches merged ranges.
    pub guard: Uffd,
    limits: Limits,
    /// Pages of the next stop, for each kind of work.
    batch: [f64; 4],
    discarded: Vec<(u64, u64)>,
    /// Ranges that the program has moved, not looked at yet: from, to, bytes.
    moved: Vec<(u64, u64, u64)>,
    /// Where the program has unmapped frames, not looked at yet: those before may lie open now.
    opened: Vec<u64>,
    /// Pages without access behind mappings of frames.
    fences: BTreeSet<u64>,
    /// What merged mappings are given advice.
    advised: Advised,
    /// Those of this batch that have been found to be hidden still, from children or from core dumps.
    hidden: Vec<(u64, u64, u64)>,
    /// Mappings that the program had locked in memory when something was to be given back: start and end.
    locked: Vec<(u64, u64)>,
    /// Children's address spaces, from fork events, not yet known by pid.
    born: Vec<Born>,
    /// Inode of the pool whose frames it maps.
    pool_file: FileId,
    /// What is known of its frames, while they are watched closely.
    close: Option<Close>,
    /// Whether they are for as long as it lives.
    for_life: bool,
    rights: Rights,
    /// Set while it cannot be stopped.
    unstopped: bool,
    core_dumps: CoreDumps,
    /// Whether the kernel tells of its forks; where it does not this user may not be able to open its files again.
    told_of_forks: bool,
    /// Whether its merged memory has been given back, and none has come since.
    bare: bool,
    must_shed: bool,
    /// What calls of its threads have returned when it forked: the pids of its children, perhaps.
    hints: Vec<i32>,
    kinds: Kinds,
}

/// A child whose fork was told of, but not yet its pid: its memory is guarded from the first instruction on.
pub struct Heir {
    /// The process that forked it; it may have ended since.
    pub parent: i32,
    workshop: Workshop,
    guard: Option<Uffd>,
    /// Where it may see frames, if they are watched closely.
    close: Option<Close>,
    for_life: bool,
    rights: Rights,
    /// Whether its parent could not be stopped.
    unstopped: bool,
    limits: Limits,
    advised: Advised,
    fences: BTreeSet<u64>,
    pool_file: FileId,
    core_dumps: CoreDumps,
}

impl Heir {
    /// Whether its address space still exists.
    pub fn alive(&self) -> bool {
        self.guard
            .as_ref()
            .is_some_and(|g| g.alive(self.workshop.base))
    }

    /// Undoes what its new program has of it, if process `child` runs that: see [`Target::forget`].
    pub fn forget(&self, child: i32) {
        if !self.workshop.intact(sys::memory_tid(child)) {
            self.core_dumps.restore(child);
        }
    }

    /// The target that process `child` is, if it is this one; it inherited the workshop with its parent's memory.
    pub fn adopt(&mut self, child: i32) -> Option<Target> {
        // Its first thread may have ended already, and its memory be reached through another only.
        let mut through = child;
        if !self.workshop.intact(child) {
            through = sys::memory_tid(child);
            if through == child || !self.workshop.intact(through) {
                return None;
            }
        }
        let process = Process::open(child).ok()?;
        // Several children may have been born since: a page watched through the right descriptor is one that the
        // kernel agrees to scan for asynchronous write protection in this child, and in no other.
        let probe = self.workshop.base + MESSAGE_AT;
        let guard = self.guard.as_ref()?;
        guard.register(probe, probe + PAGE).ok()?;
        let belongs = sys::tracks_writes(through, probe);
        let _ = guard.unregister(probe, probe + PAGE);
        if !belongs {
            return None;
        }
        let adopted = Target {
            pid: child,
            pidfd: Arc::clone(&process.pidfd),
            process,
            workshop: self.workshop,
            track: None,
            guard: self.guard.take()?,
            limits: self.limits,
            batch: [FIRST_BATCH; 4],
            discarded: Vec::new(),
            moved: Vec::new(),
            opened: Vec::new(),
            locked: Vec::new(),
            fences: std::mem::take(&mut self.fences),
            advised: std::mem::take(&mut self.advised),
            hidden: Vec::new(),
            born: Vec::new(),
            pool_file: self.pool_file,
            close: self.close.take(),
            for_life: self.for_life,
            rights: self.rights,
            unstopped: self.unstopped,
            core_dumps: self.core_dumps,
            told_of_forks: true,
            bare: false,
            must_shed: false,
            hints: Vec::new(),
            kinds: Kinds::default(),
        };
        adopted.keep_watching();
        Some(adopted)
    }
}

/// The guard's events of one target, as a stop reads them.
struct Watch<'a> {
    guard: &'a Uffd,
    discarded: &'a mut Vec<(u64, u64)>,
    moved: &'a mut Vec<(u64, u64, u64)>,
    opened: &'a mut Vec<u64>,
    born: &'a mut Vec<Born>,
    bare: bool,
    close: &'a mut Option<Close>,
    unstopped: bool,
}

/// The address space of a child that a fork event has told of.
pub struct Born {
    guard: Uffd,
    close: Option<Close>,
    unstopped: bool,
}

impl Events for Watch<'_> {
    fn descriptor(&self) -> Option<RawFd> {
        Some(self.guard.as_raw_fd())
    }

    fn pending(&self) -> bool {
        self.guard.has_news()
    }

    fn read_one(&mut self) {
        match self.guard.next_event() {
            Ok(Some(Event::Remove { start, end })) => {
                self.discarded.push((start, end));
                if let Some(close) = self.close {
                    close.frames.remove(start, end);
                }
            }
            // A child without merged memory needs no guard.
            Ok(Some(Event::Fork(_))) if self.bare => {}
            Ok(Some(Event::Fork(guard))) => self.born.push(Born {
                guard,
                close: self.close.as_ref().map(Close::inherited),
                unstopped: self.unstopped,
            }),
            Ok(Some(Event::Remap { from, to, len })) => {
                if let Some(close) = self.close {
                    close.moved(from, to, len);
                }
                self.moved.push((from, to, len));
            }
            Ok(Some(Event::Unmap { start, end })) => {
                self.opened.push(start);
                if let Some(close) = self.close {
                    close.frames.remove(start, end);
                }
            }
            Ok(Some(Event::Fault { address })) => match self.close {
                Some(close) => close.answer(self.guard, address),
                // It has waited since before that ended.
                None => self.guard.wake(address & !(PAGE - 1)),
            },
            Ok(Some(Event::Other(_)) | None) | Err(_) => {}
        }
    }
}

/// Which of the pages `[addr, addr + pages)` may be changed, by the mapping they are in; `edges` collects where the
/// mappings begin, for no run may be moved across such a place.
fn classify(
    maps: &mut Maps,
    addr: u64,
    pages: u32,
    ok: impl Fn(&sys::Vma) -> bool,
    codes: &mut [u8],
    edges: &mut BTreeSet<u64>,
) {
    let end = addr + u64::from(pages) * PAGE;
    let mut at = addr;
    while at < end {
        match maps.at_or_after(at) {
            Ok(Some(v)) if v.start < end => {
                let from = v.start.max(at);
                let to = v.end.min(end);
                edges.insert(from);
                mark(codes, addr, at, from, Code::Gone);
                if !ok(&v) {
                    mark(codes, addr, from, to, Code::Gone);
                }
                at = to;
            }
            _ => {
                mark(codes, addr, at, end, Code::Gone);
                break;
            }
        }
    }
}

fn mark(codes: &mut [u8], addr: u64, from: u64, to: u64, code: Code) {
    codes[((from - addr) / PAGE) as usize..((to - addr) / PAGE) as usize].fill(code as u8);
}

/// Runs that overlap one before them in order of addresses: first page, counted over all runs, and number of pages.
fn overlapping(runs: &[Run]) -> Vec<(usize, usize)> {
    let mut at = 0;
    let mut all: Vec<(u64, usize, usize)> = runs
        .iter()
        .map(|r| {
            at += r.pages as usize;
            (r.addr, at - r.pages as usize, r.pages as usize)
        })
        .collect();
    all.sort_unstable();
    let mut end = 0;
    all.retain(|&(addr, _, pages)| {
        let overlaps = addr < end;
        end = end.max(addr + pages as u64 * PAGE);
        overlaps
    });
    all.into_iter()
        .map(|(_, first, pages)| (first, pages))
        .collect()
}

/// Maximal runs of pages whose code is Done.
fn good_runs(runs: &[Run], codes: &[u8]) -> Vec<(Run, usize)> {
    let mut out: Vec<(Run, usize)> = Vec::new();
    let mut at = 0;
    for r in runs {
        let mut open = false;
        for i in 0..r.pages {
            let good = codes[at + i as usize] == Code::Done as u8;
            if good && open {
                out.last_mut().expect("open run").0.pages += 1;
            } else if good {
                let run = Run {
                    addr: r.addr + u64::from(i) * PAGE,
                    pages: 1,
                    frame: r.frame.wrapping_add(i),
                };
                out.push((run, at + i as usize));
            }
            open = good;
        }
        at += r.pages as usize;
    }
    out
}

/// Cuts runs into batches of at most `pages` pages and `RUNS_MAX` runs.
fn next_batch(runs: &[Run], cursor: &mut (usize, u32), pages: u32) -> Vec<Run> {
    let mut out = Vec::new();
    let mut left = pages;
    while left > 0 && cursor.0 < runs.len() && out.len() < RUNS_MAX {
        let r = runs[cursor.0];
        let n = (r.pages - cursor.1).min(left);
        if n > 0 {
            let skip = cursor.1;
            out.push(Run {
                addr: r.addr + u64::from(skip) * PAGE,
                pages: n,
                frame: r.frame.wrapping_add(skip),
            });
        }
        left -= n;
        cursor.1 += n;
        if cursor.1 == r.pages {
            *cursor = (cursor.0 + 1, 0);
        }
    }
    out
}

const PROT_RW: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const ANON: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const FIXED: u64 = libc::MAP_FIXED as u64;

impl Target {
    /// Attaches to process `pid`: plants the workshop and two userfaultfds. On an error the target is as it was.
    /// `follow_forks`: the kernel may tell of forks (needs `CAP_SYS_PTRACE`); else the process stays traced for it.
    pub fn attach(
        tracer: &mut Tracer,
        pid: i32,
        limits: Limits,
        follow_forks: bool,
        pool: &Pool,
    ) -> io::Result<Self> {
        if !crate::sharers::can_tell(std::process::id() as i32) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let process = Process::open(pid)?;
        let pidfd = Arc::clone(&process.pidfd);
        // The first stop includes page faults in the workshop and may find the target busy: it may take longer.
        if !follow_forks {
            tracer.follow(pid);
        }
        let stopped = tracer
            .stop(
                &process,
                Duration::from_secs(2),
                Strictness::All,
                &mut NoEvents,
            )
            .map_err(|e| {
                tracer.unfollow(pid);
                e.into_io()
            })?;
        let made = if tracer.descriptors_are_shared(&process, &stopped, stopped.memory()) {
            Err((io::Error::from_raw_os_error(libc::EUSERS), None))
        } else {
            Self::plant(tracer, &process, &stopped, follow_forks)
        };
        if let Err((_, Some(workshop))) = &made {
            let _ = workshop.remove(tracer, &process, &stopped);
        }
        match &made {
            Ok((workshop, ..)) => tracer.planted(pid, workshop.room()),
            Err(_) => tracer.unfollow(pid),
        }
        let (workshop, track, guard) = match made {
            Ok(made) => made,
            Err((e, _)) => {
                tracer.release(stopped);
                return Err(e);
            }
        };
        let mut target = Self {
            pid,
            pidfd,
            process,
            workshop,
            track: Some(track),
            guard,
            limits,
            batch: [FIRST_BATCH; 4],
            discarded: Vec::new(),
            moved: Vec::new(),
            opened: Vec::new(),
            locked: Vec::new(),
            fences: BTreeSet::new(),
            advised: Advised::default(),
            hidden: Vec::new(),
            born: Vec::new(),
            pool_file: pool.file(),
            close: None,
            for_life: false,
            rights: Rights::default(),
            unstopped: false,
            core_dumps: CoreDumps::default(),
            told_of_forks: follow_forks,
            bare: false,
            must_shed: false,
            hints: Vec::new(),
            kinds: Kinds::default(),
        };
        if follow_forks && pool.is_lasting() {
            target.watch_for_life(tracer, &stopped);
        }
        target.look_for_rights();
        tracer.release(stopped);
        Ok(target)
    }

    #[allow(clippy::type_complexity)]
    fn plant(
        tracer: &mut Tracer,
        process: &Process,
        stopped: &Stopped,
        follow_forks: bool,
    ) -> Result<(Workshop, Uffd, Uffd), (io::Error, Option<Workshop>)> {
        let workshop = Workshop::create(process, stopped).map_err(|e| (e, None))?;
        let fail = |e| (e, Some(workshop));
        let open = Op::new(nr::USERFAULTFD, &[crate::uffd::OPEN_FLAGS]);
        let mut ops = [open, open];
        workshop
            .run(tracer, process, stopped, &mut ops, &mut NoEvents)
            .map_err(fail)?;
        let fetched: Vec<io::Result<OwnedFd>> = ops
            .iter()
            .map(|op| match op.result {
                e @ ..=-1 => Err(io::Error::from_raw_os_error(-e as i32)),
                fd => table_of_worker(stopped).and_then(|table| pidfd_getfd(&table, fd as i32)),
            })
            .collect();
        let mut close: Vec<Op> = ops
            .iter()
            .filter(|o| o.result >= 0)
            .map(|o| Op::new(nr::CLOSE, &[o.result as u64]))
            .collect();
        workshop
            .run(tracer, process, stopped, &mut close, &mut NoEvents)
            .map_err(fail)?;
        let mut fetched = fetched.into_iter();
        let mut next = || fetched.next().expect("two descriptors");
        let track = next()
            .and_then(|fd| Uffd::new(fd, Use::Track))
            .map_err(fail)?;
        let guard = next()
            .and_then(|fd| {
                Uffd::new(
                    fd,
                    Use::Guard {
                        forks: follow_forks,
                    },
                )
            })
            .map_err(fail)?;
        Ok((workshop, track, guard))
    }

    /// Address range of the workshop in the target.
    pub fn workshop_range(&self) -> (u64, u64) {
        (
            self.workshop.base,
            self.workshop.base + crate::inject::WORKSHOP_SIZE,
        )
    }

    /// Begins to track writes in each of `ranges`; returns errno for each (0: armed). The low bits of the end carry
    /// the advice that new mappings there must be given again ([`ADVICE`]).
    pub fn arm(&mut self, ranges: &[(u64, u64)]) -> Vec<i32> {
        let mut out = Vec::with_capacity(ranges.len());
        for &(start, end) in ranges {
            let (end, advice) = (end & !(PAGE - 1), end & (PAGE - 1));
            out.push(match self.retrack(start, end) {
                Ok(()) => 0,
                Err(e) => e.raw_os_error().unwrap_or(libc::EINVAL),
            });
            self.advised.set(start, end, advice);
        }
        out
    }

    /// The call that locks a run again that is given memory of its own, where its mapping was locked.
    fn lock_again(&self, r: &Run) -> Option<Op> {
        let (start, bytes) = (r.addr, u64::from(r.pages) * PAGE);
        let locked = |l: &(u64, u64)| l.0 < start + bytes && start < l.1;
        let lock = Op::new(nr::MLOCK, &[start, bytes]);
        self.locked.iter().any(locked).then_some(lock)
    }

    fn retrack(&self, start: u64, end: u64) -> io::Result<()> {
        self.track
            .as_ref()
            .map_or(Err(io::Error::from_raw_os_error(libc::EBADF)), |u| {
                u.register(start, end)
            })
    }

    /// Whether writes of this target are tracked: not so for a child that is only guarded.
    pub fn tracks(&self) -> bool {
        self.track.is_some()
    }

    /// Stops tracking writes; merged ranges stay guarded.
    pub fn end_tracking(&mut self) {
        self.track = None;
    }

    /// New limits for stops from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether the process still has the address space that was attached (it may have called `exec`), and there is
    /// something to do in it.
    pub fn still_there(&self) -> bool {
        match self.workshop.found(sys::memory_tid(self.pid)) {
            Ok(true) => true,
            // It hides. What it maps is guarded on: for that nothing of it need be read.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                self.guard.alive(self.workshop.base)
            }
            // The same for a program that has unmapped the workshop, or a part of it.
            _ => self.guard.alive(self.workshop.base) && self.maps_frames(),
        }
    }

    /// Whether it maps frames, or that cannot be told.
    pub fn maps_frames(&self) -> bool {
        let first = self
            .process
            .with_maps(|maps| maps.next_of(self.pool_file, 0, u64::MAX));
        first.map_or(true, |v| v.is_some())
    }

    /// What a child, announced by a fork event, is to be made a target from, once its pid is known.
    pub fn heir(&self, born: Born) -> Heir {
        Heir {
            parent: self.pid,
            workshop: self.workshop,
            guard: Some(born.guard),
            close: born.close,
            for_life: self.for_life,
            rights: self.rights.inherited(),
            unstopped: born.unstopped,
            limits: self.limits,
            advised: self.advised.clone(),
            fences: self.fences.clone(),
            pool_file: self.pool_file,
            core_dumps: self.core_dumps,
        }
    }

    /// Makes a forked child, held at its first stop by `tracer`, a guarded target: for users whose userfaultfds are
    /// not told of forks. The child is released, followed like its parent.
    pub fn guard_child(&self, tracer: &mut Tracer, child: i32, pool: &Pool) -> io::Result<Self> {
        let process = Process::open(child)?;
        let pidfd = Arc::clone(&process.pidfd);
        tracer.follow(child);
        let stopped = tracer
            .stop(
                &process,
                Duration::from_secs(2),
                Strictness::NoUserCode,
                &mut NoEvents,
            )
            .map_err(StopError::into_io)?;
        if crate::sharers::same_memory(child, self.pid) {
            // No memory of its own: it is guarded through its parent.
            tracer.unfollow(child);
            tracer.release(stopped);
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let planted = || -> io::Result<Uffd> {
            if !self.workshop.intact(child) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            let guard = Uffd::new(
                self.fetch_uffd(tracer, &process, &stopped)?,
                Use::Guard { forks: false },
            )?;
            if guard.is_kept_back() {
                // Its parent may fork many more before it can be stopped: what is kept back must last for all their births.
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
            process.with_maps(|maps| {
                let mut at = 0;
                while let Some(v) = maps.next_of(pool.file(), at, u64::MAX)? {
                    guard.register(v.start, v.end)?;
                    // What its parent has discarded, and has not been filled, is as empty here.
                    for (start, end) in self.without_frames(v.start, v.end) {
                        guard.zero(start, end);
                    }
                    at = v.end;
                }
                Ok(())
            })?;
            Ok(guard)
        };
        let (guard, failure) = match { planted }() {
            Ok(guard) => (Ok(guard), None),
            Err(e) => (crate::descriptors::blind().map(Uffd::taken), Some(e)),
        };
        let made = guard.map(|guard| Self {
            pid: child,
            pidfd,
            process,
            workshop: self.workshop,
            track: None,
            guard,
            limits: self.limits,
            batch: [FIRST_BATCH; 4],
            discarded: Vec::new(),
            moved: Vec::new(),
            opened: Vec::new(),
            locked: Vec::new(),
            fences: self.fences.clone(),
            advised: self.advised.clone(),
            hidden: Vec::new(),
            born: Vec::new(),
            pool_file: self.pool_file,
            close: None,
            for_life: false,
            rights: Rights::default(),
            unstopped: false,
            core_dumps: self.core_dumps,
            told_of_forks: false,
            bare: false,
            must_shed: false,
            hints: Vec::new(),
            kinds: Kinds::default(),
        });
        let result = match (made, failure) {
            (Ok(target), None) => {
                target.rest();
                Ok(target)
            }
            (Ok(mut unguarded), Some(e)) => {
                // Without a guard it must not have frames. What fails for want of room may work with what has been given back.
                let _ = (0..SHED_TRIES).any(|_| unguarded.shed(tracer, &stopped));
                tracer.unfollow(child);
                Err(e)
            }
            (Err(e), _) => Err(e),
        };
        tracer.release(stopped);
        result
    }

    /// Opens a userfaultfd in a stopped process that has this target's workshop, and takes it over.
    fn fetch_uffd(
        &self,
        tracer: &mut Tracer,
        process: &Process,
        stopped: &Stopped,
    ) -> io::Result<OwnedFd> {
        let mut ops = [Op::new(nr::USERFAULTFD, &[crate::uffd::OPEN_FLAGS])];
        self.workshop
            .run(tracer, process, stopped, &mut ops, &mut NoEvents)?;
        if ops[0].result < 0 {
            return Err(io::Error::from_raw_os_error(-ops[0].result as i32));
        }
        let fd =
            table_of_worker(stopped).and_then(|table| pidfd_getfd(&table, ops[0].result as i32));
        let mut close = [Op::new(nr::CLOSE, &[ops[0].result as u64])];
        self.workshop
            .run(tracer, process, stopped, &mut close, &mut NoEvents)?;
        fd
    }

    /// Adds write tracking to a target that so far was only guarded.
    pub fn complete(&mut self, tracer: &mut Tracer) -> io::Result<()> {
        let mut stopped = self
            .stop(tracer, Duration::from_secs(2), Strictness::All)
            .map_err(StopError::into_io)?;
        // What a thread discards meanwhile was let happen by the stop.
        self.mend(tracer, &stopped);
        let track = match stopped.only_mend.take() {
            Some(e) => Err(e.into_io()),
            None => self
                .fetch_uffd(tracer, &self.process, &stopped)
                .and_then(|fd| Uffd::new(fd, Use::Track)),
        };
        tracer.release(stopped);
        self.track = Some(track?);
        Ok(())
    }

    fn stop(
        &mut self,
        tracer: &mut Tracer,
        timeout: Duration,
        strictness: Strictness,
    ) -> Result<Stopped, StopError> {
        let mut watch = Watch {
            guard: &self.guard,
            discarded: &mut self.discarded,
            moved: &mut self.moved,
            opened: &mut self.opened,
            born: &mut self.born,
            bare: self.bare,
            close: &mut self.close,
            unstopped: self.unstopped,
        };
        tracer.transfers.know(self.pid, self.workshop.room());
        let stopped = tracer.stop(&self.process, timeout, strictness, &mut watch);
        if matches!(stopped, Err(ref e) if !matches!(e, StopError::Gone)) {
            self.watch_what_was_read();
        }
        stopped
    }

    /// Does `work` for batches of `runs` inside stops sized to the pause budget.
    fn in_stops(
        &mut self,
        tracer: &mut Tracer,
        kind: Kind,
        runs: &[Run],
        mut work: impl FnMut(
            &mut Self,
            &mut Tracer,
            &Stopped,
            &[Run],
            &mut [u8],
            &mut Outcome,
        ) -> io::Result<()>,
    ) -> Outcome {
        let total: usize = runs.iter().map(|r| r.pages as usize).sum();
        let mut out = Outcome {
            codes: Vec::with_capacity(total),
            ..Default::default()
        };
        if !self.stop_again(tracer) {
            out.codes.resize(total, Code::Refused as u8);
            return out;
        }
        let (pinned, locked) = sys::pinned_and_locked(self.pid);
        // What is given back is locked again; what is merged could be locked since its flags were looked at.
        let giving = matches!(kind, Kind::Unmerge | Kind::Fence);
        if (pinned || (locked && kind != Kind::Unmerge) || (giving && self.written_behind()))
            && !remedies::without("rings")
        {
            out.codes.resize(total, Code::Refused as u8);
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
            let mut codes = vec![Code::Done as u8; pages];
            if self.is_unstopped() {
                // Since a stop of this request has failed. Frames mapped now would be taken for discarded ones.
                out.codes
                    .resize(out.codes.len() + pages, Code::Timeout as u8);
                continue;
            }
            match self.stop(tracer, self.limits.stop_timeout, Strictness::All) {
                Err(StopError::Timeout) => codes.fill(Code::Timeout as u8),
                Err(StopError::Gone) => codes.fill(Code::Gone as u8),
                Err(StopError::Refused(_) | StopError::Shared) => codes.fill(Code::Refused as u8),
                Ok(stopped) if stopped.only_mend.is_some() => {
                    let code = match stopped.only_mend {
                        Some(StopError::Timeout) => Code::Timeout,
                        _ => Code::Refused,
                    };
                    codes.fill(code as u8);
                    self.mend(tracer, &stopped);
                    tracer.release(stopped);
                }
                Ok(stopped) if !self.workshop.intact(stopped.memory()) => {
                    codes.fill(Code::Gone as u8);
                    self.mend(tracer, &stopped);
                    tracer.release(stopped);
                }
                // What was pinned before the engine last asked what was written had been registered by then: whoever asks
                // for a merge has looked for it, and for giving back it was done above. What was pinned since then counts
                // as written. Such a page is not merged; among those to be given back it makes us look again, in the
                // stop. That of a device registered only for reading does not count as written, but has its mappings.
                Ok(stopped)
                    if !remedies::without("rings")
                        && (stopped.workers
                            || match giving {
                                true => self.any_written(&batch) && self.written_behind(),
                                false => !looked && self.maps_devices(),
                            }) =>
                {
                    codes.fill(Code::Refused as u8);
                    self.mend(tracer, &stopped);
                    tracer.release(stopped);
                }
                Ok(stopped) => {
                    looked = true;
                    let (begun, cpu) = (Instant::now(), sys::cpu_time());
                    self.mend(tracer, &stopped);
                    if let Err(e) = work(self, tracer, &stopped, &batch, &mut codes, &mut out) {
                        let code = if e.raw_os_error() == Some(libc::ETIMEDOUT) {
                            Code::Timeout
                        } else {
                            Code::Refused
                        };
                        for c in codes.iter_mut().filter(|c| **c == Code::Done as u8) {
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
            if self.needs_mending() {
                // Read of, but no stop came about in time.
                self.on_events(tracer);
            }
            out.codes.extend_from_slice(&codes);
        }
        out
    }

    /// Whether the kernel or a device may write its memory behind the page tables, or that cannot be told.
    fn written_behind(&mut self) -> bool {
        let kinds = &mut self.kinds;
        let found = self.process.with_maps(|maps| kinds.behind(self.pid, maps));
        !found.is_ok_and(|what| what.is_none())
    }

    /// Whether a page of `runs` was written since the engine last asked, or that cannot be told.
    fn any_written(&self, runs: &[Run]) -> bool {
        let mut any = false;
        runs.iter().any(|r| {
            let end = r.addr + u64::from(r.pages) * PAGE;
            let told = self.process.written(r.addr, end, |_, _| any = true);
            any || told.is_err()
        })
    }

    /// The same as [`Self::written_behind`] of what it has mapped alone, which costs less.
    fn maps_devices(&self) -> bool {
        let found = self.process.with_maps(|maps| self.kinds.mapped(maps));
        !found.is_ok_and(|what| what.is_none())
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

    /// Maps runs to frames of `pool` where the bytes are equal.
    ///
    /// Not only the target's threads can write its memory: another process may (`process_vm_writev`, `/proc/PID/mem`),
    /// and it does not stand still. So the old pages are moved out of reach first, then compared, and only then are the
    /// frames moved in, or the old pages back: all by the loop inside the target, which completes this also if the
    /// guardian dies. A writer from outside meets, for microseconds, no page at all and is told so (`EFAULT`).
    /// What remains is one that has pinned a page before it was moved and copies after it was compared; the kernel
    /// offers no way to see that (its count of pins is folded once a second).
    pub fn merge(&mut self, tracer: &mut Tracer, pool: &Pool, runs: &[Run]) -> Outcome {
        self.core_dumps.include_frames(self.pid);
        let file = pool.file();
        self.bare = false;
        self.in_stops(
            tracer,
            Kind::Merge,
            runs,
            |t, tracer, stopped, batch, codes, out| {
                let fits = |v: &sys::Vma| {
                    v.flags == VMA_PRIVATE_RW && (v.file == FileId::NONE || v.file == file)
                };
                t.exchange(tracer, stopped, batch, codes, out, fits, Some(pool))
            },
        )
    }

    /// Gives runs of zero pages back: the kernel's zero page is mapped again when they are read.
    pub fn drop_zero(&mut self, tracer: &mut Tracer, runs: &[Run]) -> Outcome {
        self.in_stops(
            tracer,
            Kind::Zero,
            runs,
            |t, tracer, stopped, batch, codes, out| {
                let fits = |v: &sys::Vma| v.flags == VMA_PRIVATE_RW && v.file == FileId::NONE;
                t.exchange(tracer, stopped, batch, codes, out, fits, None)
            },
        )
    }

    /// The work of one stop: exchanges pages for equal frames of `pool`, or for nothing where they are zero (None).
    #[allow(clippy::too_many_arguments)]
    fn exchange(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        batch: &[Run],
        codes: &mut [u8],
        out: &mut Outcome,
        fits: impl Fn(&sys::Vma) -> bool,
        pool: Option<&Pool>,
    ) -> io::Result<()> {
        let mut edges = BTreeSet::new();
        self.classify(batch, fits, codes, &mut edges)?;
        self.find_hidden(tracer, stopped, batch);
        // A page that is asked for twice would be moved while mappings are not as they were looked at.
        for (first, pages) in overlapping(batch) {
            codes[first..first + pages].fill(Code::Timeout as u8);
        }
        self.keep_needed(stopped, batch, codes)?;
        // What was written since the engine looked is not at rest. That tells also of a page that something outside of
        // the target's threads is about to write, a device or another process: whoever pins a page to write it faults
        // it in for writing first.
        for (r, first) in cut(&good_runs(batch, codes), &edges) {
            let range = first..first + r.pages as usize;
            let page = |a: u64| first + ((a - r.addr) / PAGE) as usize;
            let mark = |from, to| codes[page(from)..page(to)].fill(Code::Written as u8);
            let end = r.addr + u64::from(r.pages) * PAGE;
            if remedies::without("written") {
                continue;
            }
            if self.process.written(r.addr, end, mark).is_err() {
                // Mapped anew by the program, or watched by itself: it has been looked at by nobody.
                codes[range].fill(Code::Gone as u8);
            }
        }
        self.leave_shared(batch, codes, pool.is_none())?;
        // A page that differs fails its whole piece: the others are tried again without it.
        let mut settled = vec![false; codes.len()];
        for _ in 0..ROUNDS {
            let open: Vec<u8> = codes
                .iter()
                .zip(&settled)
                .map(|(c, s)| if *s { u8::MAX } else { *c })
                .collect();
            let pieces = cut(&good_runs(batch, &open), &edges);
            if pieces.is_empty() {
                break;
            }
            for pieces in pieces.chunks(PIECES_MAX) {
                self.exchange_pieces(tracer, stopped, pieces, codes, &mut settled, out, pool)?;
            }
        }
        for (code, settled) in codes.iter_mut().zip(&settled) {
            if *code == Code::Done as u8 && !settled {
                *code = Code::Timeout as u8;
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn exchange_pieces(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        pieces: &[(Run, usize)],
        codes: &mut [u8],
        settled: &mut [bool],
        out: &mut Outcome,
        pool: Option<&Pool>,
    ) -> io::Result<()> {
        let bytes = |r: &Run| u64::from(r.pages) * PAGE;
        // Where the old pages of each piece are moved to.
        let aside: Vec<u64> = pieces
            .iter()
            .scan(self.workshop.aside, |next, (r, _)| {
                let at = *next;
                *next += bytes(r);
                Some(at)
            })
            .collect();
        let total: u64 = pieces.iter().map(|(r, _)| bytes(r)).sum();
        // After the pieces: what was moved aside is freed, and the mappings get back the advice that the old ones had
        // (which costs nothing where the old ones are back).
        let wanted = if pool.is_some() {
            FOR_FRAMES
        } else {
            FOR_ANONYMOUS
        };
        let mut tail = vec![self.workshop.clear_aside(total)];
        let mut apart: Vec<Op> = spans(pieces)
            .iter()
            .flat_map(|(span, _)| self.advice_for(span, wanted))
            .collect();
        if STEPS * pieces.len() + tail.len() + apart.len() + 8 <= OPS_MAX {
            tail.append(&mut apart);
        }
        // A list that is sent a descriptor begins with receiving it.
        let steps = Steps {
            workshop: &self.workshop,
            first: usize::from(pool.is_some()),
            pieces: pieces.len(),
        };
        let mut calls = Vec::with_capacity(STEPS * pieces.len() + tail.len());
        for (i, (r, _)) in pieces.iter().enumerate() {
            calls.extend(match pool {
                Some(_) => steps.for_frames(i, r, aside[i], self.received_at(), self.unreserved(r)),
                None => steps.for_nothing(r, aside[i], self.unreserved(r)),
            });
        }
        calls.extend(tail);
        let ops = match pool {
            Some(pool) => self.run_with_descriptor(tracer, stopped, Lent::Pool(pool), calls)?,
            None => {
                self.run_ops(tracer, stopped, &mut calls)?;
                calls
            }
        };
        let mut kept: Vec<(Run, usize)> = Vec::new();
        let mut back: Vec<Run> = Vec::new();
        let mut lost: Vec<(u64, Run)> = Vec::new();
        let mut replaced: Vec<(u64, u64)> = Vec::new();
        for (((r, first), step), aside) in pieces.iter().zip(ops.chunks_exact(STEPS)).zip(&aside) {
            let range = *first..*first + r.pages as usize;
            match Fate::of(step, r) {
                Fate::Untouched => codes[range].fill(Code::Refused as u8),
                Fate::Placed => {
                    kept.push((*r, *first));
                    replaced.push((*aside, bytes(r)));
                }
                Fate::Back { differs: Some(at) } => {
                    back.push(*r);
                    codes[*first + (at / PAGE) as usize] = Code::Differs as u8;
                }
                Fate::Back { differs: None } => {
                    back.push(*r);
                    codes[range].fill(Code::Refused as u8);
                }
                Fate::Lost => {
                    back.push(*r);
                    lost.push((*aside, *r));
                    codes[range].fill(Code::Refused as u8);
                }
            }
        }
        if !lost.is_empty() {
            self.bring_back(tracer, stopped, &lost, &replaced)?;
        }
        if !apart.is_empty() {
            self.run_ops(tracer, stopped, &mut apart)?;
        }
        for (r, first) in &kept {
            settled[*first..*first + r.pages as usize].fill(true);
        }
        // What was moved, also there and back, has lost its registration.
        for r in &back {
            let _ = self.retrack(r.addr, r.addr + bytes(r));
        }
        let mut unguarded: Vec<Run> = Vec::new();
        for (span, pieces) in spans(&kept) {
            let end = span.addr + bytes(&span);
            if pool.is_none() {
                let _ = self.retrack(span.addr, end);
            } else if self.watch(span.addr, end).is_ok() {
                out.mappings += 1;
            } else {
                // Unguarded frames must not stay: the bytes go back to memory of the target's own.
                for (r, first) in pieces {
                    unguarded.push(*r);
                    codes[*first..*first + r.pages as usize].fill(Code::Refused as u8);
                }
            }
        }
        let ends = spans(&kept).into_iter().map(|(s, _)| s.addr + bytes(&s));
        let ends: Vec<u64> = ends.filter(|_| pool.is_some()).collect();
        for end in self.fence(tracer, stopped, &ends) {
            let last = kept.iter().find(|(r, _)| r.addr + bytes(r) == end);
            let code = last.map(|(r, first)| &mut codes[first + r.pages as usize - 1]);
            if let Some(code) = code.filter(|c| **c == Code::Done as u8) {
                *code = Code::Refused as u8;
                self.give_back(tracer, stopped, end - PAGE)?;
            }
        }
        for runs in unguarded.chunks(UNSHARE_MAX) {
            self.take_back(tracer, stopped, runs)?;
        }
        Ok(())
    }

    /// Which pages of a batch may be changed, by the mapping they are in; `edges` as of [`classify`].
    fn classify(
        &self,
        batch: &[Run],
        fits: impl Fn(&sys::Vma) -> bool,
        codes: &mut [u8],
        edges: &mut BTreeSet<u64>,
    ) -> io::Result<()> {
        self.process.with_maps(|maps| {
            let mut at = 0;
            for r in batch {
                let part = &mut codes[at..at + r.pages as usize];
                classify(maps, r.addr, r.pages, &fits, part, edges);
                at += r.pages as usize;
            }
            Ok(())
        })
    }

    /// Refuses pages that the kernel writes while lists run ([`Workshop::needed`]): they cannot be moved.
    fn keep_needed(&self, stopped: &Stopped, batch: &[Run], codes: &mut [u8]) -> io::Result<()> {
        let Some((start, end)) = self.workshop.needed(&self.process, stopped)? else {
            return Ok(());
        };
        for (r, first) in good_runs(batch, codes) {
            let last = r.addr + u64::from(r.pages) * PAGE;
            let (from, to) = (start.max(r.addr), end.min(last));
            if from < to {
                mark(&mut codes[first..], r.addr, from, to, Code::Refused);
            }
        }
        Ok(())
    }

    /// Runs a list in the stopped target, reading events that it causes.
    fn run_ops(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        ops: &mut [Op],
    ) -> io::Result<()> {
        // What is told of moves and unmapping is told of ours: nothing else runs.
        let mut watch = Watch {
            guard: &self.guard,
            discarded: &mut self.discarded,
            moved: &mut Vec::new(),
            opened: &mut Vec::new(),
            born: &mut self.born,
            bare: self.bare,
            close: &mut self.close,
            unstopped: self.unstopped,
        };
        self.workshop
            .run(tracer, &self.process, stopped, ops, &mut watch)
    }

    /// Gives merged runs private anonymous memory with the same bytes.
    pub fn unmerge(&mut self, tracer: &mut Tracer, pool: &Pool, runs: &[Run], way: Way) -> Outcome {
        let file = pool.file();
        self.locked = if sys::pinned_and_locked(self.pid).1 {
            sys::locked(sys::memory_tid(self.pid)).unwrap_or_default()
        } else {
            Vec::new()
        };
        let outcome = self.in_stops(
            tracer,
            Kind::Unmerge,
            runs,
            |t, tracer, stopped, batch, codes, _| {
                let mut edges = BTreeSet::new();
                t.classify(batch, |v| v.file == file, codes, &mut edges)?;
                t.find_hidden(tracer, stopped, batch);
                if way == Way::Apart {
                    // Copied where it is, it is always there.
                    t.keep_needed(stopped, batch, codes)?;
                }
                for part in cut(&good_runs(batch, codes), &edges).chunks(UNSHARE_MAX) {
                    let runs: Vec<Run> = part.iter().map(|(r, _)| *r).collect();
                    let prots = t.protections(&runs)?;
                    let done = t.unshare(tracer, stopped, &runs, &prots, way);
                    for (i, (r, first)) in part.iter().enumerate() {
                        if !done.as_ref().is_ok_and(|d| d[i]) {
                            codes[*first..*first + r.pages as usize].fill(Code::Refused as u8);
                        }
                    }
                }
                Ok(())
            },
        );
        self.locked.clear();
        outcome
    }

    /// Keeps merged memory from growing where it is: `pages` are the last ones of mappings of frames with nothing behind.
    /// Where no page without access can be had there, they are given memory of their own.
    pub fn close_ends(&mut self, tracer: &mut Tracer, pool: &Pool, pages: &[Run]) -> Outcome {
        let file = pool.file();
        self.in_stops(
            tracer,
            Kind::Fence,
            pages,
            |t, tracer, stopped, batch, codes, _| {
                t.classify(batch, |v| v.file == file, codes, &mut BTreeSet::new())?;
                let ends: Vec<u64> = good_runs(batch, codes)
                    .iter()
                    .map(|(r, _)| r.addr + u64::from(r.pages) * PAGE)
                    .collect();
                for end in t.fence(tracer, stopped, &ends) {
                    t.give_back(tracer, stopped, end - PAGE)?;
                }
                Ok(())
            },
        )
    }

    /// Gives the last page of a mapping of frames memory of its own, so that the frames before it cannot grow.
    fn give_back(&mut self, tracer: &mut Tracer, stopped: &Stopped, addr: u64) -> io::Result<()> {
        let run = Run {
            addr,
            pages: 1,
            frame: 0,
        };
        self.take_back(tracer, stopped, &[run])
    }

    /// Gives frames that must not stay memory of the target's own, where they are if it cannot be done out of reach.
    fn take_back(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        runs: &[Run],
    ) -> io::Result<()> {
        let prots = self.protections(runs)?;
        let done = self.unshare(tracer, stopped, runs, &prots, Way::Apart);
        let done = done.unwrap_or_else(|_| vec![false; runs.len()]);
        let open = |k: &usize| !done[*k];
        let left: Vec<Run> = (0..runs.len()).filter(open).map(|k| runs[k]).collect();
        let prots: Vec<u64> = (0..runs.len()).filter(open).map(|k| prots[k]).collect();
        if !left.is_empty() {
            self.unshare(tracer, stopped, &left, &prots, Way::Joined)?;
        }
        Ok(())
    }

    /// The protection that the program has given to each of `runs`.
    fn protections(&self, runs: &[Run]) -> io::Result<Vec<u64>> {
        self.process.with_maps(|maps| {
            runs.iter()
                .map(|r| Ok(maps.at_or_after(r.addr)?.map_or(PROT_RW, |v| v.flags & 7)))
                .collect()
        })
    }

    /// Maps `bytes` of memory somewhere in a stopped target; its address.
    fn scratch(&mut self, tracer: &mut Tracer, stopped: &Stopped, bytes: u64) -> io::Result<u64> {
        let mut map = [Op::new(nr::MMAP, &[0, bytes, PROT_RW, ANON, u64::MAX, 0])];
        self.run_ops(tracer, stopped, &mut map)?;
        match map[0].result {
            e @ ..=-1 => Err(io::Error::from_raw_os_error(-e as i32)),
            at => Ok(at as u64),
        }
    }

    /// The same, for a copy, and the call that gives it back. Where the target may have no more mappings or memory, the
    /// addresses reserved for what is moved aside serve for it: then nothing may be moved there meanwhile.
    fn room_to_copy(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        bytes: u64,
    ) -> io::Result<(u64, Op)> {
        if let Ok(at) = self.scratch(tracer, stopped, bytes) {
            return Ok((at, Op::new(nr::MUNMAP, &[at, bytes])));
        }
        let (at, all) = (self.workshop.aside, u64::from(ASIDE_PAGES) * PAGE);
        let clear = self.workshop.clear_aside(all);
        let mut map = [
            Op::new(nr::MUNMAP, &[at, all]),
            Op::new(nr::MMAP, &[at, bytes, PROT_RW, ANON | FIXED, u64::MAX, 0]),
        ];
        self.run_ops(tracer, stopped, &mut map)?;
        if map[1].result as u64 == at {
            return Ok((at, clear));
        }
        self.run_ops(tracer, stopped, &mut [clear])?;
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// The same as [`Self::unshare`], out of reach of everybody: the frames are moved aside, copied, and the copy is
    /// moved in. Another process that writes this memory meanwhile meets no page and is told so.
    fn unshare_apart(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        runs: &[Run],
        prots: &[u64],
    ) -> io::Result<Vec<bool>> {
        let bytes = |r: &Run| u64::from(r.pages) * PAGE;
        let total: u64 = runs.iter().map(bytes).sum();
        assert!(runs.len() <= UNSHARE_MAX && total <= u64::from(ASIDE_PAGES) * PAGE);
        let base = self.scratch(tracer, stopped, total)?;
        let mut again: Vec<Op> = Vec::new();
        let mut at = base;
        for r in runs {
            match self.unreserved(r) {
                0 => {}
                flag => {
                    let flags = ANON | FIXED | flag;
                    let args = [at, bytes(r), PROT_RW, flags, u64::MAX, 0];
                    again.push(Op::new(nr::MMAP, &args));
                }
            }
            at += bytes(r);
        }
        if !again.is_empty() {
            // What cannot be had cannot be copied to, and is left as it is.
            self.run_ops(tracer, stopped, &mut again)?;
        }
        let advice: Vec<Vec<Op>> = runs
            .iter()
            .map(|r| {
                let mut advice = self.advice_for(r, FOR_ANONYMOUS);
                advice.extend(self.lock_again(r));
                advice
            })
            .collect();
        // Where what is aside is freed.
        let clear = advice.iter().map(|a| a.len() + UNSHARE_STEPS).sum();
        let mut calls = Vec::with_capacity(clear + 2);
        let mut placed = Vec::with_capacity(runs.len());
        let mut at = 0;
        for ((r, prot), advice) in runs.iter().zip(prots).zip(advice) {
            let (len, aside) = (bytes(r), self.workshop.aside + at);
            let after = advice.len() as u64 + 1;
            let away = Op::new(
                nr::MREMAP | arch::skip_if_error(7 + after),
                &[r.addr, len, len, MOVE, aside],
            );
            // What the program has protected must be readable for the copy.
            let open = Op::new(nr::MPROTECT, &[aside, len, PROT_RW]);
            let copy = Op::new(
                arch::COPY | arch::skip_if_error(1),
                &[base + at, aside, len],
            );
            let place = Op::new(
                nr::MREMAP | arch::skip_unless_error(4),
                &[base + at, len, len, MOVE, r.addr],
            );
            placed.push(calls.len() + 3);
            calls.extend([away, open, copy, place]);
            calls.extend(way_back(
                &self.workshop,
                r,
                aside,
                clear,
                0,
                self.unreserved(r),
            ));
            calls.extend(advice);
            calls.push(Op::new(nr::MPROTECT, &[r.addr, len, *prot]));
            at += len;
        }
        calls.push(self.workshop.clear_aside(total));
        calls.push(Op::new(nr::MUNMAP, &[base, total]));
        self.run_ops(tracer, stopped, &mut calls)?;
        let (mut lost, mut replaced, mut protect) = (Vec::new(), Vec::new(), Vec::new());
        let mut at = self.workshop.aside;
        for ((i, r), prot) in placed.iter().zip(runs).zip(prots) {
            if calls[*i].result as u64 == r.addr {
                replaced.push((at, bytes(r)));
            } else if calls[i - 3].result >= 0 && !is_back(&calls[i + 1..]) {
                lost.push((at, *r));
                protect.push(Op::new(nr::MPROTECT, &[r.addr, bytes(r), *prot]));
            }
            at += bytes(r);
        }
        if !lost.is_empty() {
            self.bring_back(tracer, stopped, &lost, &replaced)?;
            self.run_ops(tracer, stopped, &mut protect)?;
        }
        // What was copied back into fresh memory is the program's own again, too.
        let done: Vec<bool> = placed
            .iter()
            .zip(runs)
            .map(|(i, r)| calls[*i].result as u64 == r.addr || calls[i + 3].result == 0)
            .collect();
        for (r, done) in runs.iter().zip(&done) {
            let end = r.addr + bytes(r);
            if *done {
                let _ = self.retrack(r.addr, end);
            } else {
                // Moved there and back, it may have lost its guard.
                let _ = self.watch(r.addr, end);
            }
        }
        Ok(done)
    }

    /// Replaces mappings of frames (at most [`UNSHARE_MAX`]) by anonymous memory with the same bytes, in a stopped
    /// target; whether it worked, for each.
    ///
    /// The bytes travel through a scratch mapping inside the target, copied there by the injected loop itself: if
    /// this process dies, the loop completes the copy back before the target goes on. Write tracking is registered in
    /// the loop, too, before any page of the new mapping exists: only so does the kernel join it with its neighbours.
    /// For this the copy takes place where other processes can reach it: one that writes this memory at the same moment
    /// may lose its write. So only a target that is let go for good is unmerged this way.
    fn unshare(
        &mut self,
        tracer: &mut Tracer,
        stopped: &Stopped,
        runs: &[Run],
        prots: &[u64],
        way: Way,
    ) -> io::Result<Vec<bool>> {
        if way == Way::Apart && !remedies::without("aside") {
            return self.unshare_apart(tracer, stopped, runs, prots);
        }
        assert!(runs.len() <= UNSHARE_MAX && runs.len() == prots.len());
        let bytes = |r: &Run| u64::from(r.pages) * PAGE;
        let total: u64 = runs.iter().map(bytes).sum();
        let (base, unmap) = self.room_to_copy(tracer, stopped, total)?;
        let arguments = self.workshop.base + MESSAGE_AT + ARGUMENTS_AT;
        let (mut calls, mut block, mut at) =
            (Vec::with_capacity(4 * runs.len() + 1), Vec::new(), base);
        for (i, (r, prot)) in runs.iter().zip(prots).enumerate() {
            let argument = crate::uffd::register_argument(r.addr, r.addr + bytes(r));
            block.extend(argument.iter().flat_map(|w| w.to_le_bytes()));
            let protect = |prot: u64| Op::new(nr::MPROTECT, &[r.addr, bytes(r), prot]);
            // What the program has protected must be readable for the copy, and be protected again.
            if *prot != PROT_RW {
                calls.push(protect(PROT_RW));
            }
            let mut rest = self.advice_for(r, FOR_ANONYMOUS);
            if self.track.is_some() {
                rest.push(Op::new(
                    nr::IOCTL | arch::DEREF_ARG1,
                    &[
                        self.received_at(),
                        crate::uffd::REGISTER_REQUEST,
                        arguments + 32 * i as u64,
                    ],
                ));
            }
            rest.push(Op::new(arch::COPY, &[r.addr, at, bytes(r)]));
            rest.extend(self.lock_again(r));
            let left = rest.len() as u64;
            calls.push(Op::new(
                arch::COPY | arch::skip_if_error(left + 1),
                &[at, r.addr, bytes(r)],
            ));
            calls.push(Op::new(
                nr::MMAP | arch::skip_if_error(left),
                &[
                    r.addr,
                    bytes(r),
                    PROT_RW,
                    ANON | FIXED | self.unreserved(r),
                    u64::MAX,
                    0,
                ],
            ));
            calls.extend(rest);
            if *prot != PROT_RW {
                calls.push(protect(*prot));
            }
            at += bytes(r);
        }
        let needed = self.workshop.needed(&self.process, stopped)?;
        let overlaps = |r: &Run| needed.is_some_and(|(a, b)| r.addr < b && a < r.addr + bytes(r));
        if runs.iter().any(overlaps) {
            // What the kernel wrote between the copy there and the copy back would be lost. And it would put a page where
            // write tracking is not registered yet, so that the mapping stays apart from its neighbours.
            let [end, begin] = self.workshop.register_again(&self.process, stopped)?;
            calls.insert(0, end);
            calls.push(begin);
        }
        let track = self.track.as_ref().map(Uffd::descriptor).transpose()?;
        let ops = match track {
            Some(track) => {
                sys::write_remote(self.pid, arguments, &block)?;
                calls.push(unmap);
                self.run_with_descriptor(tracer, stopped, Lent::Own(&track), calls)
            }
            None => {
                // Only guarded, not tracked (any more): no registration.
                calls.push(unmap);
                let ran = self.run_ops(tracer, stopped, &mut calls);
                ran.map(|()| calls)
            }
        };
        let Ok(ops) = ops else {
            // The descriptor could not be passed: nothing but the scratch mapping has changed.
            let _ = self.run_ops(tracer, stopped, &mut [unmap]);
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        };
        Ok(ops
            .iter()
            .filter(|o| o.number & arch::NUMBER == nr::MMAP)
            .map(|o| o.result >= 0)
            .collect())
    }

    /// Removes the workshop and ends all watching. On an error the target is still guarded.
    pub fn detach(&mut self, tracer: &mut Tracer) -> io::Result<()> {
        if !self.stop_again(tracer) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let strictness = if self.maps_frames() {
            Strictness::All
        } else {
            // Nothing of it is exchanged any more: a thread that sleeps in the kernel does no harm.
            Strictness::NoUserCode
        };
        match self.stop(tracer, Duration::from_secs(2), strictness) {
            Ok(mut stopped) => {
                let result = if let Some(e) = stopped.only_mend.take() {
                    self.mend(tracer, &stopped);
                    Err(e.into_io())
                } else if self.workshop.intact(stopped.memory()) {
                    self.mend(tracer, &stopped);
                    let fences: Vec<u64> = self.fences.iter().copied().collect();
                    self.remove_fences(tracer, &stopped, &fences);
                    self.workshop.remove(tracer, &self.process, &stopped)
                } else if self.still_there() {
                    // It hides: nothing can be given back to it.
                    self.mend(tracer, &stopped);
                    Err(io::Error::from_raw_os_error(libc::EPERM))
                } else {
                    Ok(())
                };
                if result.is_ok() {
                    tracer.unfollow(self.pid);
                    self.core_dumps.restore(self.pid);
                }
                tracer.release(stopped);
                result
            }
            Err(StopError::Gone) => Ok(()),
            Err(e) => Err(e.into_io()),
        }
    }

    /// Undoes what outlives the memory that is let go: a new program, too, has its predecessor's filter of core dumps.
    pub fn forget(&self) {
        if !sys::has_ended(&self.pidfd) {
            self.core_dumps.restore(self.pid);
        }
    }

    /// Children announced since last asked: the descriptors of their address spaces.
    pub fn take_born(&mut self) -> Vec<Born> {
        self.must_shed |= self.overdrawn();
        std::mem::take(&mut self.born)
    }

    /// Where children announced since last asked may be found.
    pub fn take_hints(&mut self) -> Vec<i32> {
        std::mem::take(&mut self.hints)
    }

    /// Whether a discard, a move or unmapping is known of that has not been mended.
    pub fn needs_mending(&self) -> bool {
        !self.discarded.is_empty()
            || !self.moved.is_empty()
            || (!self.opened.is_empty() && !self.is_unstopped())
            || self.has_unanswered()
            || self.overdrawn()
    }

    /// Has no more descriptors open for a process that is only guarded than that takes.
    pub fn rest(&self) {
        if !self.tracks() {
            self.process.rest(!self.told_of_forks);
        }
    }

    /// Whether an event waits to be read.
    fn pending(&self) -> bool {
        self.guard.has_news()
    }
}

/// The filter of what a process's core dumps hold. Merged pages are pages of a private file mapping to the kernel, which
/// leaves such out unless told otherwise.
#[derive(Clone, Copy, Debug, Default)]
struct CoreDumps {
    /// Whether it has been seen to.
    looked: bool,
    before: Option<u64>,
}

const PRIVATE_FILE_MAPPINGS: u64 = 1 << 2;

impl CoreDumps {
    /// Before there are any: what a program starts that has none has the program's filter as it was.
    fn include_frames(&mut self, pid: i32) {
        if std::mem::replace(&mut self.looked, true) || remedies::without("dumps") {
            return;
        }
        let path = format!("/proc/{pid}/coredump_filter");
        let before = Self::read(&path).filter(|f| f & PRIVATE_FILE_MAPPINGS == 0);
        if let Some(f) = before {
            let _ = std::fs::write(&path, format!("{:#x}", f | PRIVATE_FILE_MAPPINGS));
        }
        self.before = before;
    }

    /// Takes the bit away again, if it was set by us and the program has not changed the filter since.
    fn restore(self, pid: i32) {
        let path = format!("/proc/{pid}/coredump_filter");
        if let Some(f) = self.before {
            if Self::read(&path) == Some(f | PRIVATE_FILE_MAPPINGS) {
                let _ = std::fs::write(path, format!("{f:#x}"));
            }
        }
    }

    fn read(path: &str) -> Option<u64> {
        let text = std::fs::read_to_string(path).ok()?;
        u64::from_str_radix(text.trim(), 16).ok()
    }
}

/// How often giving all back is tried at a birth.
const SHED_TRIES: usize = 3;
/// How often, in one stop, the rest of pieces with a differing page is tried again.
const ROUNDS: usize = 4;

/// Neighbouring pieces taken together, with the pieces of each.
fn spans(pieces: &[(Run, usize)]) -> Vec<(Run, &[(Run, usize)])> {
    let joined = |a: &(Run, usize), b: &(Run, usize)| {
        a.0.addr + u64::from(a.0.pages) * PAGE == b.0.addr
            && a.0.frame.wrapping_add(a.0.pages) == b.0.frame
    };
    pieces
        .chunk_by(joined)
        .map(|part| {
            (
                Run {
                    pages: part.iter().map(|(r, _)| r.pages).sum(),
                    ..part[0].0
                },
                part,
            )
        })
        .collect()
}

/// Cuts runs at `edges` and into pieces.
fn cut(runs: &[(Run, usize)], edges: &BTreeSet<u64>) -> Vec<(Run, usize)> {
    let mut out = Vec::new();
    for &(run, first) in runs {
        let mut done = 0;
        while done < run.pages {
            let addr = run.addr + u64::from(done) * PAGE;
            let limit = edges
                .range(addr + 1..)
                .next()
                .map_or(u64::MAX, |e| (e - addr) / PAGE);
            let pages = (run.pages - done)
                .min(PIECE_PAGES)
                .min(u32::try_from(limit).unwrap_or(u32::MAX));
            out.push((
                Run {
                    addr,
                    pages,
                    frame: run.frame.wrapping_add(done),
                },
                first + done as usize,
            ));
            done += pages;
        }
    }
    out
}

/// Where, in the page for messages, arguments of registrations begin.
const ARGUMENTS_AT: u64 = 256;
/// Most runs of one [`Target::unshare`]: their arguments fit the page, their operations the list.
const UNSHARE_MAX: usize = 64;
/// Operations of one run that is given memory of its own apart from others, without its advice.
const UNSHARE_STEPS: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(addr: u64, pages: u32, frame: u32) -> Run {
        Run {
            addr: addr * PAGE,
            pages,
            frame,
        }
    }

    fn plain(runs: &[Run]) -> Vec<(u64, u32, u32)> {
        runs.iter()
            .map(|r| (r.addr / PAGE, r.pages, r.frame))
            .collect()
    }

    #[test]
    fn batches_cut_runs_at_the_page_limit_and_go_on_where_they_stopped() {
        let runs = [run(10, 5, 100), run(50, 3, 7)];
        let mut c = (0, 0);
        assert_eq!(plain(&next_batch(&runs, &mut c, 4)), [(10, 4, 100)]);
        assert_eq!(
            plain(&next_batch(&runs, &mut c, 4)),
            [(14, 1, 104), (50, 3, 7)]
        );
        assert!(next_batch(&runs, &mut c, 4).is_empty());
    }

    #[test]
    fn of_pages_asked_for_twice_only_the_first_run_is_left() {
        let runs = [run(50, 3, 7), run(10, 5, 100), run(14, 2, 9), run(52, 1, 8)];
        assert_eq!(overlapping(&runs), [(8, 2), (10, 1)]);
        assert!(overlapping(&runs[..2]).is_empty());
    }

    #[test]
    fn a_page_that_failed_splits_its_run() {
        let runs = [run(10, 4, 100), run(14, 2, 9)];
        let good = good_runs(&runs, &[0, 1, 0, 0, 0, 0]);
        let got: Vec<_> = good
            .iter()
            .map(|(r, at)| (r.addr / PAGE, r.pages, r.frame, *at))
            .collect();
        assert_eq!(got, [(10, 1, 100, 0), (12, 2, 102, 2), (14, 2, 9, 4)]);
    }
}

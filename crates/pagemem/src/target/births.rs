//! Children of a target: from the fork event that tells of an address space to the target that the child becomes.
//!
//! A child has its parent's frames from its first instruction on, and its guard with them; its pid is found later. So
//! there are three steps: [`Born`] is what the event brings, [`PendingChild`] what waits for the pid, and
//! [`PendingChild::adopt`] makes the target. Where the kernel tells this user of no forks, the tracer holds the child
//! instead ([`Target::guard_child`]). Called by the guardian's wards ([`crate::guard`]).

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use super::advice::Advised;
use super::close::Close;
use super::dumps::CoreDumps;
use super::rights::Rights;
use super::{StopLimits, Target};
use crate::inject::{InjectedRegion, MESSAGE_AT};
use crate::pool::Pool;
use crate::process::Process;
use crate::processes;
use crate::ptrace::{NoEvents, StopError, Strictness, Tracer};
use crate::sys::{self, FileId, PAGE};
use crate::uffd::{Uffd, Use};

/// How often giving all back is tried at a birth.
const SHED_TRIES: usize = 3;

/// The address space of a child that a fork event has told of.
pub struct Born {
    pub(super) guard: Uffd,
    pub(super) close: Option<Close>,
    pub(super) unstopped: bool,
}

/// A child whose fork was told of, but not yet its pid: its memory is guarded from the first instruction on.
pub struct PendingChild {
    /// The process that forked it; it may have ended since.
    pub parent: i32,
    region: InjectedRegion,
    guard: Option<Uffd>,
    /// Where it may see frames, if they are watched closely.
    close: Option<Close>,
    for_life: bool,
    rights: Rights,
    /// Whether its parent could not be stopped.
    unstopped: bool,
    limits: StopLimits,
    advised: Advised,
    guard_pages: BTreeSet<u64>,
    pool_file: FileId,
    core_dumps: CoreDumps,
}

impl PendingChild {
    /// Whether its address space still exists.
    pub fn alive(&self) -> bool {
        self.guard
            .as_ref()
            .is_some_and(|g| g.alive(self.region.base))
    }

    /// Undoes what its new program has of it, if process `child` runs that: see [`Target::forget`].
    pub fn forget(&self, child: i32) {
        if !self.region.intact(processes::memory_tid(child)) {
            self.core_dumps.restore(child);
        }
    }

    /// The target that process `child` is, if it is this one; it inherited the injected region with its parent's memory.
    pub fn adopt(&mut self, child: i32) -> Option<Target> {
        // Its first thread may have ended already, and its memory be reached through another only.
        let mut through = child;
        if !self.region.intact(child) {
            through = processes::memory_tid(child);
            if through == child || !self.region.intact(through) {
                return None;
            }
        }
        let process = Process::open(child).ok()?;
        // Several children may have been born since: a page watched through the right descriptor is one that the
        // kernel agrees to scan for asynchronous write protection in this child, and in no other.
        let probe = self.region.base + MESSAGE_AT;
        let guard = self.guard.as_ref()?;
        guard.register(probe, probe + PAGE).ok()?;
        let belongs = sys::tracks_writes(through, probe);
        let _ = guard.unregister(probe, probe + PAGE);
        if !belongs {
            return None;
        }
        let guard = self.guard.take()?;
        let (region, limits, file) = (self.region, self.limits, self.pool_file);
        let adopted = Target {
            guard_pages: std::mem::take(&mut self.guard_pages),
            advised: std::mem::take(&mut self.advised),
            close: self.close.take(),
            for_life: self.for_life,
            rights: self.rights,
            unstopped: self.unstopped,
            core_dumps: self.core_dumps,
            ..Target::new(process, region, guard, limits, file, true)
        };
        adopted.keep_watching();
        Some(adopted)
    }
}

impl Target {
    /// What a child, announced by a fork event, is to be made a target from, once its pid is known.
    pub fn pending_child(&self, born: Born) -> PendingChild {
        PendingChild {
            parent: self.pid,
            region: self.region,
            guard: Some(born.guard),
            close: born.close,
            for_life: self.for_life,
            rights: self.rights.inherited(),
            unstopped: born.unstopped,
            limits: self.limits,
            advised: self.advised.clone(),
            guard_pages: self.guard_pages.clone(),
            pool_file: self.pool_file,
            core_dumps: self.core_dumps,
        }
    }

    /// Makes a forked child, held at its first stop by `tracer`, a guarded target: for users whose userfaultfds are
    /// not told of forks. The child is released, followed like its parent.
    pub fn guard_child(&self, tracer: &mut Tracer, child: i32, pool: &Pool) -> io::Result<Self> {
        let process = Process::open(child)?;
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
            if !self.region.intact(child) {
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
            Err(e) => (crate::uffd::blind().map(Uffd::taken), Some(e)),
        };
        let (region, limits, file) = (self.region, self.limits, self.pool_file);
        let made = guard.map(|guard| Self {
            guard_pages: self.guard_pages.clone(),
            advised: self.advised.clone(),
            core_dumps: self.core_dumps,
            ..Self::new(process, region, guard, limits, file, false)
        });
        let result = match (made, failure) {
            (Ok(target), None) => {
                target.rest();
                Ok(target)
            }
            (Ok(mut unguarded), Some(e)) => {
                // Without a guard it must not have frames. What fails for want of room may work with what has been
                // given back.
                let _ = (0..SHED_TRIES).any(|_| unguarded.shed(tracer, &stopped));
                tracer.unfollow(child);
                Err(e)
            }
            (Err(e), _) => Err(e),
        };
        tracer.release(stopped);
        result
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
}
